"""What a denoiser receives of each text encoder in real calls of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..erasure.states import apply_final_norm, hidden_of
from ..errors import AdapterStateError, UnknownFamilyError
from ..families.encode_prompt import tensors_in
from ..families.encoders import blocks_of
from ..families.pipelines import family_of, get_component
from ..families.types import Reading
from ..prompts.alignment import Rows
from ..prompts.tokens import TextPath

CALL_STEPS = 1
ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a state may be from what the denoiser receives of it, as a share: a cast in between."""


class _SeenError(BaseException):
    """Ends a call once its denoiser has been given what it shall read."""


class _Call:
    """What was seen in one call."""

    def __init__(self) -> None:
        self.ids: dict[str, Tensor] = {}
        """Encoder -> the tokens `(length,)` of its first row."""
        self.states: dict[str, list[Tensor]] = {}
        """Encoder -> per reading, `(length, d)`, or `(1, d)` if pooled."""
        self.received: list[Tensor] = []
        """Every tensor that the denoiser was given in its first step."""


@torch.no_grad()
def states_in_calls(
    paths: Sequence[TextPath], rows: Sequence[Rows], texts: Sequence[str], **call: Any
) -> list[list[Tensor]]:
    """Per text encoder and reading, what its denoiser received of it at the aligned positions.

    The pipeline is called once per prompt, up to where its denoiser begins. What is read is
    `(k, d)`, or `(n, d)` if pooled, as by `erasure.residuals.target_states`.

    Args:
        paths: The text encoders of one pipeline.
        rows: Per encoder, the aligned positions of `texts`.
        texts: One prompt per row.
        call: Further arguments of the calls.

    Raises:
        UnknownFamilyError: The denoiser does not receive the states as the encoder gives them.
        AdapterStateError: The pipeline does not run like this.
    """
    found: list[list[list[Tensor]]] = []
    for path in paths:
        found.append([[] for _ in path.use.readings])
    for i, text in enumerate(texts):
        seen = _run_call(paths, text, call)
        for path, some, into in zip(paths, rows, found, strict=True):
            at = some.target_at[some.row == i] + _shift(path, some.target.ids[i], seen)
            for reading, states, parts in zip(
                path.use.readings, seen.states[path.use.encoder], into, strict=True
            ):
                part = states if reading.pooled else states[at.to(states.device)]
                _refuse_unreceived(path, reading, part, seen.received)
                parts.append(reading.received(part))
    joined = []
    for into in found:
        joined.append([torch.cat(parts) for parts in into])
    return joined


def _run_call(paths: Sequence[TextPath], text: str, call: Mapping[str, Any]) -> _Call:
    pipe = paths[0].pipe
    seen = _Call()
    try:
        # compiled code sees no new hook
        with _recording(paths, seen), torch.compiler.set_stance("force_eager"):
            pipe(
                prompt=text,
                num_inference_steps=CALL_STEPS,
                guidance_scale=1.0,
                output_type="latent",
                **call,
            )
    except _SeenError:
        pipe.maybe_free_model_hooks()  # as a call does in the end: parts are offloaded again
    except (AttributeError, TypeError, ValueError) as error:
        given = "".join(f" with {name}={value!r}" for name, value in call.items())
        raise AdapterStateError(
            f"{type(pipe).__name__} cannot be called{given} here ({error}); verify without images"
        ) from error
    missed = [path.use.encoder for path in paths if path.use.encoder not in seen.states]
    if missed or not seen.received:
        raise AdapterStateError(
            f"a call of {type(pipe).__name__} did not run {', '.join(missed) or 'its denoiser'}; "
            "verify without images"
        )
    return seen


@contextmanager
def _recording(paths: Sequence[TextPath], seen: _Call) -> Iterator[None]:
    """Inside, the first run of every encoder, and of the denoiser, is noted."""
    handles = []
    try:
        for path in paths:
            inner: dict[Reading, Tensor] = {}
            encoder = path.encoder
            blocks = blocks_of(encoder)
            for reading in path.use.readings:
                if reading.inner:
                    block = blocks[reading.block(len(blocks))]
                    handles.append(block.register_forward_hook(_keep_block(reading, inner)))
            keep = _keep_encoder(path, inner, seen)
            handles.append(encoder.register_forward_hook(keep, with_kwargs=True))
        family = family_of(paths[0].pipe)
        denoiser = get_component(paths[0].pipe, family.denoiser)
        keep = _keep_denoiser(seen)
        handles.append(denoiser.register_forward_pre_hook(keep, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_block(reading: Reading, inner: dict[Reading, Tensor]) -> Callable[..., None]:
    def keep(_: nn.Module, __: object, output: Any) -> None:
        inner.setdefault(reading, hidden_of(output))

    return keep


def _keep_encoder(
    path: TextPath, inner: Mapping[Reading, Tensor], seen: _Call
) -> Callable[..., None]:
    name = path.use.encoder

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if name in seen.states:
            return
        states = []
        for reading in path.use.readings:
            found = inner[reading] if reading in inner else reading.of(output)
            found = apply_final_norm(path.encoder, found) if reading.final_norm else found
            states.append(found[0])
        seen.states[name] = states
        seen.ids[name] = kwargs.get("input_ids", args[0] if args else None)[0].cpu()

    return keep


def _keep_denoiser(seen: _Call) -> Callable[..., None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = tensors_in([*args, *kwargs.values()])
        seen.received += [x for x in given if x.is_floating_point() and x.ndim > 1]
        raise _SeenError

    return keep


def _shift(path: TextPath, ids: Tensor, seen: _Call) -> int:
    """How many positions later the tokens `ids` of a row are in the call: padding on the left.

    Raises:
        UnknownFamilyError: The call has other tokens.
    """
    given = seen.ids[path.use.encoder]
    length = min(len(given), len(ids))
    if torch.equal(given[:length], ids[:length]):
        return 0
    if torch.equal(given[-length:], ids[-length:]):
        return len(given) - len(ids)
    raise UnknownFamilyError(
        f"in a call of {type(path.pipe).__name__} {path.use.encoder} receives other tokens than "
        "encode_prompt gives it for one of the listed prompts; verify without images"
    )


def _refuse_unreceived(
    path: TextPath, reading: Reading, states: Tensor, received: Sequence[Tensor]
) -> None:
    """What was read of the encoder must be in what the denoiser got, whatever stands beside it.

    Raises:
        UnknownFamilyError: It is not: something else stands there, or it was changed on the way.
    """
    for vector in states.reshape(-1, states.shape[-1]):
        if not any(_holds(x, vector) for x in received):
            pipeline = type(path.pipe).__name__
            raise UnknownFamilyError(
                f"images=True: the denoiser of {pipeline} does not receive {reading} of "
                f"{path.use.encoder} as the encoder gives it, so what reaches it cannot be "
                "compared with the goals; verify without images, and look at pictures of the "
                "listed prompts"
            )


def _holds(received: Tensor, vector: Tensor) -> bool:
    """Whether `received (..., D)` has `vector (d,)` somewhere along its last axis."""
    width = len(vector)
    if received.shape[-1] < width:
        return False
    vector = vector.to(received.device).float()
    flat = received.reshape(-1, received.shape[-1]).float()
    allowed = ROUNDING.get(received.dtype, ROUNDING[torch.float32])
    largest = int(vector.abs().argmax())
    for start in range(received.shape[-1] - width + 1):  # others may stand beside it
        column = flat[:, start + largest]
        close = (column - vector[largest]).abs() <= allowed * vector[largest].abs()
        candidates = flat[close, start : start + width]
        if ((candidates - vector).norm(dim=-1) <= allowed * vector.norm()).any():
            return True
    return False
