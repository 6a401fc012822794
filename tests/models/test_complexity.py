# SPDX-License-Identifier: Apache-2.0
"""Counting parameters and operations; the papers' tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyindexnet.models import create_model, registry
from pyindexnet.models.complexity import DEFINITIONS, Complexity, Row, complexity, complexity_rows, complexity_table

# rows whose printed figures no configuration gives: see the row's note
UNEXPLAINED = {"B11-1.4", "TMFNet (Basic+TMP+GLF)"}
PRINTED = 24  # [IndexNet] and [Thesis]: each with GFLOPs
TMFNET = 14  # [TMFNet]: two with GFLOPs


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return complexity_rows()


def test_every_printed_figure(rows: list[Row]) -> None:
    """[IndexNet] table 2, [Thesis] tables 3.4 and 6.4, [TMFNet] tables 3, 5 and 6: figures to the last printed digit."""
    printed = [row for row in rows if row.printed_parameters]
    assert len(printed) == PRINTED + TMFNET
    assert all(row.printed_gflops for row in printed if row.definition == "paper")
    assert [row.printed_gflops for row in printed if row.definition == "mmcv" and row.printed_gflops] == ["1410", "1121"]
    differ = {row.name: (row.parameters, row.gflops) for row in printed if row.agrees is False}
    assert differ.keys() == UNEXPLAINED
    assert all(row.note for row in printed if row.name in UNEXPLAINED)


def test_every_row_is_computed(rows: list[Row]) -> None:
    assert all(row.complexity is not None for row in rows)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("B1 DeepLabv3+", 6_149_443),
        ("B2 RefineNet", 3_254_587),
        ("B3 SegNet, VGG-16", 130_545_345),
        ("B4 SegNet, VGG-16, no indices", 130_545_345),
        ("B10 UNet", 3_176_939),
        ("B11", 3_753_259),
        ("B11-1.4", 7_254_215),
        ("M2O, nonlinear + context", 8_153_771),
        ("IndexNet Matting as released", 5_953_515),
        ("TMFNet (Basic+TMP+GLF)", 33_859_571),
    ],
)
def test_exact_parameters(rows: list[Row], name: str, parameters: int) -> None:
    """Counts of the published networks."""
    (row,) = (row for row in rows if row.name == name)
    assert row.complexity is not None
    assert row.complexity.parameters == parameters


def test_tmfnet_differs_by_what_its_note_says(rows: list[Row]) -> None:
    """Parameters agree; the GFLOPs are short of the printed by the terms of the note."""
    (row,) = (row for row in rows if row.name.startswith("TMFNet"))
    assert (row.parameters, row.gflops, row.printed_gflops) == ("33.9M", "1075", "1121")
    quarter, half, full = (2048 // r * (2048 // r) for r in (4, 2, 1))
    embedding = sum(n * (256 + 1) * hidden for n, hidden in ((quarter, 64), (half, 64), (full, 8)))
    taps = 128**2 * 256 * sum(k * k for k in (31, 17, 11, 5))
    fusion = 9 * (quarter * 256 + half * 256 + full * 32)
    assert (f"{embedding / 1e9:.1f}", f"{taps / 1e9:.1f}", f"{fusion / 1e9:.1f}") == ("30.2", "5.9", "4.2")
    assert row.complexity is not None
    assert round((row.complexity.mmcv_operations + embedding + fusion + 2 * taps) / 1e9) == 1121


def test_rows_have_different_names(rows: list[Row]) -> None:
    assert len({row.name for row in rows}) == len(rows)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.mix = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.down(x)).relu())
        return self.mix(x.permute(0, 2, 3, 1))


def test_counts_by_hand() -> None:
    cost = complexity(Toy(), (3, 4, 10, 6))
    down = 3 * (5 * 3) * 8 * (4 // 2 * 9)
    up = 3 * (5 * 3) * 8 * 6 * 4
    mix = 3 * (10 * 6) * 6 * 5
    assert cost.multiply_adds == down + up + mix
    assert cost.paper_multiply_adds == down + up  # convolutions alone
    narrow, wide = 3 * (5 * 3) * 8, 3 * (10 * 6) * 6
    assert cost.mmcv_operations == cost.multiply_adds + (1 + 2 + 1) * narrow + wide  # bias, norm, ReLU; bias
    assert cost.parameters == (8 * 2 * 9 + 8) + 16 + (8 * 6 * 4 + 6) + (6 * 5 + 5)


def test_definitions() -> None:
    cost = complexity(create_model("deep_matting", width=1 / 16), (1, 4, 64, 64))
    assert set(DEFINITIONS) == {"paper", "multiply_adds", "flops", "mmcv"}
    assert cost.gflops() == cost.gflops("paper") == cost.multiply_adds / 2**30
    assert cost.gflops("multiply_adds") == cost.multiply_adds / 1e9
    assert cost.gflops("flops") == 2 * cost.multiply_adds / 1e9
    with pytest.raises(ValueError, match="gflops: definition must be one of paper, multiply_adds, flops, mmcv, got 'macs'"):
        cost.gflops("macs")


@pytest.mark.parametrize("family", ["o2o_modelwise", "o2o_stagewise"])
def test_shared_index_networks(family: str) -> None:
    """The papers count a network that all channels share for one channel; in fact it runs on each."""
    without = complexity(create_model("indexnet_matting", index_network="max"), (1, 4, 64, 64))
    cost = complexity(create_model("indexnet_matting", index_network=family), (1, 4, 64, 64))
    # 4 columns of (4x4 kernel, 2 hidden channels, 2 weights of the 1x1), at the stages that reduce
    per_position = 4 * (16 * 2 + 2)
    positions = {32: 32**2 + 8**2, 24: 16**2, 64: 4**2, 160: 2**2}
    assert cost.paper_multiply_adds - without.paper_multiply_adds == per_position * sum(positions.values())
    assert cost.multiply_adds - without.multiply_adds == per_position * sum(c * n for c, n in positions.items())


def test_model_is_left_as_it_was() -> None:
    model = create_model("indexnet_matting", index_network="o2o_stagewise", width=0.25)
    model.encoder.eval()
    training = [module.training for module in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    complexity(model, (1, 4, 32, 32))
    assert [module.training for module in model.modules()] == training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_any_device_and_dtype(dtype: torch.dtype) -> None:
    want = complexity(create_model("indexnet_matting", width=0.25), (1, 4, 32, 32))
    with torch.device("meta"):
        model = create_model("indexnet_matting", width=0.25)
    assert complexity(model, (1, 4, 32, 32)) == want
    assert complexity(model.to(dtype), (1, 4, 32, 32)) == want


def test_forced_backend_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("indexnet_matting", width=0.25)
    want = complexity(model, (1, 4, 32, 32))
    monkeypatch.setenv("PYINDEXNET_BACKEND", "cuda")
    assert complexity(model, (1, 4, 32, 32)) == want


@pytest.mark.parametrize("size", [(4, 32, 32), (1, 4, 0, 32), (1, 4, 32.0, 32)], ids=str)
def test_bad_input_size(size: tuple) -> None:
    with pytest.raises(ValueError, match="complexity: input_size must be four positive integers, got"):
        complexity(Toy(), size)


def test_rows_of_one_model(rows: list[Row]) -> None:
    assert complexity_rows("deep_matting") == [row for row in rows if row.model == "deep_matting"]
    with pytest.raises(ValueError, match=r"create_model: name must be one of .* got 'deep_mating'"):
        complexity_rows("deep_mating")


def test_model_in_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILDERS, "toy", Toy)
    (row,) = complexity_rows("toy")
    assert row.name == row.model == "toy"
    assert row.agrees is None
    assert row.complexity == complexity(Toy())


def test_table(rows: list[Row]) -> None:
    text = complexity_table(rows)
    lines = text.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    for row in rows:
        (line,) = (line for line in lines if line.startswith(f"| {row.name} |"))
        assert f"| {row.printed_gflops or '-'} |" in line
        assert (row.printed_parameters or "-") in line
        assert line.endswith({True: "| yes |", False: "| NO |", None: "| - |"}[row.agrees])
        assert not row.note or f"{row.name}: {row.note}" in lines
    assert all(meaning in text for meaning in DEFINITIONS.values())


@pytest.mark.parametrize(
    ("printed", "parameters", "base", "shown"),
    [
        ("130.55M", 130_545_345, 0, "130.55M"),
        ("+4.99K", 104_992, 100_000, "+4.99K"),
        ("+16", 116, 100, "+16"),
        ("+0.26M", 262_304, 0, "+0.26M"),
        (None, 6_149_443, 0, "6.15M"),
    ],
)
def test_computed_in_the_form_of_the_printed(printed: str | None, parameters: int, base: int, shown: str) -> None:
    row = Row("row", "model", {}, printed, None, Complexity(parameters, 0, 0, 0), base)
    assert row.parameters == shown
    assert row.agrees is (None if printed is None else True)
