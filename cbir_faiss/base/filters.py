"""Filters over payloads: one small tree, written as a mapping in Python and YAML or as text on the command line.

    {"label": "cat"}                                  equality
    {"year": {"gte": 1990, "lt": 2000}}               range: gt, gte, lt, lte
    {"label": {"in": ["cat", "dog"]}}                 one of
    {"and": [A, B]}   {"or": [A, B]}   {"not": A}     several keys in one mapping are joined by and
    label = "cat" and (year >= 1990 or not tag in ("x", "y"))

A missing key matches nothing, so ``not`` of a condition on a missing key matches. A list value matches where any of its
elements does. A range compares numbers with numbers and text with text; anything else does not match. true equals only
true, never 1.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cbir_faiss.errors import InputError

Scalar = str | int | float | bool | None
RangeOp = Literal["gt", "gte", "lt", "lte"]
MAX_DEPTH = 100

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_SIGNS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}


@dataclass(frozen=True, slots=True)
class In:
    """The value under ``key`` equals one of ``values``; equality is the case of one."""

    key: str
    values: tuple[Scalar, ...]

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(_same(v, w) for v in _values(payload, self.key) for w in self.values)


@dataclass(frozen=True, slots=True)
class Range:
    """The value under ``key`` compares to ``bound`` as ``op`` says."""

    key: str
    op: RangeOp
    bound: float | str

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(
            _is_number(v) == _is_number(self.bound)
            and isinstance(v, (int, float, str))
            and not isinstance(v, bool)
            and _COMPARE[self.op](v, self.bound)
            for v in _values(payload, self.key)
        )


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Where, ...]

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return all(part.matches(payload) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Where, ...]

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return any(part.matches(payload) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    part: Where

    def matches(self, payload: Mapping[str, Any]) -> bool:
        return not self.part.matches(payload)


Where = In | Range | And | Or | Not


def parse_where(where: Where | Mapping[str, Any] | str) -> Where:
    """The filter tree of a mapping or a text; a tree passes through.

    Raises:
        InputError: where the form is not one of those in the module's docstring; the message says what was met. Or it
            is nested deeper than ``MAX_DEPTH``: engines work through it by recursion, and some end the process.
    """
    try:
        tree = _parsed(where)
    except RecursionError:
        raise _too_deep() from None
    level: tuple[Where, ...] = (tree,)
    for _ in range(MAX_DEPTH):
        level = tuple(inner for part in level for inner in _inside(part))
        if not level:
            return tree
    raise _too_deep()


def _too_deep() -> InputError:
    return InputError(f"a filter is nested at most {MAX_DEPTH} deep: join conditions on one key by 'in'")


def _inside(where: Where) -> tuple[Where, ...]:
    if isinstance(where, Not):
        return (where.part,)
    return where.parts if isinstance(where, (And, Or)) else ()


def _parsed(where: Where | Mapping[str, Any] | str) -> Where:
    if isinstance(where, (In, Range, And, Or, Not)):
        return where
    if isinstance(where, str):
        return _Text(where).parse()
    if isinstance(where, Mapping):
        return _from_mapping(where)
    raise InputError(f"a filter is a mapping or a text, not {type(where).__name__}")


def _from_mapping(where: Mapping[str, Any]) -> Where:
    parts = [_from_item(key, value) for key, value in where.items()]
    if not parts:
        raise InputError("an empty filter matches everything: leave it out")
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _from_item(key: Any, value: Any) -> Where:
    if not isinstance(key, str):
        raise InputError(f"a filter's key must be text, not {key!r}")
    if key in ("and", "or"):
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise InputError(f"'{key}' takes a list of filters")
        parts = tuple(_parsed(part) for part in value)
        return And(parts) if key == "and" else Or(parts)
    if key == "not":
        return Not(_parsed(value))
    if isinstance(value, Mapping):
        parts = tuple(_from_operator(key, op, operand) for op, operand in value.items())
        if not parts:
            raise InputError(f"filter on '{key}': no operator; use in, gt, gte, lt or lte")
        return parts[0] if len(parts) == 1 else And(parts)
    return In(key, (_scalar(key, value),))


def _from_operator(key: str, op: Any, operand: Any) -> Where:
    if op == "in":
        if not isinstance(operand, (list, tuple, set, frozenset)):
            raise InputError(f"filter on '{key}': 'in' takes a list")
        return In(key, tuple(_scalar(key, v) for v in operand))
    if op in _COMPARE:
        if not isinstance(operand, (int, float, str)) or isinstance(operand, bool):
            raise InputError(f"filter on '{key}': '{op}' compares numbers or texts, not {operand!r}")
        return Range(key, op, operand)
    raise InputError(f"filter on '{key}': unknown operator {op!r}; use in, gt, gte, lt or lte")


def _scalar(key: str, value: Any) -> Scalar:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise InputError(f"filter on '{key}': {value!r} is not a text, number, true, false or null")


def _values(payload: Mapping[str, Any], key: str) -> Sequence[Any]:
    if key not in payload:
        return ()
    value = payload[key]
    return value if isinstance(value, (list, tuple)) else (value,)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)
    |(?P<word>[^\W\d][\w.\-/]*)
    |(?P<sign><=|>=|!=|=|<|>|\(|\)|,))""",
    re.VERBOSE,
)
_CONSTANTS: dict[str, Scalar] = {"true": True, "false": False, "null": None}


class _Text:
    """Recursive descent over: or → and → not → comparison."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                raise InputError(f"filter {_short(text)}: cannot read {text[at : at + 40].strip()[:20]!r}")
            self.tokens.append((str(found.lastgroup), found.group(str(found.lastgroup))))
            at = found.end()
        self.at = 0

    def parse(self) -> Where:
        tree = self._or()
        if self.at < len(self.tokens):
            raise self._expected("'and', 'or' or the end")
        return tree

    def _or(self) -> Where:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Where:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Where:
        if self._take("not"):
            return Not(self._not())
        if self._take("("):
            tree = self._or()
            self._demand(")")
            return tree
        return self._comparison()

    def _comparison(self) -> Where:
        key = self._key()
        if self._take("in"):
            self._demand("(")
            values = [self._value()]
            while self._take(","):
                values.append(self._value())
            self._demand(")")
            return In(key, tuple(values))
        kind, sign = self._next()
        if kind == "sign" and sign in ("=", "!="):
            equal = In(key, (self._value(),))
            return equal if sign == "=" else Not(equal)
        if kind == "sign" and sign in _SIGNS:
            return _from_operator(key, _SIGNS[sign], self._value())
        self.at -= 1
        raise self._expected("=, !=, <, <=, >, >= or in")

    def _key(self) -> str:
        kind, token = self._next()
        if kind == "word":
            return token
        if kind == "string":
            return _unquote(token)
        self.at -= 1
        raise self._expected("a payload key")

    def _value(self) -> Scalar:
        kind, token = self._next()
        if kind == "string":
            return _unquote(token)
        if kind == "number":
            return float(token) if any(c in token for c in ".eE") else self._whole(token)
        if kind == "word" and token in _CONSTANTS:
            return _CONSTANTS[token]
        self.at -= 1
        raise self._expected('a number, true, false, null or a text in quotes (label = "cat")')

    def _whole(self, token: str) -> int:
        try:
            return int(token)
        except ValueError:  # Python reads no more than some thousands of digits
            raise InputError(f"filter {_short(self.text)}: a number of {len(token)} digits") from None

    def _next(self) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            self.at += 1
            return "", ""
        self.at += 1
        return self.tokens[self.at - 1]

    def _take(self, token: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at] in (("word", token), ("sign", token)):
            self.at += 1
            return True
        return False

    def _demand(self, token: str) -> None:
        if not self._take(token):
            raise self._expected(repr(token))

    def _expected(self, what: str) -> InputError:
        met = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end"
        return InputError(f"filter {_short(self.text)}: expected {what}, met {met!r}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def _unquote(token: str) -> str:
    if token[0] == '"':
        try:
            return str(json.loads(token, strict=False))
        except ValueError as error:
            raise InputError(f"filter: {_short(token)} is no text of JSON: {error}") from None
    return token[1:-1].replace("\\'", "'").replace("\\\\", "\\")
