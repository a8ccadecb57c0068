"""Filters: the two forms agree, the algebra holds, and what cannot be read is refused with what was met."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.base.filters import MAX_DEPTH, And, In, Not, Or, Range, Where, parse_where
from cbir_faiss.errors import InputError

KEYS = ["a", "label", "x y", "né"]
TEXTS = st.sampled_from(["", "cat", "dog", 'o"ne', "it's", "back\\slash", "žába", "and", "1"])
NUMBERS = st.one_of(st.integers(-5, 5), st.sampled_from([0.5, -1.25, 2.0]))
SCALARS = st.one_of(TEXTS, NUMBERS, st.booleans(), st.none())
PAYLOADS = st.dictionaries(st.sampled_from(KEYS), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)))
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    keys = st.sampled_from(KEYS)
    equal = st.builds(lambda k, v: {k: v}, keys, SCALARS)
    one_of = st.builds(lambda k, v: {k: {"in": v}}, keys, st.lists(SCALARS, min_size=1, max_size=3))
    bounds = st.one_of(NUMBERS, TEXTS)
    ordered = st.builds(lambda k, o, v: {k: {o: v}}, keys, st.sampled_from(["gt", "gte", "lt", "lte"]), bounds)
    return st.one_of(equal, one_of, ordered)


FILTERS = st.recursive(
    _leaves(),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"and": parts}, st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda parts: {"or": parts}, st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)


def as_text(where: Where) -> str:
    """The text form of a tree, every part in brackets."""
    match where:
        case And(parts):
            return "(" + " and ".join(map(as_text, parts)) + ")"
        case Or(parts):
            return "(" + " or ".join(map(as_text, parts)) + ")"
        case Not(part):
            return f"not ({as_text(part)})"
        case Range(key, op, bound):
            sign = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[op]
            return f"{_quoted(key)} {sign} {_literal(bound)}"
        case In(key, values):
            return f"{_quoted(key)} in ({', '.join(map(_literal, values))})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@QUICK
@given(FILTERS)
def test_the_text_form_is_the_mapping_form(mapping: dict[str, Any]) -> None:
    tree = parse_where(mapping)
    assert repr(parse_where(as_text(tree))) == repr(tree)


@QUICK
@given(FILTERS, FILTERS, PAYLOADS)
def test_the_algebra_of_and_or_not(a: dict[str, Any], b: dict[str, Any], payload: dict[str, Any]) -> None:
    def matches(where: Any) -> bool:
        return parse_where(where).matches(payload)

    assert matches({"not": a}) is not matches(a)
    assert matches({"and": [a, b]}) == (matches(a) and matches(b))
    assert matches({"or": [a, b]}) == (matches(a) or matches(b))
    assert matches({"not": {"and": [a, b]}}) == matches({"or": [{"not": a}, {"not": b}]})


@QUICK
@given(FILTERS)
def test_a_missing_key_matches_nothing(where: dict[str, Any]) -> None:
    tree = parse_where(where)
    if isinstance(tree, (In, Range)):
        assert not tree.matches({})
        assert parse_where({"not": where}).matches({})


@pytest.mark.parametrize(
    ("where", "payload", "expected"),
    [
        ({"x": 1}, {"x": True}, False),
        ({"x": True}, {"x": 1}, False),
        ({"x": 1}, {"x": 1.0}, True),
        ({"x": 1}, {"x": "1"}, False),
        ({"x": None}, {"x": None}, True),
        ({"x": None}, {}, False),
        ({"x": "b"}, {"x": ["a", "b"]}, True),
        ({"x": {"gt": 1}}, {"x": [0, 2]}, True),
        ({"x": {"gt": 1}}, {"x": "2"}, False),
        ({"x": {"gt": 0}}, {"x": True}, False),
        ({"x": {"gt": "a"}}, {"x": "b"}, True),
        ({"x": {"gt": 1}}, {"x": None}, False),
        ({"x": 1, "y": 2}, {"x": 1, "y": 3}, False),
        ({"x": {"gte": 1, "lt": 2}}, {"x": 1}, True),
        ({"x": {"in": []}}, {"x": 1}, False),
        ('label = "cat" and (year >= 1990 or not tag in ("x", "y"))', {"label": "cat", "year": 1, "tag": "z"}, True),
        ('label = "cat" and (year >= 1990 or not tag in ("x", "y"))', {"label": "cat", "year": 1, "tag": "x"}, False),
        ("a = 1 or b = 1 and c = 1", {"a": 1}, True),
        ("not a = 1 and b = 2", {"b": 2}, True),
        ("label != 'it\\'s'", {"label": "it's"}, False),
        ("x = -1.5e1", {"x": -15}, True),
        ("x = true", {"x": True}, True),
        ("x = null", {"x": None}, True),
        ('"x y" < 3', {"x y": 2}, True),
    ],
)
def test_matches(where: Any, payload: dict[str, Any], expected: bool) -> None:
    assert parse_where(where).matches(payload) is expected


def test_a_tree_passes_through() -> None:
    tree = Not(In("a", (1,)))
    assert parse_where(tree) is tree


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({}, "empty filter"),
        ([], "mapping or a text"),
        ({1: 2}, "key must be text"),
        ({"and": {"a": 1}}, "takes a list"),
        ({"or": []}, "takes a list"),
        ({"and": [1]}, "mapping or a text"),
        ({"a": {}}, "no operator"),
        ({"a": {"like": "x"}}, "unknown operator 'like'"),
        ({"a": {"in": "cat"}}, "'in' takes a list"),
        ({"a": {"gt": True}}, "compares numbers or texts"),
        ({"a": {"gt": None}}, "compares numbers or texts"),
        ({"a": [1, 2]}, "is not a text, number"),
        ({"a": {"in": [[1]]}}, "is not a text, number"),
        ("", "expected a payload key, met 'the end'"),
        ("label", "expected =, !=, <"),
        ("label = cat", "quotes"),
        ("label = ", "met 'the end'"),
        ('label = "cat" dog', "'and', 'or' or the end"),
        ('(label = "cat"', r"expected '\)'"),
        ("label in ()", "a number, true"),
        ("label in 3", r"expected '\('"),
        ("a ~ 3", "cannot read '~ 3'"),
        ("a > true", "compares numbers or texts"),
        ("= 3", "a payload key"),
        ("a = 'open", "cannot read"),
        ('a = "\\q"', "no text of JSON: Invalid"),
        ("a = " + "9" * 5000, "a number of 5000 digits"),
    ],
)
def test_what_cannot_be_read(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_where(where)


NESTED: dict[str, Any] = {
    "not": lambda n: "not " * n + "a = 1",
    "brackets": lambda n: "not (" * n + "a = 1" + ")" * n,
    "mapping": lambda n: {"not": NESTED["mapping"](n - 1)} if n else {"a": 1},
    "tree": lambda n: Not(NESTED["tree"](n - 1)) if n else In("a", (1,)),
    "lists": lambda n: {"and": [{"a": 1}, NESTED["lists"](n - 1)]} if n else {"a": 1},
}


@pytest.mark.parametrize("form", NESTED)
def test_nested_filters_answer_or_are_refused_in_one_line(form: str) -> None:
    for depth in (70, MAX_DEPTH - 1):
        assert parse_where(NESTED[form](depth)).matches({"a": 1}) is (depth % 2 == 0 or form == "lists")
    for depth in (MAX_DEPTH, 300):
        with pytest.raises(InputError, match="nested at most 100 deep"):
            parse_where(NESTED[form](depth))
    if form in ("not", "brackets"):
        with pytest.raises(InputError, match="nested at most 100 deep"):
            parse_where(NESTED[form](100_000))


def test_long_lists_are_read() -> None:
    text = f"a in ({', '.join(map(str, range(40_000)))})"
    assert parse_where(text) == In("a", tuple(range(40_000)))
    assert parse_where({"a": {"in": list(range(40_000))}}).matches({"a": 39_999})
    with pytest.raises(InputError) as caught:
        parse_where(f"{text} or")
    assert len(str(caught.value)) < 400


def test_integers_of_any_size_are_compared_exactly() -> None:
    assert parse_where(f"a = {2**70}").matches({"a": 2**70})
    assert not parse_where(f"a > {2**70}").matches({"a": 2**70})
    assert parse_where(f"a < {2**70}").matches({"a": 2**70 - 1})
