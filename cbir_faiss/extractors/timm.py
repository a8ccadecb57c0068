"""Any model of timm as an extractor, through torch or through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cbir_faiss.base.options import need
from cbir_faiss.extractors._models import ModelExtractor, ModelOptions, ModelOrPath


class Timm(ModelExtractor):
    """The pooled features that the classifier would be fed, or one or several layers, from one forward pass.

    One output is the column ``embedding``; several layers are columns by their names, each an embedding. Pictures are
    prepared as the model asks for.
    """

    name: ClassVar[str] = "timm"
    library: ClassVar[str] = "timm"
    extra: ClassVar[str] = "timm"
    free_options: ClassVar[frozenset[str]] = ModelExtractor.free_options | {"model"}

    class Options(ModelOptions):
        """model: a name that ``timm.list_models`` knows, with or without a tag, ``hf-hub:<owner>/<name>``, or a folder
        (``./…``) with config and weights.

        weights: ``DEFAULT``, a tag of the model such as ``augreg_in21k``, the path of a state dict, or ``none``:
        random, drawn with ``seed``. layer: modules, as ``blocks.11``; where left out, the features before the
        classifier. pool: how the maps and tokens of layers become vectors. preprocess: what is to be other than the
        model's own.
        """

        model: ModelOrPath

    options: Options

    @property
    def _has_preset(self) -> bool:
        return True

    def _columns_of_model(self) -> tuple[Any, Mapping[str, Any]]:
        need("timm", "timm")
        from cbir_faiss.extractors import _timm
        from cbir_faiss.extractors._tapped import Tapped

        o = self.options
        model = _timm.build(o.model, self._folder, o.weights, o.seed)
        layers = dict(zip(self.embeddings, self._layers, strict=True)) if self._layers else {}
        return Tapped(model, model, layers, o.pool, channels_last=_timm.channels_last(model)), _timm.preset(model)

    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        from cbir_faiss.extractors import _timm

        o = self.options
        model = _timm.build(o.model, self._folder, o.weights, o.seed)
        weights = _timm.save(model, o.model, self._folder, folder)
        how = self._preprocess(_timm.preset(model)).model_dump(mode="json")
        return {"model": "./", "weights": weights, "layer": o.layer, "pool": o.pool, "preprocess": how}
