"""Networks in less than float32: how near they have to stay to it, and int8 by ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.options import need
from cbir_faiss.base.registry import make
from cbir_faiss.base.source import Content
from cbir_faiss.errors import BadImage, CbirError, ConfigError, one_line
from cbir_faiss.extractors._onnx import Model, stored_preprocess
from cbir_faiss.images.preprocess import Preprocess

_CLOSE = 0.99
_DRAWN = 128
_BATCH = 8
# Layers with weights, and what lies between them, so that values need not become floats in between. Sums, norms and
# attention stay in floats: the outliers of transformers would leave 8 bits to nothing else.
_OPERATIONS = [
    *("Conv", "Gemm", "MatMul"),
    *("Relu", "Clip", "LeakyRelu", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"),
]


def check_close(
    exact: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]], columns: Sequence[str], precision: str
) -> None:
    """Raises ConfigError where the mean cosine of rows of a column, each ``(n, width)``, is below .99."""
    for column in columns:
        a, b = exact[column].astype(np.float64), got[column].astype(np.float64)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = float((np.einsum("ij,ij->i", a, b) / np.where(lengths > 0, lengths, np.inf)).mean())
        if not cosine >= _CLOSE:
            reason = f"{precision} gives '{column}' a mean cosine of {cosine:.4f} to float32, below {_CLOSE}"
            raise ConfigError(f"{reason}: use precision float32", path="precision")


class Pictures:
    """At most 128 pictures below ``folder``, drawn evenly; those that cannot be read are passed over.

    Raises:
        ConfigError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._source = folder, make("sources", "folder", root=str(folder))
        try:
            count = len(self._source.items())
        except CbirError as error:
            raise ConfigError(str(error), path="calibration") from error
        self._drawn = [int(i) for i in np.linspace(0, count - 1, min(count, _DRAWN)).round()]

    @cached_property
    def digest(self) -> str:
        """Of the contents of the pictures."""
        return hashlib.sha256(b"".join(content.key for content in self._contents())).hexdigest()

    def pixels(self, how: Preprocess) -> NDArray[np.uint8]:
        """The pictures as a network is fed them, uint8 ``(n, height, width, 3)``. ConfigError for less than two."""
        found = []
        for content in self._contents():
            try:
                found.append(how.pixels(content.read(how.min_side)))
            except BadImage:
                continue
        if len(found) < 2:
            reason = f"{self.folder} has too few pictures that can be read: int8 needs two, better a hundred"
            raise ConfigError(reason, path="calibration")
        return np.stack(found)

    def _contents(self) -> Iterator[Content]:
        for number in self._drawn:
            try:
                yield self._source.content(number)
            except BadImage:
                continue


def quantize(network: Path, pictures: Pictures, columns: Sequence[str], file: Path) -> None:
    """Write to ``file`` the exported ``network`` in int8, calibrated on three quarters of the pictures.

    Raises:
        ConfigError: it cannot be quantized, or by the other pictures one of its ``columns`` is far from float32.
    """
    need("onnx", "torch")
    exact = Model(network, outputs=columns)
    pixels = pictures.pixels(stored_preprocess(exact))
    decide = np.arange(len(pixels)) % 4 == 0
    try:
        _quantize(network, exact.feed, pixels[~decide], file)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        reason = f"the network cannot be quantized ({one_line(error)[:300]}): use precision float32"
        raise ConfigError(reason, path="precision") from error
    expected, got = (
        dict(zip(columns, model.run(pixels[decide], _BATCH), strict=True))
        for model in (exact, Model(file, outputs=columns))
    )
    check_close(expected, got, columns, "int8")


def _quantize(network: Path, feed: str, pixels: NDArray[np.uint8], file: Path) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_name("prepared.onnx")
    quant_pre_process(network, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared, load_external_data=False).graph
    ends = {output.name for output in graph.output}
    batches = iter([{feed: pixels[start : start + _BATCH]} for start in range(0, len(pixels), _BATCH)])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(batches, None)

    quantization.quantize_static(
        prepared,
        file,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        # Entropy, in one pass over the pictures, comes out at these very ranges, and keeps all activations for it.
        calibrate_method=quantization.CalibrationMethod.MinMax,
        op_types_to_quantize=_OPERATIONS,
        # What a column is made of last stays as fine as floats are.
        nodes_to_exclude=[node.name for node in graph.node if node.name and ends & set(node.output)],
        extra_options={"MatMulConstBOnly": True},
    )
