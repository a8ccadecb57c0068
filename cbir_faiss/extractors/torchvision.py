"""Any classification model of torchvision as an extractor, through torch or through ONNX Runtime."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, model_validator
from typing_extensions import TypedDict

from cbir_faiss import base
from cbir_faiss.cache import default_cache
from cbir_faiss.errors import ConfigError, MissingDependency
from cbir_faiss.extractors._onnx import Model
from cbir_faiss.options import need, parse_options, resolve_path
from cbir_faiss.preprocess import Interpolation, PerChannel, Preprocess, Size
from cbir_faiss.types import Columns

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import Network

_EXPORT = "1"  # part of the name of cached exports: to be raised when what is exported changes


class Override(TypedDict, total=False):
    """The parts of ``Preprocess`` that are to be other than what the weights bring."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    resize: Size | None
    crop: Size | None
    interpolation: Interpolation
    mean: PerChannel
    std: PerChannel


def _name_or_path(value: str, info: ValidationInfo) -> str:
    return value if value.isidentifier() else str(resolve_path(value, info))


@dataclass(frozen=True)
class _Loaded:
    preprocess: Preprocess
    run: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
    widths: dict[str, int]


class Torchvision(base.Extractor):
    """Pooled activations of one or several layers, from one forward pass.

    One layer is the column ``embedding``; several are columns by the names of the layers, each an embedding. With
    ``runtime: onnx`` the model is exported once and kept in the cache folder, so that another run does not import
    torch; the results are those of torch up to rounding.
    """

    name: ClassVar[str] = "torchvision"
    # The weights count by their digest.
    free_options: ClassVar[frozenset[str]] = frozenset({"weights", "batch_size"})

    class Options(base.Options):
        """model: a name that ``torchvision.models.get_model`` knows.

        weights: ``DEFAULT`` or another name that torchvision has for this model (downloaded once); the path (with a
        dot or slash) of a state dict of any float type; or ``none``: random, drawn with ``seed``.
        layer: graph nodes as ``torchvision.models.feature_extraction`` names them, or modules; where left out, the
        module ``features`` if there is one, else the input of the classifier.
        pool: how maps and token sequences become vectors; ``gem`` is the generalised mean with p = 3.
        preprocess: what is to be other than the weights' own; for a path or ``none`` that is Resize 256, CenterCrop
        224, ImageNet mean and deviation.
        """

        model: str
        weights: Annotated[str, AfterValidator(_name_or_path)] = "DEFAULT"
        layer: str | tuple[str, ...] | None = None
        pool: Literal["avg", "max", "gem", "flatten"] = "avg"
        runtime: Literal["torch", "onnx"] = "torch"
        device: Literal["cpu", "cuda", "mps"] = "cpu"
        preprocess: Override = Field(default_factory=Override)
        batch_size: int = Field(32, ge=1)
        seed: int = Field(0, ge=0)

        @model_validator(mode="after")
        def _goes_together(self) -> Torchvision.Options:
            if self.runtime == "onnx" and self.device == "mps":
                raise ValueError("runtime onnx runs on cpu or cuda; use runtime torch for mps")
            if isinstance(self.layer, tuple) and len(set(self.layer)) != max(1, len(self.layer)):
                raise ValueError("layer must name at least one layer, and none twice")
            return self

    options: Options

    def _setup(self) -> None:
        self._lock = threading.Lock()
        self._ready: _Loaded | None = None
        # Checks an override at once where that is possible; named weights have to be looked at first.
        self._known_preprocess = None if self._has_preset else self._preprocess({})

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {column: (width, "float32") for column, width in self._loaded().widths.items()}

    @property
    def embeddings(self) -> tuple[str, ...]:
        return self._columns or ("embedding",)

    @property
    def enough(self) -> int | None:
        return self._how.enough

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Writes ``model.onnx``; extractor ``onnx`` runs it with neither torch nor the weights."""
        file = self._export_file
        if not file.is_file():
            self._export(self._network(), file)
        shutil.copyfile(file, folder / "model.onnx")
        how = _stored_preprocess(Model(file)).model_dump(mode="json", include={"resize", "crop", "interpolation"})
        return "onnx", {
            "model": "model.onnx",
            "outputs": list(self.embeddings),
            "preprocess": {**how, "layout": "nhwc"},
            "batch_size": self.options.batch_size,
        }

    @property
    def _has_preset(self) -> bool:
        return self.options.weights != "none" and self.options.weights.isidentifier()

    @property
    def _columns(self) -> tuple[str, ...]:
        """The columns where there are several layers, else nothing."""
        layer = self.options.layer
        return layer if isinstance(layer, tuple) and len(layer) > 1 else ()

    @cached_property
    def _export_file(self) -> Path:
        return default_cache() / "onnx" / f"{self.fingerprint()}-{_EXPORT}.onnx"

    @cached_property
    def _digest(self) -> str:
        weights = self.options.weights
        if not weights.isidentifier():
            try:
                return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
            except OSError as error:
                raise ConfigError(f"{weights}: {error.strerror}", path="weights") from error
        try:
            # A release of torchvision fixes what a name of weights stands for, so nothing need be downloaded to know.
            return f"{weights} of torchvision {version('torchvision')}"
        except PackageNotFoundError as error:
            raise MissingDependency("'torchvision' is not installed: pip install 'cbir-faiss[torch]'") from error

    @property
    def _how(self) -> Preprocess:
        return self._known_preprocess or self._loaded().preprocess

    def _load(self) -> None:
        self._loaded()

    def _weights_digest(self) -> str:
        return self._digest

    def _prepare(self, item: Any) -> NDArray[np.uint8]:
        return self._how.pixels(item)

    def _extract(self, batch: NDArray[Any]) -> Columns:
        return self._loaded().run(batch)

    def _loaded(self) -> _Loaded:
        with self._lock:
            if self._ready is None:
                preprocess, run = self._load_onnx() if self.options.runtime == "onnx" else self._load_torch()
                blank = np.zeros((1, *preprocess.size, 3), np.uint8)
                self._ready = _Loaded(preprocess, run, {column: x.shape[1] for column, x in run(blank).items()})
            return self._ready

    def _load_torch(self) -> tuple[Preprocess, Callable[[NDArray[Any]], dict[str, NDArray[Any]]]]:
        network = self._network()
        return network.preprocess, lambda batch: network.run(batch, self.options.batch_size)

    def _load_onnx(self) -> tuple[Preprocess, Callable[[NDArray[Any]], dict[str, NDArray[Any]]]]:
        model = self._exported()

        def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
            return dict(zip(self.embeddings, model.run(batch, self.options.batch_size), strict=True))

        return _stored_preprocess(model), run

    def _exported(self) -> Model:
        file, device = self._export_file, self.options.device
        assert device != "mps"  # refused with the options
        if file.is_file():
            try:
                return Model(file, outputs=self.embeddings, device=device)
            except ConfigError:
                file.unlink()  # a damaged file in the cache is made again
        self._export(self._network(), file)
        return Model(file, outputs=self.embeddings, device=device)

    def _export(self, network: Network, file: Path) -> None:
        from cbir_faiss.extractors import _torch

        file.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, because several processes may do this at once.
        with tempfile.TemporaryDirectory(dir=file.parent) as aside:
            _torch.export(network, Path(aside, "model.onnx"))
            Path(aside, "model.onnx").replace(file)

    def _network(self) -> Network:
        """The model in torch, with the weights in it and tried on a blank image."""
        need("torch", "torch")
        need("torchvision", "torch")
        from cbir_faiss.extractors import _torch

        o = self.options
        device = _torch.device(o.device if o.runtime == "torch" else "cpu")
        model, preset = _torch.build_model(o.model, o.weights, o.seed)
        chosen = self._columns or (
            o.layer[0] if isinstance(o.layer, tuple) else o.layer or _torch.default_layer(model),
        )
        _torch.check_layers(model, chosen)
        layers = dict(zip(self.embeddings, chosen, strict=True))
        network = _torch.Network(model, layers, o.pool, self._preprocess(preset))
        network.to(device)
        network.check()
        return network

    def _preprocess(self, preset: Mapping[str, Any]) -> Preprocess:
        try:
            return parse_options(Preprocess, {**preset, **self.options.preprocess})
        except ConfigError as error:
            raise ConfigError(error.message, path=f"preprocess.{error.path}".rstrip(".")) from None


def _stored_preprocess(model: Model) -> Preprocess:
    return Preprocess.model_validate_json(model.metadata()["preprocess"])
