"""Filter trees as SQL over a column of terms: a text that spells every key with every value that a filter can equal.

LanceDB has no JSON that means the same as filters do, but it looks for a text in a text quickly. What its SQL cannot
say (an order, long lists, deep nesting) is applied to what the rest lets pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cbir_faiss.base.filters import And, In, Not, Or, Where

_END = "\x1f"  # JSON has no such character: it escapes it
_MOST = 100
_DEEPEST = 8  # LanceDB's parser ends at about twenty, and takes ever longer


def terms_of(payload: Mapping[str, Any]) -> str:
    """The terms of a payload; of a list, those of its elements."""
    found = {
        _term(key, value)
        for key, held in payload.items()
        for value in (held if isinstance(held, list | tuple) else (held,))
        if value is None or isinstance(value, str | int | float)
    }
    return _END + "".join(sorted(found))


def compile_where(where: Where, column: str) -> tuple[str | None, bool]:
    """A test that everything passes that ``where`` matches (None: all does), and whether nothing else passes it."""
    return _compile(where, column, _DEEPEST)


def _compile(where: Where, column: str, deepest: int) -> tuple[str | None, bool]:
    if not deepest:
        return None, False
    if isinstance(where, And | Or):
        return _joined(where, [_compile(part, column, deepest - 1) for part in where.parts])
    if isinstance(where, Not):
        inner, exact = _compile(where.part, column, deepest - 1)
        return (f"NOT ({inner})", True) if exact else (None, False)
    if isinstance(where, In) and len(where.values) <= _MOST:
        tests = [f"contains({column}, {_literal(_END + _term(where.key, value))})" for value in where.values]
        return " OR ".join(tests) or "FALSE", True
    return None, False


def _joined(where: And | Or, parts: Sequence[tuple[str | None, bool]]) -> tuple[str | None, bool]:
    tests = [f"({test})" for test, _ in parts if test is not None]
    exact = all(exact for _, exact in parts)
    if isinstance(where, And):
        return " AND ".join(tests) or None, exact
    return (" OR ".join(tests), exact) if len(tests) == len(parts) else (None, False)


def _term(key: str, value: Any) -> str:
    # 3 equals 3.0, so both are spelt 3; JSON spells true, null and texts as nothing else.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{json.dumps(key)}:{json.dumps(value)}{_END}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
