"""Any vision model of transformers (CLIP, SigLIP, DINOv2, ViT, …) as an extractor, also of texts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cbir_faiss.base.options import need
from cbir_faiss.extractors._models import ModelOrPath
from cbir_faiss.extractors._towers import TwoTowerExtractor, TwoTowerOptions

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import TextTower


class Transformers(TwoTowerExtractor):
    """Of a model with two towers, the picture in the common space; of any other its pooled output, or that of layers.

    With ``embed: image+text`` a collection is searched by text, too. One output is the column ``embedding``; several
    layers are columns by their names, each an embedding.
    """

    name: ClassVar[str] = "transformers"
    library: ClassVar[str] = "transformers"
    extra: ClassVar[str] = "transformers"

    class Options(TwoTowerOptions):
        """model: a name at the hub, as ``facebook/dinov2-small``, downloaded once, or a folder (``./…``) that
        ``save_pretrained`` wrote. No code that comes with a model is run.

        weights: ``DEFAULT``: the model's own; the path of a state dict; or ``none``: random, drawn with ``seed``.
        embed: ``image+text`` freezes the text tower as well; all embeddings then have length 1.
        layer: modules of the picture's tower. pool: how maps and tokens become vectors, of layers and where the model
        has no pooled output. preprocess: what is to be other than the model's own.
        """

        model: ModelOrPath

    options: Options

    @property
    def _has_preset(self) -> bool:
        return True

    @cached_property
    def _model_digest(self) -> str:
        if self._folder is not None:
            return super()._model_digest
        need("transformers", "transformers")
        from cbir_faiss.extractors import _transformers

        return _transformers.revision(self.options.model)

    @cached_property
    def _digest(self) -> str:
        # What a name at the hub stands for does not hang on the library's release, but on the model's revision.
        return self.options.weights if self.options.weights.isidentifier() else super()._digest

    def _model(self) -> Any:
        need("transformers", "transformers")
        from cbir_faiss.extractors import _transformers

        return _transformers.build(self.options.model, self._folder, self.options.weights, self.options.seed)

    def _columns_of_model(self) -> tuple[Any, Mapping[str, Any]]:
        model = self._model()
        from cbir_faiss.extractors import _transformers

        preset = _transformers.preset(self.options.model, set(self.options.preprocess))
        return self._space(_transformers.Pictures(model), _transformers.tower(model)), preset

    def _text_tower(self) -> tuple[TextTower, str]:
        model = self._model()
        from cbir_faiss.extractors import _transformers

        return _transformers.text_tower(model, self.options.model)

    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        model, preset = self._model(), self._how.model_dump(mode="json")
        from cbir_faiss.extractors import _transformers

        _transformers.save(model, self.options.model, self._has_text, folder)
        return {"model": "./", "layer": self.options.layer, "pool": self.options.pool, "preprocess": preset}
