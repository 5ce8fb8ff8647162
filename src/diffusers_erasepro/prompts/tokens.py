"""Prompts as token ids, each text encoder called as its pipeline calls it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..config.spec import Concept
from ..errors import AdapterStateError
from ..families.encode_prompt import RecordedInputs, record_encoder_inputs, tokenize
from ..families.encoders import encoder_family_of
from ..families.pipelines import family_of, get_component
from ..families.types import Use
from .learned_tokens import expand, expansions_of, learned_in

BATCH_TOKENS = 4096
"""Of one forward pass; the memory of long rows and wide encoders stays bounded."""


@dataclass(frozen=True)
class Tokens:
    """Prompts as a text encoder receives them."""

    ids: Tensor
    """`(n, length)`"""
    mask: Tensor | None = None
    """`(n, length)` attention mask, if the pipeline gives one: then it reads no other position.
    Of trees `(n, 1, length, length)`, what is added to the attention scores."""
    positions: Tensor | None = None
    """`(n, length)` of trees, as in their prompts."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: slice | Tensor) -> Tokens:
        return Tokens(self.ids[at], None if self.mask is None else self.mask[at])

    def cut(self, length: int) -> Tokens:
        """Their first `length` positions."""
        return Tokens(self.ids[:, :length], None if self.mask is None else self.mask[:, :length])

    def trimmed(self) -> Tokens:
        """Without the last positions, where the mask hides them in every row."""
        return self.cut(int(self.read.any(0).nonzero().max()) + 1) if self.read.any() else self

    def unique(self) -> tuple[Tokens, Tensor]:
        """Each row once, and where `(n,)` each row went."""
        ids, to = torch.unique(self.ids, dim=0, return_inverse=True)
        if self.mask is None:
            return Tokens(ids), to
        return Tokens(
            ids, torch.zeros(ids.shape, dtype=self.mask.dtype).index_copy(0, to, self.mask)
        ), to

    def split(self) -> Iterator[Tokens]:
        """Batches of about `BATCH_TOKENS` tokens."""
        size = max(1, BATCH_TOKENS // self.ids.shape[1])
        return (self[i : i + size] for i in range(0, len(self), size))

    @property
    def read(self) -> Tensor:
        """`(n, length)`, true where the denoiser reads: everywhere, if there is no mask."""
        return (
            torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask.bool()
        )


def join_tokens(parts: Sequence[Tokens]) -> Tokens:
    """One after the other; shorter rows get positions that the mask hides."""
    length = max(p.ids.shape[1] for p in parts)

    def even(rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([nn.functional.pad(x, (0, length - x.shape[1])) for x in rows])

    if all(p.mask is None for p in parts) and len({p.ids.shape[1] for p in parts}) == 1:
        return Tokens(even([p.ids for p in parts]))
    masks = [torch.ones_like(p.ids) if p.mask is None else p.mask for p in parts]
    return Tokens(even([p.ids for p in parts]), even(masks))


_EMPTY: WeakKeyDictionary[Any, dict[tuple[type, str], Tokens]] = WeakKeyDictionary()
"""Per tokenizer, pipeline class and encoder."""

_READS_PADDING: WeakKeyDictionary[nn.Module, dict[type, bool]] = WeakKeyDictionary()
"""Per encoder and pipeline class."""

Records = dict[tuple[Any, ...], RecordedInputs]
_RECORDS: ContextVar[Records | None] = ContextVar("_RECORDS", default=None)
"""Per pipeline, encoder and texts; None outside of `recording_once`."""


@contextmanager
def recording_once() -> Iterator[None]:
    """Inside, what an encoder receives for the same texts is recorded once.

    Recording calls `encode_prompt`, which tokenizes for every encoder and runs those before the one
    that is asked for: of T5 in Flux, CLIP. Nothing may change inside that a prompt's tokens depend
    on, and the pipelines must outlive it.
    """
    if _RECORDS.get() is not None:
        yield
        return
    before = _RECORDS.set({})
    try:
        yield
    finally:
        _RECORDS.reset(before)


@dataclass(frozen=True)
class TextPath:
    """One text encoder, called as its pipeline calls it."""

    pipe: Any
    use: Use

    @property
    def encoder(self) -> nn.Module:
        """The live module."""
        return get_component(self.pipe, self.use.encoder)

    @property
    def pooled(self) -> bool:
        """Whether the pipeline reads one vector per prompt of it."""
        return any(reading.pooled for reading in self.use.readings)

    @property
    def vocabulary(self) -> int | None:
        """As `vocabulary_of`."""
        return vocabulary_of(self.pipe, self.use.encoder)

    @property
    def reads_padding(self) -> bool:
        """Whether padding changes what is read: attention sees it, and looks ahead."""
        if encoder_family_of(self.encoder).causal:
            return False
        known = _READS_PADDING.setdefault(self.encoder, {})
        if type(self.pipe) not in known:
            known[type(self.pipe)] = self.tokens([""]).mask is None
        return known[type(self.pipe)]

    def record(
        self,
        texts: Sequence[str],
        *,
        guidance: bool = False,
        call: Mapping[str, Any] | None = None,
    ) -> RecordedInputs:
        """What the encoder receives for `texts`; the end of a long one is cut, without a word."""
        records = _RECORDS.get()
        if records is None or guidance or call:
            with quiet_cuts():
                return self._record(texts, guidance, call)
        key = (id(self.pipe), self.use.encoder, *texts)
        if key not in records:
            with quiet_cuts():
                records[key] = self._record(texts, guidance, call)
        return records[key]

    def _record(
        self, texts: Sequence[str], guidance: bool, call: Mapping[str, Any] | None
    ) -> RecordedInputs:
        return record_encoder_inputs(
            self.pipe,
            texts,
            self.use,
            guidance=guidance,
            call=call,
            returned=encoder_family_of(self.encoder).rows_only,
        )

    def tokens(self, texts: Sequence[str], call: Mapping[str, Any] | None = None) -> Tokens:
        """Prompts as the encoder receives them, in a call with these arguments."""
        return tokens_of(self.record(texts, call=call))

    def empty(self) -> Tokens:
        """The unconditional prompt, as guidance encodes it where `encode_prompt` does so.

        That runs the encoder, so it is done once.
        """
        known = _EMPTY.setdefault(getattr(self.pipe, self.use.tokenizer), {})
        key = (type(self.pipe), self.use.encoder)
        if key not in known:
            try:
                found = self.record([""], guidance=True)
            except AdapterStateError:  # it may insist on a negative prompt
                found = self.record([""])
            known[key] = tokens_of(found)[-1:]
        return known[key]


def text_paths(pipe: Any, clip_skip: int = 0) -> list[TextPath]:
    """The text encoders of a pipeline that are there.

    Args:
        pipe: The pipeline.
        clip_skip: As its call takes it: what it reads of CLIP lies so many blocks earlier.

    Raises:
        UnknownFamilyError: The pipeline has no record.
        AdapterStateError: None of its encoders is there.
    """
    family = family_of(pipe)
    there = [use for use in family.encoders if getattr(pipe, use.encoder, None) is not None]
    denoiser = partial(get_component, pipe, family.denoiser)
    found = [TextPath(pipe, use.on(denoiser).skipping(clip_skip)) for use in there]
    if not found:
        get_component(pipe, family.encoders[0].encoder)  # says which is missing
    return found


def vocabulary_of(pipe: Any, component: str) -> int | None:
    """How many tokens the tokenizer of a text encoder has of its own.

    Those that were added to it, by textual inversion say, have their rows of the token embedding
    after these. None where the component has no tokenizer.
    """
    for use in family_of(pipe).encoders:
        tokenizer = getattr(pipe, use.tokenizer, None)
        if use.encoder == component and tokenizer is not None:
            return getattr(tokenizer, "tokenizer", tokenizer).vocab_size
    return None


def inversions_of(pipe: Any, concepts: Sequence[Concept]) -> dict[str, tuple[str, ...]]:
    """Text encoder -> the learned tokens that concepts name, or their exact phrases.

    What an anchor's gave is in the goals, and is not needed again.
    """
    texts: list[str] = []
    for concept in concepts:
        texts += [*concept.words, *concept.exact]
    found = {}
    for path in text_paths(pipe):
        if tokens := learned_in(tokenizer_of(path), texts):
            found[path.use.encoder] = tokens
    return found


@contextmanager
def quiet_cuts() -> Iterator[None]:
    """Inside, nothing is printed about prompts that are cut at a tokenizer's limit.

    Shipped phrases and captions are as long as people write them for models with long limits; a
    line for each of them would bury what a user has to see.
    """
    handlers: list[logging.Handler] = []
    for library in ("diffusers", "transformers"):
        handlers += logging.getLogger(library).handlers
    for handler in handlers:
        handler.addFilter(_says_no_cut)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"(?s).*; this world reads the first ")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_says_no_cut)


def _says_no_cut(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not ("truncated because" in message or "sequence length is longer than" in message)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Ids `(n, length)` of a tokenizer that stands alone, padded to its limit."""
    return record_texts(tokenizer, texts).inputs["input_ids"]


def tokenizer_of(source: Any) -> Any:
    """The tokenizer of a text path, below a processor; or `source`, if it is one."""
    found = getattr(source.pipe, source.use.tokenizer) if isinstance(source, TextPath) else source
    return getattr(found, "tokenizer", found)


def record_texts(source: Any, texts: Sequence[str]) -> RecordedInputs:
    if isinstance(source, TextPath):
        return source.record(texts)
    learned = expansions_of(source)
    with quiet_cuts():
        return tokenize(source, [expand(text, learned) for text in texts])


def tokens_of(found: RecordedInputs) -> Tokens:
    return Tokens(found.inputs["input_ids"], found.inputs.get("attention_mask"))
