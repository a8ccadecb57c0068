"""Filter trees as Qdrant filters, for the client and for Qdrant Edge, whose classes differ a little."""

from __future__ import annotations

from typing import Any

from cbir_faiss.base.filters import And, In, Not, Or, Range, Scalar, Where

_EXACT_FLOAT = 2**53
_MOST_NUMBERS = 500
_DEEPEST = 50  # a server reads JSON of 128 levels, two of which a filter in a filter takes


class Untranslatable(Exception):
    """Part of a filter has no counterpart in Qdrant; the whole is then applied to over-fetched hits."""


class Dialect:
    """Conditions of ``qdrant_client.models``."""

    def __init__(self, models: Any) -> None:
        self.models = models

    def compile(self, where: Where) -> Any:
        """``where`` as a ``Filter``.

        Raises:
            Untranslatable: it compares texts by order, or names a key that Qdrant's paths cannot spell.
        """
        made = self._compile(where, _DEEPEST)
        return made if isinstance(made, self.models.Filter) else self.models.Filter(must=[made])

    def _compile(self, where: Where, deepest: int) -> Any:
        if not deepest:
            raise Untranslatable("a filter is nested too deep")
        if isinstance(where, And):
            return self.models.Filter(must=[self._compile(part, deepest - 1) for part in where.parts])
        if isinstance(where, Or):
            return self.models.Filter(should=[self._compile(part, deepest - 1) for part in where.parts])
        if isinstance(where, Not):
            return self.models.Filter(must_not=[self._compile(where.part, deepest - 1)])
        if isinstance(where, In):
            return self._in(where)
        return self._range(where)

    def _in(self, where: In) -> Any:
        if not where.values:  # an empty `should` would match everything
            return self.nothing()
        key, texts = path(where.key), [value for value in where.values if isinstance(value, str)]
        if len(where.values) - len(texts) > _MOST_NUMBERS:
            raise Untranslatable("each number is a condition of its own, which every item is tested with")
        others = [self._equal(key, value) for value in where.values if not isinstance(value, str)]
        if texts:
            others.append(self.match(key, self.models.MatchAny(any=texts)))
        return self.models.Filter(should=others)

    def _equal(self, key: str, value: Scalar) -> Any:
        if value is None:
            return self.null(key)
        if isinstance(value, bool):
            return self.boolean(key, value)
        if isinstance(value, int) and abs(value) >= _EXACT_FLOAT:
            if not -(2**63) <= value < 2**63:
                raise Untranslatable(f"{value} is beyond 64 bits")
            return self.match(key, self.models.MatchValue(value=value))
        # A match compares integers only, and 3 equals 3.0 here.
        return self.between(key, gte=value, lte=value)

    def _range(self, where: Range) -> Any:
        # Its numbers are doubles here, between which large integers fall.
        if isinstance(where.bound, str) or not abs(where.bound) < _EXACT_FLOAT:
            raise Untranslatable("Qdrant orders numbers of 53 bits only")
        return self.between(path(where.key), **{where.op: where.bound})

    def match(self, key: str, match: Any) -> Any:
        return self.models.FieldCondition(key=key, match=match)

    def boolean(self, key: str, value: bool) -> Any:
        return self.match(key, self.models.MatchValue(value=value))

    def between(self, key: str, **bounds: Any) -> Any:
        return self.models.FieldCondition(key=key, range=self.models.Range(**bounds))

    def null(self, key: str) -> Any:
        return self.models.IsNullCondition(is_null=self.models.PayloadField(key=key))

    def nothing(self) -> Any:
        return self.models.HasIdCondition(has_id=[])


class EdgeDialect(Dialect):
    """Conditions of ``qdrant_edge``."""

    def boolean(self, key: str, value: bool) -> Any:
        # qdrant-edge-py 0.9 reads True as the integer 1 here, which then matches 1 and not true.
        raise Untranslatable("Qdrant Edge has no match of true or false")

    def between(self, key: str, **bounds: Any) -> Any:
        return self.models.FieldCondition(key=key, range=self.models.RangeFloat(**bounds))

    def null(self, key: str) -> Any:
        return self.models.IsNullCondition(key)

    def nothing(self) -> Any:
        return self.models.HasIdCondition(set())


def path(key: str) -> str:
    """``key`` quoted as one step of Qdrant's JSON paths, where a bare dot would mean nesting."""
    if '"' in key or "\\" in key:
        raise Untranslatable(f"Qdrant's paths cannot spell the key {key!r}")
    return f'"{key}"'
