"""What a network is: a plugin that builds a module from normalised images to features."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss import base
from cbir_faiss.base.options import need, parse_options
from cbir_faiss.errors import ConfigError
from cbir_faiss.images.preprocess import Override, Preprocess


class Network(base.Plugin):
    """A network by its options. ``build`` gives ``float32 (n, 3, h, w)`` → features ``float32 (n, dim)``.

    A module with a method ``begin(pictures)`` is shown some of the normalised pictures, float32 ``(n, 3, h, w)``,
    before it is trained.
    """

    preset: ClassVar[dict[str, Any]] = {}
    """The parts of ``Preprocess`` that this network wants other than the defaults."""

    class Options(base.Options):
        """preprocess: what is to be other than what the network, or its weights, bring."""

        preprocess: Override = Field(default_factory=Override)

    def build(self, *, pretrained: bool = True) -> tuple[Any, Preprocess]:
        """The module, random numbers drawn from torch's generator, and how images are prepared for it.

        pretrained: False where the weights are going to be filled in, so that none need be read.

        Raises:
            ConfigError: options or weights that do not fit together. MissingDependency: torch is not installed.
        """
        need("torch", "torch")
        module, preset = self._build(pretrained)
        return module, self._preprocess(preset)

    def _preprocess(self, preset: dict[str, Any]) -> Preprocess:
        """How images are prepared where the weights bring ``preset``."""
        try:
            return parse_options(Preprocess, {**self.preset, **preset, **self.options.preprocess})
        except ConfigError as error:
            raise ConfigError(error.message, path=f"preprocess.{error.path}".rstrip(".")) from None

    @abstractmethod
    def _build(self, pretrained: bool) -> tuple[Any, dict[str, Any]]:
        """The module, and the parts of ``Preprocess`` that its weights bring."""
