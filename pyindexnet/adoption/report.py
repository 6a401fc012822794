# SPDX-License-Identifier: Apache-2.0
"""What :func:`pyindexnet.accelerate` did."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from pyindexnet.adoption.fused import FusedModule


@dataclass(frozen=True)
class Entry:
    """One module that has the structure of a known kind.

    Attributes:
        name: its path in the network; ``""`` is the network itself.
        kind: as what it was recognised.
        replaced: whether a fused module stands in its place.
        reason: why it was left; empty where it was replaced.
        error: largest difference from the original on the probe, float64, relative to the largest value; None where left.
    """

    name: str
    kind: str
    replaced: bool
    reason: str = ""
    error: float | None = None

    def __str__(self) -> str:
        name = self.name or "(the module itself)"
        if self.replaced:
            return f"replaced  {name}: {self.kind}, differs by at most {self.error:.1e} on the probe"
        return f"left      {name}: {self.kind}: {self.reason}"


@dataclass
class Report:
    """What was replaced and what was left, and why.

    Attributes:
        module: the network; another object than what was given only where that was itself replaced.
        entries: modules that have the structure of a known kind, in the order of ``named_modules``.
        network: name of the published network whose weights these are, which :func:`pyindexnet.rebuild` builds whole; or None.
    """

    module: nn.Module
    entries: list[Entry] = field(default_factory=list)
    network: str | None = None
    _swaps: list[tuple[nn.Module, str, FusedModule]] = field(default_factory=list, repr=False)

    @property
    def replaced(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.replaced]

    @property
    def left(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.replaced]

    def undo(self) -> nn.Module:
        """Put the originals back, with the parameters as they are now.

        Returns:
            The network as it was given. A second call changes nothing.
        Raises:
            RuntimeError: a fused module was moved or replaced since; nothing is then put back.
        """
        for parent, name, fused in self._swaps:
            if parent._modules.get(name) is not fused:
                raise RuntimeError(f"undo: {name!r} must hold the fused module, got {type(parent._modules.get(name)).__name__}")
        for parent, name, fused in self._swaps:
            parent._modules[name] = fused.original
        self._swaps.clear()
        if isinstance(self.module, FusedModule):
            self.module = self.module.original
        return self.module

    def __str__(self) -> str:
        lines = [str(entry) for entry in self.entries] or ["nothing was recognised"]
        if self.network is not None:
            lines.append(f"The weights are those of the published {self.network}: pyindexnet.rebuild(module) builds it whole.")
        return "\n".join(lines)
