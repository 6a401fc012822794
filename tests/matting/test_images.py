# SPDX-License-Identifier: Apache-2.0
"""Decoding and writing files."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pyindexnet.matting.images import read_picture, to_integers, to_unit, write_pictures
from tests.matting.pictures import encoded, photograph, stored, with_orientation


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_lossless_files_come_back_exactly(tmp_path, suffix, grey, dtype):
    pixels = photograph(dtype=dtype)
    pixels = pixels[:, :, 0] if grey else pixels
    picture = read_picture(_write(tmp_path / f"a{suffix}", encoded(suffix, pixels)))
    assert picture.pixels.dtype == dtype
    assert np.array_equal(picture.pixels, pixels)
    assert picture.bit_depth == (16 if dtype == np.uint16 else 8)
    assert picture.rgb().shape == (45, 60, 3)
    assert not picture.lossy


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = _write(tmp_path / "a.jpg", encoded(".jpg", photograph()))
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, np.asarray(Image.open(path)))
    assert picture.lossy


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_8_bit(tmp_path, format, orientation):
    upright = photograph()
    data = with_orientation(stored(upright, orientation), orientation, format)
    picture = read_picture(_write(tmp_path / "a", data))
    assert picture.orientation == orientation
    if format == "JPEG":  # its blocks lie otherwise, so compare with its own stored pixels
        decoded = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(stored(picture.pixels, orientation), decoded)
    else:
        assert np.array_equal(picture.pixels, upright)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_where_white_is_zero(tmp_path, dtype):
    grey = photograph(dtype=dtype)[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - grey, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, grey)


def test_tiff_with_planes_apart(tmp_path):
    for dtype in (np.uint8, np.uint16):
        planes = photograph(dtype=dtype).transpose(2, 0, 1)
        tifffile.imwrite(tmp_path / f"{dtype.__name__}.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_picture(tmp_path / "uint8.tif").pixels, photograph())
    with pytest.raises(ValueError, match=r"uint16\.tif: cannot be decoded: 16 bits with planes apart"):
        read_picture(tmp_path / "uint16.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
def test_exif_orientation_16_bit_tiff(tmp_path, grey, orientation):
    upright = photograph(dtype=np.uint16)
    upright = upright[:, :, 0] if grey else upright
    path = tmp_path / "a.tif"
    photometric = "minisblack" if grey else "rgb"
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, stored(upright, orientation), photometric=photometric, extratags=tags)
    picture = read_picture(path)
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_16_bit_png(tmp_path, orientation):
    upright = photograph(dtype=np.uint16)
    plain = encoded(".png", stored(upright, orientation))
    exif = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    chunk = b"eXIf" + exif
    head = 33  # signature and IHDR
    data = plain[:head] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[head:]
    picture = read_picture(_write(tmp_path / "a.png", data))
    assert picture.orientation == orientation
    assert np.array_equal(picture.pixels, upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "CMYK"])
def test_other_modes_become_grey_or_rgb(tmp_path, mode):
    image = Image.fromarray(photograph()).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    grey = mode in ("LA", "1", "L")
    assert np.array_equal(read_picture(path).pixels, np.asarray(image.convert("L" if grey else "RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colours_under_transparency_are_kept_and_named(tmp_path, suffix):
    pixels = np.dstack([photograph(), np.full((45, 60), 255, np.uint8)])
    pixels[:10, :, 3] = 40
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    with pytest.warns(UserWarning, match="transparent pixels; its alpha channel is ignored"):
        picture = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(picture.pixels, pixels[:, :, :3])


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", np.uint8), (".png", np.uint16), (".jpg", np.uint8), (".tif", np.uint8), (".tif", np.uint16)],
)
def test_truncated_files_are_refused_in_silence(tmp_path, capfd, suffix, dtype, share):
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (80, 80, 3)).astype(dtype)
    data = encoded(suffix, noise)
    path = _write(tmp_path / f"a{suffix}", data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"not a picture, or a broken one|cannot be decoded"):
        read_picture(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no picture at all", "not a picture, or a broken one"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not a picture|cannot be decoded"),
    ],
    ids=["empty", "text", "bad header"],
)
def test_broken_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_picture(_write(tmp_path / "a.png", content))


def test_flipped_bytes_in_a_png_are_refused(tmp_path):
    data = bytearray(encoded(".png", photograph()))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_picture(_write(tmp_path / "a.png", bytes(data)))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such file"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_picture(tmp_path)


def test_floating_point_tiff_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="8 and 16 bits unsigned are supported"):
        read_picture(tmp_path / "a.tif")


def test_to_unit():
    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [0, 1]
    assert to_unit(np.array([0, 65535], np.uint16)).tolist() == [0, 1]
    assert to_unit(np.array([0.25, 1.0])).dtype == np.float32
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 0 to 255"):
        to_unit(np.array([0.0, 255.0]))
    with pytest.raises(ValueError, match="got nan to nan"):
        to_unit(np.array([0.0, np.nan]))
    with pytest.raises(TypeError, match="must be uint8, uint16 or floating, got int64"):
        to_unit(np.array([1]))


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_to_integers_rounds_to_nearest(bits, top):
    values = to_integers(np.array([-0.1, 0, 0.5 / top + 1e-7, 1 - 0.4 / top, 1, 2], np.float64), bits)
    assert values.tolist() == [0, 0, 1, top, top, top]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_written_pictures_come_back(tmp_path, suffix, dtype):
    pixels = photograph(dtype=dtype)
    write_pictures({tmp_path / f"a{suffix}": pixels, tmp_path / f"b{suffix}": pixels[:, :, 0]})
    assert np.array_equal(read_picture(tmp_path / f"a{suffix}").pixels, pixels)
    assert np.array_equal(read_picture(tmp_path / f"b{suffix}").pixels, pixels[:, :, 0])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


def test_writing_fails_as_a_whole(tmp_path, monkeypatch):
    old = _write(tmp_path / "a.png", b"old")
    monkeypatch.setattr(os, "replace", _no_space)
    with pytest.raises(OSError, match=r"a\.png: cannot be written: No space left on device"):
        write_pictures({old: photograph(), tmp_path / "b.png": photograph()})
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def _no_space(*args: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png, .*, got \.gif"):
        write_pictures({tmp_path / "a.gif": photograph()})
    with pytest.raises(ValueError, match="JPEG holds 8 bits per channel, not 16"):
        write_pictures({tmp_path / "a.jpg": photograph(dtype=np.uint16)})
    with pytest.raises(OSError, match=r"a\.png: cannot be written: No such file or directory"):
        write_pictures({tmp_path / "none" / "a.png": photograph()})
    assert not list(tmp_path.iterdir())
