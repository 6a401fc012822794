# SPDX-License-Identifier: Apache-2.0
"""Source and binary distributions hold what they must, and a pure-Python wheel works where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel built from the unpacked sdist without the extension)."""
    folder = tmp_path_factory.mktemp("dist")
    run = {"check": True, "capture_output": True, "text": True}
    code = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, **run)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), str(source)],
        env={**os.environ, "PYINDEXNET_NO_EXTENSION": "1"},
        **run,
    )
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_all_sources(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    what = ("csrc", "kernels", "pyindexnet", "bench/*.py", "examples", "tests", "setup.py", "Makefile", "LICENSE")
    tracked = subprocess.run(
        ["git", "ls-files", *what],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    assert not set(tracked.stdout.split()) - names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_holds_the_packages(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        names = archive.namelist()
    inner = ("matting/losses/", "matting/procedural/", "matting/training/")
    for package in ("", "commands/", "kernels/", "matting/", *inner, "models/", "nn/", "ops/", "reference/", "testing/"):
        assert f"pyindexnet/{package}__init__.py" in names
    assert "pyindexnet/configs/procedural.yaml" in names
    assert "pyindexnet/weights/procedural.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "csrc/", "kernels/"))]
    assert "py3-none-any" in distributions[1].name
    for package in ("data", "losses"):
        assert f"pyindexnet/matting/{package}/__init__.py" in names


def test_wheel_works(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(distributions[1])], check=True)
    code = (
        "import pathlib, sys, torch, pyindexnet, pyindexnet.kernels\n"
        "assert pathlib.Path(pyindexnet.__file__).is_relative_to(sys.argv[1]), pyindexnet.__file__\n"
        "y = pyindexnet.indexed_pool(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 2, 2))\n"
        "assert torch.equal(y, torch.ones(1, 2, 2, 2))\n"
        "assert pyindexnet.models.pretrained_model()(torch.rand(1, 4, 32, 32)).shape == (1, 1, 32, 32)\n"
        "print(len(pyindexnet.models.list_models()))\n"
    )
    # Isolated from the checkout: no current folder on the path, no editable install.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); import pyindexnet.models\n{code}", str(site)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4
