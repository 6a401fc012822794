# SPDX-License-Identifier: Apache-2.0
"""The MobileNetV2 encoder. Its pooled form is checked with IndexNet Matting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyindexnet.models import MobileNetV2
from pyindexnet.models.checkpoints import merge_columns
from pyindexnet.models.mobilenetv2 import InvertedResidual, encoder_key_map
from tests.golden import load_case, published_state_dict

GROUP = "indexnet_full"
CASES = [("deeplabv3plus_os16", 16), ("refinenet_os32", 32)]


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize(("name", "output_stride"), CASES)
def test_strided_encoder(name: str, output_stride: int, which: str) -> None:
    """Samples of every stage; tolerance ten times the distance of our own float32 run from our float64 run."""
    case = load_case(GROUP, name)
    model = MobileNetV2(output_stride=output_stride).eval()
    keys = encoder_key_map("encoder", "")
    state = merge_columns(keys, published_state_dict(GROUP, name))
    model.load_state_dict({key.removeprefix("encoder."): t for key, t in state.items()})
    x = case.tensor(f"input_{which}")
    with torch.no_grad():
        rounded = model(x)
        exact = model.double()(x.double())
    for i in range(8):
        values = exact[i].flatten()[case.tensor(f"probe{which}_index/layer{i}").long()]
        noise = (rounded[i] - exact[i]).abs().max()
        assert list(exact[i].shape) == case.info["probes"][f"{which}layer{i}"]["shape"]
        assert exact[i].shape[1] == model.channels[i]
        assert (values - case.tensor(f"probe{which}/layer{i}")).abs().max() <= 10 * noise, i


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_reductions(downsample: str, output_stride: int) -> None:
    model = MobileNetV2(width=0.25, output_stride=output_stride, downsample=downsample).eval()
    assert torch.tensor(model.reductions).prod() == output_stride
    with torch.no_grad():
        features = model(torch.rand(1, 4, 64, 96))
    size = 64
    for feature, reduction in zip(features, model.reductions, strict=True):
        size = size // reduction if downsample == "stride" else size
        assert feature.shape[2] == size


@pytest.mark.parametrize("dilation", [1, 2])
def test_block_pads_its_input(dilation: int) -> None:
    """The depthwise convolution sees ReLU6 of the batch norm's shift outside the image, not zero."""
    torch.manual_seed(0)
    block = InvertedResidual(4, 6, expansion=6, dilation=dilation).double().eval()
    torch.nn.init.normal_(block.expand.bn.bias)
    x = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    block.expand.conv.padding = (0, 0)
    want = block(F.pad(x, (dilation,) * 4))
    block.expand.conv.padding = (dilation, dilation)
    got = block(x)
    torch.testing.assert_close(got, want)
    # and a zero border, as convolutions usually have, is another function
    block.expand.conv.padding = (0, 0)
    block.depthwise.conv.padding = (dilation, dilation)
    assert (block(x) - got).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 64}, "output_stride must be one of 8, 16, 32, got 64"),
        ({"downsample": "max"}, "downsample must be one of 'stride', 'pool', got 'max'"),
        ({"width": float("nan")}, "width must be a number of at least 1/16, got nan"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MobileNetV2(**options)
