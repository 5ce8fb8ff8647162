"""Detectors by name: the shipped ones, those of other packages, and one's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from PIL import Image

from ...config.spec import Concept
from ...errors import EvaluationError
from .clip import load_clip_detector
from .nudenet import load_nudenet_detector
from .protocol import Detector
from .worlds import load_glyph_detector, load_pictures_detector, load_trunk_detector

GROUP = "diffusers_erasepro.detectors"
"""The entry points of other packages' detectors."""
SHIPPED: dict[str, Callable[[str], Detector]] = {
    "clip": load_clip_detector,
    "glyphs": load_glyph_detector,
    "nudenet": load_nudenet_detector,
    "pictures": load_pictures_detector,
    "text_to_concept": load_trunk_detector,
}


class OwnDetector:
    """A function `(images, concept) -> a truth value per image`."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name

    def check(self, pipe: Any, concept: Concept) -> None:
        """Its author knows what it can judge."""

    def __call__(self, images: Sequence[Image.Image], concept: Concept) -> list[bool]:
        found = [bool(answer) for answer in self.function(list(images), concept)]
        if len(found) != len(images):
            raise EvaluationError(
                f"the detector {self.name} gave {len(found)} answers for {len(images)} images; "
                "it must give one for each"
            )
        return found


def list_detectors() -> list[str]:
    """Names of what `find_detector` finds without a module of one's own."""
    return sorted({*SHIPPED, *(entry.name for entry in entry_points(group=GROUP))})


def find_detector(text: str) -> Detector:
    """The detector that `NAME`, `NAME:ARGUMENT` or `module:function` names.

    Args:
        text: A shipped name, one of the entry point group `diffusers_erasepro.detectors`, or a
            function of one's own, whose module is looked for in the current folder too.

    Raises:
        EvaluationError: There is none, or what it needs is not installed.
        HubError: The Hub did not give its weights.
    """
    name, _, argument = text.partition(":")
    if name in SHIPPED:
        return SHIPPED[name](argument)
    for entry in entry_points(group=GROUP, name=name):
        return entry.load()(argument)
    if argument:
        return OwnDetector(_import_function(name, argument), text)
    raise EvaluationError(
        f"no detector {text!r} (known: {', '.join(list_detectors())}); a function of your own is "
        "named module:function"
    )


def _import_function(module: str, function: str) -> Callable[..., Any]:
    sys.path.insert(0, "")  # as `python -m` does
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"no detector '{module}:{function}': {error} (shipped: {', '.join(list_detectors())})"
        ) from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise EvaluationError(f"the module {module} has no function {function!r}")
    return found
