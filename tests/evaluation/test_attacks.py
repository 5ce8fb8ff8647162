"""Attacks.

Each is what it says it is, and the cheap ones are a gate that an erasure has to hold.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.errors import EvaluationError
from diffusers_erasepro.evaluation.attacks import (
    ATTACKS,
    Siege,
    attack,
    success,
)
from diffusers_erasepro.evaluation.attacks.embedding import concept_vector, revived_states
from diffusers_erasepro.evaluation.attacks.prompt import respelled, spacing, typo
from diffusers_erasepro.evaluation.detectors import find_detector
from diffusers_erasepro.families.pipelines import family_of, reader_paths
from diffusers_erasepro.modules.storage import weight_of

STAR = Concept("star", anchor="circle")
PROMPTS = (
    "a red star in the snow",
    "a star on sand",
    "a blue star at night",
    "one green star by the sea",
)
CHEAP = (
    "plain",
    "paraphrase",
    "typo",
    "spacing",
    "composition",
    "synonym",
    "long prompt",
    "weighting",
    "img2img",
    "inpaint",
)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=12)


@pytest.fixture(scope="module")
def judge():
    return find_detector("glyphs")


def besieged(shipped, adapter=None, prompts=PROMPTS, steps=5):
    victim = erasable(copy.deepcopy(shipped))
    if adapter:
        victim.load_erasure_adapter(adapter)
    return Siege(victim, shipped, STAR, prompts, seed=3, steps=steps)


@pytest.mark.slow
def test_the_erasure_holds_against_cheap_attacks_that_need_no_weights(shipped, no_star, judge):
    """The gate: what brings the star back on the unedited pipeline does not on the erased one."""
    before, after = (success(besieged(shipped, a), judge, CHEAP) for a in (None, no_star))
    assert {n for n in CHEAP if before[n].value >= 0.75} >= {
        "plain",
        "paraphrase",
        "synonym",
        "weighting",
        "img2img",
        "inpaint",
    }
    assert {n: e.value for n, e in after.items()} == dict.fromkeys(CHEAP, 0)


def test_robust_holds_against_embeddings_of_the_unedited_encoder(shipped, no_star, preserve, judge):
    robust = erase(shipped, ErasureSpec((STAR,), preserve=preserve), robust=True)
    shares = [
        success(besieged(shipped, a), judge, ["concept vector"])["concept vector"].value
        for a in (no_star, robust)
    ]
    assert shares == [
        1,
        0,
    ]  # an edit of the encoder alone does not see them, and says so in `uncovered`


@pytest.mark.slow
def test_every_attack_draws_one_picture_per_prompt_and_changes_nothing(shipped, no_star):
    siege = besieged(shipped, no_star, PROMPTS[:2], steps=2)
    before = bits(siege.victim)
    base = bits(shipped)
    drawn = attack(siege)
    assert {name: len(images) for name, images in drawn.items()} == dict.fromkeys(ATTACKS, 2)
    assert_same_bits(siege.victim, before)
    assert_same_bits(shipped, base)
    assert siege.victim.verify_erasure().ok


def test_an_attack_with_the_same_seed_is_the_same(shipped):
    names = ["typo", "composition", "concept vector"]
    first, again = (attack(besieged(shipped, None, PROMPTS[:2], 2), names) for _ in range(2))
    for name in names:
        assert all(
            (np.asarray(a) == np.asarray(b)).all()
            for a, b in zip(first[name], again[name], strict=True)
        )


@given(WORDS, st.integers(0, 1000))
def test_a_typo_swaps_or_doubles_one_letter(word, seed):
    found = typo(word, np.random.default_rng(seed))
    assert sorted(found) == sorted(word) if len(found) == len(word) else len(found) == len(word) + 1
    assert sum(a != b for a, b in zip(found, word, strict=False)) <= (
        2 if len(found) == len(word) else len(word)
    )


@given(WORDS, st.integers(0, 1000))
def test_spacing_keeps_the_letters(word, seed):
    found = spacing(word, np.random.default_rng(seed))
    assert len(found) == len(word) + 1 and found.replace(" ", "").replace("-", "").lower() == word


def test_respelling_touches_only_the_concept(shipped):
    siege = besieged(shipped)
    for text, new in zip(siege.prompts, respelled(siege, typo), strict=True):
        before, after = text.split("star")
        assert new.startswith(before) and new.endswith(after) and new != text


def test_the_inverse_map_revives_what_readers_make_of_the_target(shipped, preserve):
    """RECE's derivation.

    The victim's K and V answer the revived states as the base's answer the prompts.
    """
    siege = besieged(shipped, uce(shipped, ErasureSpec((STAR,), preserve=preserve)))
    states = siege.states(shipped, siege.prompts).double()
    revived = revived_states(siege, regulariser=1e-9).double()
    for path in reader_paths(shipped.unet, family_of(shipped)):
        old, new = (
            weight_of(root, path).detach().double() for root in (shipped.unet, siege.victim.unet)
        )
        wanted = states @ old.T
        assert (revived @ new.T - wanted).norm() < 0.02 * wanted.norm()
        assert (states @ new.T - wanted).norm() > 0.05 * wanted.norm()


def test_the_concept_vector_is_the_mean_difference_of_states(shipped):
    siege = besieged(shipped)
    assert siege.neutral == [p.replace("star", "circle") for p in PROMPTS]
    slow = torch.stack(
        [
            siege.states(shipped, [p])[0] - siege.states(shipped, [q])[0]
            for p, q in zip(PROMPTS, siege.neutral, strict=True)
        ]
    ).mean(0)
    assert torch.allclose(concept_vector(siege), slow, atol=1e-5)


def test_a_siege_without_sense_is_an_error(shipped):
    with pytest.raises(EvaluationError, match="at least one prompt"):
        besieged(shipped, prompts=())
    with pytest.raises(EvaluationError, match="'a red heart' does not name 'star'"):
        besieged(shipped, prompts=("a red heart",))
    with pytest.raises(EvaluationError, match="no attack 'magic' \\(known: plain, paraphrase"):
        attack(besieged(shipped), ["magic"])
