# SPDX-License-Identifier: Apache-2.0
"""DeepLabv3+ matting against the published network, and its options."""

from __future__ import annotations

import pytest
import torch

from pyindexnet.models import create_model
from tests.models.golden_network import (
    check_configuration,
    check_gradients,
    check_output,
    check_probes,
    configuration,
    published,
)
from tests.models.training import assert_trains

NAME = "deeplabv3plus_matting"
CASE = "deeplabv3plus_os16"
MODULES = {
    **{f"layer{i}": f"encoder.stages.{i}" for i in range(8)},
    "dconv_pp": "context",
    "decoder": "decoder",
    "pred.0": "head.reduce.conv",
    "pred": "head",
}


@pytest.mark.parametrize("which", ["a", "b"])
def test_output(which: str) -> None:
    check_output(*published(CASE, NAME), which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_gradients(which: str) -> None:
    check_gradients(*published(CASE, NAME), which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_probes(which: str) -> None:
    check_probes(*published(CASE, NAME), which, MODULES)


@pytest.mark.parametrize("output_stride", [16, 32])
def test_published_configurations(output_stride: int) -> None:
    check_configuration(configuration(f"deeplabv3plus_os{output_stride}"), NAME, output_stride=output_stride)


@pytest.mark.parametrize("size", [(1, 1), (33, 50), (64, 64)], ids=str)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sizes(output_stride: int, size: tuple[int, int]) -> None:
    """Any size, forward and backward; every parameter that the output depends on gets a gradient."""
    torch.manual_seed(0)
    model = create_model(NAME, width=0.25, output_stride=output_stride).eval()
    x = torch.randn(2, 4, *size, requires_grad=True)
    assert_trains(model, x)


def test_no_images() -> None:
    assert create_model(NAME, width=0.25).eval()(torch.zeros(0, 4, 32, 32)).shape == (0, 1, 32, 32)


def test_training_mode() -> None:
    torch.manual_seed(0)
    model = create_model(NAME, width=0.25)
    model(torch.randn(2, 4, 33, 33)).sum().backward()
    assert model.encoder.stages[0].bn.num_batches_tracked == 1


def test_channels_last() -> None:
    torch.manual_seed(0)
    model = create_model(NAME, width=0.25).double().eval()
    x = torch.randn(2, 4, 33, 50, dtype=torch.float64)
    want = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want)


def test_compiles() -> None:
    torch.manual_seed(0)
    model = create_model(NAME, width=0.25).eval()
    x = torch.randn(1, 4, 33, 50)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output_stride must be one of 8, 16, 32, got 4"),
        ({"width": 0.01}, "width must be .* got 0.01"),
        ({"index_network": "max"}, "option of deeplabv3plus_matting must be one of .* got 'index_network'"),
    ],
    ids=str,
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(NAME, **options)
