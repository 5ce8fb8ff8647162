"""Detectors beside the judge: Text-To-Concept, which sees any concept from words alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ... import glyphs
from ...errors import EvaluationError
from ...glyphs.render import image
from ...glyphs.world import FIRST, World, sample_scene

ImageEncoder = Callable[[Sequence[Image.Image]], Tensor]
"""Images -> features `(n, width)`."""
TextEncoder = Callable[[Sequence[str]], Tensor]
"""Texts -> vectors `(k, d)` of a space that images share, such as CLIP's."""
WORD_TEMPLATES = ("a {}", "a photo of a {}", "a picture of the {}", "{}")
"""A word's vector is the mean over these."""
GLYPH_TEMPLATES = {
    "shape": ("a {}", "a red {}", "a photo of a {}", "the blue {} at night"),
    "style": ("a circle by {}", "a red star by {}", "a square in the style of {}"),
    "color": ("a {} circle", "a {} star", "a {} heart"),
    "background": ("a circle on {}", "a red star on {}", "a square in {}"),
    "attribute": ("a {} circle", "a {} red star", "a photo of a {} square"),
}
"""What stands around a word of the glyph world, so that it means what it means in captions."""
RENDERS = 800
"""Images without labels that the second judge is fitted on."""


@dataclass(frozen=True)
class TextToConcept:
    """A linear map from a backbone's features to a joint space of images and words.

    The backbone has seen no words, and the joint space none of the backbone's labels: a second
    opinion beside a classifier on the same backbone (Moayeri et al., arXiv 2305.06386).
    """

    backbone: ImageEncoder
    texts: TextEncoder
    map: Tensor
    """`(width + 1, d)`, the last row is the offset."""

    @classmethod
    def fit(
        cls,
        images: Sequence[Image.Image],
        *,
        backbone: ImageEncoder,
        joint: ImageEncoder,
        texts: TextEncoder,
        ridge: float = 1e-4,
    ) -> TextToConcept:
        """The least-squares map of the backbone's features onto the joint ones; no labels.

        Args:
            images: Several times as many as the backbone's features are wide.
            backbone: The vision model whose features are read.
            joint: The image side of the joint space.
            texts: Its text side.
            ridge: Share of the mean squared feature added to the diagonal. Larger keeps the map
                smaller.

        Raises:
            EvaluationError: Fewer images than features.
        """
        features = _append_one(backbone(images))
        wanted = joint(images).double()
        n, width = features.shape
        if n < width:
            raise EvaluationError(
                f"{n} images do not fix a map of {width} features; give at least {width}"
            )
        moments = features.T @ features
        moments += ridge * moments.diagonal().mean() * torch.eye(width, dtype=moments.dtype)
        return cls(backbone, texts, torch.linalg.solve(moments, features.T @ wanted))

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors of images, `(n, d)`."""
        return F.normalize(_append_one(self.backbone(images)) @ self.map, dim=-1)

    def embed_words(
        self, words: Sequence[str], templates: Sequence[str] = WORD_TEMPLATES
    ) -> Tensor:
        """Unit vectors of words, `(k, d)`, each the mean over the templates."""
        vectors = []
        for word in words:
            texts = [template.format(word) for template in templates]
            vectors.append(F.normalize(self.texts(texts).double(), dim=-1).mean(0))
        return F.normalize(torch.stack(vectors), dim=-1)

    def similarity(
        self,
        images: Sequence[Image.Image],
        words: Sequence[str],
        templates: Sequence[str] = WORD_TEMPLATES,
    ) -> Tensor:
        """Cosine of every image with every word, `(n, k)`."""
        return self.embed_images(images) @ self.embed_words(words, templates).T

    def __call__(
        self,
        images: Sequence[Image.Image],
        words: Sequence[str],
        templates: Sequence[str] = WORD_TEMPLATES,
    ) -> list[str]:
        """For every image the most similar of `words`."""
        return [words[i] for i in self.similarity(images, words, templates).argmax(1).tolist()]


def _append_one(features: Tensor) -> Tensor:
    """`(n, width + 1)` in float64, so that a linear map has an offset."""
    features = features.double()
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def wrap_clip(model: Any, processor: Any) -> tuple[ImageEncoder, TextEncoder]:
    """Both sides of a transformers CLIP model with its processor."""

    def vectors(found: Any) -> Tensor:
        return found if isinstance(found, Tensor) else found.pooler_output

    @torch.no_grad()
    def encode_images(images: Sequence[Image.Image]) -> Tensor:
        inputs = processor(images=list(images), return_tensors="pt")
        return vectors(model.get_image_features(**inputs))

    @torch.no_grad()
    def encode_texts(words: Sequence[str]) -> Tensor:
        inputs = processor(text=list(words), padding=True, return_tensors="pt")
        return vectors(model.get_text_features(**inputs))

    return encode_images, encode_texts


def wrap_backbone(model: Any, processor: Any) -> ImageEncoder:
    """The pooled features of any transformers vision model with its processor.

    Models of timm come by transformers' `TimmWrapperModel`.
    """

    @torch.no_grad()
    def encode_images(images: Sequence[Image.Image]) -> Tensor:
        found = model(**processor(images=list(images), return_tensors="pt"))
        pooled = getattr(found, "pooler_output", None)
        if pooled is None:
            return found.last_hidden_state.flatten(2).mean(-1)
        return pooled.flatten(1)

    return encode_images


class SecondJudge:
    """Text-To-Concept on the glyph world: answers like the judge's, without any label."""

    def __init__(self, detector: TextToConcept, world: World) -> None:
        self.detector = detector
        self.world = world
        self.words = {
            "shape": tuple(world.shapes),
            "style": tuple(world.styles),
            "color": tuple(world.colors),
            "background": tuple(world.backgrounds),
            "attribute": (*world.attribute_words, *world.attribute_opposites),
        }
        self.vectors = {
            field: detector.embed_words(words, GLYPH_TEMPLATES[field])
            for field, words in self.words.items()
        }

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, list]:
        """Field -> the most similar word per image; for the attribute, whether it is there."""
        vectors = self.detector.embed_images(images)
        answers: dict[str, list] = {}
        for field, words in self.words.items():
            best = (vectors @ self.vectors[field].T).argmax(1).tolist()
            answers[field] = [words[i] for i in best]
        answers["attribute"] = [w in self.world.attribute_words for w in answers["attribute"]]
        return answers


@cache
def load_second_judge(folder: str | Path = glyphs.WEIGHTS) -> SecondJudge:
    """Text-To-Concept over the judge's trunk, fitted on renders without their labels.

    It is fitted once for a folder, which takes seconds, and never changes.

    Args:
        folder: Of the weights of the judge and of the world's CLIP.
    """
    clip = glyphs.load_clip(folder)
    judge = glyphs.load_judge(folder)
    rng = np.random.default_rng(0)
    renders = [image(FIRST, sample_scene(FIRST, rng, second=0.0), rng) for _ in range(RENDERS)]
    detector = TextToConcept.fit(
        renders, backbone=judge.features, joint=clip.images, texts=clip.texts
    )
    return SecondJudge(detector, FIRST)
