"""Several extractors over the same picture, read once: an embedding beside what another extractor knows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.base.options import parse_options
from cbir_faiss.base.registry import load, make_section, section
from cbir_faiss.errors import ConfigError
from cbir_faiss.types import Columns


class Joined(base.Extractor):
    """``{name: joined, of: [{name: trained, path: runs/x}, {name: phash}]}``: the columns of every part, side by side.

    Columns keep their names; one whose name an earlier part has taken is called ``<plugin>.<column>``, as
    ``phash.embedding``. Option ``columns`` says otherwise.
    """

    name: ClassVar[str] = "joined"
    free_options: ClassVar[frozenset[str]] = frozenset({"of"})  # the parts count by their own fingerprints

    class Options(base.Options):
        """of: two or more extractors of pictures; options in them are not swept over. embeddings: the columns to be
        compared one by one: those of the ``first`` part, of ``all`` parts, or a list of names, the first of which is
        what a collection indexes. columns: for each part, a mapping of the columns that are wanted to their names."""

        of: tuple[Annotated[dict[str, Any], section("extractors")], ...] = Field(min_length=2)
        embeddings: Literal["first", "all"] | tuple[str, ...] = "first"
        columns: tuple[dict[str, str], ...] | None = None

        @model_validator(mode="after")
        def _goes_together(self) -> Joined.Options:
            for number, part in enumerate(self.of):
                if load("extractors", part["name"]).reads != "image":  # type: ignore[attr-defined]
                    raise ConfigError(f"'{part['name']}' does not read pictures", path=f"of.{number}.name")
            if self.columns is not None and len(self.columns) != len(self.of):
                raise ConfigError(f"names the columns of {len(self.columns)} parts of {len(self.of)}", path="columns")
            chosen = self.embeddings
            if isinstance(chosen, tuple) and len(set(chosen)) != max(1, len(chosen)):
                raise ConfigError("must name at least one column, and none twice", path="embeddings")
            return self

    options: Options

    def _setup(self) -> None:
        self._parts: list[base.Extractor] = []
        for number, part in enumerate(self.options.of):
            try:
                self._parts.append(make_section("extractors", part))
            except ConfigError as error:
                raise ConfigError(error.message, path=f"of.{number}.{error.path}".rstrip(".")) from error

    @cached_property
    def _names(self) -> tuple[dict[str, str], ...]:
        """For each part, the names here of its columns.

        Raises:
            ConfigError: two columns of one name, or one that the part does not have.
        """
        names = self.options.columns or self._own_names()
        taken: dict[str, int] = {}
        for number, (part, chosen) in enumerate(zip(self._parts, names, strict=True)):
            for column, name in chosen.items():
                if column not in part.outputs:
                    raise ConfigError(
                        f"'{part.name}' has no column '{column}'; it has {', '.join(part.outputs)}",
                        path=f"columns.{number}.{column}",
                    )
                if name in taken:
                    raise ConfigError(
                        f"parts {taken[name]} and {number} both give a column '{name}': name them apart", path="columns"
                    )
                taken[name] = number
        return names

    def _own_names(self) -> tuple[dict[str, str], ...]:
        taken: set[str] = set()
        names = []
        for part in self._parts:
            names.append({column: f"{part.name}.{column}" if column in taken else column for column in part.outputs})
            taken |= set(names[-1].values())
        return tuple(names)

    @cached_property
    def _outputs(self) -> dict[str, tuple[int, str]]:
        columns = {
            name: part.outputs[column]
            for part, names in zip(self._parts, self._names, strict=True)
            for column, name in names.items()
        }
        for name in self.embeddings:
            if name not in columns or columns[name][1] != "float32":
                there = ", ".join(name for name, (_, dtype) in columns.items() if dtype == "float32") or "none"
                raise ConfigError(f"'{name}' is no float column; there are: {there}", path="embeddings")
        first = {name: columns[name] for name in self.embeddings}
        return {**first, **columns}

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return self._outputs

    @property
    def embeddings(self) -> tuple[str, ...]:
        chosen = self.options.embeddings
        if isinstance(chosen, tuple):
            return chosen
        parts = list(zip(self._parts, self._names, strict=True))[: 1 if chosen == "first" else None]
        found = tuple(names[column] for part, names in parts for column in part.embeddings if column in names)
        if not found:
            raise ConfigError("leaves no embedding; name the columns that are, in option embeddings", path="columns")
        return found

    @property
    def min_side(self) -> int | None:
        each = [part.min_side for part in self._parts]
        needed = [pixels for pixels in each if pixels is not None]
        return max(needed) if len(needed) == len(each) else None

    @property
    def supervised(self) -> bool:
        return any(part.supervised for part in self._parts)

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Each part in a sub-folder by its number. A frozen part may be another plugin, with other ideas of what its
        embeddings are, so names and embeddings are written out."""
        return self.name, {
            "of": [self._frozen(part, folder, str(number)) for number, part in enumerate(self._parts)],
            "embeddings": list(self.embeddings),
            "columns": [dict(names) for names in self._names],
        }

    @staticmethod
    def _frozen(part: base.Extractor, folder: Path, place: str) -> dict[str, Any]:
        (folder / place).mkdir()
        name, options = part.freeze(folder / place)
        # Its file options are relative to its own folder, and come out relative to ours.
        moved = parse_options(load("extractors", name).Options, options, folder=place).model_dump(mode="json")
        return {"name": name, **{key: moved[key] for key in options}}

    def cache_key(self) -> str:
        return self._digest_of(json.dumps([part.cache_key() for part in self._parts]))

    def _load(self) -> None:
        for part in self._parts:
            part.load()

    def _weights_digest(self) -> str:
        return json.dumps([part.fingerprint() for part in self._parts])

    @property
    def reads_text(self) -> bool:
        return self._first()[0].reads_text

    def _embed_text(self, texts: Sequence[str]) -> Columns:
        part, names = self._first()
        found = part.embed_text(texts)
        return {names[column]: x for column, x in found.items() if names.get(column) == self.embeddings[0]}

    def _first(self) -> tuple[base.Extractor, dict[str, str]]:
        """The part that gives the first embedding, and the names of its columns here."""
        pairs = zip(self._parts, self._names, strict=True)
        return next((part, names) for part, names in pairs if self.embeddings[0] in names.values())

    def _prepare(self, item: Any) -> NDArray[Any]:
        """A 0-d structured array with a field for each part, so that a stack of items is one array."""
        prepared = [part.prepare(item) for part in self._parts]
        joined = np.empty((), [(str(number), x.dtype, x.shape) for number, x in enumerate(prepared)])
        for number, x in enumerate(prepared):
            joined[str(number)] = x
        return joined

    def _extract(self, batch: NDArray[Any]) -> Columns:
        columns: dict[str, NDArray[Any]] = {}
        for number, (part, names) in enumerate(zip(self._parts, self._names, strict=True)):
            found = part.extract(np.ascontiguousarray(batch[str(number)]))
            columns |= {name: found[column] for column, name in names.items()}
        return columns
