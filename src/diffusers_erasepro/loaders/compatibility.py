"""Check an adapter against a pipeline before any weight is touched: it fits, and it erases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import SizeLimit, frobenius
from ..config.options import Options
from ..erasure.residuals import largest
from ..errors import AdapterIntegrityError, AdapterStateError, BaseModelMismatchError
from ..families.pipelines import family_of, get_component
from ..modules.linear import dtype_of, rounds_inputs
from ..modules.storage import weight_of, without_loras
from ..patching.weights import is_base_of, resolve_edits, unedited
from .locking import find_other_readings
from .stacking import solve_jointly
from .verification import (
    admitted_residual,
    allowed_residual,
    list_lost_inversions,
    list_unseen_encoders,
    measure_listed,
    parts_of,
    predict_residual,
    rounding_residual,
)

Value = TypeVar("Value")


def fit_adapter(pipe: Any, adapter: ErasureAdapter, *, allow_base_mismatch: bool) -> ErasureAdapter:
    """The adapter to load: as it is, or its spec solved again on weights it was not made for.

    A LoRA that is on now does not count: it may go again, and `refit_erasure` is there for it.

    Of an encoder that the pipeline was loaded without, nothing is read, and what the adapter holds
    for it is left out.

    Raises:
        BaseModelMismatchError: It was made for other components or weights, without an encoder
            that this pipeline reads, or these weights hold it already.
        AdapterIntegrityError: It fits, and does not do what it says.
        AdapterStateError: It does what it says, and that is too little.
    """
    adapter = _leave_out_absent(pipe, adapter)
    _check_components(pipe, adapter)
    _check_sizes(pipe, adapter)
    unseen = () if adapter.imported else list_unseen_encoders(pipe, adapter)
    if unseen and allow_base_mismatch:
        return solve_jointly(pipe, [adapter], measure=True)
    if unseen:
        raise BaseModelMismatchError(
            f"the adapter {adapter.origin or ''} was made without {' and '.join(unseen)}, which "
            f"this {type(pipe).__name__} reads too: the concept would stay there; make it on a "
            "pipeline with all its text encoders, or pass allow_base_mismatch=True to solve its "
            "spec again here"
        )
    with without_loras(get_component(pipe, part) for part in adapter.base):
        if _is_made_for(pipe, adapter):
            promises_residual = isinstance(adapter.options, Options)
            if promises_residual and not adapter.imported:
                _check_residual(pipe, adapter)
            return adapter
        if not adapter.imported:
            _refuse_erased(pipe, adapter)
        if not allow_base_mismatch:
            named = f"the adapter {adapter.origin}" if adapter.origin else "the adapter"
            raise BaseModelMismatchError(
                f"the weights of {' and '.join(adapter.base)} are not those {named} was made for "
                "(fine-tuned, a LoRA fused in, or fused and taken out again, which rounds, or "
                "another dtype than its maker had); load it on its base model, or pass "
                "allow_base_mismatch=True to solve its spec again here"
            )
        return solve_jointly(pipe, [adapter], measure=True)


def _leave_out_absent(pipe: Any, adapter: ErasureAdapter) -> ErasureAdapter:
    """The adapter without what it holds for text encoders that the pipeline lacks.

    The adapter itself, where nothing else would be left.
    """
    encoders = {use.encoder for use in family_of(pipe).encoders}
    absent = {name for name in encoders if getattr(pipe, name, None) is None}
    held = {*adapter.components, *adapter.base, *adapter.goal_parts}
    if absent.isdisjoint(held) or absent.issuperset(adapter.components):
        return adapter
    return replace(
        adapter,
        base=_without(adapter.base, absent),
        edits=_without(adapter.edits, absent),
        keys=_without(adapter.keys, absent),
        goals=_without(adapter.goals, absent),
    )


def _without(values: Mapping[str, Value], parts: set[str]) -> dict[str, Value]:
    """What belongs to other components; a name begins with its component."""
    return {name: value for name, value in values.items() if name.split(".")[0] not in parts}


def _refuse_erased(pipe: Any, adapter: ErasureAdapter) -> None:
    """Raise where the weights hold the erasure already."""
    if largest(measure_listed(pipe, adapter).values()) <= allowed_residual(pipe, adapter):
        raise BaseModelMismatchError(
            f"these weights hold the erasure {adapter.origin or adapter.digest[:12]} already: its "
            "listed prompts meet their anchors. The pipeline was saved with it on, or it was "
            "fused in; there is nothing to load"
        )


def _check_components(pipe: Any, adapter: ErasureAdapter) -> None:
    """Only the family's text encoders and denoiser, each with its layers in the right shapes."""
    family = family_of(pipe)
    known = {family.denoiser, *(use.encoder for use in family.encoders)}
    for part in (*adapter.components, *adapter.base, *adapter.goal_parts):
        if part not in known:
            raise BaseModelMismatchError(
                f"the adapter edits {part!r}; {type(pipe).__name__} has {', '.join(sorted(known))}"
            )
    other = find_other_readings(pipe, adapter)
    if other is not None:
        raise BaseModelMismatchError(
            f"the adapter was made for pipelines that read {other}. Make it on this pipeline"
        )
    for part in adapter.components:
        resolve_edits(get_component(pipe, part), part, adapter)


def _check_sizes(pipe: Any, adapter: ErasureAdapter) -> None:
    options = adapter.options if isinstance(adapter.options, Options) else Options()
    bound = SizeLimit(options.max_edit_size, len(adapter.spec.concepts))
    for part in adapter.components:
        root = get_component(pipe, part)
        for name, factors in resolve_edits(root, part, adapter).items():
            size = frobenius(factors) / float(weight_of(root, name).detach().float().norm())
            if not size <= bound.all:
                raise AdapterIntegrityError(
                    f"{part}.{name} would change by {size:.3g} times its weight, at most {bound} "
                    "is allowed; fetch the adapter again from its author"
                )


def _check_residual(pipe: Any, adapter: ErasureAdapter) -> None:
    with unedited(pipe):
        residual = predict_residual(pipe, adapter)
        bound = allowed_residual(pipe, adapter)
    if not residual <= bound and adapter.report.inversions:
        others = list_lost_inversions(pipe, adapter) or [
            f"{', '.join(tokens)} in {encoder} may be another textual inversion than that which it "
            "was made with"
            for encoder, tokens in adapter.report.inversions.items()
        ]
        raise AdapterStateError(
            f"{adapter.origin or 'the adapter'} leaves a residual of {residual:.1e} here, at most "
            f"{bound:.0e} is allowed: {'; '.join(others)}"
        )
    rounding = [part for part in parts_of(adapter) if rounds_inputs(get_component(pipe, part))]
    if not residual <= bound and rounding:
        raise AdapterStateError(
            f"products in 8 bits ({' and '.join(rounding)}) round their inputs, which leaves a "
            f"residual of {residual:.1e}, at most {bound:.0e} is allowed. Quantise their "
            "weights alone (4 bits, or 8-bit weights), load them in 16 bits, or edit the rows of "
            "the token embedding, layers='embedding'. Nothing was changed"
        )
    if not residual <= bound:
        _refuse_rounded(pipe, adapter, residual, bound)
        raise AdapterIntegrityError(
            f"{adapter.origin or 'the adapter'} does not erase what it lists: residual "
            f"{residual:.1e}, at most {bound:.0e} allowed; {_advise(adapter, bound)}"
        )


def _refuse_rounded(pipe: Any, adapter: ErasureAdapter, residual: float, bound: float) -> None:
    """Raise where the same weights, computed with in float32, leave no more than is allowed there.

    Raises:
        AdapterStateError: The residual is what 16 bits round.
    """
    dtypes = {part: dtype_of(get_component(pipe, part)) for part in parts_of(adapter)}
    narrow = {part: dtype for part, dtype in dtypes.items() if dtype != torch.float32}
    if not narrow:
        return
    try:
        with unedited(pipe):
            wide = predict_residual(pipe, adapter, wide=True)
    except AdapterStateError:  # it does not run in float32, and nothing is known of the cause
        return
    if wide <= max(admitted_residual(adapter), rounding_residual(adapter, torch.float32)):
        which = " and ".join(f"{part} in {str(dtype)[6:]}" for part, dtype in narrow.items())
        made_wide = all("float32" in adapter.base.get(part, ()) for part in narrow)
        there = "" if made_wide else " and make the adapter there"
        raise AdapterStateError(
            f"rounding ({which}) leaves a residual of {residual:.1e}, at most {bound:.0e} is "
            f"allowed; with the same weights in float32 it is {wide:.1e}. Load the pipeline in "
            f"float32{there}, or make an adapter with smaller edits at this precision, as by "
            "layers=(0, -1). Nothing was changed"
        )


def _advise(adapter: ErasureAdapter, bound: float) -> str:
    """What to do about a residual above `bound`: what was made so is no damaged file."""
    reported = adapter.report.listed_residual
    if not reported > bound:
        return "fetch it again from its author"
    layers = ", ".join(map(str, adapter.plan.layers))
    return (
        f"its own report says {reported:.1e}, so its layers ({layers}) do not close the gap on "
        "this base: make it with others, such as layers=(0, -1), or 'kv' where a norm follows "
        "every linear"
    )


def _is_made_for(pipe: Any, adapter: ErasureAdapter) -> bool:
    return all(is_base_of(pipe, part, prints) for part, prints in adapter.base.items())
