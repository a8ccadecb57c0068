"""The loop: epochs of batches, validation, the best model kept, and going on after a stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss._lib import threads
from cbir_faiss.base.loss import Batch, Task
from cbir_faiss.config import located
from cbir_faiss.errors import ConfigError, InputError, TrainingFailed
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.nets.model import finish_saving, new_card, save_model
from cbir_faiss.nets.weights import device as device_of
from cbir_faiss.nets.weights import fill, has_bfloat16
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import Failure, Progress
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.training.augment import augment, mixing
from cbir_faiss.training.calibration import best_temperature
from cbir_faiss.training.checkpoint import Epoch, claim, load_state, save_state
from cbir_faiss.training.config import Fit, Small, TrainingConfig
from cbir_faiss.training.curves import CURVES, draw_curves
from cbir_faiss.training.data import Data, load_data
from cbir_faiss.training.optimizer import Average, Optimizer, check_groups
from cbir_faiss.training.validation import retrieval_map

Report = Callable[[Epoch], None]
_FIRST = 1 << 21  # pixels that a network sees before it begins


@dataclass(frozen=True)
class Result:
    """What a training came to. measure: what ``best.score`` is. failed: items that could not be read."""

    best: Epoch
    history: tuple[Epoch, ...]
    measure: str
    parameters: int
    items: int
    failed: tuple[Failure, ...]

    @property
    def seconds_per_epoch(self) -> float:
        """Their median."""
        return float(np.median([epoch.seconds for epoch in self.history]))

    def as_dict(self) -> dict[str, Any]:
        """As ``cbir train --json`` prints it."""
        return {
            "best": {"epoch": self.best.epoch, "score": self.best.score, "measure": self.measure},
            "items": self.items,
            "parameters": self.parameters,
            "epochs": len(self.history),
            "seconds_per_epoch": self.seconds_per_epoch,
            "failed": [failure.as_dict() for failure in self.failed],
        }


def train(
    config: TrainingConfig,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    steps: Progress | None = None,
    report: Report | None = None,
) -> Result:
    """Train into the folder ``out``, from its last state if there is one; what is there already is not done again.

    Everything random depends on ``fit.seed`` and the epoch alone, so that on one machine a run that was stopped and
    went on ends with the very weights of one that was not. ``progress`` is of reading, ``steps`` of each epoch.

    Raises:
        ConfigError: the network, losses and options do not go together, or ``out`` is of another training.
        InputError: labels are missing, of one class only, or there are too few pictures.
        TrainingFailed: the loss is no longer finite; the best model and the last good state stay.
        CbirError: another process is training into ``out``.
    """
    if config.seeds:
        raise ConfigError("several seeds are several trainings: train_seeds", path="seeds")
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(threads.available())
    network = config.network.make()
    preprocess = _check_network(config, network)
    claim(out, config.document)
    with writer_lock(out):
        data = load_data(config, preprocess, cache or default_cache(), progress, out)
        run = _Run(config, network, data, out)
        run.resume()
        while not run.finished:
            epoch = run.epoch(steps)
            if report:
                report(epoch)
        return run.result()


class _Run:
    """A training under way."""

    def __init__(self, config: TrainingConfig, network: Any, data: Data, out: Path) -> None:
        self.fit, self.data, self.out, self._augment = config.fit, data, out, config.augment
        self.device = _device(config.fit)
        losses = [choice.make() for choice in config.losses]
        classes = data.classes if _has_logits(config) else None
        torch.manual_seed(config.fit.seed)
        by_labels = any("labels" in loss.needs for loss in losses)
        self.card, model = new_card(network, config.bits, classes, config.head, by_labels)
        task = Task(model.dim, config.bits, data.classes, data.labels, data.teacher, config.fit.seed)
        modules = nn.ModuleList(loss.start(task) for loss in losses)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.losses = modules.to(self.device)
        self.weights = [loss.options.weight for loss in losses]
        self.times = 2 if any(loss.twice for loss in losses) else 1
        self.trained_on, self.held_out = data.training, data.held_out
        if len(self.trained_on) < config.fit.batch_size:
            raise InputError(f"{len(self.trained_on)} pictures to train on are fewer than one batch")
        self.per_epoch = len(self.trained_on) // config.fit.batch_size
        self.optimizer = Optimizer(self.model, self.losses, self.fit, self.fit.epochs * self.per_epoch)
        self.average = Average(self.model, self.fit.ema) if self.fit.ema else None
        self.half = _half(self.fit, self.device)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (self.card.preprocess.mean, self.card.preprocess.std)
        )
        self.binary = config.bits is not None
        self.ranked = _can_be_ranked(data, by_labels)
        self.history: list[Epoch] = []
        self.waits_from = 0

    @property
    def stored(self) -> Any:
        """The model that is validated and stored."""
        return self.average.model if self.average else self.model

    @property
    def best(self) -> Epoch | None:
        validated = [epoch for epoch in self.history if epoch.score is not None]
        return max(validated, key=lambda epoch: epoch.score or 0.0, default=None)

    @property
    def measure(self) -> str:
        return "map of the held-out pictures" if self.ranked else "-loss of the held-out pictures"

    @property
    def finished(self) -> bool:
        done = len(self.history)
        if done >= self.fit.epochs:
            return True
        waited = done - max(self.best.epoch, self.waits_from) if self.best else 0
        return self.fit.patience is not None and waited >= self.fit.patience * self.fit.validate_every

    def resume(self) -> None:
        """Go on from the last state in the folder, if there is one."""
        finish_saving(self.out)
        found = load_state(self.out)
        if found is None:
            self._begin()
            return
        state, self.history = found
        # States of before this was kept are gone on with as they are.
        raised = state.get("epochs", self.fit.epochs) < self.fit.epochs
        self.waits_from = len(self.history) if raised else state.get("waits_from", 0)
        fill(self.model, state["model"], f"{self.out}: a checkpoint of another network than '{self.card.network}'")
        fill(self.losses, state["losses"], f"{self.out}: begun with other classes than there are now")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            fill(self.average.model, state["average"], f"{self.out}: a checkpoint of another network")

    def _begin(self) -> None:
        """Let a network that asks for it see some of the pictures first."""
        if hasattr(self.model.network, "begin"):
            height, width = self.card.preprocess.size
            some = np.unique(np.linspace(0, len(self.trained_on) - 1, max(2, _FIRST // (height * width))).astype(int))
            with torch.no_grad():
                self.model.network.begin(self._normalised(self._pixels(self.trained_on[some])))
        if self.average:
            self.average.model.load_state_dict(self.model.state_dict())

    def epoch(self, steps: Progress | None) -> Epoch:
        """Train for one epoch, validate where it is due, and store what came of it."""
        number = len(self.history) + 1
        lr = self.optimizer.rate((number - 1) * self.per_epoch)
        began = time.perf_counter()
        loss = self._train(number, steps)
        seconds = time.perf_counter() - began
        score = held_out_loss = None
        if number % self.fit.validate_every == 0 or number == self.fit.epochs:
            score, held_out_loss = self._validate(number)
        done = Epoch(number, loss, lr, seconds, score, held_out_loss)
        better = score is not None and (self.best is None or score > (self.best.score or 0.0))
        self.history.append(done)
        if better:
            save_model(self.card, self.stored, self.out)
        self._save()
        return done

    def result(self) -> Result:
        """What the training came to, and its picture."""
        assert self.best is not None  # the last epoch is always validated
        draw_curves(self.history, self.measure, self.out / CURVES)
        parameters = sum(p.numel() for p in self.model.parameters())
        return Result(self.best, tuple(self.history), self.measure, parameters, len(self.data), self.data.failed)

    def _save(self) -> None:
        parts = {"model": self.model, "losses": self.losses, "optimizer": self.optimizer}
        if self.average:
            parts["average"] = self.average.model
        state = {name: part.state_dict() for name, part in parts.items()}
        save_state(self.out, {**state, "epochs": self.fit.epochs, "waits_from": self.waits_from}, self.history)

    def _train(self, number: int, steps: Progress | None) -> float:
        # Of the epoch alone, so that a run that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed(self.fit.seed * 100_003 + number)
        torch.manual_seed(self.fit.seed * 100_003 + number)
        self.optimizer.train_mode()
        order = self.trained_on[torch.randperm(len(self.trained_on), generator=generator).numpy()]
        total = 0.0
        for step in range(self.per_epoch):
            rows = order[step * self.fit.batch_size : (step + 1) * self.fit.batch_size]
            loss = self._loss(rows, generator, number)
            value = loss.item()
            self._check(value, number, step)
            done = (number - 1) * self.per_epoch + step
            self.optimizer.step(done, loss)
            if self.average:
                self.average.update(self.model, done + 1)
            total += value
            if steps:
                steps(step + 1, self.per_epoch)
        return total / self.per_epoch

    def _loss(self, rows: NDArray[np.int64], generator: torch.Generator, number: int) -> Any:
        """Of one batch of epoch ``number``, altered as the config has it."""
        rows = np.tile(rows, self.times)
        x = augment(self._pixels(rows), self._augment, generator)
        if self.fit.small and number <= round(self.fit.small.share * self.fit.epochs):
            x = _scaled(x, self.fit.small.scale)
        if not self._augment.mixup:
            return self._sum(self._outputs(self.model, x, self.half), rows)
        other, share = mixing(len(rows), self._augment, generator)
        outputs = self._outputs(self.model, share * x + (1 - share) * x[other.to(x.device)], self.half)
        return share * self._sum(outputs, rows) + (1 - share) * self._sum(outputs, rows[other.numpy()])

    def _validate(self, number: int) -> tuple[float, float]:
        """The score and the loss of the held-out pictures, of the model as it is stored and in its full precision."""
        model, labels = self.stored.eval(), self.data.labels
        found: list[dict[str, NDArray[np.float32]]] = []
        losses = []
        with torch.no_grad():
            for rows in _parts(self.held_out, self.fit.batch_size):
                outputs = self._outputs(model, self._pixels(rows), half=False)
                losses.append(self._held_out_loss(model, outputs, rows) * len(rows))
                found.append({name: values.cpu().numpy() for name, values in outputs.items()})
        loss = sum(losses) / len(self.held_out)
        self._check(loss, number, None)
        if self.card.head.calibrate and labels is not None:
            logits = np.concatenate([part["logits"] for part in found])
            model.calibration.fill_(best_temperature(logits, labels[self.held_out]))
        if not self.ranked or labels is None:
            return -loss, loss
        embedding = np.concatenate([part["code" if self.binary else "features"] for part in found])
        return retrieval_map(embedding, labels[self.held_out], self.binary), loss

    def _held_out_loss(self, model: Any, outputs: dict[str, Any], rows: NDArray[np.int64]) -> float:
        """Of pictures as they are; of alterations that are always the same where a loss compares them."""
        if self.times > 1:
            rows = np.tile(rows, self.times)
            generator = torch.Generator().manual_seed(self.fit.seed)
            outputs = self._outputs(model, augment(self._pixels(rows), self._augment, generator), half=False)
        return float(self._sum(outputs, rows).item())

    def _pixels(self, rows: NDArray[np.int64]) -> Any:
        """Pixels from 0 to 1, float32 ``(n, 3, h, w)``, on the device."""
        pixels = torch.from_numpy(self.data.pixels[rows]).to(self.device)
        # The pictures are stored channels last, and so they stay: convolutions are faster on them.
        return pixels.permute(0, 3, 1, 2).float() / 255

    def _normalised(self, x: Any) -> Any:
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _outputs(self, model: Any, x: Any, half: bool) -> dict[str, Any]:
        x = self._normalised(x)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            outputs: dict[str, Any] = model(x)
        return {name: value.float() for name, value in outputs.items()}

    def _sum(self, outputs: dict[str, Any], rows: NDArray[np.int64]) -> Any:
        batch = Batch(self._tensor(self.data.labels, rows), self._tensor(self.data.teacher, rows))
        return sum(weight * loss(outputs, batch) for weight, loss in zip(self.weights, self.losses, strict=True))

    def _tensor(self, values: NDArray[Any] | None, rows: NDArray[np.int64]) -> Any:
        return None if values is None else torch.from_numpy(values[rows]).to(self.device)

    def _check(self, loss: float, number: int, step: int | None) -> None:
        if not math.isfinite(loss):
            where = "held-out pictures" if step is None else f"step {step + 1} of {self.per_epoch}"
            kept = f"the state after epoch {number - 1} is kept" if number > 1 else "nothing was stored"
            raise TrainingFailed(f"epoch {number}, {where}: the loss is {loss}; lower fit.lr ({self.fit.lr}); {kept}")


def _check_network(config: TrainingConfig, network: Any) -> Preprocess:
    """How pictures are prepared. What does not fit the network is refused here, before they are read.

    It is built with its weights, because they say how; how many classes there are does not matter yet.

    Raises:
        ConfigError: the network cannot be, or ``fit`` asks for what it, or this machine, does not have.
    """
    _device(config.fit)
    classes = ("one", "other") if _has_logits(config) else None
    card, model = located(lambda: new_card(network, config.bits, classes, config.head), "network")
    preprocess: Preprocess = card.preprocess
    check_groups(model, config.fit)
    if config.fit.small:
        _check_small(model, preprocess.size, config.fit.small)
    return preprocess


def _has_logits(config: TrainingConfig) -> bool:
    return any("logits" in loss.plugin().needs for loss in config.losses)


def _can_be_ranked(data: Data, by_labels: bool) -> bool:
    """Whether held-out pictures can be searched for: two of a class, and more than one class.

    Raises:
        InputError: it is trained by labels, and they are of one class, among which every ranking is right.
    """
    if data.labels is None:
        return False
    counts = np.bincount(data.labels[data.held_out], minlength=len(data.classes))
    if np.count_nonzero(counts) > 1:
        return bool(counts.max() > 1)
    if by_labels:
        only = data.classes[int(counts.argmax())]
        raise InputError(f"all pictures that are held out are of class '{only}': lower fit.held_out, so that more are")
    return False


def _device(fit: Fit) -> Any:
    chosen = fit.device
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    return located(lambda: device_of(chosen), "fit")


def _half(fit: Fit, device: Any) -> bool:
    """Whether training computes in bfloat16."""
    if fit.precision != "auto":
        return fit.precision == "bfloat16"
    return has_bfloat16(device)


def _scaled(x: Any, scale: float) -> Any:
    """Pictures ``(n, 3, h, w)`` of ``scale`` times their sides."""
    size = [max(1, round(scale * side)) for side in x.shape[2:]]
    return nn.functional.interpolate(x, size, mode="bilinear", antialias=True)


def _check_small(model: Any, size: tuple[int, int], small: Small) -> None:
    """Raises ConfigError where the network takes pictures of its own size alone, or none so small."""
    pictures = _scaled(torch.zeros(1, 3, *size), small.scale)
    try:
        with torch.no_grad():
            model.eval()(pictures)
    except Exception as error:  # models assert, or their layers fail, each in its own way
        what = "{} x {}".format(*pictures.shape[2:])
        raise ConfigError(f"the network takes no pictures of {what}: leave this out", path="fit.small") from error


def _parts(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Parts of at least two rows, because losses over pairs need as many."""
    count = max(1, len(rows) // size)
    yield from np.array_split(rows, count)
