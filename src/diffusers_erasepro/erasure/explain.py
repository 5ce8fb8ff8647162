"""What a spec asks for, in plain sentences: what is exact, soft, held out, near and kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..config.everyday import everyday_captions
from ..config.plan import ALIGNMENTS, BLOCKS
from ..config.spec import AUTO_ANCHOR, Concept, ErasureSpec
from ..config.words import SLOT, Form, count_noun
from ..prompts.alignment import rows_of, sort_pairs
from ..prompts.misspelt import notes_on_misspelt
from ..prompts.pairs import Pair, Prompt, pairs_of, pairs_to_solve
from ..prompts.tokens import TextPath, text_paths, tokenizer_of
from .sites.planning import naming_encoder, words_of

SHOWN = 4
"""Examples of a list."""
LONG = 76
"""Characters of an example, at most."""
ROOM_BEHIND = 8
"""Characters that are seen behind the concept where an example is cut."""
LONG_PHRASE = 200
"""Characters from which on a phrase counts as long."""


def explain(spec: ErasureSpec | Concept, pipe: Any = None, *, soft_budget: int = 96) -> str:
    """What an erasure of `spec` promises, tries, measures and keeps, for a person to read.

    Args:
        spec: What to erase.
        pipe: A pipeline; then the text also says what its tokenizers cannot read.
        soft_budget: As `erase` takes it.

    Raises:
        ConceptSpecError: A prompt cannot be read by the pipeline, or is the same tokens as what it
            shall mean; what `erase` would say.
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
        becomes = f" becomes {_excerpt(pair.anchor)}" if named else ""
        exact.append(_excerpt(pair.target) + becomes)
    lines.append(f"  Exact, so that nothing is left of it: {_listed(exact)}.")
    own = [pair for pair in pairs["soft"] if pair.stands_for is None]
    long = sum(len(pair.target.text) >= LONG_PHRASE for pair in own)
    lines.append(
        f"  Soft, as far as that costs little elsewhere: {_phrases(len(own))}"
        f"{f', {long} of them long' if long else ''}, "
        f"such as {_examples(own)}."
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
        f"such as {_examples(unseen)}."
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
    """What looks like it and stays: phrases as they were given, made ones by their words alone.

    Parts of a name and broader words fit the frames of a kind by rule only: "a hot in a shop
    window" is measured, and nothing that a person would say.
    """
    parts = concept.near_words()
    measured = _phrases(len(concept.held_out_near_prompts()))
    others = concept.neighbours()
    kept = [f"{_phrases(len(concept.near))}, such as {_some(concept.near)}"] if concept.near else []
    kept += [f"other uses of {_quoted(parts)}"] if parts else []
    lines = [f"  Near it, and kept: {'; '.join(kept)}."] if kept else []
    if not concept.held_out_near_prompts():
        others = ()
    elif parts:
        lines.append(
            f"  Near it, and measured: other uses of {_quoted(parts)}, in {measured} that should "
            "stay."
        )
    else:
        lines.append(
            f"  Measured beside it, and should stay: {measured} with {_quoted(others)} in its "
            "place."
        )
    if not (kept or others):
        lines.append(
            "  Near it: nothing is kept or measured by itself. What looks or sounds like it and "
            "must stay can be named in `near` of a spec."
        )
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
    pairs = pairs_to_solve(spec.concepts, soft_budget=soft_budget)
    paths = text_paths(pipe)
    for path in paths:
        with naming_encoder(path):
            found = sort_pairs(pairs["soft"], path)
            for asked in (pairs["exact"], found.readable):
                _refuse_contradictions(spec, asked, path)
        lost = [pair for pair in found.unread if pair.stands_for is None]
        line = f"{path.use.encoder} is shown {_phrases(len(found.readable))} beside the exact ones"
        if lost:
            line += f"; it cannot read {_phrases(len(lost))} as far as the name: {_examples(lost)}"
        if unread := found.foreign_names:
            line += f"; it does not read {_quoted(unread)}"
        lines.append(line + ".")
    notes = notes_on_misspelt(spec.concepts, map(tokenizer_of, paths))
    return [*lines, *(f"{note[0].upper()}{note[1:]}" for note in notes)]


def _refuse_contradictions(spec: ErasureSpec, pairs: Sequence[Pair], path: TextPath) -> None:
    """Raise what `erase` would say of these pairs; an anchor to be found is not known yet."""
    to_find = words_of([concept for concept in spec.concepts if concept.anchor == AUTO_ANCHOR])
    known = [pair for pair in pairs if pair.word not in to_find]
    rows_of(known, path, ALIGNMENTS[BLOCKS.alignment])


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


def _examples(pairs: Sequence[Pair]) -> str:
    """Different phrases from the first to the last, with the words of the concept in turn."""
    by_frame: dict[str, list[Prompt]] = {}
    for pair in pairs:
        by_frame.setdefault(_frame(pair.target), []).append(pair.target)
    frames = list(by_frame.values())
    count = min(SHOWN, len(frames))
    found = []
    for turn in range(count):
        prompts = frames[turn * (len(frames) - 1) // max(1, count - 1)]
        found.append(_excerpt(prompts[turn % len(prompts)]))
    return _listed(found)


def _frame(prompt: Prompt) -> str:
    """What is said around the name, whichever article that asks for."""
    before = re.sub(r"\b(a)n $", r"\1 ", prompt.text[: prompt.start], flags=re.IGNORECASE)
    return f"{before}{SLOT}{prompt.text[prompt.stop :]}"


def _excerpt(prompt: Prompt) -> str:
    """In quotation marks; of a long text what stands around the concept."""
    text = prompt.text
    if len(text) <= LONG or prompt.stop <= LONG - ROOM_BEHIND:
        return _quote(text)
    beside = max(0, LONG - (prompt.stop - prompt.start)) // 2
    first = max(0, min(prompt.start - beside, len(text) - LONG))
    ahead = "" if first == 0 else "... "
    before = text[first : prompt.start]
    if first and text[first - 1] != " ":
        before = before.partition(" ")[2]
    named = text[prompt.start : prompt.stop]
    if len(named) > LONG:
        return f'"{ahead}{before}{named[:LONG].rsplit(" ", 1)[0]} ..."'
    after = text[prompt.stop : first + LONG]
    if first + LONG >= len(text):
        return f'"{ahead}{before}{named}{after}"'
    return f'"{ahead}{before}{named}{after.rpartition(" ")[0]} ..."'


def _quoted(texts: Sequence[str]) -> str:
    """The first in quotation marks, and how many more there are."""
    shown = [*map(_quote, texts[:SHOWN])]
    if len(texts) > SHOWN:
        shown.append(f"{len(texts) - SHOWN} more")
    return _listed(shown)


def _some(texts: Iterable[str]) -> str:
    """A few from the first to the last."""
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
    return count_noun(count, "phrase")


def _count_captions(count: int) -> str:
    return count_noun(count, "caption")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
