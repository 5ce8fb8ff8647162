"""What a spec asks for, in plain sentences: what is exact, soft, held out, near and kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..config.everyday import everyday_captions
from ..config.spec import AUTO_ANCHOR, Concept, ErasureSpec
from ..config.words import Form
from ..prompts.alignment import sort_pairs
from ..prompts.misspelt import notes_on_misspelt
from ..prompts.pairs import pairs_of, pairs_to_solve
from ..prompts.tokens import text_paths, tokenizer_of

SHOWN = 4
"""Examples of a list."""
LONG = 76
"""Characters of an example, at most."""
LONG_PHRASE = 200
"""Characters from which on a phrase counts as long."""


def explain(spec: ErasureSpec | Concept, pipe: Any = None, *, soft_budget: int = 96) -> str:
    """What an erasure of `spec` promises, tries, measures and keeps, for a person to read.

    Args:
        spec: What to erase.
        pipe: A pipeline; then the text also says what its tokenizers cannot read.
        soft_budget: As `erase` takes it.

    Raises:
        ConceptSpecError: A prompt cannot be read by the pipeline; what `erase` would say.
    """
    spec = ErasureSpec((spec,)) if isinstance(spec, Concept) else spec
    parts = [spec.description] if spec.description else []
    share = max(SHOWN, soft_budget // len(spec.concepts))
    for concept in spec.concepts:
        parts.append("\n".join(_about(concept, share)))
    parts.append("\n".join(_kept(spec)))
    if spec.covers:
        parts.append(f"It covers: {spec.covers}")
    if spec.does_not_cover:
        parts.append(f"It does not cover: {spec.does_not_cover}")
    if pipe is not None:
        parts.append("\n".join(_on(spec, pipe, soft_budget)))
    return "\n\n".join(parts) + "\n"


def _about(concept: Concept, soft_budget: int) -> list[str]:
    """One concept, a line per list."""
    lines = [_first_line(concept)]
    pairs = pairs_to_solve([concept], soft_budget=soft_budget)
    exact = []
    for pair in pairs["exact"]:
        named = concept.anchor not in ("", AUTO_ANCHOR)
        becomes = f" becomes {_quote(pair.anchor.text)}" if named else ""
        exact.append(_quote(pair.target.text) + becomes)
    lines.append(f"  Exact, so that nothing is left of it: {_listed(exact)}.")
    own = [pair for pair in pairs["soft"] if pair.stands_for is None]
    long = sum(len(pair.target.text) >= LONG_PHRASE for pair in own)
    lines.append(
        f"  Soft, as far as that costs little elsewhere: {_phrases(len(own))}"
        f"{f', {long} of them long' if long else ''}, "
        f"such as {_some(pair.target.text for pair in own)}."
    )
    if concept.synonyms:
        lines.append(f"  Synonyms, soft in every phrase: {_listed(map(_quote, concept.synonyms))}.")
    if concept.forms:
        lines.append(f"  Other ways to write it, soft: {_forms(concept.forms)}.")
    if concept.names:
        names = _languages(concept)
        lines.append(f"  In other languages, soft where an encoder reads them: {names}.")
    unseen = pairs_of([concept], "held_out")
    lines.append(
        f"  Held out, to measure how much of it is left: {_phrases(len(unseen))}, "
        f"such as {_some(pair.target.text for pair in unseen)}."
    )
    lines += _near(concept)
    lines += [f"  Mind: {caveat}." for caveat in concept.caveats]
    return lines


def _first_line(concept: Concept) -> str:
    kind = "in phrases of your own"
    if not isinstance(concept.templates, tuple):
        kind = f"of the kind {concept.kind.name}"
    becomes = f"becomes {_quote(concept.anchor)}"
    if concept.anchor == AUTO_ANCHOR:
        becomes = f"becomes the nearest of {_listed(map(_quote, concept.candidates))}"
    elif not concept.anchor:
        becomes = "goes, and nothing takes its place"
    return f"{_quote(concept.target)}, {kind}, {becomes}."


def _near(concept: Concept) -> list[str]:
    given = concept.near_prompts()
    measured = concept.held_out_near_prompts()
    lines = []
    if given:
        lines.append(f"  Near it, and kept: {_phrases(len(given))}, such as {_some(given)}.")
    if measured:
        lines.append(
            f"  Near it, and measured: {_phrases(len(measured))} that should stay, "
            f"such as {_some(measured)}."
        )
    if not lines:
        lines.append("  Near it: no phrase is known that must stay; name yours in `near`.")
    return lines


def _kept(spec: ErasureSpec) -> list[str]:
    """Where the captions come from, and how many name a target."""
    own = len(dict.fromkeys(spec.preserve or ()))
    parts = [f"{_count_captions(own)} of the spec"] if own else []
    if spec.preserve is None or spec.everyday:
        siblings: dict[str, int] = {}
        for concept in spec.concepts:
            siblings[concept.kind.name] = len(concept.kind.preserve)
        parts += [f"{_count_captions(n)} of the kind {name}" for name, n in siblings.items() if n]
        parts.append(f"{len(everyday_captions())} everyday ones")
    every = len(spec.every_caption())
    kept = len(spec.preserve_captions())
    lines = [f"Kept as they are: {_listed(parts)}."]
    if every > kept:
        what = "One names" if every - kept == 1 else f"{every - kept} of them name"
        lines[0] += f" {what} what is erased, and {_is(every - kept)} left out."
    if spec.near:
        lines.append(f"Near, and kept: {_some(spec.near)}.")
    if spec.keep:
        lines.append(f"Not to change at all: {_some(spec.keep)}.")
    return lines


def _on(spec: ErasureSpec, pipe: Any, soft_budget: int) -> list[str]:
    """What each text encoder of a pipeline cannot read, and words that none knows."""
    lines = []
    asked = pairs_to_solve(spec.concepts, soft_budget=soft_budget)["soft"]
    paths = text_paths(pipe)
    for path in paths:
        found = sort_pairs(asked, path)
        lost = [pair.target.text for pair in found.unread if pair.stands_for is None]
        line = f"{path.use.encoder} is shown {_phrases(len(found.readable))} beside the exact ones"
        if lost:
            line += f"; it cannot read {_phrases(len(lost))} as far as the name: {_some(lost)}"
        if unread := found.foreign_names:
            shown = [*map(_quote, unread[:SHOWN])]
            if len(unread) > SHOWN:
                shown.append(f"{len(unread) - SHOWN} more")
            line += f"; it does not read {_listed(shown)}"
        lines.append(line + ".")
    notes = notes_on_misspelt(spec.concepts, map(tokenizer_of, paths))
    return [*lines, *(f"{note[0].upper()}{note[1:]}" for note in notes)]


def _forms(forms: Iterable[tuple[str, Form]]) -> str:
    """By kind of form."""
    found: dict[str, list[str]] = {}
    for _, form in forms:
        found.setdefault(form.kind, []).append(form.text)
    parts = []
    for kind, texts in found.items():
        more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        parts.append(f"{kind} {', '.join(map(_quote, texts[:SHOWN]))}{more}")
    return "; ".join(parts)


def _languages(concept: Concept) -> str:
    known = {*concept.foreign}
    parts = []
    for language, names in concept.names:
        mine = [name for name in names if name in known]
        if mine:
            parts.append(f"{', '.join(mine)} ({language})")
    return "; ".join(parts)


def _some(texts: Iterable[str]) -> str:
    """A few from the first to the last, which seldom are one phrase with several words."""
    found = list(texts)
    if len(found) > SHOWN:
        found = [found[i * (len(found) - 1) // (SHOWN - 1)] for i in range(SHOWN)]
    return _listed(map(_quote, found))


def _quote(text: str) -> str:
    """In quotation marks; of a long text the beginning."""
    return f'"{text}"' if len(text) <= LONG else f'"{text[:LONG].rsplit(" ", 1)[0]} ..."'


def _listed(parts: Iterable[str]) -> str:
    """As a person lists things."""
    found = list(parts)
    if len(found) < 2:
        return "".join(found) or "nothing"
    return f"{', '.join(found[:-1])} and {found[-1]}"


def _phrases(count: int) -> str:
    return "one phrase" if count == 1 else f"{count} phrases"


def _count_captions(count: int) -> str:
    return "one caption" if count == 1 else f"{count} captions"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
