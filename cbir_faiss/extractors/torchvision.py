"""Any classification model of torchvision as an extractor, through torch or through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cbir_faiss.extractors._models import ModelExtractor, ModelOptions


class Torchvision(ModelExtractor):
    """Pooled activations of one or several layers, from one forward pass.

    One layer is the column ``embedding``; several are columns by the names of the layers, each an embedding. ONNX
    Runtime runs the model where it can: it is then exported once and kept in the cache folder, so that another run does
    not import torch; the results are those of torch up to rounding.
    """

    name: ClassVar[str] = "torchvision"
    library: ClassVar[str] = "torchvision"
    extra: ClassVar[str] = "torch"

    class Options(ModelOptions):
        """model: a name that ``torchvision.models.get_model`` knows.

        weights: ``DEFAULT`` or another name that torchvision has for this model (downloaded once); the path (with a
        dot or slash) of a state dict of any float type; or ``none``: random, drawn with ``seed``.
        layer: graph nodes as ``torchvision.models.feature_extraction`` names them, or modules; where left out, the
        module ``features`` if there is one, else the input of the classifier.
        pool: how maps and token sequences become vectors; ``gem`` is the generalised mean with p = 3.
        preprocess: what is to be other than the weights' own; for a path or ``none`` that is Resize 256, CenterCrop
        224, ImageNet mean and deviation.
        """

    options: Options

    def _columns_of_model(self) -> tuple[Any, Mapping[str, Any]]:
        from cbir_faiss.nets import zoo
        from cbir_faiss.nets.layers import Layers

        o = self.options
        model, preset = zoo.build_model(o.model, o.weights, o.seed)
        chosen = self._layers or (zoo.default_layer(model),)
        zoo.check_layers(model, chosen)
        return Layers(model, dict(zip(self.embeddings, chosen, strict=True)), o.pool), preset

    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        import torch

        from cbir_faiss.nets import zoo

        o = self.options
        model, preset = zoo.build_model(o.model, o.weights, o.seed)
        torch.save(model.state_dict(), folder / "weights.pth")
        how = self._preprocess(preset).model_dump(mode="json")
        return {"model": o.model, "weights": "weights.pth", "layer": o.layer, "pool": o.pool, "preprocess": how}
