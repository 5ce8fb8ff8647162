"""Detectors: which images show a concept. By name, by entry point, or one's own function."""

from .protocol import Detector
from .registry import find_detector, list_detectors
from .text_to_concept import (
    GLYPH_TEMPLATES,
    SecondJudge,
    TextToConcept,
    load_second_judge,
    wrap_backbone,
    wrap_clip,
)

__all__ = [
    "GLYPH_TEMPLATES",
    "Detector",
    "SecondJudge",
    "TextToConcept",
    "find_detector",
    "list_detectors",
    "load_second_judge",
    "wrap_backbone",
    "wrap_clip",
]
