"""Kinds of concept: what people say around a name of each, as TOML files that anyone can write.

`templates/README.md` documents the keys; a file of one's own works as the shipped ones do.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import ConceptSpecError
from .plan import SELECTIVE, Layers, Recipe
from .text_files import read_text_file
from .words import SLOT

TOML = ".toml"
MAX_PHRASE = 2000
"""Characters of one phrase."""
FORMER_NAMES = {"instance": "object", "unsafe": "attribute"}
"""Kinds by the names that files written before 28 November 2026 have for them."""
_TEXTS = ("exact", "soft", "held_out", "near", "anchors", "preserve")
_WITH_SLOT = ("exact", "soft", "held_out", "near")
_OWN_OF_TABLES = ("exact", "soft", "held_out")
PLURAL = "plural"
"""The table whose phrases take the plural of the name."""


@dataclass(frozen=True)
class Kind:
    """What is said around the names of one kind. A phrase has one `{}` for the name.

    Raises:
        ConceptSpecError: A phrase has no slot or two; the message says which.
    """

    name: str
    exact: tuple[str, ...]
    """Held with zero residual."""
    soft: tuple[str, ...] = ()
    """Met by weighted least squares in the same closed form."""
    held_out: tuple[str, ...] = ()
    """Never solved for: what is left is measured on these."""
    near: tuple[str, ...] = ()
    """Frames for words that look like the name and must stay. Only measured, too."""
    anchors: tuple[str, ...] = ()
    """What may stand in a concept's place, the best first."""
    preserve: tuple[str, ...] = ()
    """Captions of siblings, kept beside the everyday ones."""
    description: str = ""
    plural_soft: tuple[str, ...] = ()
    """As `soft`, for the plural of the name."""
    plural_held_out: tuple[str, ...] = ()
    """As `held_out`, for the plural of the name."""
    layers: Layers = SELECTIVE.layers
    """What is edited unless one says otherwise, as in `erase`."""

    def __post_init__(self) -> None:
        what = f"the kind {self.name!r}"
        if not self.exact:
            raise ConceptSpecError(f"{what} has no exact phrase; give one, such as 'a {SLOT}'")
        for key in (*_WITH_SLOT, "plural_soft", "plural_held_out"):
            for i, phrase in enumerate(getattr(self, key)):
                check_phrase(phrase, f"{what}: {key}[{i}]")
        for i, caption in enumerate(self.preserve):
            if "{" in caption or "}" in caption:
                raise ConceptSpecError(
                    f"{what}: preserve[{i}] is a caption and takes no '{SLOT}', got {caption!r}"
                )
        seen = {*self.exact, *self.soft}
        for phrase in self.held_out:
            if phrase in seen:
                raise ConceptSpecError(
                    f"{what}: {phrase!r} is solved for and held out; what is measured must be "
                    "unseen, keep one"
                )

    @property
    def recipe(self) -> Recipe:
        """How a concept of this kind is erased unless one says otherwise."""
        return Recipe(self.layers)

    @property
    def countable(self) -> bool:
        """Whether its names are nouns with an article, which have a plural."""
        return any(phrase.endswith((f"a {SLOT}", f"A {SLOT}")) for phrase in self.exact)

    @property
    def adjectives(self) -> bool:
        """Whether its names are adjectives: "a {} thing"."""
        return bool(re.search(r"\b[Aa]n? \{\} \w", self.exact[0]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, empty fields left out."""
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Kind:
        """The inverse of `to_dict`; unknown fields are an error."""
        known = {field.name for field in fields(cls)}
        if stray := sorted(set(data) - known):
            raise ConceptSpecError(
                f"a kind has unknown fields {stray} (known: {', '.join(sorted(known))})"
            )
        values: dict[str, Any] = dict(data)
        for key, value in values.items():
            if isinstance(value, list):
                values[key] = tuple(value)
        return cls(**values)


def check_phrase(phrase: object, what: str) -> str:
    """`phrase`, if it is a text with one `{}`.

    Raises:
        ConceptSpecError: It is not.
    """
    if not isinstance(phrase, str):
        raise ConceptSpecError(f"{what} must be text, got {type(phrase).__name__} {phrase!r}")
    if len(phrase) > MAX_PHRASE:
        raise ConceptSpecError(
            f"{what} has {len(phrase)} characters, at most {MAX_PHRASE} are allowed: "
            f"{phrase[:40]!r}..."
        )
    slots = phrase.count(SLOT)
    if slots != 1 or phrase.count("{") != 1 or phrase.count("}") != 1:
        found = "none" if not slots else slots if slots > 1 else "other braces beside it"
        raise ConceptSpecError(
            f"{what} needs exactly one '{SLOT}' for the concept, it has {found}: {phrase[:80]!r}"
        )
    return phrase


def known_kinds() -> tuple[str, ...]:
    """Names of the shipped kinds, with their tables, such as "nudity.noun"."""
    names: list[str] = []
    for file in sorted(_folder().iterdir(), key=lambda file: file.name):
        if file.name.endswith(TOML):
            names += _shipped(file.name.removesuffix(TOML))
    return tuple(names)


def find_kind(name: str) -> Kind:
    """A shipped kind by its name, or that of a TOML file.

    Args:
        name: Such as "object", "nudity.noun", "my/plants.toml" or "my/plants.toml.noun".

    Raises:
        ConceptSpecError: There is none, or the file is not one.
    """
    if TOML in name:
        path, _, table = name.rpartition(TOML)
        return _pick(read_kinds(Path(path + TOML)), table.removeprefix("."), name)
    return _find_shipped(name)


@cache
def _find_shipped(name: str) -> Kind:
    stem, _, table = FORMER_NAMES.get(name, name).partition(".")
    stems = [file.name.removesuffix(TOML) for file in _folder().iterdir()]
    if stem not in stems or not (_folder() / f"{stem}{TOML}").is_file():
        known = known_kinds()
        close = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ConceptSpecError(
            f"there is no kind {name!r} (known: {', '.join(known)}; or a {TOML} file of your "
            f"own){meant}"
        )
    return _pick(_shipped(stem), table, name)


def read_kinds(path: Path) -> dict[str, Kind]:
    """The kind in a TOML file, and one per table of it, by name.

    Raises:
        ConceptSpecError: The file is missing, or does not follow the schema; the message names the
            key and what is wrong with it.
    """
    try:
        text = read_text_file(path)
    except OSError as error:
        raise ConceptSpecError(
            f"templates {str(path)!r} cannot be read ({error.strerror}); give the path of a TOML "
            "file that you may read, or the name of a kind"
        ) from error
    return parse_kinds(text, str(path))


def parse_kinds(text: str, source: str) -> dict[str, Kind]:
    """`read_kinds` of a file's text; `source` names it in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConceptSpecError(
            f"{source} is not TOML: {error}; correct it there, texts stand in quotation marks"
        ) from error
    known = {"kind", "description", "layers", *_TEXTS}
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    stray = sorted(set(data) - known - set(tables))
    if stray:
        raise ConceptSpecError(
            f"{source} has unknown keys {stray} (known: {', '.join(sorted(known))}, and tables)"
        )
    name = data.get("kind")
    if not isinstance(name, str) or not re.fullmatch(r"[\w -]+", name):
        raise ConceptSpecError(f"{source}: kind must be the kind's name in letters, got {name!r}")
    shared = _texts_of(data, source)
    shared["layers"] = _layers_of(data, source)
    shared["description"] = data.get("description", "")
    if not isinstance(shared["description"], str):
        raise ConceptSpecError(f"{source}: description must be text")
    plural = tables.pop(PLURAL, {})
    for key, texts in _texts_of(plural, f"{source} [{PLURAL}]", ("soft", "held_out")).items():
        shared[f"{PLURAL}_{key}"] = texts
    kinds = {name: _checked_kind(name, shared, source)}
    for table, rows in tables.items():
        own = _texts_of(rows, f"{source} [{table}]", _OWN_OF_TABLES)
        rest = {k: v for k, v in shared.items() if k not in _OWN_OF_TABLES}
        full = f"{name}.{table}"
        kinds[full] = _checked_kind(full, rest | own, f"{source} [{table}]")
    return kinds


def _checked_kind(name: str, values: Mapping[str, Any], source: str) -> Kind:
    if "exact" not in values:
        raise ConceptSpecError(f"{source} has no `exact`; give one phrase, such as 'a {SLOT}'")
    try:
        return Kind(name, **values)
    except ConceptSpecError as error:
        raise ConceptSpecError(f"{source}: {error}") from error


def _texts_of(
    rows: Mapping[str, Any], source: str, known: tuple[str, ...] = _TEXTS
) -> dict[str, Any]:
    """The lists of texts of a table, checked."""
    if known is not _TEXTS and (stray := sorted(set(rows) - {*known})):
        raise ConceptSpecError(f"{source} has unknown keys {stray} (known: {', '.join(known)})")
    found = {}
    for key in known:
        if key not in rows:
            continue
        values = rows[key]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ConceptSpecError(f"{source}: {key} must be a list of texts")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise ConceptSpecError(f"{source}: {key} has {twice[0]!r} twice; keep one")
        found[key] = tuple(values)
    return found


def _layers_of(data: Mapping[str, Any], source: str) -> Layers:
    layers = data.get("layers", list(SELECTIVE.layers))
    if not isinstance(layers, list) or not all(type(x) in (int, str) for x in layers):
        raise ConceptSpecError(f"{source}: layers must be a list of blocks and names, got {layers}")
    return tuple(layers)


def _pick(kinds: Mapping[str, Kind], table: str, name: str) -> Kind:
    first = next(iter(kinds))
    full = f"{first}.{table}" if table else first
    if full not in kinds:
        raise ConceptSpecError(f"there is no kind {name!r} (the file has: {', '.join(kinds)})")
    return kinds[full]


def _folder() -> Any:
    return files(__package__) / "templates"


@cache
def _shipped(stem: str) -> dict[str, Kind]:
    file = _folder() / f"{stem}{TOML}"
    return parse_kinds(file.read_text(encoding="utf-8"), f"templates/{file.name}")
