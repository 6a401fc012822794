# SPDX-License-Identifier: Apache-2.0
"""Compiles what a Triton launcher launches, for a GPU that this machine need not have."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

_POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as its launcher asked for it."""

    kernel: JITFunction
    args: dict[str, Any]
    options: dict[str, Any]


def launches(launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """What ``launcher(*args)`` launches. Tensors may be on the meta device: nothing runs."""
    seen = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in list(kwargs) if k not in kernel.arg_names}
        seen.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options))

    with mock.patch.object(JITFunction, "run", record):
        launcher(*args)
    return seen


def _specialize(value: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    """Triton's type of an argument, and what its just-in-time compiler knows of it: None, 1, and multiples of 16."""
    if isinstance(value, tuple):
        types = [_specialize(v, (*path, i), constants, attributes) for i, v in enumerate(value)]
        return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]  # PyTorch's allocator aligns to more
        return _POINTERS[value.dtype]
    if type(value) is int and value != 1:
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    constants[path] = value
    return "constexpr"


def compile_launch(launch: Launch, capability: int) -> CompiledKernel:
    """The kernel as the just-in-time compiler would specialise it, for compute capability 80, 90 or 100."""
    signature, constants, attributes = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(launch.kernel.arg_names, launch.kernel.params, strict=True)):
        value = launch.args[name]
        if parameter.is_constexpr:
            constants[(index,)] = value
            signature[name] = "constexpr"
        else:
            signature[name] = _specialize(value, (index,), constants, attributes)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes per thread, by the machine code; ``local_bytes`` holds what does not fit into registers."""

    registers: int
    local_bytes: int
    shared_bytes: int


def resources(compiled: CompiledKernel) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # One function: "REG:32 STACK:0 SHARED:0 LOCAL:0 ..."; spilled registers lie in STACK.
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], found["SHARED"])
