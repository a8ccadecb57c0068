"""torchvision's models: building them with the weights asked for, and where they can be cut."""

from __future__ import annotations

import contextlib
import difflib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.models.feature_extraction import get_graph_node_names

from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.nets.weights import fill, read_state_dict


def build_model(name: str, weights: str, seed: int | None) -> tuple[Any, dict[str, Any]]:
    """A model in evaluation mode, and the preprocessing that its named weights bring (else an empty one).

    weights: ``none`` (random, drawn with ``seed``, or from torch's generator where it is None), a name that torchvision
    has for this model, or a path.

    Raises:
        ConfigError: no such model, no such weights, weights of another model, or they cannot be downloaded.
    """
    if name not in torchvision.models.list_models():
        near = difflib.get_close_matches(name, torchvision.models.list_models(), n=1)
        raise ConfigError(
            f"torchvision has no model '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""), path="model"
        )
    if weights == "none":
        return _construct(name, seed), {}
    if weights.isidentifier():
        return _named(name, weights)
    state = read_state_dict(Path(weights))
    # The classifier is what a state dict ends with, and its rows are the classes that it was trained on.
    last = list(state.values())[-1]
    model = _construct(name, 0, **({"num_classes": len(last)} if last.ndim else {}))
    fill(model, state, f"{weights}: not the weights of '{name}'")
    return model, {}


def default_layer(model: Any) -> str:
    """``features`` where the model has such a module; else the node that its last module (the classifier) is fed."""
    children = [child for child, _ in model.named_children()]
    if "features" in children:
        return "features"
    nodes = _nodes(model)
    head = next((i for i, node in enumerate(nodes) if node.split(".")[0] == children[-1]), 0)
    if head == 0:
        raise ConfigError(f"the model has no classifier at its end; name a layer, such as {nodes[-1]}", path="layer")
    return nodes[head - 1]


def check_layers(model: Any, layers: Sequence[str]) -> None:
    """Raises ConfigError where a layer is neither a node of the graph nor a module with nodes."""
    nodes = _nodes(model)
    for layer in layers:
        if not any(node == layer or node.startswith(layer + ".") for node in nodes):
            near = difflib.get_close_matches(layer, nodes, n=3) or nodes[-5:]
            raise ConfigError(f"the model has no '{layer}'; there are: …, {', '.join(near)}", path="layer")


def _nodes(model: Any) -> list[str]:
    try:
        return list(get_graph_node_names(model, suppress_diff_warning=True)[1])
    except Exception as error:  # a forward pass that cannot be traced raises nearly anything
        raise ConfigError(
            f"this is not a model of single images that can be traced: {one_line(error)}", path="model"
        ) from error


def _construct(name: str, seed: int | None, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[], enabled=seed is not None), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some models announce changes of their initialisation
        if seed is not None:
            torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def _named(name: str, weights: str) -> tuple[Any, dict[str, Any]]:
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        there = ", ".join(known.__members__) or "none"
        raise ConfigError(f"'{name}' has no weights '{weights}'; there are: {there}", path="weights")
    chosen = known[weights]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            model = torchvision.models.get_model(name, weights=chosen, progress=False).eval()
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"cannot get '{weights}' of '{name}' ({' '.join(str(error).split())}): "
            "give `weights: PATH` of a state dict, or `none`",
            path="weights",
        ) from error
    return model, _preset(name, chosen.transforms())


def _preset(name: str, preset: Any) -> dict[str, Any]:
    try:
        return {
            "resize": _size(preset.resize_size),
            "crop": _size(preset.crop_size),
            "interpolation": preset.interpolation.value,
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
        }
    except AttributeError as error:
        raise ConfigError(f"'{name}' is not a model of single images", path="model") from error


def _size(sides: Sequence[int]) -> int | tuple[int, ...]:
    return sides[0] if len(sides) == 1 else tuple(sides)
