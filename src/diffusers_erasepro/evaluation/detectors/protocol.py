"""What a detector is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from ...config.spec import Concept


class Detector(Protocol):
    """Says which images show a concept.

    A plug-in is a function `(argument) -> Detector` under the entry point group
    `diffusers_erasepro.detectors`; `argument` is what follows the colon in `NAME:ARGUMENT`.
    """

    name: str
    """As reports print it, with version and threshold."""

    def check(self, pipe: Any, concept: Concept) -> None:
        """Refuse what it cannot judge: it would see the concept in no image, erased or not.

        Raises:
            EvaluationError: It does not know what the pipeline generates, or not the concept.
        """

    def __call__(self, images: Sequence[Image.Image], concept: Concept) -> list[bool]:
        """Per image, whether it shows the concept under any of its words."""
