"""Does an adapter fit this pipeline, and does it do what it says? Asked before any weight is touched."""

from __future__ import annotations

from typing import Any

from ..adapters.adapter import ErasureAdapter
from ..adapters.report import SizeLimit, frobenius
from ..config.options import Options
from ..erasure.residuals import largest
from ..errors import AdapterIntegrityError, BaseModelMismatchError
from ..families.pipelines import family_of, get_component
from ..modules.linear import dtype_of
from ..modules.storage import weight_of, without_loras
from ..patching.weights import base_fingerprint, resolve_edits, unedited
from .stacking import solved
from .verification import allowed, listed, promised


def fitting(pipe: Any, adapter: ErasureAdapter, *, allow_base_mismatch: bool) -> ErasureAdapter:
    """The adapter if it was made for these weights and erases what it lists; its spec solved again if it was not made for them.

    A LoRA that is on now does not count: it may go again, and `refit_erasure` is there for it.

    Raises:
        BaseModelMismatchError: It was made for other components or weights, or these weights hold it already.
        AdapterIntegrityError: It fits, and does not do what it says.
    """
    _check_parts(pipe, adapter)
    _check_sizes(pipe, adapter)
    with without_loras(get_component(pipe, part) for part in adapter.base):
        return _fitting(pipe, adapter, allow_base_mismatch=allow_base_mismatch)


def _fitting(pipe: Any, adapter: ErasureAdapter, *, allow_base_mismatch: bool) -> ErasureAdapter:
    if _made_for(pipe, adapter):
        if not adapter.imported and isinstance(
            adapter.options, Options
        ):  # the others promise no residual
            _check_promise(pipe, adapter)
        return adapter
    if not adapter.imported and largest(listed(pipe, adapter).values()) <= allowed(pipe, adapter):
        raise BaseModelMismatchError(
            f"these weights hold the erasure {adapter.origin or adapter.digest[:12]} already: its listed prompts meet their "
            "anchors. The pipeline was saved with it on, or it was fused in; there is nothing to load"
        )
    if not allow_base_mismatch:
        raise BaseModelMismatchError(_mismatch(adapter))
    return solved(pipe, [adapter], measure=True)


def _check_parts(pipe: Any, adapter: ErasureAdapter) -> None:
    """Only the family's text encoders and denoiser, each with its layers in the right shapes."""
    family = family_of(pipe)
    known = {family.denoiser, *(use.encoder for use in family.encoders)}
    for part in (*adapter.components, *adapter.base, *adapter.goal_parts):
        if part not in known:
            raise BaseModelMismatchError(
                f"the adapter edits {part!r}; {type(pipe).__name__} has {', '.join(sorted(known))}"
            )
    for use in family.encoders:
        read, met = (
            {f"{use.encoder}.{r}" for r in use.readings},
            {g for g in adapter.goals if g.startswith(f"{use.encoder}.")},
        )
        if met and met != read:
            raise BaseModelMismatchError(
                f"the adapter was made for pipelines that read {', '.join(sorted(met))}; {type(pipe).__name__} reads "
                f"{', '.join(sorted(read))}. Make it on this pipeline"
            )
    for part in adapter.components:
        resolve_edits(get_component(pipe, part), part, adapter)


def _check_sizes(pipe: Any, adapter: ErasureAdapter) -> None:
    limit = (
        adapter.options.max_edit_size
        if isinstance(adapter.options, Options)
        else Options().max_edit_size
    )
    bound = SizeLimit(limit, len(adapter.spec.concepts))
    for part in adapter.components:
        root = get_component(pipe, part)
        for name, factors in resolve_edits(root, part, adapter).items():
            size = frobenius(factors) / float(weight_of(root, name).detach().float().norm())
            if not size <= bound.all:
                raise AdapterIntegrityError(
                    f"{part}.{name} would change by {size:.3g} times its weight, at most {bound} is allowed; "
                    "fetch the adapter again from its author"
                )


def _check_promise(pipe: Any, adapter: ErasureAdapter) -> None:
    with unedited(pipe):
        left, bound = promised(pipe, adapter), allowed(pipe, adapter)
    if not left <= bound:
        raise AdapterIntegrityError(
            f"{adapter.origin or 'the adapter'} does not erase what it lists: residual {left:.1e}, at most {bound:.0e} allowed; "
            "fetch it again from its author"
        )


def _made_for(pipe: Any, adapter: ErasureAdapter) -> bool:
    for part, prints in adapter.base.items():
        root = get_component(pipe, part)
        if base_fingerprint(root) != prints.get(str(dtype_of(root)).removeprefix("torch.")):
            return False
    return True


def _mismatch(adapter: ErasureAdapter) -> str:
    return (
        f"the weights of {' and '.join(adapter.base)} are not those the adapter {adapter.origin or ''} was made for "
        "(fine-tuned, a LoRA fused in, or another dtype than its maker had); load it on its base model, or pass "
        "allow_base_mismatch=True to solve its spec again here"
    )
