"""A judge that cannot see what a pipeline generates is refused; it would print 0 for everyone."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny
from diffusers_erasepro import Concept, ErasureSpec, glyphs
from diffusers_erasepro.errors import EvaluationError
from diffusers_erasepro.evaluation import runner
from diffusers_erasepro.evaluation.attacks.registry import success
from diffusers_erasepro.evaluation.attacks.siege import Siege
from diffusers_erasepro.evaluation.detectors import find_detector
from diffusers_erasepro.evaluation.suites import Case, Suite
from diffusers_erasepro.glyphs.concept_prompts import kind_of
from diffusers_erasepro.glyphs.recognise import is_glyph_world
from diffusers_erasepro.glyphs.world import FIRST

STAR = Concept("star", "circle")


def with_other_words():
    return StableDiffusionPipeline(
        **glyphs.load_pipeline().components | {"tokenizer": tiny.clip_tokenizer()},
        requires_safety_checker=False,
    )


def with_other_unet():
    return StableDiffusionPipeline(
        **glyphs.load_pipeline().components | {"unet": tiny.unet(128)},
        requires_safety_checker=False,
    )


OTHERS = [
    tiny.stable_diffusion,
    tiny.sdxl,
    tiny.flux,
    tiny.pixart,
    with_other_words,
    with_other_unet,
]


@pytest.mark.parametrize("make", OTHERS)
def test_evaluate_refuses_pipelines_that_are_not_the_glyph_world(make, monkeypatch):
    monkeypatch.setattr(runner.Evaluation, "generate_missing", pytest.fail)
    with pytest.raises(EvaluationError, match=r"glyph world's own judge.*`judge`"):
        runner.evaluate(make(), STAR, {"ours": "erasepro"}, n=1)


def test_the_world_is_itself_in_any_dtype_and_edited(shipped, no_star):
    from diffusers_erasepro import erasable

    assert is_glyph_world(shipped)
    live = erasable(glyphs.load_pipeline())
    live.load_erasure_adapter(no_star)
    assert is_glyph_world(live) and is_glyph_world(glyphs.load_pipeline().to(torch.bfloat16))


@pytest.mark.parametrize("target", ["cat", "Van Gogh", "Ring", "red", "snow"])
def test_a_concept_that_the_judge_does_not_know_is_refused(shipped, target, monkeypatch):
    monkeypatch.setattr(runner.Evaluation, "generate_missing", pytest.fail)
    with pytest.raises(EvaluationError, match=f"no '{target}'.*judge cannot see it"):
        runner.evaluate(shipped, Concept(target, "circle"), {"ours": "erasepro"}, n=1)
    with pytest.raises(EvaluationError, match="judge cannot see it"):
        kind_of(FIRST, Concept(target, "circle"))
    known = ErasureSpec([STAR, Concept(target, "square")])
    with pytest.raises(EvaluationError, match="judge cannot see it"):
        runner.evaluate(shipped, known, {"ours": "erasepro"}, n=1)


@pytest.mark.parametrize(
    ("cases", "judge"), [(None, None), (None, glyphs.load_judge), (dict, None)]
)
def test_a_suite_of_ones_own_needs_prompts_and_a_judge(shipped, cases, judge):
    with pytest.raises(EvaluationError, match=r"`cases`.*`judge`"):
        runner.evaluate(shipped, STAR, {"ours": "erasepro"}, Suite("mine", "a dog", cases, judge))


class Blind:
    def __call__(self, images):
        return {"thing": [None] * len(images)}

    def features(self, images):
        return torch.zeros(len(images), 2) + torch.arange(len(images))[:, None]


def test_a_judge_that_sees_nothing_in_the_unedited_images_is_refused(shipped, no_star, monkeypatch):
    def cases(pipe, spec, n, seed):
        case = Case("a star", {"thing": "star"}, STAR, "thing")
        return {"target": [case] * n, "general": [case] * n, "near": [case], "other": [case] * 2}

    monkeypatch.setattr(runner, "STEPS", 1)
    mine = Suite("mine", "nothing", cases, Blind)
    with pytest.raises(EvaluationError, match="in none of 4 images of the unedited pipeline"):
        runner.evaluate(shipped, STAR, {"ours": no_star}, mine, n=4, controls=False)


def besieged(pipe, concept=STAR):
    return Siege(pipe, pipe, concept, (f"a {concept.target}",))


@pytest.mark.parametrize("name", ["glyphs", "pictures"])
@pytest.mark.parametrize("make", [tiny.stable_diffusion, with_other_unet])
def test_an_attack_is_not_judged_by_a_judge_of_another_world(make, name, world):
    with pytest.raises(EvaluationError, match=r"knows .* alone.*give a detector"):
        success(besieged(make()), find_detector(name), ["plain"])


def test_an_attack_is_not_judged_by_a_judge_that_does_not_know_the_concept(shipped):
    with pytest.raises(EvaluationError, match="no 'cat', so its judge cannot see it"):
        success(besieged(shipped, Concept("cat", "dog")), find_detector("glyphs"), ["plain"])


def test_a_siege_names_its_concept_as_the_product_does(shipped):
    Siege(shipped, shipped, STAR, ("a STAR", "the star's glow"))
    siege = Siege(shipped, shipped, STAR, ("a Star and a starfish",))
    assert siege.neutral == ["a circle and a starfish"]
    with pytest.raises(EvaluationError, match="does not name"):
        Siege(shipped, shipped, STAR, ("a starfish",))


def test_a_spec_of_another_model_ends_the_command_in_one_line(
    tmp_path, no_star, capsys, monkeypatch
):
    import sys
    from dataclasses import replace

    from diffusers_erasepro.cli import main as cli
    from diffusers_erasepro.config.plan import Plan

    spec = ErasureSpec([Concept("Van Gogh", "a painter")])
    replace(
        no_star, spec=spec, plan=Plan.uniform(spec.concepts, no_star.plan.recipes[0][1])
    ).save_pretrained(tmp_path)
    arguments = ["suite", "glyphs", "glyphs", str(tmp_path), "-n", "1"]
    monkeypatch.setattr(sys, "argv", ["erasepro", *arguments, "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    error = capsys.readouterr().err
    assert end.value.code == 1 and "no 'Van Gogh'" in error, error
    assert not (tmp_path / "out").exists()


def test_numbers_of_nothing_stay_numbers_of_nothing():
    with pytest.raises(EvaluationError, match="none of 9"):
        lines = [{"row": "unedited", "kind": "target", "hit": False}] * 9
        runner.check_judge_sees(lines)
    runner.check_judge_sees([*lines, {"row": "unedited", "kind": "target", "hit": np.True_}])
