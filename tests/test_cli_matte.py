# SPDX-License-Identifier: Apache-2.0
"""The command ``pyindexnet matte``, as a user runs it: files in, files out, one line where something is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pyindexnet
from pyindexnet import _console
from pyindexnet.cli import app
from pyindexnet.matting import composite, predict_alpha, read_picture, write_pictures
from pyindexnet.matting.images import to_integers
from pyindexnet.models import create_model, load_checkpoint, save_checkpoint
from tests.golden import published_state_dict
from tests.matting.pictures import encoded, photograph, stored, trimap, with_orientation
from tests.shared_data import shared_path

TINY = ("--option", "width=0.25")  # a small network: these tests are about files
UNTRAINED = "the network is untrained"


@dataclass
class Result:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def one_error(self) -> str:
        """The only line on standard error of a run that failed."""
        assert self.code == 1
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ")
        return self.err.removeprefix("error: ").rstrip()


@pytest.fixture
def command(capfd, monkeypatch):
    """Run ``pyindexnet matte`` in this process, on the CPU; what libraries write to the file descriptors counts too."""
    monkeypatch.delenv("PYINDEXNET_BACKEND", raising=False)

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            app(["matte", "--device", "cpu", *map(str, arguments)], prog_name="pyindexnet")
        captured = capfd.readouterr()
        return Result(exit_info.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with an image ``i.png``, its trimap ``t.png`` and an empty folder ``out``."""
    monkeypatch.chdir(tmp_path)
    write_pictures({tmp_path / "i.png": photograph(), tmp_path / "t.png": trimap()})
    (tmp_path / "out").mkdir()
    return tmp_path


def tiny_model(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_model("indexnet_matting", width=0.25).eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of the tiny network, one whose alpha is not 0 or 1 everywhere."""
    alpha = predict_alpha(tiny_model(5), photograph(), trimap())
    assert ((alpha > 0) & (alpha < 1)).any()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(tiny_model(5), path)
    return path


# --- what it writes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", ["resize", "pad"])
def test_alpha_is_that_of_the_python_interface(command, folder, weights, align):
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", weights, "--align", align, *TINY)
    assert (result.code, result.err) == (0, "")
    assert "out/alpha.png: 60 x 45" in result.out
    expected = predict_alpha(tiny_model(5), photograph(), trimap(), align=align)
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))
    assert os.listdir("out") == ["alpha.png"]


def test_weights_name_their_network(command, folder, weights):
    """A checkpoint of ours knows the model and the options that wrote it."""
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", weights)
    assert (result.code, result.err) == (0, "")
    expected = predict_alpha(tiny_model(5), photograph(), trimap())
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
    expected = predict_alpha(model, photograph(), trimap())
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
    expected = predict_alpha(model, photograph(), trimap(), align=align or "pad")
    assert ((expected > 0) & (expected < 1)).any()
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))


def test_published_tmfnet_weights_need_no_options(command, folder):
    state = published_state_dict("tmf_full", "tmfnet_resnet50s_os16")
    torch.save({"state_dict": state}, "published.pth")
    result = command("i.png", "t.png", "-o", "out/alpha.png", "--weights", "published.pth")
    assert (result.code, result.err) == (0, "")
    model = create_model("tmfnet", group_order="blocked").eval().to(memory_format=torch.channels_last)
    load_checkpoint(model, state)
    expected = predict_alpha(model, photograph(), trimap())
    assert np.array_equal(read_picture("out/alpha.png").pixels, to_integers(expected, 8))


def test_untrained_weights_are_named_and_reproducible(command, folder):
    first = command("i.png", "t.png", "-o", "out/a.png", *TINY)
    assert first.code == 0
    assert UNTRAINED in first.err
    assert command("i.png", "t.png", "-o", "out/b.png", *TINY).code == 0
    assert Path("out/a.png").read_bytes() == Path("out/b.png").read_bytes()
    expected = predict_alpha(tiny_model(0), photograph(), trimap())
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
    expected = predict_alpha(tiny_model(5), photograph(), trimap())
    assert np.array_equal(read_picture("out/a.png").pixels, to_integers(expected, 16))


@pytest.mark.parametrize("background", ["#204080", "picture"])
def test_background(command, folder, weights, background):
    if background == "picture":
        write_pictures({folder / "b.png": photograph()[::-1]})
        background = "b.png"
    arguments = ("--weights", weights, "--background", background, *TINY)
    assert command("i.png", "t.png", "-o", "out/alpha.png", *arguments).code == 0
    assert sorted(os.listdir("out")) == ["alpha.png", "alpha_composite.png"]
    alpha = predict_alpha(tiny_model(5), photograph(), trimap())
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
    upright = predict_alpha(tiny_model(5), photograph(), trimap())
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
        expected = predict_alpha(tiny_model(5), pixels, trimap())
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


# --- what it refuses ------------------------------------------------------------------------------------------------


def _truncated(suffix: str, dtype: type = np.uint8) -> bytes:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (45, 60, 3)).astype(dtype)
    return encoded(suffix, noise)[:-2000]


BROKEN_FILES = {
    "missing": (None, "no such file"),
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "not a picture, or a broken one"),
    "truncated PNG": (_truncated(".png"), "cannot be decoded: image file is truncated"),
    "truncated 16-bit PNG": (_truncated(".png", np.uint16), "cannot be decoded: image file is truncated"),
    "truncated JPEG": (_truncated(".jpg"), "cannot be decoded: image file is truncated"),
    "truncated TIFF": (_truncated(".tif"), "not a picture, or a broken one"),
}


@pytest.mark.parametrize("role", ["i.png", "t.png"])
@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_broken_files(command, folder, kind, role):
    content, message = BROKEN_FILES[kind]
    Path(role).unlink()
    if content is not None:
        Path(role).write_bytes(content)
    error = command("i.png", "t.png", "-o", "out/a.png", *TINY).one_error()
    assert error.startswith(f"{role}: {message}")
    assert not os.listdir("out")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (trimap(45, 61), "t.png: size must be that of the image, 60 x 45, got 61 x 45"),
        (np.where(trimap() == 128, 0, trimap()).astype(np.uint8), "t.png: has no unknown pixels"),
        (np.full((45, 60), 128, np.uint8), "t.png: has no known pixels"),
        (photograph(), "t.png: must be grey, got colours; are image and trimap swapped?"),
    ],
    ids=["another size", "no unknown", "no known", "coloured"],
)
def test_unusable_trimaps(command, folder, levels, message):
    write_pictures({folder / "t.png": levels})
    assert message in command("i.png", "t.png", "-o", "out/a.png", *TINY).one_error()
    assert not os.listdir("out")


class Intruder:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("intruder"),))


def _pickled_code(path: Path) -> None:
    torch.save({"layer0.0.weight": Intruder()}, path)


def _wrong_keys(path: Path) -> None:
    torch.save({"some.weight": torch.zeros(3)}, path)


def _wrong_shapes(path: Path) -> None:
    save_checkpoint(create_model("indexnet_matting", width=0.5), path)


def _wrong_model(path: Path) -> None:
    torch.save(tiny_model(0), path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (None, "w.safetensors", "w.safetensors"),
        (None, "w.pth", "w.pth"),
        (lambda path: path.write_bytes(b"no checkpoint"), "w.pth", "w.pth"),
        (lambda path: path.write_bytes(b"no checkpoint"), "w.safetensors", "w.safetensors"),
        (_wrong_keys, "w.pth", "some.weight"),
        (_wrong_shapes, "w.safetensors", "w.safetensors"),
        (_pickled_code, "w.pth", "w.pth"),
        (_wrong_model, "w.pt", "w.pt"),
    ],
    ids=["missing", "missing pth", "garbage pth", "garbage safetensors", "keys", "shapes", "code", "whole model"],
)
def test_unusable_checkpoints(command, folder, write, name, message):
    if write is not None:
        write(Path(name))
    error = command("i.png", "t.png", "-o", "out/a.png", "--weights", name, *TINY).one_error()
    assert message in error
    assert len(error) < 1000
    assert not os.listdir("out")
    assert not Path("intruder").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nonesuch"], "name must be one of .*, got 'nonesuch'"),
        (["--option", "colour=red"], "option of indexnet_matting must be one of .*, got 'colour'"),
        (["--option", "index_network=x"], "index_network must be one of .*, got 'x'"),
        (["--option", "width"], "--option must be KEY=VALUE, got 'width'"),
        (["--backend", "vulkan"], "must be one of reference, cpu, cuda, triton, got 'vulkan'"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:"], "--device must be cpu, cuda or cuda:N, got 'cuda:'"),
        (["--device", "cuda:99"], r"--device cuda:99: PyTorch sees \d+ CUDA devices"),
        (["--backend", "cuda"], "backend cuda cannot run: "),
        (["--background", "nowhere.png"], "background: must be an existing picture or a colour, got 'nowhere.png'"),
        (["-o", "none/a.png"], "none: the output folder does not exist"),
        (["-o", "t.png/a.png"], "t.png: the output folder is a file"),
        (["-o", "i.png"], "i.png: the output would overwrite an input"),
        (["-o", "out/../t.png"], "out/../t.png: the output would overwrite an input"),
        (["-o", "out/a.gif"], r"out/a.gif: output must end in \.png, "),
        (["-o", "out/a.jpg", "--bit-depth", "16"], "JPEG holds 8 bits per channel, not 16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments(command, folder, arguments, message):
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    error = command("i.png", "t.png", "-o", "out/a.png", *TINY, *arguments).one_error()
    assert re.search(message, error), error
    assert not os.listdir("out")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_background_that_is_broken(command, folder):
    Path("b.png").write_bytes(_truncated(".png"))
    error = command("i.png", "t.png", "-o", "out/a.png", "--background", "b.png", *TINY).one_error()
    assert error.startswith("b.png: cannot be decoded")


def test_weights_are_not_overwritten(command, folder):
    save_checkpoint(tiny_model(0), Path("w.safetensors"))
    Path("a.png").symlink_to("w.safetensors")
    error = command("i.png", "t.png", "-o", "a.png", "--weights", "w.safetensors", *TINY).one_error()
    assert error == "a.png: the output would overwrite an input"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that even root cannot write to")
def test_unwritable_folder(command, folder):
    error = command("i.png", "t.png", "-o", "/proc/a.png", *TINY).one_error()
    assert error.startswith("/proc")
    assert "cannot be written" in error


def test_full_disk_leaves_the_old_output(command, folder, monkeypatch):
    Path("out/a.png").write_bytes(b"old")

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    error = command("i.png", "t.png", "-o", "out/a.png", "--background", "white", *TINY).one_error()
    assert "No space left on device" in error
    assert os.listdir("out") == ["a.png"]
    assert Path("out/a.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate 20 GiB", "DefaultCPUAllocator: can't allocate memory: you tried"]
)
def test_out_of_memory_is_one_line(message):
    assert _console.input_error(RuntimeError(message)) == "out of memory"


def test_a_bug_keeps_its_traceback():
    assert _console.input_error(RuntimeError("shape mismatch")) is None
    assert _console.input_error(KeyError("x")) is None
    with pytest.raises(ZeroDivisionError), _console.input_errors():
        raise ZeroDivisionError


# --- several images -------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(folder: Path) -> Path:
    """``images`` with five pictures and ``trimaps``, of which two cannot be used and one is missing."""
    for name in ("images", "trimaps"):
        (folder / name).mkdir()
    for index in range(5):
        write_pictures(
            {
                folder / "images" / f"{index}.png": photograph(40 + index),
                folder / "trimaps" / f"{index}.png": trimap(40 + index),
            }
        )
    Path("images/1.png").write_bytes(_truncated(".png"))
    write_pictures({folder / "trimaps" / "2.png": np.zeros((42, 60), np.uint8)})
    Path("trimaps/3.png").unlink()
    return folder


def test_in_a_folder_the_others_continue(command, folders, weights):
    result = command("images", "trimaps", "-o", "out", "--weights", weights, *TINY)
    assert result.code == 1
    assert sorted(os.listdir("out")) == ["0.png", "4.png"]
    assert result.out == "2 of 5 images matted into out\n"
    assert "Matting" in result.err  # the progress bar
    assert [line.split(": ")[1:3] for line in result.err.splitlines()[-3:]] == [
        ["images/3.png", "has no trimap named 3.* in trimaps"],
        ["images/1.png", "cannot be decoded"],
        ["trimaps/2.png", "has no unknown pixels (background is 0 to 12, foreground 243 to 255); nothing to estimate"],
    ]
    assert len(result.errors) == 3
    for index in (0, 4):
        expected = predict_alpha(tiny_model(5), photograph(40 + index), trimap(40 + index))
        assert np.array_equal(read_picture(f"out/{index}.png").pixels, to_integers(expected, 8))


def test_a_folder_without_failures(command, folders, weights):
    for name in ("images/1.png", "images/2.png", "images/3.png", "trimaps/1.png", "trimaps/2.png"):
        Path(name).unlink()
    arguments = ("--weights", weights, "--format", "tif", "--background", "teal")
    result = command("images", "trimaps", "-o", "out", *arguments, *TINY)
    assert result.code == 0
    assert result.out == "2 of 2 images matted into out\n"
    assert not result.errors
    assert sorted(os.listdir("out")) == ["0.tif", "0_composite.tif", "4.tif", "4_composite.tif"]


def test_several_pairs(command, folder, weights):
    write_pictures({folder / "j.png": photograph(30, 40), folder / "u.png": trimap(30, 40)})
    result = command("i.png", "t.png", "gone.png", "t.png", "j.png", "u.png", "-o", "out", "--weights", weights, *TINY)
    assert result.code == 1
    assert sorted(os.listdir("out")) == ["i.png", "j.png"]
    assert result.errors == ["error: gone.png: no such file"]
    assert "2 of 3 images" in result.out


def test_an_unusable_network_ends_a_folder_run_once(command, folders):
    result = command("images", "trimaps", "-o", "out", "--weights", "none.pth", *TINY)
    assert "none.pth" in result.one_error()
    assert not os.listdir("out")


# --- the command itself ---------------------------------------------------------------------------------------------


def test_as_a_process(folder):
    """The real entry point: exit codes, and nothing on standard error but the one line."""

    environment = {**os.environ, "PYTHONPATH": str(Path(pyindexnet.__file__).parents[1])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pyindexnet", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    assert "Usage: pyindexnet matte" in run("matte", "--help").stdout
    done = run("matte", "i.png", "t.png", "-o", "out/a.png", *TINY)
    assert (done.returncode, os.listdir("out")) == (0, ["a.png"])
    assert UNTRAINED in done.stderr
    Path("i.png").write_bytes(_truncated(".jpg"))
    failed = run("matte", "i.png", "t.png", "-o", "out/b.png", *TINY)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: i.png: cannot be decoded: image file is truncated")
    assert failed.stderr.count("\n") == 1
    assert os.listdir("out") == ["a.png"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("0.5", 0.5), ("true", True), ("False", False), ("none", None), ("m2o", "m2o"), ("(1, 2)", (1, 2)), ("", "")],
)
def test_option_values(text, value):
    assert _console.parse_options([f"key={text}"]) == {"key": value}


def test_option_given_twice():
    with pytest.raises(ValueError, match="--option a must be given once, got '2' after 1"):
        _console.parse_options(["a=1", "a=2"])


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def wide(folder: Path, monkeypatch) -> Path:
    """A picture several tiles wide for ``deep_matting``, whose receptive field is small; the process seems to hold nothing."""
    monkeypatch.setattr("pyindexnet.matting.tiling.used_bytes", lambda device: 0)
    write_pictures({folder / "w.png": np.tile(photograph(), (1, 20, 1)), folder / "wt.png": np.tile(trimap(), (1, 20))})
    return folder


DEEP = ("--model", "deep_matting", "--option", "width=0.015625", "--align", "pad")


def test_tiles_change_nothing_that_shows(command, wide):
    assert command("w.png", "wt.png", "-o", "out/whole.png", *DEEP, "--bit-depth", "16").code == 0
    result = command("w.png", "wt.png", "-o", "out/tiles.png", *DEEP, "--bit-depth", "16", "--max-memory", "2800K")
    assert result.code == 0
    found = re.search(r"w\.png: (\d+) tiles, largest difference at their seams (\S+)", result.out)
    assert int(found[1]) > 1
    assert float(found[2]) < 1 / 255
    whole, tiles = (read_picture(f"out/{name}.png").pixels.astype(int) for name in ("whole", "tiles"))
    assert np.abs(whole - tiles).max() <= 65535 / 255


def test_dry_run_writes_nothing(command, wide):
    result = command("w.png", "wt.png", "-o", "out/a.png", *DEEP, "--max-memory", "4500K", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"w\.png: 1200 x 45: whole .* tiles of .* overlap \d+ x \d+, .* times the pixels\n", result.out)
    result = command("w.png", "wt.png", "-o", "out/a.png", *DEEP, "--dry-run")
    assert result.out.endswith("in one piece\n")
    assert os.listdir("out") == []


def test_dry_run_reports_what_would_fail(command, wide):
    """What has no trimap, a broken image and a trimap of another size: each by itself, the others go on."""
    for name in ("images", "trimaps"):
        Path(name).mkdir()
    for stem in ("a", "alone", "small"):
        write_pictures({Path(f"images/{stem}.png"): photograph()})
    Path("images/broken.png").write_bytes(b"no picture")
    write_pictures({Path("trimaps/a.png"): trimap(), Path("trimaps/broken.png"): trimap()})
    write_pictures({Path("trimaps/small.png"): trimap()[:20]})
    result = command("images", "trimaps", "-o", "out", *DEEP, "--dry-run")
    assert result.code == 1
    assert re.fullmatch(r"images/a\.png: 60 x 45: whole .* in one piece\n1 of 4 images can be matted\n", result.out)
    assert len(result.errors) == 3
    for name in ("images/alone.png: has no trimap", "images/broken.png", "trimaps/small.png"):
        assert name in result.err
    assert os.listdir("out") == []


def test_memory_errors(command, wide):
    def error(*arguments: str) -> str:
        return command("w.png", "wt.png", "-o", "out/a.png", *DEEP, *arguments).one_error()

    assert "size must be a number with K, M, G or T, such as 6GiB, got '6 apples'" in error("--max-memory", "6 apples")
    assert "--overlap needs --max-memory" in error("--overlap", "32")
    assert "overlap must be at least 0 pixels, got -1" in error("--max-memory", "6G", "--overlap", "-1")
    assert os.listdir("out") == []


def test_an_image_that_does_not_fit_says_what_would(command, wide):
    result = command("w.png", "wt.png", "-o", "out/a.png", *DEEP, "--max-memory", "100K")
    assert result.code == 1
    assert len(result.errors) == 1
    assert "max_memory must be at least" in result.errors[0]
    assert os.listdir("out") == []
