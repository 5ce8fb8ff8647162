"""Erasures on a live pipeline: load, switch, delete, verify, with diffusers' own verbs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from .adapter import ErasureAdapter, read
from .compose import SUM, SUMMED, combined, joint_options, joint_spec
from .erase import erase
from .errors import AdapterStateError, BaseModelMismatchError, ConceptSpecError, ErasureVerificationError
from .families import component, family_of, module_name
from .lockfile import SUFFIX, locked
from .measure import relative, target_states
from .options import Foreign
from .prompts import ALIGNMENTS, TextPath, pairs_of, rows_of, text_paths
from .weights import (
    LOCK,
    Registry,
    base_fingerprint,
    commit,
    is_intact,
    modules_with_registry,
    originals,
    registry_of,
    resolved,
    staged,
)

P = TypeVar("P")

THRESHOLDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest residual that counts as zero, per dtype of the live weights (three times what rounding was seen to do)."""
NEVER_COVERED = (
    "images given as input (img2img, inpainting, IP-Adapter)",
    "whoever holds the files: fine-tuning, unloading, other checkpoints",
)


@dataclass(frozen=True)
class Verification:
    """What `verify_erasure` measured on the live modules."""

    ok: bool
    residual: float
    """Worst over the active adapters' listed prompts."""
    threshold: float
    uncovered: tuple[str, ...]
    """Routes and states this does not vouch for, in words."""
    residuals: dict[str, float]
    """Component -> worst residual."""


class ErasureLoaderMixin:
    """Methods that load and switch erasures; `erasable(pipe)` adds them to a stock pipeline."""

    components: dict[str, Any]

    def load_erasure_adapter(
        self, pretrained_model_name_or_path_or_adapter: str | os.PathLike[str] | ErasureAdapter, *,
        adapter_name: str | None = None, weight_name: str | None = None, subfolder: str | None = None,
        revision: str | None = None, token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
        allow_base_mismatch: bool = False,
    ) -> str | tuple[str, ...]:  # fmt: skip
        """Load an erasure and switch it on, beside those that are on already.

        Args:
            pretrained_model_name_or_path_or_adapter: A file, a folder, a Hub id, an `ErasureAdapter`, or an
                `erasures.lock`: all it pins or nothing.
            adapter_name: How to call it; letters, digits, "_" and "-", at most 64. Default: "erasure_0", ...
            weight_name, subfolder, revision, token, cache_dir, local_files_only: As in diffusers.
            allow_base_mismatch: Solve the spec again on this pipeline's weights if they are not those it was made for.

        Returns:
            The adapter's name; of a lock, all names.

        Raises:
            AdapterFormatError, AdapterIntegrityError: The file is not a whole erasure adapter, or not the pinned one.
            HubError: The Hub did not give the file; the subclasses say why.
            BaseModelMismatchError: It was made for other weights.
            AdapterStateError: The name, or the same erasure, is loaded already.
        """
        source = pretrained_model_name_or_path_or_adapter
        if not isinstance(source, ErasureAdapter) and os.fspath(source).endswith(SUFFIX):
            hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            return _load_lock(self, Path(source), hub, allow_base_mismatch)
        adapter = source if isinstance(source, ErasureAdapter) else ErasureAdapter.from_pretrained(
            source, weight_name=weight_name, subfolder=subfolder, revision=revision, token=token,
            cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
        with LOCK:
            name = _new_name(adapter_name, _adapters(self))
            _add(self, {name: adapter}, allow_base_mismatch)
        return name

    def get_erasure_adapters(self) -> dict[str, bool]:
        """Name -> whether it is on, in the order of loading."""
        return {n: on for _, registry in modules_with_registry(self).values() for n, on in registry.on.items()}

    def set_erasure_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Switch exactly these on and the others off; their order does not matter."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with LOCK:
            states = self.get_erasure_adapters()
            _known(names, states)
            _switch(self, _adapters(self), {n: n in names for n in states})

    def disable_erasure(self) -> None:
        """Switch all off: the weights are the base, bit for bit."""
        with LOCK:
            states = self.get_erasure_adapters()
            resume = tuple(n for n, on in states.items() if on)
            if resume:
                _switch(self, _adapters(self), dict.fromkeys(states, False), resume)

    def enable_erasure(self) -> None:
        """Switch on again what `disable_erasure` switched off; all, if nothing was."""
        with LOCK:
            states = self.get_erasure_adapters()
            if any(states.values()):
                return
            resume = {n for _, registry in modules_with_registry(self).values() for n in registry.resume}
            _switch(self, _adapters(self), {n: n in resume or not resume for n in states})

    @contextmanager
    def erasure_disabled(self) -> Iterator[None]:
        """Inside, nothing is erased; afterwards the same adapters are on as before."""
        states = self.get_erasure_adapters()
        self.disable_erasure()
        try:
            yield
        finally:
            self.set_erasure_adapters([n for n, on in states.items() if on])

    def delete_erasure_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these adapters; the others stay as they are."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with LOCK:
            states = self.get_erasure_adapters()
            _known(names, states)
            left = {n: a for n, a in _adapters(self).items() if n not in names}
            _switch(self, left, {n: on for n, on in states.items() if n not in names})

    def unload_erasure_adapters(self) -> None:
        """Forget all adapters: the weights are the base, bit for bit, and no trace is left on the modules."""
        with LOCK:
            _switch(self, {}, {})
            for root, _ in modules_with_registry(self).values():
                del root._erasepro

    def refit_erasure(self) -> None:
        """Solve the active specs again on the live weights: after a style LoRA or on another base."""
        with LOCK:
            states, adapters = self.get_erasure_adapters(), _adapters(self)
            active = [adapters[n] for n, on in states.items() if on]
            if not active:
                raise AdapterStateError("nothing to refit: no erasure is on; load one or enable_erasure() first")
            ordered = sorted(active, key=lambda a: a.digest)
            applied = erase(self, joint_spec(ordered), **joint_options(ordered))
            _switch(self, adapters, states, applied=applied)

    def verify_erasure(self, *, raise_on_fail: bool = False) -> Verification:
        """Measure the listed residual of everything active, on the live modules.

        Raises:
            ErasureVerificationError: With `raise_on_fail`, where the erasure does not hold.
        """
        with LOCK:
            found = _verify(self)
        if raise_on_fail and not found.ok:
            raise ErasureVerificationError(
                f"residual {found.residual:.1e}, at most {found.threshold:.0e} allowed; {'; '.join(found.uncovered)}. "
                "Run refit_erasure() if a LoRA changed the text encoder, or load the adapter again"
            )
        return found


# ------------------------------------------------------------------------------------------------ switching


def _load_lock(pipe: Any, lock: Path, hub: dict[str, Any], allow_base_mismatch: bool) -> tuple[str, ...]:
    found = {name: replace(read(origin.path), origin=origin) for name, origin in locked(lock, **hub).items()}
    with LOCK:
        for name in found:
            _new_name(name, _adapters(pipe))
        _add(pipe, found, allow_base_mismatch)
    return tuple(found)


def _add(pipe: Any, new: dict[str, ErasureAdapter], allow_base_mismatch: bool) -> None:
    """Load `new` beside what is loaded, all or nothing, and switch it on."""
    loaded = _adapters(pipe)
    fitting: dict[str, ErasureAdapter] = {}
    for name, adapter in new.items():
        if twin := next((n for n, a in (loaded | fitting).items() if a.digest == adapter.digest), None):
            raise AdapterStateError(f"this erasure is loaded already, as {twin!r}; switch it with set_erasure_adapters")
        for part in adapter.components:
            resolved(component(pipe, part), part, adapter)
        fits = _made_for(pipe, adapter)
        if not fits and not allow_base_mismatch:
            raise BaseModelMismatchError(_mismatch(adapter))
        fitting[name] = adapter if fits else erase(pipe, adapter.spec, **joint_options([adapter]))
    _switch(pipe, loaded | fitting, {**pipe.get_erasure_adapters(), **dict.fromkeys(fitting, True)})


def _adapters(pipe: Any) -> dict[str, ErasureAdapter]:
    return {n: a for _, registry in modules_with_registry(pipe).values() for n, a in registry.adapters.items()}


def _new_name(name: str | None, loaded: dict[str, ErasureAdapter]) -> str:
    if name is None:
        return next(f"erasure_{i}" for i in range(len(loaded) + 1) if f"erasure_{i}" not in loaded)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ConceptSpecError(f"adapter_name {name!r} must be 1 to 64 letters, digits, '_' or '-'")
    if name in loaded:
        raise AdapterStateError(f"adapter_name {name!r} is in use; delete_erasure_adapters({name!r}) first or choose another")
    return name


def _known(names: Sequence[str], states: dict[str, bool]) -> None:
    if unknown := [n for n in names if n not in states]:
        raise AdapterStateError(f"no erasure named {unknown[0]!r} is loaded (loaded: {', '.join(states) or 'none'})")


def _made_for(pipe: Any, adapter: ErasureAdapter) -> bool:
    for part, prints in adapter.base.items():
        root = component(pipe, part)
        dtype = next(root.parameters()).dtype
        if base_fingerprint(root) != prints.get(str(dtype).removeprefix("torch.")):
            return False
    return True


def _mismatch(adapter: ErasureAdapter) -> str:
    return (
        f"the weights of {' and '.join(adapter.base)} are not those the adapter {adapter.origin or ''} was made for "
        "(fine-tuned, a LoRA fused in, or another dtype than its maker had); load it on its base model, or pass "
        "allow_base_mismatch=True to solve its spec again here"
    )


def _switch(
    pipe: Any, adapters: dict[str, ErasureAdapter], on: dict[str, bool], resume: tuple[str, ...] = (),
    applied: ErasureAdapter | None = None,
) -> None:  # fmt: skip
    """Make `on` the state of the pipeline: everything is staged first, then written."""
    active = [adapters[n] for n, is_on in on.items() if is_on]
    applied = applied or combined(pipe, active)
    parts = dict.fromkeys([*modules_with_registry(pipe), *(c for a in adapters.values() for c in a.components)])
    plans = []
    for part in parts:
        root = component(pipe, part)
        mine = {n: a for n, a in adapters.items() if part in a.components}
        edit = applied if applied and part in applied.components else None
        old = registry_of(root)
        registry = Registry(mine, {n: on[n] for n in mine}, resume, edit, dict(old.weights) if old else {})
        plans.append((root, staged(root, part, edit), registry))
    for root, plan, registry in plans:
        commit(root, plan, registry)


# ------------------------------------------------------------------------------------------------ verifying


@torch.no_grad()
def _verify(pipe: Any) -> Verification:
    residuals: dict[str, float] = {}
    found = modules_with_registry(pipe)
    notes = [f"adapter {n!r} is off" for n, on in pipe.get_erasure_adapters().items() if not on]
    for path in text_paths(pipe):
        name = path.use.encoder
        applied = next(
            (r.applied for _, r in found.values() if r.applied and any(g.startswith(f"{name}.") for g in r.applied.goals)), None
        )
        if applied is not None:
            residuals |= _residuals(path, applied)
    notes += [f"adapter {n!r} was imported: its effect cannot be measured" for n, a in _adapters(pipe).items() if a.imported]
    notes += [f"{n} was changed by someone else since the erasure was applied" for n, (m, _) in found.items() if not is_intact(m)]
    if residuals and not any(family_of(pipe).denoiser in r.applied.components for _, r in found.values() if r.applied):
        notes.append("prompt_embeds made elsewhere: this erasure lives in the text encoder")
    if any(r.applied and r.applied.options == Foreign(SUM) for _, r in found.values()):
        notes.append(SUMMED)
    if not residuals:
        notes.append("no erasure is active")
    threshold = max((THRESHOLDS.get(next(m.parameters()).dtype, 2e-2) for m, _ in found.values()), default=1e-5)
    worst = max(residuals.values(), default=float("inf"))
    return Verification(worst <= threshold, worst, threshold, (*notes, *NEVER_COVERED), residuals)


def _residuals(path: TextPath, applied: ErasureAdapter) -> dict[str, float]:
    """Component -> worst residual of the applied edit, through the live modules."""
    pipe, use = path.pipe, path.use
    rows = rows_of(pairs_of(applied.spec.concepts, "exact"), path, ALIGNMENTS[applied.options.alignment])
    with _evaluating(path.encoder):
        have = target_states(path.encoder, rows, use.readings)
    goals = [applied.goals[f"{use.encoder}.{reading}"] for reading in use.readings]
    found = {use.encoder: max(float(relative(h.cpu(), g).max()) for h, g in zip(have, goals, strict=True))}
    family = family_of(pipe)
    if use != family.read_whole or family.denoiser not in applied.components:
        return found
    at = next(i for i, reading in enumerate(use.readings) if not reading.pooled)
    return {family.denoiser: _read(pipe, family.denoiser, applied, have[at], goals[at])}


def _read(pipe: Any, denoiser: str, applied: ErasureAdapter, have: torch.Tensor, goal: torch.Tensor) -> float:
    """Worst residual of what the denoiser's edited linears make of the states."""
    root, worst = component(pipe, denoiser), 0.0
    base = originals(root)
    for stored in applied.of(denoiser):
        name = module_name(root, stored)
        assert name is not None
        layer = root.get_submodule(name)
        bias = 0 if layer.bias is None else layer.bias
        wanted = goal.to(have) @ base[name.replace(".base_layer", "")].to(have).T
        worst = max(worst, float(relative(layer(have) - bias, wanted).max()))
    return worst


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


# ------------------------------------------------------------------------------------------------ stock pipelines


@cache
def _erasable_class(stock: type) -> type:
    """`stock` with the mixin in front, under its own name, so that diffusers saves and finds it as ever."""
    body = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__reduce_ex__": _reduce}
    return type(stock.__name__, (ErasureLoaderMixin, stock), body)


def _rebuild(stock: type, state: dict[str, Any]) -> Any:
    pipe: Any = object.__new__(_erasable_class(stock))
    pipe.__dict__.update(state)
    return pipe


def _reduce(self: Any, protocol: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _rebuild, (type(self).__mro__[2], self.__dict__)


def erasable(pipe: P) -> P:
    """Give a pipeline the methods of `ErasureLoaderMixin`; the same object comes back, its class name kept.

    Raises:
        UnknownFamilyError: The pipeline has no record.
    """
    family_of(pipe)
    if not isinstance(pipe, ErasureLoaderMixin):
        pipe.__class__ = _erasable_class(type(pipe))  # type: ignore[arg-type, assignment]
    return pipe
