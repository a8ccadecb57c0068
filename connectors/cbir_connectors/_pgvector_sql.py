"""Filter trees as SQL over a jsonb payload. Every value, key and path is a bound parameter; nothing is pasted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cbir_faiss.base.filters import And, In, Not, Or, Range, Scalar, Where
from cbir_faiss.errors import InputError

_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_FEW = 32
"""Values for which each has its own test, which an index can serve; a statement has at most 65,535 parameters."""


def compile_where(where: Where, payload: Any, sql: Any) -> tuple[Any, list[str]]:
    """A boolean SQL expression over the jsonb expression ``payload``, never NULL, and its parameters in order.

    sql: the module ``psycopg.sql``.
    """
    if isinstance(where, And):
        return _joined(where.parts, " AND ", payload, sql)
    if isinstance(where, Or):
        return _joined(where.parts, " OR ", payload, sql)
    if isinstance(where, Not):
        inner, parameters = compile_where(where.part, payload, sql)
        return sql.SQL("NOT ({})").format(inner), parameters
    if isinstance(where, In):
        return _in(where, payload, sql)
    return _range(where, payload, sql)


def _joined(parts: tuple[Where, ...], word: str, payload: Any, sql: Any) -> tuple[Any, list[str]]:
    compiled = [compile_where(part, payload, sql) for part in parts]
    joined = sql.SQL(word).join(sql.SQL("({})").format(text) for text, _ in compiled)
    return joined, [value for _, values in compiled for value in values]


def _in(where: In, payload: Any, sql: Any) -> tuple[Any, list[str]]:
    if not where.values:
        return sql.SQL("FALSE"), []
    if len(where.values) > _FEW:
        return _among(where, payload, sql)
    # Containment compares as filters do: 3 is 3.0, 1 is not true, and a GIN index on the payload serves it.
    one = sql.SQL("{payload} @> %s::jsonb").format(payload=payload)
    parameters = [_json(document) for value in where.values for document in ({where.key: value}, {where.key: [value]})]
    return sql.SQL(" OR ").join([one] * len(parameters)), parameters


def _among(where: In, payload: Any, sql: Any) -> tuple[Any, list[str]]:
    """The value, or an element of it, is looked up in one hashed list, whose numbers are equal as jsonb's are."""
    value = sql.SQL("({} -> %s::text)").format(payload)
    return sql.SQL(
        "{payload} ? %s::text AND EXISTS (SELECT FROM jsonb_array_elements(CASE jsonb_typeof({value}) "
        "WHEN 'array' THEN {value} ELSE jsonb_build_array({value}) END) AS one(element) "
        "WHERE element IN (SELECT jsonb_array_elements(%s::jsonb) OFFSET 0))"
    ).format(value=value, payload=payload), [*[where.key] * 4, _json(list(where.values))]


def _range(where: Range, payload: Any, sql: Any) -> tuple[Any, list[str]]:
    # Strict paths, because lax ones look into lists of lists too. Comparing a number with a text is unknown, which is
    # no match; a missing key and a value that is no list are errors, silenced to NULL.
    one = sql.SQL("coalesce(jsonb_path_exists({payload}, %s::jsonpath, %s::jsonb, true), false)").format(
        payload=payload
    )
    test = f"? (@ {_SIGNS[where.op]} $bound)"
    key, bound = json.dumps(where.key), _json({"bound": where.bound})
    return sql.SQL("{one} OR {one}").format(one=one), [
        f"strict $.{key} {test}",
        bound,
        f"strict $.{key}[*] {test}",
        bound,
    ]


def _json(value: Mapping[str, Scalar | list[Scalar]] | list[Scalar]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise InputError(f"a filter compares with finite values, not {value!r}") from error
