"""Any model of open_clip as an extractor of pictures, and of texts into the same space."""

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


class OpenClip(TwoTowerExtractor):
    """What the picture's tower gives in the common space, or one or several of its layers, from one forward pass.

    With ``embed: image+text`` a collection is searched by text, too. One output is the column ``embedding``; several
    layers are columns by their names, each an embedding.
    """

    name: ClassVar[str] = "open_clip"
    library: ClassVar[str] = "open_clip_torch"
    extra: ClassVar[str] = "open_clip"
    hub_file: ClassVar[str] = "open_clip_config.json"

    class Options(TwoTowerOptions):
        """model: a name that ``open_clip.list_models`` knows, ``hf-hub:<owner>/<name>``, or a folder (``./…``) with
        ``open_clip_config.json`` and weights.

        weights: a name that ``open_clip.list_pretrained`` has for the model; ``DEFAULT``: the first of these, or those
        of the folder; the path of a state dict; or ``none``: random, drawn with ``seed``.
        embed: ``image+text`` freezes the text tower as well; all embeddings then have length 1.
        layer: modules of the picture's tower. pool: how the maps and tokens of layers become vectors. preprocess: what
        is to be other than the weights' own.
        """

        model: ModelOrPath

    options: Options

    @property
    def _has_preset(self) -> bool:
        return True

    @cached_property
    def _digest(self) -> str:
        o = self.options
        if self._folder is not None or o.weights == "none" or not o.weights.isidentifier():
            return super()._digest
        need("open_clip", "open_clip")
        from cbir_faiss.extractors import _open_clip

        # Earlier versions ran such weights with another activation where the model's config does not say so.
        return super()._digest + (" by QuickGELU" if _open_clip.of_quick_gelu(o.model, o.weights) else "")

    def _model(self) -> Any:
        need("open_clip", "open_clip")
        from cbir_faiss.extractors import _open_clip

        return _open_clip.build(self.options.model, self._folder, self.options.weights, self.options.seed)

    def _columns_of_model(self) -> tuple[Any, Mapping[str, Any]]:
        model = self._model()
        from cbir_faiss.extractors import _open_clip

        return self._space(_open_clip.Pictures(model), model.visual), _open_clip.preset(model)

    def _text_tower(self) -> tuple[TextTower, str]:
        model = self._model()
        from cbir_faiss.extractors import _open_clip

        return _open_clip.text_tower(model, self.options.model, self._folder)

    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        model = self._model()
        from cbir_faiss.extractors import _open_clip

        o = self.options
        _open_clip.save(model, o.model, self._folder, o.weights, self._has_text, folder)
        how = self._preprocess(_open_clip.preset(model)).model_dump(mode="json")
        return {"model": "./", "layer": o.layer, "pool": o.pool, "preprocess": how}
