"""Concept erasures as loadable adapters for diffusers: `erase(pipe, spec)`, then `pipe.load_erasure_adapter(...)`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import glyphs
    from .adapter import ErasureAdapter, Report
    from .erase import erase
    from .errors import ErasureError
    from .loader import ErasureLoaderMixin, erasable
    from .spec import Concept, ErasureSpec
    from .verify import Verification

__version__ = "0.1.0"

_HOMES = {
    "Concept": "spec", "ErasureSpec": "spec", "ErasureAdapter": "adapter", "Report": "adapter",
    "erasable": "loader", "ErasureLoaderMixin": "loader", "Verification": "verify", "ErasureError": "errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that importing the package does not import torch."""
    if name == "glyphs":
        return import_module(".glyphs", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `diffusers_erasepro.erase` the function: importing the module of that name would replace it."""

    @property
    def erase(self) -> Any:
        return import_module(".erase", __name__).erase

    @erase.setter
    def erase(self, module: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package


__all__ = [
    "Concept", "ErasureAdapter", "ErasureError", "ErasureLoaderMixin", "ErasureSpec", "Report", "Verification", "erasable",
    "erase", "glyphs",
]  # fmt: skip
