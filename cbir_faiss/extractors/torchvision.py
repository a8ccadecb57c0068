"""Any classification model of torchvision as an extractor, through torch or through ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from cbir_faiss.base.options import name_or_path, parse_options
from cbir_faiss.errors import ConfigError, MissingDependency
from cbir_faiss.extractors._network import NetworkExtractor, NetworkOptions
from cbir_faiss.images.preprocess import Override, Preprocess

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import Network


class Torchvision(NetworkExtractor):
    """Pooled activations of one or several layers, from one forward pass.

    One layer is the column ``embedding``; several are columns by the names of the layers, each an embedding. ONNX
    Runtime runs the model where it can: it is then exported once and kept in the cache folder, so that another run does
    not import torch; the results are those of torch up to rounding.
    """

    name: ClassVar[str] = "torchvision"
    # The weights count by their digest.
    free_options: ClassVar[frozenset[str]] = frozenset({"weights", "batch_size"})

    class Options(NetworkOptions):
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
        weights: Annotated[str, AfterValidator(name_or_path)] = "DEFAULT"
        layer: str | tuple[str, ...] | None = None
        pool: Literal["avg", "max", "gem", "flatten"] = "avg"
        preprocess: Override = Field(default_factory=Override)
        seed: int = Field(0, ge=0)

        @model_validator(mode="after")
        def _goes_together(self) -> Torchvision.Options:
            if isinstance(self.layer, tuple) and len(set(self.layer)) != max(1, len(self.layer)):
                raise ValueError("layer must name at least one layer, and none twice")
            return self

    options: Options

    @property
    def embeddings(self) -> tuple[str, ...]:
        return self._layers or ("embedding",)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.embeddings

    @property
    def _has_preset(self) -> bool:
        return self.options.weights != "none" and self.options.weights.isidentifier()

    @property
    def _layers(self) -> tuple[str, ...]:
        """The columns where there are several layers, else nothing."""
        layer = self.options.layer
        return layer if isinstance(layer, tuple) and len(layer) > 1 else ()

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

    def _weights_digest(self) -> str:
        return self._digest

    def _preprocess_by_options(self) -> Preprocess | None:
        # Checks an override at once where that is possible; named weights have to be looked at first.
        return None if self._has_preset else self._preprocess({})

    def _build(self, device: Any) -> Network:
        from cbir_faiss.extractors import _torch
        from cbir_faiss.nets import zoo
        from cbir_faiss.nets.layers import Layers

        o = self.options
        model, preset = zoo.build_model(o.model, o.weights, o.seed)
        chosen = self._layers or (o.layer[0] if isinstance(o.layer, tuple) else o.layer or zoo.default_layer(model),)
        zoo.check_layers(model, chosen)
        layers = Layers(model, dict(zip(self.embeddings, chosen, strict=True)), o.pool)
        network = _torch.Network(layers, self.embeddings, self._preprocess(preset))
        network.to(device)
        return network

    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        import torch

        from cbir_faiss.nets import zoo

        o = self.options
        model, preset = zoo.build_model(o.model, o.weights, o.seed)
        torch.save(model.state_dict(), folder / "weights.pth")
        how = self._preprocess(preset).model_dump(mode="json")
        return {"model": o.model, "weights": "weights.pth", "layer": o.layer, "pool": o.pool, "preprocess": how}

    def _preprocess(self, preset: Mapping[str, Any]) -> Preprocess:
        try:
            return parse_options(Preprocess, {**preset, **self.options.preprocess})
        except ConfigError as error:
            raise ConfigError(error.message, path=f"preprocess.{error.path}".rstrip(".")) from None
