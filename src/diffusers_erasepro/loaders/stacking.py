"""Several adapters as one edit: their specs solved again together, so that each residual stays zero."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import worst
from ..config.mentions import spelling
from ..config.options import Options, OtherMethod
from ..config.plan import ALIGNMENTS, Layers
from ..config.spec import ErasureSpec
from ..erasure.erase import erase, fall_back
from ..erasure.residuals import anchor_states
from ..errors import AdapterStateError, IllPosedError
from ..families.pipelines import get_component
from ..linalg.low_rank import LowRank, orthonormal, stack
from ..modules.storage import without_loras
from ..patching.weights import base_fingerprint, unedited
from ..prompts.alignment import rows_of
from ..prompts.pairs import pairs_of
from ..prompts.tokens import text_paths

SOLVED = 64
SUM = "sum"
SUMMED = (
    "some of these erasures hold no keys, so they are added to the others instead of solved with them: residuals add up too; "
    "verify_erasure() measures them"
)
_solved: OrderedDict[tuple[str, ...], ErasureAdapter] = OrderedDict()
"""Joint edits by the set of adapters and the base weights, so that a toggle does not solve twice."""


def joint_spec(adapters: Sequence[ErasureAdapter]) -> ErasureSpec:
    """All concepts in one spec, preserve captions united; contradictions between adapters raise ConceptSpecError."""
    concepts = tuple(c for a in adapters for c in a.spec.concepts)
    given = [a.spec.preserve for a in adapters if a.spec.preserve is not None]
    words = {spelling(w) for c in concepts for w in c.words}
    captions = dict.fromkeys(t for captions in given for t in captions if spelling(t) not in words)
    keep = tuple(dict.fromkeys(text for a in adapters for text in a.spec.keep))
    return ErasureSpec(concepts, preserve=tuple(captions) if given else None, keep=keep)


def joint_options(adapters: Sequence[ErasureAdapter], *, neurons: bool = True) -> dict[str, Any]:
    """The options to solve with: every concept keeps its layers and positions, robust if one is; the rest must agree.

    Args:
        adapters: In order.
        neurons: Without, encoder blocks stand in for them.

    Raises:
        AdapterStateError: They differ, or one is not `erase`'s.
    """
    layers: dict[str, Layers] = {}
    alignments: dict[str, str] = {}
    rest: list[dict[str, Any]] = []
    robust = False
    for adapter in adapters:
        options = adapter.options
        if isinstance(options, OtherMethod):
            raise AdapterStateError(
                f"an adapter by {options.method!r} cannot be solved again; make it anew on this "
                "pipeline"
            )
        plan = adapter.plan if neurons else adapter.plan.without_neurons()
        for target, recipe in plan.recipes:
            layers[target] = recipe.layers
            alignments[target] = recipe.alignment
        robust |= options.robust
        own = {"layers": None, "alignment": None, "robust": None}
        rest.append(options.to_dict() | own)
    for name, value in rest[0].items():
        values = [r[name] for r in rest]
        if any(other != value for other in values):
            raise AdapterStateError(
                f"adapters made with different {name} {values} cannot be solved together; make "
                "them alike"
            )
    return rest[0] | {"layers": layers, "alignment": alignments, "robust": robust}


def solved(
    pipe: Any, adapters: Sequence[ErasureAdapter], *, measure: bool = False
) -> ErasureAdapter:
    """Their specs solved together on the pipeline.

    Idle neurons for one concept may be too few for all, or their edit too large; then encoder blocks stand in for them, and also
    beside prompts in `keep`, which neurons do not hold.
    """
    spec = joint_spec(adapters)
    try:
        return erase(pipe, spec, measure=measure, **joint_options(adapters, neurons=not spec.keep))
    except IllPosedError as error:
        if not any(a.plan.assigns_neurons for a in adapters):
            raise
        return fall_back(
            error,
            lambda: erase(pipe, spec, measure=measure, **joint_options(adapters, neurons=False)),
        )


def combined(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter | None:
    """One edit for all `adapters`, the same whatever their order; None for none.

    One adapter is applied as it is. Several are solved again jointly on the pipeline's base weights, because the
    sum of edits made apart leaves residuals: hundredths with the covariance metric, .4 to .7 with the identity.
    Adapters that `erase` did not make cannot be solved again: they are added, with a warning.
    A set solved before on the same base is remembered.
    """
    if len(adapters) <= 1:
        return next(iter(adapters), None)
    ordered = sorted(adapters, key=lambda a: a.digest)
    key = (*(a.digest for a in ordered), *_base(pipe, ordered))
    if key not in _solved:
        _solved[key] = _joined(pipe, ordered)
    _solved.move_to_end(key)
    while len(_solved) > SOLVED:
        _solved.popitem(last=False)
    return _solved[key]


def _joined(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter:
    """Ours solved together, the others added to that."""
    ours = [a for a in adapters if isinstance(a.options, Options)]
    others = [a for a in adapters if isinstance(a.options, OtherMethod)]
    if len(ours) > 1:
        with without_loras(
            get_component(pipe, part) for a in ours for part in a.base
        ):  # as each of them was solved
            ours = [solved(pipe, ours)]
    return _summed(pipe, ours + others) if others else ours[0]


def _summed(pipe: Any, adapters: Sequence[ErasureAdapter]) -> ErasureAdapter:
    """The sum of the edits, which says so; `verify_erasure` measures what it leaves."""
    warnings.warn(SUMMED, stacklevel=2)
    spec, made_by = joint_spec(adapters), OtherMethod(SUM)
    goals: dict[str, Tensor] = {}
    with unedited(pipe), torch.no_grad():
        for path in text_paths(pipe):
            rows = rows_of(pairs_of(spec.concepts, "exact"), path, ALIGNMENTS[made_by.alignment])
            states = anchor_states(path.encoder, rows, path.use.readings)
            goals |= {
                f"{path.use.encoder}.{r}": x.float().cpu()
                for r, x in zip(path.use.readings, states, strict=True)
            }
    layers = dict.fromkeys(name for a in adapters for name in a.edits)
    return ErasureAdapter(
        spec,
        made_by,
        base={k: v for a in adapters for k, v in a.base.items()},
        edits={
            name: stack([a.edits[name] for a in adapters if name in a.edits]) for name in layers
        },
        keys={},
        goals=goals,
        report=worst([a.report for a in adapters]),
    )


def _base(pipe: Any, adapters: Sequence[ErasureAdapter]) -> list[str]:
    """Fingerprints of the components that the adapters edit."""
    return [
        base_fingerprint(get_component(pipe, part))
        for part in sorted({part for a in adapters for part in a.components})
    ]


def kernel(adapters: Sequence[ErasureAdapter]) -> dict[str, LowRank]:
    """One edit per layer from the files alone: on each adapter's stored keys it does what that adapter does.

    With S = sum B_i A_i, the keys side by side X, R = [B_1 A_1 X_1, B_2 A_2 X_2, ...] and the stacked A:

        G = (A X)^+ A,   D = S (I - X G) + R G

    which for exact edits is  D = B (A X)^-1 A. Where each layer's input depends on shallower edits the stored keys
    are those of the adapters apart, so this is close, not exact; `combined` is exact and needs the text encoder.

    Returns:
        Stored layer name -> factors in float64.

    Raises:
        AdapterStateError: One gives neurons away: two that were made apart may give away the same.
    """
    if any(a.plan.assigns_neurons for a in adapters):
        raise AdapterStateError(
            "adapters with neurons among their layers may have given away the same ones; combine them on the text encoder"
        )
    names = dict.fromkeys(name for a in adapters for name in a.edits)
    return {name: _kernel(name, [a for a in adapters if name in a.edits]) for name in names}


def _kernel(name: str, adapters: Sequence[ErasureAdapter]) -> LowRank:
    edits = [a.edits[name].to(torch.float64) for a in adapters]
    keys = [_keys(a, name) for a in adapters]
    X, R = (
        torch.cat(keys, 1),
        torch.cat([f.B @ (f.A @ k) for f, k in zip(edits, keys, strict=True)], 1),
    )
    total = stack(edits)
    AX = total.A @ X
    G = torch.linalg.pinv(AX, rtol=1e-10) @ total.A
    return orthonormal(stack([total, LowRank(R - total.B @ AX, G)]), rtol=1e-12)


def _keys(adapter: ErasureAdapter, name: str) -> Tensor:
    """`(d_in, n)`; all K/V linears share the keys of the encoder they read."""
    if isinstance(adapter.options, OtherMethod):
        raise AdapterStateError(
            f"an adapter by {adapter.options.method!r} holds no keys; it can only be added"
        )
    stored = (
        name if name in adapter.keys else next(k for k in adapter.keys if k.endswith(".states"))
    )
    return adapter.keys[stored].double().T
