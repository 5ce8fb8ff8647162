"""anchor="auto" is settled by text features before anything is solved, and said in the adapter's
spec."""

import pytest

from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.erasure.residuals import aligned_states, relative
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import Pair, Prompt

CANDIDATES = ("circle", "heart", "ring", "a star shape")


def test_the_nearest_candidate_that_names_no_target_is_taken(shipped, preserve):
    spec = ErasureSpec([Concept("star", "auto", anchors=CANDIDATES)], preserve=preserve)
    made = erase(shipped, spec, measure=False)
    (settled,) = made.spec.concepts
    far = {}
    for anchor in CANDIDATES[:3]:
        rows = rows_of(
            [Pair(Prompt.of("a {}", "star"), Prompt.of("a {}", anchor))],
            shipped.tokenizer,
            ALIGNMENTS["last_subject+eos"],
        )
        far[anchor] = float(relative(*aligned_states(shipped.text_encoder, rows, {})).mean())
    assert settled.anchor == min(far, key=far.get) and settled.anchors == ()
    assert made.digest == erase(shipped, made.spec, measure=False).digest


def test_no_candidate_left_is_an_error(shipped, preserve):
    with pytest.raises(ConceptSpecError, match="no anchor is left for 'star'"):
        erase(
            shipped,
            ErasureSpec([Concept("star", "auto", anchors=("big star",))], preserve=preserve),
        )
    with pytest.raises(ConceptSpecError, match="give one or the other"):
        Concept("star", "circle", anchors=("ring",))


def test_too_small_a_preserve_list_says_what_it_has_and_needs(shipped):
    with pytest.raises(
        ConceptSpecError,
        match=r"captions to preserve .* \(2\) give .* 128 rows, .*fc2 needs 512; give about 8",
    ):
        erase(
            shipped,
            ErasureSpec([Concept("star", "circle")], preserve=("a ring", "a heart")),
            layers=(0, -1),
        )
