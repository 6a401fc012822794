# SPDX-License-Identifier: Apache-2.0
"""Builds ``csrc/cuda`` for the host emulation of CUDA and registers its kernels as ``pyindexnet::NAME_emulated`` on the CPU."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from pyindexnet.ops._common import family

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = "_emulated"
TORCH_FLAGS = ("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY")
SANITIZERS = {
    # Unoptimised: no access is optimised away, and the build takes a third of the time.
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    # -O0 does not see that a failing STD_TORCH_CHECK never returns.
    "thread": ("-O0", "-Wno-return-type", "-fsanitize=thread"),
}


def sources() -> list[Path]:
    """One .cu file per operator."""
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def compiler() -> str:
    """The host compiler; skips the test where there is none."""
    cxx = os.environ.get("CXX", "g++")
    if shutil.which(cxx) is None:
        pytest.skip(f"no host compiler {cxx}: the emulation of CUDA cannot be built")
    return cxx


def _fingerprint(command: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256("\0".join((*command, torch.__version__)).encode())
    csrc = files[0].parents[1]
    headers = [p for room in ("cuda", "common") for p in sorted((csrc / room).glob("*.*")) if p.suffix != ".cu"]
    for path in (*files, *headers):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}", pytrace=False)


def build(files: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    """Compile and link .cu files of one csrc folder with the host compiler; an unchanged library is reused."""
    cxx = compiler()
    compile_flags = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-DPYINDEXNET_EMULATE"]
    compile_flags += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *TORCH_FLAGS, *flags]
    includes = [f for path in include_paths() for f in ("-isystem", path)]
    folder = ROOT / "build/emulation"
    library = folder / f"emulated_{_fingerprint((cxx, *compile_flags), files)}.so"
    if library.exists():
        return library
    scratch = folder / f"{library.stem}.{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    objects = [scratch / f"{source.stem}.o" for source in files]
    with ThreadPoolExecutor(2) as pool:
        commands = [
            [cxx, "-x", "c++", *compile_flags, *includes, "-c", source, "-o", o]
            for source, o in zip(files, objects, strict=True)
        ]
        list(pool.map(_run, commands))
    lib = Path(torch.__file__).parent / "lib"
    link = [cxx, "-shared", *flags, *objects, f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}", "-lpthread"]
    _run([*link, "-o", scratch / library.name])
    os.replace(scratch / library.name, library)  # another process may be building the same
    shutil.rmtree(scratch)
    return library


def register(library: Path, files: Sequence[Path]) -> None:
    """Define the ops ``NAME_emulated`` (fake, autograd) and load their kernels."""
    for source in files:
        for definition in family(source.stem):
            definition.define(SUFFIX)
    torch.ops.load_library(str(library))


@functools.cache
def load() -> None:
    """All operators, once per process."""
    register(build(sources()), sources())
