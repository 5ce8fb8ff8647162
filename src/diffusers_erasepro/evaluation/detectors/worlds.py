"""The judges of the embedded worlds as detectors, and Text-To-Concept on any trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from ... import glyphs, pictures
from ...config.spec import Concept
from ...errors import EvaluationError
from ...glyphs.concept_prompts import kind_of
from ...glyphs.recognise import is_glyph_world
from ...glyphs.world import FIRST
from ...pictures.recognise import field_of, is_pictures_world
from .clip import ALTERNATIVES, load_clip_encoders, reading_model
from .text_to_concept import TextToConcept, load_second_judge, wrap_backbone

Answers = Callable[[Sequence[Image.Image]], dict[str, list]]
SECOND_OPINION = "words"
"""As an argument: the world's second opinion, which knows words and none of the judge's labels."""
TRUNK_FORM = "text_to_concept:BACKBONE,CLIP,FOLDER"


class GlyphDetector:
    """A judge of the glyph world, asked the one question that a concept is about."""

    def __init__(self, judge: Answers, name: str = "the glyph world's judge") -> None:
        self.judge = judge
        self.name = name

    def check(self, pipe: Any, concept: Concept) -> None:
        """Refuse other pipelines, and concepts that the world does not have.

        Raises:
            EvaluationError: It cannot judge them.
        """
        if not is_glyph_world(pipe):
            raise EvaluationError(
                f"{self.name} knows glyphs alone and can say nothing about the images of this "
                f"{type(pipe).__name__}; give a detector that knows what it generates, such as "
                "clip:REPO"
            )
        kind_of(FIRST, concept)

    def __call__(self, images: Sequence[Image.Image], concept: Concept) -> list[bool]:
        answers = self.judge(images)[kind_of(FIRST, concept)]
        return [answer is True or answer in concept.words for answer in answers]


class PicturesDetector:
    """The judge of the pictures world, asked the one question that a concept is about."""

    name = "the pictures world's judge"

    def __init__(self) -> None:
        self.judge = pictures.load_judge()

    def check(self, pipe: Any, concept: Concept) -> None:
        """Refuse other pipelines, and concepts that the world does not have.

        Raises:
            EvaluationError: It cannot judge them.
        """
        _refuse_other_pictures(pipe, self.name)
        field_of(concept.words)

    def __call__(self, images: Sequence[Image.Image], concept: Concept) -> list[bool]:
        answers = self.judge(images)[field_of(concept.words)]
        return [answer in concept.words for answer in answers]


class WordsDetector:
    """Text-To-Concept: the concept is seen where its words are nearest of a few."""

    def __init__(
        self, similarity: Callable[..., torch.Tensor], name: str, *, pictures_alone: bool = False
    ) -> None:
        self.similarity = similarity
        self.name = name
        self.pictures_alone = pictures_alone

    def check(self, pipe: Any, concept: Concept) -> None:
        """Refuse pipelines that its trunk does not know.

        Raises:
            EvaluationError: It is the pictures world's, and this is another pipeline.
        """
        if self.pictures_alone:
            _refuse_other_pictures(pipe, self.name)

    def __call__(self, images: Sequence[Image.Image], concept: Concept) -> list[bool]:
        known = [*concept.words, *([concept.anchor] if concept.anchor else []), *ALTERNATIVES]
        nearest = self.similarity(images, known).argmax(1).tolist()
        return [index < len(concept.words) for index in nearest]


def _refuse_other_pictures(pipe: Any, name: str) -> None:
    if not is_pictures_world(pipe):
        raise EvaluationError(
            f"{name} knows its own pictures alone and can say nothing about the images of this "
            f"{type(pipe).__name__}; give a detector that knows what it generates, such as "
            "clip:REPO"
        )


def load_glyph_detector(argument: str) -> GlyphDetector:
    """The detector of `glyphs`, or of `glyphs:words`."""
    if argument == SECOND_OPINION:
        return GlyphDetector(load_second_judge(), "the glyph world's second judge")
    _refuse_argument("glyphs", argument)
    return GlyphDetector(glyphs.load_judge())


def load_pictures_detector(argument: str) -> PicturesDetector | WordsDetector:
    """The detector of `pictures`, or of `pictures:words`."""
    if argument == SECOND_OPINION:
        name = "the pictures world's second judge"
        return WordsDetector(pictures.load_words(), name, pictures_alone=True)
    _refuse_argument("pictures", argument)
    return PicturesDetector()


def _refuse_argument(name: str, argument: str) -> None:
    if argument:
        raise EvaluationError(
            f"the detector {name!r} takes {SECOND_OPINION!r} or nothing, not {argument!r}"
        )


def load_trunk_detector(argument: str) -> WordsDetector:
    """The detector of `text_to_concept:BACKBONE,CLIP,FOLDER`.

    Args:
        argument: A transformers vision model, a transformers CLIP, and a folder of any pictures,
            which need no labels: more than the model's features are wide.

    Raises:
        EvaluationError: A part is missing, or there are too few pictures.
        HubError: The Hub did not give a model.
    """
    parts = [part.strip() for part in argument.split(",")]
    if len(parts) != 3 or not all(parts):
        raise EvaluationError(
            f"{TRUNK_FORM} needs its three parts, got {argument!r}: a transformers vision model, a "
            "transformers CLIP, and a folder of any pictures to fit the map on (in worlds: "
            "glyphs:words, pictures:words)"
        )
    backbone, clip, folder = parts
    images, texts = load_clip_encoders(clip)
    fitted = TextToConcept.fit(
        read_pictures(Path(folder)), backbone=_load_backbone(backbone), joint=images, texts=texts
    )
    return WordsDetector(partial(fitted.similarity), f"text_to_concept on {backbone} by {clip}")


def _load_backbone(repo: str) -> Any:
    from transformers import AutoImageProcessor, AutoModel

    with reading_model(repo, "vision model"):
        model = AutoModel.from_pretrained(repo)
        return wrap_backbone(model.eval(), AutoImageProcessor.from_pretrained(repo))


def read_pictures(folder: Path) -> list[Image.Image]:
    """Every picture of a folder, in RGB, by name.

    Raises:
        EvaluationError: There is none.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found.append(Image.open(path).convert("RGB"))
        except (UnidentifiedImageError, IsADirectoryError):
            continue
    if not found:
        raise EvaluationError(f"{folder} holds no picture; give a folder of pictures")
    return found
