"""A network with the heads that its losses asked for: making, storing and loading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cbir_faiss._lib.files import sha256_of, sync
from cbir_faiss.base.registry import make
from cbir_faiss.errors import CbirError, ConfigError, CorruptCollection, one_line
from cbir_faiss.nets.card import CARD, READY, WEIGHTS, Card, Head, read_card, write_card
from cbir_faiss.nets.contract import Network
from cbir_faiss.nets.weights import fill, read_state_dict


class Model(nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to ``features`` ``(n, dim)`` and, where there are such heads, ``code``
    ``(n, bits)`` and ``logits`` ``(n, classes)``."""

    def __init__(
        self, network: Any, size: tuple[int, int], bits: int | None, classes: int | None, head: Head | None = None
    ) -> None:
        super().__init__()
        head = head or Head()
        self.network = network
        self.dim = _width(network, size)
        self.code = _code(self.dim, bits, head) if bits else None
        self.logits = _logits(self.dim, classes, head) if classes else None
        if classes and head.calibrate:
            self.register_buffer("calibration", torch.ones(()))

    def forward(self, x: Any) -> dict[str, Any]:
        features = self.network(x)
        outputs = {"features": features}
        if self.code is not None:
            outputs["code"] = self.code(features)
        if self.logits is not None:
            outputs["logits"] = self.logits(features)
        return outputs

    def probabilities(self, logits: Any) -> Any:
        """Of the classes, ``(n, classes)``."""
        return torch.softmax(logits / self.calibration if hasattr(self, "calibration") else logits, 1)


class Cosine(nn.Module):  # type: ignore[misc]
    """Cosines of features ``(n, dim)`` to a weight of each class, over a temperature."""

    def __init__(self, dim: int, classes: int, temperature: float) -> None:
        super().__init__()
        # Of length one: where they are long, an optimizer whose steps do not depend on it turns them slowly.
        self.weight, self.temperature = nn.Parameter(torch.randn(classes, dim) / dim**0.5), temperature

    def forward(self, features: Any) -> Any:
        normalize = nn.functional.normalize
        return normalize(features) @ normalize(self.weight).T / self.temperature


def _code(dim: int, bits: int, head: Head) -> Any:
    linear = nn.Linear(dim, bits)
    return nn.Sequential(linear, nn.BatchNorm1d(bits)) if head.norm else linear


def _logits(dim: int, classes: int, head: Head) -> Any:
    return nn.Linear(dim, classes) if head.temperature is None else Cosine(dim, classes, head.temperature)


class Columns(nn.Module):  # type: ignore[misc]
    """A model's outputs as an extractor's columns: ``embeddings``, outputs by column, and ``probs`` of its classes.

    Raises:
        ConfigError: the model has no such output.
    """

    def __init__(self, model: Model, embeddings: Mapping[str, str]) -> None:
        super().__init__()
        if "code" in embeddings.values() and model.code is None:
            raise ConfigError("this network was trained without a code: output features", path="output")
        self.model, self.embeddings = model, dict(embeddings)

    def forward(self, x: Any) -> dict[str, Any]:
        outputs = self.model(x)
        columns = {column: outputs[output] for column, output in self.embeddings.items()}
        if "logits" in outputs:
            columns["probs"] = self.model.probabilities(outputs["logits"])
        return columns


def make_model(card: Card) -> Model:
    """The model with random weights, in training mode."""
    # Without the weights that brought it, the network does not know for what images it was made.
    options = {**card.options, "preprocess": card.preprocess.model_dump(mode="json")}
    module, _ = make("networks", card.network, **options).build(pretrained=False)
    return Model(module, card.preprocess.size, card.bits, len(card.classes) if card.classes else None, card.head)


def new_card(
    network: Network,
    bits: int | None,
    classes: tuple[str, ...] | None,
    head: Head | None = None,
    supervised: bool = False,
) -> tuple[Card, Model]:
    """A model to be trained, its pretrained weights (if any) in it; what is random is drawn from torch's generator."""
    module, preprocess = network.build()
    head = head or Head()
    card = Card(network.name, network.options.model_dump(mode="json"), preprocess, bits, classes, head, supervised)
    return card, Model(module, preprocess.size, bits, len(classes) if classes else None, head)


def save_model(card: Card, model: Model, folder: Path) -> None:
    """Write the weights and the card with their digest; a folder in which the two do not fit is never loaded.

    The card lies ready before the weights are exchanged, so that ``finish_saving`` ends what a kill cut short.
    """
    aside = folder / f"{WEIGHTS}.writing"
    torch.save(model.state_dict(), aside)
    write_card(card, sha256_of(aside), folder, READY)
    sync(aside)
    aside.replace(folder / WEIGHTS)
    finish_saving(folder)


def finish_saving(folder: Path) -> None:
    """Put the card that lies ready into its place, if its weights are there; else they are still those before it."""
    if (folder / READY).is_file():
        if (folder / WEIGHTS).is_file() and read_card(folder, READY)[1] == sha256_of(folder / WEIGHTS):
            (folder / READY).replace(folder / CARD)
        else:
            (folder / READY).unlink()
        sync(folder)


def load_model(folder: Path) -> tuple[Card, Model]:
    """The model that ``save_model`` wrote, in evaluation mode. Loads tensors only, never pickled objects.

    Raises:
        ConfigError: nothing there, or weights of another network.
        CorruptCollection: the weights are not those that were written with the card.
    """
    card, digest = read_card(folder)
    state = read_state_dict(folder / WEIGHTS)
    model = make_model(card)
    fill(model, state, f"{folder / WEIGHTS}: a checkpoint of another network than '{card.network}'")
    if sha256_of(folder / WEIGHTS) != digest:
        raise CorruptCollection(
            f"{folder / WEIGHTS}: altered: its content does not have the digest written with it; "
            "where a training was stopped, the same command goes on and mends it"
        )
    return card, model.eval()


def _width(network: Any, size: tuple[int, int]) -> int:
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            found = network(torch.zeros(1, 3, *size))
    except CbirError:
        raise
    except Exception as error:  # layers fail each in its own way
        raise ConfigError(
            f"images of {size[0]} x {size[1]} are too small for the network: {one_line(error)}", path="preprocess"
        ) from error
    finally:
        network.train(training)
    return int(found.shape[1])
