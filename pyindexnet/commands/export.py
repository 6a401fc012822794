# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet export``."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pyindexnet import _console


class Format(str, Enum):
    """What is written."""

    onnx = "onnx"
    torch_export = "torch-export"
    aoti = "aoti"


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Network, by name.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=".onnx, or .pt2 for the other formats.", show_default=False)
    ],
    format: Annotated[
        Format,
        typer.Option(
            help="onnx: standard operators, for ONNX Runtime. torch-export: for torch.export.load. aoti: compiled code, for"
            " torch._inductor.aoti_load_package. The last two keep the fused operators and need pyindexnet where they run."
        ),
    ] = Format.onnx,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the network; repeatable.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE|NAME", help="Checkpoint, or weights of the package. Without it: untrained weights."),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Of the input that the file takes.")] = "512x512",
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Any width and height that are multiples of what the network takes.")
    ] = False,
) -> None:
    """Write a network to a file that runs without its Python code: ONNX, an exported program, or compiled code.

    The input is (1, channels, height, width) float32, the output the alpha, (1, 1, height, width), neither clipped nor with the
    known pixels put in.
    """
    with _console.input_errors():
        import torch

        from pyindexnet.matting.inference import ENCODED_CHANNELS, SIZE_RULE
        from pyindexnet.models.export import export_model

        width, height = _parse_size(size)
        # by name and options, so that the file is of the network that was asked for
        network = _console.load_model(model, _console.parse_options(option or []), weights)
        multiple, extra = getattr(network, "size_rule", SIZE_RULE)
        if extra or width % multiple or height % multiple:
            raise ValueError(f"--size must be multiples of {multiple} for {model}, got {size}")
        channels = ENCODED_CHANNELS[getattr(network, "trimap_encoding", "level")]
        example = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
        try:
            export_model(network, output, format.value, example, dynamic=dynamic, multiple=multiple)
        except ModuleNotFoundError as error:
            _console.fail(error)
    sides = f"multiples of {multiple}" if dynamic else f"{width} x {height}"
    typer.echo(f"{output}: {model}, {format.value}, {sides}")
    if weights is None:
        _console.print_warnings(["no --weights: the network is untrained (random weights, seed 0)"])


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if match is None or "0" in (match[1], match[2]):
        raise ValueError(f"--size must be WIDTHxHEIGHT, got {text!r}")
    return int(match[1]), int(match[2])
