"""What to erase, said once: frozen, validated at birth, TOML in and out."""

from __future__ import annotations

import tomllib
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ConceptSpecError
from .mentions import Mentions, mentions, same_words, spelling
from .plan import BLOCKS, Recipe
from .template_set import TEMPLATES, TemplateSet

AUTO_ANCHOR = "auto"
MAX_CONCEPTS = 10_000
MAX_WORDS = 300  # characters of one concept


def _warn_unseen(text: str, what: str) -> None:
    """Warn of characters that a reader cannot see and a tokenizer may.

    The words typed later would not be the words erased.
    """
    if text.isascii() and text.isprintable():
        return
    unseen = dict.fromkeys(
        f"U+{ord(c):04X}"
        for c in text
        if unicodedata.category(c) in ("Cf", "Cc") and not c.isspace()
    )
    faults = [f"holds invisible characters ({', '.join(unseen)})"] if unseen else []
    faults += [] if unicodedata.is_normalized("NFC", text) else ["is not in Unicode's form NFC"]
    for fault in faults:
        warnings.warn(
            f"{what} {fault}: {text[:40]!r}; it is taken as it is, clean it if you did not mean "
            "this",
            stacklevel=3,
        )


def _refuse_surrogates(text: str, what: str) -> None:
    """Half a character is what bytes that are not UTF-8 become on a command line."""
    halves = [c for c in text if 0xD800 <= ord(c) <= 0xDFFF]
    if halves:
        raise ConceptSpecError(
            f"{what} holds half a character (U+{ord(halves[0]):04X}), which no text has: {text!r}; "
            "its bytes were not UTF-8, give them in UTF-8"
        )


def _text(value: object, what: str, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise ConceptSpecError(f"{what} must be text, got {type(value).__name__} {value!r}")
    if not blank and not value.strip():
        raise ConceptSpecError(
            f"{what} is blank; name what to erase (only an anchor may be the empty string)"
        )
    if len(value) > MAX_WORDS:
        raise ConceptSpecError(
            f"{what} has {len(value)} characters, at most {MAX_WORDS} are allowed: "
            f"{value[:40]!r}..."
        )
    _refuse_surrogates(value, what)
    _warn_unseen(value, what)
    return value


def _texts(values: object, what: str) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConceptSpecError(
            f"{what} must be a sequence of texts, got {type(values).__name__} {values!r}"
        )
    return tuple(_text(v, f"{what}[{i}]") for i, v in enumerate(values))


def _template(template: str, what: str) -> str:
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ConceptSpecError(f"{what} needs exactly one '{{}}' for the concept, got {template!r}")
    return template


@dataclass(frozen=True)
class Concept:
    """Something to erase, and what to leave in its place.

    Args:
        target: The words to erase.
        anchor: What prompts with the target should mean instead; "" means nothing in its place,
            "auto" the nearest of `anchors`, which `erase` looks up and the adapter's spec then
            names.
        templates: Name of a template set ("instance", "style", "person", "unsafe"), or texts with
            one `{}`. Of a tuple the first is held exactly and the others softly, unless
            `soft_templates` says which are soft.
        soft_templates: Texts with one `{}` met by least squares; None takes them from `templates`.
        synonyms: Further words erased to the same anchor, all by least squares; only the target's
            residual is zero. A word that needs zero residual too is a concept of its own.
        anchors: What anchor="auto" chooses from; default the template set's broader concepts.

    Raises:
        ConceptSpecError: On anything that cannot mean an erasure; the message says what and why.
    """

    target: str
    anchor: str = ""
    templates: str | tuple[str, ...] = "instance"
    soft_templates: tuple[str, ...] | None = None
    synonyms: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _text(self.target, "target")
        _text(self.anchor, f"anchor of {self.target!r}", blank=True)
        object.__setattr__(self, "synonyms", _texts(self.synonyms, f"synonyms of {self.target!r}"))
        object.__setattr__(self, "anchors", _texts(self.anchors, f"anchors of {self.target!r}"))
        if self.anchors and self.anchor != AUTO_ANCHOR:
            raise ConceptSpecError(
                f"anchors of {self.target!r} are given beside anchor={self.anchor!r}; give one or "
                "the other"
            )
        if isinstance(self.templates, str):
            if self.templates not in TEMPLATES:
                known = ", ".join(TEMPLATES)
                raise ConceptSpecError(
                    f"templates of {self.target!r}: no set {self.templates!r} (known: {known})"
                )
        else:
            object.__setattr__(self, "templates", self._checked("templates"))
            if not self.templates:
                raise ConceptSpecError(
                    f"templates of {self.target!r} is empty; give one text with '{{}}' or a set's "
                    "name"
                )
        if self.soft_templates is not None:
            object.__setattr__(self, "soft_templates", self._checked("soft_templates"))
        for word in self.words:
            if same_words(word, self.anchor):
                raise ConceptSpecError(
                    f"target and anchor are both {word!r}; there would be nothing to erase"
                )
            if self.anchor and mentions(self.anchor, word):
                raise ConceptSpecError(
                    f"anchor {self.anchor!r} contains the target {word!r}; choose a broader concept"
                )

    def _checked(self, name: str) -> tuple[str, ...]:
        what = f"{name} of {self.target!r}"
        return tuple(
            _template(t, f"{what}[{i}]") for i, t in enumerate(_texts(getattr(self, name), what))
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The target and its synonyms."""
        return (self.target, *self.synonyms)

    @property
    def _set(self) -> TemplateSet:
        return TEMPLATES[self.templates if isinstance(self.templates, str) else "instance"]

    @property
    def candidates(self) -> tuple[str, ...]:
        """What anchor="auto" chooses from."""
        return self.anchors or self._set.broader

    @property
    def corpus(self) -> tuple[str, ...]:
        """Everyday captions of its kind, kept where a spec gives none."""
        return self._set.corpus

    @property
    def recipe(self) -> Recipe:
        """How its kind is erased unless one says otherwise; texts of one's own tell no kind."""
        return self._set.recipe if isinstance(self.templates, str) else BLOCKS

    @property
    def exact(self) -> tuple[str, ...]:
        """Templates held with zero residual."""
        if isinstance(self.templates, str):
            return TEMPLATES[self.templates].exact
        return self.templates if self.soft_templates is not None else self.templates[:1]

    @property
    def soft(self) -> tuple[str, ...]:
        """Templates met by least squares."""
        if self.soft_templates is not None:
            return self.soft_templates
        return (
            TEMPLATES[self.templates].soft
            if isinstance(self.templates, str)
            else self.templates[1:]
        )

    @property
    def held_out(self) -> tuple[str, ...]:
        """Templates the residual is measured on, never solved for."""
        return tuple(t for t in self._set.held_out if t not in (*self.exact, *self.soft))


@dataclass(frozen=True)
class ErasureSpec:
    """Concepts to erase together, and captions whose pictures must stay as they are.

    Args:
        concepts: What to erase, jointly.
        preserve: Captions that stand for everything else; None takes the shipped everyday corpus.
            More and closer to what the model is used for means less drift.
        keep: A few prompts whose text features must not change at all, such as "". Each takes as
            many constraints as the tokenizer's limit, so they cost drift elsewhere.

    Raises:
        ConceptSpecError: No concepts, one target twice, a cycle or chain of targets and anchors, a
            target among what shall be preserved or kept.
    """

    concepts: tuple[Concept, ...]
    preserve: tuple[str, ...] | None = field(default=None, repr=False)
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        concepts = (self.concepts,) if isinstance(self.concepts, Concept) else tuple(self.concepts)
        if not concepts:
            raise ConceptSpecError("no concepts; give at least one Concept(target, anchor=...)")
        if len(concepts) > MAX_CONCEPTS:
            raise ConceptSpecError(
                f"{len(concepts)} concepts, at most {MAX_CONCEPTS} are allowed in one spec"
            )
        for i, concept in enumerate(concepts):
            if not isinstance(concept, Concept):
                raise ConceptSpecError(
                    f"concepts[{i}] must be a Concept, got {type(concept).__name__} {concept!r}"
                )
        object.__setattr__(self, "concepts", concepts)
        if self.preserve is not None:
            object.__setattr__(self, "preserve", _captions(self.preserve, "preserve"))
        object.__setattr__(self, "keep", _captions(self.keep, "keep"))
        check_together(concepts)
        targets = {spelling(w) for c in concepts for w in c.words}
        for name in ("preserve", "keep"):
            for i, caption in enumerate(getattr(self, name) or ()):
                if spelling(caption) in targets:
                    raise ConceptSpecError(
                        f"{name}[{i}] is {caption!r}, which is also a target; a concept cannot be "
                        "kept and erased"
                    )

    def every_caption(self) -> tuple[str, ...]:
        """The preserve captions given, or the shipped ones, each once."""
        shipped = (text for concept in self.concepts for text in concept.corpus)
        return tuple(dict.fromkeys(shipped if self.preserve is None else self.preserve))

    def preserve_captions(self) -> tuple[str, ...]:
        """Those that name no target: the metric is made of them."""
        named = Mentions(w for c in self.concepts for w in c.words)
        return tuple(t for t in self.every_caption() if t not in named)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and TOML, defaults left out."""
        rows = [{k: v for k, v in asdict(c).items() if v not in (None, ())} for c in self.concepts]
        lists = {"preserve": self.preserve, "keep": self.keep or None}
        return {"concepts": rows} | {
            name: list(texts) for name, texts in lists.items() if texts is not None
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErasureSpec:
        """The inverse of `to_dict`; unknown fields are an error."""
        if not isinstance(data, dict) or not isinstance(data.get("concepts"), list):
            raise ConceptSpecError("a spec needs a list `concepts`")
        _known(data, {"concepts", "preserve", "keep"}, "spec")
        concepts = []
        for i, row in enumerate(data["concepts"]):
            _known(row, {f.name for f in fields(Concept)}, f"concepts[{i}]")
            concepts.append(Concept(**row))
        return cls(tuple(concepts), preserve=data.get("preserve"), keep=data.get("keep", ()))

    def to_toml(self) -> str:
        """The spec as a TOML document."""
        data = self.to_dict()
        lines = [
            line
            for name in ("preserve", "keep")
            if name in data
            for line in (f"{name} = {toml_value(data[name])}", "")
        ]
        for row in data["concepts"]:
            lines += [
                "[[concepts]]",
                *(f"{key} = {toml_value(value)}" for key, value in row.items()),
                "",
            ]
        return "\n".join(lines)

    @classmethod
    def from_toml(cls, text: str) -> ErasureSpec:
        """The inverse of `to_toml`."""
        try:
            return cls.from_dict(tomllib.loads(text.removeprefix("\ufeff")))
        except tomllib.TOMLDecodeError as error:
            raise ConceptSpecError(f"the spec is not TOML: {error}") from error


def _captions(values: object, what: str) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConceptSpecError(
            f"{what} must be a sequence of texts, got {type(values).__name__} {values!r}"
        )
    for i, value in enumerate(values := tuple(values)):
        if not isinstance(value, str):
            raise ConceptSpecError(
                f"{what}[{i}] must be text, got {type(value).__name__} {value!r}"
            )
        _refuse_surrogates(value, f"{what}[{i}]")
        _warn_unseen(value, f"{what}[{i}]")
    return values


def _known(row: object, fields: set[str], what: str) -> None:
    if not isinstance(row, dict):
        raise ConceptSpecError(f"{what} must be a table, got {type(row).__name__} {row!r}")
    if unknown := sorted(set(row) - fields):
        raise ConceptSpecError(
            f"{what} has unknown fields {unknown} (known: {', '.join(sorted(fields))})"
        )


def toml_value(value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        escaped = "".join(
            c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value
        )
        return f'"{escaped}"'
    return "[" + ", ".join(toml_value(v) for v in value) + "]"


def check_together(concepts: Sequence[Concept]) -> None:
    """Raise ConceptSpecError where concepts contradict each other.

    One target twice, or a target that is another's anchor.
    """
    anchors: dict[str, tuple[str, str]] = {}
    for concept in concepts:
        for word in concept.words:
            key = spelling(word)
            if key in anchors:
                first = anchors[key][1]
                raise ConceptSpecError(
                    f"{word!r} is erased twice, to {first!r} and to {concept.anchor!r}; keep one"
                )
            anchors[key] = (word, concept.anchor)
    for concept in concepts:
        key = spelling(concept.anchor)
        if key in anchors:
            raise ConceptSpecError(
                f"{concept.target!r} -> {concept.anchor!r} -> {anchors[key][1]!r}: the anchor "
                f"{concept.anchor!r} is "
                "itself erased; give an anchor that stays"
            )
