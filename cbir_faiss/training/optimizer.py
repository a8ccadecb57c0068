"""Which parameters are trained, and by what steps."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cbir_faiss.errors import ConfigError
from cbir_faiss.training.config import Fit, Group


class Optimizer:
    """Brings losses down by the parameters of ``model`` and ``losses``, in groups, along the schedule of ``fit``.

    Raises:
        ConfigError: a group of no parameter, or nothing is left to be trained.
    """

    def __init__(self, model: Any, losses: Any, fit: Fit, total: int) -> None:
        self._model, self._fit, self._total = model, fit, total
        self._frozen = [group.of for group in fit.groups if group.frozen]
        self._optimizer = _optimizer(_groups(model, losses, fit), fit)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def train_mode(self) -> None:
        """Frozen parts stay as in evaluation: their batch normalisation goes by what it has learned."""
        self._model.train()
        for name, module in self._model.named_modules():
            if any(_below(name, of) for of in self._frozen):
                module.eval()

    def rate(self, step: int) -> float:
        """The learning rate of what is in no group, at a step of the whole training."""
        return self._fit.lr * self._fit.schedule.share(step, self._total)

    def step(self, number: int, loss: Any) -> None:
        """Step ``number`` of the whole training, down ``loss``."""
        share = self._fit.schedule.share(number, self._total)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


def _groups(model: Any, losses: Any, fit: Fit) -> list[dict[str, Any]]:
    """Trained parameters by group, those of no group first; those of frozen groups take no gradient any more."""
    named = {**dict(model.named_parameters()), **{f"losses.{name}": p for name, p in losses.named_parameters()}}
    left = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    found: list[dict[str, Any]] = []
    for number, group in enumerate(fit.groups):
        mine = [name for name in left if _below(name, group.of)]
        if not mine:
            raise ConfigError(_nothing(group, named), path=f"fit.groups.{number}.of")
        parameters = [left.pop(name) for name in mine]
        if group.frozen:
            for parameter in parameters:
                parameter.requires_grad_(False)
        else:
            found.append({"params": parameters, **group.model_dump(include={"lr", "weight_decay"}, exclude_none=True)})
    rest = [{"params": list(left.values())}] if left else []
    if not rest + found:
        raise ConfigError("all parameters are frozen: nothing is left to be trained", path="fit.groups")
    return rest + found


def _nothing(group: Group, named: Iterable[str]) -> str:
    depth = group.of.count(".") + 1
    near = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in named))
    return f"no parameter that is still left is called '{group.of}' or lies below it; there are: {', '.join(near[:12])}"


def _below(name: str, of: str) -> bool:
    return name == of or name.startswith(f"{of}.")


def _optimizer(groups: list[dict[str, Any]], fit: Fit) -> Any:
    if fit.optimizer == "sgd":
        how = {"momentum": fit.momentum, "nesterov": fit.nesterov}
        return torch.optim.SGD(groups, fit.lr, weight_decay=fit.weight_decay, **how)
    kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
    # One pass over the memory of all parameters instead of several over that of each.
    return kind(groups, fit.lr, weight_decay=fit.weight_decay, fused=True)


class Average:
    """The running mean of a model's weights, which is often better than the weights themselves.

    Of the first steps it forgets faster: after t of them it keeps no more than (1 + t) / (10 + t).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self._decay = copy.deepcopy(model).eval(), decay

    def update(self, model: nn.Module, step: int) -> None:
        """After ``step`` steps of ``model``."""
        kept = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mine, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(new, 1 - kept)
                else:
                    mine.copy_(new)
