"""Other methods: the same call as `erase`, the same adapter out."""

# The functions shadow their submodules on purpose: the call is `baselines.uce(pipe, spec)`.
from .literal import literal
from .rece import rece
from .registry import METHODS, find_method
from .speed import speed
from .uce import uce

__all__ = ["METHODS", "find_method", "literal", "rece", "speed", "uce"]
