"""Options: what is wrong is named, and a missing library says how to install it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import Field, field_validator

from cbir_faiss.base.options import Bits, Options, RelativePath, need, parse_options
from cbir_faiss.errors import ConfigError, MissingDependency


class Example(Options):
    bits: Bits
    rate: float = 0.5
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    path: RelativePath | None = None
    sizes: tuple[int, ...] = ()
    name: str = Field("x", min_length=1)

    @field_validator("name")
    @classmethod
    def _no_spaces(cls, value: str) -> str:
        if " " in value:
            raise ValueError("must not have spaces")
        return value


def test_what_is_given_and_what_is_left_out() -> None:
    options = parse_options(Example, {"bits": np.int64(64), "sizes": [1, 2], "path": Path("b/../c")}, folder="/a")
    assert (options.bits, options.rate, options.sizes, options.path) == (64, 0.5, (1, 2), Path("/a/c"))


def test_an_absolute_path_stays() -> None:
    assert parse_options(Example, {"bits": 8, "path": "/x/y"}, folder="/a").path == Path("/x/y")


def test_options_do_not_change_afterwards() -> None:
    options = parse_options(Example, {"bits": 8})
    with pytest.raises(ValueError, match="frozen"):
        options.bits = 16  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({}, "bits", "is required"),
        ({"bits": 12}, "bits", "must be a multiple of 8"),
        ({"bits": 0}, "bits", "must be greater than or equal to 8"),
        ({"bits": "64"}, "bits", "must be a integer|must be a valid integer|integer"),
        ({"bits": 8, "flag": 1}, "flag", "boolean"),
        ({"bits": 8, "rate": "1e-3"}, "rate", "number"),
        ({"bits": 8, "mode": "c"}, "mode", "'a' or 'b'"),
        ({"bits": 8, "bit": 3}, "bit", "did you mean 'bits'"),
        ({"bits": 8, "zzzzz": 3}, "zzzzz", "the keys are: bits, flag"),
        ({"bits": 8, "sizes": [1, "2"]}, "sizes.1", "integer"),
        ({"bits": 8, "name": "a b"}, "name", "must not have spaces"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_options(Example, values)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


def test_a_value_that_no_option_can_have() -> None:
    with pytest.raises(ConfigError, match="not a value that an option can have"):
        parse_options(Example, {"bits": object()})


def test_a_missing_library() -> None:
    with pytest.raises(MissingDependency, match=r"pip install 'cbir-faiss\[cpu\]'"):
        need("no_such_library_anywhere.part", "cpu")


def test_a_library_whose_own_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import something_else_that_is_missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_else"):
        need("half_installed", "cpu")
    assert "half_installed" not in sys.modules


def test_an_installed_library() -> None:
    assert need("json", "cpu").dumps([1]) == "[1]"
