"""Methods by the name that `evaluate` and the command line know them by."""

from __future__ import annotations

from collections.abc import Callable

from ..adapters.adapter import ErasureAdapter
from ..erasure.erase import erase
from ..errors import ConceptSpecError
from .literal import literal
from .rece import rece
from .speed import speed
from .uce import uce

METHODS: dict[str, Callable[..., ErasureAdapter]] = {
    "erasepro": erase,
    "uce": uce,
    "rece": rece,
    "speed": speed,
    "literal": literal,
}


def find_method(name: str) -> Callable[..., ErasureAdapter]:
    """The method of that name.

    Raises:
        ConceptSpecError: There is none.
    """
    if name not in METHODS:
        raise ConceptSpecError(f"no method {name!r} (known: {', '.join(METHODS)})")
    return METHODS[name]
