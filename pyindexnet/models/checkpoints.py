# SPDX-License-Identifier: Apache-2.0
"""Reading and writing weights, in our own keys or in those of the published models.

A model file whose network was published registers a key map: for each of its keys the published one, or the four of the
columns that became one convolution (:class:`Columns`).
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
WRAPPERS = ("state_dict", "model_state_dict", "model")
TORCH_SUFFIXES = (".pt", ".pth", ".tar")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class Merges(Protocol):
    """What a module with merged columns offers, see :class:`pyindexnet.nn.DepthwiseIndexNetwork`."""

    def merge(self, columns: list[Tensor]) -> Tensor: ...

    def split(self, merged: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Columns:
    """Published keys of parameters that are merged into one of ours."""

    keys: tuple[str, ...]
    module: Any  # Merges

    def merge(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0] if tensors[0].dim() == 0 else self.module.merge(tensors)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,) * len(self.keys) if tensor.dim() == 0 else self.module.split(tensor)


KeyMap = dict[str, "str | Columns"]
_KEY_MAPS: dict[type[nn.Module], Callable[[Any], KeyMap]] = {}


def register_key_map(model: type[nn.Module]) -> Callable[[Callable[[Any], KeyMap]], Callable[[Any], KeyMap]]:
    """Register the decorated function, model -> key map, for models of this class."""

    def register(key_map: Callable[[Any], KeyMap]) -> Callable[[Any], KeyMap]:
        _KEY_MAPS[model] = key_map
        return key_map

    return register


def conv_unit_keys(published: str, *units: str, first: int = 0) -> KeyMap:
    """Keys of :class:`~pyindexnet.nn.conv.ConvBNAct` modules that stand in one published ``nn.Sequential``.

    Args:
        published: path of the sequential, whose members are (convolution, batch norm, activation), repeated.
        *units: our paths, in order.
        first: index of the first convolution.
    """
    keys: KeyMap = {}
    for i, unit in enumerate(units):
        at = first + 3 * i
        keys[f"{unit}.conv.weight"] = f"{published}.{at}.weight"
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            keys[f"{unit}.bn.{leaf}"] = f"{published}.{at + 1}.{leaf}"
    return keys


def to_published(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our keys (a state dict, or gradients) as tensors by the published keys.

    Raises:
        CheckpointError: the model, or one of its parameters, was never published.
    """
    keys = _published_keys(model)
    if keys is None or any(key not in keys for key in tensors):
        raise CheckpointError(f"{type(model).__name__}: no published network has these parameters")
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = keys[key]
        out |= (
            {name: tensor} if isinstance(name, str) else dict(zip(name.keys, name.split(tensor), strict=True))
        )
    return out


def load_checkpoint(model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Any]) -> None:
    """Load weights into a model.

    Args:
        model: a model of this package, or any module for its own keys.
        source: a path (.safetensors; .pt, .pth or .tar, read with ``weights_only=True`` alone), or a state dict. The keys are
            ours or those of the published model; a prefix such as ``module.`` and an outer ``{"state_dict": ...}`` are taken
            off. ``num_batches_tracked`` may be absent. Floating tensors are converted to the dtype of the model.
    Raises:
        CheckpointError: the source cannot be read, holds pickled code, or does not fit: the message names the keys. The model
            is then unchanged.
    """
    label = "state dict" if isinstance(source, Mapping) else os.fspath(source)
    state = _flatten(label, source if isinstance(source, Mapping) else _read(Path(source)))
    own = model.state_dict()
    keys = _published_keys(model) or {}
    wanted = _names(keys.values())
    if len(wanted & state.keys()) > len(own.keys() & state.keys()):
        expected = to_published(model, own)
    else:
        keys, expected = {key: key for key in own}, own

    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    misshaped = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(t.shape)}"
        for k, t in expected.items()
        if k in state and state[k].shape != t.shape
    ]
    problems = [
        _listing(what, found)
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if found
    ]
    if problems:
        raise CheckpointError(f"{label}: does not fit {type(model).__name__}: {'; '.join(problems)}")

    state = {k: state.get(k, t) for k, t in expected.items()}
    merged = {
        key: state[name] if isinstance(name, str) else name.merge([state[k] for k in name.keys])
        for key, name in keys.items()
        if key in own
    }
    model.load_state_dict(merged)


def save_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the model's weights, in our keys, to a .safetensors file; a file of that name is replaced at once or not at all.

    Args:
        model: any module.
        path: ends in ``.safetensors``.
        metadata: strings to keep in the file. Name and options of a model made by ``create_model`` are added as JSON under
            ``"pyindexnet"``.
    Raises:
        ValueError: another suffix. OSError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_checkpoint: path must end in .safetensors, got {str(path)!r}")
    metadata = dict(metadata or {})
    if hasattr(model, "config"):
        metadata["pyindexnet"] = json.dumps(model.config)
    tensors = {k: t.detach().cpu().contiguous() for k, t in model.state_dict().items()}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _published_keys(model: nn.Module) -> KeyMap | None:
    for base in type(model).__mro__:
        if base in _KEY_MAPS:
            return _KEY_MAPS[base](model)
    return None


def _names(published: Iterable[str | Columns]) -> set[str]:
    return {k for name in published for k in ((name,) if isinstance(name, str) else name.keys)}


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in TORCH_SUFFIXES:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds something other than tensors (pickled code, which is never run) or is damaged: "
            + str(error).strip().splitlines()[0]
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error).strip().splitlines()[0]}") from error
    raise CheckpointError(f"{path}: name must end in .safetensors, {', '.join(TORCH_SUFFIXES)}")


def _flatten(label: str, state: Any) -> dict[str, Tensor]:
    """The tensors, without wrappers and prefixes."""
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{label}: holds no state dict")
    state = dict(state)
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(k.startswith(prefix) for k in state):
                state = {k[len(prefix) :]: v for k, v in state.items()}
                stripped = True
    return state


def _listing(what: str, keys: list[str], most: int = 8) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what} {', '.join(keys[:most])}{more}"
