"""Which linears of a block are edited, and whose output each edit is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import ConceptSpecError, UnknownFamilyError
from .encoders import blocks_path, encoder_family_of
from .types import EncoderFamily


@dataclass(frozen=True)
class Site:
    """A linear to edit, and the module whose output shall be the anchor's afterwards."""

    linear: str
    closes: str


VARIANTS: dict[str, Callable[[EncoderFamily, str], list[Site]]] = {
    "block": lambda family, block: [Site(f"{block}.{family.writer}", block)],
    "linear": lambda family, block: [
        Site(f"{block}.{name}", f"{block}.{name}") for name in family.linears
    ],
}
"""`block` edits the linear that writes the residual stream last, until the stream itself is the anchor's (our
reading); `linear` edits every linear, until its own output is the anchor's (the paper's formula, read literally)."""


def sites_of(encoder: nn.Module, blocks: Sequence[int], variant: str) -> list[Site]:
    """What is edited in `blocks`, in the order it runs."""
    family, path = encoder_family_of(encoder), blocks_path(encoder)
    if blocks and family.writer is None:
        raise ConceptSpecError(
            f"layers: in {type(encoder).__name__} a norm follows every linear, so no edit of one reaches an arbitrary state; use "
            "layers='kv', the denoiser's linears that read it"
        )
    names = {name for name, _ in encoder.named_modules()}
    sites = [
        site
        for block in blocks
        for site in VARIANTS[variant](family, f"{path}.{block}")
        if site.linear in names
    ]
    if blocks and not sites:
        raise UnknownFamilyError(
            f"{type(encoder).__name__} has no {family.writer} in its blocks; see docs/families.md"
        )
    return sites
