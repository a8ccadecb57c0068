"""How ``learned`` learns: in torch, one or two layers, the whole sample in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss._lib import threads
from cbir_faiss.base.loss import Batch, Loss, Task
from cbir_faiss.errors import InputError

Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def learn(x: NDArray[np.float32], task: Task, loss: Loss, options: Any) -> Layers:
    """Matrices ``(in, out)`` and biases ``(out,)`` of the layers. x ``(n, dim)`` is centred, of mean square 1.

    Torch's generator and number of threads are the process's: two at once in threads do not repeat.

    Raises:
        InputError: the loss, or what was learned, is not finite any more.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads.available())
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(options.seed)
            layers = _folded(_trained(torch.from_numpy(x), task, loss, options))
    finally:
        torch.set_num_threads(before)
    if not all(np.isfinite(part).all() for layer in layers for part in layer):
        raise _blown_up("what it has learned is not finite", options)
    return layers


def _trained(x: Any, task: Task, loss: Loss, options: Any) -> Any:
    model, module = _model(x.shape[1], options), loss.start(task)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *module.parameters()], options.lr, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / options.steps)
    labels = None if task.labels is None else torch.from_numpy(task.labels)
    size = min(options.batch_size, len(x))
    for step, rows in enumerate(_batches(len(x), size, options.steps)):
        batch = Batch(None if labels is None else labels[rows], x[rows])
        value = loss.options.weight * module({"code": model(x[rows])}, batch)
        if not torch.isfinite(value):
            raise _blown_up(f"the loss is {value.item()} in step {step + 1}", options)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _blown_up(what: str, options: Any) -> InputError:
    return InputError(f"codec 'learned': {what}: lower lr ({options.lr})")


def _batches(n: int, size: int, steps: int) -> Any:
    """Rows of each step: the sample in a new order each time it is through; what is left of it is not used."""
    per_epoch = n // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(n)
        place = step % per_epoch * size
        yield order[place : place + size]


def _model(dim: int, options: Any) -> Any:
    hidden = [nn.Dropout(options.dropout), nn.Linear(dim, options.hidden), nn.ReLU()] if options.hidden else []
    last = nn.Linear(options.hidden or dim, options.bits)
    return nn.Sequential(*hidden, nn.Dropout(options.dropout), last, nn.BatchNorm1d(options.bits))


def _folded(model: Any) -> Layers:
    """Its layers, the last with the normalisation after it."""
    linear, norm = [part for part in model if isinstance(part, nn.Linear)], model[-1]
    layers = [(part.weight.detach().T, part.bias.detach()) for part in linear]
    matrix, bias = layers[-1]
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    layers[-1] = (matrix * scale, (bias - norm.running_mean) * scale + norm.bias.detach())
    return [(matrix.contiguous().numpy(), bias.numpy()) for matrix, bias in layers]
