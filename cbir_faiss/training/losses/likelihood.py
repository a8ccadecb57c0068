"""The likelihood of pairs of codes: deep pairwise-supervised hashing, and HashNet's weights."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class Likelihood(Loss):
    """Over the pairs of a batch, with s = 1 for the same class, else 0, and Θ = scale b₁·b₂, the mean of

        w (log(1 + exp Θ) - s Θ)

    and ``quantization`` times the mean of (b - sign(b))². With w = 1 and ``scale: 0.5`` that of: Li, Wang and Kang,
    "Feature Learning based Deep Supervised Hashing with Pairwise Labels", IJCAI 2016. ``balanced`` gives pairs of the
    same class the weight that the others have, and with ``continuation`` c, b is tanh(β x), β = √(1 + c step) of the
    code x, so that it comes near the sign while it is trained: Cao, Long, Wang and Yu, "HashNet: Deep Learning to Hash
    by Continuation", ICCV 2017 (whose program has c = 0.005 and no quantization).
    """

    name: ClassVar[str] = "likelihood"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "code"})
    of_pairs: ClassVar[bool] = True

    class Options(Loss.Options):
        """scale: of the products; 10 over the bits where left out. balanced: the weights w. quantization: weight of the
        distance to ±1. continuation: how fast b becomes the sign; 0: b is the code itself."""

        scale: float | None = Field(default=None, gt=0)
        balanced: bool = False
        quantization: float = Field(default=0.1, ge=0)
        continuation: float = Field(default=0.0, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._likelihood import LikelihoodModule

        assert task.bits is not None  # the public method saw to it
        o = self.options
        return LikelihoodModule(o.scale or 10 / task.bits, o.balanced, o.quantization, o.continuation)
