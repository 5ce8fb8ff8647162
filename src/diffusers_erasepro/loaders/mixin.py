"""Erasures on a live pipeline: load, switch, delete, verify, with diffusers' own verbs."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..adapters.adapter import ErasureAdapter
from ..adapters.file import write_atomically
from ..adapters.hub import FileOptions, find
from ..adapters.lockfile import SUFFIX, find_pinned
from ..adapters.naming import check_adapter_name
from ..erasure.residuals import largest
from ..errors import (
    AdapterStateError,
    ErasureInactiveError,
    ErasureVerificationError,
)
from ..families.pipelines import family_of, get_component
from ..modules.linear import is_compiled
from ..patching.rwlock import WEIGHTS_LOCK
from ..patching.weights import (
    Registry,
    StagedEdit,
    commit,
    modules_with_registry,
    registry_of,
    stage,
)
from .call_arguments import find_uncovered, gives_embeddings, list_arguments
from .compatibility import fit_adapter
from .locking import (
    Lock,
    check_call,
    check_replacement,
    get_adapters,
    get_locks,
    get_states,
    make_lock,
    opens,
    refuse_locked,
    refuse_other_readings,
)
from .prompt_measures import measure_prompts, sort_by_left
from .stacking import combine, solve_jointly
from .verification import Verification, verify

P = TypeVar("P")
Source = str | os.PathLike[str] | ErasureAdapter
SIDECAR = "erasure.json"
"""Beside `model_index.json` of a pipeline saved with erasures on: which ones its weights hold."""


class ErasureLoaderMixin:
    """Methods that load and switch erasures; `erasable(pipe)` adds them to a stock pipeline."""

    components: dict[str, Any]

    def load_erasure_adapter(
        self,
        pretrained_model_name_or_path_or_adapter: Source,
        *,
        adapter_name: str | None = None,
        allow_base_mismatch: bool = False,
        locked: bool = False,
        lock_token: str | None = None,
        **file: Unpack[FileOptions],
    ) -> str | tuple[str, ...]:
        """Load an erasure and switch it on, beside those that are on already.

        Args:
            pretrained_model_name_or_path_or_adapter: A file, a folder, a Hub id, an
                `ErasureAdapter`, or an `erasures.lock`: all it pins or nothing.
            adapter_name: How to call it; letters, digits, "_" and "-", at most 64. Default:
                "erasure_0", ...
            allow_base_mismatch: Solve the spec again on this pipeline's weights if they are not
                those it was made for.
            locked: Switching it off, deleting it, replacing its component and, in a
                call, a LoRA `scale` or another `clip_skip` than it is made for raise
                ErasureLockedError until `unlock_erasure(lock_token)`. This guards against mistakes
                and request handlers, not against whoever holds the process.
            lock_token: The operator's secret, at least 8 characters; only a salted hash is kept.
                Without one, the lock cannot be opened: load the pipeline anew.
            file: `weight_name`, `subfolder`, `revision`, `token`, `cache_dir` and
                `local_files_only`, as in diffusers.

        Returns:
            The adapter's name; of a lock, all names.

        Raises:
            AdapterFormatError, AdapterIntegrityError: The file is not a whole erasure adapter or
                not the pinned one, or it does not erase.
            HubError: The Hub did not give the file; the subclasses say why.
            BaseModelMismatchError: It was made for other weights.
            AdapterStateError: The name, or the same erasure, is loaded already.
        """
        if adapter_name is not None:
            check_adapter_name(adapter_name)
        lock = make_lock(lock_token) if locked or lock_token is not None else None
        source = pretrained_model_name_or_path_or_adapter
        inspect.signature(find).bind(source, **file)  # a keyword that is none raises TypeError
        if not isinstance(source, ErasureAdapter) and os.fspath(source).endswith(SUFFIX):
            adapters = _read_pinned(Path(source), file)
            return _load(self, adapters, lock, allow_base_mismatch)
        if not isinstance(source, ErasureAdapter):
            source = ErasureAdapter.from_pretrained(source, **file)
        return _load(self, {adapter_name: source}, lock, allow_base_mismatch)[0]

    def load_erasure_adapters(
        self, sources: Mapping[str, Source], *, allow_base_mismatch: bool = False
    ) -> tuple[str, ...]:
        """Load several erasures: all or none, and solved together once.

        Args:
            sources: Name -> file, folder, Hub id or adapter.
            allow_base_mismatch: As in `load_erasure_adapter`.

        Returns:
            The names.
        """
        for name in sources:
            check_adapter_name(name)
        made = {
            n: s if isinstance(s, ErasureAdapter) else ErasureAdapter.from_pretrained(s)
            for n, s in sources.items()
        }
        return _load(self, made, None, allow_base_mismatch)

    def get_erasure_adapters(self) -> dict[str, bool]:
        """Name -> whether it is on, in the order of loading."""
        return get_states(self)

    def set_erasure_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Switch exactly these on and the others off; their order does not matter."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with WEIGHTS_LOCK.writing():
            states = self.get_erasure_adapters()
            _check_names(names, states)
            refuse_locked(
                self, set(states) - set(names), "set_erasure_adapters would switch it off"
            )
            _switch(self, get_adapters(self), {n: n in names for n in states})

    def disable_erasure(self) -> None:
        """Switch all off: the weights are the base, bit for bit."""
        with WEIGHTS_LOCK.writing():
            states = self.get_erasure_adapters()
            resume = tuple(n for n, on in states.items() if on)
            refuse_locked(self, resume, "disable_erasure")
            if resume:
                _switch(self, get_adapters(self), dict.fromkeys(states, False), resume=resume)

    def enable_erasure(self) -> None:
        """Switch on again what `disable_erasure` switched off; all, if nothing was."""
        with WEIGHTS_LOCK.writing():
            states = self.get_erasure_adapters()
            if any(states.values()):
                return
            resume: set[str] = set()
            for _, registry in modules_with_registry(self).values():
                resume |= set(registry.resume)
            _switch(self, get_adapters(self), {n: n in resume or not resume for n in states})

    @contextmanager
    def erasure_disabled(self) -> Iterator[None]:
        """Inside, nothing is erased; afterwards the same adapters are on as before.

        Calls of other threads wait.
        """
        with WEIGHTS_LOCK.writing():
            states = self.get_erasure_adapters()
            self.disable_erasure()
            try:
                yield
            finally:
                self.set_erasure_adapters([n for n, on in states.items() if on])

    def delete_erasure_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these adapters; the others stay as they are."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with WEIGHTS_LOCK.writing():
            states = self.get_erasure_adapters()
            lost = _get_lost(self)
            _check_names([n for n in names if n not in lost], states)
            refuse_locked(self, names, "delete_erasure_adapters")
            left = {n: a for n, a in get_adapters(self).items() if n not in names}
            _switch(self, left, {n: on for n, on in states.items() if n not in names})
            _set_lost(self, {n: part for n, part in lost.items() if n not in names})

    def unload_erasure_adapters(self) -> None:
        """Forget all adapters: the weights are the base, bit for bit, the modules hold no trace."""
        with WEIGHTS_LOCK.writing():
            refuse_locked(self, self.get_erasure_adapters(), "unload_erasure_adapters")
            found = modules_with_registry(self).items()
            commit([stage(root, name, None, registry=None) for name, (root, _) in found])
            _set_lost(self, {})

    def refit_erasure(self) -> None:
        """Solve the active specs again on the live weights, after a style LoRA say.

        Raises:
            AdapterStateError: Nothing is on, or a PEFT layer does not let an edit below it be
                solved.
            ErasureVerificationError: What was solved does not hold on the live modules; the edits
                are those of before.
        """
        with WEIGHTS_LOCK.writing():
            states = self.get_erasure_adapters()
            adapters = get_adapters(self)
            active = [adapters[n] for n, on in states.items() if on]
            if not active:
                raise AdapterStateError(
                    "nothing to refit: no erasure is on; load one or enable_erasure() first"
                )
            ordered = sorted(active, key=lambda a: a.digest)
            # one is solved as it was made: prompts to measure are in its batches, and the last
            # bits depend on them
            applied = solve_jointly(self, ordered, measure=len(ordered) == 1, on_top_of_loras=True)
            before = {name: registry for name, (_, registry) in modules_with_registry(self).items()}
            _switch(self, adapters, states, applied=applied)
            found = verify(self)
            left = largest(found.residuals.values())
            if not left <= found.threshold:
                _restore_registries(self, before)
                raise ErasureVerificationError(
                    f"refit_erasure: solved again, the residual is {left:.1e}, at most "
                    f"{found.threshold:.0e} allowed; the edits are those of before. Disable, "
                    "unload or bake in what was loaded beside the erasure (fuse_lora(), "
                    "unload_lora_weights()), and try again"
                )

    def verify_erasure(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        images: bool = False,
        sample: int | None = None,
        selectivity: bool = False,
        raise_on_fail: bool = False,
    ) -> Verification:
        """Measure everything active on the live modules, through the path a call uses.

        Args:
            prompts: Prompts of your own with an erased concept in them; `.prompts` has their
                residuals, and `.prompts_left` what is left of the concept in each.
            images: Also call the pipeline with the listed prompts, and measure what its denoiser
                receives.
            sample: Measure so many edited layers, chosen anew each time, instead of encoding the
                prompts: milliseconds.
            selectivity: Also measure what is left of every concept by kind of position, over listed
                and held-out phrasings, and how far near misses and captions move (`.left` and
                `.selectivity`). Some hundred prompts are encoded with the erasure and without; the
                verdict does not depend on it.
            raise_on_fail: Raise where the erasure does not hold.

        Raises:
            ErasureVerificationError: With `raise_on_fail`, where the erasure does not hold.
            ConceptSpecError: One of `prompts` names no erased concept.
        """
        given = [prompts] if isinstance(prompts, str) else list(prompts or ())
        # prompts are compared with what the base makes of them
        compares = given or selectivity
        access = WEIGHTS_LOCK.writing() if compares else WEIGHTS_LOCK.reading()
        with access:
            found = verify(
                self, prompts=given, images=images, sample=sample, selectivity=selectivity
            )
            if given:
                ordered = sort_by_left(measure_prompts(self, given))
                shares = {one.text: one.left for one in ordered if one.left is not None}
                found = replace(found, prompts_left=shares)
        if raise_on_fail and not found.ok:
            raise ErasureVerificationError(
                f"residual {found.residual:.1e}, at most {found.threshold:.0e} allowed; "
                f"{'; '.join(found.uncovered)}. "
                "Run refit_erasure() if a LoRA changed the text encoder, or load the adapter again"
            )
        return found

    def unlock_erasure(self, token: str) -> list[str]:
        """Open every lock that this token opens.

        Returns:
            The names of the adapters unlocked.

        Raises:
            ErasureLockedError: It opens none.
        """
        with WEIGHTS_LOCK.writing():
            opened = [name for name, lock in get_locks(self).items() if opens(token, lock)]
            if not opened:
                refuse_locked(self, get_locks(self), "this token opens no lock")
            for _, registry in modules_with_registry(self).values():
                registry.locks = {n: lock for n, lock in registry.locks.items() if n not in opened}
            return opened

    def require_erasure(self, adapter_names: str | Sequence[str] | bool = True) -> None:
        """From now on, refuse calls while one of these is off.

        Args:
            adapter_names: True for all that are loaded (at least one), False for none.
        """
        names = (adapter_names,) if isinstance(adapter_names, str) else adapter_names
        for name in () if isinstance(names, bool) else names:
            check_adapter_name(name)
        self._erasure_required: bool | tuple[str, ...] = (
            names if isinstance(names, bool) else tuple(names)
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """As in diffusers.

        With an erasure on, the erased weights are written, and `erasure.json` says so.

        Raises:
            AdapterStateError: An edit lives in a hook (quantised weights), or an erased component
                has LoRA layers: no file would hold the edit. Nothing was written.
        """
        with WEIGHTS_LOCK.reading():
            found = modules_with_registry(self)
            for name, (_, registry) in found.items():
                if any(hook.factors for hook in registry.hooks.values()):
                    raise AdapterStateError(
                        f"{name} is edited by hooks, which are not saved; disable_erasure() first"
                    )
            for name, (root, registry) in found.items():
                if registry.applied:
                    _refuse_lora_layers(name, root)
            super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
            applied = [registry.applied for _, registry in found.values() if registry.applied]
            _write_sidecar(Path(save_directory), applied)

    def __setattr__(self, name: str, value: Any) -> None:
        lost = check_replacement(self, name, value)
        super().__setattr__(name, value)
        if lost:
            _set_lost(self, _get_lost(self) | lost)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stock = super().__call__  # type: ignore[misc]
        given = inspect.signature(stock).bind_partial(*args, **kwargs).arguments
        _check_encoding(self, given)
        with WEIGHTS_LOCK.reading():
            check_call(self, given)
            vars(self)["_erasure_given_embeddings"] = gives_embeddings(given)
            return stock(*args, **kwargs)


def _check_encoding(pipe: Any, given: Mapping[str, Any]) -> None:
    """Refuse a call whose arguments make the encoders receive what no edit answers to.

    Raises:
        ErasureInactiveError: The concept would come back in part.
    """
    names = [name for name, on in get_states(pipe).items() if on]
    arguments = list_arguments(pipe, given) if names else {}
    if not arguments:
        return
    with WEIGHTS_LOCK.writing():  # prompts are recorded on the encoders that others run
        adapters = get_adapters(pipe)
        why = find_uncovered(pipe, [adapters[name] for name in names], arguments)
    if why is not None:
        raise ErasureInactiveError(
            f"{why}; nothing was drawn. Leave {' and '.join(arguments)} at its default, or "
            "disable_erasure() to go on without"
        )


# --- switching


def _read_pinned(lock: Path, options: FileOptions) -> dict[str, ErasureAdapter]:
    """The adapters of an `erasures.lock`, by name; which file is the lock's word."""
    found = find_pinned(
        lock,
        token=options.get("token"),
        cache_dir=options.get("cache_dir"),
        local_files_only=options.get("local_files_only", False),
    )
    return {name: ErasureAdapter.from_origin(origin) for name, origin in found.items()}


def _load(
    pipe: Any,
    adapters: Mapping[Any, ErasureAdapter],
    lock: Lock | None,
    allow_base_mismatch: bool,
) -> tuple[str, ...]:
    """Load under these names (None for the next free one) beside what is loaded, all or nothing."""
    with WEIGHTS_LOCK.writing():
        loaded = get_adapters(pipe)
        new = {_choose_name(name, loaded): adapter for name, adapter in adapters.items()}
        locks = dict.fromkeys(new, lock) if lock else {}
        _add(pipe, new, allow_base_mismatch=allow_base_mismatch, locks=locks)
        return tuple(new)


def _get_lost(pipe: Any) -> dict[str, str]:
    """Adapter -> component, of what went with a component that was replaced."""
    return getattr(pipe, "_erasure_lost", {})


def _set_lost(pipe: Any, lost: dict[str, str]) -> None:
    """Past `__setattr__`: it is no component, and it follows what is written already."""
    vars(pipe)["_erasure_lost"] = lost


def _choose_name(name: str | None, loaded: dict[str, ErasureAdapter]) -> str:
    if name is None:
        return next(f"erasure_{i}" for i in range(len(loaded) + 1) if f"erasure_{i}" not in loaded)
    if check_adapter_name(name) in loaded:
        raise AdapterStateError(
            f"adapter_name {name!r} is in use; delete_erasure_adapters({name!r}) first or choose "
            "another"
        )
    return name


def _check_names(names: Sequence[str], states: dict[str, bool]) -> None:
    if unknown := [n for n in names if n not in states]:
        raise AdapterStateError(
            f"no erasure named {unknown[0]!r} is loaded (loaded: {', '.join(states) or 'none'})"
        )


def _add(
    pipe: Any,
    new: Mapping[str, ErasureAdapter],
    *,
    allow_base_mismatch: bool,
    locks: Mapping[str, Lock],
) -> None:
    """Check the new adapters against the pipeline, and switch them on beside those that are on."""
    loaded = get_adapters(pipe)
    for name, adapter in new.items():
        _refuse_twin(adapter, loaded)
        fitted = fit_adapter(pipe, adapter, allow_base_mismatch=allow_base_mismatch)
        _refuse_twin(fitted, loaded)  # what was left out of both may have told them apart
        loaded[name] = fitted
    _switch(pipe, loaded, {**pipe.get_erasure_adapters(), **dict.fromkeys(new, True)}, locks=locks)
    _set_lost(pipe, {n: part for n, part in _get_lost(pipe).items() if n not in new})


def _refuse_twin(adapter: ErasureAdapter, loaded: Mapping[str, ErasureAdapter]) -> None:
    if twin := next((n for n, a in loaded.items() if a.digest == adapter.digest), None):
        raise AdapterStateError(
            f"this erasure is loaded already, as {twin!r}; switch it with set_erasure_adapters"
        )


def _switch(
    pipe: Any,
    adapters: dict[str, ErasureAdapter],
    on: dict[str, bool],
    *,
    resume: tuple[str, ...] = (),
    applied: ErasureAdapter | None = None,
    locks: Mapping[str, Lock] | None = None,
) -> None:
    """Make `on` the state of the pipeline: everything is staged first, then written."""
    asked = [adapters[n] for n, is_on in on.items() if is_on]
    refuse_other_readings(pipe, asked)
    edit = applied or combine(pipe, asked)
    parts = dict.fromkeys(modules_with_registry(pipe))
    for adapter in adapters.values():
        parts |= dict.fromkeys(adapter.components)
    parts |= dict.fromkeys(edit.components if edit else ())
    locks = {**get_locks(pipe), **(locks or {})}
    commit([_stage_component(pipe, part, adapters, on, edit, resume, locks) for part in parts])


def _stage_component(
    pipe: Any,
    part: str,
    adapters: Mapping[str, ErasureAdapter],
    on: Mapping[str, bool],
    edit: ErasureAdapter | None,
    resume: tuple[str, ...],
    locks: Mapping[str, Lock],
) -> StagedEdit:
    """What changes in one component."""
    root = get_component(pipe, part)
    here = edit if edit and part in edit.components else None
    mine = {n: a for n, a in adapters.items() if part in a.components}
    if here and not mine:  # solved again, with an encoder that came later
        mine = {n: a for n, a in adapters.items() if on[n]}
    registry = Registry(
        mine,
        {n: on[n] for n in mine},
        resume,
        here,
        {n: lock for n, lock in locks.items() if n in mine},
    )
    before = registry_of(root)
    hooks_before = len(before.hooks) if before else 0
    staged = stage(root, part, here, registry=registry)
    if is_compiled(getattr(pipe, part)) and len(registry.hooks) > hooks_before:
        raise AdapterStateError(
            f"{part} is compiled, and a hook added now would be ignored; load the erasure before "
            "compiling"
        )
    return staged


def _restore_registries(pipe: Any, before: Mapping[str, Registry]) -> None:
    """Make `before` the registries, by component, and their edits the edits."""
    staged = []
    for name, (root, _) in modules_with_registry(pipe).items():
        registry = before.get(name)
        applied = registry.applied if registry else None
        staged.append(stage(root, name, applied, registry=registry))
    commit(staged)


def _refuse_lora_layers(name: str, root: nn.Module) -> None:
    """Raise where a reload would lack a weight and our edit.

    Below LoRA layers the stock writers name a weight `base_layer`, or leave it out.
    """
    if layer := next((n for n, m in root.named_modules() if isinstance(m, BaseTunerLayer)), None):
        raise AdapterStateError(
            f"{name} is erased and has LoRA layers ({layer}), and what is saved like this is "
            "loaded without the erasure; unload_lora_weights() first (after fuse_lora(), if the "
            "style shall be saved too). Nothing was written"
        )


def _write_sidecar(folder: Path, applied: Sequence[ErasureAdapter]) -> None:
    """Record which erasures the saved weights hold; remove an older record where none."""
    if not applied:
        (folder / SIDECAR).unlink(missing_ok=True)
        return
    edits = {a.digest: {"components": [*a.components], "spec": a.spec.to_dict()} for a in applied}
    write_atomically(folder / SIDECAR, json.dumps(edits, indent=2, sort_keys=True).encode())


# --- stock pipelines


@functools.cache
def _erasable_class(stock: Any) -> type:
    """`stock` with the mixin in front, under its own name, so that diffusers saves and finds it."""

    @functools.wraps(stock.__call__)  # diffusers reads the call's signature
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ErasureLoaderMixin.__call__(self, *args, **kwargs)

    body = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__reduce_ex__": _reduce,
        "__call__": call,
    }
    return type(stock.__name__, (ErasureLoaderMixin, stock), body)


def _rebuild(stock: type, state: dict[str, Any]) -> Any:
    pipe: Any = object.__new__(_erasable_class(stock))
    pipe.__dict__.update(state)
    return pipe


def _reduce(self: Any, protocol: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _rebuild, (type(self).__mro__[2], self.__dict__)


def erasable(pipe: P, *, require_erasure: bool | str | Sequence[str] = False) -> P:
    """Give a pipeline the methods of `ErasureLoaderMixin`.

    Args:
        pipe: A pipeline of a known family.
        require_erasure: Refuse calls while an erasure of these names is off; True: while any is,
            or none is loaded.

    Returns:
        The same object, its class name kept.

    Raises:
        UnknownFamilyError: The pipeline has no record.
    """
    family_of(pipe)
    if not isinstance(pipe, ErasureLoaderMixin):
        pipe.__class__ = _erasable_class(type(pipe))  # type: ignore[arg-type, assignment]
    if require_erasure is not False:
        pipe.require_erasure(require_erasure)  # type: ignore[attr-defined]
    return pipe
