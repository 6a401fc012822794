# SPDX-License-Identifier: Apache-2.0
"""Matte a real photograph with IndexNet Matting, once with the reference operators, once with the fused kernels.

Prints both times, the largest difference, and the speed-up of every operator at the shapes that occur in the network;
writes the alpha, a composite over a new background, and one comparison picture. The photographs come with scikit-image, the
trimap lies beside this file. ``make demo`` runs it in a fresh environment:

    python examples/demo.py [--output demo_output] [--runs 5]
"""

from __future__ import annotations

import argparse
import copy
import functools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from pyindexnet.models import PRETRAINED, pretrained_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TRIMAP = Path(__file__).parent / "astronaut_trimap.png"
WEIGHTS = "procedural"


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
    """Median time of each function, in turns so that all of them see the same machine."""
    times = [[seconds(function, device) for function in functions] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


@dataclass
class Recording:
    """One run: the alpha, the network's output before clipping, and the operator calls that led to it."""

    alpha: np.ndarray
    output: Tensor
    calls: list[Any]


@dataclass
class Variant:
    """One way to run the network on the photograph."""

    backend: str
    layout: torch.memory_format
    model: nn.Module
    image: np.ndarray
    trimap: np.ndarray

    def matte(self) -> np.ndarray:
        """From the photograph to its alpha."""
        with pyindexnet.use_backend(self.backend):
            return predict_alpha(self.model, self.image, self.trimap, memory_format=self.layout)

    def record(self) -> Recording:
        """The same, keeping what led to it."""
        outputs: list[Tensor] = []
        hook = self.model.register_forward_hook(lambda module, args, output: outputs.append(output))
        with OperatorRecorder() as recorder:
            alpha = self.matte()
        hook.remove()
        return Recording(alpha, outputs[0], recorder.calls)


def largest_difference(a: Any, b: Any) -> float:
    """Between two tensors, or two tuples of them."""
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return max((x - y).abs().max().item() for x, y in pairs)


def operator_table(reference: list[Any], fused: list[Any], names: tuple[str, str], runs: int, device: torch.device) -> Table:
    """Time each recorded call with both backends, on the arguments that it had in the network."""
    table = Table(
        title="Operators at their shapes in the network, contiguous: milliseconds, median", box=SIMPLE, title_justify="left"
    )
    for header in ("operator", "x"):
        table.add_column(header, no_wrap=True)
    for header in (*names, "speed-up", "diff"):
        table.add_column(header, justify="right", no_wrap=True)
    totals = [0.0, 0.0]
    for (slow, slow_args), (fast, fast_args) in zip(reference, fused, strict=True):
        with torch.inference_mode():
            difference = largest_difference(slow(*slow_args), fast(*slow_args))  # also the warm-up
            times = medians([functools.partial(slow, *slow_args), functools.partial(fast, *slow_args)], runs, device)
        totals = [total + t for total, t in zip(totals, times, strict=True)]
        shape = "x".join(map(str, fast_args[0].shape))
        name = fast.name().removeprefix("pyindexnet::")
        table.add_row(name, shape, *(f"{1e3 * t:.2f}" for t in times), f"{times[0] / times[1]:.1f}x", f"{difference:.1e}")
    table.add_section()
    table.add_row("all", "", *(f"{1e3 * t:.2f}" for t in totals), f"{totals[0] / totals[1]:.1f}x", "")
    return table


def network_table(variants: list[Variant], times: list[float], recorded: list[Recording]) -> Table:
    """Time and accuracy of every variant beside the first one."""
    table = Table(title="Photograph to alpha: seconds, median", box=SIMPLE, title_justify="left")
    table.add_column("operators", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    for header in ("time", "speed-up", "alpha diff", "raw diff"):
        table.add_column(header, justify="right", no_wrap=True)
    for variant, elapsed, run in zip(variants, times, recorded, strict=True):
        table.add_row(
            variant.backend,
            str(variant.layout).removeprefix("torch.").removesuffix("_format"),
            f"{elapsed:.3f}",
            f"{times[0] / elapsed:.2f}x",
            f"{np.abs(run.alpha - recorded[0].alpha).max():.1e}",
            f"{largest_difference(run.output, recorded[0].output):.1e}",
        )
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
    console = Console(width=max(Console().width, 100), soft_wrap=True)
    fused = fused_backend(device)
    image, trimap = data.astronaut(), quantize_trimap(read_picture(TRIMAP).pixels)
    model = pretrained_model(WEIGHTS).to(device)

    height, width = trimap.shape
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console.print(f"pyindexnet {pyindexnet.__version__}, torch {torch.__version__}, {device} ({where}), {platform.platform()}")
    options = ", ".join(f"{name}={value}" for name, value in model.config["options"].items())
    console.print(f"{model.config['name']} ({options}), scikit-image's astronaut, {width} x {height}, float32\n")

    variants = []
    for layout in (torch.contiguous_format, torch.channels_last):
        copied = copy.deepcopy(model).to(memory_format=layout)
        variants += [Variant(backend, layout, copied, image, trimap) for backend in ("reference", fused)]
    recorded = [variant.record() for variant in variants]  # also the warm-up
    times = medians([variant.matte for variant in variants], arguments.runs, device)

    console.print(operator_table(recorded[0].calls, recorded[1].calls, ("reference", fused), 4 * arguments.runs, device))
    console.print(network_table(variants, times, recorded))
    best = min(range(len(variants)), key=lambda k: times[k] if variants[k].backend == fused else float("inf"))
    plain = min(range(len(variants)), key=lambda k: times[k] if variants[k].backend != fused else float("inf"))
    slow, fast = recorded[plain].alpha, recorded[best].alpha
    console.print(f"Photograph to alpha, reference operators: {times[plain]:.3f} s")
    console.print(f"Photograph to alpha, fused operators:     {times[best]:.3f} s, {times[plain] / times[best]:.2f}x")
    console.print(f"Largest difference of the two alphas:     {np.abs(slow - fast).max():.1e}")

    background = cover(to_unit(data.hubble_deep_field()), (height, width))
    alpha, blended = to_integers(fast, 8), to_integers(composite(image, fast, background), 8)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_pictures({arguments.output / "alpha.png": alpha, arguments.output / "composite.png": blended})
    panels = {
        "photograph": image,
        "trimap": trimap,
        f"alpha, reference operators ({times[plain]:.2f} s)": slow,
        f"alpha, fused operators ({times[best]:.2f} s)": fast,
        "composite": blended,
    }
    comparison(panels, f"Weights {WEIGHTS!r}: {PRETRAINED[WEIGHTS]}", arguments.output / "comparison.png")
    console.print(f"\nWrote {', '.join(str(arguments.output / f'{n}.png') for n in ('alpha', 'composite', 'comparison'))}")


if __name__ == "__main__":
    main()
