# SPDX-License-Identifier: Apache-2.0
"""Look-alikes of the papers' modules are recognised, compute the same as before, and come back; others are left alone."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyindexnet
from pyindexnet.adoption.fused import FusedModule
from pyindexnet.models import create_model
from pyindexnet.testing.parity import error, tolerance
from tests.adoption import lookalikes as like
from tests.golden import load_case

INDEX, KERNELS = "index block", "dynamic kernels"
POOLING, FUSION = "trimap-guided pooling", "global-local fusion"
#: name -> (kind, builder, shapes of the inputs)
MODULES = {
    "hin": (INDEX, lambda: like.Holistic(6), [(2, 6, 8, 10)]),
    "hin_linear": (INDEX, lambda: like.Holistic(6, kernel=2, nonlinear=False), [(2, 6, 8, 10)]),
    "o2o": (INDEX, lambda: like.Depthwise(6, family="o2o", width=2), [(2, 6, 8, 10)]),
    "o2o_linear": (INDEX, lambda: like.Depthwise(6, family="o2o", kernel=2, nonlinear=False), [(2, 6, 8, 10)]),
    "m2o": (INDEX, lambda: like.Depthwise(6, family="m2o", width=2), [(2, 6, 8, 10)]),
    "m2o_linear": (INDEX, lambda: like.Depthwise(6, family="m2o", nonlinear=False), [(2, 6, 8, 10)]),
    "carafe": (KERNELS, lambda: like.CARAFEPack(8, 2), [(2, 8, 5, 6)]),
    "carafe_groups": (KERNELS, lambda: like.CARAFEPack(8, 3, up_kernel=3, up_group=2), [(2, 8, 5, 6)]),
    "carafe_down": (KERNELS, lambda: like.Downsampler(6), [(2, 6, 7, 8)]),
    "involution": (KERNELS, lambda: like.Involution(8), [(2, 8, 9, 8)]),
    "involution_strided": (KERNELS, lambda: like.Involution(8, k=3, stride=2), [(2, 8, 9, 8)]),
    "tmp_branch": (POOLING, lambda: like.PoolingBranch(6, 4, 5), [(2, 6, 9, 8), (2, 1, 9, 8)]),
    "tmp": (POOLING, lambda: like.TrimapPooling(6, 4), [(2, 6, 9, 8), (2, 1, 9, 8)]),
    "glf": (FUSION, lambda: like.Fusion(8, 5, 16, 6, 7), [(2, 5, 6, 8), (2, 8, 3, 4), (2, 7, 3, 3)]),
    "glf_equal_channels": (FUSION, lambda: like.Fusion(32, 8, 16, 6, 16), [(2, 8, 6, 8), (2, 32, 3, 4), (2, 16, 3, 3)]),
}


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Maps, and masks where they have one channel."""
    return [random(i, *shape).abs() + 0.1 if shape[1] == 1 else random(i, *shape) for i, shape in enumerate(shapes)]


def tensors(module: nn.Module, given: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, gradients of inputs and parameters, and buffers after the call."""
    leaves = [t.detach().clone().requires_grad_() for t in given]
    returned = module(*leaves)
    outputs = [returned] if isinstance(returned, Tensor) else returned
    loss = sum((random(9, *y.shape) * y).sum() for y in outputs)
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, [*leaves, *parameters])
    found = {f"output {i}": y for i, y in enumerate(outputs)}
    found |= dict(zip([*(f"grad {i}" for i in range(len(leaves))), *(f"grad {n}" for n in names)], grads, strict=True))
    return found | {f"buffer {n}": b.double() for n, b in module.named_buffers()}


def assert_equal(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """To float64 rounding, relative to the largest value of a kind: a gradient that cancels has rounding for values."""
    assert before.keys() == after.keys()
    terms = sum(t.numel() for t in before.values())
    for kind in ("output", "grad", "buffer"):
        names = [name for name in before if name.startswith(kind)]
        scale = max((before[name].detach().abs().max() for name in names), default=torch.zeros(()))
        for name in names:
            assert error(after[name], before[name]) <= tolerance(scale, 0.0, terms, torch.float64), name


def built(name: str) -> tuple[str, nn.Module, list[Tensor]]:
    kind, build, shapes = MODULES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind, build(), inputs(shapes)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODULES)
def test_same_outputs_and_gradients(name: str, training: bool) -> None:
    """In float64, where a sum in another order cannot flip a ReLU; the running statistics too."""
    kind, module, given = built(name)
    original = copy.deepcopy(module).double().train(training)
    report = pyindexnet.accelerate(nn.ModuleList([module]))
    assert [(e.name, e.kind, e.replaced, e.reason) for e in report.entries] == [("0", kind, True, "")], str(report)
    fused = report.module[0]
    assert isinstance(fused, FusedModule)
    assert_equal(tensors(original, given), tensors(fused.double().train(training), given))


@pytest.mark.parametrize("name", MODULES)
def test_parameters_are_shared_and_undo_restores(name: str) -> None:
    _, module, given = built(name)
    keys, parameters = list(module.state_dict()), dict(module.named_parameters())
    children = dict(module.named_children())
    report = pyindexnet.accelerate(module)
    fused = report.module
    assert fused is not module
    assert list(fused.state_dict()) == keys
    assert all(p is parameters[key] for key, p in fused.named_parameters())
    assert dict(fused.named_children()) == children

    fused.eval().double()
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.mul_(1.5)
    after = tensors(fused, given)
    assert report.undo() is module
    assert report.module is module
    assert not module.training
    assert_equal(tensors(module, given), after)


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return like.Network()


def test_network(network: nn.Module) -> None:
    """All six kinds at once, by name; an optimizer made before goes on training the same parameters."""
    given = [random(0, 2, 4, 16, 24)]
    original = copy.deepcopy(network).double()
    modules = {name: network.get_submodule(name) for name in ("index", "middle.0", "down", "context", "fuse", "up")}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    report = pyindexnet.accelerate(network)
    assert report.module is network
    assert [e.name for e in report.replaced] == list(modules)
    assert report.left == []
    assert str(report).startswith("replaced  index: index block, differs by at most ")
    network.double()
    assert_equal(tensors(original, given), tensors(network, given))

    before = network.index.indexnet1[0].weight.clone()
    network(*given).sum().backward()
    optimizer.step()
    assert not torch.equal(network.index.indexnet1[0].weight, before)

    after = network.eval()(*given)
    assert report.undo() is network
    assert all(network.get_submodule(name) is module for name, module in modules.items())
    assert not any(module.training for module in network.modules())
    assert_equal({"output": network(*given)}, {"output": after})
    report.undo()


def test_accelerated_network_is_compiled_copied_and_not_accelerated_again(network: nn.Module) -> None:
    pyindexnet.accelerate(network)
    network.double().eval()
    x = random(0, 1, 4, 16, 24)
    expected = network(x)
    exported = torch.export.export(network, (x,)).module()
    assert_equal({"output": expected}, {"output": exported(x)})
    copied = copy.deepcopy(network)
    with torch.no_grad():
        network.up.content_encoder.weight.add_(1)
    assert_equal({"output": expected}, {"output": copied(x)})
    assert copied.up.content_encoder is copied.up.original.content_encoder
    assert pyindexnet.accelerate(network).entries == []


def test_probe_leaves_no_trace(network: nn.Module) -> None:
    state = {key: t.clone() for key, t in network.state_dict().items()}
    random_state = torch.random.get_rng_state()
    with torch.no_grad():
        report = pyindexnet.accelerate(network)
    assert len(report.replaced) == 6
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(t, state[key]) for key, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_half_precision_is_probed_in_float64() -> None:
    module = like.CARAFEPack(8, 2).bfloat16()
    report = pyindexnet.accelerate(module)
    assert report.replaced
    assert report.module(torch.ones(1, 8, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_shared_module_is_replaced_by_one() -> None:
    pack = like.CARAFEPack(8, 2)
    network = nn.ModuleDict({"a": pack, "b": nn.Sequential(pack)})
    report = pyindexnet.accelerate(network)
    assert network["a"] is network["b"][0]
    assert isinstance(network["a"], FusedModule)
    report.undo()
    assert network["a"] is pack
    assert network["b"][0] is pack


# --- what is left ---------------------------------------------------------------------------------------------------


def hooked() -> nn.Module:
    module = like.Depthwise(6, family="m2o")
    module.indexnet2[1].register_forward_hook(lambda *_: None)
    return module


class MaskedWithMax(like.PoolingBranch):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.max_pool2d(self.linear(x) * mask, self.k, 1, self.k // 2)


class DetachedKernels(like.Involution):
    """The same outputs, other gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Scaled(like.Fusion):
    def forward(self, low: Tensor, high: Tensor, context: Tensor) -> Tensor:
        return 1.001 * super().forward(low, high, context)


class Frozen(like.Involution):
    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Renamed(like.Involution):
    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)


class Versioned(like.Involution):
    def get_extra_state(self) -> int:
        return 1

    def set_extra_state(self, state: int) -> None:
        pass


def frozen_by_hand() -> nn.Module:
    module = like.Involution(8, k=3)
    module.train = lambda mode=True: module
    return module


def loading_hook() -> nn.Module:
    module = like.Involution(8, k=3)
    module.register_load_state_dict_pre_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (functools.partial(like.HardDepthwise, 6, family="m2o"), "its output 0 differs by"),
        (functools.partial(like.CARAFEPack, 8, 2, up_kernel=9), "kernel side must be one of 3, 5, 7, got 9"),
        (hooked, "has hooks"),
        (loading_hook, "has hooks on its state dict"),
        (functools.partial(Frozen, 8, k=3), "has a train of its own"),
        (frozen_by_hand, "has a train of its own"),
        (functools.partial(Renamed, 8, k=3), "has a _load_from_state_dict of its own"),
        (functools.partial(Versioned, 8, k=3), "has a get_extra_state of its own"),
        (functools.partial(MaskedWithMax, 6, 4, 5), "its output 0 differs by"),
        (functools.partial(DetachedKernels, 8, k=3), "its gradient of input 0 differs by"),
        (functools.partial(Scaled, 8, 5, 16, 6, 7), "its output 0 differs by"),
    ],
    ids=[
        "normalisation",
        "kernel_size",
        "hooks",
        "state_hooks",
        "train",
        "train_by_hand",
        "loading",
        "extra_state",
        "max_pooling",
        "gradient",
        "scale",
    ],
)
def test_another_function_is_left(build, reason: str) -> None:
    module = build()
    report = pyindexnet.accelerate(module)
    assert report.module is module
    assert report.replaced == []
    assert any(reason in entry.reason for entry in report.left), str(report)
    assert "left      (the module itself): " in str(report)


class Residual(nn.Module):
    """Ends in 36 channels, a multiple of 9, and is no window operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 36, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Normed(nn.Conv2d):
    """A convolution that is not one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.norm())


def with_subclass() -> nn.Module:
    pack = like.CARAFEPack(8, 2)
    pack.channel_compressor = Normed(8, 8, 1)
    return pack


@pytest.mark.parametrize(
    "build",
    [Residual, with_subclass, functools.partial(create_model, "indexnet_matting", width=0.125), nn.Identity],
    ids=["convolutions", "subclass", "ours", "identity"],
)
def test_nothing_is_recognised(build) -> None:
    report = pyindexnet.accelerate(build())
    assert report.entries == []
    assert str(report) == "nothing was recognised"


def test_errors(network: nn.Module) -> None:
    with pytest.raises(TypeError, match="^accelerate: module must be a torch.nn.Module, got int$"):
        pyindexnet.accelerate(3)
    report = pyindexnet.accelerate(network)
    network.up = nn.Identity()
    with pytest.raises(RuntimeError, match="^undo: 'up' must hold the fused module, got Identity$"):
        report.undo()
    assert isinstance(network.index, FusedModule)


# --- the published form ---------------------------------------------------------------------------------------------


GOLDEN = (
    "hin_linear_context",
    "hin_nonlinear_nocontext",
    "o2o_nonlinear_context",
    "m2o_linear_nocontext",
    "m2o_nonlinear_context",
)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_index_blocks(name: str) -> None:
    """Published weights in a look-alike, accelerated: the published maps and gradients.

    No noise floor is stored: it is ten times the distance of the float32 run from the float64 one.
    """
    case = load_case("index_blocks", name)
    family, layers, kernel = name.split("_")
    options = {"kernel": 4 if kernel == "context" else 2, "nonlinear": layers == "nonlinear"}
    channels = case.info["constructor"]["inp"]
    module = like.Holistic(channels, **options) if family == "hin" else like.Depthwise(channels, family=family, **options)
    module.load_state_dict(case.tensors("weight"))
    fused = pyindexnet.accelerate(module).module.eval()
    assert isinstance(fused, FusedModule)

    def run(dtype: torch.dtype) -> dict[str, Tensor]:
        fused.to(dtype)
        x = case.tensor("input_x").to(dtype).requires_grad_()
        maps = fused(x)
        cotangents = [case.tensor(f"cotangent_idx_{end}").to(dtype) for end in ("en", "de")]
        names, parameters = zip(*fused.named_parameters(), strict=True)
        grads = torch.autograd.grad(maps, [x, *parameters], cotangents)
        labels = ["grad_block_input_x", *(f"grad_block_weight/{name}" for name in names)]
        return {"output_idx_en": maps[0], "output_idx_de": maps[1], **dict(zip(labels, grads, strict=True))}

    rounded, exact = run(torch.float32), run(torch.float64)
    for key, value in exact.items():
        golden = case.tensor(key).double()
        noise = (rounded[key] - value).abs().max() + torch.finfo(torch.float32).eps * golden.abs().max()
        assert (value - golden).abs().max() <= 10 * noise, key


@pytest.fixture(scope="module")
def published() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = like.PublishedIndexNet(0.125)
        network(random(0, 2, 4, 64, 64, dtype=torch.float32))  # statistics that are not those of the initialisation
        return network.eval()


def test_whole_network_is_rebuilt(published: nn.Module) -> None:
    x = random(1, 1, 4, 64, 96, dtype=torch.float32)
    report = pyindexnet.accelerate(copy.deepcopy(published))
    assert [e.name for e in report.replaced] == [f"index{i}" for i in published.REDUCED]
    assert report.network == "indexnet_matting"
    assert "pyindexnet.rebuild(module)" in str(report)
    rebuilt = pyindexnet.rebuild(published, x)
    assert type(rebuilt).__name__ == "IndexNetMatting"
    assert rebuilt.config["options"]["index_network"] == "m2o"
    with torch.no_grad():
        exact = copy.deepcopy(published).double()(x.double())
        values = [network.double()(x.double()) for network in (rebuilt, report.module.eval())]
    terms = sum(p.numel() for p in published.parameters())
    for value in values:
        assert error(value, exact) <= tolerance(exact, 0.0, terms, torch.float64)


def test_rebuild_errors(published: nn.Module, network: nn.Module) -> None:
    x = random(1, 1, 4, 64, 64, dtype=torch.float32)
    with pytest.raises(ValueError, match="^rebuild: network must have the weights of a published one"):
        pyindexnet.rebuild(network)
    other = copy.deepcopy(published)
    other.sharpness = 1.5
    with pytest.raises(ValueError, match="^rebuild: network must be the published one, got outputs that differ by"):
        pyindexnet.rebuild(other, x)
    with pytest.raises(ValueError, match="^rebuild: network must be in evaluation mode"):
        pyindexnet.rebuild(other.train(), x)
