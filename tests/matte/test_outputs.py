# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet matte``, as a user runs it: what it writes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyindexnet.matting import composite, predict_alpha, read_picture, write_pictures
from pyindexnet.matting.images import to_integers
from pyindexnet.models import PRETRAINED, create_model, load_checkpoint, pretrained_model, save_checkpoint
from tests.golden import published_state_dict
from tests.matte.run import TINY, UNTRAINED, fused_alpha, tiny_model
from tests.matting.pictures import encoded, photograph, stored, trimap, with_orientation
from tests.shared_data import shared_path


@pytest.mark.parametrize("align", ["resize", "pad"])
def test_alpha_is_that_of_the_python_interface(command, folder, weights, align):
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", weights, "--align", align, *TINY)
    assert (result.code, result.err) == (0, "")
    assert "out/alpha.png: 60 x 45" in result.out
    expected = fused_alpha(tiny_model(5), photograph(), trimap(), align=align)
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))
    assert os.listdir("out") == ["alpha.png"]


def test_without_fusing(command, folder, weights):
    """The network as it was trained; fusing it changes rounding alone."""
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", weights, "--no-fuse", *TINY)
    assert (result.code, result.err) == (0, "")
    alpha = predict_alpha(tiny_model(5), photograph(), trimap())
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(alpha, 8))
    fused = fused_alpha(tiny_model(5), photograph(), trimap())
    assert 0 < np.abs(fused - alpha).max() < 1e-5


def test_weights_name_their_network(command, folder, weights):
    """A checkpoint of ours knows the model and the options that wrote it."""
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", weights)
    assert (result.code, result.err) == (0, "")
    expected = fused_alpha(tiny_model(5), photograph(), trimap())
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))
    error = command("i.png", "t.png", "-o", "out/b.png", "--weights", weights, "--option", "width=0.5").one_error()
    assert "of another shape" in error
    error = command("i.png", "t.png", "-o", "out/b.png", "--weights", weights, "--model", "refinenet_matting").one_error()
    assert "does not fit RefineNetMatting" in error


def test_published_weights_need_no_options(command, folder):
    """Their keys and shapes say that they are of the released network, with its narrower index networks."""
    published = shared_path("golden", "indexnet_full", "indexnet_m2o_nonlinear_context_os32.weights.safetensors")
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", published)
    assert (result.code, result.err) == (0, "")
    model = create_model("indexnet_matting", index_width=1).eval().to(memory_format=torch.channels_last)
    load_checkpoint(model, published)
    expected = fused_alpha(model, photograph(), trimap())
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))


@pytest.mark.parametrize("align", [None, "resize", "pad"])
def test_tmfnet(command, folder, align):
    """Its trimap is one-hot, its sizes are multiples of 16, and it pads unless told otherwise."""
    torch.manual_seed(0)
    model = create_model("tmfnet", width=0.125)
    with torch.no_grad():  # an alpha that is not 0 or 1 everywhere
        model.head[2].weight.mul_(1e-8)
        model.head[2].bias.fill_(0.5)
    save_checkpoint(model, "tmfnet.safetensors")
    extra = () if align is None else ("--align", align)
    result = command(
        "i.png",
        "t.png",
        "-o",
        "out/alpha.png",
        "--weights",
        "tmfnet.safetensors",
        "--model",
        "tmfnet",
        *extra,
        "--option",
        "width=0.125",
    )
    assert (result.code, result.err) == (0, "")
    model = model.eval().to(memory_format=torch.channels_last)
    expected = fused_alpha(model, photograph(), trimap(), align=align or "pad")
    assert ((expected > 0) & (expected < 1)).any()
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))


def test_published_tmfnet_weights_need_no_options(command, folder):
    state = published_state_dict("tmf_full", "tmfnet_resnet50s_os16")
    torch.save({"state_dict": state}, "published.pth")
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", "published.pth")
    assert (result.code, result.err) == (0, "")
    model = create_model("tmfnet", group_order="blocked").eval().to(memory_format=torch.channels_last)
    load_checkpoint(model, state)
    expected = fused_alpha(model, photograph(), trimap())
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))


def test_untrained_weights_are_named_and_reproducible(command, folder):
    first = command("i.png", "t.png", "-o", "out/a.png", *TINY)
    assert first.code == 0
    assert UNTRAINED in first.err
    assert command("i.png", "t.png", "-o", "out/b.png", *TINY).code == 0
    assert Path("out/a.png").read_bytes() == Path("out/b.png").read_bytes()
    expected = fused_alpha(tiny_model(0), photograph(), trimap())
    assert np.array_equal(read_picture("out/a.png").pixels, to_integers(expected, 8))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_known_pixels_are_exact_in_every_lossless_format(command, folder, weights, dtype, suffix):
    write_pictures({folder / f"i{suffix}": photograph(dtype=dtype)})
    result = command(f"i{suffix}", "t.png", "-o", f"out/alpha{suffix}", "--weights", weights, *TINY)
    assert (result.code, result.err) == (0, "")
    alpha = read_picture(f"out/alpha{suffix}").pixels
    assert alpha.dtype == dtype
    assert (alpha[trimap() == 0] == 0).all()
    assert (alpha[trimap() == 255] == np.iinfo(dtype).max).all()


def test_bit_depth_16_of_an_8_bit_image(command, folder, weights):
    assert command("i.png", "t.png", "-o", "out/a.png", "--weights", weights, "--bit-depth", "16", *TINY).code == 0
    expected = fused_alpha(tiny_model(5), photograph(), trimap())
    assert np.array_equal(read_picture("out/a.png").pixels, to_integers(expected, 16))


@pytest.mark.parametrize("background", ["#204080", "picture"])
def test_background(command, folder, weights, background):
    if background == "picture":
        write_pictures({folder / "b.png": photograph()[::-1]})
        background = "b.png"
    arguments = ("--weights", weights, "--background", background, *TINY)
    assert command("i.png", "t.png", "-o", "out/alpha.png", *arguments).code == 0
    assert sorted(os.listdir("out")) == ["alpha.png", "alpha_composite.png"]
    alpha = fused_alpha(tiny_model(5), photograph(), trimap())
    behind = photograph()[::-1] if background == "b.png" else np.array([0x20, 0x40, 0x80], np.uint8)
    assert np.array_equal(
        read_picture("out/alpha_composite.png").pixels, to_integers(composite(photograph(), alpha, behind), 8)
    )


def test_jpeg_in_and_out(command, folder, weights):
    Path("i.jpg").write_bytes(encoded(".jpg", photograph()))
    result = command("i.jpg", "t.png", "-o", "out/alpha.jpg", "--weights", weights, *TINY)
    assert result.code == 0
    assert result.err == "warning: out/alpha.jpg: JPEG is lossy, known pixels may not stay exactly 0 and 1\n"
    assert read_picture("out/alpha.jpg").pixels.shape == (45, 60)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation(command, folder, weights, orientation, format):
    """The alpha of a turned image is that of the upright one, whichever way its trimap was stored."""
    upright = fused_alpha(tiny_model(5), photograph(), trimap())
    Path("turned").write_bytes(with_orientation(stored(photograph(), orientation), orientation, format))
    Path("turned_trimap").write_bytes(with_orientation(stored(trimap(), orientation), orientation, format))
    for drawn in ("t.png", "turned_trimap"):
        result = command("turned", drawn, "-o", "out/alpha.png", "--weights", weights, *TINY)
        assert (result.code, result.err) == (0, "")
        assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(upright, 8))


def test_grey_and_transparent_images(command, folder, weights):
    grey = photograph()[:, :, 0]
    rgba = np.dstack([photograph(), np.full((45, 60), 255, np.uint8)])
    Image.fromarray(grey).save("grey.png")
    Image.fromarray(rgba).save("rgba.png")
    for name, pixels in (("grey", np.dstack([grey] * 3)), ("rgba", photograph())):
        result = command(f"{name}.png", "t.png", "-o", f"out/{name}.png", "--weights", weights, *TINY)
        assert (result.code, result.err) == (0, "")
        expected = fused_alpha(tiny_model(5), pixels, trimap())
        assert np.array_equal(read_picture(f"out/{name}.png").pixels, to_integers(expected, 8))


@pytest.mark.parametrize("size", [(1, 3), (7, 150), (64, 96)], ids=str)
@pytest.mark.parametrize("align", ["resize", "pad"])
def test_any_image_size(command, folder, weights, size, align):
    levels = trimap(*size)
    levels[0, :3] = (0, 128, 255)
    write_pictures({folder / "i.png": photograph(*size), folder / "t.png": levels})
    result = command("i.png", "t.png", "-o", "out/a.png", "--weights", weights, "--align", align, *TINY)
    assert (result.code, result.err) == (0, "")
    assert read_picture("out/a.png").pixels.shape == size


def test_soft_alpha_as_trimap(command, folder, weights):
    soft = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (45, 1))
    write_pictures({folder / "t.png": soft})
    result = command("i.png", "t.png", "-o", "out/a.png", "--weights", weights, *TINY)
    assert result.code == 0
    assert result.err.startswith("warning: t.png: has more than three levels; quantised: ")
    assert result.err.count("\n") == 1


def test_real_photograph(command, folder, weights):
    lemur = shared_path("data", "lemur")
    arguments = ("--weights", weights, "--background", lemur / "beach.png", *TINY)
    result = command(lemur / "lemur.png", lemur / "lemur_trimap.png", "-o", "out/alpha.png", *arguments)
    assert (result.code, result.err) == (0, "")
    alpha, drawn = read_picture("out/alpha.png").pixels, read_picture(lemur / "lemur_trimap.png").pixels[:, :, 0]
    assert np.array_equal(np.unique(alpha[drawn == 0]), [0])
    assert np.array_equal(np.unique(alpha[drawn == 255]), [255])
    blended = read_picture("out/alpha_composite.png").pixels
    assert np.array_equal(blended[drawn == 0], read_picture(lemur / "beach.png").pixels[drawn == 0])
    assert np.array_equal(blended[drawn == 255], read_picture(lemur / "lemur.png").pixels[drawn == 255])


def test_without_weights_those_of_the_package(command, folder):
    result = command("i.png", "t.png", "-o", "out/alpha.png")
    assert result.code == 0
    assert result.err == f"weights 'procedural' of indexnet_matting: {PRETRAINED['procedural']}\n"
    model = pretrained_model("procedural").to(memory_format=torch.channels_last)
    expected = predict_alpha(model, photograph(), trimap())
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))
    named = command("i.png", "t.png", "-o", "out/named.png", "--weights", "procedural", "--model", "indexnet_matting")
    assert (named.code, named.err) == (0, result.err)
    assert Path("out/named.png").read_bytes() == Path("out/alpha.png").read_bytes()


def test_weights_of_the_package_are_of_one_network(command, folder):
    asked = ("i.png", "t.png", "-o", "out/alpha.png", "--weights", "procedural")
    assert "are of indexnet_matting, got --model tmfnet" in command(*asked, "--model", "tmfnet").err
    assert "know their options, got --option width" in command(*asked, *TINY).err
    assert not os.listdir("out")
    untrained = command("i.png", "t.png", "-o", "out/alpha.png", "--model", "tmfnet", "--option", "width=0.125")
    assert UNTRAINED in untrained.err
