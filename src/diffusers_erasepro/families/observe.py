"""The family of a pipeline, found by watching what its `encode_prompt` does with a prompt.

One call runs the text encoders, and notes what they receive and give. Further calls get those
outputs back, no encoder runs: with one state replaced by noise, to see whether it leaves
`encode_prompt`; and with another prompt, to see that nothing else of a prompt does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import AdapterStateError, UnknownFamilyError
from ..modules.linear import unwrapped
from .encode_prompt import (
    TokenizedTexts,
    are_tokens,
    encode,
    find_run,
    no_offsets,
    parameters_of,
    picture_argument_of,
    pictures,
    prompt_method_name,
    prompt_method_of,
    record_encoder_inputs,
    recording_texts,
    takes_prompts,
    tensors_in,
    unpadded,
)
from .encoders import blocks_of, encoder_family_of
from .probe import propose_encoder, write_record
from .types import LAST, POOLED, Reading, Use

WORDS = ("star", "ring", "cat", "dog", "house", "tree", "circle", "heart")
PROMPTS = tuple(f"a {word}" for word in WORDS)
"""The first is shown to a pipeline, and compared with one of the others that is as many tokens."""
LONGER = ", ".join(f"a {word} beside a house" for word in WORDS)
"""A second prompt of a batch, which a first one should not notice."""


@dataclass(frozen=True)
class EncoderCall:
    """One call of a text encoder."""

    encoder: str
    """Name of the component."""
    inputs: Mapping[str, Tensor]
    output: Any

    @property
    def ids(self) -> Tensor | None:
        """`(n, length)` token ids, if it got any."""
        return self.inputs.get("input_ids")


class Encoded(NamedTuple):
    """One call of `encode_prompt`."""

    calls: list[EncoderCall]
    returned: list[Tensor]
    """Every tensor that it returned, in order."""
    texts: dict[str, TokenizedTexts]
    """By tokenizer, what it was given."""
    blocks: dict[str, list[Tensor]]
    """By encoder, what each of its blocks gave; empty where no encoder ran."""


@dataclass(frozen=True)
class Observation:
    """What a pipeline reads of its text encoders, and what of a prompt goes past them."""

    uses: tuple[Use, ...]
    notes: tuple[str, ...] = ()
    """What no edit of these encoders reaches."""


class _NotedStates(tuple[Tensor, ...]):
    """Hidden states that note which of them are asked for, as the pipeline counts them."""

    asked: list[int]

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, int):
            self.asked.append(at)
        return super().__getitem__(at)


@torch.no_grad()
def observe(pipe: Any) -> Observation:
    """Find out what `pipe` reads of which text encoder.

    Raises:
        UnknownFamilyError: It has no `encode_prompt` or takes no text, an encoder has no record, or
            what it returns is not explained by the states of its encoders.
        AdapterStateError: `encode_prompt` does not run.
    """
    name = type(pipe).__name__
    encoders = text_encoders_of(pipe)
    if not takes_prompts(pipe):
        wanted = "encode_prompt"
        if hasattr(pipe, "blocks"):
            there = ", ".join(getattr(pipe.blocks, "sub_blocks", {})) or "none"
            wanted = f"text_encoder among its blocks ({there})"
        raise UnknownFamilyError(
            f"{name} has no {wanted}, so what it makes of a prompt cannot be observed; erase "
            "on a pipeline that has one, or register a record (docs/families.md)"
        )
    if not encoders:
        there = ", ".join(sorted(pipe.components))
        if tokenizers := tokenizers_of(pipe):
            raise UnknownFamilyError(
                f"{name} has no text encoder among {there}: the tokens of {', '.join(tokenizers)} "
                "go to the denoiser itself, where nothing is erased yet"
            )
        raise UnknownFamilyError(
            f"{name} has no text encoder among {there}: no words reach it, so there is nothing to "
            "erase"
        )
    shown, picture = _run_as_is_enough(pipe, encoders)
    if not shown.calls:
        raise UnknownFamilyError(
            f"{name}.encode_prompt calls none of its text encoders {', '.join(encoders)}, at least "
            "not as a whole (it may call modules within them), so that what it reads of them "
            "cannot be observed; register a record (docs/families.md)"
        )
    for encoder in dict.fromkeys(call.encoder for call in shown.calls):
        _refuse_unknown(name, encoder, unwrapped(encoders[encoder]))
    return _Comparison(pipe, encoders, shown, picture=picture).observation()


def _run_as_is_enough(pipe: Any, encoders: Mapping[str, nn.Module]) -> tuple[Encoded, str]:
    """One prompt alone, or if that does not run, with a picture; and the argument that got it.

    Raises:
        AdapterStateError: It does not run with one either.
    """
    try:
        return _run(pipe, PROMPTS[0], encoders), ""
    except AdapterStateError:
        argument = picture_argument_of(pipe)
        if not argument:
            raise
    return _run(pipe, PROMPTS[0], encoders, None, pictures(argument)), argument


SHARE_CHANGED = 0.9
"""Of a row, the share that has to change with noise before all of it counts."""
SKIPPED = {"clip_skip": 1}
"""Arguments of a call that reads CLIP one block earlier."""


def _placed(call: EncoderCall, positions: Sequence[int]) -> list[int]:
    """Where positions are in a call; where it says which, they count what attention sees."""
    mask = call.inputs.get("attention_mask")
    if "position_ids" not in call.inputs or mask is None:
        return list(positions)
    seen = mask[0].nonzero()[:, 0].tolist()
    return [seen[position] for position in positions]


def _refuse_unknown(pipeline: str, name: str, encoder: nn.Module) -> None:
    """Raise where an encoder has no record, with the one that looking at it proposes.

    Raises:
        UnknownFamilyError: It has none.
    """
    try:
        encoder_family_of(encoder)
    except UnknownFamilyError as error:
        try:
            proposed = write_record(propose_encoder(encoder))
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, StopIteration):
            raise error from None
        raise UnknownFamilyError(
            f"{pipeline} reads its {name}, and {error}. Looking at it proposes this record; read "
            f"it, and run it before erase:\n\n{proposed}"
        ) from error


@torch.no_grad()
def trace(
    pipe: Any, prompt: str, positions: Mapping[str, Sequence[int]], *, picture: str = ""
) -> list[tuple[Tensor, Tensor]]:
    """What `encode_prompt` returns of a prompt, and which of it comes from some positions.

    Args:
        pipe: A pipeline.
        prompt: One prompt.
        positions: By text encoder, positions of its row as `record_encoder_inputs` gives it.
        picture: The argument that gets a grey picture, as `Use.picture`.

    Returns:
        Per tensor with such elements: the tensor, and where `(same shape, true or false)` they are.
        A pooled vector comes from every position.
    """
    encoders = text_encoders_of(pipe)
    call = pictures(picture)
    shown = _run(pipe, prompt, encoders, None, call)
    noisy: dict[int, Any] = {}
    placed: dict[str, Sequence[int]] = {}
    for encoder, at in positions.items():
        index = next(i for i, call in enumerate(shown.calls) if call.encoder == encoder)
        placed[encoder] = _placed(shown.calls[index], at)
        noisy[index] = _with_noise_at(shown.calls[index].output, placed[encoder])

    def answer(index: int) -> Any:
        return noisy.get(index, shown.calls[index].output)

    try:
        changed = _run(pipe, prompt, encoders, answer, call)
    except KeyError:  # it takes the last block's states with a hook, and none ran
        with ExitStack() as stack:
            for encoder, at in placed.items():
                stack.enter_context(_noise_behind(unwrapped(encoders[encoder]), at))
            changed = _run(pipe, prompt, encoders, None, call)
    found = []
    for one, other in zip(shown.returned, changed.returned, strict=True):
        where = one != other
        if where.any():
            if where.ndim > 1:  # an element may be the same by chance
                where |= where.float().mean(-1, keepdim=True) > SHARE_CHANGED
            found.append((one, where))
    return found


def text_encoders_of(pipe: Any) -> dict[str, nn.Module]:
    """The components that may read a prompt: of a known class, or named as text encoders are."""
    found = {}
    for name, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        known = False
        with suppress(UnknownFamilyError):
            known = bool(encoder_family_of(unwrapped(module)))
        if known or name.startswith("text_encoder"):
            found[name] = module
    return found


class _Comparison:
    """Calls of one pipeline's `encode_prompt`, compared with the one that ran its encoders."""

    def __init__(
        self,
        pipe: Any,
        encoders: Mapping[str, nn.Module],
        shown: Encoded,
        call: Mapping[str, Any] | None = None,
        picture: str = "",
    ) -> None:
        self.pipe = pipe
        self.name = type(pipe).__name__
        self.encoders = encoders
        self.shown = shown
        self.call = {**pictures(picture), **(call or {})}
        self.picture = picture
        self.other = self._another_prompt()

    def again(self, prompt: str, other: Mapping[int, Any]) -> Encoded:
        """`encode_prompt` again, with the states that were given before, or `other` ones."""

        def answer(index: int) -> Any:
            return other[index] if index in other else self.shown.calls[index].output

        return _run(self.pipe, prompt, self.encoders, answer, self.call)

    def observation(self) -> Observation:
        """What is read, once it explains everything that is returned."""
        uses = []
        notes = []
        for encoder in dict.fromkeys(call.encoder for call in self.shown.calls):
            if not self._of_prompt(encoder):
                continue
            readings = self.readings(encoder)
            if any(reading.index == 0 for reading in readings):
                notes.append(
                    f"{encoder}.hidden_states[0]: the pipeline also reads the embeddings of the "
                    "tokens, before any block, which only layers='embedding' reaches"
                )
            kept = tuple(
                sorted((r for r in readings if r.index != 0), key=lambda reading: reading.pooled)
            )
            if kept:
                tokenizer = self._tokenizer(encoder)
                uses.append(Use(encoder, tokenizer, kept, picture=self.picture))
        uses += self._uses_of_returned_tokens({use.tokenizer for use in uses})
        self._refuse_unexplained(uses)
        for encoder in self.encoders:
            if all(use.encoder != encoder for use in uses):
                notes.append(
                    f"{encoder}: encode_prompt hands it no plain prompt; what else it reads (words "
                    "in quotes, a prior's prompt) is not erased"
                )
        notes += self._notes_on_padding(uses)
        notes += notes_on_rewriting(self.pipe)
        found = [self._alone(use) for use in self._skipping(uses)]
        return Observation(tuple(found), tuple(notes))

    def _notes_on_padding(self, uses: Sequence[Use]) -> list[str]:
        """The encoders whose states of padding are returned, without a mask that tells them."""
        notes = []
        for use in uses:
            if not use.per_position or _reads_rows_only(self.encoders[use.encoder]):
                continue
            at = self._of_prompt(use.encoder)[0]
            call = self.shown.calls[at]
            mask = call.inputs.get("attention_mask")
            if mask is None or mask.ndim != 2 or mask[0].all():
                continue
            if any(_is_mask(tensor, mask) for tensor in self.shown.returned):
                continue
            first = int(mask[0].long().argmax()) if self._causal(use.encoder) else 0
            hidden = [i for i in (mask[0] == 0).nonzero()[:, 0].tolist() if i > first]
            try:
                noise = _with_noise_at(call.output, hidden, pooled=False)
                changed = self.again(PROMPTS[0], {at: noise})
            except (RuntimeError, ValueError, TypeError, KeyError, IndexError):
                continue
            if not _same_tensors(changed.returned, self.shown.returned):
                notes.append(PADDING.format(use.encoder))
        return notes

    def _causal(self, encoder: str) -> bool:
        return encoder_family_of(unwrapped(self.encoders[encoder])).causal

    def _uses_of_returned_tokens(self, taken: Container[str]) -> list[Use]:
        """The encoders that get tokens later, which are among what is returned.

        Args:
            taken: Tokenizers whose tokens another encoder receives.
        """
        found = []
        for encoder, module in self.encoders.items():
            if not _reads_rows_only(module):
                continue
            for tokenizer, texts in self.shown.texts.items():
                returned = any(are_tokens(tensor, texts) for tensor in self.shown.returned)
                if returned and tokenizer not in taken:
                    found.append(Use(encoder, tokenizer, (LAST,)))
        return found

    def _skipping(self, uses: Sequence[Use]) -> list[Use]:
        """The uses, with the readings marked that `clip_skip` moves to an earlier block."""
        method = prompt_method_of(self.pipe)
        if method is None:
            return list(uses)
        names = (prompt_method_name(self.pipe), "__call__")
        taken = [parameters_of(self.pipe, name) for name in names]
        if not all("clip_skip" in parameters for parameters in taken):
            return list(uses)
        try:
            call = {**self.call, **SKIPPED}
            shown = _run(self.pipe, PROMPTS[0], self.encoders, None, call)
        except AdapterStateError:
            return [self._said_to_skip(use) for use in uses]
        skipped = _Comparison(self.pipe, self.encoders, shown, SKIPPED, self.picture)
        found = []
        for use in uses:
            moved = skipped.readings(use.encoder)
            readings = []
            for reading in use.readings:
                marked = replace(reading, skips=not reading.pooled)
                there = replace(marked.skipping(1), final_norm=False)
                skips = reading not in moved and there in moved
                readings.append(marked if skips else reading)
            found.append(use._replace(readings=tuple(readings)))
        return found

    def _said_to_skip(self, use: Use) -> Use:
        """The use, where a call with `clip_skip` fails: the states that the record says it moves.

        diffusers 0.42 looks for the final norm where transformers 5.6 no longer has it.
        """
        if not encoder_family_of(unwrapped(self.encoders[use.encoder])).final_norm:
            return use
        readings = [replace(reading, skips=not reading.pooled) for reading in use.readings]
        return use._replace(readings=tuple(readings))

    def _another_prompt(self) -> Encoded | None:
        """Another prompt of as many tokens, answered with the states of the one shown."""
        fitting = None
        for prompt in PROMPTS[1:]:
            with suppress(RuntimeError, ValueError, TypeError, KeyError, AttributeError):
                found = self.again(prompt, {})
                if not _same_shapes(self.shown.calls, found.calls):
                    continue
                fitting = fitting or found
                if [x.shape for x in found.returned] == [x.shape for x in self.shown.returned]:
                    return found
        return fitting

    def _of_prompt(self, encoder: str) -> list[int]:
        """The calls of an encoder that received the prompt, and not an empty or negative one."""
        calls = [i for i, call in enumerate(self.shown.calls) if call.encoder == encoder]
        if self.other is None:
            return calls
        return [i for i in calls if _differ(self.shown.calls[i], self.other.calls[i])]

    def _is_reached(self) -> bool:
        """Whether any call of an encoder receives other tokens for another prompt."""
        try:
            found = self.again(PROMPTS[1], {})
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            return True
        if len(found.calls) != len(self.shown.calls):
            return True
        return any(map(_differ, self.shown.calls, found.calls))

    def readings(self, encoder: str) -> tuple[Reading, ...]:
        """Which of the encoder's states leave `encode_prompt`."""
        found: list[Reading] = []
        at = self._of_prompt(encoder)
        if len(at) > 1:
            raise UnknownFamilyError(
                f"{self.name}.encode_prompt runs {encoder} {len(at)} times for one prompt, which "
                "is not known here; register a record (docs/families.md)"
            )
        call = self.shown.calls[at[0]]
        if self.other is None:
            return self._equal_states(encoder)
        for reading in self._candidates(call):
            noise = {at[0]: _with_noise(call.output, reading)}
            changed = self.again(PROMPTS[0], noise)
            if not _same_tensors(changed.returned, self.shown.returned):
                found.append(self._before_norm(encoder, reading, call.output))
        return tuple(dict.fromkeys(found)) or self._equal_states(encoder)

    def _candidates(self, call: EncoderCall) -> list[Reading]:
        """The states of an output that a pipeline may take."""
        output = call.output
        found = [Reading(name) for name in (LAST.name, *POOLED) if _field(output, name) is not None]
        states = _field(output, "hidden_states")
        if states is None:
            return found
        noted = _NotedStates(states)
        noted.asked = []
        answer = copy(output)
        answer.hidden_states = noted
        at = next(i for i, one in enumerate(self.shown.calls) if one is call)
        self.again(PROMPTS[0], {at: answer})
        count = len(states)
        asked = list(dict.fromkeys(noted.asked))
        others = sorted({*range(count)} - {index % count for index in asked})
        answer = copy(output)
        answer.hidden_states = _noisy_states(states, others)
        changed = self.again(PROMPTS[0], {at: answer})
        if not _same_tensors(changed.returned, self.shown.returned):
            asked += [index - count if index else 0 for index in others]
        return [*found, *(Reading("hidden_states", index) for index in asked)]

    def _before_norm(self, encoder: str, reading: Reading, output: Any) -> Reading:
        """The last hidden state, counted from the front where the final norm was left out of it.

        So a block's own output is called (`Reading.inner`); a pipeline gets it with a hook.
        """
        raw = self.shown.blocks.get(encoder)
        if reading.index != -1 or not raw:
            return reading
        if torch.equal(reading.of(output), raw[-1]):
            return Reading("hidden_states", len(raw))
        return reading

    def _equal_states(self, encoder: str) -> tuple[Reading, ...]:
        """The blocks whose output, or the final states, are among what was returned.

        For pipelines that take them with a hook, so that no output of the encoder tells.
        """
        raw = self.shown.blocks.get(encoder, [])
        found = []
        for i, states in enumerate(raw, 1):
            if any(_holds_rows(tensor, states[0]) for tensor in self.shown.returned):
                found.append(Reading("hidden_states", i))
        return tuple(found)

    def _refuse_unexplained(self, uses: Sequence[Use]) -> None:
        """What is returned for another prompt must be the same, with the same states put in.

        Raises:
            UnknownFamilyError: It is not.
        """
        seen = "; ".join(f"{use.encoder} ({', '.join(map(str, use.readings))})" for use in uses)
        shapes = ", ".join(str(tuple(x.shape)) for x in self.shown.returned)
        if not uses and not self._is_reached():
            raise UnknownFamilyError(
                f"{self.name}.encode_prompt hands a plain prompt to none of "
                f"{', '.join(self.encoders)}, so that what reads it lies elsewhere (among "
                f"{', '.join(sorted({*self.pipe.components} - {*self.encoders}))}), where nothing "
                "is erased yet"
            )
        if not uses:
            raise UnknownFamilyError(
                f"{self.name}.encode_prompt returns tensors of {shapes}, and none of the states of "
                f"{', '.join(self.encoders)} is in them; register a record (docs/families.md)"
            )
        if self.other is None:
            return
        later = [use.tokenizer for use in uses if _reads_rows_only(self.encoders[use.encoder])]
        tokens = [self.shown.texts[tokenizer] for tokenizer in later]
        for i, (one, other) in enumerate(
            zip(self.shown.returned, self.other.returned, strict=True)
        ):
            if any(are_tokens(one, texts) for texts in tokens):
                continue
            if one.shape != other.shape or not torch.equal(one, other):
                raise UnknownFamilyError(
                    f"{self.name}.encode_prompt is not explained by what was seen of it, {seen}: "
                    f"with the same states, tensor {i} of those it returns ({shapes}) still "
                    "changes with the prompt, so that words pass beside these encoders"
                )

    def _tokenizer(self, encoder: str) -> str:
        """The component whose tokens an encoder receives."""
        call = self.shown.calls[self._of_prompt(encoder)[0]]
        usual = encoder.replace("text_encoder", "tokenizer")
        scores = {}
        for name, texts in self.shown.texts.items():
            row = _seen_tokens(call)
            runs = [unpadded(encoding) for encoding in _encodings(texts)]
            runs = [run for run in runs if find_run(row, run) is not None]
            scores[name] = (max(map(len, runs), default=0), name == usual)
        best = max(scores, key=lambda name: scores[name], default=usual)
        if not scores or not scores[best][0]:
            raise UnknownFamilyError(f"{self.name}: {self._describe_untold(encoder)}")
        return best

    def _describe_untold(self, encoder: str) -> str:
        """Why it cannot be seen which tokenizer makes an encoder's tokens, and what to do."""
        found = tokenizers_of(self.pipe)
        for tokenizer in found.values():
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
            if not getattr(tokenizer, "is_fast", True):
                return no_offsets(tokenizer)
        return (
            f"no tokenizer among {', '.join(found) or 'its parts'} makes the tokens that {encoder} "
            "receives, so that where a prompt's words are in them is not known here; make the "
            "erasure on a stock pipeline with the same components, and load it there: the encoders "
            "are shared"
        )

    def _alone(self, use: Use) -> Use:
        """The use, marked where a prompt's tokens depend on what else is in the batch."""
        if _reads_rows_only(self.encoders[use.encoder]):
            return use
        causal = self._causal(use.encoder)

        def received(*texts: str) -> dict[str, Tensor]:
            together = use._replace(alone=False, picture=self.picture)
            return record_encoder_inputs(self.pipe, texts, together).inputs

        with suppress(UnknownFamilyError, AdapterStateError, RuntimeError, ValueError, KeyError):
            both = received(PROMPTS[0], LONGER)
            if len(both["input_ids"]) != 2:
                return use._replace(alone=True)
            each = [received(PROMPTS[0]), received(LONGER)]
            if all(_same_row(one, both, i, causal) for i, one in enumerate(each)):
                return use
        return use._replace(alone=True)


def _reads_rows_only(encoder: nn.Module) -> bool:
    with suppress(UnknownFamilyError):
        return encoder_family_of(unwrapped(encoder)).rows_only
    return False


REWRITERS = ("pe", "prompt_enhancer", "prompt_enhancer_head", "prompt_upsampler")
"""Components that write another prompt before one is encoded."""


REWRITING = ("enhance_prompt", "upsample_prompt", "expand_prompts")
"""Methods that do so with a text encoder, where there is no such component."""
CAPTIONING = "get_image_caption"
"""The method that makes a prompt of a picture."""
PADDING = (
    "{}: states of padding behind the prompt are returned without a mask that tells them, and "
    "blocks are solved for the prompt's own positions, so that the denoiser may read part of the "
    "concept there (docs/pipelines.md, 'Padding that is read', has an example in numbers); "
    "layers='embedding' holds there too"
)
BESIDE_PICTURES = (
    "{}: prompts are solved for without a picture. With one before the prompt a text encoder gives "
    "other states, and edits of blocks leave part of the concept (docs/pipelines.md, 'A picture "
    "before the prompt', has an example in numbers); layers='embedding' holds beside any picture. "
    "What the picture itself shows is not erased"
)


def notes_on_rewriting(pipe: Any) -> list[str]:
    """What a pipeline does with a prompt before, or shows an encoder beside it."""
    notes = []
    blocks = getattr(getattr(pipe, "_blocks", None), "sub_blocks", {})
    rewriters = [name for name in REWRITERS if getattr(pipe, name, None) is not None]
    rewriters += [name for name in blocks if name.startswith("prompt_")]
    rewriters = rewriters or [name for name in REWRITING if hasattr(pipe, name)]
    for name in dict.fromkeys(rewriters):
        notes.append(
            f"{name}: it may write another prompt before this one is encoded, in words that no "
            "spec lists"
        )
    if argument := picture_argument_of(pipe):
        notes.append(BESIDE_PICTURES.format(argument))
    if hasattr(pipe, CAPTIONING):
        notes.append(
            f"{CAPTIONING}: a call without a prompt encodes what a model writes about the picture, "
            "in words that no spec lists"
        )
    return notes


def _run(
    pipe: Any,
    prompt: str,
    encoders: Mapping[str, nn.Module],
    answer: Callable[[int], Any] | None = None,
    call: Mapping[str, Any] | None = None,
) -> Encoded:
    """Call `encode_prompt`; with `answer`, no encoder runs, and call i gives `answer(i)`."""
    calls: list[EncoderCall] = []
    blocks: dict[str, list[Tensor]] = {}
    texts: dict[str, TokenizedTexts] = {}
    with ExitStack() as stack:
        for name, tokenizer in tokenizers_of(pipe).items():
            texts[name] = stack.enter_context(recording_texts(tokenizer, strict=False))
        for name, encoder in encoders.items():
            stack.enter_context(_noting_calls(name, encoder, calls, answer))
            if answer is None:
                blocks[name] = stack.enter_context(_noting_blocks(unwrapped(encoder)))
        try:
            found = encode(pipe, [prompt], call=call)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError) as error:
            if answer is not None or isinstance(error, UnknownFamilyError):
                raise
            raise AdapterStateError(
                f"{type(pipe).__name__}.encode_prompt does not run, for one prompt alone, as the "
                f"pipeline is loaded: {error}"
            ) from error
    return Encoded(calls, list(tensors_in(found)), texts, blocks)


@contextmanager
def _noting_calls(
    name: str,
    encoder: nn.Module,
    calls: list[EncoderCall],
    answer: Callable[[int], Any] | None,
) -> Iterator[None]:
    """Inside, calls of the encoder are noted, and answered."""
    signature = inspect.signature(unwrapped(encoder).forward)
    own = vars(encoder).get("forward")  # where offloading hangs its own
    stock = encoder.forward

    @wraps(stock)
    def forward(*args: Any, **kwargs: Any) -> Any:
        received = dict(signature.bind(*args, **kwargs).arguments)
        received |= received.pop("kwargs", {})
        inputs = {k: v.detach().cpu() for k, v in received.items() if isinstance(v, Tensor)}
        output = stock(*args, **kwargs) if answer is None else answer(len(calls))
        calls.append(EncoderCall(name, inputs, output))
        return output

    vars(encoder)["forward"] = forward
    try:
        yield
    finally:
        vars(encoder).pop("forward", None)
        if own is not None:
            vars(encoder)["forward"] = own


@contextmanager
def _noting_blocks(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what each block gives is noted, shallow to deep, of the first call."""
    found: list[Tensor] = []
    handles = []

    def keep(_: nn.Module, __: object, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    with suppress(UnknownFamilyError):
        for block in blocks_of(encoder):
            handles.append(block.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        del found[len(handles) :]


@contextmanager
def _noise_behind(encoder: nn.Module, positions: Sequence[int]) -> Iterator[None]:
    """Inside, the encoder's last block gives noise at some positions."""

    def replace_states(_: nn.Module, __: object, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        shape = (len(states), len(positions), states.shape[-1])
        states = states.clone()
        states[:, list(positions)] = _draw(shape, torch.Generator().manual_seed(0)).to(states)
        return states if isinstance(output, Tensor) else (states, *output[1:])

    handle = blocks_of(encoder)[-1].register_forward_hook(replace_states)
    try:
        yield
    finally:
        handle.remove()


def tokenizers_of(pipe: Any) -> dict[str, Any]:
    """The components that make tokens of text, or hold what does."""
    found = {}
    for name, component in pipe.components.items():
        tokenizer = getattr(component, "tokenizer", component)
        if hasattr(tokenizer, "convert_tokens_to_ids") and callable(tokenizer):
            found[name] = component
    return found


def _seen_tokens(call: EncoderCall) -> list[int]:
    """The tokens of a call's first row that attention sees."""
    if call.ids is None:
        return []
    mask = call.inputs.get("attention_mask")
    row = call.ids[0] if mask is None else call.ids[0][mask[0].bool()]
    return list(row.tolist())


def _encodings(texts: TokenizedTexts) -> list[Any]:
    """Of every row that was made, one encoding."""
    return [found[0][1] for found in texts.values()]


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else None


def _with_noise(output: Any, reading: Reading) -> Any:
    """The output, with noise in place of one of its states."""
    changed = copy(output)
    value = _field(output, reading.name)
    if reading.index is None:
        setattr(changed, reading.name, _noise(value))
    else:
        changed.hidden_states = _noisy_states(value, [reading.index])
    return changed


def _noise(like: Tensor) -> Tensor:
    return _draw(like.shape, torch.Generator().manual_seed(0)).to(like)


def _draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, the same whatever the caller's default dtype is."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def _noisy_states(states: Sequence[Tensor], indices: Sequence[int]) -> tuple[Tensor, ...]:
    """Hidden states, some of them replaced by noise."""
    found = list(states)
    for index in indices:
        found[index] = _noise(found[index])
    return tuple(found)


def _is_mask(returned: Tensor, mask: Tensor) -> bool:
    """Whether a tensor says which positions are padding, of all or of the last ones.

    Some pipelines show the denoiser one position of padding all the same.
    """
    if returned.ndim != 2 or returned.shape[1] > mask.shape[1] or len(returned) != len(mask):
        return False
    last = mask[:, mask.shape[1] - returned.shape[1] :].bool()
    return bool((returned.cpu().bool() != last).sum() <= len(mask))


def _with_noise_at(output: Any, positions: Sequence[int], *, pooled: bool = True) -> Any:
    """The output, with noise in all its states at some positions, and in its pooled vectors."""
    changed = copy(output)
    generator = torch.Generator().manual_seed(0)

    def noisy(states: Tensor) -> Tensor:
        found = states.clone()
        shape = (len(states), len(positions), states.shape[-1])
        found[:, list(positions)] = _draw(shape, generator).to(states)
        return found

    if (states := _field(output, LAST.name)) is not None:
        changed.last_hidden_state = noisy(states)
    if (every := _field(output, "hidden_states")) is not None:
        changed.hidden_states = tuple(noisy(states) for states in every)
    for name in POOLED if pooled else ():
        if (vector := _field(output, name)) is not None:
            setattr(changed, name, _draw(vector.shape, generator).to(vector))
    return changed


def _same_tensors(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    if len(some) != len(others):
        return False
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _same_shapes(some: Sequence[EncoderCall], others: Sequence[EncoderCall]) -> bool:
    """Whether both prompts are as many tokens everywhere, and not the same ones."""
    if [call.encoder for call in some] != [call.encoder for call in others]:
        return False
    for one, other in zip(some, others, strict=True):
        if one.ids is None or other.ids is None or one.ids.shape != other.ids.shape:
            return False
        mask = one.inputs.get("attention_mask")
        if mask is not None and not torch.equal(mask, other.inputs["attention_mask"]):
            return False
    return any(_differ(one, other) for one, other in zip(some, others, strict=True))


def _differ(one: EncoderCall, other: EncoderCall) -> bool:
    if one.ids is None or other.ids is None:
        return True
    return not torch.equal(one.ids, other.ids)


def _same_row(
    one: Mapping[str, Tensor], both: Mapping[str, Tensor], row: int, causal: bool
) -> bool:
    """Whether a prompt is the same tokens alone as in a row of a batch.

    All of them, or where later ones are unseen, those it has alone.
    """
    rows = []
    for inputs, i in ((one, 0), (both, row)):
        ids = inputs["input_ids"][i]
        mask = inputs.get("attention_mask")
        rows.append(ids if mask is None else ids[mask[i].bool()])
    alone, among = rows
    if causal:
        among = among[: len(alone)]
    return torch.equal(alone, among)


def _holds_rows(returned: Tensor, states: Tensor) -> bool:
    """Whether some row of `returned` is one of `states`, or stacks it beside others."""
    width = states.shape[-1]
    if not returned.is_floating_point() or not returned.ndim or returned.shape[-1] % width:
        return False
    parts = returned.reshape(-1, width).double()
    wanted = states.double()
    tolerance = 1e-6 * (1 + wanted.norm(dim=1))[:, None]
    return bool((torch.cdist(wanted, parts) < tolerance).any())
