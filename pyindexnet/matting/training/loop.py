# SPDX-License-Identifier: Apache-2.0
"""The training loop.

A run is a function of its configuration: the items of a step, the random numbers of a micro-batch (dropout) and the learning
rate depend on the seed and the step's number alone. A checkpoint therefore holds parameters, buffers, the optimizer's and the
loss scaler's state and the step, and a run that goes on from it does, on a CPU, bit for bit what it would have done.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pyindexnet.matting.data.files import READ_ERRORS
from pyindexnet.matting.inference import MEMORY_FORMAT
from pyindexnet.matting.training import checkpoints
from pyindexnet.matting.training.config import MAY_CHANGE, TrainingConfig, check_config
from pyindexnet.matting.training.data import (
    Batch,
    StepSampler,
    make_loader,
    make_source,
    mixed_seed,
    network_input,
    trimap_encoding,
)
from pyindexnet.matting.training.monitor import Monitor
from pyindexnet.matting.training.optimization import freeze_batch_norms, loss_terms, make_optimizer, set_learning_rate
from pyindexnet.matting.training.processes import Processes, join_processes
from pyindexnet.matting.training.validation import sample_mattes, validate
from pyindexnet.models import load_checkpoint, save_checkpoint
from pyindexnet.nn.inplace_abn import InPlaceABN

WEIGHTS_NAME = "weights.safetensors"
_LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        steps: that are done, of all runs in this folder. loss: of the last step; None where there was none left to do.
        weights: file of the trained weights, in the run's folder.
    """

    steps: int
    loss: float | None
    weights: Path


def train(config: TrainingConfig, folder: Path, *, resume: bool = False, device: str = "cpu", quiet: bool = False) -> Result:
    """Train a network, alone or as one of the processes of ``torchrun``; seeds PyTorch's global generator at every step.

    Args:
        config: what to do. folder: of the run: checkpoints, ``log.jsonl``, ``weights.safetensors``; made where it is absent.
        resume: go on from the newest checkpoint in ``folder``; from the beginning where there is none.
        device: "cpu", "cuda" or "cuda:N". quiet: no progress bar.
    Returns:
        The last step and its loss.
    Raises:
        ValueError: another run is in ``folder``, it has checkpoints and ``resume`` is off, they are of another configuration,
            a value of the configuration does not fit the model or the processes, a picture cannot be read, or the loss is not
            finite. OSError: a file.
    """
    with join_processes(device) as processes, _locked(folder, processes):
        state = _prepare_folder(config, folder, resume, processes)
        start = 0 if state is None else state["step"]
        starts = processes.gather(torch.tensor([start], device=processes.device)).flatten().tolist()
        if len(set(starts)) > 1:
            raise ValueError(f"{folder}: must be the same folder for all processes, they go on from steps {starts}")
        trainer = _Trainer(config, processes, state)
        source = make_source(config)
        sampler = StepSampler(
            len(source),
            config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            rank=processes.rank,
            count=processes.count,
            start=start,
            stop=config.schedule.steps,
        )
        loader = make_loader(source, sampler, workers=config.workers, pin=processes.device.type == "cuda")
        opened = Monitor(config, folder, start, quiet=quiet) if processes.first else contextlib.nullcontext()
        loss: float | None = None
        with opened as monitor:
            batches = iter(loader)
            for step in range(start, config.schedule.steps):
                loss = trainer.step(step, batches)
                if monitor is not None:
                    _after_step(trainer, folder, monitor, step + 1, loss)
        if processes.first:
            _export(trainer.model, folder, config)
        return Result(config.schedule.steps, loss, folder / WEIGHTS_NAME)


class _Trainer:
    """Model, optimizer and scaler of one process, and what a step does with them."""

    def __init__(self, config: TrainingConfig, processes: Processes, state: dict[str, Any] | None) -> None:
        self.config, self.processes = config, processes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(config.seed, 0))
            self.model: nn.Module = config.model.build()
        if config.model.weights is not None and state is None:
            load_checkpoint(self.model, config.model.weights)
        if config.sync_batch_norm:
            if processes.device.type != "cuda":
                raise ValueError("train: sync_batch_norm must be false on a CPU, got true")
            self.model = _synchronized(self.model)
        freeze_batch_norms(self.model, config.freeze_batch_norm)
        self.model.to(processes.device, memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
        self.model.train()
        self.encoding = trimap_encoding(self.model)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        scaled = config.amp == "float16" and processes.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=scaled)
        self.learning_rate = config.optimizer.lr
        self.terms: dict[str, float] = {}
        self.last_batch: Batch = {}
        if state is not None:
            self.load(state)
        self.parallel: nn.Module = self.model
        if processes.count > 1:
            self.parallel = DistributedDataParallel(self.model)

    def step(self, step: int, batches: Iterator[Batch]) -> float:
        """One update of the parameters; returns the loss of all processes."""
        config = self.config
        self.learning_rate = set_learning_rate(self.optimizer, config, step)
        self.optimizer.zero_grad(set_to_none=True)
        rows = []
        for micro in range(config.accumulate):
            batch = self._to_device(_next_batch(batches))
            torch.manual_seed(mixed_seed(config.seed, 1, step, micro * self.processes.count + self.processes.rank))
            with self._gradients_shared(last=micro == config.accumulate - 1):
                terms = self._terms(batch)
                total = torch.stack(list(terms.values())).sum()
                self.scaler.scale(total / config.accumulate).backward()
            rows.append(torch.stack([total.detach(), *(t.detach() for t in terms.values())]))
            self.last_batch = batch
        if config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        # micro-batches in the order of one process, so that the mean is the same number for any count of processes
        gathered = self.processes.gather(torch.stack(rows).flatten()).unflatten(1, (config.accumulate, -1))
        means = gathered.transpose(0, 1).flatten(0, 1).double().mean(0).tolist()
        if not math.isfinite(means[0]):
            raise ValueError(f"train: the loss must be finite, got {means[0]} in step {step + 1}; lower optimizer.lr?")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.terms = dict(zip(terms, means[1:], strict=True))
        return means[0]

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        stacked = network_input(batch["image"], batch["trimap"], self.encoding).contiguous(memory_format=MEMORY_FORMAT)
        amp = self.config.amp
        dtype = torch.bfloat16 if amp == "bfloat16" else torch.float16
        with torch.autocast(self.processes.device.type, dtype=dtype, enabled=amp != "none"):
            prediction = self.parallel(stacked)
        return loss_terms(self.config.loss, prediction, batch)

    def _gradients_shared(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Processes exchange gradients once in a step."""
        if isinstance(self.parallel, DistributedDataParallel) and not last:
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _to_device(self, batch: Batch) -> Batch:
        device = self.processes.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "config": self.config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _next_batch(batches: Iterator[Batch]) -> Batch:
    """The next one; the error of a loader's worker says what it says without workers, its traceback is the cause."""
    try:
        return next(batches)
    except READ_ERRORS as error:
        name = re.escape(type(error).__name__)
        own = re.findall(rf"^(?:\w+\.)*{name}: (.*)", str(error), re.MULTILINE) if "DataLoader worker" in str(error) else []
        if not own:
            raise
        raise type(error)(own[-1]) from error


def _synchronized(model: nn.Module) -> nn.Module:
    """The model with batch norms that share their statistics among the processes."""
    for module in model.modules():
        if isinstance(module, InPlaceABN):
            module.sync = True
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@contextlib.contextmanager
def _locked(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of the folder, also after a crash: the lock ends with the first process, its file stays."""
    with contextlib.ExitStack() as stack:
        held = True
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / _LOCK_NAME, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = False
            except OSError as error:  # a file system without locks
                warnings.warn(f"{folder}: cannot be locked against a second run: {error.strerror}", stacklevel=2)
        # from the first to all, so that none waits for one that has ended
        if not processes.gather(torch.tensor([int(held)], device=processes.device)).all():
            raise ValueError(f"train: another process trains in {folder}")
        yield


def _prepare_folder(config: TrainingConfig, folder: Path, resume: bool, processes: Processes) -> dict[str, Any] | None:
    """State of the newest checkpoint to go on from; None for a fresh run."""
    folder.mkdir(parents=True, exist_ok=True)
    found = checkpoints.find_checkpoints(folder)
    if found and not resume:
        raise ValueError(f"{folder}: has checkpoints; go on from them with --resume, or choose another folder")
    if processes.first:
        checkpoints.remove_partial_files(folder)
    if not found:
        return None
    state = checkpoints.load_state(found[-1])
    before = check_config(state["config"], str(found[-1])).model_dump(mode="json", exclude=set(MAY_CHANGE))
    now = config.model_dump(mode="json", exclude=set(MAY_CHANGE))
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        raise ValueError(f"{found[-1]}: is of another configuration: {', '.join(changed)} differ")
    if state["step"] > config.schedule.steps:
        raise ValueError(f"{found[-1]}: is beyond schedule.steps, {config.schedule.steps}")
    return state


def _after_step(trainer: _Trainer, folder: Path, monitor: Monitor, done: int, loss: float) -> None:
    """Log, validate and save after ``done`` steps, as often as the configuration says."""
    config = trainer.config
    monitor.advance(loss)
    last = done == config.schedule.steps
    if done % config.log.every == 0 or last:
        monitor.scalars(done, {"loss": loss, "lr": trainer.learning_rate, **trainer.terms})
    if config.validation.every and (done % config.validation.every == 0 or last):
        monitor.scalars(done, {f"test_{name}": value for name, value in validate(trainer.model, config).items()})
        if config.log.tensorboard:
            monitor.mattes(done, sample_mattes(trainer.model, trainer.last_batch, config.log.mattes))
    if done % config.checkpoints.every == 0 or last:
        checkpoints.save_state(folder, done, trainer.state(), config.checkpoints.keep)


def _export(model: nn.Module, folder: Path, config: TrainingConfig) -> None:
    """Write the weights for inference, with the configuration they were trained with."""
    exported = copy.deepcopy(model).cpu()
    exported.to(getattr(torch, config.export))
    if not all(torch.isfinite(t).all() for t in exported.state_dict().values()):
        raise ValueError(f"train: weights must be finite in {config.export}; set export: float32")
    if hasattr(model, "config"):
        exported.config = model.config
    save_checkpoint(exported, folder / WEIGHTS_NAME, {"training": config.model_dump_json()})
