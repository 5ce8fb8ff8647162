"""Concept erasures as loadable adapters for diffusers pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import baselines, glyphs
    from .adapters.adapter import ErasureAdapter
    from .adapters.report import Report
    from .config.spec import Concept, ErasureSpec
    from .erasure.erase import erase
    from .erasure.explain import explain
    from .errors import ErasureError
    from .loaders.mixin import ErasureLoaderMixin, erasable
    from .loaders.verification import Verification

__version__ = "0.1.0"

_HOMES = {
    "Concept": "config.spec",
    "ErasureAdapter": "adapters.adapter",
    "ErasureError": "errors",
    "ErasureLoaderMixin": "loaders.mixin",
    "ErasureSpec": "config.spec",
    "Report": "adapters.report",
    "Verification": "loaders.verification",
    "erasable": "loaders.mixin",
    "erase": "erasure.erase",
    "explain": "erasure.explain",
}
_PACKAGES = ("baselines", "glyphs")


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that importing the package does not import torch."""
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "Concept",
    "ErasureAdapter",
    "ErasureError",
    "ErasureLoaderMixin",
    "ErasureSpec",
    "Report",
    "Verification",
    "baselines",
    "erasable",
    "erase",
    "explain",
    "glyphs",
]
