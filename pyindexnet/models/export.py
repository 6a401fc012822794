# SPDX-License-Identifier: Apache-2.0
"""Networks as files for other programs: ONNX, exported programs, ahead-of-time compiled packages."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyindexnet.ops._common import inlined_reference

#: Suffix of each format's file.
FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
#: What the ONNX export needs.
ONNX_PACKAGES = ("onnx", "onnxscript")
OPSET = 18


def export_model(
    model: nn.Module, path: str | os.PathLike[str], format: str, example: Tensor, *, dynamic: bool = False, multiple: int = 1
) -> None:
    """Write a network to a file that runs without its Python code. A file of that name is replaced at once or not at all.

    ``onnx``: standard operators alone (our operators in their reference form), for ONNX Runtime and others; input ``image``,
    output ``alpha``. ``torch-export``: a program for ``torch.export.load``; ``aoti``: a package of compiled code for
    ``torch._inductor.aoti_load_package``. These two keep the fused operators: the process that loads them must ``import
    pyindexnet`` first.

    Args:
        model: (N, C, H, W) -> (N, 1, H, W), in evaluation mode.
        path: ends in the suffix of the format, see FORMATS.
        format: one of FORMATS.
        example: an input; its size is that of the file's, unless ``dynamic``.
        dynamic: the file takes any height and width that are multiples of ``multiple``.
        multiple: see ``dynamic``.
    Raises:
        ValueError: an argument that is not allowed, or ``model`` in training mode.
        ModuleNotFoundError: the packages of the extra ``export`` are missing.
        OSError: the file cannot be written, or there is no C++ compiler for ``aoti``.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"export_model: format must be one of {', '.join(FORMATS)}, got {format!r}")
    if path.suffix != FORMATS[format]:
        raise ValueError(f"export_model: path must end in {FORMATS[format]} for {format}, got {str(path)!r}")
    if model.training:
        raise ValueError("export_model: model must be in evaluation mode, call model.eval()")
    if example.dim() != 4 or any(side % multiple for side in example.shape[2:]):
        raise ValueError(
            f"export_model: example must be (N, C, H, W), H and W multiples of {multiple}, got {tuple(example.shape)}"
        )
    if dynamic and min(example.shape[2:]) < 2 * multiple:  # the exporter would take a size of one multiple for a constant
        raise ValueError(f"export_model: example must be at least {2 * multiple} x {2 * multiple} where dynamic")
    if format == "onnx":
        require_onnx()
    with _whole_file(path) as partial, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        _WRITERS[format](model, partial, example, _shapes(example, dynamic, multiple))


def require_onnx() -> None:
    """Raise ModuleNotFoundError, with the command that helps, where a package of the ONNX export is missing."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"onnx export needs {' and '.join(missing)}; install the extra: pip install 'pyindexnet[export]'", name=missing[0]
        )


def _shapes(example: Tensor, dynamic: bool, multiple: int) -> tuple[dict[int, Any]] | None:
    if not dynamic:
        return None
    height, width = (torch.export.Dim(name, min=2, max=2**16 // multiple) for name in ("rows", "columns"))
    return ({2: multiple * height, 3: multiple * width} if multiple > 1 else {2: height, 3: width},)


def _program(model: nn.Module, example: Tensor, shapes: Any) -> torch.export.ExportedProgram:
    return torch.export.export(model, (example,), dynamic_shapes=shapes)


def _write_onnx(model: nn.Module, path: Path, example: Tensor, shapes: Any) -> None:
    with inlined_reference():
        program = _program(model, example, shapes)
    # it warns of every optional package that has operators and is not there
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    torch.onnx.export(
        program,
        (example,),
        str(path),
        input_names=["image"],
        output_names=["alpha"],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _write_program(model: nn.Module, path: Path, example: Tensor, shapes: Any) -> None:
    torch.export.save(_program(model, example, shapes), path)


def _write_package(model: nn.Module, path: Path, example: Tensor, shapes: Any) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise OSError("export_model: aoti needs a C++ compiler, and none was found") from error
    aoti_compile_and_package(_program(model, example, shapes), package_path=str(path))


_WRITERS: dict[str, Callable[[nn.Module, Path, Tensor, Any], None]] = {
    "onnx": _write_onnx,
    "torch-export": _write_program,
    "aoti": _write_package,
}


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, with its suffix; it takes its place at the end, or leaves nothing."""
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the output folder does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
    try:
        partial = scratch / path.name
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(scratch)
