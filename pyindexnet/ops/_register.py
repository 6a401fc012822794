# SPDX-License-Identifier: Apache-2.0
"""Registration of an operator from its formulas: what is the same whatever an operator computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import like, like_logits, memory_format
from ._common import Definition, check_same, check_tensor, register_family

Sizes = tuple[tuple[Any, ...], ...]


def check_image(op: str, name: str, x: Tensor) -> None:
    check_tensor(op, name, x, ("N", "C", "H", "W"))
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{op}: {name} must have C, H and W of at least 1, got {tuple(x.shape)}")


def check_grad(op: str, name: str, grad: Tensor, x: Tensor, size: tuple[Any, ...]) -> None:
    check_tensor(op, name, grad, ("N", "C", "H", "W") if len(size) == 4 else tuple(map(str, size)))
    if tuple(grad.shape) != size:
        raise ValueError(f"{op}: {name} must be {size}, got {tuple(grad.shape)}")
    check_same(op, name, grad, x)


def empty_image(x: Tensor, size: Sequence[Any]) -> Tensor:
    """An output: dtype and device of ``x``; the memory format too where it is an image, else contiguous."""
    layout = memory_format(x) if len(size) == 4 else torch.contiguous_format
    return torch.empty(tuple(size), dtype=x.dtype, device=x.device, memory_format=layout)


def register_operator(
    op: str,
    *,
    tensors: Sequence[str],
    options: str,
    sizes: Callable[..., Sizes],
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    backward_reference: Callable[..., tuple[Any, ...]],
    double_backward_reference: Callable[..., tuple[Any, ...]],
    grads: Sequence[str] = ("grad",),
    forward_options: str = "",
    backward_sizes: Callable[..., Sizes] | None = None,
) -> None:
    """Register ``pyindexnet::OP`` and ``pyindexnet::OP_backward`` in every backend.

    The forward's arguments are tensors, options, forward options; the backward's are grads, tensors, options and, for each
    tensor, whether its gradient is needed (an empty tensor stands for one that is not).

    Args:
        op: name.
        tensors: names of the tensors, all of them differentiable; ``name?`` may be None, and its gradient is then empty. The
            first, an image (N, C, H, W), gives outputs and its own gradient their memory format; the gradients of the others
            take the strides of theirs.
        options: schema of the arguments that forward and backward take.
        sizes: shapes of the outputs; checks the forward's arguments, ``sizes(name, *arguments)``.
        reference: the forward in plain PyTorch.
        backward_reference: the closed form of the gradients, ``backward_reference(*grads, *tensors, *options)``.
        double_backward_reference: gradients of grads and tensors for cotangents of the tensors' gradients,
            ``double_backward_reference(*cotangents, *grads, *tensors, *options)``.
        grads: names of the gradients of the outputs.
        forward_options: schema of the arguments that the forward alone takes.
        backward_sizes: checks the backward's tensors and options, ``backward_sizes(name, *grads, *tensors, *options)``, and
            returns what shapes the gradients of the outputs must have; None: ``sizes`` does, which needs no forward options.
    """
    backward, count, outputs = f"{op}_backward", len(tensors), len(grads)

    def check_forward(*args: Any) -> None:
        sizes(op, *args)

    def check_backward(*args: Any) -> None:
        args = args[:-count]
        given, x = args[:outputs], args[outputs]
        wanted = backward_sizes(backward, *args) if backward_sizes else sizes(backward, *args[outputs:])
        for name, grad, size in zip(grads, given, wanted, strict=True):
            check_grad(backward, name, grad, x, size)

    def one_or_all(values: Sequence[Tensor]) -> Any:
        return values[0] if outputs == 1 else tuple(values)

    def fake(x: Tensor, *args: Any) -> Any:
        return one_or_all([empty_image(x, size) for size in sizes(op, x, *args)])

    def fake_backward(*args: Any) -> tuple[Tensor, ...]:
        (x, *others), (need_x, *need) = args[outputs : outputs + count], args[-count:]
        rest = (torch.empty_like(t) if n and t is not None else x.new_empty(0) for t, n in zip(others, need, strict=True))
        return empty_image(x, x.shape) if need_x else x.new_empty(0), *rest

    def run_reference(x: Tensor, *args: Any) -> Any:
        values = reference(x, *args)
        return one_or_all([empty_image(x, y.shape).copy_(y) for y in ((values,) if isinstance(values, Tensor) else values)])

    def run_backward_reference(*args: Any) -> tuple[Tensor, ...]:
        (x, *others), (need_x, *need) = args[outputs : outputs + count], args[-count:]
        grad_x, *found = backward_reference(*args[:-count])
        rest = (
            like_logits(g, t) if n and t is not None else x.new_empty(0) for g, t, n in zip(found, others, need, strict=True)
        )
        return like(grad_x, x) if need_x else x.new_empty(0), *rest

    shared = len(options.split(","))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, ctx.arguments = inputs[count : count + shared], len(inputs)
        ctx.save_for_backward(*inputs[:count])

    def run_backward(call: Any, ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        need = ctx.needs_input_grad[:count]
        found = call(backward, *given, *ctx.saved_tensors, *ctx.options, *need)
        return *(g if n else None for g, n in zip(found, need, strict=True)), *(None for _ in range(ctx.arguments - count))

    def setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.need = inputs[outputs + count : -count], inputs[-count:]
        ctx.save_for_backward(*inputs[: outputs + count])

    def double_backward(call: Any, ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        used = (
            None if t is None else c if n else torch.zeros_like(t)
            for c, n, t in zip(cotangents, ctx.need, saved[outputs:], strict=True)
        )
        found = double_backward_reference(*used, *saved, *ctx.options)
        cast = (None if t is None else g.to(t.dtype) for g, t in zip(found, saved, strict=True))
        return *cast, *(None for _ in ctx.options), *(None for _ in ctx.need)

    arguments = ", ".join(f"Tensor? {name[:-1]}" if name.endswith("?") else f"Tensor {name}" for name in tensors)
    given = ", ".join(f"Tensor {name}" for name in grads)
    needs = ", ".join(f"bool need_{name.rstrip('?')}" for name in tensors)
    more = f", {forward_options}" if forward_options else ""

    def returns(n: int) -> str:
        return "Tensor" if n == 1 else f"({', '.join(['Tensor'] * n)})"

    register_family(
        op,
        Definition(
            op,
            f"({arguments}, {options}{more}) -> {returns(outputs)}",
            check_forward,
            fake,
            run_reference,
            setup_context,
            run_backward,
        ),
        Definition(
            backward,
            f"({given}, {arguments}, {options}, {needs}) -> {returns(count)}",
            check_backward,
            fake_backward,
            run_backward_reference,
            setup_context_backward,
            double_backward,
        ),
    )
