"""The activations of a model's layers, as vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from cbir_faiss.errors import ConfigError

Pool = Literal["avg", "max", "gem", "flatten"]


class Layers(torch.nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to the pooled activations ``(n, width)`` of each layer, by column.

    layers: graph nodes (or modules, for their last node) by column name.
    """

    def __init__(self, model: Any, layers: Mapping[str, str], pool: Pool) -> None:
        super().__init__()
        self.layers, self.pool = dict(layers), pool
        self.maps = create_feature_extractor(
            model, {node: column for column, node in layers.items()}, suppress_diff_warning=True
        ).eval()
        # Swin Transformers keep channels last in these, every other model has maps (n, c, h, w).
        swin = isinstance(model, torchvision.models.SwinTransformer)
        self.channels_last = {c for c, node in layers.items() if swin and node.split(".")[0] in ("features", "norm")}

    def forward(self, x: Any) -> dict[str, Any]:
        maps = self.maps(x)
        return {column: self._pooled(column, maps[column]) for column in self.layers}

    def _pooled(self, column: str, x: Any) -> Any:
        if not torch.is_tensor(x) or x.ndim not in (2, 3, 4):
            met = tuple(x.shape) if torch.is_tensor(x) else type(x).__name__
            raise ConfigError(f"'{self.layers[column]}' gives {met}, not vectors, tokens or maps", path="layer")
        return pooled(x.permute(0, 3, 1, 2) if column in self.channels_last else x, self.pool)


def pooled(x: Any, how: Pool) -> Any:
    """Feature maps ``(n, c, h, w)`` or token sequences ``(n, t, c)`` as ``(n, c)``; ``(n, c)`` passes.

    ``gem`` is the generalised mean with p = 3 (Radenović, Tolias and Chum, PAMI 2019); ``flatten`` keeps every value.
    """
    if x.ndim == 2 or how == "flatten":
        return x.flatten(1)
    axes = (2, 3) if x.ndim == 4 else (1,)
    if how == "max":
        return x.amax(axes)
    if how == "gem":
        return x.clamp(min=1e-6).pow(3).mean(axes).pow(1 / 3)
    return x.mean(axes)
