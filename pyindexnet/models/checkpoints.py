# SPDX-License-Identifier: Apache-2.0
"""Reading and writing weights, in our own keys or in those of the published models.

A model file whose network was published registers a key map: for each of its keys the published one, or those of the columns
that became one convolution (:class:`Columns`).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyindexnet._files import write_files
from pyindexnet.models.registry import create_model

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
WRAPPERS = ("state_dict", "model_state_dict", "model")
TORCH_SUFFIXES = (".pt", ".pth", ".tar")
METADATA_KEY = "pyindexnet"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class UnknownModelError(CheckpointError):
    """A checkpoint does not tell which model it is of."""


class Merges(Protocol):
    """What a module with merged columns offers, see :class:`pyindexnet.nn.DepthwiseIndexNetwork`."""

    def merge(self, columns: Sequence[Tensor]) -> Tensor: ...

    def split(self, merged: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Columns:
    """Published keys of parameters that are merged into one of ours."""

    keys: tuple[str, ...]
    module: Merges

    def merge(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0] if tensors[0].dim() == 0 else self.module.merge(tensors)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,) * len(self.keys) if tensor.dim() == 0 else self.module.split(tensor)


@dataclass(frozen=True)
class Stack:
    """Columns that stand one behind the other in the first dimension, see :class:`Columns`."""

    count: int

    def merge(self, columns: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(columns))

    def split(self, merged: Tensor) -> tuple[Tensor, ...]:
        return merged.chunk(self.count)


@dataclass(frozen=True, eq=False)
class Permutation:
    """One column whose entries are in another order, see :class:`Columns`: entry i of ours is entry ``order[i]`` of theirs."""

    order: Tensor
    dim: int

    def merge(self, columns: Sequence[Tensor]) -> Tensor:
        return columns[0].index_select(self.dim, self.order.to(columns[0].device))

    def split(self, merged: Tensor) -> tuple[Tensor, ...]:
        return (merged.index_select(self.dim, self.order.argsort().to(merged.device)),)


KeyMap = dict[str, "str | Columns"]
Options = dict[str, Any]
_KEY_MAPS: dict[type[nn.Module], Callable[[Any], KeyMap]] = {}
_PUBLISHED_OPTIONS: dict[str, Callable[[Mapping[str, Tensor]], Options | None]] = {}


def register_key_map(model: type[nn.Module]) -> Callable[[Callable[[Any], KeyMap]], Callable[[Any], KeyMap]]:
    """Register the decorated function, model -> key map, for models of this class."""

    def register(key_map: Callable[[Any], KeyMap]) -> Callable[[Any], KeyMap]:
        _KEY_MAPS[model] = key_map
        return key_map

    return register


def register_published_options(
    name: str,
) -> Callable[[Callable[..., Options | None]], Callable[..., Options | None]]:
    """Register the decorated function for the model ``name``: published state dict -> its options, None if another's."""

    def register(infer: Callable[..., Options | None]) -> Callable[..., Options | None]:
        _PUBLISHED_OPTIONS[name] = infer
        return infer

    return register


def batch_norm_keys(ours: str, published: str) -> KeyMap:
    """Keys of one batch norm."""
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{ours}.{leaf}": f"{published}.{leaf}" for leaf in leaves}


def conv_unit_keys(published: str, *units: str, first: int = 0, bias: bool = False, step: int = 3) -> KeyMap:
    """Keys of :class:`~pyindexnet.nn.conv.ConvBNAct` modules that stand in one published ``nn.Sequential``.

    Args:
        published: path of the sequential, whose members are (convolution, batch norm, activation), repeated.
        *units: our paths, in order.
        first: index of the first convolution.
        bias: whether the convolutions have one.
        step: members of a unit; 2 where one module is batch norm and activation.
    """
    keys: KeyMap = {}
    for i, unit in enumerate(units):
        at = first + step * i
        for leaf in ("weight", "bias")[: 1 + bias]:
            keys[f"{unit}.conv.{leaf}"] = f"{published}.{at}.{leaf}"
        keys |= batch_norm_keys(f"{unit}.bn", f"{published}.{at + 1}")
    return keys


def split_columns(keys: KeyMap, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our keys (a state dict, or gradients) as tensors by the published keys."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = keys[key]
        out |= {name: tensor} if isinstance(name, str) else dict(zip(name.keys, name.split(tensor), strict=True))
    return out


def merge_columns(keys: KeyMap, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`split_columns`."""
    return {
        key: state[name] if isinstance(name, str) else name.merge([state[k] for k in name.keys]) for key, name in keys.items()
    }


def published_key_map(model: nn.Module) -> KeyMap | None:
    """Key map of the model's class; None where no network with its parameters was published."""
    for base in type(model).__mro__:
        if base in _KEY_MAPS:
            keys = _KEY_MAPS[base](model)
            return keys if keys.keys() == model.state_dict().keys() else None
    return None


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
    label = _label(source)
    state, _ = _state_dict(source)
    own = model.state_dict()
    empty = next((k for k, t in state.items() if t.is_meta), None)
    if empty is not None and not any(t.is_meta for t in own.values()):
        raise CheckpointError(f"{label}: {empty} must hold values, got a meta tensor")
    keys: KeyMap = {key: key for key in own}
    published = published_key_map(model)
    if published is not None and len(_names(published) & state.keys()) > len(own.keys() & state.keys()):
        keys = published
    expected = split_columns(keys, own)

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

    model.load_state_dict(merge_columns(keys, {k: state.get(k, t) for k, t in expected.items()}))


def model_from_checkpoint(source: str | os.PathLike[str] | Mapping[str, Any]) -> nn.Module:
    """Build the model that a checkpoint is of, with its options, and load it.

    Args:
        source: as for :func:`load_checkpoint`: a file that :func:`save_checkpoint` wrote from a model of
            :func:`~pyindexnet.models.create_model`, or published weights, whose options show in their keys and shapes.
    Returns:
        The model, in training mode.
    Raises:
        UnknownModelError: the source does not tell its model. CheckpointError: it cannot be read, or does not fit.
    """
    state, metadata = _state_dict(source)
    if METADATA_KEY in metadata:
        try:
            config = json.loads(metadata[METADATA_KEY])
            model = create_model(config["name"], **config["options"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{_label(source)}: names a model that cannot be built: {error}") from error
        load_checkpoint(model, state)
        return model
    published = published_network(state)
    if published is not None:
        name, options = published
        model = create_model(name, **options)
        load_checkpoint(model, state)
        return model
    raise UnknownModelError(f"{_label(source)}: does not tell which model it is of; use create_model and load_checkpoint")


def published_network(state: Mapping[str, Any]) -> tuple[str, Options] | None:
    """Name and options of the model whose published weights these are, by their keys and shapes; None where no model's.

    Args:
        state: a state dict; wrappers and prefixes are taken off as in :func:`load_checkpoint`.
    """
    tensors = _flatten(_label(state), state) if state else {}
    for name, infer in _PUBLISHED_OPTIONS.items():
        options = infer(tensors)
        if options is not None:
            return name, options
    return None


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
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
        metadata[METADATA_KEY] = json.dumps(model.config)
    tensors = {k: t.detach().cpu().contiguous() for k, t in model.state_dict().items()}
    write_files({path: safetensors.torch.save(tensors, metadata)})


def _names(keys: KeyMap) -> set[str]:
    return {k for name in keys.values() for k in ((name,) if isinstance(name, str) else name.keys)}


def _label(source: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    return "state dict" if isinstance(source, Mapping) else os.fspath(source)


def _state_dict(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by key, without wrappers and prefixes, and the strings kept with them."""
    state, metadata = (source, {}) if isinstance(source, Mapping) else _read(Path(source))
    return _flatten(_label(source), state), metadata


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if path.suffix in TORCH_SUFFIXES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a pickle that is no checkpoint: the exception says it
                return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise CheckpointError(f"{path}: holds pickled code ({code[1]}), which is never run") from error
        raise CheckpointError(f"{path}: cannot be read: not a file of tensors") from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {_first_line(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # the decoder of a broken pickle raises KeyError, IndexError, struct.error, ...
        raise CheckpointError(f"{path}: cannot be read: not a file of tensors") from error
    raise CheckpointError(f"{path}: name must end in .safetensors, {', '.join(TORCH_SUFFIXES)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _flatten(label: str, state: Any) -> dict[str, Tensor]:
    """The tensors, without wrappers and prefixes."""
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{label}: holds no state dict")
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{label}: keys must be strings, got {key!r}")
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantised" if tensor.is_quantized else str(tensor.layout)
            raise CheckpointError(f"{label}: {key} must be a dense tensor, got a {kind} one")
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
