"""Filters by terms: what an engine without JSON that means what filters mean can still look for quickly.

A term spells one key with one value that a filter can equal. What terms cannot say (an order, long lists, deep nesting)
is applied to what the rest lets pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cbir_faiss.base.filters import And, In, Not, Or, Where

_END = "\x1f"  # JSON has no such character: it escapes it
_DEEPEST = 8  # LanceDB's parser ends at about twenty, and takes ever longer


def terms(payload: Mapping[str, Any]) -> list[str]:
    """The terms of a payload, each once, in order; of a list, those of its elements."""
    return sorted(
        {
            term(key, value)
            for key, held in payload.items()
            for value in (held if isinstance(held, list | tuple) else (held,))
            if value is None or isinstance(value, str | int | float)
        }
    )


def term(key: str, value: Any) -> str:
    """The term of one key and value, ended by a character that is in no key and no value."""
    # 3 equals 3.0, so both are spelt 3; JSON spells true, null and texts as nothing else.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{json.dumps(key)}:{json.dumps(value)}{_END}"


def terms_of(payload: Mapping[str, Any]) -> str:
    """The terms of a payload as one text."""
    return _END + "".join(terms(payload))


def compile_where(where: Where, column: str) -> tuple[str | None, bool]:
    """``where`` as SQL over a ``column`` of ``terms_of``, and whether nothing else passes it; see ``compile_terms``."""

    def among(found: In) -> str:
        return " or ".join(_contains(column, found.key, value) for value in found.values) or "FALSE"

    return compile_terms(where, among, most=100)


def flat(word: str, tests: Sequence[str]) -> str:
    """Tests one after the other."""
    return f" {word} ".join(tests)


def balanced(word: str, tests: Sequence[str]) -> str:
    """Tests in pairs, for an engine that nests what stands one after the other."""
    if len(tests) < 3:
        return flat(word, tests)
    half = len(tests) // 2
    return f"({balanced(word, tests[:half])}) {word} ({balanced(word, tests[half:])})"


def compile_terms(
    where: Where,
    among: Callable[[In], str],
    *,
    most: int,
    negates: bool = True,
    deepest: int = _DEEPEST,
    join: Callable[[str, Sequence[str]], str] = flat,
) -> tuple[str | None, bool]:
    """A test that everything passes that ``where`` matches (None: all does), and whether nothing else passes it.

    among: the test for a key that has one of at most ``most`` values. negates: whether the engine has NOT. deepest: as
    deep as the engine nests tests. join: tests by ``and`` or ``or``.
    """
    if not deepest:
        return None, False
    if isinstance(where, In):
        return (among(where), True) if len(where.values) <= most else (None, False)
    inner = partial(compile_terms, among=among, most=most, negates=negates, deepest=deepest - 1, join=join)
    if isinstance(where, And | Or):
        return _joined(where, [inner(part) for part in where.parts], join)
    if isinstance(where, Not) and negates:
        test, exact = inner(where.part)
        return (f"not ({test})", True) if exact else (None, False)
    return None, False


def _joined(
    where: And | Or, parts: Sequence[tuple[str | None, bool]], join: Callable[[str, Sequence[str]], str]
) -> tuple[str | None, bool]:
    tests = [f"({test})" for test, _ in parts if test is not None]
    exact = all(exact for _, exact in parts)
    if isinstance(where, And):
        return join("and", tests) or None, exact
    return (join("or", tests), exact) if len(tests) == len(parts) else (None, False)


def _contains(column: str, key: str, value: Any) -> str:
    text = _END + term(key, value)
    return f"contains({column}, '" + text.replace("'", "''") + "')"
