"""Evaluation: numbers with intervals, made of lines that resume and shard; controls that behave."""

import itertools
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, glyphs
from diffusers_erasepro.errors import ConceptSpecError, EvaluationError
from diffusers_erasepro.evaluation import results, runner, suites
from diffusers_erasepro.evaluation.metrics import frechet, harmonic, mean, rate, ratio

STAR = Concept("star", anchor="circle")


@settings(max_examples=50, deadline=None)
@given(hits=st.lists(st.booleans(), min_size=1, max_size=200))
def test_wilson_holds_the_rate_and_shrinks_with_n(hits):
    one = rate(hits)
    four = rate(hits * 4)
    assert 0 <= one.low <= one.value <= one.high <= 1
    assert four.high - four.low < one.high - one.low


def test_wilson_is_the_textbook_formula():
    z = 1.959964
    n = 24
    p = 0.25
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = rate([True] * 6 + [False] * 18)
    expected = ((centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)


def test_bootstrap_is_seeded_and_holds_the_mean():
    values = list(np.random.default_rng(0).exponential(size=50))
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values).low < mean(values).value < mean(values).high


def test_a_ratio_knows_that_both_sides_are_of_the_same_pictures():
    below = np.random.default_rng(0).uniform(1, 9, 50)
    same = ratio(0.5 * below, below)
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5)), (
        "picture by picture it is one half"
    )
    apart = ratio(0.5 * below[::-1], below)
    assert apart.low < apart.value < apart.high and apart.value == pytest.approx(0.5)
    with pytest.raises(EvaluationError, match="the 2 numbers to divide by are all 0"):
        ratio([1.0, 1.0], [0.0, 0.0])


def test_frechet_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 4))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + 2.0) == pytest.approx(16.0, rel=1e-6)
    assert frechet(a, (a - a.mean(0)) * 3 + a.mean(0)) == pytest.approx(
        4 * np.trace(np.cov(a, rowvar=False)), rel=1e-6
    )


def test_harmonic_is_between_and_zero_where_one_is():
    assert harmonic(1, 1, 1) == 1
    assert harmonic(0.9, 0.0) == 0
    assert 0.5 < harmonic(0.5, 1.0) < 0.75


def test_nothing_is_made_of_nothing():
    for number in (rate, mean):
        with pytest.raises(EvaluationError, match="no image was judged"):
            number([])
    with pytest.raises(EvaluationError, match="no image was judged"):
        results.aggregate([])
    with pytest.raises(EvaluationError, match="two images"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_what_is_not_there_is_named(shipped):
    with pytest.raises(EvaluationError, match="known: glyphs"):
        suites.find_suite("imagenet")
    with pytest.raises(EvaluationError, match="no method"):
        runner.evaluate(shipped, STAR, {})
    with pytest.raises(ConceptSpecError, match="esd"):
        runner.evaluate(shipped, STAR, {"esd": "esd"}, n=1, controls=False)


def test_too_few_images_for_a_kind_of_prompt_are_an_error_before_the_first(shipped, monkeypatch):
    cracked = Concept(
        "cracked", "intact", templates=glyphs.templates("attribute"), synonyms=("broken", "damaged")
    )
    with pytest.raises(
        EvaluationError, match=r"with n=1 .* one prompt of the kind 'other', .* n=8"
    ):
        runner.evaluate(shipped, cracked, {"ours": "erasepro"}, n=1)
    monkeypatch.setattr(suites, "_near_cases", lambda *_: [])
    with pytest.raises(EvaluationError, match=r"with n=1 .* no prompt of the kind 'near'"):
        runner.evaluate(shipped, cracked, {"ours": "erasepro"}, n=1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runner, "STEPS", 1)
    monkeypatch.setattr(runner, "CHUNK", 2)  # so that three images are more than one chunk


def without_machine(found):
    """The measures without what the machine's load decides."""
    return {
        row: {k: v for k, v in x.items() if k not in ("seconds", "peak_mib")}
        for row, x in found.items()
    }


def lines_of(folder):
    return {(x["row"], x["kind"], x["index"]): x for x in results.read_lines(folder) if "kind" in x}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_two_shards_give_the_numbers_of_one(
    quick, pipe, no_star, tmp_path
):
    spec = no_star.spec
    rows = {"ours": no_star}
    before = bits(pipe)
    whole = runner.evaluate(pipe, spec, rows, n=3, out=tmp_path / "one", controls=False)
    assert_same_bits(pipe, before)

    file = tmp_path / "one" / "shard-0.jsonl"
    complete = lines_of(tmp_path / "one")
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])  # as a kill leaves it
    again = runner.evaluate(pipe, spec, rows, n=3, out=tmp_path / "one", controls=False)
    assert without_machine(again) == without_machine(whole)
    assert lines_of(tmp_path / "one") == complete

    suite = suites.SUITES["glyphs"]
    shards = []
    for i in (1, 0):
        state = SimpleNamespace(process_index=i, num_processes=2, is_main_process=i == 0)
        half = runner.Evaluation(pipe, spec, suite, 3, 0, state)
        half.generate_missing({"unedited": None, **rows}, [], shards.append)
    assert without_machine(results.aggregate(shards)) == without_machine(whole)
    assert any(x["mse"] > 0 for x in shards if x.get("row") == "ours")


def test_another_run_is_not_mixed_in(pipe, no_star, tmp_path):
    (tmp_path / "shard-0.jsonl").write_text(json.dumps({"run": {"suite": "glyphs", "n": 5}}) + "\n")
    with pytest.raises(EvaluationError, match="another run"):
        runner.evaluate(pipe, no_star.spec, {"ours": no_star}, n=6, out=tmp_path)


def picture(row, kind, i, **more):
    measured = {"mse": 0.1, "feature": 0.1, "features": [i, i**2 % 3], "right": [True, i % 2 == 0]}
    return {"row": row, "kind": kind, "index": i, **measured, **more}


def test_aggregation_does_not_mind_order_or_repetition():
    lines = [
        picture(row, kind, i, hit=row == "unedited", anchor=row != "unedited")
        for row, kind, i in itertools.product(("unedited", "ours"), suites.KINDS, range(6))
    ]
    found = results.aggregate(lines)
    assert found == results.aggregate([*reversed(lines), *lines])
    assert (found["unedited"]["ACC_e"].value, found["ours"]["ACC_e"].value) == (1.0, 0.0)
    assert found["ours"]["H_o"] == pytest.approx(harmonic(1.0, 0.75, 1.0))
    assert "| ours | 0 (0 to 0.39; n 6) |" in results.format_table(found)
    with pytest.raises(EvaluationError, match="'near'"):
        results.aggregate([x for x in lines if x["kind"] != "near"])


def test_asks_name_what_they_should(shipped):
    spec = ErasureSpec((STAR, Concept("Mira Voss", "Una Flatt", templates="style")))
    cases = suites.SUITES["glyphs"].cases(shipped, spec, 6, 0)
    assert set(cases) == set(suites.KINDS)
    assert all(case.concept.target in case.text for case in cases["target"])
    for case in cases["near"] + cases["other"]:
        assert not any(word in case.text for word in ("star", "Mira Voss", "drop"))


@pytest.mark.slow
def test_accelerate_launch_gives_the_same_numbers(tmp_path):
    (tmp_path / "spec.toml").write_text(ErasureSpec((STAR,)).to_toml())
    run = [
        "-m",
        "diffusers_erasepro.evaluation.runner",
        "--spec",
        str(tmp_path / "spec.toml"),
        "--methods",
        "uce",
        "-n",
        "8",
        "--no-controls",
    ]
    two = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    for start, name in (
        ([sys.executable], "one"),
        ([*two, "--mixed_precision", "no", "--dynamo_backend", "no"], "two"),
    ):
        subprocess.run([*start, *run, "--no-controls", "--out", str(tmp_path / name)], check=True)
    assert lines_of(tmp_path / "one") == lines_of(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("shard-*.jsonl"))) == 2
