"""Unsupervised, without a teacher: a picture's code is the same however it is altered, and other pictures' are not."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class CIBHash(Loss):
    """Mean over two alterations of each picture of -log softmax of cos(b, b′) / ``temperature`` among all but b itself.

    b′ is the other alteration of the same picture. b is the sign of the code, passed over backwards to p =
    sigmoid(code). To that comes ``bottleneck`` times the divergence of the two codes' probabilities, the sum over bits
    of KL(p, p′), both ways. From: Qiu, Su, Ou, Yu and Chen, "Unsupervised Hashing with Contrastive Information
    Bottleneck", IJCAI 2021.
    """

    name: ClassVar[str] = "cibhash"
    needs: ClassVar[frozenset[Need]] = frozenset({"code"})
    of_pairs: ClassVar[bool] = True
    twice: ClassVar[bool] = True

    class Options(Loss.Options):
        """temperature: of the softmax. bottleneck: weight of the divergence."""

        temperature: float = Field(default=0.3, gt=0)
        bottleneck: float = Field(default=0.001, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._cibhash import CIBHashModule

        return CIBHashModule(self.options.temperature, self.options.bottleneck)
