"""What `cbir train` made, as an extractor."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from cbir_faiss.base.options import RelativePath
from cbir_faiss.extractors._network import NetworkExtractor, NetworkOptions
from cbir_faiss.nets.card import CARD, WEIGHTS, Card, read_card

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import Network

Output = Literal["features", "code"]


class Trained(NetworkExtractor):
    """A trained network's code before its sign, or its features, from one forward pass.

    One output is the column ``embedding``; both are columns by their names, each an embedding. A network with classes
    also gives ``probs``: softmax, float32 ``(n, classes)``. Codec ``sign`` turns a code into its bits.
    """

    name: ClassVar[str] = "trained"
    # The weights count by their digest.
    free_options: ClassVar[frozenset[str]] = NetworkExtractor.free_options | {"path"}

    class Options(NetworkOptions):
        """path: the folder that was trained into. output: ``code``, ``features`` or both; where left out, the code if
        the network has one."""

        path: RelativePath
        output: Output | tuple[Output, ...] | None = None

        @model_validator(mode="after")
        def _some_once(self) -> Trained.Options:
            if isinstance(self.output, tuple) and len(set(self.output)) != max(1, len(self.output)):
                raise ValueError("output must name at least one output, and none twice")
            return self

    options: Options

    @property
    def embeddings(self) -> tuple[str, ...]:
        return self._outputs if len(self._outputs) > 1 else ("embedding",)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.embeddings + (("probs",) if self._card.classes else ())

    @property
    def supervised(self) -> bool:
        return self._card.supervised

    @property
    def _outputs(self) -> tuple[str, ...]:
        chosen = self.options.output or ("code" if self._card.bits else "features")
        return chosen if isinstance(chosen, tuple) else (chosen,)

    @cached_property
    def _read(self) -> tuple[Card, str]:
        return read_card(self.options.path)

    @property
    def _card(self) -> Card:
        return self._read[0]

    def _weights_digest(self) -> str:
        return self._read[1]

    def _build(self, device: Any) -> Network:
        from cbir_faiss.extractors import _torch
        from cbir_faiss.nets.model import Columns, load_model

        card, model = load_model(self.options.path)
        columns = Columns(model, dict(zip(self.embeddings, self._outputs, strict=True)))
        network = _torch.Network(columns, self.columns, card.preprocess)
        network.to(device)
        return network

    def _freeze_weights(self, folder: Path) -> dict[str, Any]:
        for name in (CARD, WEIGHTS):
            shutil.copyfile(self.options.path / name, folder / name)
        return {"path": ".", "output": self.options.output}
