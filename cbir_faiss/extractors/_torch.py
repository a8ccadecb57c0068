"""Networks in torch from pixels to columns: running and exporting them.

This module imports torch, so it is itself imported only when a network has to be built.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.images.preprocess import Preprocess

_OUTPUT = "column.{}"  # what outputs are called while they are exported


class Network(torch.nn.Module):  # type: ignore[misc]
    """Pixels uint8 ``(n, h, w, 3)`` to one float32 ``(n, width)`` per column: normalise, and run ``model``.

    model: gives a mapping that has the ``columns`` for normalised images ``(n, 3, h, w)``. mirrored: columns are the
    mean of an image's and its mirror image's.
    """

    mirrored = False

    def __init__(self, model: Any, columns: Sequence[str], preprocess: Preprocess) -> None:
        super().__init__()
        self.model, self.columns, self.preprocess = model.eval(), tuple(columns), preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1))

    def forward(self, pixels: Any) -> tuple[Any, ...]:
        x = self._normalised(pixels)
        found = self.model(x)
        if not self.mirrored:
            return tuple(found[column] for column in self.columns)
        other = self.model(x.flip(3))
        return tuple((found[column] + other[column]) / 2 for column in self.columns)

    def _normalised(self, pixels: Any) -> Any:
        """float32 ``(n, 3, h, w)``."""
        width = pixels.shape[2]
        # Whole rows of pixels at a time: in int8, loops over three channels alone take as long as half of the layers.
        mean, std = (each.view(-1).repeat(width) for each in (self.mean, self.std))
        rows = (pixels.flatten(2).float() / 255 - mean) / std
        return rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)

    def run(self, pixels: NDArray[np.uint8], batch_size: int, dtype: Any = None) -> dict[str, NDArray[Any]]:
        """Columns by name, on the device that the network is on, at most ``batch_size`` images at a time.

        dtype: of torch, what is computed in; where left out, what the device is fast at."""
        x = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        device = self.mean.device
        # A GPU does half precision several times as fast; a CPU does not.
        dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        half = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
        with torch.inference_mode(), half:
            parts = [self(part.to(device)) for part in x.split(batch_size)]
            columns = [torch.cat(column).float().cpu().numpy() for column in zip(*parts, strict=True)]
        return dict(zip(self.columns, columns, strict=True))

    def check(self) -> None:
        """Raises ConfigError where the model does not take images of the size that they are prepared in."""
        height, width = self.preprocess.size
        try:
            self.run(np.zeros((1, height, width, 3), np.uint8), 1)
        except ConfigError:
            raise
        except Exception as error:  # models assert, or their layers fail, each in its own way
            what = f"it does not take images of {height} x {width}: {one_line(error)}"
            raise ConfigError(what, path="model") from error


class TextTower(torch.nn.Module):  # type: ignore[misc]
    """Token ids and their mask, int64 ``(n, length)``, to embeddings of length 1, float32 ``(n, width)``.

    model: takes both and gives embeddings of any length.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, ids: Any, mask: Any) -> Any:
        return torch.nn.functional.normalize(self.model(ids, mask).float(), dim=-1)

    def run(self, tokens: Sequence[tuple[list[int], list[int]]]) -> NDArray[Any]:
        """Embeddings of the ids and masks of texts, one after the other."""
        with torch.inference_mode():
            return np.concatenate([self(*(torch.tensor([part]) for part in one)).numpy() for one in tokens])


def export(network: Network, file: Path) -> None:
    """Write the network as one ONNX file with a free batch size; outputs are called like the columns.

    It carries its preprocessing as metadata, so that using it again needs neither torch nor the weights.

    Raises:
        ConfigError: the exporter cannot do it, in one line.
    """
    # A batch of two, because the exporter takes a dimension of one for a constant.
    pixels = torch.zeros((2, *network.preprocess.size, 3), dtype=torch.uint8)
    free = {0: torch.export.Dim("batch", min=1)}
    facts = {"preprocess": json.dumps(network.preprocess.model_dump(mode="json"))}
    _write(network.cpu(), {"pixels": pixels}, network.columns, free, facts, file)


def export_text(tower: TextTower, tokenizer: str, length: int | None, file: Path) -> None:
    """Write the tower as one ONNX file for one text at a time, its tokenizer as metadata.

    length: the number of tokens that it takes; None: as many as the text has. ConfigError as ``export``.
    """
    tokens = torch.ones((1, length or 8), dtype=torch.int64)
    free = {} if length else {1: torch.export.Dim("length", min=2)}
    _write(tower, {"ids": tokens, "mask": tokens.clone()}, ["embedding"], free, {"tokenizer": tokenizer}, file)


def _write(
    module: Any,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    free: Mapping[int, Any],
    facts: Mapping[str, str],
    file: Path,
) -> None:
    """``module`` as an ONNX file; ``free`` are the dimensions of each input that are left open, ``facts`` metadata."""
    onnx = need("onnx", "torch")
    need("onnxscript", "torch")
    try:
        model = _program(module, inputs, len(outputs), free).model_proto
        _name_outputs(model.graph, outputs)
        # What the exporter notes of each node are lines of source code with the paths of this machine.
        for part in (*model.graph.node, *model.graph.value_info, model.graph):
            del part.metadata_props[:]
        for node in model.graph.node:
            node.doc_string = ""
        onnx.helper.set_model_props(model, dict(facts))
        onnx.save_model(model, file)
    except OSError:
        raise
    except Exception as error:  # the exporter passes on what any of its steps raises; a file has at most 2 GB
        why = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)[:300]
        raise ConfigError(f"the network cannot be exported to ONNX: {why}", path="runtime") from error


def _program(module: Any, inputs: Mapping[str, Any], count: int, free: Mapping[int, Any]) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=[_OUTPUT.format(number) for number in range(count)],
            dynamic_shapes=tuple(dict(free) for _ in inputs),
        )


def _name_outputs(graph: Any, outputs: Sequence[str]) -> None:
    """The exporter calls values inside by their operations, which may be the name of an output: "embedding"."""
    renamed = {name: f"{name}.inner" for name in outputs}
    renamed |= {_OUTPUT.format(number): name for number, name in enumerate(outputs)}
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
