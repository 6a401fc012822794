# SPDX-License-Identifier: Apache-2.0
"""Is a fused module the same function? Both run on copies, in float64, with random weights, in both modes.

Structure only suggests what a module computes; this decides. Outputs, gradients of inputs and parameters, and the buffers after
a step in training mode must agree to rounding. Random weights keep a layer that was initialised with zeros from hiding a
difference. The user's modules, random state and gradients are not touched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyindexnet.testing.parity import error, tolerance

Inputs = Sequence[Tensor]
Build = Callable[[nn.Module], nn.Module]
SEED = 0
#: Of the random inputs: large enough to reach the corners of ReLU6.
SCALE = 3.0


class ProbeError(ValueError):
    """A module cannot be probed, or is another function than what should replace it.

    Attributes:
        distance: largest difference, relative to the largest value; infinite where no values could be compared.
    """

    def __init__(self, reason: str, distance: float = math.inf) -> None:
        super().__init__(reason)
        self.distance = distance


class NotThisKind(Exception):
    """What a module returns shows that its structure resembled a kind by chance."""


@dataclass(frozen=True)
class Result:
    """What one call gave: outputs by place, gradients and buffers by name.

    Attributes:
        container: type of what was returned.
        terms: values that one of them can be a sum of, for the tolerance.
    """

    tensors: dict[str, Tensor]
    terms: int
    container: type


class Probe:
    """Runs a module's copies.

    Args:
        module: what may be replaced.
    Raises:
        ProbeError: it cannot be copied into float64.
    """

    def __init__(self, module: nn.Module) -> None:
        self.device = next((t.device for t in module.parameters()), torch.device("cpu"))
        try:
            self._template = copy.deepcopy(module).double().requires_grad_(True)
        except (RuntimeError, TypeError, NotImplementedError) as failure:
            raise ProbeError(f"cannot be copied in float64: {_line(failure)}") from failure
        self._randomise()

    def random(self, *shape: int) -> Tensor:
        """An input."""
        generator = torch.Generator().manual_seed(SEED + sum(shape))
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul(SCALE).to(self.device)

    def call(self, inputs: Inputs, build: Build | None = None) -> Any:
        """Output in evaluation mode, of the original or of what ``build`` makes of it.

        Raises:
            ProbeError: it does not take these inputs.
        """
        module = self._copy(training=False)
        with _sandbox(self.device), torch.no_grad():
            try:
                return (module if build is None else build(module))(*inputs)
            except Exception as failure:  # whatever a user's forward raises
                raise ProbeError(f"does not take {_shapes(inputs)}: {_line(failure)}") from failure

    def verify(self, build: Build, cases: Sequence[Inputs]) -> float:
        """Compare with ``build(copy)`` on all cases that the original takes, in both modes.

        Returns:
            The largest difference, relative to the largest value of its tensor.
        Raises:
            ProbeError: they differ, or the original takes none of the cases.
        """
        worst, reason, ran = 0.0, "", False
        for training in (False, True):
            for inputs in cases:
                try:
                    gold = self._run(self._copy(training), inputs)
                except Exception as failure:
                    reason = f"does not take {_shapes(inputs)}: {_line(failure)}"
                    continue
                ran = True
                try:
                    value = self._run(build(self._copy(training)), inputs)
                except (RuntimeError, ValueError, TypeError) as failure:
                    raise ProbeError(f"the fused module does not take {_shapes(inputs)}: {_line(failure)}") from failure
                worst = max(worst, self._compare(gold, value, f"{_shapes(inputs)}, {'training' if training else 'evaluation'}"))
        if not ran:
            raise ProbeError(reason)
        return worst

    def _compare(self, gold: Result, value: Result, where: str) -> float:
        if gold.container is not value.container or gold.tensors.keys() != value.tensors.keys():
            raise ProbeError(f"{where}: its outputs have another form")
        worst = 0.0
        for name, tensor in gold.tensors.items():
            # of its like: a gradient that cancels to zero, as before a batch norm, has rounding for values
            scale = max(_largest(t) for other, t in gold.tensors.items() if other.split()[0] == name.split()[0])
            if tensor.shape != value.tensors[name].shape:
                raise ProbeError(f"{where}: its {name} is {tuple(tensor.shape)}, fused {tuple(value.tensors[name].shape)}")
            difference = error(value.tensors[name], tensor.cpu())
            if not difference <= tolerance(torch.tensor(scale), 0.0, gold.terms, torch.float64):
                raise ProbeError(
                    f"{where}: its {name} differs by {difference:.1e} where values reach {scale:.1e}",
                    difference / scale if scale else math.inf,
                )
            worst = max(worst, difference / scale if scale else 0.0)
        return worst

    def _copy(self, training: bool) -> nn.Module:
        return copy.deepcopy(self._template).train(training)

    def _run(self, module: nn.Module, inputs: Inputs) -> Result:
        with _sandbox(self.device):
            leaves = [t.detach().clone().requires_grad_() for t in inputs]
            returned = module(*leaves)
            outputs = [returned] if isinstance(returned, Tensor) else list(returned)
            tensors = {f"output {i}": y for i, y in enumerate(outputs)}
            names, parameters = zip(*module.named_parameters(), strict=True)
            wanted = [*leaves, *parameters]
            total = sum(((y * self.random(*y.shape)).sum() for y in outputs), torch.zeros((), device=self.device))
            grads = torch.autograd.grad(total, wanted, allow_unused=True)
        labels = [*(f"gradient of input {i}" for i in range(len(leaves))), *(f"gradient of {name}" for name in names)]
        for label, leaf, grad in zip(labels, wanted, grads, strict=True):
            tensors[label] = torch.zeros_like(leaf) if grad is None else grad
        tensors |= {f"buffer {name}": b.double() for name, b in module.named_buffers()}
        terms = sum(t.numel() for t in wanted)
        return Result({k: t.detach() for k, t in tensors.items()}, terms, type(returned))

    @torch.no_grad()
    def _randomise(self) -> None:
        generator = torch.Generator().manual_seed(SEED)

        def uniform(t: Tensor, low: float) -> None:
            t.copy_(torch.rand(t.shape, generator=generator, dtype=torch.float64) + low)

        for parameter in self._template.parameters():
            if parameter.dim() > 1:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            else:
                uniform(parameter, 0.5)
        for name, buffer in self._template.named_buffers():
            if buffer.is_floating_point():
                uniform(buffer, 0.5 if name.endswith("running_var") else 0.0)


@contextmanager
def _sandbox(device: torch.device) -> Iterator[None]:
    """Random state of its own, the same for every run; gradients on, whatever the caller has set."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.enable_grad():
        torch.default_generator.manual_seed(SEED)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(SEED)
        yield


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def _shapes(inputs: Inputs) -> str:
    return " and ".join(str(tuple(t.shape)) for t in inputs)


def _line(failure: BaseException) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
