# SPDX-License-Identifier: Apache-2.0
"""Matte a real photograph with IndexNet Matting, once with the reference operators, once with the fused kernels.

Prints both times, the largest difference, and the speed-up of every operator at the shapes that occur in the network;
writes the alpha, a composite over a new background, and one comparison picture. The photographs come with scikit-image, the
trimap lies beside this file. ``make demo`` runs it in a fresh environment:

    python examples/demo.py [--output demo_output] [--runs 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from skimage import data
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyindexnet
from pyindexnet import backends
from pyindexnet.matting import composite, predict_alpha, quantize_trimap, read_picture, write_pictures
from pyindexnet.matting.compose import cover
from pyindexnet.matting.images import to_integers, to_unit
from pyindexnet.models import create_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TRIMAP = Path(__file__).parent / "astronaut_trimap.png"
UNTRAINED = "UNTRAINED WEIGHTS: the network has random weights (seed 0), so its alpha is noise and not a matte."


class OperatorRecorder(TorchDispatchMode):
    """Keeps every call of a pyindexnet operator, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "pyindexnet":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def fused_backend(device: torch.device) -> str:
    """The fused backend that the automatic choice takes on this device; ends the program where there is none."""
    x, logits = torch.zeros(1, 1, 2, 2, device=device), torch.zeros(1, 1, 4, 1, 1, device=device)
    name = backends.choose("indexed_pool", x, logits)
    if name == "reference":
        reasons = {b: backends.why_not("indexed_pool", b, x, logits) for b in backends.BACKENDS}
        sys.exit("no fused kernels here:\n" + "\n".join(f"  {b}: {reason}" for b, reason in reasons.items() if reason))
    return name


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(functions: list[Callable[[], object]], runs: int, device: torch.device) -> list[float]:
    """Median time of each function, in turns so that all of them see the same machine; one warm-up each."""
    for function in functions:
        function()
    times = [[seconds(function, device) for function in functions] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def matte_with(backend: str, model: nn.Module, image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    with pyindexnet.use_backend(backend):
        return predict_alpha(model, image, trimap)


def record(backend: str, model: nn.Module, image: np.ndarray, trimap: np.ndarray) -> tuple[Tensor, list[Any]]:
    """Output of the network, before clipping, and the operator calls that led to it."""
    outputs: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    with OperatorRecorder() as recorder:
        matte_with(backend, model, image, trimap)
    hook.remove()
    return outputs[0], recorder.calls


def largest_difference(a: Any, b: Any) -> float:
    """Between two tensors, or two tuples of them."""
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return max((x - y).abs().max().item() for x, y in pairs)


def operator_table(reference: list[Any], fused: list[Any], names: tuple[str, str], runs: int, device: torch.device) -> Table:
    """Time each recorded call with both backends, on the arguments that it had in the network."""
    table = Table(title="Operators at their shapes in the network: milliseconds, median", box=SIMPLE, title_justify="left")
    for header in ("operator", "x"):
        table.add_column(header, no_wrap=True)
    for header in (*names, "speed-up", "difference"):
        table.add_column(header, justify="right", no_wrap=True)
    totals = [0.0, 0.0]
    for (slow, slow_args), (fast, fast_args) in zip(reference, fused, strict=True):
        with torch.inference_mode():
            times = medians([lambda: slow(*slow_args), lambda: fast(*slow_args)], runs, device)  # noqa: B023
            difference = largest_difference(slow(*slow_args), fast(*slow_args))
        totals = [total + t for total, t in zip(totals, times, strict=True)]
        shape = "x".join(map(str, fast_args[0].shape))
        name = fast.name().removeprefix("pyindexnet::")
        table.add_row(name, shape, *(f"{1e3 * t:.2f}" for t in times), f"{times[0] / times[1]:.1f}x", f"{difference:.1e}")
    table.add_section()
    table.add_row("all", "", *(f"{1e3 * t:.2f}" for t in totals), f"{totals[0] / totals[1]:.1f}x", "")
    return table


def comparison(panels: dict[str, np.ndarray], note: str, path: Path) -> None:
    """All pictures side by side, each with its title."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.8), layout="constrained")
    for axis, (title, pixels) in zip(axes, panels.items(), strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255 if pixels.dtype == np.uint8 else 1)
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    figure.suptitle(note, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("demo_output"), help="folder of the pictures (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each kind (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, got {arguments.runs}")
    device = torch.device(arguments.device)

    pyindexnet.tune_allocator()
    console = Console(soft_wrap=True)
    fused = fused_backend(device)
    image, trimap = data.astronaut(), quantize_trimap(read_picture(TRIMAP).pixels)
    torch.manual_seed(0)
    model = create_model("indexnet_matting", index_network="m2o", nonlinear=True, context=True, index_width=1)
    model = model.eval().to(device)

    height, width = trimap.shape
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console.print(f"pyindexnet {pyindexnet.__version__}, torch {torch.__version__}, {device} ({where}), {platform.platform()}")
    console.print(f"IndexNet Matting (M2O, nonlinear, context), scikit-image's astronaut, {width} x {height}, float32")
    console.print(f"[bold yellow]{UNTRAINED}[/]\n")

    plain, plain_calls = record("reference", model, image, trimap)
    quick, quick_calls = record(fused, model, image, trimap)
    both = [lambda b=b: matte_with(b, model, image, trimap) for b in ("reference", fused)]
    slow, fast = medians(both, arguments.runs, device)
    alphas = [matte() for matte in both]

    console.print(operator_table(plain_calls, quick_calls, ("reference", fused), arguments.runs, device))
    console.print(f"\nPhotograph to alpha, reference operators: {slow:.3f} s")
    console.print(f"Photograph to alpha, {fused} kernels:      {fast:.3f} s   ({slow / fast:.2f}x)")
    console.print(f"Largest difference of the alphas:         {np.abs(alphas[0] - alphas[1]).max():.1e}")
    console.print(f"Largest difference of the raw outputs:    {largest_difference(plain, quick):.1e} (std {plain.std():.2g})")

    background = cover(to_unit(data.hubble_deep_field()), (height, width))
    alpha, blended = to_integers(alphas[1], 8), to_integers(composite(image, alphas[1], background), 8)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_pictures({arguments.output / "alpha.png": alpha, arguments.output / "composite.png": blended})
    panels = {
        "photograph": image,
        "trimap": trimap,
        f"alpha, reference operators ({slow:.2f} s)": alphas[0],
        f"alpha, {fused} kernels ({fast:.2f} s)": alphas[1],
        "composite": blended,
    }
    comparison(panels, UNTRAINED, arguments.output / "comparison.png")
    console.print(f"\nWrote {', '.join(str(arguments.output / f'{n}.png') for n in ('alpha', 'composite', 'comparison'))}")


if __name__ == "__main__":
    main()
