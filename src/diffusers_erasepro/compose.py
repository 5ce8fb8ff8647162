"""Several adapters as one edit: their specs solved again together, so that each residual stays zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .adapter import ErasureAdapter
from .erase import erase
from .errors import AdapterStateError
from .spec import ErasureSpec


def joint_spec(adapters: Sequence[ErasureAdapter]) -> ErasureSpec:
    """All concepts in one spec, preserve captions united; contradictions between adapters raise ConceptSpecError."""
    concepts = tuple(c for a in adapters for c in a.spec.concepts)
    given = [a.spec.preserve for a in adapters if a.spec.preserve is not None]
    words = {" ".join(w.casefold().split()) for c in concepts for w in c.words}
    captions = dict.fromkeys(t for captions in given for t in captions if " ".join(t.casefold().split()) not in words)
    return ErasureSpec(concepts, preserve=tuple(captions) if given else None)


def joint_options(adapters: Sequence[ErasureAdapter]) -> dict[str, Any]:
    """The options to solve with: the union of the layers; everything else must agree."""
    options = [a.options.to_dict() for a in adapters]
    layers = sorted({layer for o in options for layer in o["layers"]}, key=lambda x: (isinstance(x, str), x))
    for name, value in options[0].items():
        if name != "layers" and any(o[name] != value for o in options):
            values = [o[name] for o in options]
            raise AdapterStateError(f"adapters made with different {name} {values} cannot be solved together; make them alike")
    return options[0] | {"layers": layers}


def combined(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter | None:
    """One edit for all `adapters`, the same whatever their order; None for none.

    One adapter is applied as it is. Several are solved again jointly on the pipeline's base weights, because the
    sum of edits made apart leaves residuals of .4 to .7.
    """
    if len(adapters) <= 1:
        return next(iter(adapters), None)
    ordered = sorted(adapters, key=lambda a: a.digest)
    return erase(pipe, joint_spec(ordered), **joint_options(ordered))
