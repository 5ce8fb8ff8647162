"""A transformers CLIP as a detector: whether an image looks more like the concept than others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...adapters.hub import translate_hub_errors
from ...config.spec import Concept
from ...config.words import fill
from ...errors import EvaluationError
from .text_to_concept import ImageEncoder, TextEncoder, wrap_clip

ALTERNATIVES = ("a photo", "a picture of something else", "a painting", "an empty scene")
"""What an image may look like besides the concept and its anchor."""
MOST_PHRASES = 4
"""Phrases of the concept's kind that a word's vector is the mean of, at most."""


class ClipDetector:
    """The concept is seen where its words are nearer than its anchor and than `ALTERNATIVES`."""

    def __init__(self, repo: str, images: ImageEncoder, texts: TextEncoder) -> None:
        self.name = (
            f"clip:{repo} (nearest of the concept's words, its anchor and {len(ALTERNATIVES)})"
        )
        self.images = images
        self.texts = texts

    def check(self, pipe: Any, concept: Concept) -> None:
        """CLIP reads any word, and any picture."""

    def __call__(self, images: Sequence[Image.Image], concept: Concept) -> list[bool]:
        phrases = concept.kind.exact[:MOST_PHRASES]
        known = [*concept.words, *([concept.anchor] if concept.anchor else [])]
        vectors = []
        for word in known:
            vectors.append(self._embed([fill(phrase, word)[0] for phrase in phrases]))
        vectors += [self._embed([text]) for text in ALTERNATIVES]
        seen = F.normalize(self.images(images).double(), dim=-1)
        nearest = (seen @ torch.stack(vectors).T).argmax(1).tolist()
        return [index < len(concept.words) for index in nearest]

    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """The CLIP score of each image with its own text: 100 times the cosine, at least 0."""
        pictures = F.normalize(self.images(images).double(), dim=-1)
        words = F.normalize(self.texts(texts).double(), dim=-1)
        return (100 * (pictures * words).sum(-1)).clamp_min(0).tolist()

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """The unit vector of texts that mean the same, `(d,)`."""
        return F.normalize(F.normalize(self.texts(texts).double(), dim=-1).mean(0), dim=-1)


def load_clip_detector(repo: str) -> ClipDetector:
    """The detector of `clip:REPO`.

    Args:
        repo: A Hub id, or a folder, of a transformers CLIP with its processor.

    Raises:
        EvaluationError: No repository was named, or it holds no CLIP.
        HubError: The Hub did not give it.
    """
    return ClipDetector(repo, *load_clip_encoders(repo))


def load_clip_encoders(repo: str) -> tuple[ImageEncoder, TextEncoder]:
    """Both sides of a transformers CLIP; errors as of `load_clip_detector`."""
    from transformers import CLIPModel, CLIPProcessor

    if not repo:
        raise EvaluationError(
            "clip needs a model: clip:REPO, such as clip:openai/clip-vit-large-patch14, or a folder"
        )
    with reading_model(repo, "CLIP"):
        model = CLIPModel.from_pretrained(repo)
        processor = CLIPProcessor.from_pretrained(repo)
    return wrap_clip(model.eval(), processor)


@contextmanager
def reading_model(repo: str, kind: str) -> Iterator[None]:
    """Inside, a model of transformers is read; what goes wrong is one of our errors.

    Raises:
        EvaluationError: The folder, or the repository, holds no such model.
        HubError: The Hub did not give it.
    """
    local = Path(repo).is_dir()
    failures = (ValueError, KeyError, TypeError, *((OSError,) if local else ()))
    try:
        with nullcontext() if local else translate_hub_errors(repo):
            yield
    except failures as error:
        raise EvaluationError(
            f"{repo} holds no {kind} of transformers with its processor: {error}"
        ) from error
