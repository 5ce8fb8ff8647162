"""Text-To-Concept: sees any concept in pictures from words alone, through any vision backbone (arXiv 2305.06386)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import EvaluationError

Images = Callable[[Sequence[Image.Image]], Tensor]
"""Pictures -> features `(n, width)`."""
Texts = Callable[[Sequence[str]], Tensor]
"""Texts -> vectors `(k, d)` of a space that pictures share, such as CLIP's."""
FRAMES = ("a {}", "a photo of a {}", "a picture of the {}", "{}")
"""A word's vector is the mean over these."""


@dataclass(frozen=True)
class TextToConcept:
    """A linear map from a backbone's features to a joint space, where words say what to look for.

    The backbone was never told the words, and the joint space was never told the backbone's labels, so that this is a
    second opinion beside a classifier on the same backbone.
    """

    backbone: Images
    texts: Texts
    map: Tensor
    """`(width + 1, d)`, the last row is the offset."""

    @classmethod
    def fit(
        cls,
        images: Sequence[Image.Image],
        *,
        backbone: Images,
        joint: Images,
        texts: Texts,
        ridge: float = 1e-4,
    ) -> TextToConcept:
        """The least-squares map of the backbone's features of `images` onto their joint features; no labels.

        Args:
            images: What the map is fitted on, several times as many as the backbone's features are wide.
            backbone: The vision model whose features are read.
            joint: The image side of the joint space.
            texts: Its text side.
            ridge: Share of the mean squared feature added to the diagonal.

        Raises:
            EvaluationError: Fewer pictures than features.
        """
        features, wanted = _with_one(backbone(images)), joint(images).double()
        n, width = features.shape
        if n < width:
            raise EvaluationError(
                f"{n} pictures do not fix a map of {width} features; give at least {width}"
            )
        moments = features.T @ features
        moments += ridge * moments.diagonal().mean() * torch.eye(width, dtype=moments.dtype)
        return cls(backbone, texts, torch.linalg.solve(moments, features.T @ wanted))

    def seen(self, images: Sequence[Image.Image]) -> Tensor:
        """`(n, d)` unit vectors of pictures."""
        return F.normalize(_with_one(self.backbone(images)) @ self.map, dim=-1)

    def said(self, words: Sequence[str], frames: Sequence[str] = FRAMES) -> Tensor:
        """`(k, d)` unit vectors of words."""
        vectors = [
            F.normalize(self.texts([frame.format(word) for frame in frames]).double(), dim=-1).mean(
                0
            )
            for word in words
        ]
        return F.normalize(torch.stack(vectors), dim=-1)

    def similarity(
        self, images: Sequence[Image.Image], words: Sequence[str], frames: Sequence[str] = FRAMES
    ) -> Tensor:
        """`(n, k)` cosine of every picture with every word."""
        return self.seen(images) @ self.said(words, frames).T

    def __call__(
        self, images: Sequence[Image.Image], words: Sequence[str], frames: Sequence[str] = FRAMES
    ) -> list[str]:
        """For every picture the most similar of `words`."""
        return [words[i] for i in self.similarity(images, words, frames).argmax(1).tolist()]


def _with_one(features: Tensor) -> Tensor:
    features = features.double()
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def of_clip(model: Any, processor: Any) -> tuple[Images, Texts]:
    """Both sides of a transformers CLIP model with its processor."""

    def vectors(found: Any) -> Tensor:
        return found if isinstance(found, Tensor) else found.pooler_output

    @torch.no_grad()
    def images(pictures: Sequence[Image.Image]) -> Tensor:
        return vectors(
            model.get_image_features(**processor(images=list(pictures), return_tensors="pt"))
        )

    @torch.no_grad()
    def texts(words: Sequence[str]) -> Tensor:
        return vectors(
            model.get_text_features(
                **processor(text=list(words), padding=True, return_tensors="pt")
            )
        )

    return images, texts


def of_backbone(model: Any, processor: Any) -> Images:
    """The pooled features of any transformers vision model (timm's come by `TimmWrapperModel`) with its processor."""

    @torch.no_grad()
    def images(pictures: Sequence[Image.Image]) -> Tensor:
        found = model(**processor(images=list(pictures), return_tensors="pt"))
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state.flatten(2).mean(-1) if pooled is None else pooled.flatten(1)

    return images
