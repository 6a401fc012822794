# SPDX-License-Identifier: Apache-2.0
"""Parameters and GFLOPs of the models, beside those that the papers print.

The tables do not say what a FLOP is. Three definitions:

``paper``
    Multiply-adds of the convolutions, in units of 2^30; nothing else (bias, batch norm, activation, pooling) counts. An
    index network that all channels share counts for one channel, as a counter does that sees the channels as a batch.
    This is the definition of [IndexNet] table 2 and [Thesis] table 3.4.
``multiply_adds``
    Multiply-adds of convolutions and matrix products, in units of 10^9.
``flops``
    The same with a multiplication and an addition as two, as ``torch.utils.flop_counter`` counts.

Convolutions are counted as they run: the 1x1 expansions of the MobileNetV2 blocks also compute the padded border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from pyindexnet.backends import use_backend
from pyindexnet.models.indexnet_matting import INDEX_NETWORKS
from pyindexnet.models.registry import create_model
from pyindexnet.nn.index_networks import DepthwiseIndexNetwork

DEFINITIONS = {
    "paper": "multiply-adds of convolutions / 2^30, an index network shared by all channels counted for one channel",
    "multiply_adds": "multiply-adds / 10^9",
    "flops": "2 per multiply-add / 10^9",
}
INPUT_SIZE = (1, 4, 224, 224)


@dataclass(frozen=True)
class Complexity:
    """Size and cost of one model at one input size.

    Attributes:
        parameters: trainable or not; a shared parameter once; without buffers.
        multiply_adds: of the convolutions and matrix products of one forward pass.
        paper_multiply_adds: the same as the papers count, see the head of this module.
    """

    parameters: int
    multiply_adds: int
    paper_multiply_adds: int

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

    def convolution(x: Any, weight: Any, *args: Any, out_shape: Any, **_: Any) -> int:
        nonlocal paper
        transposed = args[4]  # bias, stride, padding, dilation, transposed, ...
        flops = conv_flop_count(x, weight, out_shape, transposed=transposed)
        paper += flops // 2 // channels
        return flops

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
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: convolution})
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
    return Complexity(parameters, counter.get_total_flops() // 2, paper)


@dataclass(frozen=True)
class Row:
    """One row of the papers' tables, or one model that they do not list.

    Attributes:
        name: as the papers call it.
        model, options: what :func:`~pyindexnet.models.create_model` takes.
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

    @property
    def parameters(self) -> str | None:
        """Computed parameters in the form of the printed ones, else in millions."""
        if self.complexity is None:
            return None
        return _as_printed(self.complexity.parameters - self.base_parameters, self.printed_parameters or "0.00M")

    @property
    def gflops(self) -> str | None:
        """Computed GFLOPs, definition ``paper``, with the two decimals of the tables."""
        return None if self.complexity is None else f"{self.complexity.gflops():.2f}"

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
    """Computed and printed complexity of [IndexNet] tables 1 and 2 and [Thesis] tables 3.3 and 3.4, input 224x224x4.

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
        "GFLOPs (paper)",
        "printed",
        "multiply-adds",
        "FLOPs",
        "agrees",
    ]
    lines = [header, ["---"] + ["---:"] * 6 + ["---"]]
    for row in rows:
        cost = row.complexity
        lines.append(
            [
                row.name,
                "-" if cost is None else f"{cost.parameters:,}",
                _printed_and_computed(row.printed_parameters, row.parameters),
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
    return complexity(model)


def _filled(row: Row, base: int) -> Row:
    if row.options.get("index_network") == "carafe" and "carafe" not in INDEX_NETWORKS:
        return replace(row, note="not computed: indexnet_matting has no index_network='carafe' in this version")
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
        "its channel counts (down, nearest, up, to multiples of 1 to 32) gives both printed figures",
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
]
