"""Text-To-Concept: the map is the least-squares one, and on glyphs it sees what the judge sees."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from diffusers_erasepro import glyphs
from diffusers_erasepro.errors import EvaluationError
from diffusers_erasepro.evaluation.detectors import (
    TextToConcept,
    load_second_judge,
    wrap_backbone,
    wrap_clip,
)
from diffusers_erasepro.glyphs.concept_prompts import prompts_without

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def drawn(shipped):
    """Pictures of captions that name a shape."""
    texts = [text for text, _ in prompts_without((), 48, seed=3, held_out=False)]
    noise = [torch.Generator().manual_seed(i) for i in range(len(texts))]
    return shipped(texts, num_inference_steps=6, guidance_scale=3.0, generator=noise).images


@pytest.fixture(scope="module")
def clip(shipped):
    """A transformers CLIP, small and untrained, with its processor."""
    torch.manual_seed(0)
    tokenizer = shipped.tokenizer
    config = CLIPConfig(
        text_config=SMALL
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config=SMALL | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    size = {"height": 32, "width": 32}
    return CLIPModel(config).eval(), CLIPProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size), tokenizer
    )


def test_a_backbone_that_holds_the_joint_space_is_mapped_onto_it(clip, drawn):
    images, texts = wrap_clip(*clip)
    rotated = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    backbone = lambda pictures: images(pictures).double() @ rotated + 3.0  # noqa: E731
    detector = TextToConcept.fit(drawn, backbone=backbone, joint=images, texts=texts, ridge=0.0)
    expected = (
        F.normalize(images(drawn[:5]).double(), dim=-1)
        @ F.normalize(texts(["a star"]).double(), dim=-1).T
    )
    assert torch.allclose(detector.similarity(drawn[:5], ["star"], ["a {}"]), expected, atol=1e-6)


def test_any_transformers_backbone_serves(clip, drawn):
    images, texts = wrap_clip(*clip)
    torch.manual_seed(1)
    vision = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)).eval()
    detector = TextToConcept.fit(
        drawn, backbone=wrap_backbone(vision, clip[1].image_processor), joint=images, texts=texts
    )
    assert detector.similarity(drawn[:3], ["star", "ring"]).shape == (3, 2)


def test_the_map_is_the_least_squares_one(clip, drawn):
    images, texts = wrap_clip(*clip)
    judge = glyphs.load_judge()
    features = lambda pictures: judge.features(pictures)[:, :40]  # noqa: E731
    detector = TextToConcept.fit(drawn, backbone=features, joint=images, texts=texts, ridge=0.0)
    x = torch.cat([features(drawn).double(), torch.ones(len(drawn), 1, dtype=torch.float64)], 1)
    gradient = x.T @ (x @ detector.map - images(drawn).double())
    assert gradient.abs().max() < 1e-6


def test_too_few_pictures_are_an_error(clip, drawn):
    images, texts = wrap_clip(*clip)
    with pytest.raises(
        EvaluationError, match="10 images do not fix a map of 17 features; give at least 17"
    ):
        TextToConcept.fit(drawn[:10], backbone=images, joint=images, texts=texts)


def test_on_glyphs_it_sees_the_shapes_that_the_judge_sees(drawn):
    seen = load_second_judge()(drawn)
    told = glyphs.load_judge()(drawn)
    both = [a == b for a, b in zip(seen["shape"], told["shape"], strict=True) if b]
    assert len(both) > 40 and sum(both) / len(both) >= 0.95
