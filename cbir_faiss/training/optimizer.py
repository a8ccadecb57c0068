"""Which parameters are trained, and by what steps."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
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
        self._optimizer = _optimizer(_groups(model, losses, fit), fit)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def train_mode(self) -> None:
        """Frozen modules stay as in evaluation: their batch normalisation goes by what it has learned.

        A module is frozen if all its own parameters are; one without any, such as dropout, goes by its own name.
        """
        # What a module holds comes after it, and is set again by its own parameters.
        for name, module in self._model.named_modules():
            own = [parameter for parameter, _ in module.named_parameters(name, recurse=False)]
            module.train(not all(_is_frozen(one, self._fit.groups) for one in own or [name]))

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


def check_groups(model: Any, fit: Fit) -> None:
    """Raises ConfigError as ``Optimizer`` does, but not for parameters of losses, which take them from the data."""
    of_losses = [group.of for group in fit.groups if _below(group.of, "losses")]
    _members([*_trainable(model.named_parameters()), *of_losses], fit.groups)


def _groups(model: Any, losses: Any, fit: Fit) -> list[dict[str, Any]]:
    """Trained parameters by group, those of no group first; those of frozen groups take no gradient any more."""
    of_losses = ((f"losses.{name}", parameter) for name, parameter in losses.named_parameters())
    named = _trainable([*model.named_parameters(), *of_losses])
    *members, rest = _members(named, fit.groups)
    found = [{"params": [named[name] for name in rest]}] if rest else []
    for group, names in zip(fit.groups, members, strict=True):
        parameters = [named[name] for name in names]
        if group.frozen:
            for parameter in parameters:
                parameter.requires_grad_(False)
        else:
            found.append({"params": parameters, **group.model_dump(include={"lr", "weight_decay"}, exclude_none=True)})
    return found


def _trainable(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def _members(names: Collection[str], groups: Sequence[Group]) -> list[list[str]]:
    """The parameters of each group, and at last those of none.

    Raises:
        ConfigError: a group has none, or all are frozen.
    """
    found: list[list[str]] = [[] for _ in range(len(groups) + 1)]
    for name in names:
        found[_first(name, groups)].append(name)
    for number, group in enumerate(groups):
        if not found[number]:
            raise ConfigError(_nothing(group, names), path=f"fit.groups.{number}.of")
    if all(_is_frozen(name, groups) for name in names):
        raise ConfigError("all parameters are frozen: nothing is left to be trained", path="fit.groups")
    return found


def _first(name: str, groups: Sequence[Group]) -> int:
    """The number of the first group that ``name`` lies below; of none, how many there are."""
    return next((number for number, group in enumerate(groups) if _below(name, group.of)), len(groups))


def _is_frozen(name: str, groups: Sequence[Group]) -> bool:
    number = _first(name, groups)
    return number < len(groups) and groups[number].frozen


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
