# SPDX-License-Identifier: Apache-2.0
"""The configuration of a training run: a YAML file, every key checked, unknown ones refused."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pyindexnet.matting.data import RECIPES
from pyindexnet.matting.losses import CONVENTIONS
from pyindexnet.models import create_model, model_options

_SHIPPED = resources.files("pyindexnet.configs")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(_Section):
    """The network: name and options of :func:`pyindexnet.models.create_model`, weights to start from."""

    name: str = "indexnet_matting"
    options: dict[str, Any] = {}
    weights: Path | None = None

    @model_validator(mode="after")
    def _known(self) -> Model:
        allowed = model_options(self.name)
        for option in self.options:
            if option not in allowed:
                raise ValueError(f"options must be of {', '.join(allowed)}, got {option!r}")
        return self

    def build(self) -> Any:
        """The freshly initialised network; ``weights`` are not loaded."""
        return create_model(self.name, **self.options)


class Procedural(_Section):
    """Items of :class:`pyindexnet.matting.procedural.ProceduralMatting`; folders and ``share`` as there."""

    source: Literal["procedural"]
    length: int = Field(default=10_000, ge=1)
    foregrounds: Path | None = None
    backgrounds: Path | None = None
    share: float = Field(default=0.5, ge=0, le=1)
    kinds: tuple[str, ...] | None = None
    trimap_radius: tuple[int, int] = (1, 20)


class Composition(_Section):
    """Foregrounds of a data set over photographs: :class:`pyindexnet.matting.data.CompositionDataset`.

    ``foregrounds``: root of the ``layout``; ``length``: items of an epoch, None: one for each foreground.
    """

    source: Literal["composition"]
    foregrounds: Path
    backgrounds: Path
    layout: Literal["adobe", "distinctions_646", "cutouts"] = "cutouts"
    recipe: str = "indexnet"
    length: int | None = Field(default=None, ge=1)
    on_error: Literal["stop", "skip"] = "stop"
    cache_megabytes: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _known(self) -> Composition:
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {self.recipe!r}")
        return self


class Loss(_Section):
    """Weights of the losses on the unknown region; see :mod:`pyindexnet.matting.losses`. At least one must be positive."""

    alpha: float = Field(default=0.0, ge=0)
    composition: float = Field(default=0.0, ge=0)
    laplacian: float = Field(default=0.0, ge=0)
    gradient: float = Field(default=0.0, ge=0)
    multiscale: float = Field(default=0.0, ge=0)
    gradient_penalty: float = Field(default=0.0, ge=0)
    convention: str = "paper"

    @model_validator(mode="after")
    def _positive(self) -> Loss:
        if not self.weights():
            raise ValueError("one of alpha, composition, laplacian, gradient, multiscale must be above 0")
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {self.convention!r}")
        return self

    def weights(self) -> dict[str, float]:
        """Terms with a positive weight."""
        names = ("alpha", "composition", "laplacian", "gradient", "multiscale")
        return {name: getattr(self, name) for name in names if getattr(self, name) > 0}


class Optimizer(_Section):
    """Optimizer. ``encoder_factor`` multiplies the learning rate of the parameters below ``model.encoder``, ``matrix_factor``
    that of the kernels that :class:`~pyindexnet.matting.training.muon.Muon` makes orthogonal. ``momentum``: of sgd and muon.
    """

    name: Literal["adam", "adamw", "muon", "sgd"] = "adam"
    lr: float = Field(default=0.01, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    encoder_factor: float = Field(default=1.0, gt=0)
    matrix_factor: float = Field(default=1.0, gt=0)
    clip_norm: float | None = Field(default=None, gt=0)


class Schedule(_Section):
    """Learning rate over the steps: linear warm-up, then ``kind``; "steps": times ``gamma`` at each milestone."""

    kind: Literal["steps", "cosine", "poly"] = "steps"
    steps: int = Field(gt=0)
    warmup: int = Field(default=0, ge=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(default=0.1, gt=0)
    power: float = Field(default=0.9, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Schedule:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {self.milestones}")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup must be below steps, got {self.warmup}")
        return self


class Validation(_Section):
    """Metrics on the test split of the generator, every so many steps; 0: never."""

    every: int = Field(default=0, ge=0)
    items: int = Field(default=16, ge=1)
    size: int = Field(default=320, ge=32)


class Checkpoints(_Section):
    """A checkpoint every so many steps and at the end; ``keep`` of them stay."""

    every: int = Field(default=1000, ge=1)
    keep: int = Field(default=2, ge=1)


class Log(_Section):
    """Scalars every so many steps to ``log.jsonl``, and to TensorBoard where it is on; ``mattes``: samples shown there."""

    every: int = Field(default=50, ge=1)
    tensorboard: bool = False
    mattes: int = Field(default=4, ge=1)


class TrainingConfig(_Section):
    """All that decides a run.

    ``batch_size`` is that of a step: of all processes and ``accumulate`` micro-batches together. ``freeze_batch_norm``: batch
    norms of the encoder, or all, keep statistics and weights. ``amp``: autocast dtype; float16 scales the loss on CUDA.
    ``export``: dtype of ``weights.safetensors``.
    """

    model: Model = Model()
    data: Procedural | Composition = Field(default=Procedural(source="procedural"), discriminator="source")
    crop: int = Field(default=320, ge=32)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0)
    loss: Loss
    optimizer: Optimizer = Optimizer()
    schedule: Schedule
    freeze_batch_norm: Literal["none", "encoder", "all"] = "none"
    sync_batch_norm: bool = False
    amp: Literal["none", "float16", "bfloat16"] = "none"
    seed: int = Field(default=0, ge=0)
    validation: Validation = Validation()
    checkpoints: Checkpoints = Checkpoints()
    log: Log = Log()
    export: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _whole(self) -> TrainingConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size must be a multiple of accumulate ({self.accumulate}), got {self.batch_size}")
        return self


#: Sections that ``data.source`` names; pydantic puts the name into the path of a problem.
_SOURCES: dict[Any, type[_Section]] = {"procedural": Procedural, "composition": Composition}
#: Keys that may change between a checkpoint and the run that goes on from it.
MAY_CHANGE = ("workers", "checkpoints", "log", "validation", "export")


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | os.PathLike[str], overrides: list[str] | None = None) -> TrainingConfig:
    """Read and check a configuration.

    Args:
        source: a YAML file, or a name of :func:`shipped_configs`.
        overrides: ``key.key=value`` each, values in YAML.
    Raises:
        FileNotFoundError: neither. ValueError: no YAML, an unknown key, or a value that is not allowed; every problem is named.
    """
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(source) in shipped_configs():
        text = (_SHIPPED / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(f"{source}: no such file, nor one of the shipped {', '.join(shipped_configs())}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source}: must be a mapping of keys, got {type(values).__name__}")
    for override in overrides or []:
        _override(values, override)
    return check_config(values, str(source))


def check_config(values: dict[str, Any], label: str = "config") -> TrainingConfig:
    """A configuration from plain values; raises ValueError that names every problem with its key."""
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors()]
        raise ValueError(f"{label}: {'; '.join(problems)}") from None


def _problem(details: Any) -> str:
    loc = details["loc"]
    path = (*loc[:1], *loc[2:]) if loc[:1] == ("data",) and loc[1:2] and loc[1] in _SOURCES else loc
    where = ".".join(str(part) for part in path) or "config"
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(path[-1]), _keys(loc[:-1]), n=1)
        return f"{where} is no known key" + (f" (did you mean {close[0]}?)" if close else "")
    message = details["msg"].removeprefix("Value error, ")
    got = "" if details["type"] in ("missing", "value_error") else f", got {details['input']!r}"
    return f"{where}: {message[:1].lower()}{message[1:]}{got}"


def _keys(path: tuple[Any, ...]) -> list[str]:
    section: Any = TrainingConfig
    for part in path:
        section = _SOURCES.get(part) or section.model_fields[part].annotation
    return list(section.model_fields)


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--set must be KEY=VALUE, got {text!r}")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: {section} holds a value, no keys")
    try:
        values[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise ValueError(f"--set {text}: the value is not YAML: {error}") from error
