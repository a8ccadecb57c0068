"""One ONNX model in ONNX Runtime: what it takes and gives, and running it in batches."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss._lib.cpu import has_vnni
from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.images.preprocess import Preprocess

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_PART = 8  # images that a core runs at once; what more of them leave behind does not fit in its caches
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Model:
    """A model with one image input ``(n, …)``; ``run`` is thread-safe.

    Raises:
        ConfigError: the file is absent or no model that ONNX Runtime can load, an input or output of that name does
            not exist, or it takes something else than images; the message is one line.
    """

    def __init__(
        self,
        file: Path,
        *,
        feed: str | None = None,
        outputs: Sequence[str] = (),
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        self.file, self._device, self._stamp = file, device, _stamp(file)
        self._session = session(file, device, threads.available())
        inputs = {value.name: value for value in self._session.get_inputs()}
        self.feed = feed or next(iter(inputs))
        known = [value.name for value in self._session.get_outputs()]
        self.outputs = list(outputs) or known[:1]
        _known([self.feed], list(inputs), "input")
        _known(self.outputs, known, "outputs")
        if inputs[self.feed].type not in _DTYPES or len(inputs[self.feed].shape) != 4:
            raise ConfigError(f"{file}: input '{self.feed}' takes {inputs[self.feed].type}, not a batch of images")
        self.dtype = np.dtype(_DTYPES[inputs[self.feed].type])
        first = inputs[self.feed].shape[0]
        self._fixed_batch = first if isinstance(first, int) else None

    def metadata(self) -> dict[str, str]:
        """The texts stored with the model."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, x: NDArray[Any], batch_size: int) -> list[NDArray[Any]]:
        """Every output, ``(len(x), …)``, computed at most ``batch_size`` at a time.

        Raises:
            InputError: the model refuses the input (its shape, as a rule); the message is one line.
        """
        parts = [self._run_batch(part) for part in _slices(x, self._fixed_batch or batch_size)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    @cached_property
    def _one_core(self) -> Any:
        """A session that runs on the core that calls it; made when it is first needed, which for queries is never."""
        if threads.available() == 1 or _stamp(self.file) != self._stamp:  # what lies there now may be another model
            return self._session
        return session(self.file, self._device, 1)

    def _run_batch(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        cores = threads.available()
        if self._fixed_batch or self._device != "cpu" or len(x) < cores:
            return self._run(self._session, x)
        # Cores that each run images of their own do not wait for one another after every layer.
        rounds = math.ceil(len(x) / (cores * _PART))
        step = math.ceil(len(x) / (cores * rounds))
        with ThreadPoolExecutor(cores) as pool:
            parts = list(pool.map(partial(self._run, self._one_core), _slices(x, step)))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _run(self, session: Any, x: NDArray[Any]) -> list[NDArray[Any]]:
        count = len(x)
        if self._fixed_batch and count < self._fixed_batch:
            x = np.concatenate([x, np.zeros((self._fixed_batch - count, *x.shape[1:]), x.dtype)])
        try:
            results = session.run(self.outputs, {self.feed: np.ascontiguousarray(x, dtype=self.dtype)})
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise InputError(f"{self.file}: {_one_line(error)}") from error
        return [np.asarray(result)[:count] for result in results]


def stored_preprocess(model: Model) -> Preprocess:
    """How images are prepared for a model that was exported here."""
    return Preprocess.model_validate_json(model.metadata()["preprocess"])


def frozen(
    file: Path, folder: Path, embeddings: Sequence[str], side: Sequence[str], batch_size: int, made_by: str
) -> tuple[str, dict[str, Any]]:
    """Copy a model that was exported here to ``folder``; the plugin and its options that run it there."""
    shutil.copyfile(file, folder / "model.onnx")
    how = stored_preprocess(Model(file)).model_dump(mode="json", include={"resize", "crop", "interpolation"})
    return "onnx", {
        "model": "model.onnx",
        "outputs": list(embeddings),
        "side": list(side),
        "preprocess": {**how, "layout": "nhwc"},
        "batch_size": batch_size,
        "made_by": made_by,
    }


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _slices(x: NDArray[Any], step: int) -> list[NDArray[Any]]:
    return [x[start : start + step] for start in range(0, len(x), step)]


def session(file: Path, device: Literal["cpu", "cuda"], cores: int) -> Any:
    """The model in ONNX Runtime, run by that many cores. ConfigError where that cannot be."""
    ort = need("onnxruntime", "onnx")
    if not file.is_file():
        raise ConfigError(f"no such file: {file}", path="model")
    if _PROVIDERS[device] not in ort.get_available_providers():
        raise ConfigError(f"this ONNX Runtime has no {_PROVIDERS[device]}: pip install onnxruntime-gpu", path="device")

    def started(precise: str) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = cores
        # Threads that spin while they wait take the cores from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.x64quantprecision", precise)
        options.log_severity_level = 4  # what is wrong is raised
        return ort.InferenceSession(str(file), options, providers=[_PROVIDERS[device]])

    # Without an instruction for it (VNNI) a CPU adds products of 8 bits up in 16, which overflow. Sums that cannot are
    # slower everywhere, by half where there is one.
    if not has_vnni():
        with contextlib.suppress(Exception):  # they cannot be had where layers share weights
            return started("1")
    try:
        return started("0")
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        raise ConfigError(f"{file} is not a model that ONNX Runtime can load: {_one_line(error)}") from error


def _known(wanted: Sequence[str], known: Sequence[str], path: str) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError(f"the model has no '{name}', but {', '.join(known)}", path=path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
