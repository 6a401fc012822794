# SPDX-License-Identifier: Apache-2.0
"""The binary: stable ABI only, every instruction set right, no code of one set reachable from another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyindexnet import _extension

ROOT = Path(__file__).resolve().parents[1]
ISAS = ("generic", "avx2", "avx512")

pytestmark = pytest.mark.skipif(_extension.MODULE is None, reason=_extension.REASON)

# Every operator, both map kinds, vectors and tails, in the narrow and wide storage dtypes.
CHECK = """
import sys, torch
from pyindexnet import _extension
from pyindexnet.testing import SPECS, measure
assert _extension.MODULE.cpu_isa == sys.argv[1]
count = 0
for spec in SPECS.values():
    for sample in spec.samples:
        for dtype, layout in ((torch.float32, "contiguous"), (torch.float16, "channels_last"), (torch.bfloat16, "contiguous")):
            for row in measure(spec, sample, "", dtype, "cpu", layout):
                assert row.ok, (spec.name, sample.id, dtype, layout, str(row))
                count += 1
from pyindexnet.ops.winograd import transform_weight, winograd_convolution
for channels, out, size in ((16, 33, 5), (21, 1, 3)):
    x, weight = torch.randn(1, channels, 13, 90), torch.randn(out, channels, size, size)
    gold = torch.nn.functional.conv2d(x.double(), weight.double(), padding=size // 2)
    prepared = transform_weight(weight, None)
    for dtype in (torch.float32, torch.bfloat16):
        maps = x.to(dtype).contiguous(memory_format=torch.channels_last)
        y = winograd_convolution(maps, *prepared, channels=out, kernel_size=size)
        bound = (torch.finfo(dtype).eps + weight[0].numel() * torch.finfo(torch.float32).eps) * gold.abs().max()
        assert (y - gold).abs().max() <= 2 * bound, (channels, out, size, dtype)
from pyindexnet.ops.winograd import winograd_weight_gradient
x, grad = (torch.randn(2, c, 13, 30).contiguous(memory_format=torch.channels_last) for c in (21, 33))
gold = torch.nn.grad.conv2d_weight(x.double(), (33, 21, 5, 5), grad.double(), padding=2)
assert (winograd_weight_gradient(grad, x) - gold).abs().max() <= 3e-5 * gold.abs().max()
from pyindexnet.ops.batch_norm import batch_norm_activation, batch_norm_activation_backward, batch_norm_statistics
F = torch.nn.functional
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 21, 13, 9).to(dtype).contiguous(memory_format=layout)
        exact = x.double().requires_grad_()
        for slope, high in ((1.0, 0.0), (0.0, 1.5), (0.1, 0.0)):
            z = F.batch_norm(exact, None, None, training=True)
            gold = z if slope == 1 else z.clamp(0, high) if slope == 0 else F.leaky_relu(z, slope)
            kinks = (z.abs() < 1e-3) | ((z - high).abs() < 1e-3)
            grad = torch.randn(x.shape).to(dtype).masked_fill(kinks, 0).contiguous(memory_format=layout)
            statistics = batch_norm_statistics(x)
            arguments = (x, *statistics, torch.ones_like(statistics[0]), torch.zeros_like(statistics[0]))
            options = {"eps": 1e-5, "slope": slope, "high": high}
            y = batch_norm_activation(*arguments, **options)
            grad_x = batch_norm_activation_backward(grad, *arguments, **options, batch=True)[0]
            (gold_grad,) = torch.autograd.grad(gold, exact, grad.double())
            for found, wanted in ((y, gold), (grad_x, gold_grad)):
                bound = 2 * torch.finfo(dtype).eps + x[:, 0].numel() * torch.finfo(statistics[0].dtype).eps
                assert (found - wanted).abs().max() <= bound * wanted.abs().max(), (dtype, layout, slope)
print(count)
"""


def supported(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    need = {"generic": "", "avx2": "avx2", "avx512": "avx512vl"}[isa]
    return re.search(rf"\b{need}\b", flags) is not None if need else True


def run(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, **env}, capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_right(isa: str) -> None:
    if not supported(isa):
        pytest.skip(f"this processor has no {isa}")
    done = run(CHECK, isa, PYINDEXNET_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


def test_unknown_instruction_set_is_an_error() -> None:
    done = run("import pyindexnet", PYINDEXNET_CPU_ISA="avx1024")
    assert done.returncode != 0
    assert "ValueError: PYINDEXNET_CPU_ISA must be generic, avx2 or avx512, got avx1024" in done.stderr


@pytest.mark.parametrize("as_module", [False, True], ids=["script", "module"])
def test_commands_report_an_unknown_instruction_set_in_one_line(as_module: bool, tmp_path: Path) -> None:
    script = tmp_path / "pyindexnet"  # what an installer writes
    script.write_text("from pyindexnet.cli import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, *(["-m", "pyindexnet"] if as_module else [str(script)]), "doctor"],
        env={**os.environ, "PYINDEXNET_CPU_ISA": "sse9", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: PYINDEXNET_CPU_ISA must be generic, avx2 or avx512, got sse9\n"


def _symbols(path: Path, *options: str) -> list[str]:
    try:
        return subprocess.run(["nm", "-C", *options, str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        pytest.skip("nm is not installed")


def test_only_the_stable_abi_is_used() -> None:
    """No C++ symbol of PyTorch, so that one binary serves every later version; CUDA's stream may be missing."""
    assert _extension.MODULE is not None
    undefined = _symbols(Path(str(_extension.MODULE.__file__)), "-D", "--undefined-only")
    assert not [line for line in undefined if re.search(r"\b(c10|at|torch)::", line)]
    assert not [line for line in undefined if re.search(r"\bU cu(da)?[A-Z]", line)]


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_share_no_code(isa: str) -> None:
    """A function that the linker may merge must name its instruction set, or an AVX2 machine could get AVX-512 code."""
    objects = sorted(ROOT.glob(f"build/ninja-*/csrc/cpu/isa/*.{isa}.o"))
    if not objects:
        pytest.skip("the objects of the build are not here")
    for path in objects:
        for line in _symbols(path, "--defined-only"):
            kind, name = line[17:18], line[19:]
            if kind in "WVu":
                assert f"pyindexnet::{isa}::" in name, f"{path.name}: {name}"
