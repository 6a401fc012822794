# SPDX-License-Identifier: Apache-2.0
"""Parameters and GFLOPs of the models, beside those that the papers print.

The tables do not say what a FLOP is. Four definitions:

``paper``
    Multiply-adds of the convolutions, in units of 2^30; nothing else (bias, batch norm, activation, pooling) counts. An
    index network that all channels share counts for one channel, as a counter does that sees the channels as a batch.
    This is the definition of [IndexNet] table 2 and [Thesis] table 3.4.
``multiply_adds``
    Multiply-adds of convolutions and matrix products, in units of 10^9.
``flops``
    The same with a multiplication and an addition as two, as ``torch.utils.flop_counter`` counts.
``mmcv``
    The way of MMCV's counter, which [TMFNet] table 6 names: multiply-adds, and one more operation for each value that a
    convolution adds a bias to; batch norm two for each value of its input; activations and poolings one, whatever the window;
    in units of 10^9. Interpolation, pixel shuffle, concatenation and sums of maps do not count. A fusion kernel of k x k taps
    counts k*k multiply-adds for each value that it gives: MMCV knows no such layer, and the paper counts "every major
    operation".

Convolutions are counted as they run: the 1x1 expansions of the MobileNetV2 blocks also compute the padded border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from pyindexnet.backends import use_backend
from pyindexnet.models.registry import create_model
from pyindexnet.nn.index_networks import DepthwiseIndexNetwork

DEFINITIONS = {
    "paper": "multiply-adds of convolutions / 2^30, an index network shared by all channels counted for one channel",
    "multiply_adds": "multiply-adds / 10^9",
    "flops": "2 per multiply-add / 10^9",
    "mmcv": "multiply-adds, biases, 2 per batch-norm value, 1 per activation and pooling value / 10^9",
}
INPUT_SIZE = (1, 4, 224, 224)
#: Operations for each input value, definition ``mmcv``; a mean over space is a global pooling.
_PER_VALUE = {
    torch.ops.aten._native_batch_norm_legit_no_training: 2,
    torch.ops.aten.relu: 1,
    torch.ops.aten.leaky_relu: 1,
    torch.ops.aten.hardtanh: 1,  # ReLU6
    torch.ops.aten.max_pool2d_with_indices: 1,
    torch.ops.aten._adaptive_avg_pool2d: 1,
    torch.ops.aten.mean: 1,
    torch.ops.pyindexnet.non_background_pool_reference: 1,
}


@dataclass(frozen=True)
class Complexity:
    """Size and cost of one model at one input size.

    Attributes:
        parameters: trainable or not; a shared parameter once; without buffers.
        multiply_adds: of the convolutions and matrix products of one forward pass.
        paper_multiply_adds: the same as the papers count, see the head of this module.
        mmcv_operations: what MMCV's counter gives, see there.
    """

    parameters: int
    multiply_adds: int
    paper_multiply_adds: int
    mmcv_operations: int

    def gflops(self, definition: str = "paper") -> float:
        """GFLOPs under one of DEFINITIONS.

        Raises:
            ValueError: unknown definition.
        """
        if definition == "paper":
            return self.paper_multiply_adds / 2**30
        if definition == "multiply_adds":
            return self.multiply_adds / 1e9
        if definition == "flops":
            return 2 * self.multiply_adds / 1e9
        if definition == "mmcv":
            return self.mmcv_operations / 1e9
        raise ValueError(f"gflops: definition must be one of {', '.join(DEFINITIONS)}, got {definition!r}")


def complexity(model: nn.Module, input_size: Sequence[int] = INPUT_SIZE) -> Complexity:
    """Count parameters and operations of a forward pass in evaluation mode.

    Nothing is computed: the model runs on shapes alone, whatever its device, and is left as it was.

    Args:
        model: takes one (N, C, H, W) tensor.
        input_size: its shape.
    Raises:
        ValueError: ``input_size`` is not four positive numbers.
    """
    if len(input_size) != 4 or any(not isinstance(n, int) or n < 1 for n in input_size):
        raise ValueError(f"complexity: input_size must be four positive integers, got {tuple(input_size)}")

    channels = 1  # that see the same index network, while one runs
    paper = 0
    beside = 0  # what MMCV counts beside multiply-adds

    def convolution(x: Any, weight: Any, *args: Any, out_shape: Any, **_: Any) -> int:
        nonlocal paper, beside
        transposed = args[4]  # bias, stride, padding, dilation, transposed, ...
        flops = conv_flop_count(x, weight, out_shape, transposed=transposed)
        paper += flops // 2 // channels
        beside += math.prod(out_shape) if args[0] is not None else 0
        return flops

    def per_value(operations: int) -> Callable[..., int]:
        def count(x: Any, *_: Any, **__: Any) -> int:
            nonlocal beside
            beside += operations * math.prod(x)
            return 0

        return count

    def fusion(x: Any, kernels: Any, kernel_size: int, *_: Any, **__: Any) -> int:
        return per_value(kernel_size**2)(x)

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal channels
        channels = inputs[0].shape[1]

    def leave(*_: Any) -> None:
        nonlocal channels
        channels = 1

    hooks = []
    training = {module: module.training for module in model.modules()}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    dtype = next((t.dtype for t in shapes.values() if t.is_floating_point()), torch.get_default_dtype())
    counted = {op: per_value(operations) for op, operations in _PER_VALUE.items()}
    counted |= {torch.ops.aten.convolution: convolution, torch.ops.pyindexnet.grouped_spatial_fusion_reference: fusion}
    counter = FlopCounterMode(display=False, custom_mapping=counted)
    try:
        for module in model.eval().modules():
            if isinstance(module, DepthwiseIndexNetwork) and module.shared:
                hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        with torch.no_grad(), use_backend("reference"), counter:
            functional_call(model, shapes, torch.empty(*input_size, dtype=dtype, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    parameters = sum(p.numel() for p in model.parameters())
    multiply_adds = counter.get_total_flops() // 2
    return Complexity(parameters, multiply_adds, paper, multiply_adds + beside)


@dataclass(frozen=True)
class Row:
    """One row of the papers' tables, or one model that they do not list.

    Attributes:
        name: as the papers call it.
        model, options: what :func:`~pyindexnet.models.create_model` takes.
        definition: one of DEFINITIONS, that of the printed GFLOPs.
        input_size: that they are printed for.
        printed_parameters, printed_gflops: as printed, ``"+4.40M"`` being relative to B11; None where not printed.
        complexity: as computed; None where this version cannot build the model.
        base_parameters: computed parameters of what ``printed_parameters`` is relative to, else 0.
        note: why a printed figure differs, or the model cannot be built.
    """

    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    printed_parameters: str | None = None
    printed_gflops: str | None = None
    complexity: Complexity | None = None
    base_parameters: int = 0
    note: str = ""
    definition: str = "paper"
    input_size: tuple[int, ...] = INPUT_SIZE

    @property
    def parameters(self) -> str | None:
        """Computed parameters in the form of the printed ones, else in millions."""
        if self.complexity is None:
            return None
        return _as_printed(self.complexity.parameters - self.base_parameters, self.printed_parameters or "0.00M")

    @property
    def gflops(self) -> str | None:
        """Computed GFLOPs under the row's definition, with the decimals of the printed ones, else two."""
        if self.complexity is None:
            return None
        decimals = len((self.printed_gflops or "0.00").partition(".")[2])
        return f"{self.complexity.gflops(self.definition):.{decimals}f}"

    @property
    def size(self) -> str:
        """Height and width of the input."""
        return " x ".join(map(str, self.input_size[2:]))

    @property
    def agrees(self) -> bool | None:
        """Whether every printed figure comes out as printed; None where none is printed, or none is computed."""
        printed = [
            (self.printed_parameters, self.parameters),
            (self.printed_gflops, self.gflops),
        ]
        pairs = [pair for pair in printed if None not in pair]
        return all(a == b for a, b in pairs) if pairs else None


def complexity_rows(model: str | None = None) -> list[Row]:
    """Computed and printed complexity of [IndexNet] tables 1 and 2, [Thesis] tables 3.3 and 3.4, [TMFNet] tables 3, 5 and 6.

    Args:
        model: only the rows of this model; one that is in none of the tables gets a row of its own, with its defaults.
    Raises:
        ValueError: no model has this name.
    """
    rows = [row for row in _TABLE if model in (None, row.model)] or [Row(str(model), str(model))]
    base = _compute(_B11).parameters if any(_relative(row) for row in rows) else 0
    return [_filled(row, base) for row in rows]


def complexity_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with the definitions and the notes under it."""
    header = [
        "model",
        "parameters",
        "printed",
        "input",
        "definition",
        "GFLOPs",
        "printed",
        "multiply-adds",
        "FLOPs",
        "agrees",
    ]
    lines = [header, ["---"] + ["---:"] * 3 + ["---"] + ["---:"] * 4 + ["---"]]
    for row in rows:
        cost = row.complexity
        lines.append(
            [
                row.name,
                "-" if cost is None else f"{cost.parameters:,}",
                _printed_and_computed(row.printed_parameters, row.parameters),
                row.size,
                row.definition,
                row.gflops or "-",
                row.printed_gflops or "-",
                "-" if cost is None else f"{cost.gflops('multiply_adds'):.2f}",
                "-" if cost is None else f"{cost.gflops('flops'):.2f}",
                {True: "yes", False: "NO", None: "-"}[row.agrees],
            ]
        )
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", *(f"{name}: {meaning}" for name, meaning in DEFINITIONS.items())]
    text += [f"{row.name}: {row.note}" for row in rows if row.note]
    return "\n".join(text)


def _printed_and_computed(printed: str | None, computed: str | None) -> str:
    if printed is None:
        return "-"
    return printed if computed in (None, printed) else f"{printed} (computed: {computed})"


def _relative(row: Row) -> bool:
    return (row.printed_parameters or "").startswith("+")


def _as_printed(value: int, form: str) -> str:
    sign = "+" if form.startswith("+") else ""
    number = form.lstrip("+")
    unit = {"K": 1e3, "M": 1e6}.get(number[-1])
    if unit is None:
        return f"{sign}{value}"
    decimals = len(number[:-1].partition(".")[2])
    return f"{sign}{value / unit:.{decimals}f}{number[-1]}"


def _compute(row: Row) -> Complexity:
    with torch.device("meta"):
        model = create_model(row.model, **row.options)
    return complexity(model, row.input_size)


def _filled(row: Row, base: int) -> Row:
    return replace(row, complexity=_compute(row), base_parameters=base if _relative(row) else 0)


def _indexnet(name: str, parameters: str | None = None, gflops: str | None = None, **options: Any) -> Row:
    return Row(name, "indexnet_matting", options, parameters, gflops)


def _learned(family: str, label: str, figures: Sequence[tuple[bool, bool, str, str]]) -> list[Row]:
    """Rows of one family of index networks: (nonlinear, context, parameters, GFLOPs) each."""
    rows = []
    for nonlinear, context, parameters, gflops in figures:
        layers = ("nonlinear" if nonlinear else "linear") + (" + context" if context else "")
        options = {"index_network": family, "nonlinear": nonlinear, "context": context}
        rows.append(_indexnet(f"{label}, {layers}", parameters, gflops, **options))
    return rows


def _tmfnet(
    name: str, parameters: str, gflops: str | None = None, *, model: str = "tmfnet", note: str = "", **options: Any
) -> Row:
    size = (1, 6, 2048, 2048)
    return Row(name, model, options, parameters, gflops, note=note, definition="mmcv", input_size=size)


def _basic(name: str, parameters: str, gflops: str | None = None, **options: Any) -> Row:
    return _tmfnet(name, parameters, gflops, model="tmfnet_baseline", **options)


_B11 = _indexnet("B11", "3.75M", "4.08", index_network="max")
_TABLE = [
    Row("B1 DeepLabv3+", "deeplabv3plus_matting"),
    Row("B2 RefineNet", "refinenet_matting"),
    Row("B3 SegNet, VGG-16", "deep_matting", {}, "130.55M", "32.34"),
    Row("B4 SegNet, VGG-16, no indices", "deep_matting", {"index_network": "bilinear"}),
    _indexnet("B5 SegNet", index_network="max", decoder="none", aspp=False),
    _indexnet("B6 SegNet, no indices", index_network="bilinear", decoder="none", aspp=False),
    _indexnet("B7 SegNet, ASPP", index_network="max", decoder="none"),
    _indexnet("B8 SegNet, skip", index_network="max", decoder="skip", aspp=False),
    _indexnet("B9 SegNet, skip, ASPP", index_network="max", decoder="skip"),
    _indexnet("B10 UNet", index_network="max", aspp=False),
    _B11,
    replace(
        _indexnet("B11-1.4", "8.86M", "7.61", index_network="max", width=1.4),
        note="the published network of width 1.4 has the 7,254,215 parameters that are computed here; no rounding of "
        "its channel counts (down, nearest, up, to multiples of 1 to 32) gives both printed figures; what else was tried is in "
        "docs/complexity.md",
    ),
    _indexnet("B11-carafe", "4.06M", "5.01", index_network="carafe"),
    _indexnet("HMI", "3.75M", "4.08", index_network="hmi"),
    *_learned(
        "hin",
        "HIN",
        [
            (False, False, "+4.99K", "4.09"),
            (False, True, "+19.97K", "4.11"),
            (True, False, "+0.26M", "4.22"),
            (True, True, "+1.04M", "4.61"),
        ],
    ),
    *_learned(
        "o2o_modelwise",
        "modelwise O2O",
        [(False, False, "+16", "4.08"), (True, False, "+56", "4.08"), (True, True, "+152", "4.08")],
    ),
    *_learned(
        "o2o_stagewise",
        "shared stagewise O2O",
        [(False, False, "+80", "4.08"), (True, False, "+280", "4.08"), (True, True, "+760", "4.08")],
    ),
    *_learned(
        "o2o",
        "unshared stagewise O2O",
        [
            (False, False, "+4.99K", "4.09"),
            (False, True, "+19.97K", "4.11"),
            (True, False, "+17.47K", "4.10"),
            (True, True, "+47.42K", "4.15"),
        ],
    ),
    *_learned(
        "m2o",
        "M2O",
        [
            (False, False, "+0.52M", "4.34"),
            (False, True, "+2.07M", "5.12"),
            (True, False, "+1.30M", "4.73"),
            (True, True, "+4.40M", "6.30"),
        ],
    ),
    _indexnet("IndexNet Matting ([Thesis] table 6.4)", "8.15M", "6.30"),
    _indexnet("IndexNet Matting as released", index_width=1),
    _basic("Basic ([TMFNet] baseline)", "34.8M", "1410"),
    _basic("Basic+TP", "34.8M", context="tp"),
    _basic("Basic+MP", "34.8M", context="mp"),
    _tmfnet("Basic+TMP", "34.8M", fusion="static"),
    _tmfnet("Basic+TMP+LF", "33.8M", fusion="lf"),
    _tmfnet(
        "TMFNet (Basic+TMP+GLF)",
        "33.9M",
        "1121",
        note="46 less than printed. W_g, applied to the global feature at every pixel, where it is the same, instead of once,"
        " would add 30.2, every tap of TMP's windows 5.9. Both, with fusion and pooling at two operations for each tap, give"
        " 1121; that the paper counted so is a guess. The abstract's 14 % fewer FLOPs than the baseline fit neither figure"
        " (printed: 20 %)",
    ),
    _tmfnet("Basic+TMP+GLF(B)", "33.9M", global_source="high"),
    _tmfnet("Basic+TMP+GLF(C)", "34.1M", global_source="c5"),
    _basic("Basic+ASPP", "41.2M", context="aspp"),
    _tmfnet("Basic+TMP+CARAFE", "35.6M", fusion="carafe"),
    _tmfnet("LF at F1", "33.9M", fusion=("lf", "static", "static")),
    _tmfnet("LF at F1, F2", "33.8M", fusion=("lf", "lf", "static")),
    _tmfnet("GLF at F1, LF at F2, F3", "33.8M", fusion=("glf", "lf", "lf")),
    _tmfnet("GLF at F1, F2, LF at F3", "33.9M", fusion=("glf", "glf", "lf")),
]
