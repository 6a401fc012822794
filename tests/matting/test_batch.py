# SPDX-License-Identifier: Apache-2.0
"""Which files become which outputs, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyindexnet.matting import Background, read_picture, write_pictures
from pyindexnet.matting.batch import Job, plan, run_job
from tests.matting.pictures import photograph, trimap


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Folders of images a.png, b.jpg, c.tif and of their trimaps, and an empty one."""
    images, trimaps, out = tmp_path / "images", tmp_path / "trimaps", tmp_path / "out"
    for folder in (images, trimaps, out):
        folder.mkdir()
    write_pictures({images / name: photograph() for name in ("a.png", "b.jpg", "c.tif")})
    write_pictures({trimaps / f"{stem}.png": trimap() for stem in "abc"})
    return images, trimaps, out


def test_one_pair_of_files(tmp_path):
    jobs, failures = plan([Path("a.jpg"), Path("t.png")], tmp_path / "alpha.tif")
    assert jobs == [Job(Path("a.jpg"), Path("t.png"), tmp_path / "alpha.tif")]
    assert jobs[0].composite == tmp_path / "alpha_composite.tif"
    assert not failures


def test_several_pairs_of_files(tmp_path):
    jobs, _ = plan([Path(p) for p in ("a.jpg", "1.png", "b.jpg", "2.png")], tmp_path, suffix=".tif")
    assert [(j.image.name, j.trimap.name, j.alpha) for j in jobs] == [
        ("a.jpg", "1.png", tmp_path / "a.tif"),
        ("b.jpg", "2.png", tmp_path / "b.tif"),
    ]


def test_folders_are_matched_by_stem(folders):
    images, trimaps, out = folders
    (images / ".hidden.png").write_bytes(b"")
    (images / "notes.txt").write_bytes(b"")
    (images / "sub").mkdir()
    jobs, failures = plan([images, trimaps], out)
    assert [(j.image.name, j.trimap.name, j.alpha.name) for j in jobs] == [
        ("a.png", "a.png", "a.png"),
        ("b.jpg", "b.png", "b.png"),
        ("c.tif", "c.png", "c.png"),
    ]
    assert not failures


def test_an_existing_folder_takes_one_alpha(tmp_path):
    jobs, _ = plan([Path("x/a.jpg"), Path("t.png")], tmp_path)
    assert jobs[0].alpha == tmp_path / "a.png"


def test_images_without_or_with_several_trimaps_are_listed(folders):
    images, trimaps, out = folders
    (trimaps / "a.png").unlink()
    write_pictures({trimaps / "b.tif": trimap()})
    jobs, failures = plan([images, trimaps], out)
    assert [j.image.name for j in jobs] == ["c.tif"]
    assert [f.image.name for f in failures] == ["a.png", "b.jpg"]
    assert failures[0].reason == f"{images / 'a.png'}: has no trimap named a.* in {trimaps}"
    assert "has several trimaps" in failures[1].reason


def test_spare_trimaps_are_warned_of(folders):
    images, trimaps, out = folders
    (images / "a.png").unlink()
    with pytest.warns(UserWarning, match="trimaps: no image for a"):
        jobs, failures = plan([images, trimaps], out)
    assert len(jobs) == 2
    assert not failures


def test_two_images_of_one_stem(folders):
    images, trimaps, out = folders
    write_pictures({images / "a.tif": photograph()})
    jobs, failures = plan([images, trimaps], out)
    assert [j.image.name for j in jobs] == ["a.png", "b.jpg", "c.tif"]
    assert [f.image.name for f in failures] == ["a.tif"]
    assert "would also be that of" in failures[0].reason


def test_a_composite_does_not_replace_an_alpha(folders):
    images, trimaps, out = folders
    write_pictures({images / "a_composite.png": photograph(), trimaps / "a_composite.png": trimap()})
    assert not plan([images, trimaps], out)[1]
    _, failures = plan([images, trimaps], out, background=Background("white"))
    assert [f.image.name for f in failures] == ["a_composite.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        ([], "o.png", "must come in pairs IMAGE TRIMAP, got 0 paths"),
        (["a.jpg"], "o.png", "must come in pairs IMAGE TRIMAP, got 1 path$"),
        (["images", "t.png"], "out", "pairs are two files or two folders"),
        (["t.png", "trimaps"], "out", "pairs are two files or two folders"),
        (["images", "images"], "out", "must be in different folders"),
        (["out", "trimaps"], "out", "has no pictures"),
        (["images", "trimaps"], "none", "the output folder does not exist"),
        (["images", "trimaps"], "images/a.png", "the output folder is a file"),
        (["a.jpg", "t.png"], "none/o.png", "the output folder does not exist"),
        (["a.jpg", "t.png"], "images/a.png/o.png", "the output folder is a file"),
        (["a.jpg", "t.png"], "o.gif", r"output must end in \.png, .*, got \.gif"),
        (["a.jpg", "t.png"], "o", "got no suffix"),
        (["a.png", "t.png"], "a.png", "the output would overwrite an input"),
        (["a.png", "t.png"], "out/../t.png", "the output would overwrite an input"),
        (["a.png", "t.png"], "kept.png", "the output would overwrite an input"),
        (["images", "trimaps"], "images", "the output would overwrite an input"),
        (["images", "trimaps"], "trimaps", "the output would overwrite an input"),
    ],
)
def test_refused(folders, monkeypatch, inputs, output, message):
    monkeypatch.chdir(folders[0].parent)
    with pytest.raises((ValueError, OSError), match=message):
        plan([Path(p) for p in inputs], Path(output), keep=[Path("kept.png"), None])


def test_the_background_is_not_overwritten(folders):
    images, trimaps, out = folders
    background = out / "a_composite.png"
    write_pictures({background: photograph()})
    with pytest.raises(ValueError, match="the output would overwrite an input"):
        plan([images, trimaps], out, background=Background(str(background)))


def test_jpeg_of_16_bits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JPEG holds 8 bits per channel, not 16"):
        plan([Path("a"), Path("b")], tmp_path / "o.jpg", bit_depth=16)
    with pytest.raises(ValueError, match="JPEG holds 8 bits per channel, not 16"):
        plan([Path("a"), Path("b")], tmp_path, suffix=".jpg", bit_depth=16)


def half(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.where(levels == 128, np.float32(0.5), levels / np.float32(255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("bit_depth", "suffix"), [(None, ".png"), (None, ".tif"), (8, ".png"), (16, ".png"), (None, ".jpg")])
def test_bit_depth_of_the_outputs(tmp_path, dtype, bit_depth, suffix):
    write_pictures({tmp_path / "i.png": photograph(dtype=dtype), tmp_path / "t.png": trimap()})
    job = Job(tmp_path / "i.png", tmp_path / "t.png", tmp_path / f"alpha{suffix}")
    if suffix == ".jpg":
        with pytest.warns(UserWarning, match="JPEG is lossy"):
            run_job(job, half, background=Background("red"), bit_depth=bit_depth)
    else:
        run_job(job, half, background=Background("red"), bit_depth=bit_depth)
    bits = bit_depth or (8 if suffix == ".jpg" or dtype == np.uint8 else 16)
    alpha, blended = read_picture(job.alpha), read_picture(job.composite)
    assert (alpha.bit_depth, blended.bit_depth) == (bits, bits)
    assert alpha.pixels.shape == (45, 60)
    assert blended.pixels.shape == (45, 60, 3)
    if suffix != ".jpg":
        top = 2**bits - 1
        assert np.array_equal(alpha.pixels, np.rint(half(photograph(), trimap()).astype(float) * top))
        if bits == (16 if dtype == np.uint16 else 8):
            assert np.array_equal(blended.pixels[trimap() == 255], photograph(dtype=dtype)[trimap() == 255])
        assert (blended.pixels[trimap() == 0] == (top, 0, 0)).all()
