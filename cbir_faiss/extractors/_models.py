"""An extractor whose network comes from a library of models, by name, with weights by name or path."""

from __future__ import annotations

import difflib
import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from cbir_faiss.base.options import name_or_path, need, parse_options, resolve_path
from cbir_faiss.errors import ConfigError, MissingDependency, one_line
from cbir_faiss.extractors._network import NetworkExtractor, NetworkOptions
from cbir_faiss.images.preprocess import Override, Preprocess

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import Network

_PATH = (".", "/", "~")
_HUB = "hf-hub:"


def _model_or_path(value: str, info: ValidationInfo) -> str:
    """A name as it is, slashes and all; what begins like a path is one, relative to the folder of the config."""
    return str(resolve_path(value, info).absolute()) if value.startswith(_PATH) else value


ModelOrPath = Annotated[str, AfterValidator(_model_or_path)]
"""A model's name, or, where it begins with ``.``, ``/`` or ``~``, the path of a folder that holds one."""


class ModelOptions(NetworkOptions):
    """What models of every library can be told, beside ``NetworkOptions``."""

    model: str
    weights: Annotated[str, AfterValidator(name_or_path)] = "DEFAULT"
    layer: str | tuple[str, ...] | None = None
    pool: Literal["avg", "max", "gem", "flatten"] = "avg"
    preprocess: Override = Field(default_factory=Override)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _goes_together(self) -> ModelOptions:
        if isinstance(self.layer, tuple) and len(set(self.layer)) != max(1, len(self.layer)):
            raise ValueError("layer must name at least one layer, and none twice")
        return self


class ModelExtractor(NetworkExtractor):
    """One layer (or the whole network) is the column ``embedding``; several are columns by the names of the layers."""

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    options: ModelOptions
    library: ClassVar[str]
    """The distribution whose release fixes what names of models and weights stand for; also what it is imported as."""
    extra: ClassVar[str]
    hub_file: ClassVar[str] = "config.json"
    """What every model of the library has at the hub."""
    # Paths, and names of weights, count by their digest.
    free_options: ClassVar[frozenset[str]] = NetworkExtractor.free_options | {"weights"}

    @property
    def embeddings(self) -> tuple[str, ...]:
        return self._layers if len(self._layers) > 1 else ("embedding",)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.embeddings

    @property
    def _layers(self) -> tuple[str, ...]:
        """The layers that were asked for; none: what the network is for."""
        layer = self.options.layer
        return (layer,) if isinstance(layer, str) else layer or ()

    @property
    def _has_preset(self) -> bool:
        """Whether the network or its weights, once they are there, say how pictures are prepared."""
        return self.options.weights != "none" and self.options.weights.isidentifier()

    @property
    def _folder(self) -> Path | None:
        """The folder that holds the model, where it is not one of the library's own."""
        return Path(self.options.model) if self.options.model.startswith(_PATH) else None

    @cached_property
    def _digest(self) -> str:
        weights = self.options.weights
        if not weights.isidentifier():
            return file_digest(Path(weights), "weights")
        if self._folder is not None:
            return f"{weights} of {file_digest(self._folder, 'model')}"
        try:
            # A release of the library fixes what a name of weights stands for, so nothing need be downloaded to know.
            return f"{weights} of {self.library} {version(self.library)}"
        except PackageNotFoundError as error:
            raise MissingDependency(
                f"'{self.library}' is not installed: pip install 'cbir-faiss[{self.extra}]'"
            ) from error

    def _weights_digest(self) -> str:
        if "model" not in self.free_options:
            return self._digest
        return f"{self._model_digest} {self._digest}"

    @cached_property
    def _model_digest(self) -> str:
        if self._folder is not None:
            return file_digest(self._folder, "model")
        if not self.options.model.startswith(_HUB):
            return self.options.model
        need("huggingface_hub", self.extra)
        return f"{self.options.model} {commit_at_hub(self.options.model.removeprefix(_HUB), self.hub_file)}"

    def _preprocess_by_options(self) -> Preprocess | None:
        # Checks an override at once where that is possible; else the network has to be looked at first.
        return None if self._has_preset else self._preprocess({})

    def _preprocess(self, preset: Mapping[str, Any]) -> Preprocess:
        try:
            return parse_options(Preprocess, {**preset, **self.options.preprocess})
        except ConfigError as error:
            raise ConfigError(error.message, path=f"preprocess.{error.path}".rstrip(".")) from None

    def _build(self, device: Any) -> Network:
        from cbir_faiss.extractors import _torch

        model, preset = self._columns_of_model()
        network = _torch.Network(model, self.columns, self._preprocess(preset))
        network.to(device)
        return network

    @abstractmethod
    def _columns_of_model(self) -> tuple[Any, Mapping[str, Any]]:
        """A torch module from normalised images to a mapping of ``columns``, and the preprocessing that it brings."""


def commit_at_hub(name: str, file: str) -> str:
    """The commit that ``<owner>/<name>[@<revision>]``, which has ``file``, stands for at the hub: the newest, or,
    without a network, that of the last download.

    Raises:
        ConfigError: there is no such model, or no way to it.
    """
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.partition("@")
    try:
        # <cache>/models--<owner>--<name>/snapshots/<commit>/<file>
        return Path(hf_hub_download(repository, file, revision=revision or None)).parent.name
    except Exception as error:  # the hub, the network, or a name that cannot be one
        raise ConfigError(f"cannot get the model '{name}' ({one_line(error)[:300]})", path="model") from error


def check_own(name: str, folder: Path | None, weights: str) -> None:
    """Raises ConfigError where a model that brings its own weights, from a folder or a hub, is given others' name."""
    if (folder is not None or ":" in name) and weights.isidentifier() and weights not in ("DEFAULT", "none"):
        raise ConfigError(
            f"'{name}' brings its own weights, not '{weights}': DEFAULT, none, or the path of others", path="weights"
        )


def near_names(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` with the names that are nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, known, n=3)
    return "; did you mean " + " or ".join(f"'{one}'" for one in near) + "?" if near else ""


def file_digest(path: Path, option: str) -> str:
    """SHA-256 of a file, or of the files in a folder. ConfigError in the name of ``option`` where it cannot be read."""
    try:
        if not path.is_dir():
            return hashlib.sha256(path.read_bytes()).hexdigest()
        digest = hashlib.sha256()
        for file in sorted(file for file in path.iterdir() if file.is_file()):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()
    except OSError as error:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: {error.strerror}{near_names(path.name, beside)}", path=option) from error
