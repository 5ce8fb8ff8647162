"""A name counts as reached where every token that its anchor lacks has a row or a gate."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import siblings
import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.erasure.float32 import in_float32
from diffusers_erasepro.erasure.sites import gates, plan_edits
from diffusers_erasepro.erasure.sites.blocks import words_at
from diffusers_erasepro.erasure.sites.planning import Planning
from diffusers_erasepro.prompts.tokens import text_paths

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import text_encoders

PARTLY = "rows and gates reach 1 of the names in text_encoder only in part"


@cache
def both_ways():
    """A tiny encoder that sees both ways."""
    tokenizer = tiny.tokenizer("<bos> $A <eos>", length=32)
    return text_encoders.pipeline_around(siblings.bert(), tokenizer)


@cache
def causal():
    """A tiny encoder that reads a name before it knows what follows."""
    return tiny.build("StableDiffusionPipeline")


def planned(pipe, concept, layers=("embedding", "gates:0", "otherwise:0", -1)):
    """What is planned from, before any note, and its gates in the first block."""
    planning, site = _planned(pipe, concept, layers)
    return replace(planning, notes=[], unreached=set()), site


@cache
def _planned(pipe, concept, layers):
    (path,) = text_paths(pipe)
    spec = ErasureSpec((concept,), preserve=tiny.PRESERVE)
    options = Options(layers=layers)
    plan = options.resolve(spec.concepts)
    with in_float32(path.encoder) as encoder:
        planning = Planning.of(pipe, path, encoder, spec, options, plan)
        (site,) = gates.gate_sites(planning)
    return planning, site


def telling(planning, site, *words):
    """The gates of these words of the name are told from everything else, and no others."""
    tokenizer = planning.path.pipe.tokenizer
    margins = []
    for name in site.names:
        margins.append(1.0 if tokenizer.decode([name.id]).strip() in words else -1.0)
    return replace(site, margins=tuple(margins))


def named(target, anchor, **more):
    return Concept(target, anchor, ("a {}",), (), **more)


SHARED_LAST = named("red heart", "blue heart")
SHARED_FIRST = named("red heart", "red star")
SHARED_AROUND = named("big red heart", "big blue heart")
NOTHING_SHARED = named("red heart", "blue star")
OTHER_LENGTH = named("red heart", "circle")
CASES = [
    (SHARED_LAST, ("heart",), False),
    (SHARED_LAST, ("red",), True),
    (SHARED_FIRST, ("red",), False),
    (SHARED_FIRST, ("heart",), True),
    (SHARED_AROUND, ("big", "heart"), False),
    (SHARED_AROUND, ("red",), True),
    (NOTHING_SHARED, ("heart",), False),
    (NOTHING_SHARED, ("red",), False),
    (NOTHING_SHARED, ("red", "heart"), True),
    (OTHER_LENGTH, ("heart",), False),
    (OTHER_LENGTH, ("red", "heart"), True),
]


@pytest.mark.parametrize(("concept", "told", "is_reached"), CASES)
def test_a_token_that_the_anchor_lacks_needs_a_gate_or_a_block_stands_in(concept, told, is_reached):
    """ "cat face" -> "dog face" had a gate at "face" alone, and the cat was drawn."""
    planning, site = planned(both_ways(), concept)
    site = telling(planning, site, *told)
    assert site.unclear() == (set() if is_reached else {concept.target})
    planning.unreached.update(plan_edits._find_unreached(planning, [site]))
    assert words_at(planning, 0) == (set() if is_reached else {concept.target})
    notes = [note for note in planning.notes if note.startswith(PARTLY)]
    assert len(notes) == (0 if is_reached else 1)
    assert all(note.endswith(f"edited for them as well: {concept.target!r}") for note in notes)


@pytest.mark.parametrize("concept", [SHARED_LAST, OTHER_LENGTH])
def test_where_attention_is_causal_the_last_token_is_what_counts(concept):
    """The first ones cannot have a gate, and equal tokens have read different words."""
    planning, site = planned(causal(), concept)
    assert [str(name) for name in site.names] == ["red heart#0"]
    told = telling(planning, site, "heart")
    assert plan_edits._find_unreached(planning, [told]) == set()
    (note,) = planning.notes
    assert note.startswith("text_encoder reads the first tokens of a name before it knows the rest")
    assert plan_edits._find_unreached(planning, [telling(planning, site)]) == {concept.target}


def test_a_name_of_which_no_token_has_a_gate_is_no_partly_reached_one():
    planning, site = planned(both_ways(), SHARED_LAST)
    assert plan_edits._find_unreached(planning, [telling(planning, site)]) == {"red heart"}
    (note,) = [note for note in planning.notes if "and encoder blocks are edited" in note]
    assert note.startswith("no row and no gate reaches 1 of the names")


def test_without_a_block_that_stands_in_a_note_says_so_too():
    planning, site = planned(both_ways(), SHARED_LAST, ("embedding", "gates:0", -1))
    plan_edits._find_unreached(planning, [telling(planning, site, "heart")])
    (note,) = [note for note in planning.notes if note.startswith(PARTLY)]
    assert note.endswith("no block stands in for them: 'red heart'")


@pytest.mark.slow
def test_the_plain_line_erases_a_name_whose_first_word_captions_use(around_minilm):
    """All that a user gives is the name and its anchor."""
    spec = ErasureSpec((Concept("cat face", "dog face"),), preserve=everyday_captions()[:300])
    made = erase(around_minilm, spec)
    assert made.report.listed_residual < 1e-5
    assert made.report.left["name"] < 0.4
