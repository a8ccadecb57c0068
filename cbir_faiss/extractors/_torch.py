"""torchvision's models as networks from pixels to pooled vectors: building, running and exporting them.

This module imports torch, so it is itself imported only when a network has to be built.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from cbir_faiss.errors import ConfigError
from cbir_faiss.options import need
from cbir_faiss.preprocess import Preprocess

Pool = Literal["avg", "max", "gem", "flatten"]


class Network(torch.nn.Module):  # type: ignore[misc]
    """Pixels uint8 ``(n, h, w, 3)`` to one float32 ``(n, width)`` per layer: normalise, run once, pool.

    layers: graph nodes (or modules, for their last node) by column name.
    """

    def __init__(self, model: Any, layers: Mapping[str, str], pool: Pool, preprocess: Preprocess) -> None:
        super().__init__()
        self.layers, self.pool, self.preprocess = dict(layers), pool, preprocess
        self.maps = create_feature_extractor(
            model, {node: column for column, node in layers.items()}, suppress_diff_warning=True
        ).eval()
        # Swin Transformers keep channels last in these, every other model has maps (n, c, h, w).
        swin = isinstance(model, torchvision.models.SwinTransformer)
        self.channels_last = {c for c, node in layers.items() if swin and node.split(".")[0] in ("features", "norm")}
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1))

    def forward(self, pixels: Any) -> tuple[Any, ...]:
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        maps = self.maps(x)
        return tuple(self._pooled(column, maps[column]) for column in self.layers)

    def run(self, pixels: NDArray[np.uint8], batch_size: int) -> dict[str, NDArray[Any]]:
        """Columns by name, on the device that the network is on, at most ``batch_size`` images at a time."""
        x = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        device = self.mean.device
        # A GPU does half precision several times as fast; a CPU does not.
        with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            parts = [self(part.to(device)) for part in x.split(batch_size)]
            columns = [torch.cat(column).float().cpu().numpy() for column in zip(*parts, strict=True)]
        return dict(zip(self.layers, columns, strict=True))

    def check(self) -> None:
        """Raises ConfigError where the model does not take images of the size that they are prepared in."""
        height, width = self.preprocess.size
        try:
            self.run(np.zeros((1, height, width, 3), np.uint8), 1)
        except ConfigError:
            raise
        except Exception as error:  # models assert, or their layers fail, each in its own way
            raise ConfigError(f"it does not take images of {height} x {width}: {_line(error)}", path="model") from error

    def _pooled(self, column: str, x: Any) -> Any:
        if not torch.is_tensor(x) or x.ndim not in (2, 3, 4):
            met = tuple(x.shape) if torch.is_tensor(x) else type(x).__name__
            raise ConfigError(f"'{self.layers[column]}' gives {met}, not vectors, tokens or maps", path="layer")
        if column in self.channels_last:
            x = x.permute(0, 3, 1, 2)
        if x.ndim == 2 or self.pool == "flatten":
            return x.flatten(1)
        axes = (2, 3) if x.ndim == 4 else (1,)
        if self.pool == "max":
            return x.amax(axes)
        if self.pool == "gem":
            return x.clamp(min=1e-6).pow(3).mean(axes).pow(1 / 3)
        return x.mean(axes)


def build_model(name: str, weights: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """A model in evaluation mode, and the preprocessing that its named weights bring (else an empty one).

    weights: ``none`` (random, drawn with ``seed``), a name that torchvision has for this model, or a path.

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
        return _named(name, weights, seed)
    state = _read_state(Path(weights))
    # The classifier is what a state dict ends with, and its rows are the classes that it was trained on.
    last = list(state.values())[-1]
    model = _construct(name, seed, **({"num_classes": len(last)} if last.ndim else {}))
    _fill(model, state, f"{weights}: not the weights of '{name}'")
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


def device(name: str) -> Any:
    """Raises ConfigError where this machine or this torch does not have it."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise ConfigError(f"torch sees no {name} device here", path="device")
    return torch.device(name)


def export(network: Network, file: Path) -> None:
    """Write the network as one ONNX file with a free batch size; outputs are called like the columns.

    It carries its preprocessing as metadata, so that using it again needs neither torch nor the weights.
    """
    onnx = need("onnx", "torch")
    network = network.cpu()
    # A batch of two, because the exporter takes a dimension of one for a constant.
    pixels = torch.zeros((2, *network.preprocess.size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (pixels,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=list(network.layers),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    model = program.model_proto
    # What the exporter notes of each node are lines of source code with the paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, model.graph):
        del part.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
    onnx.helper.set_model_props(model, {"preprocess": json.dumps(network.preprocess.model_dump(mode="json"))})
    onnx.save_model(model, file)


def _nodes(model: Any) -> list[str]:
    try:
        return list(get_graph_node_names(model, suppress_diff_warning=True)[1])
    except Exception as error:  # a forward pass that cannot be traced raises nearly anything
        raise ConfigError(
            f"this is not a model of single images that can be traced: {_line(error)}", path="model"
        ) from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _construct(name: str, seed: int, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some models announce changes of their initialisation
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def _named(name: str, weights: str, seed: int) -> tuple[Any, dict[str, Any]]:
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


def _read_state(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"no such file: {file}", path="weights")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle or archive raises nearly anything
        reason = f"not a state dict that can be loaded safely: {_line(error)}"
        raise ConfigError(f"{file}: {reason}", path="weights") from error
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise ConfigError(f"{file}: not a state dict, a mapping of names to tensors", path="weights")
    return state


def _fill(model: Any, state: dict[str, Any], problem: str) -> None:
    """Load ``state``, of any float type, into the float32 ``model``; ConfigError where names or shapes differ."""
    mine = model.state_dict()
    missing, unknown = [key for key in mine if key not in state], [key for key in state if key not in mine]
    if missing or unknown:
        first = f"'{missing[0]}' is not in it" if missing else f"'{unknown[0]}' is not in the model"
        raise ConfigError(f"{problem}: {len(missing)} names missing, {len(unknown)} unknown; {first}", path="weights")
    for key, value in mine.items():
        if value.shape != state[key].shape:
            raise ConfigError(f"{problem}: '{key}' is {(*state[key].shape,)}, not {(*value.shape,)}", path="weights")
    model.load_state_dict(state)
