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
from cbir_faiss.config import located
from cbir_faiss.errors import InputError, TrainingFailed
from cbir_faiss.nets.model import new_card, save_model
from cbir_faiss.nets.weights import device as device_of
from cbir_faiss.nets.weights import fill
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import Failure, Progress
from cbir_faiss.training.augment import augment
from cbir_faiss.training.checkpoint import Epoch, claim, load_state, save_state
from cbir_faiss.training.config import Fit, TrainingConfig
from cbir_faiss.training.contract import Batch, Task
from cbir_faiss.training.curves import CURVES, draw_curves
from cbir_faiss.training.data import Data, load_data
from cbir_faiss.training.validation import retrieval_map

Report = Callable[[Epoch], None]


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
    """
    torch.manual_seed(config.fit.seed)
    torch.set_num_threads(threads.available())
    network = config.network.make()
    # Fails before the pictures are read; with the weights, because they say how pictures are prepared.
    _, preprocess = located(network.build, "network")
    claim(out, config.document)
    data = load_data(config, preprocess, cache or default_cache(), progress)
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
        classes = data.classes if any("logits" in loss.needs for loss in losses) else None
        torch.manual_seed(config.fit.seed)
        self.card, model = new_card(network, config.bits, classes)
        task = Task(model.dim, config.bits, data.classes, data.labels, data.teacher, config.fit.seed)
        modules = nn.ModuleList(loss.start(task) for loss in losses)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.losses = modules.to(self.device)
        self.weights = [loss.options.weight for loss in losses]
        self.trained_on, self.held_out = data.training, data.held_out
        if len(self.trained_on) < config.fit.batch_size:
            raise InputError(f"{len(self.trained_on)} pictures to train on are fewer than one batch")
        self.per_epoch = len(self.trained_on) // config.fit.batch_size
        self.optimizer, self.schedule = _optimizer(
            [*self.model.parameters(), *self.losses.parameters()], config.fit, self.per_epoch
        )
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (self.card.preprocess.mean, self.card.preprocess.std)
        )
        self.binary = config.bits is not None
        # Without two held-out pictures of one class there is nothing to be found.
        self.ranked = data.labels is not None and np.bincount(data.labels[data.held_out]).max() > 1
        self.history: list[Epoch] = []

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
        waited = done - self.best.epoch if self.best else 0
        return self.fit.patience is not None and waited >= self.fit.patience * self.fit.validate_every

    def resume(self) -> None:
        """Go on from the last state in the folder, if there is one."""
        found = load_state(self.out)
        if found is None:
            return
        state, self.history = found
        fill(self.model, state["model"], f"{self.out}: a checkpoint of another network than '{self.card.network}'")
        fill(self.losses, state["losses"], f"{self.out}: begun with other classes than there are now")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def epoch(self, steps: Progress | None) -> Epoch:
        """Train for one epoch, validate where it is due, and store what came of it."""
        number = len(self.history) + 1
        lr = float(self.optimizer.param_groups[0]["lr"])
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
            save_model(self.card, self.model, self.out)
        self._save()
        return done

    def result(self) -> Result:
        """What the training came to, and its picture."""
        assert self.best is not None  # the last epoch is always validated
        draw_curves(self.history, self.measure, self.out / CURVES)
        parameters = sum(p.numel() for p in self.model.parameters())
        return Result(self.best, tuple(self.history), self.measure, parameters, len(self.data), self.data.failed)

    def _save(self) -> None:
        parts = {"model": self.model, "losses": self.losses, "optimizer": self.optimizer, "schedule": self.schedule}
        save_state(self.out, {name: part.state_dict() for name, part in parts.items()}, self.history)

    def _train(self, number: int, steps: Progress | None) -> float:
        # Of the epoch alone, so that a run that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed(self.fit.seed * 100_003 + number)
        torch.manual_seed(self.fit.seed * 100_003 + number)
        self.model.train()
        order = self.trained_on[torch.randperm(len(self.trained_on), generator=generator).numpy()]
        total = 0.0
        for step in range(self.per_epoch):
            rows = order[step * self.fit.batch_size : (step + 1) * self.fit.batch_size]
            loss = self._sum(self._outputs(augment(self._pixels(rows), self._augment, generator)), rows)
            value = loss.item()
            self._check(value, number, step)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += value
            if steps:
                steps(step + 1, self.per_epoch)
        return total / self.per_epoch

    def _validate(self, number: int) -> tuple[float, float]:
        """The score and the loss of the held-out pictures."""
        self.model.eval()
        embeddings, losses = [], []
        with torch.no_grad():
            for rows in _parts(self.held_out, self.fit.batch_size):
                outputs = self._outputs(self._pixels(rows))
                losses.append(self._sum(outputs, rows).item() * len(rows))
                embeddings.append(outputs["code" if self.binary else "features"].cpu().numpy())
        loss = sum(losses) / len(self.held_out)
        self._check(loss, number, None)
        if not self.ranked or self.data.labels is None:
            return -loss, loss
        return retrieval_map(np.concatenate(embeddings), self.data.labels[self.held_out], self.binary), loss

    def _pixels(self, rows: NDArray[np.int64]) -> Any:
        """Pixels from 0 to 1, float32 ``(n, 3, h, w)``, on the device."""
        pixels = torch.from_numpy(self.data.pixels[rows]).to(self.device)
        # The pictures are stored channels last, and so they stay: convolutions are faster on them.
        return pixels.permute(0, 3, 1, 2).float() / 255

    def _outputs(self, x: Any) -> dict[str, Any]:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            outputs: dict[str, Any] = self.model(x)
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


def _device(fit: Fit) -> Any:
    chosen = fit.device
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    return located(lambda: device_of(chosen), "fit")


def _optimizer(parameters: list[Any], fit: Fit, per_epoch: int) -> tuple[Any, Any]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if fit.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(trained, fit.lr, momentum=0.9, weight_decay=fit.weight_decay)
    else:
        kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
        # One pass over the memory of all parameters instead of several over that of each.
        optimizer = kind(trained, fit.lr, weight_decay=fit.weight_decay, fused=True)
    steps, how = fit.epochs * per_epoch, fit.schedule
    rising = how.warmup * steps

    def factor(step: int) -> float:
        if how.name == "constant":
            return 1.0
        if how.name == "step":
            return float(how.factor ** (step // how.steps))
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _parts(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Parts of at least two rows, because losses over pairs need as many."""
    count = max(1, len(rows) // size)
    yield from np.array_split(rows, count)
