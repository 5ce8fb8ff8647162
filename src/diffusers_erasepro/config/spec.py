"""What to erase, said once: frozen, validated at birth, TOML in and out."""

from __future__ import annotations

import re
import tomllib
import unicodedata
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConceptSpecError
from .everyday import everyday_captions, everyday_words
from .kinds import FORMER_NAMES, TOML, Kind, check_phrase, find_kind
from .mentions import LooseMentions, Mentions, mentions, same_words, spelling
from .plan import SELECTIVE, Recipe
from .text_files import read_text_file
from .words import SLOT, Form, count_noun, fill, forms_of, is_plural, numbers_of

AUTO_ANCHOR = "auto"
DEFAULT_KIND = "object"
MAX_CONCEPTS = 10_000
MAX_WORDS = 300  # characters of one concept
MAX_SYNONYMS = 100
NEAR_FRAMES = ("{}", "a {}", "the {}")
"""In which the parts of a name are kept where they stand alone."""
MOST_NEIGHBOURS = 4
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
Names = tuple[tuple[str, tuple[str, ...]], ...]
"""Language -> what a concept is called there."""


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


@dataclass(frozen=True)
class Concept:
    """Something to erase, and what to leave in its place.

    Args:
        target: The words to erase.
        anchor: What prompts with the target should mean instead; "" means nothing in its place,
            "auto" the nearest of `anchors`, which `erase` looks up and the adapter's spec then
            names. It stands where the target stands, so it has an article where the phrases of its
            kind have none ("a painter" in "a painting by {}"), and none where they have one
            ("object" in "a {}").
        templates: What is said around it: a kind by name ("object", "character", "person", "style",
            "nudity", "nudity.noun", "violence", "violence.noun", "logo", "attribute"), a TOML file
            of your own, a `Kind`, or texts with one `{}`. Of a tuple the first is held exactly and
            the others softly, unless `soft_templates` says which are soft.
        soft_templates: Texts with one `{}` met by least squares; None takes them from `templates`.
        synonyms: Further words erased to the same anchor, all by least squares; only the target's
            residual is zero. A word that needs zero residual too is a concept of its own.
        anchors: What anchor="auto" chooses from; default those of the kind.
        names: Language (ISO 639) -> what it is called there. Encoders that read the script meet
            them like synonyms, others are not shown them.
        near: Finished phrases that look like the concept and must stay ("a golf course" where "golf
            ball" goes); the edit keeps them.

    Raises:
        ConceptSpecError: On anything that cannot mean an erasure; the message says what and why.
    """

    target: str
    anchor: str = ""
    templates: str | tuple[str, ...] | Kind = DEFAULT_KIND
    soft_templates: tuple[str, ...] | None = None
    synonyms: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    names: Names = ()
    near: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _text(self.target, "target")
        object.__setattr__(self, "target", self.target.strip())
        what = f"of {self.target!r}"
        _text(self.anchor, f"anchor {what}", blank=True)
        object.__setattr__(self, "anchor", self.anchor.strip())
        object.__setattr__(self, "synonyms", _texts(self.synonyms, f"synonyms {what}"))
        object.__setattr__(self, "anchors", _texts(self.anchors, f"anchors {what}"))
        object.__setattr__(self, "names", _checked_names(self.names, f"names {what}"))
        object.__setattr__(self, "near", _captions(self.near, f"near {what}"))
        if len(self.synonyms) > MAX_SYNONYMS:
            raise ConceptSpecError(
                f"{self.target!r} has {len(self.synonyms)} synonyms, at most {MAX_SYNONYMS} are "
                "allowed; the soft prompts are shared among them. Keep the words that people use, "
                "and make a concept of its own of what means something else"
            )
        if self.anchors and self.anchor != AUTO_ANCHOR:
            raise ConceptSpecError(
                f"anchors {what} are given beside anchor={self.anchor!r}; give one or the other"
            )
        object.__setattr__(self, "templates", self._checked_templates())
        if self.soft_templates is not None:
            object.__setattr__(self, "soft_templates", self._phrases("soft_templates"))
        for word in self.words:
            if same_words(word, self.anchor):
                raise ConceptSpecError(
                    f"target and anchor are both {word!r}; there would be nothing to erase"
                )
        spoken = {spelling(word) for word in self.spoken}
        same = numbers_of(self.anchor, countable=self.kind.countable) if self.anchor else ()
        if not spoken.isdisjoint(map(spelling, same)):
            raise ConceptSpecError(
                f"the anchor {self.anchor!r} is {self.target!r} or a synonym in another form; name "
                "something else, or nothing"
            )
        named = LooseMentions(self.spoken) if self.near else ()
        for i, phrase in enumerate(self.near):
            if phrase in named:
                raise ConceptSpecError(
                    f"near[{i}] {what} is {phrase!r}, which names it; a phrase cannot be kept and "
                    "erased"
                )

    def _checked_templates(self) -> str | tuple[str, ...] | Kind:
        given: Any = self.templates
        if isinstance(given, Kind):
            return given
        if isinstance(given, Path):
            return find_kind(str(given))
        if isinstance(given, str):
            if given in FORMER_NAMES:
                warnings.warn(
                    f"templates {given!r} are called {FORMER_NAMES[given]!r} now, and say other "
                    "things",
                    FutureWarning,
                    stacklevel=4,
                )
                given = FORMER_NAMES[given]
            try:
                kind = find_kind(given)
            except ConceptSpecError as error:
                raise ConceptSpecError(f"templates of {self.target!r}: {error}") from error
            return kind if TOML in given else given
        phrases = self._phrases("templates")
        if not phrases:
            raise ConceptSpecError(
                f"templates of {self.target!r} is empty; give one text with '{SLOT}', or the name "
                "of a kind"
            )
        return phrases

    def _phrases(self, name: str) -> tuple[str, ...]:
        what = f"{name} of {self.target!r}"
        given = getattr(self, name)
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ConceptSpecError(
                f"{what} must be a sequence of texts, got {type(given).__name__} {given!r}"
            )
        phrases = tuple(given)
        for i, phrase in enumerate(phrases):
            check_phrase(phrase, f"{what}[{i}]")
            _refuse_surrogates(phrase, f"{what}[{i}]")
            _warn_unseen(phrase, f"{what}[{i}]")
        return phrases

    @property
    def words(self) -> tuple[str, ...]:
        """The target and its synonyms."""
        return (self.target, *self.synonyms)

    @property
    def spoken(self) -> tuple[str, ...]:
        """The words without articles, in the singular and plural: what a text names it by."""
        found: dict[str, None] = {}
        for word in self.words:
            found |= dict.fromkeys(numbers_of(word, countable=self.kind.countable))
        return tuple(found)

    @property
    def foreign(self) -> tuple[str, ...]:
        """What it is called in other languages, each word once."""
        known = {spelling(word) for word in (*self.words, self.anchor)}
        found: dict[str, str] = {}
        for _, names in self.names:
            for name in names:
                if spelling(name) not in known:
                    found.setdefault(spelling(name), name)
        return tuple(found.values())

    @property
    def forms(self) -> tuple[tuple[str, Form], ...]:
        """Word -> another way to write it, by rule; what is a word of the concept is left out."""
        known = {*self.words, *self.foreign, self.anchor}
        found = []
        for word in self.words:
            noun = not self.kind.adjectives
            for form in forms_of(word, countable=self.kind.countable, noun=noun):
                if form.text not in known:
                    known.add(form.text)
                    found.append((word, form))
        return tuple(found)

    @property
    def kind(self) -> Kind:
        """What is said around it; texts of one's own stand in for what the default kind says."""
        if isinstance(self.templates, Kind):
            return self.templates
        return find_kind(self.templates if isinstance(self.templates, str) else DEFAULT_KIND)

    @property
    def candidates(self) -> tuple[str, ...]:
        """What anchor="auto" chooses from."""
        return self.anchors or self.kind.anchors

    @property
    def recipe(self) -> Recipe:
        """How its kind is erased unless one says otherwise; texts of one's own tell no kind."""
        return SELECTIVE if isinstance(self.templates, tuple) else self.kind.recipe

    @property
    def exact(self) -> tuple[str, ...]:
        """Templates held with zero residual."""
        if isinstance(self.templates, tuple):
            return self.templates if self.soft_templates is not None else self.templates[:1]
        return self.kind.exact

    @property
    def soft(self) -> tuple[str, ...]:
        """Templates met by least squares."""
        if self.soft_templates is not None:
            return self.soft_templates
        return self.templates[1:] if isinstance(self.templates, tuple) else self.kind.soft

    @property
    def held_out(self) -> tuple[str, ...]:
        """Templates the residual is measured on, never solved for."""
        return tuple(t for t in self.kind.held_out if t not in (*self.exact, *self.soft))

    @cached_property
    def own_phrases(self) -> frozenset[str]:
        """The phrases that came with the spec, from a file or a list of one's own."""
        given = {*(self.soft_templates or ())}
        if isinstance(self.templates, tuple):
            given.update(self.templates)
        if isinstance(self.templates, Kind):
            given.update(self.exact, self.soft, self.held_out)
            given.update(self.kind.plural_soft, self.kind.plural_held_out)
        return frozenset(given)

    def near_words(self) -> tuple[str, ...]:
        """Parts of the name that mean something else where they stand alone.

        Of "golf ball" both; of a proper name those that everyday captions use: "van", not "gogh".
        """
        taken = {spelling(word) for word in (*self.words, *self.foreign)}
        found: dict[str, None] = {}
        for word in self.words:
            parts = re.split(r"[\s-]+", word)
            for part in parts if len(parts) > 1 else []:
                plain = part.casefold()
                ordinary = part.islower() and self.kind.countable
                usable = plain.isalpha() and len(plain) > 2 and plain not in taken
                usable = usable and not is_plural(plain)
                if usable and (ordinary or plain in everyday_words()):
                    found[plain] = None
        return tuple(found)

    def neighbours(self) -> tuple[str, ...]:
        """What may stand in its place, which must stay itself; at most `MOST_NEIGHBOURS`.

        None where the phrases of the kind go on behind the name: what stands before "logo" is no
        name of its own.
        """
        if not (self.kind.adjectives or self.exact[0].endswith(SLOT)):
            return ()
        anchor = () if self.anchor == AUTO_ANCHOR else (self.anchor,)
        found = {spelling(word): word for word in (*anchor, *self.candidates) if word}
        return tuple(found.values())[:MOST_NEIGHBOURS]

    def near_prompts(self) -> tuple[str, ...]:
        """Phrases that look like it and must stay: what the edit is given to keep."""
        return tuple(dict.fromkeys((*self.near, *_filled(NEAR_FRAMES, self.near_words()))))

    def held_out_near_prompts(self) -> tuple[str, ...]:
        """Phrases that look like it and must stay, which no solve may see; they are measured.

        Of a name without parts that mean something alone these are its neighbours.
        """
        given = {*self.near_prompts()}
        named = Mentions(self.words)
        found = _filled(self.kind.near, self.near_words() or self.neighbours())
        return tuple(text for text in found if text not in given and text not in named)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What its words alone say against it, a sentence each."""
        found = []
        for word in self.words:
            if self.anchor and mentions(self.anchor, word):
                found.append(
                    f"the anchor {self.anchor!r} contains {word!r}: what reads the word before it "
                    "has read the rest of the anchor may keep its meaning; look at what it "
                    "generates, or give a broader anchor"
                )
        return tuple(found)


def _filled(phrases: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Every word in every phrase, each text once."""
    found: dict[str, None] = {}
    for word in words:
        for phrase in phrases:
            found[fill(phrase, word)[0]] = None
    return tuple(found)


def _checked_names(given: object, what: str) -> Names:
    """A table of languages, as tuples."""
    if not isinstance(given, Mapping) and not isinstance(given, tuple):
        raise ConceptSpecError(
            f"{what} must be a table of languages, such as {{'de': ['Pistole']}}, got "
            f"{type(given).__name__} {given!r}"
        )
    found = []
    for language, names in given.items() if isinstance(given, Mapping) else given:
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            raise ConceptSpecError(
                f"{what}: {language!r} is no language code of ISO 639, such as 'de' or 'zh'"
            )
        found.append((language, _texts(names, f"{what} [{language}]")))
    return tuple(found)


@dataclass(frozen=True)
class ErasureSpec:
    """Concepts to erase together, and captions whose pictures must stay as they are.

    Args:
        concepts: What to erase, jointly.
        preserve: Captions that stand for everything else; None takes the shipped ones: everyday
            scenes, and siblings of each concept's kind. More and closer to what the model is used
            for means less drift.
        keep: A few prompts whose text features must not change at all, such as "". Each takes as
            many constraints as the tokenizer's limit, so they cost drift elsewhere.
        near: Finished phrases that look like a concept and must stay, beside those that each
            concept names; the edit keeps them.
        everyday: Keep the shipped captions beside those in `preserve`, which then are neighbours
            alone. Without `preserve` they are kept anyway.
        description: What the spec is for, in a sentence or two.
        covers: Which prompts it erases.
        does_not_cover: Which it does not.

    Raises:
        ConceptSpecError: No concepts, one target twice, a cycle or chain of targets and anchors, a
            target among what shall be preserved or kept.
    """

    concepts: tuple[Concept, ...]
    preserve: tuple[str, ...] | None = field(default=None, repr=False)
    keep: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    everyday: bool = False
    description: str = ""
    covers: str = ""
    does_not_cover: str = ""

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
        object.__setattr__(self, "near", _captions(self.near, "near"))
        if not isinstance(self.everyday, bool):
            raise ConceptSpecError(f"everyday must be True or False, got {self.everyday!r}")
        for name in _ABOUT:
            if not isinstance(getattr(self, name), str):
                raise ConceptSpecError(f"{name} must be text, got {getattr(self, name)!r}")
        check_together(concepts)
        _check_kinds(concepts)
        self._refuse_targets_among_kept()

    def _refuse_targets_among_kept(self) -> None:
        targets: set[str] = set()
        for concept in self.concepts:
            targets |= {spelling(word) for word in concept.words}
        for name in ("preserve", "keep"):
            for i, caption in enumerate(getattr(self, name) or ()):
                if spelling(caption) in targets:
                    raise ConceptSpecError(
                        f"{name}[{i}] is {caption!r}, which is also a target; a concept cannot be "
                        "kept and erased"
                    )
        for i, phrase in enumerate(self.near):
            if phrase in self._named:
                raise ConceptSpecError(
                    f"near[{i}] is {phrase!r}, which names a target; a phrase cannot be kept and "
                    "erased"
                )
        if self.preserve and not self.everyday and not self.preserve_captions():
            raise ConceptSpecError(
                f"every caption of preserve names a target ({self.preserve[0]!r}); nothing would "
                "be left to keep, give captions that name none"
            )
        if self.preserve and all(map(self._is_named_in, self.preserve)):
            own = len(dict.fromkeys(self.preserve))
            warnings.warn(
                f"all that you gave to preserve ({count_noun(own, 'caption')}, such as "
                f"{self.preserve[0][:60]!r}) names what is erased and is left out; only the "
                "shipped captions are kept, give some that name none",
                stacklevel=4,
            )

    @cached_property
    def _named(self) -> LooseMentions:
        words: list[str] = []
        for concept in self.concepts:
            words += concept.spoken
        return LooseMentions(words)

    def targets_of(self, words: Container[str]) -> tuple[str, ...]:
        """The targets of the concepts that one of the words names."""
        named = (c for c in self.concepts if any(word in words for word in c.words))
        return tuple(concept.target for concept in named)

    def every_caption(self) -> tuple[str, ...]:
        """The captions of `preserve`, the shipped ones, or both; each once."""
        captions = list(self.preserve or ())
        if self.preserve is None or self.everyday:
            for concept in self.concepts:
                captions += concept.kind.preserve
            captions += everyday_captions()
        return tuple(dict.fromkeys(captions))

    def preserve_captions(self) -> tuple[str, ...]:
        """Those that name no target, in the singular or plural: the metric is made of them."""
        return self._preserved

    @cached_property
    def _preserved(self) -> tuple[str, ...]:
        return tuple(text for text in self.every_caption() if not self._is_named_in(text))

    def _is_named_in(self, caption: str) -> bool:
        return caption in self._named or caption in self._named_abroad

    @cached_property
    def _named_abroad(self) -> Mentions:
        words: list[str] = []
        for concept in self.concepts:
            words += concept.foreign
        return Mentions(words)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What its lists say against it, a sentence each."""
        given = dict.fromkeys(self.preserve or ())
        named = [text for text in given if self._is_named_in(text)]
        if not named:
            return ()
        what = "1 names what is erased and is"
        if len(named) > 1:
            what = f"{len(named)} name what is erased and are"
        captions = count_noun(len(given), "caption")
        return (f"of {captions} to preserve {what} left out, such as {named[0][:60]!r}",)

    def near_prompts(self) -> tuple[str, ...]:
        """Phrases that look like a concept and must stay: what the edit is given to keep."""
        return self._not_naming(self.near, Concept.near_prompts)

    def held_out_near_prompts(self) -> tuple[str, ...]:
        """Phrases that look like a concept and must stay, which no solve may see."""
        given = {*self.near_prompts()}
        found = self._not_naming((), Concept.held_out_near_prompts)
        return tuple(text for text in found if text not in given)

    def _not_naming(
        self, phrases: tuple[str, ...], of_concept: Callable[[Concept], tuple[str, ...]]
    ) -> tuple[str, ...]:
        """`phrases` and those of every concept, without those that name another's target."""
        found = list(phrases)
        for concept in self.concepts:
            found += of_concept(concept)
        return tuple(text for text in dict.fromkeys(found) if text not in self._named)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and TOML, defaults left out."""
        rows = []
        kinds: dict[str, Any] = {}
        for concept in self.concepts:
            rows.append(_row(concept))
            if isinstance(concept.templates, Kind):
                kinds[concept.templates.name] = concept.templates.to_dict()
        found: dict[str, Any] = {"concepts": rows}
        if self.preserve is not None:
            found["preserve"] = list(self.preserve)
        for name in ("keep", "near"):
            if getattr(self, name):
                found[name] = list(getattr(self, name))
        for name in ("everyday", *_ABOUT):
            if getattr(self, name):
                found[name] = getattr(self, name)
        return found | ({"kinds": kinds} if kinds else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErasureSpec:
        """The inverse of `to_dict`; unknown fields are an error."""
        if not isinstance(data, dict) or not isinstance(data.get("concepts"), list):
            raise ConceptSpecError(
                "a spec needs a list `concepts`; begin each concept with the line [[concepts]] and "
                'name what to erase below it, such as target = "golf ball"'
            )
        _known(data, {f.name for f in fields(cls)} | {"kinds"}, "spec")
        kinds = {}
        for name, row in data.get("kinds", {}).items():
            _known(row, {f.name for f in fields(Kind)}, f"kinds.{name}")
            kinds[name] = Kind.from_dict(row)
        concepts = []
        for i, row in enumerate(data["concepts"]):
            _known(row, {f.name for f in fields(Concept)}, f"concepts[{i}]")
            if "target" not in row:
                raise ConceptSpecError(f"concepts[{i}] has no target; name what to erase")
            templates = row.get("templates", DEFAULT_KIND)
            own = kinds.get(templates) if isinstance(templates, str) else None
            concepts.append(Concept(**(row | {"templates": own or templates})))
        rest = {k: v for k, v in data.items() if k not in ("concepts", "kinds")}
        return cls(tuple(concepts), **rest)

    def to_toml(self) -> str:
        """The spec as a TOML document."""
        data = self.to_dict()
        lines: list[str] = []
        for name in (*_ABOUT, "everyday", "preserve", "near", "keep"):
            if name in data:
                lines += [f"{name} = {toml_value(data[name])}", ""]
        for name, kind in data.get("kinds", {}).items():
            lines += _toml_table(f"[kinds.{toml_value(name)}]", kind)
        for row in data["concepts"]:
            names = row.pop("names", {})
            lines += _toml_table("[[concepts]]", row)
            lines += _toml_table("[concepts.names]", names) if names else []
        return "\n".join(lines)

    @classmethod
    def from_toml(cls, text: str) -> ErasureSpec:
        """The inverse of `to_toml`."""
        try:
            return cls.from_dict(tomllib.loads(text.removeprefix("\ufeff")))
        except tomllib.TOMLDecodeError as error:
            raise ConceptSpecError(
                f"the spec is not TOML: {error}; correct it there, texts stand in quotation marks"
            ) from error


def read_spec(path: Path) -> ErasureSpec:
    """A spec.toml.

    Raises:
        ConceptSpecError: The file is not there, is no TOML, or cannot be meant; the message names
            the file.
    """
    try:
        return ErasureSpec.from_toml(read_text_file(path))
    except OSError as error:
        raise ConceptSpecError(
            f"the spec {str(path)!r} cannot be read ({error.strerror}); give the path of a "
            "spec.toml that you may read"
        ) from error
    except ConceptSpecError as error:
        raise ConceptSpecError(f"{path}: {error}") from error


_ABOUT = ("description", "covers", "does_not_cover")
"""Fields that are for people."""


def _row(concept: Concept) -> dict[str, Any]:
    """A concept as plain data, what is not given left out."""
    row: dict[str, Any] = {}
    for item in fields(concept):
        value = getattr(concept, item.name)
        if isinstance(value, Kind):
            row[item.name] = value.name
        elif item.name == "names":
            row |= {"names": {language: list(names) for language, names in value}} if value else {}
        elif value is not None and (value != () or item.name == "soft_templates"):
            row[item.name] = value
    return row


def _check_kinds(concepts: Sequence[Concept]) -> None:
    """Raise ConceptSpecError where two kinds in one spec have one name."""
    known: dict[str, object] = {}
    for concept in concepts:
        templates = concept.templates
        if isinstance(templates, tuple):
            continue
        name = templates.name if isinstance(templates, Kind) else templates
        if known.setdefault(name, templates) != templates:
            raise ConceptSpecError(
                f"two kinds in one spec are called {name!r}; give yours another name (`kind` in "
                "its file)"
            )


def _toml_table(head: str, values: Mapping[str, Any]) -> list[str]:
    """Lines of a TOML table."""
    return [head, *(f"{key} = {toml_value(value)}" for key, value in values.items()), ""]


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


def toml_value(value: str | bool | int | Sequence[str | int]) -> str:
    """A value as TOML writes it."""
    if isinstance(value, (bool, int)):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(
            c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value
        )
        return f'"{escaped}"'
    return "[" + ", ".join(toml_value(v) for v in value) + "]"


def _said(anchor: str) -> str:
    """An anchor in a message."""
    return repr(anchor) if anchor else "nothing"


def check_together(concepts: Sequence[Concept]) -> None:
    """Raise ConceptSpecError where concepts contradict each other.

    One target twice, or a target that is another's anchor.
    """
    anchors: dict[str, tuple[str, str]] = {}
    for concept in concepts:
        for word in concept.words:
            key = spelling(word)
            if key in anchors:
                first = _said(anchors[key][1])
                second = _said(concept.anchor)
                to = f"both times to {first}" if first == second else f"to {first} and to {second}"
                raise ConceptSpecError(f"{word!r} is erased twice, {to}; keep one")
            anchors[key] = (word, concept.anchor)
    for concept in concepts:
        key = spelling(concept.anchor)
        if key in anchors:
            raise ConceptSpecError(
                f"{concept.target!r} -> {concept.anchor!r} -> {anchors[key][1]!r}: the anchor "
                f"{concept.anchor!r} is "
                "itself erased; give an anchor that stays"
            )
