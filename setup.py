# SPDX-License-Identifier: Apache-2.0
"""Builds ``pyindexnet._C`` with ninja. Metadata is in pyproject.toml.

Environment:
    PYINDEXNET_NO_EXTENSION=1: a pure-Python install (Triton and reference backends).
    PYINDEXNET_CUDA=0|1: never or always build the CUDA kernels; by default where nvcc is found.
    PYINDEXNET_CUDA_ARCHITECTURES: compute capabilities, "80,90,100" by default; PTX of the last one goes along.
    CXX, NVCC, MAX_JOBS: compilers and parallel jobs.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# The oldest torch whose stable ABI the binary uses; it then runs on every later one.
TORCH_TARGET = "0x020b000000000000"
ISA_FLAGS = {
    "generic": "-O2",  # for machines without AVX2: correct, and quick to compile
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
}


def find_nvcc() -> str | None:
    """nvcc's path, or None where CUDA is switched off or absent."""
    wanted = os.environ.get("PYINDEXNET_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"PYINDEXNET_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if nvcc is None and wanted == "1":
        raise SystemExit("PYINDEXNET_CUDA=1, but nvcc was found neither on PATH nor in CUDA_HOME nor as NVCC")
    return nvcc


def cuda_root(nvcc: str) -> Path:
    """The toolkit folder, which nvcc itself knows (its path may be a wrapper script)."""
    dry = subprocess.run([nvcc, "-dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=True)
    for line in dry.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    raise SystemExit(f"{nvcc} does not tell its toolkit folder (no TOP= in nvcc -dryrun)")


class NinjaBuild(build_ext):
    """One build.ninja for all sources: C++, C++ once per instruction set, CUDA, link."""

    def build_extension(self, ext: Extension) -> None:
        import torch
        from torch.utils.cpp_extension import include_paths

        # Not self.build_temp: an editable install puts that into a new temporary folder, and nothing would be reused.
        build = ROOT / "build" / f"ninja-{sys.implementation.cache_tag}-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)

        cxx = os.environ.get("CXX", "g++")
        nvcc = find_nvcc()
        archs = os.environ.get("PYINDEXNET_CUDA_ARCHITECTURES", "80,90,100").split(",") if nvcc else []
        compiler = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        nvcc_version = ""
        if nvcc:
            text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
            nvcc_version = text.split("release ")[1].split(",")[0]

        # PyTorch brings the headers of pybind11 along.
        includes = [*include_paths(), sysconfig.get_paths()["include"]]
        system = " ".join(f"-isystem {path}" for path in includes)
        common = f"-std=c++20 -DTORCH_TARGET_VERSION={TORCH_TARGET} -DTORCH_STABLE_ONLY {system}"
        # fp-contract: vector code relies on fused multiply-adds. The kernels include nothing of torch, see csrc/common.
        warnings = "-Wall -Wextra -Wno-unused-parameter"
        cxx_flags = f"{common} -O2 -fPIC -fvisibility=hidden {warnings}"
        # GCC's own AVX-512 headers warn about uninitialized values.
        quiet = f"{warnings} -Wno-psabi -Wno-uninitialized -Wno-maybe-uninitialized"
        isa_flags = f"-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast {quiet}"
        facts = {
            "PYINDEXNET_COMPILER": compiler,
            "PYINDEXNET_BUILT_WITH_TORCH": torch.__version__,
            "PYINDEXNET_CUDA_ARCHITECTURES": ",".join(archs),
            "PYINDEXNET_NVCC": nvcc_version,
        }
        # In a header of its own: written only when it changes, so that ninja rebuilds only module.cpp.
        header = "".join(f'#define {name} "{value}"\n' for name, value in facts.items())
        facts_file = build / "build_facts.h"
        if not facts_file.exists() or facts_file.read_text() != header:
            facts_file.write_text(header)

        lines = [
            f"cxx = {cxx}",
            "rule cxx\n  command = $cxx $flags -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
            "rule link\n  command = $cxx -shared $in $flags -o $out",
        ]
        objects: list[Path] = []

        def add(rule: str, source: Path, flags: str, suffix: str = "") -> None:
            relative = source.relative_to(ROOT)
            out = build / relative.with_name(f"{relative.name}{suffix}.o")
            lines.append(f"build {out}: {rule} {source}\n  flags = {flags}")
            objects.append(out)

        # Uses pybind11 alone, whose headers torch 2.11 refuses under TORCH_STABLE_ONLY.
        module_flags = f"-std=c++20 {system} -O2 -fPIC -fvisibility=hidden {warnings} -include {facts_file}"
        add("cxx", ROOT / "csrc/module.cpp", module_flags)
        for source in sorted((ROOT / "csrc/cpu").glob("*.cpp")):
            add("cxx", source, cxx_flags)
        isas = ISA_FLAGS if platform.machine() in ("x86_64", "AMD64") else {"generic": ""}
        for source in sorted((ROOT / "csrc/cpu/isa").glob("*.cpp")):
            for isa, flags in isas.items():
                add("cxx", source, f"{isa_flags} {flags} -DPYINDEXNET_ISA={isa}", f".{isa}")

        link = f"-L{Path(torch.__file__).parent / 'lib'} -ltorch_cpu -Wl,-rpath,$$ORIGIN/../torch/lib"
        if nvcc:
            root = cuda_root(nvcc)
            targets = " ".join(f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs)
            targets += f" -gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"
            lines.insert(1, f"nvcc = {nvcc}")
            # The report on registers and spills stays beside the object: tests/cuda/resources.py reads it.
            command = "$nvcc $flags -Xptxas -v -MMD -MF $out.d -c $in -o $out > $out.report 2>&1 || (cat $out.report; exit 1)"
            lines.append(f"rule nvcc\n  command = {command}\n  depfile = $out.d\n  deps = gcc")
            nvcc_flags = (
                f"{common} -O3 -DUSE_CUDA -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr --cudart static "
                f"-diag-suppress 20012 {targets}"
            )
            for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
                add("nvcc", source, nvcc_flags)
            folder = next(p for p in (root / "lib64", root / "targets/x86_64-linux/lib", root / "lib") if p.is_dir())
            link += f" -L{folder} -lcudart_static -ldl -lrt -lpthread"

        lines.append(f"build {target}: link {' '.join(map(str, objects))}\n  flags = {link}")
        lines.append(f"default {target}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")
        jobs = os.environ.get("MAX_JOBS")
        ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
        command = [*ninja, "-C", str(build), *(["-j", jobs] if jobs else [])]
        if self.verbose > 1:
            command.append("-v")
        subprocess.run(command, check=True)


without = os.environ.get("PYINDEXNET_NO_EXTENSION") == "1"
setup(
    packages=[
        "pyindexnet",
        *(".".join(path.parent.relative_to(ROOT).parts) for path in sorted((ROOT / "pyindexnet").glob("*/**/__init__.py"))),
        "pyindexnet.kernels",
    ],
    package_dir={"pyindexnet.kernels": "kernels"},
    package_data={"pyindexnet.configs": ["*.yaml"], "pyindexnet.weights": ["*.safetensors"]},
    ext_modules=[] if without else [Extension("pyindexnet._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
