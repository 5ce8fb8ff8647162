"""Refuse what a locked or required erasure forbids: to switch it off, to generate without it."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ..adapters.adapter import ErasureAdapter
from ..errors import (
    AdapterStateError,
    ConceptSpecError,
    ErasureInactiveError,
    ErasureLockedError,
)
from ..families.pipelines import family_of
from ..modules.linear import unwrapped
from ..patching.weights import Registry, modules_with_registry, registry_of

Lock = tuple[bytes, bytes]
"""Salt and hash of a token."""

SCALES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
"""Call arguments whose "scale" multiplies LoRA weights (diffusers 0.42)."""
SHORTEST_TOKEN = 8
OWN_ENCODER = (
    "give this pipeline one of its own (copy.deepcopy, unload_erasure_adapters()), and load an "
    "erasure made on it"
)


def make_lock(token: str | None) -> Lock:
    """The lock that a token opens; without a token, one that nothing opens.

    Raises:
        ConceptSpecError: The token is not a string, or too short.
    """
    if token is not None and (not isinstance(token, str) or len(token) < SHORTEST_TOKEN):
        raise ConceptSpecError(
            f"lock_token must be a string of at least {SHORTEST_TOKEN} characters, got "
            + (f"{len(token)}" if isinstance(token, str) else type(token).__name__)
            + "; take a longer one, such as secrets.token_urlsafe() makes"
        )
    salt = secrets.token_bytes(16)
    return salt, _hash(salt, token if token is not None else secrets.token_urlsafe())


def opens(token: str, lock: Lock) -> bool:
    """Whether this token opens the lock."""
    salt, known = lock
    return hmac.compare_digest(_hash(salt, token), known)


def _hash(salt: bytes, token: str) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", token.encode(), salt, 100_000)


def get_locks(pipe: Any) -> dict[str, Lock]:
    """Name -> lock, of the adapters that are locked."""
    locks: dict[str, Lock] = {}
    for _, registry in modules_with_registry(pipe).values():
        locks |= registry.locks
    return locks


def get_states(pipe: Any) -> dict[str, bool]:
    """Name -> whether the adapter is on, in the order of loading."""
    states: dict[str, bool] = {}
    for _, registry in modules_with_registry(pipe).values():
        states |= registry.on
    return states


def get_adapters(pipe: Any) -> dict[str, ErasureAdapter]:
    """Name -> adapter, in the order of loading."""
    adapters: dict[str, ErasureAdapter] = {}
    for _, registry in modules_with_registry(pipe).values():
        adapters |= registry.adapters
    return adapters


def refuse_locked(pipe: Any, names: Iterable[str], what: str) -> None:
    """Raise ErasureLockedError if one of `names` is locked."""
    for name in sorted(set(names) & set(get_locks(pipe))):
        raise ErasureLockedError(f"{what}: adapter {name!r} is locked; unlock_erasure(token) first")


def check_replacement(pipe: Any, name: str, value: Any) -> dict[str, str]:
    """What a pipeline loses where `value` replaces its component `name`: adapter -> component.

    A copy of the component with its erasures on loses none.

    Raises:
        ErasureLockedError: A locked erasure lives in the component.
    """
    found = modules_with_registry(pipe)
    if name not in found:
        return {}
    module, registry = found[name]
    new = unwrapped(value)
    if new is module:
        return {}
    refuse_locked(pipe, registry.adapters, f"{name} cannot be replaced")
    carried = registry_of(new) or Registry()
    return {n: name for n, on in registry.on.items() if on and not carried.on.get(n)}


def check_call(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a call that would not be under the erasures asked for.

    Raises:
        ConceptSpecError: A LoRA scale that is not finite; it would stay in the pipeline.
        ErasureLockedError: A LoRA scale in a call, or a `clip_skip` that a locked erasure is not
            made for.
        ErasureInactiveError: A required erasure is off, or one that was on went with its component.
    """
    for name in SCALES:
        given = arguments.get(name)
        if isinstance(given, Mapping) and "scale" in given:
            _check_scale(pipe, given["scale"])
    for problem in find_lost_edits(pipe):
        raise ErasureInactiveError(
            f"{problem}; load it again, or unload_erasure_adapters() to go on without"
        )
    _check_required(pipe)
    _check_clip_skip(pipe, arguments)


def _check_clip_skip(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse, or warn of, a call that reads other states than the erasures in force are made for.

    With `prompt_embeds` no prompt is read.
    """
    skips = any(use.skips for use in family_of(pipe).encoders)
    if not skips or arguments.get("prompt_embeds") is not None:
        return
    asked = arguments.get("clip_skip") or 0
    states = get_states(pipe)
    other = {}
    for name, adapter in get_adapters(pipe).items():
        if states[name] and not adapter.imported and adapter.clip_skip != asked:
            other[name] = adapter.clip_skip
    if other:
        names = ", ".join(map(repr, other))
        made_for = next(iter(other.values()))
        what = (
            f"clip_skip={asked} in a call reads states that {names}, made for "
            f"clip_skip={made_for}, was not solved for"
        )
        refuse_locked(pipe, other, what)
        warnings.warn(f"{what}; make it with erase(..., clip_skip={asked})", stacklevel=5)


def _check_scale(pipe: Any, scale: Any) -> None:
    numeric = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not numeric or not math.isfinite(scale):
        raise ConceptSpecError(f"scale must be a finite number, got {scale!r}")
    if scale != 1:
        what = f"scale={scale} in a call resets LoRA weights for all later calls"
        refuse_locked(pipe, get_locks(pipe), what)


def find_other_readings(pipe: Any, adapter: ErasureAdapter) -> str | None:
    """Which encoder is read otherwise here than where the adapter was made; None if all are not.

    Two pipelines of different kinds may share an encoder, and one reads its last states, the other
    those of the block before. What is solved for one is half an erasure for the other.
    """
    for default in family_of(pipe).encoders:
        use = default.skipping(adapter.clip_skip)
        read = {f"{use.encoder}.{reading}" for reading in use.readings}
        stored = {name for name in adapter.goals if name.startswith(f"{use.encoder}.")}
        if stored and stored != read:
            return (
                f"{', '.join(sorted(stored))}; {type(pipe).__name__} reads "
                f"{', '.join(sorted(read))}"
            )
    return None


def refuse_other_readings(pipe: Any, adapters: Iterable[ErasureAdapter]) -> None:
    """Nothing may be solved or switched together with what is loaded for another kind of pipeline.

    Raises:
        AdapterStateError: An encoder of this pipeline holds such an erasure.
    """
    for adapter in adapters:
        other = find_other_readings(pipe, adapter)
        if other is not None:
            raise AdapterStateError(
                f"an erasure is loaded that was made for pipelines that read {other}. They share "
                f"the encoder: {OWN_ENCODER}"
            )


def find_lost_edits(pipe: Any) -> list[str]:
    """Active adapters that do not act here, in words.

    A part of them is gone with its component, or they were made for another kind of pipeline,
    which shares the component.
    """
    found = {name: registry for name, (_, registry) in modules_with_registry(pipe).items()}
    lost = set(getattr(pipe, "_erasure_lost", {}).items())
    for registry in found.values():
        for name in [n for n, on in registry.on.items() if on]:
            for part in registry.adapters[name].components:
                if not found.get(part, Registry()).on.get(name):
                    lost.add((name, part))
    notes = [
        f"{part} was replaced: the edit of adapter {name!r} there is gone"
        for name, part in sorted(lost)
    ]
    states = get_states(pipe)
    for name, adapter in get_adapters(pipe).items():
        other = find_other_readings(pipe, adapter) if states[name] else None
        if other is not None:
            notes.append(
                f"adapter {name!r} was made for pipelines that read {other}: {OWN_ENCODER}"
            )
    return notes


def _check_required(pipe: Any) -> None:
    required = getattr(pipe, "_erasure_required", ())
    if not required:
        return
    states = get_states(pipe)
    names = states if required is True else required
    off = [name for name in names if not states.get(name)]
    if off or not states:
        wanted = "an erasure" if required is True else ", ".join(map(repr, required))
        found = f"{', '.join(map(repr, off))} is off" if off else "none is loaded"
        raise ErasureInactiveError(
            f"this pipeline requires {wanted}, and {found}; nothing was drawn. "
            "enable_erasure() or load it"
        )
