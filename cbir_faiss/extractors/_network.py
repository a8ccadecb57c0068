"""An extractor that is a network in torch, run by torch or, exported once, by ONNX Runtime."""

from __future__ import annotations

import tempfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError
from cbir_faiss.extractors._onnx import Model, frozen, stored_preprocess
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.types import Columns

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import Network

_EXPORT = "1"  # part of the name of cached exports: to be raised when what is exported changes


class NetworkOptions(base.Options):
    """runtime: what runs the network; device: where; batch_size: images run at once."""

    runtime: Literal["torch", "onnx"] = "torch"
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _runs_there(self) -> NetworkOptions:
        if self.runtime == "onnx" and self.device == "mps":
            raise ValueError("runtime onnx runs on cpu or cuda; use runtime torch for mps")
        return self


@dataclass(frozen=True)
class _Loaded:
    preprocess: Preprocess
    run: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
    widths: dict[str, int]


class NetworkExtractor(base.Extractor):
    """Columns from one forward pass; a subclass says which, and builds the network.

    With ``runtime: onnx`` the network is exported once and kept in the cache folder, so that another run does not
    import torch; the results are those of torch up to rounding.
    """

    Options: ClassVar[type[NetworkOptions]] = NetworkOptions

    def _setup(self) -> None:
        self._lock = threading.Lock()
        self._ready: _Loaded | None = None
        self._known_preprocess = self._preprocess_by_options()

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {column: (width, "float32") for column, width in self._loaded().widths.items()}

    @property
    def min_side(self) -> int | None:
        return self._how.min_side

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The names of all columns: the embeddings, then what else the network gives."""

    def _preprocess_by_options(self) -> Preprocess | None:
        """The preprocessing, where the options alone decide it."""
        return None

    @abstractmethod
    def _build(self, device: Any) -> Network:
        """The network with its weights, on ``device``, giving ``columns``."""

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Writes ``model.onnx``; extractor ``onnx`` runs it with neither torch nor the weights."""
        file = self._export_file
        if not file.is_file():
            self._export(self._network(), file)
        return frozen(file, folder, self.embeddings, self.columns[len(self.embeddings) :], self.options.batch_size)

    @cached_property
    def _export_file(self) -> Path:
        return default_cache() / "onnx" / f"{self.fingerprint()}-{_EXPORT}.onnx"

    @property
    def _how(self) -> Preprocess:
        return self._known_preprocess or self._loaded().preprocess

    def _load(self) -> None:
        self._loaded()

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
            return dict(zip(self.columns, model.run(batch, self.options.batch_size), strict=True))

        return stored_preprocess(model), run

    def _exported(self) -> Model:
        file, device = self._export_file, self.options.device
        assert device != "mps"  # refused with the options
        if file.is_file():
            try:
                return Model(file, outputs=self.columns, device=device)
            except ConfigError:
                file.unlink()  # a damaged file in the cache is made again
        self._export(self._network(), file)
        return Model(file, outputs=self.columns, device=device)

    def _export(self, network: Network, file: Path) -> None:
        from cbir_faiss.extractors import _torch

        file.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, because several processes may do this at once.
        with tempfile.TemporaryDirectory(dir=file.parent) as aside:
            _torch.export(network, Path(aside, "model.onnx"))
            Path(aside, "model.onnx").replace(file)

    def _network(self) -> Network:
        """The network in torch, tried on a blank image."""
        need("torch", "torch")
        need("torchvision", "torch")
        from cbir_faiss.nets.weights import device

        o = self.options
        network = self._build(device(o.device if o.runtime == "torch" else "cpu"))
        network.check()
        return network
