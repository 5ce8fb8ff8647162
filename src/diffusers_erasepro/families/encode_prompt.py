"""What a pipeline hands to a tokenizer and a text encoder, recorded from its own `encode_prompt`.

Chat templates, system prompts, cleaning, padding and masks are each pipeline's own business; what is recorded needs
no second description of them.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError, UnknownFamilyError


@dataclass(frozen=True)
class PromptSpan:
    """Where a prompt's characters went in its row of tokens."""

    offsets: tuple[tuple[int, int] | None, ...]
    """Per position the prompt's characters `[start, stop)`, negative in front of the prompt; None for special tokens."""
    first: int
    stop: int
    """Positions `[first, stop)` are not padding."""
    needed: int
    """Tokens of the row before truncation."""


@dataclass(frozen=True)
class RecordedInputs:
    """One encoder's inputs for some prompts."""

    inputs: dict[str, Tensor]
    """Argument of the encoder's forward -> `(n, length)`."""
    texts: dict[tuple[int, ...], list[tuple[str, Any]]]
    """Ids of a row -> the texts that were tokenized to it, each with its `tokenizers.Encoding`."""

    def locate(self, row: int, prompt: str, wrapping: str) -> PromptSpan | None:
        """Where `prompt` went in `row`; None if the pipeline rewrote its words. `wrapping` is the empty prompt's text."""
        for text, encoding in self.texts.get(tuple(self.inputs["input_ids"][row].tolist()), ()):
            if (start := _start(text, prompt, wrapping)) is not None:
                return _mark(encoding, start)
        return None

    def prompt_positions(self, row: int, prompt: str, wrapping: str) -> list[int]:
        """Positions of `row` from the first of `prompt` on, padding left out; of a rewritten prompt, all positions."""
        mark = self.locate(row, prompt, wrapping)
        if mark is None:
            return list(range(self.inputs["input_ids"].shape[1]))
        return [
            i for i in range(mark.first, mark.stop) if (at := mark.offsets[i]) is None or at[1] > 0
        ]

    def text(self, row: int) -> str:
        """What the tokenizer was given for `row`."""
        found = self.texts.get(tuple(self.inputs["input_ids"][row].tolist()))
        return found[0][0] if found else ""


def _start(text: str, prompt: str, wrapping: str) -> int | None:
    """Where `prompt` begins in `text`, case aside, if the rest of `text` is `wrapping`."""
    if len(text) != len(prompt) + len(wrapping):
        return None
    for k in range(len(wrapping) + 1):
        if (
            text.startswith(wrapping[:k])
            and text.endswith(wrapping[k:])
            and text[k : k + len(prompt)].lower() == prompt.lower()
        ):
            return k
    return None


def _mark(encoding: Any, start: int) -> PromptSpan:
    used = [i for i, on in enumerate(encoding.attention_mask) if on]
    offsets = tuple(
        None if special else (a - start, b - start)
        for (a, b), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    )
    more = sum(len(e.ids) - sum(e.special_tokens_mask) for e in encoding.overflowing)
    return PromptSpan(offsets, used[0], used[-1] + 1, len(used) + more)


def tokenize(tokenizer: Any, texts: Sequence[str]) -> RecordedInputs:
    """As `record`, of a tokenizer alone, padded to its limit."""
    length = tokenizer.model_max_length
    if not texts:
        return RecordedInputs({"input_ids": torch.zeros(0, length, dtype=torch.long)}, {})
    with _listening(tokenizer) as rows:
        found = tokenizer(
            list(texts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
    return RecordedInputs({"input_ids": found.input_ids}, rows)


class _Enough(Exception):
    """Everything asked for was seen."""


def record_inputs(
    pipe: Any, texts: Sequence[str], encoder: str, tokenizer: str, *, guidance: bool = False
) -> RecordedInputs:
    """What `encoder` receives for `texts`; it does not run.

    Args:
        pipe: Any pipeline with `encode_prompt`, called with the defaults of its `__call__`.
        texts: Prompts.
        encoder, tokenizer: Names of its components.
        guidance: Ask for the negative prompt as well, and take what was encoded last (the encoder runs).

    Raises:
        UnknownFamilyError: `encode_prompt` calls this encoder not at all, or in a way not known here.
        AdapterStateError: `encode_prompt` does not run.
    """
    module = getattr(pipe, encoder)
    accepted = inspect.signature(getattr(module, "_orig_mod", module).forward)
    calls: list[dict[str, Tensor]] = []

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard = accepted.bind(*args, **kwargs).arguments
        heard |= heard.pop("kwargs", {})
        calls.append({k: v.detach().cpu() for k, v in heard.items() if isinstance(v, Tensor)})
        if not guidance and sum(len(c["input_ids"]) for c in calls) >= len(texts):
            raise _Enough

    given = call_arguments(pipe, texts, guidance)
    handle = module.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        with _listening(getattr(pipe, tokenizer)) as rows, torch.no_grad():
            pipe.encode_prompt(**given)
    except _Enough:
        pass
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise AdapterStateError(
            f"{type(pipe).__name__}.encode_prompt does not run as the pipeline is loaded: {error}"
        ) from error
    finally:
        handle.remove()
    return RecordedInputs(_joined(calls[-1:] if guidance else calls, encoder, pipe), rows)


def call_arguments(pipe: Any, texts: Sequence[str], guidance: bool) -> dict[str, Any]:
    """Arguments of `encode_prompt`: the defaults of `__call__` where it has the name.

    Raises:
        AdapterStateError: The pipeline cannot tell where it runs.
    """
    device = pipe._execution_device
    if device.type == "meta":
        raise AdapterStateError(
            f"{type(pipe).__name__} would run on the meta device: one of its parts is offloaded and others are not, or has no "
            "weights; offload the whole pipeline, or erase before offloading"
        )
    drawn = {
        n: p.default
        for n, p in inspect.signature(pipe.__call__).parameters.items()
        if p.default is not p.empty
    }
    ours = {
        "prompt": list(texts),
        "device": device,
        "do_classifier_free_guidance": guidance,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
    }
    accepted = inspect.signature(pipe.encode_prompt).parameters
    return {name: (drawn | ours)[name] for name in accepted if name in drawn | ours}


def _joined(calls: list[dict[str, Tensor]], encoder: str, pipe: Any) -> dict[str, Tensor]:
    name = type(pipe).__name__
    if not calls:
        raise UnknownFamilyError(
            f"{name}.encode_prompt never calls {encoder}; see docs/families.md"
        )
    if odd := sorted(set(calls[0]) - {"input_ids", "attention_mask"}):
        raise UnknownFamilyError(
            f"{name}.encode_prompt hands {', '.join(odd)} to {encoder}, which is not known here"
        )
    if len({c["input_ids"].shape[1] for c in calls}) > 1:
        raise UnknownFamilyError(
            f"{name}.encode_prompt gives {encoder} rows of several lengths, which is not known here"
        )
    return {key: torch.cat([c[key] for c in calls]) for key in calls[0]}


@contextmanager
def _listening(tokenizer: Any) -> Iterator[dict[tuple[int, ...], list[tuple[str, Any]]]]:
    """Inside, every row the tokenizer makes is noted. Its class is swapped, as calls look there, not at the instance."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
    rows: dict[tuple[int, ...], list[tuple[str, Any]]] = defaultdict(list)
    stock = type(tokenizer)

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        found = stock.__call__(self, text, *args, **kwargs)
        if found.encodings is None:
            raise UnknownFamilyError(f"{stock.__name__} gives no offsets; load its fast version")
        for one, encoding in zip(
            [text] if isinstance(text, str) else text, found.encodings, strict=True
        ):
            rows[tuple(encoding.ids)].append((one, encoding))
        return found

    tokenizer.__class__ = type(stock.__name__, (stock,), {"__call__": call})
    try:
        yield rows
    finally:
        tokenizer.__class__ = stock
