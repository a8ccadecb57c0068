"""An extractor that is a network in torch, run by torch or, exported once, by ONNX Runtime."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath, need
from cbir_faiss.errors import CbirError, ConfigError, MissingDependency, one_line
from cbir_faiss.extractors import _exports, _precision
from cbir_faiss.extractors._onnx import Model, frozen, stored_preprocess
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.types import Columns

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import Network

_log = logging.getLogger(__name__)
_Run = Callable[[NDArray[Any], int], dict[str, NDArray[Any]]]
_AGREES = 1e-3  # largest difference between an export and its network, relative to the largest value


class NetworkOptions(base.Options):
    """runtime: what runs the network, ``auto`` ONNX Runtime on a CPU where it is installed and the network can be
    exported, else torch; device: where; batch_size: images run at once; precision: what it computes in, ``int8`` by
    ONNX Runtime on a CPU, ``bfloat16`` by torch where CPU or GPU have it; calibration: for int8, a folder of pictures
    like those to be indexed, of which at most 128 set its scales and decide whether it is near enough to float32;
    mirrored: what the network gives is the mean of a picture's and its mirror image's, at twice the work."""

    runtime: Literal["auto", "torch", "onnx"] = "auto"
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    batch_size: int = Field(32, ge=1)
    precision: Literal["float32", "int8", "bfloat16"] = "float32"
    calibration: RelativePath | None = None
    mirrored: bool = False

    @model_validator(mode="after")
    def _runs_there(self) -> NetworkOptions:
        if self.runtime == "onnx" and self.device == "mps":
            raise ValueError("runtime onnx runs on cpu or cuda; use runtime torch for mps")
        if self.precision == "int8" and (self.runtime == "torch" or self.device != "cpu"):
            raise ValueError("precision int8 is run by ONNX Runtime on a CPU: leave runtime and device out")
        if self.precision == "bfloat16" and self.runtime == "onnx":
            raise ValueError("precision bfloat16 is run by torch: leave runtime out")
        if self.precision == "int8" and self.calibration is None:
            raise ValueError("precision int8 needs calibration, a folder of pictures like those to be indexed")
        if self.precision != "int8" and self.calibration is not None:
            raise ValueError("calibration is for precision int8 only")
        return self


@dataclass(frozen=True)
class _Loaded:
    preprocess: Preprocess
    run: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
    widths: dict[str, int]


class NetworkExtractor(base.Extractor):
    """Columns from one forward pass; a subclass says which, and builds the network.

    Through ONNX Runtime the network is exported once and kept in the cache folder, so that another run does not import
    torch; the results are those of torch up to rounding. With ``runtime: auto`` the options name the runtime that was
    taken, once the network is loaded.
    """

    Options: ClassVar[type[NetworkOptions]] = NetworkOptions
    options: NetworkOptions
    # A precision, the pictures that it is calibrated on, and mirroring count with the weights.
    free_options: ClassVar[frozenset[str]] = frozenset({"batch_size", "precision", "calibration", "mirrored"})

    def _setup(self) -> None:
        by = {"int8": "onnx", "bfloat16": "torch"}.get(self.options.precision, self.options.runtime)
        self.options = self.options.model_copy(update={"runtime": by})
        self._lock = threading.Lock()
        self._ready: _Loaded | None = None
        self._unexported: CbirError | None = None
        self._asked = self.options.runtime
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

    @abstractmethod
    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        """Write the weights; the options that run the network with them in torch."""

    def fingerprint(self) -> str:
        # What ``auto`` takes may differ from machine to machine, but a collection is kept up to date on any: it goes by
        # the name of torch, which was the default before it.
        return self._digest_of(self._numbers_digest(), runtime="torch" if self._asked == "auto" else self._asked)

    def cache_key(self) -> str:
        # Rounding differs, and a run that goes on elsewhere is not to mix the results of two runtimes.
        return self._digest_of(self._numbers_digest(), runtime=self._taken)

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Writes ``model.onnx``; extractor ``onnx`` runs it with neither torch nor the weights.

        A network that cannot be exported is frozen as it is, with its weights, and goes on needing torch. What torch
        computes in bfloat16 is frozen in float32, which runs anywhere.
        """
        taken = self._taken
        try:
            file = self._model_file()
        except CbirError as error:
            if taken == "onnx":
                raise
            _log.warning("%s: what is frozen needs torch: %s", self.name, error)
            options = self._freeze_weights(folder)
            kept = {"runtime": "torch", "batch_size": self.options.batch_size, "mirrored": self.options.mirrored}
            return self.name, {**options, **kept}
        side = self.columns[len(self.embeddings) :]
        return frozen(file, folder, self.embeddings, side, self.options.batch_size, self._made_by)

    @property
    def _made_by(self) -> str:
        precision = self.options.precision
        return f"{self.name} by {self._taken}" + ("" if precision == "float32" else f" in {precision}")

    def _numbers_digest(self) -> str:
        """Of the weights, and of what they are rounded to."""
        weights, precision = self._network_digest(), self.options.precision
        if self._pictures is not None:
            return f"{weights} in {precision} by {self._pictures.digest}"
        return weights if precision == "float32" else f"{weights} in {precision}"

    def _network_digest(self) -> str:
        """Of the weights, and of how they are used."""
        return self._weights_digest() + (" mirrored" if self.options.mirrored else "")

    @cached_property
    def _pictures(self) -> _precision.Pictures | None:
        """What int8 is calibrated on."""
        return None if self.options.calibration is None else _precision.Pictures(self.options.calibration)

    @property
    def _taken(self) -> Literal["auto", "torch", "onnx"]:
        """The runtime that runs the network; never ``auto``."""
        if self.options.runtime == "auto":
            self._loaded()
        return self.options.runtime

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
                load = {"auto": self._load_auto, "torch": self._load_torch, "onnx": self._load_onnx}
                self._ready = load[self.options.runtime]()
            return self._ready

    def _load_auto(self) -> _Loaded:
        why: Exception | None = None
        if self.options.device == "cpu":
            try:
                return self._took("onnx", self._load_onnx())
            except (CbirError, ImportError) as error:
                why = error
        # What is wrong with the network itself is raised once more.
        return self._took("torch", self._load_torch(), why)

    def _took(self, runtime: str, loaded: _Loaded, why: Exception | None = None) -> _Loaded:
        self.options = self.options.model_copy(update={"runtime": runtime})
        # What is not installed was perhaps not wanted; what does not work should be known.
        level = logging.INFO if why is None or isinstance(why, MissingDependency) else logging.WARNING
        reason = why.message if isinstance(why, ConfigError) else one_line(why) if why else ""
        _log.log(level, "%s: runtime %s%s", self.name, runtime, f", because {reason}" if why else "")
        return loaded

    def _load_torch(self) -> _Loaded:
        network = self._network(self.options.device)
        run: _Run = network.run
        if self.options.precision == "bfloat16":
            run = self._in_bfloat16(network)
        return self._tried(network.preprocess, lambda batch: run(batch, self.options.batch_size))

    def _in_bfloat16(self, network: Network) -> _Run:
        """``network.run`` in bfloat16. ConfigError where the device has none, or it is not near float32."""
        import torch

        from cbir_faiss.nets.weights import has_bfloat16

        if not has_bfloat16(network.mean.device):
            what = f"this {self.options.device} does not compute in bfloat16: use precision float32"
            raise ConfigError(what, path="precision")
        run = partial(network.run, dtype=torch.bfloat16)
        pixels = _some_pixels(network.preprocess)
        expected = network.run(pixels, len(pixels), dtype=torch.float32)
        _precision.check_close(expected, run(pixels, len(pixels)), self.embeddings, "bfloat16")
        return run

    def _load_onnx(self) -> _Loaded:
        need("onnxruntime", "onnx")
        assert self.options.device != "mps"  # refused with the options
        model = Model(self._model_file(), outputs=self.columns, device=self.options.device)

        def run(batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
            return dict(zip(self.columns, model.run(batch, self.options.batch_size), strict=True))

        return self._tried(stored_preprocess(model), run)

    def _tried(self, preprocess: Preprocess, run: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]) -> _Loaded:
        """Run once, to know the widths."""
        blank = np.zeros((1, *preprocess.size, 3), np.uint8)
        return _Loaded(preprocess, run, {column: x.shape[1] for column, x in run(blank).items()})

    def _model_file(self) -> Path:
        """What ONNX Runtime runs. ConfigError as ``_export_file``, and where int8 is not near float32."""
        if self._pictures is None:
            return self._export_file()
        release = need("onnxruntime", "onnx").__version__
        key = self._digest_of(self._numbers_digest(), runtime="onnx", device="any", by=f"onnxruntime {release}")
        file = _exports.find(key)
        if file is not None:
            return file
        network, pictures = self._export_file(), self._pictures
        return _exports.keep(key, lambda file: _precision.quantize(network, pictures, self.embeddings, file))

    def _export_file(self) -> Path:
        """The exported network, from the cache or made now.

        Raises:
            ConfigError: it cannot be exported, which is not tried twice, or not be kept.
        """
        key = self._digest_of(self._network_digest(), runtime="onnx", device="any")
        file = _exports.find(key)
        if file is not None:
            return file
        if self._unexported is not None:
            raise self._unexported
        network = self._network("cpu")
        try:
            return _exports.keep(key, lambda file: self._export(network, file))
        except CbirError as error:
            self._unexported = error
            raise

    def _export(self, network: Network, file: Path) -> None:
        from cbir_faiss.extractors import _torch

        pixels = _some_pixels(network.preprocess)
        expected = network.run(pixels, len(pixels))
        _torch.export(network, file)
        got = Model(file, outputs=self.columns).run(pixels, len(pixels))
        for name, values in zip(self.columns, got, strict=True):
            slack = _AGREES * float(np.abs(expected[name]).max())
            if not np.allclose(values, expected[name], rtol=0, atol=slack):
                raise ConfigError(f"exported to ONNX it gives another '{name}'", path="runtime")

    def _network(self, where: str) -> Network:
        """The network in torch, tried on a blank image."""
        need("torch", "torch")
        need("torchvision", "torch")
        from cbir_faiss.nets.weights import device

        network = self._build(device(where))
        network.mirrored = self.options.mirrored
        network.check()
        return network


def _some_pixels(preprocess: Preprocess) -> NDArray[np.uint8]:
    """Three pictures of noise."""
    return np.random.default_rng(0).integers(0, 256, (3, *preprocess.size, 3), dtype=np.uint8)
