"""The benchmark of erasing in the pictures world: its prompts and what it makes of answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffusers_erasepro.config.mentions import Mentions

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
pytest.importorskip("diffusers_erasepro_pictures", reason="the pictures world is not installed")

from pictures_cells import ANCHOR, CELLS, HUNDRED, find_cells, prompts_of
from pictures_results import Flags, lost, measures
from pictures_scatter import FEWEST, largest_allowed

EVERY = find_cells([*CELLS, HUNDRED])


@pytest.mark.parametrize("name", EVERY)
def test_prompts_name_what_they_should_and_nothing_else(name):
    cell = EVERY[name]
    prompts = prompts_of(cell, 6, 12, seed=3)
    words = [word for concept in cell.concepts for word in concept.words]
    for kind in ("target", "listed", "pair"):
        assert all(prompt.text in Mentions([prompt.word]) for prompt in prompts.get(kind, ()))
    assert len(prompts["other"]) == 12
    for prompt in (*prompts["near"], *prompts["other"]):
        assert prompt.text not in Mentions(words), prompt
    for prompt in prompts.get("unlisted", ()):
        assert prompt.text not in Mentions(words), prompt


def test_an_anchors_prompt_says_what_the_targets_says():
    prompts = prompts_of(CELLS["pistol"], 8, 1, seed=3)
    for target, anchor in zip(prompts["target"], prompts[ANCHOR], strict=True):
        assert target.text.replace("pistol", "water pistol") == anchor.text
        assert target.noise == anchor.noise


def test_more_prompts_begin_with_the_fewer():
    few = prompts_of(CELLS["weapons"], 4, 8, seed=3)
    many = prompts_of(CELLS["weapons"], 16, 32, seed=3)
    for kind, some in few.items():
        assert many[kind][: len(some)] == some, kind


def flags(right, mse):
    seen = {"target": [True, False]}
    return Flags(seen, [], {"other": right}, {"other": [int(x) for x in right]}, mse, mse, {})


def test_accuracy_that_comes_back_elsewhere_is_not_lost():
    assert lost([True, True, False], [False, True, True]).value == 0
    assert lost([True, True, False, False], [False, True, False, False]).value == 0.25


def test_changes_are_paired_with_the_peers():
    before = flags([True, True], [])
    peers = {"UCE": flags([True, True], [0.5, 0.5]), "SPEED": flags([True, True], [0.1, 0.3])}
    found = measures(flags([True, False], [0.1, 0.1]), before, peers)
    assert found["mse / UCE's"].value == pytest.approx(0.2)
    assert found["mse / SPEED's"].value == pytest.approx(0.5)
    alone = measures(peers["UCE"], before, peers)
    assert "mse / UCE's" not in alone and alone["mse / SPEED's"].value == pytest.approx(2.5)
    assert found["flipped"].value == 0.5
    assert found["others lost"].value == 0.5


@pytest.mark.parametrize(
    ("wrong_from", "bar", "allowed"),
    [(60, 0.0, 59), (0, 0.5, None), (100, 0.0, 99), (90, 0.05, 93)],
)
def test_a_threshold_is_the_last_value_up_to_which_pictures_are_right(wrong_from, bar, allowed):
    values = list(range(100))
    hits = [value >= wrong_from for value in values]
    assert largest_allowed(values, hits, bar) == allowed


def test_few_pictures_give_no_threshold():
    assert largest_allowed([0.1] * (FEWEST - 1), [False] * (FEWEST - 1), 0.03) is None


def test_equal_values_stand_together():
    values = [0.1] * FEWEST + [0.2] * FEWEST
    hits = [False] * FEWEST + [True] * FEWEST
    assert largest_allowed(values, hits, 0.03) == 0.1
