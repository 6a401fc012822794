# SPDX-License-Identifier: Apache-2.0
"""Reading and writing weights."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyindexnet.models import (
    CheckpointError,
    create_model,
    load_checkpoint,
    model_from_checkpoint,
    save_checkpoint,
)
from pyindexnet.models.checkpoints import published_key_map, split_columns
from tests.golden import load_case
from tests.shared_data import shared_path

TINY = {"width": 0.25, "decoder_kernel_size": 3, "index_width": 1}


def model_of(seed: int, **options: Any) -> nn.Module:
    """A small network with its own weights and statistics."""
    torch.manual_seed(seed)
    model = create_model("indexnet_matting", **{**TINY, **options})
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
        else:
            buffer.uniform_(0.5, 2)
    return model


def published(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under the published keys."""
    keys = published_key_map(model)
    assert keys is not None
    return split_columns(keys, model.state_dict())


def assert_same(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for key, tensor in a.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("keys", ["ours", "published"])
@pytest.mark.parametrize("wrap", ["plain", "module", "compiled", "state_dict", "both"])
@pytest.mark.parametrize("index_network", ["m2o", "o2o", "hin", "max"])
def test_state_dicts(index_network: str, wrap: str, keys: str) -> None:
    source, target = model_of(1, index_network=index_network), model_of(2, index_network=index_network)
    state: dict[str, Any] = source.state_dict() if keys == "ours" else published(source)
    if wrap in ("module", "both"):
        state = {f"module.{k}": t for k, t in state.items()}
    if wrap == "compiled":
        state = {f"module._orig_mod.{k}": t for k, t in state.items()}
    if wrap in ("state_dict", "both"):
        state = {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}
    load_checkpoint(target, state)
    assert_same(target, source)


def test_published_columns_are_merged_in_order() -> None:
    """Branch k of a published block is position k of our logits."""
    model = model_of(1, index_network="m2o").eval()
    state = published(model)
    x = torch.randn(1, 8, 6, 6)
    network = model.resampling["0"].network
    before = network(x)
    for leaf in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight"):
        a, b = f"index0.indexnet2.{leaf}", f"index0.indexnet4.{leaf}"
        state[a], state[b] = state[b], state[a]
    load_checkpoint(model, state)
    torch.testing.assert_close(network(x), before[:, :, [0, 3, 2, 1]])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".pth.tar"])
def test_files(tmp_path: Path, suffix: str) -> None:
    source, target = model_of(1), model_of(2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_checkpoint(source, path)
    else:
        torch.save({"state_dict": published(source)}, path)
    load_checkpoint(target, path)
    assert_same(target, source)
    load_checkpoint(target, str(path))


def test_half_precision_source_and_double_model() -> None:
    source, target = model_of(1), model_of(2).double()
    load_checkpoint(target, {k: t.half() if t.is_floating_point() else t for k, t in source.state_dict().items()})
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key].half().to(tensor.dtype)), key


@pytest.mark.parametrize("keys", ["ours", "published"])
def test_batches_tracked_may_be_absent(keys: str) -> None:
    source, target = model_of(1), model_of(2)
    state = source.state_dict() if keys == "ours" else published(source)
    load_checkpoint(target, {k: t for k, t in state.items() if not k.endswith("num_batches_tracked")})
    assert_same(target, source)


def test_any_module_loads_its_own_keys() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_checkpoint(target, source.state_dict())
    assert_same(target, source)


def changed(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """A state dict that does not fit."""
    state = dict(state)
    key = next(k for k in state if k.endswith("weight") and state[k].dim() == 4)
    if how == "missing":
        del state[key]
    elif how == "unexpected":
        state["classifier.weight"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(3, 1, 1, 1)
    return state


@pytest.mark.parametrize("keys", ["ours", "published"])
@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape"])
def test_mismatch_names_the_keys_and_changes_nothing(how: str, keys: str) -> None:
    source, target, before = model_of(1), model_of(2), model_of(2)
    state = source.state_dict() if keys == "ours" else published(source)
    stem = "encoder.stages.0.conv.weight" if keys == "ours" else "layer0.0.weight"
    name = "classifier.weight" if how == "unexpected" else stem
    with pytest.raises(CheckpointError, match=f"does not fit IndexNetMatting: {how} {name}") as error:
        load_checkpoint(target, changed(state, how))
    assert "\n" not in str(error.value)
    assert_same(target, before)


def test_mismatch_of_another_variant() -> None:
    """The paper's width does not take the released code's weights; the message shows a shape of each."""
    source = published(model_of(1))
    target = model_of(2, index_width=2)
    message = r"of another shape index0\.indexnet1\.0\.weight is \(8, 8, 4, 4\), not \(16, 8, 4, 4\), .* and \d+ more"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(target, source)


def test_all_kinds_of_mismatch_are_in_one_message() -> None:
    state = model_of(1).state_dict()
    for how in ("unexpected", "of another shape"):
        state = changed(state, how)
    state.pop("head.predict.weight")
    message = "missing head.predict.weight; unexpected classifier.weight; of another shape encoder.stages.0"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model_of(2), state)


class Payload:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    target, before = model_of(2), model_of(2)
    torch.save({"state_dict": model_of(1).state_dict(), "extra": Payload(tmp_path / "run")}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth: holds pickled code \(.*mkdir\), which is never run") as error:
        load_checkpoint(target, tmp_path / "bad.pth")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert_same(target, before)


@pytest.mark.filterwarnings("error")  # the message is all that a user sees
def test_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    with pytest.raises(CheckpointError, match=r"bad\.pt: cannot be read: not a file of tensors"):
        load_checkpoint(model_of(2), tmp_path / "bad.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.pth", None, "gone.pth: no such file"),
        ("empty.pth", b"", "empty.pth: cannot be read"),
        ("text.pth", b"not a checkpoint at all", "text.pth: cannot be read"),
        ("word.pth", b"hello world", "word.pth: cannot be read: not a file of tensors"),
        ("stop.pth", b"\x80\x02.", "stop.pth: cannot be read"),
        ("short.pth", "half", "short.pth: cannot be read"),
        ("empty.safetensors", b"", "empty.safetensors: cannot be read"),
        ("text.safetensors", b"not a checkpoint at all", "text.safetensors: cannot be read"),
        ("weights.onnx", b"", r"weights.onnx: name must end in \.safetensors, \.pt, \.pth, \.tar"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | str | None, message: str) -> None:
    path = tmp_path / name
    if content == "half":
        torch.save(model_of(1).state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(model_of(2), path)
    assert "\n" not in str(error.value)


def test_broken_bytes_are_refused(tmp_path: Path) -> None:
    """Whatever byte is wrong: it loads, or it is a CheckpointError."""
    torch.manual_seed(0)
    network = nn.Linear(2, 3)
    for name, zipped in (("new.pth", True), ("old.pth", False)):
        path = tmp_path / name
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        refused = 0
        for _ in range(150):
            broken = bytearray(whole)
            for at in torch.randint(len(whole), (3,)).tolist():
                broken[at] = int(torch.randint(256, ()))
            path.write_bytes(broken)
            with contextlib.suppress(CheckpointError):
                refused += 1
                load_checkpoint(network, path)
                refused -= 1
        assert refused > 10


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({1: torch.zeros(2)}, "keys must be strings, got 1"),
        (
            {"weight": torch.zeros(3, 2).to_sparse(), "bias": torch.zeros(3)},
            "weight must be a dense tensor, got a torch.sparse_coo",
        ),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3, device="meta")}, "bias must hold values, got a meta tensor"),
    ],
    ids=["key", "sparse", "meta"],
)
def test_strange_state_dicts(state: dict[Any, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(nn.Linear(2, 3), state)


@pytest.mark.parametrize("source", [{}, {"epoch": 3}, {"state_dict": {}}, {"weights": [1.0]}], ids=str)
def test_not_a_state_dict(source: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(model_of(2), source)


def test_saved_file_tells_its_model(tmp_path: Path) -> None:
    source = model_of(1, index_network="o2o", decoder="skip")
    path = tmp_path / "weights.safetensors"
    save_checkpoint(source, path, {"trained_on": "nothing"})
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["trained_on"] == "nothing"
    model = model_from_checkpoint(path)
    assert model.config == source.config
    assert_same(model, source)


@pytest.mark.parametrize(
    "options",
    [
        {"index_network": "m2o", "index_width": 2},
        {"index_network": "m2o", "index_width": 1, "output_stride": 16, "decoder_conv": "depsep"},
        {"index_network": "o2o", "index_width": 2, "context": False},
        {"index_network": "o2o", "nonlinear": False},
        {"index_network": "hin", "aspp": False, "output_stride": 8},
        {"index_network": "max"},
    ],
    ids=str,
)
def test_published_weights_tell_their_model(options: dict[str, Any]) -> None:
    source = model_of(1, **options)
    model = model_from_checkpoint({f"module.{k}": t for k, t in published(source).items()})
    assert_same(model, source)
    x = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), source.eval()(x))


@pytest.mark.parametrize("config", ["{", "[]", '{"name": "unknown", "options": {}}', '{"name": "indexnet_matting"}'])
def test_saved_file_of_an_unknown_model(tmp_path: Path, config: str) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"pyindexnet": config})
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: names a model that cannot be built"):
        model_from_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["indexnet_m2o_nonlinear_context_os32", "indexnet_hin_nonlinear_context_os32", "unet_maxunpool_os32_aspp"]
)
def test_published_file(name: str) -> None:
    """A whole published checkpoint: the model is recognised, and computes what the published one does."""
    case = load_case("indexnet_full", name)
    model = model_from_checkpoint(shared_path("golden", "indexnet_full", f"{name}.weights.safetensors")).eval()
    with torch.no_grad():
        error = (model(case.tensor("input_a")) - case.tensor("output_a")).abs().max()
    assert error <= case.tolerance("a")


def test_weights_that_do_not_tell_their_model() -> None:
    with pytest.raises(CheckpointError, match="state dict: does not tell which model it is of"):
        model_from_checkpoint(nn.Linear(2, 3).state_dict())


def test_save_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted write leaves the old file and nothing else."""
    path = tmp_path / "weights.safetensors"
    save_checkpoint(model_of(1), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"weights\.safetensors: cannot be written: disk full"):
        save_checkpoint(model_of(2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_keeps_channels_last_weights(tmp_path: Path) -> None:
    source = model_of(1).to(memory_format=torch.channels_last)
    save_checkpoint(source, tmp_path / "weights.safetensors")
    target = model_of(2)
    load_checkpoint(target, tmp_path / "weights.safetensors")
    assert_same(target, source)


def test_save_needs_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, got '.*weights\.pth'"):
        save_checkpoint(model_of(1), tmp_path / "weights.pth")
