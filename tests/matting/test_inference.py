# SPDX-License-Identifier: Apache-2.0
"""From arrays to an alpha: the published conventions, known pixels, sizes, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyindexnet.matting import predict_alpha
from pyindexnet.matting.inference import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    align_input,
    aligned_size,
    finish_alpha,
    stack_input,
)
from pyindexnet.models import create_model
from tests.golden import load_case
from tests.matting.pictures import photograph, trimap


class Recorder(nn.Module):
    """A stand-in network: keeps its input, returns a function of it."""

    def __init__(self, output=lambda x: x[:, :1] * 0.3 + x[:, 3:]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.output = output
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.output(x)


@pytest.fixture
def golden():
    return load_case("preprocessing", "indexnet_image_alignment_even").arrays


def _rounding(values: np.ndarray) -> float:
    """What the order of additions can change in a bicubic sum of 16 values: other versions of OpenCV than 5.0 differ by it."""
    return (1 + 16) * np.finfo(np.float32).eps * np.abs(values).max()


def test_resizing_is_the_published_one(golden):
    aligned = align_input(golden["input"], "resize")
    assert np.abs(aligned - golden["output"]).max() <= _rounding(golden["input"])
    assert np.array_equal(aligned[:, :, 3], golden["output"][:, :, 3])


def test_resizing_back_is_the_published_one(golden):
    levels = golden["input_trimap"].astype(np.uint8)
    alpha = finish_alpha(golden["input_pred_aligned"], levels, "resize")
    unknown = levels == 128
    floor = _rounding(golden["input_pred_aligned"])
    assert np.abs(alpha - np.clip(golden["output_pred_resized"], 0, 1))[unknown].max() <= floor
    published = golden["output_alpha_uint8"]  # truncated to 8 bits, where we round
    assert (np.floor((alpha - floor) * 255) <= published).all()
    assert (published <= np.floor((alpha + floor) * 255)).all()
    assert np.array_equal(alpha[~unknown] * 255, published[~unknown])


def test_network_input():
    image, levels = photograph(), trimap()
    stacked = stack_input(image, levels)
    assert stacked.dtype == np.float32
    y, x = 20, 30
    expected = (image[y, x] / 255 - IMAGENET_MEAN.astype(float)) / IMAGENET_STD.astype(float)
    assert np.abs(stacked[y, x, :3] - expected).max() <= 4 * np.finfo(np.float32).eps * np.abs(expected).max()
    assert sorted(np.unique(stacked[:, :, 3])) == [0, np.float32(128) / np.float32(255), 1]


def test_bit_depths_give_the_same_input():
    image, levels = photograph(), trimap()
    stacked = stack_input(image, levels)
    assert np.array_equal(stack_input(image.astype(np.uint16) * 257, levels), stacked)
    assert np.array_equal(stack_input(image.astype(np.float32) / 255, levels), stacked)


@pytest.mark.parametrize("align", ["resize", "pad"])
@pytest.mark.parametrize("size", [(1, 3), (5, 40), (32, 64), (33, 31), (45, 60), (100, 7)], ids=str)
def test_any_size(size, align):
    model = Recorder()
    levels = trimap(*size)
    levels[0, :3] = (0, 128, 255)
    alpha = predict_alpha(model, photograph(*size), levels, align=align)
    assert model.seen.shape == (1, 4, *(-(-side // 32) * 32 for side in size))
    assert alpha.shape == size
    assert alpha.dtype == np.float32
    assert (alpha[levels == 0] == 0).all()
    assert (alpha[levels == 255] == 1).all()
    assert alpha.min() >= 0
    assert alpha.max() <= 1


def test_known_pixels_are_exact_whatever_the_network_says():
    levels = trimap()
    alpha = predict_alpha(Recorder(lambda x: torch.full_like(x[:, :1], 0.5)), photograph(), levels)
    assert np.array_equal(np.unique(alpha[levels == 0]), [0])
    assert np.array_equal(np.unique(alpha[levels == 255]), [1])
    assert np.allclose(alpha[levels == 128], 0.5, rtol=0, atol=4 * np.finfo(np.float32).eps)  # bicubic weights sum to 1


def test_padding_reflects_and_leaves_the_image_alone():
    stacked = stack_input(photograph(45, 60), trimap(45, 60))
    padded = align_input(stacked, "pad")
    assert padded.shape == (64, 64, 4)
    assert np.array_equal(padded[:45, :60], stacked)
    assert np.array_equal(padded[45:, :60], stacked[25:44][::-1])
    assert np.array_equal(padded[:, 60:], padded[:, 55:59][:, ::-1])


def test_padding_of_an_image_smaller_than_the_padding():
    stacked = stack_input(photograph(3, 1), np.array([[0], [128], [255]], np.uint8))
    padded = align_input(stacked, "pad")
    assert padded.shape == (32, 32, 4)
    rows = [abs((row + 2) % 4 - 2) for row in range(32)]  # 0 1 2 1 0 1 2 1 ...
    assert np.array_equal(padded, np.repeat(stacked[rows], 32, axis=1))


def test_padding_and_resizing_agree_where_the_size_fits():
    image, levels = photograph(64, 96), trimap(64, 96)
    model = Recorder()
    resized = predict_alpha(model, image, levels, align="resize")
    assert np.array_equal(resized, predict_alpha(model, image, levels, align="pad"))


def test_size_rule_of_the_model():
    assert aligned_size((50, 64), (32, 1)) == (65, 65)
    model = Recorder()
    model.size_rule = (16, 1)
    predict_alpha(model, photograph(45, 60), trimap(45, 60))
    assert model.seen.shape == (1, 4, 49, 65)


def test_memory_format():
    model = Recorder()
    alpha = predict_alpha(model, photograph(), trimap(), memory_format=torch.contiguous_format)
    assert model.seen.is_contiguous()
    assert np.array_equal(alpha, predict_alpha(model, photograph(), trimap()))
    assert model.seen.is_contiguous(memory_format=torch.channels_last)


def test_no_gradients_are_kept():
    model = Recorder(lambda x: x[:, :1])
    model.output = lambda x: x[:, :1] + model.weight
    model.register_forward_hook(lambda module, args, output: setattr(module, "result", output))
    predict_alpha(model, photograph(), trimap())
    assert not model.result.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"align": "crop"}, "align must be one of resize, pad, got 'crop'"),
        ({"image": photograph()[:, :, 0]}, r"image: must be \(H, W, 3\), got \(45, 60\)"),
        ({"trimap": trimap(45, 61)}, r"trimap: must be \(45, 60\), the size of the image, got \(45, 61\)"),
        ({"model": Recorder().train()}, "model must be in evaluation mode"),
        (
            {"model": Recorder(lambda x: x[:, :1] * float("nan"))},
            "output must be finite, got NaN or infinity",
        ),
        ({"trimap": np.zeros((45, 60), np.uint8)}, "has no unknown pixels"),
    ],
    ids=["align", "image", "size", "training", "nan", "trimap"],
)
def test_refused(change, message):
    arguments = {"model": Recorder(), "image": photograph(), "trimap": trimap(), **change}
    with pytest.raises(ValueError, match=message):
        predict_alpha(arguments.pop("model"), arguments.pop("image"), arguments.pop("trimap"), **arguments)


def test_one_hot_input():
    """[TMFNet]: background, unknown, foreground, in this order, behind the same colours."""
    image, levels = photograph(), trimap()
    stacked = stack_input(image, levels, "one_hot")
    assert stacked.dtype == np.float32
    assert np.array_equal(stacked[:, :, :3], stack_input(image, levels)[:, :, :3])
    for channel, level in ((3, 0), (4, 128), (5, 255)):
        assert np.array_equal(stacked[:, :, channel], levels == level)


@pytest.mark.parametrize("align", ["resize", "pad"])
def test_one_hot_stays_one_hot(align):
    aligned = align_input(stack_input(photograph(45, 60), trimap(45, 60), "one_hot"), align, (16, 0))
    assert aligned.shape == (48, 64, 6)
    assert np.array_equal(aligned[:, :, 3:].sum(2), np.ones((48, 64)))
    assert np.array_equal(np.unique(aligned[:, :, 3:]), [0, 1])


def test_wishes_of_the_model():
    """A model says what it takes; ``align`` overrides how its size is reached."""
    model = Recorder(lambda x: x[:, 4:5] * 0.5)
    model.size_rule, model.trimap_encoding, model.alignment = (16, 0), "one_hot", "pad"
    image, levels = photograph(45, 60), trimap(45, 60)
    padded = predict_alpha(model, image, levels)
    assert model.seen.shape == (1, 6, 48, 64)
    expected = torch.from_numpy(stack_input(image, levels, "one_hot")).permute(2, 0, 1)
    assert torch.equal(model.seen[0, :, :45, :60], expected)
    assert np.array_equal(padded, predict_alpha(model, image, levels, align="pad"))
    predict_alpha(model, image, levels, align="resize")
    assert not torch.equal(model.seen[0, :, :45, :60], expected)


def test_tmfnet():
    """The whole path: what the network gets and what comes of its output."""
    torch.manual_seed(0)
    model = create_model("tmfnet", width=0.125).double().eval()
    image, levels = photograph(45, 60), trimap(45, 60)
    alpha = predict_alpha(model, image, levels)
    padded = np.pad(stack_input(image, levels, "one_hot"), ((0, 3), (0, 4), (0, 0)), mode="reflect")
    with torch.no_grad():
        raw = model(torch.from_numpy(padded).permute(2, 0, 1)[None].double())[0, 0, :45, :60].float().numpy()
    expected = np.where(levels == 128, np.clip(raw, 0, 1), levels / 255)
    assert np.abs(alpha - expected).max() <= np.finfo(np.float32).eps
