"""eval-unlearn runs us: its own runner, a metric of the glyph world, our entry point."""

import json

import pytest
from eval_unlearn.registry import register_metric
from eval_unlearn.runners import SingleBenchmarkRunner
from eval_unlearn.types import Dataset, MetricResult

from diffusers_erasepro import glyphs
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.interop.eval_unlearn import ErasureTechnique

PROMPTS = ["a red star in the snow", "a blue star at night", "a star on sand"]
QUICK = {"model_id": "glyphs", "num_inference_steps": 5, "guidance_scale": 3.0, "device": "cpu"}


@register_metric("glyph_shape")
class ShapeSeen:
    """Share of pictures in which the glyph judge sees a shape."""

    def __init__(self, shape):
        self.shape = shape
        self.judge = glyphs.load_judge()
        self.seen = []

    def load_dataset(self):
        return [
            Dataset(PROMPTS[:2], {"source": "glyphs"}),
            Dataset(PROMPTS[2:], {"source": "glyphs"}),
        ]

    def update(self, images, prompts, metadata):
        assert len(images) == len(prompts)
        self.seen += [told == self.shape for told in self.judge(images)["shape"]]

    def compute(self):
        return MetricResult(
            f"{self.shape} seen", sum(self.seen) / len(self.seen), {"n": len(self.seen)}
        )


def run(technique, shape, out):
    return SingleBenchmarkRunner(
        "erasepro", "glyph_shape", technique, {"shape": shape}, output_dir=str(out), seed=1
    ).run()


@pytest.mark.slow
def test_eval_unlearn_finds_us_and_sees_the_concept_gone(tmp_path):
    erased = QUICK | {"erase_concept": "star", "anchor": "circle"}
    assert run(erased, "star", tmp_path)["metric_result"]["value"] == 0
    report = run(erased, "circle", tmp_path)
    assert report["metric_result"] == {"name": "circle seen", "value": 1, "details": {"n": 3}}
    assert json.dumps(report)


def test_a_finished_adapter_is_loaded_as_it_is(no_cross, tmp_path):
    path = str(no_cross.save_pretrained(tmp_path / "no-cross"))
    assert run(QUICK | {"adapter": path}, "star", tmp_path)["metric_result"]["value"] == 1


def test_the_same_seed_draws_the_same(no_star, tmp_path):
    technique = ErasureTechnique(**QUICK, adapter=str(no_star.save_pretrained(tmp_path)))
    once = technique.generate(PROMPTS[1:2], seed=6)
    batch = technique.generate(PROMPTS[:2], seed=5)
    assert once[0].tobytes() == batch[1].tobytes()


def test_without_a_concept_there_is_nothing_to_do():
    with pytest.raises(ConceptSpecError, match="target"):
        ErasureTechnique(**QUICK)
