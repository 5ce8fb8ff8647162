"""What the noise predictions say of an edit, and the layers they choose."""

from dataclasses import replace

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.erasure.auto_layers import (
    CHAINS,
    ENOUGH,
    NEARLY,
    STRONGER,
    least_drift,
    least_residual,
    trials,
)
from diffusers_erasepro.erasure.noise_predictions import NoisePredictions
from diffusers_erasepro.errors import ConceptSpecError, IllPosedError
from diffusers_erasepro.glyphs.clips import captioned_clips
from diffusers_erasepro.prompts.pairs import spread


@pytest.fixture(scope="module")
def spec(preserve):
    star = Concept("star", anchor="circle", templates=glyphs.templates("shape"))
    return ErasureSpec((star,), preserve=preserve)


@pytest.fixture(scope="module")
def no_star(shipped, spec):
    return erase(shipped, spec)


@pytest.fixture(scope="module")
def predictions(shipped, spec):
    with torch.no_grad():
        return NoisePredictions.of(shipped, spec)


@pytest.fixture(scope="module")
def auto(shipped, spec):
    """Made once, as it costs seconds, with the bits before and after."""
    before = bits(shipped)
    adapter = erase(shipped, spec, layers="auto")
    assert_same_bits(shipped, before)
    return adapter


def scaled(adapter, by):
    return replace(adapter, edits={k: replace(f, B=f.B * by) for k, f in adapter.edits.items()})


def chosen(adapter):
    return {"layers": adapter.options.layers, "alignment": adapter.options.alignment}


def test_no_edit_leaves_the_whole_target_and_moves_nothing(predictions, no_star):
    with torch.no_grad():
        assert predictions.compare(scaled(no_star, 1e-12)) == pytest.approx((1.0, 0.0), abs=1e-6)


@pytest.mark.slow
def test_half_an_edit_leaves_more_of_the_target(predictions, no_star):
    with torch.no_grad():
        (half, _), (whole, drift) = (
            predictions.compare(scaled(no_star, 0.5)),
            predictions.compare(no_star),
        )
    assert whole < ENOUGH < half < 1 and 0 < drift < 0.1


def test_the_empty_prompt_counts(predictions, no_star):
    """Guidance reads it in every picture, so what moves only there is drift."""
    moved = replace(predictions, kept=[(t, x, k, e + 1) for t, x, k, e in predictions.kept])
    with torch.no_grad():
        assert moved.compare(scaled(no_star, 1e-12))[1] > 0.1


@pytest.mark.slow
def test_auto_chooses_by_the_denoiser_and_records_the_choice(shipped, spec, auto):
    assert auto.report.denoiser_residual <= ENOUGH and auto.report.listed_residual < 1e-5
    assert erase(shipped, spec, **chosen(auto)).digest == auto.digest


@pytest.mark.slow
def test_auto_moves_least_of_all_it_offers_on_captions_that_its_metric_has_not_seen(
    shipped, spec, predictions, auto
):
    unseen = replace(
        spec, preserve=tuple(t for t in spec.preserve if t not in predictions.captions)
    )
    lent = set(predictions.captions) & set(spec.preserve)
    assert len(unseen.preserve) == len(spec.preserve) - len(lent) and 0 < len(lent) < len(
        predictions.captions
    )
    enough = {}
    for layers in (None, *CHAINS):
        adapter = predictions.judge(erase(shipped, unseen, measure=False, layers=layers))
        if adapter.report.denoiser_residual <= ENOUGH:
            enough[adapter.plan] = adapter.report.denoiser_drift
    assert len(enough) > 2
    assert min(enough, key=enough.__getitem__) == auto.plan
    assert enough[auto.plan] == auto.report.denoiser_drift


def test_where_no_chain_erases_enough_the_gentlest_that_nearly_does_is_taken_else_one_near_the_best(
    no_star,
):
    seen = {
        "good": (ENOUGH / 2, 0.02),
        "spare": (ENOUGH, 0.01),
        "strong": ((ENOUGH + NEARLY) / 2, 0.008),
        "near": (NEARLY, 0.005),
        "poor": (2 * NEARLY, 0.001),
        "worse": (3 * NEARLY, 0.0),
    }
    tried = {
        k: replace(no_star.report, denoiser_residual=r, denoiser_drift=d)
        for k, (r, d) in seen.items()
    }
    assert least_drift(tried, "good") == "spare" and least_drift(tried, "near") == "near"
    assert (
        least_drift({k: tried[k] for k in ("worse", "strong", "near", "poor")}, "worse") == "near"
    )
    assert least_drift({k: tried[k] for k in ("worse", "poor")}, "worse") == "poor"
    poor = {
        d: replace(tried["poor"], denoiser_residual=r, denoiser_drift=d)
        for r, d in ((0.80, 0.02), (0.85, 0.01), (0.9, 0.0))
    }
    assert least_drift(poor, 0.02) == 0.01
    assert least_residual(poor.values()) == 0.8 and least_residual([]) == float("inf")


def test_auto_stands_alone(shipped, spec):
    with pytest.raises(ConceptSpecError, match="'auto' alone"):
        erase(shipped, spec, layers=("auto", 0))


@pytest.mark.slow
def test_where_every_chain_is_refused_the_reason_is_told(shipped, spec):
    with pytest.raises(IllPosedError, match=r"max_edit_size=0\.001"):
        erase(shipped, spec, layers="auto", max_edit_size=1e-3, soft_budget=0)


def test_spread_goes_from_first_to_last():
    assert spread(list(range(100)), 4) == [0, 25, 50, 75] and spread([1, 2], 4) == [1, 2]


@pytest.mark.parametrize(
    ("left", "tried"), [((0.5, 0.4, 0.39), [1, 3, 10]), ((0.5, ENOUGH), [1, 3]), ((ENOUGH,), [1])]
)
def test_soft_prompts_weigh_more_until_a_chain_erases_enough_or_that_helps_no_more(
    no_star, left, tried
):
    choice = Options.of({"layers": "auto"})
    reports = {}
    weights = []
    spec = no_star.spec
    for trial in trials(spec, choice, no_star.plan, reports):
        times = round(trial.soft_weight / choice.soft_weight)
        weights.append(times)
        reports[trial] = replace(
            no_star.report, denoiser_residual=left[STRONGER.index(times)], denoiser_drift=0.0
        )
    assert list(dict.fromkeys(weights)) == tried and len(weights) == len(tried) * (1 + len(CHAINS))


@pytest.mark.slow
def test_auto_erases_a_motion_that_leaks_by_default():
    """A motion of the moving world: the default lets some of its phrasings through."""
    pipe = glyphs.load_video_pipeline()
    captions = tuple(text for text, _ in captioned_clips(400, seed=0))
    spec = ErasureSpec(
        (Concept("rising", "resting", templates=glyphs.templates("attribute")),), preserve=captions
    )
    with torch.no_grad():
        leaks, _ = NoisePredictions.of(pipe, spec).compare(erase(pipe, spec))
    auto = erase(pipe, spec, layers="auto")
    assert leaks > NEARLY >= auto.report.denoiser_residual and auto.report.listed_residual < 1e-5
