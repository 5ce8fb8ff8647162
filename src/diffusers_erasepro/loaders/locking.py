"""What a locked or required erasure forbids: switching off by mistake, and drawing without it."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConceptSpecError, ErasureInactiveError, ErasureLockedError
from ..modules.linear import unwrapped
from ..patching.weights import Registry, modules_with_registry, registry_of

SCALES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
"""Call arguments whose "scale" multiplies LoRA weights (diffusers 0.42)."""
SHORTEST_TOKEN = 8


def new_lock(token: str | None) -> tuple[bytes, bytes]:
    """Salt and hash of a token; without a token, of one that nobody knows.

    Raises:
        ConceptSpecError: The token is not a string, or too short.
    """
    if token is not None and (not isinstance(token, str) or len(token) < SHORTEST_TOKEN):
        raise ConceptSpecError(
            f"lock_token must be a string of at least {SHORTEST_TOKEN} characters"
        )
    salt = secrets.token_bytes(16)
    return salt, _hash(salt, token if token is not None else secrets.token_urlsafe())


def opened_by(lock: tuple[bytes, bytes], token: str) -> bool:
    salt, known = lock
    return hmac.compare_digest(_hash(salt, token), known)


def _hash(salt: bytes, token: str) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", token.encode(), salt, 100_000)


def locks_of(pipe: Any) -> dict[str, tuple[bytes, bytes]]:
    """Name -> lock, of the adapters that are locked."""
    return {
        n: lock
        for _, registry in modules_with_registry(pipe).values()
        for n, lock in registry.locks.items()
    }


def refuse_locked(pipe: Any, names: Iterable[str], what: str) -> None:
    """Raise ErasureLockedError if one of `names` is locked."""
    for name in sorted(set(names) & set(locks_of(pipe))):
        raise ErasureLockedError(f"{what}: adapter {name!r} is locked; unlock_erasure(token) first")


def check_replacement(pipe: Any, name: str, value: Any) -> dict[str, str]:
    """What a pipeline loses where `value` takes the place of its component `name`: adapter -> component.

    A copy of the component with its erasures on loses none.

    Raises:
        ErasureLockedError: A locked erasure lives in the component.
    """
    old = modules_with_registry(pipe).get(name)
    if old is None or unwrapped(value) is old[0]:
        return {}
    refuse_locked(pipe, old[1].adapters, f"{name} cannot be replaced")
    carried = registry_of(unwrapped(value)) or Registry()
    return {n: name for n, on in old[1].on.items() if on and not carried.on.get(n)}


def check_call(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a drawing that would not be under the erasures asked for.

    Raises:
        ConceptSpecError: A LoRA scale that is not finite; it would stay in the pipeline.
        ErasureLockedError: A LoRA scale in a call, while an erasure is locked.
        ErasureInactiveError: A required erasure is off, or one that was on went with its component.
    """
    for scale in (
        given["scale"]
        for name in SCALES
        if isinstance(given := arguments.get(name), Mapping) and "scale" in given
    ):
        if (
            isinstance(scale, bool)
            or not isinstance(scale, (int, float))
            or not math.isfinite(scale)
        ):
            raise ConceptSpecError(f"scale must be a finite number, got {scale!r}")
        if scale != 1:
            refuse_locked(
                pipe,
                locks_of(pipe),
                f"scale={scale} in a call resets LoRA weights for all later calls",
            )
    for problem in missing(pipe):
        raise ErasureInactiveError(
            f"{problem}; load it again, or unload_erasure_adapters() to go on without"
        )
    _check_required(pipe)


def missing(pipe: Any) -> list[str]:
    """Active adapters of which a part is gone with its component, in words."""
    found = {name: registry for name, (_, registry) in modules_with_registry(pipe).items()}
    gone = {
        (name, part)
        for registry in found.values()
        for name, on in registry.on.items()
        for part in registry.adapters[name].components
        if on and not found.get(part, Registry()).on.get(name)
    }
    gone |= set(getattr(pipe, "_erasure_lost", {}).items())
    return [
        f"{part} was replaced: the edit of adapter {name!r} there is gone"
        for name, part in sorted(gone)
    ]


def _check_required(pipe: Any) -> None:
    required = getattr(pipe, "_erasure_required", ())
    if not required:
        return
    states = {
        n: on
        for _, registry in modules_with_registry(pipe).values()
        for n, on in registry.on.items()
    }
    off = [n for n in (states if required is True else required) if not states.get(n)]
    if off or not states:
        raise ErasureInactiveError(
            f"this pipeline requires {'an erasure' if required is True else ', '.join(map(repr, required))}, and "
            f"{', '.join(map(repr, off)) or 'none'} is {'off' if off else 'loaded'}; nothing was drawn. "
            "enable_erasure() or load it"
        )
