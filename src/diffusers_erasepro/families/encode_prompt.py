"""What a pipeline hands to a tokenizer and a text encoder, recorded from its own `encode_prompt`.

Chat templates, system prompts, cleaning, padding and masks are each pipeline's own business; what
is recorded needs no second description of them.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import AdapterStateError, UnknownFamilyError
from ..modules.linear import unwrapped
from .types import Use

TokenizedTexts = dict[tuple[int, ...], list[tuple[str, Any]]]
"""Ids of a row -> the texts that were tokenized to it, each with its `tokenizers.Encoding`."""


@dataclass(frozen=True)
class PromptSpan:
    """Where a prompt's characters are in its row of tokens."""

    offsets: tuple[tuple[int, int] | None, ...]
    """Per position the prompt's characters `[start, stop)`, negative in front of the prompt; None
    for special tokens."""
    first: int
    stop: int
    """Positions `[first, stop)` are not padding."""
    needed: int
    """Tokens of the row before truncation."""

    def moved(self, shift: int, length: int) -> PromptSpan:
        """The same span in a row of `length` positions, `shift` further back."""
        if not shift and length == len(self.offsets):
            return self
        offsets: list[tuple[int, int] | None] = [None] * length
        offsets[self.first + shift : self.stop + shift] = self.offsets[self.first : self.stop]
        return PromptSpan(tuple(offsets), self.first + shift, self.stop + shift, self.needed)


@dataclass(frozen=True)
class RecordedInputs:
    """One encoder's inputs for some prompts."""

    inputs: dict[str, Tensor]
    """Argument of the encoder's forward -> `(n, length)`."""
    texts: TokenizedTexts
    special: frozenset[int] = frozenset()
    """Tokens that are put around texts, or pad them; those that an encoding marks so count too."""

    def locate(self, row: int, prompt: str, wrapping: str) -> PromptSpan | None:
        """Where `prompt` is in `row`; None if the pipeline rewrote its words.

        `wrapping` is the text that the tokenizer was given for the empty prompt.
        """
        ids = self.inputs["input_ids"][row].tolist()
        for text, encoding in self._tokenized(row):
            whole = len(encoding.ids) == len(ids)
            # of a row put together from several texts, one is the prompt alone
            for around in (wrapping,) if whole else (wrapping, ""):
                start = _find_prompt(text, prompt, around)
                if start is None:
                    continue
                if not encoding.ids:
                    marks = min(2, len(ids))  # the beginning and the end
                    return PromptSpan((None,) * len(ids), 0, marks, marks)
                if not any(encoding.attention_mask):
                    continue  # padding alone: no text, and nothing around it
                shift = _shift_of(encoding, ids)
                span = _span_of(encoding, start).moved(shift, len(ids))
                if not (whole or any(encoding.special_tokens_mask)):
                    span = self._with_marks(span, row)
                return span if whole else self._with_end(span, row)
        return None

    def _with_marks(self, span: PromptSpan, row: int) -> PromptSpan:
        """The span, with the special tokens that stand next to it and attention sees.

        They were put around a text that was tokenized without.
        """
        ids = self.inputs["input_ids"][row].tolist()
        mask = self.inputs.get("attention_mask")
        special = self._special_ids()
        seen = [True] * len(ids) if mask is None else mask[row].bool().tolist()
        marked = [on and token in special for token, on in zip(ids, seen, strict=True)]
        first = span.first - int(span.first > 0 and marked[span.first - 1])
        stop = span.stop + int(span.stop < len(ids) and marked[span.stop])
        added = span.first - first + stop - span.stop
        return replace(span, first=first, stop=stop, needed=span.needed + added)

    def _with_end(self, span: PromptSpan, row: int) -> PromptSpan:
        """The span, up to the end of a row whose other parts follow it without padding between."""
        mask = self.inputs.get("attention_mask")
        behind = self.inputs["input_ids"][row, span.stop :].tolist()
        if mask is None and {*behind} <= self._special_ids():
            return span  # padded by hand: what follows the end says nothing
        seen = torch.ones(len(span.offsets), dtype=torch.bool) if mask is None else mask[row]
        stop = int(seen.nonzero().max()) + 1
        if not seen[span.stop : stop].all():
            return span
        return replace(span, stop=stop, needed=span.needed + stop - span.stop)

    def _special_ids(self) -> set[int]:
        """Tokens that tokenizers put around texts, or pad them with."""
        found = {*self.special}
        for noted in self.texts.values():
            for _, encoding in noted:
                special = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
                found |= {token for token, on in special if on}
        return found

    def prompt_positions(self, row: int, prompt: str, wrapping: str) -> list[int]:
        """Positions of `row` from the first of `prompt` on, without padding.

        Of a prompt that the pipeline rewrote, all positions that attention sees.
        """
        span = self.locate(row, prompt, wrapping)
        if span is None:
            mask = self.inputs.get("attention_mask", torch.ones_like(self.inputs["input_ids"]))
            return list(mask[row].nonzero()[:, 0].tolist())
        positions = []
        for position in range(span.first, span.stop):
            characters = span.offsets[position]
            if characters is None or characters[1] > 0:
                positions.append(position)
        return positions

    def text(self, row: int) -> str:
        """What the tokenizer was given for `row`."""
        found = self._tokenized(row)
        return found[0][0] if found else ""

    def _tokenized(self, row: int) -> Sequence[tuple[str, Any]]:
        """What was tokenized to a row, or to parts of it, the longest first."""
        ids = self.inputs["input_ids"][row].tolist()
        if found := self.texts.get(tuple(ids)):
            return found
        parts = []
        for noted in self.texts.values():
            run = unpadded(noted[0][1])
            if find_run(ids, run) is not None:
                parts.append((len(run), noted))
        if not parts and {*ids} <= self._special_ids():
            return self.texts.get((), ())  # an empty text, tokenized without special tokens
        found = []
        for _, noted in sorted(parts, key=lambda part: -part[0]):
            found += noted
        return found


def _find_prompt(text: str, prompt: str, wrapping: str) -> int | None:
    """Where `prompt` begins in `text`, case aside, if the rest of `text` is `wrapping`.

    A pipeline may write a space for the empty prompt, so that `wrapping` holds it.
    """
    for start in range(len(text) - len(prompt) + 1):
        stop = start + len(prompt)
        if text[start:stop].lower() != prompt.lower():
            continue
        blank = wrapping[start : len(wrapping) - (len(text) - stop)]
        wrapped = wrapping == text[:start] + blank + text[stop:]
        if wrapped and not blank.strip():
            return start
    return None


def unpadded(encoding: Any) -> list[int]:
    """The ids of an encoding that are not padding."""
    return [i for i, on in zip(encoding.ids, encoding.attention_mask, strict=True) if on]


def find_run(row: Sequence[int], run: Sequence[int]) -> int | None:
    """Where `run` begins in `row` for the last time; None if it is not there, or empty."""
    if not run:
        return None
    for start in reversed(range(len(row) - len(run) + 1)):
        if row[start] == run[0] and list(row[start : start + len(run)]) == list(run):
            return start
    return None


def _shift_of(encoding: Any, row: Sequence[int]) -> int:
    """How much further back the tokens of an encoding lie in the row that an encoder received."""
    if list(encoding.ids) == list(row):
        return 0
    start = find_run(row, unpadded(encoding))
    return 0 if start is None else start - encoding.attention_mask.index(1)


def _span_of(encoding: Any, start: int) -> PromptSpan:
    """The span of a prompt that begins at character `start` of the text of `encoding`."""
    offsets: list[tuple[int, int] | None] = []
    for (a, b), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        offsets.append(None if special else (a - start, b - start))
    used = [i for i, on in enumerate(encoding.attention_mask) if on]
    overflow = sum(len(e.ids) - sum(e.special_tokens_mask) for e in encoding.overflowing)
    return PromptSpan(tuple(offsets), used[0], used[-1] + 1, len(used) + overflow)


def tokenize(tokenizer: Any, texts: Sequence[str]) -> RecordedInputs:
    """As `record_encoder_inputs`, of a tokenizer without a pipeline, padded to its limit."""
    length = tokenizer.model_max_length
    if not texts:
        return RecordedInputs({"input_ids": torch.zeros(0, length, dtype=torch.long)}, {})
    with recording_texts(tokenizer) as rows:
        found = tokenizer(
            list(texts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
    return RecordedInputs({"input_ids": found.input_ids}, rows)


class _Complete(BaseException):
    """Everything that was asked for is recorded; ends `encode_prompt` early."""


class _TokensAlone(TorchFunctionMode):
    """Inside, linears and attention answer zero.

    Text encoders run before the one that is asked for, and that one itself before it receives the
    negative prompt. No token depends on what they answer, and 16-bit ones are slow on a CPU.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs:
            x, weight, *_ = args
            return x.new_zeros(*x.shape[:-1], len(weight))
        if func is F.scaled_dot_product_attention and len(args) >= 3:
            query, _, value, *_ = args
            return query.new_zeros(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


IGNORED = ("mm_token_type_ids",)
"""Inputs that say which tokens are an image's; of text alone they are zero."""
OF_PICTURES = (*IGNORED, "pixel_values", "image_grid_thw", "image_sizes", "position_ids")
"""Inputs that a picture beside a prompt brings; an erasure runs the tokens without them."""
PICTURE_SIZE = 56
"""Width and height of the grey picture that is shown where a prompt alone is not enough."""


def record_encoder_inputs(
    pipe: Any,
    texts: Sequence[str],
    use: Use,
    *,
    guidance: bool = False,
    call: Mapping[str, Any] | None = None,
    returned: bool = False,
) -> RecordedInputs:
    """What an encoder receives for `texts`; it does not run, or what it answers is not used.

    Rows of several lengths are filled up to the longest, with positions that the mask hides.

    Args:
        pipe: Any pipeline with `encode_prompt`, called with the defaults of its `__call__`.
        texts: Prompts.
        use: The encoder and its tokenizer, by name; whether the pipeline is given one prompt at a
            time, and a grey picture with each.
        guidance: Ask for the negative prompt as well, and take what was encoded last.
        call: Arguments of `__call__` that are given otherwise than by default.
        returned: `encode_prompt` does not call the encoder, but returns its tokens.

    Raises:
        UnknownFamilyError: `encode_prompt` does not call this encoder, or calls it in a way that
            is not known here.
        AdapterStateError: `encode_prompt` does not run.
    """
    encoder = use.encoder
    tokenizer = use.tokenizer
    if returned:
        return _record_returned(pipe, texts, tokenizer, call)
    if use.alone and len(texts) > 1:
        rows: list[dict[str, Tensor]] = []
        noted: TokenizedTexts = defaultdict(list)
        for text in texts:
            one = record_encoder_inputs(pipe, [text], use, guidance=guidance, call=call)
            rows.append(one.inputs)
            for ids, found in one.texts.items():
                noted[ids] += found
        joined = _concatenate(rows, encoder, type(pipe).__name__)
        return RecordedInputs(joined, noted, special_ids_of(getattr(pipe, tokenizer)))
    module = getattr(pipe, encoder)
    signature = inspect.signature(unwrapped(module).forward)
    given = {**pictures(use.picture), **(call or {})}
    dropped = OF_PICTURES if use.picture else ()
    calls: list[dict[str, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received = signature.bind(*args, **kwargs).arguments
        received |= received.pop("kwargs", {})
        tensors = {k: v for k, v in received.items() if isinstance(v, Tensor) and k not in dropped}
        calls.append({k: v.detach().cpu() for k, v in tensors.items()})
        counts = [len(one["input_ids"]) for one in calls if "input_ids" in one]
        if not guidance and sum(counts) >= len(texts):
            raise _Complete

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with recording_texts(getattr(pipe, tokenizer)) as noted, torch.no_grad(), _TokensAlone():
            encode(pipe, texts, guidance=guidance, call=given)
    except _Complete:
        pass
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError) as error:  # a component may be None
        raise AdapterStateError(
            f"{type(pipe).__name__}.encode_prompt does not run as the pipeline is loaded: {error}"
        ) from error
    finally:
        handle.remove()
    inputs = _concatenate(calls[-1:] if guidance else calls, encoder, type(pipe).__name__)
    return RecordedInputs(inputs, noted, special_ids_of(getattr(pipe, tokenizer)))


def _record_returned(
    pipe: Any, texts: Sequence[str], tokenizer: str, call: Mapping[str, Any] | None
) -> RecordedInputs:
    """The tokens of `texts` that `encode_prompt` returns; the text encoders run for it.

    Raises:
        UnknownFamilyError: It returns none.
    """
    with recording_texts(getattr(pipe, tokenizer)) as noted, torch.no_grad():
        found = encode(pipe, texts, call=call)
    for ids in tensors_in(found):
        if len(ids) == len(texts) and are_tokens(ids, noted):
            encodings = [noted[tuple(row)][0][1] for row in ids.tolist()]
            mask = torch.tensor([e.attention_mask for e in encodings], dtype=torch.long)
            return RecordedInputs({"input_ids": ids.cpu(), "attention_mask": mask}, noted)
    raise UnknownFamilyError(
        f"{type(pipe).__name__}.encode_prompt returns no tokens of {tokenizer}; see "
        "docs/families.md"
    )


def are_tokens(found: Tensor, texts: TokenizedTexts) -> bool:
    """Whether every row of a tensor is a row that a tokenizer made."""
    if found.is_floating_point() or found.ndim != 2 or not found.numel():
        return False
    return all(tuple(row) in texts for row in found.tolist())


def encode(
    pipe: Any,
    texts: Sequence[str],
    *,
    guidance: bool = False,
    call: Mapping[str, Any] | None = None,
) -> Any:
    """What a pipeline's `encode_prompt` returns, or a modular one's text block adds to its state.

    Args:
        pipe: Any pipeline.
        texts: Prompts.
        guidance: Ask for the negative prompt as well.
        call: Arguments of its call that are given otherwise than by default.
    """
    given = dict(call or {})
    if prompt_method_of(pipe) is not None:
        arguments = call_arguments(pipe, texts, guidance) | given
        name = prompt_method_name(pipe)
        return [
            _call_by_name(pipe, name, {**arguments, **which})
            for which in _separate_calls(pipe, name)
        ]
    block = text_block_of(pipe)
    if block is None:
        raise UnknownFamilyError(
            f"{type(pipe).__name__} has neither encode_prompt nor a text block, so what it makes "
            "of a prompt cannot be observed"
        )
    # only a modular pipeline needs these, which take a second to import
    from diffusers.modular_pipelines import PipelineState

    state = PipelineState()
    for parameter in block.inputs:
        if parameter.name is not None:
            state.set(parameter.name, parameter.default, parameter.kwargs_type)
    # some blocks take one prompt, and no list
    prompt = texts[0] if len(texts) == 1 else list(texts)
    for name, value in {"prompt": prompt, **given}.items():
        state.set(name, value)
    _, state = block(pipe, state)
    return [state.get(parameter.name) for parameter in block.intermediate_outputs]


def prompt_method_of(pipe: Any) -> Callable[..., Any] | None:
    """`encode_prompt`, or what older pipelines have in its place; None where there is neither."""
    method: Callable[..., Any] | None = getattr(pipe, "encode_prompt", None)
    return method or getattr(pipe, "_encode_prompt", None)


def prompt_method_name(pipe: Any) -> str:
    """The name of `prompt_method_of`."""
    return "encode_prompt" if getattr(pipe, "encode_prompt", None) else "_encode_prompt"


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def parameters_of(pipe: Any, name: str) -> dict[str, inspect.Parameter]:
    """What a method of a pipeline takes by name.

    A method with `*args` or `**kwargs` hands them on to the one it overrides, so that what that
    one takes counts too.
    """
    overridden = [getattr(base, name) for base in type(pipe).__mro__ if name in vars(base)]
    found: dict[str, inspect.Parameter] = {}
    for function in (getattr(pipe, name), *overridden):
        own = inspect.signature(function).parameters
        named = {n: p for n, p in own.items() if n != "self" and p.kind not in VARIADIC}
        found = {**found, **{n: p for n, p in named.items() if n not in found}}
        if len(named) == len(own) - ("self" in own):
            break
    return found


def _call_by_name(pipe: Any, name: str, arguments: Mapping[str, Any]) -> Any:
    """A method's answer to these arguments.

    Where it takes those of the method it overrides by position alone, they are given so.
    """
    method = getattr(pipe, name)
    own = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in own.values()}
    if {*arguments} <= {*own} or inspect.Parameter.VAR_KEYWORD in kinds:
        return method(**arguments)
    positional = []
    for key, parameter in parameters_of(pipe, name).items():
        positional.append(arguments.get(key, parameter.default))
    return method(*positional)


def pictures(argument: str) -> dict[str, Any]:
    """The grey picture that an argument of `encode_prompt` gets; nothing without an argument."""
    if not argument:
        return {}
    # only pipelines that look at a picture need this
    from PIL import Image

    return {argument: Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), (128, 128, 128))}


def picture_argument_of(pipe: Any) -> str:
    """The argument of `encode_prompt`, or input of a text block, that takes a picture; or ""."""
    if prompt_method_of(pipe) is not None:
        taken = {*parameters_of(pipe, prompt_method_name(pipe))}
    elif (block := text_block_of(pipe)) is not None:
        taken = {parameter.name for parameter in block.inputs}
    else:
        taken = set()
    return next((name for name in ("image", "images") if name in taken), "")


def _separate_calls(pipe: Any, name: str) -> list[dict[str, int]]:
    """What tells the calls of `encode_prompt` for one prompt apart: one for each text encoder."""
    which = "text_encoder_index"  # HunyuanDiT
    if which not in parameters_of(pipe, name):
        return [{}]
    there = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None)]
    return [{which: index} for index in range(len(there))]


def tensors_in(found: Any) -> Iterator[Tensor]:
    """Every tensor in what a pipeline returned, in order."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from tensors_in(list(found.values()))
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from tensors_in(one)


def text_block_of(pipe: Any) -> Any:
    """The block of a modular pipeline that encodes prompts; None if it has none."""
    blocks = getattr(getattr(pipe, "_blocks", None), "sub_blocks", {})
    return blocks.get("text_encoder")


def takes_prompts(pipe: Any) -> bool:
    """Whether `encode` knows what to call."""
    return prompt_method_of(pipe) is not None or text_block_of(pipe) is not None


def call_arguments(pipe: Any, texts: Sequence[str], guidance: bool) -> dict[str, Any]:
    """Arguments of `encode_prompt`: the defaults of `__call__` where it has the name.

    Raises:
        AdapterStateError: The pipeline cannot tell where it runs.
    """
    device = pipe._execution_device
    if device.type == "meta":
        raise AdapterStateError(
            f"{type(pipe).__name__} would run on the meta device: one of its parts is offloaded "
            "and others are not, or has no weights; offload the whole pipeline, or erase before "
            "offloading"
        )
    parameters = parameters_of(pipe, "__call__")
    values = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    values |= {
        "prompt": list(texts),
        "device": device,
        "do_classifier_free_guidance": guidance,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
    }
    accepted = parameters_of(pipe, prompt_method_name(pipe))
    if "prompt" in accepted and accepted["prompt"].annotation in (str, "str") and len(texts) == 1:
        values["prompt"] = texts[0]
    required = {
        "prompts": list(texts),
        "layout_prompt": [None] * len(texts),
        "task_prompt": [None] * len(texts),
        "content_prompt": list(texts),
        "batch_size": len(texts),
        "mode": "generate",
        "grid_h": 1,
        "grid_w": 1,
        "enable_edit_guidance": False,
        "dtype": getattr(pipe, "dtype", None),
    }
    for name, value in required.items():
        if name in accepted and accepted[name].default is accepted[name].empty:
            values[name] = value
    return {name: values[name] for name in accepted if name in values}


def _concatenate(
    calls: Sequence[dict[str, Tensor]], encoder: str, pipeline: str
) -> dict[str, Tensor]:
    """The inputs of all calls of an encoder, one row per prompt."""
    if not calls:
        raise UnknownFamilyError(
            f"{pipeline}.encode_prompt never calls {encoder}; see docs/families.md"
        )
    rows = []
    for call in calls:
        used = {k: v for k, v in call.items() if k not in IGNORED or v.any()}
        if "position_ids" in used:
            rows += _without_padding(used, encoder, pipeline)
            continue
        if odd := sorted(set(used) - {"input_ids", "attention_mask"}):
            raise UnknownFamilyError(
                f"{pipeline}.encode_prompt hands {', '.join(odd)} to {encoder}, which is not known "
                "here"
            )
        rows.append(used)
    lengths = {row["input_ids"].shape[1] for row in rows}
    if len(lengths) > 1:
        rows = [_fill_row(row, max(lengths)) for row in rows]
    joined = {}
    for key in rows[0]:
        joined[key] = torch.cat([row[key] for row in rows])
    return joined


def _without_padding(
    call: Mapping[str, Tensor], encoder: str, pipeline: str
) -> list[dict[str, Tensor]]:
    """The rows of a call whose positions count its tokens alone: those tokens, as if there were no
    padding among them.

    Raises:
        UnknownFamilyError: The positions are others.
    """
    ids = call["input_ids"]
    mask = call.get("attention_mask", torch.ones_like(ids)).bool()
    counted = (mask.long().cumsum(1) - 1).clamp(min=0)
    positions = call["position_ids"].reshape(-1, *ids.shape)
    if not all(torch.equal(axis[mask], counted[mask]) for axis in positions):
        raise UnknownFamilyError(
            f"{pipeline}.encode_prompt hands position_ids to {encoder} that do not count its "
            "tokens, which is not known here"
        )
    return [{"input_ids": row[seen][None]} for row, seen in zip(ids, mask, strict=True)]


def _fill_row(row: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Inputs of `length` positions; the mask hides those that are added behind."""
    ids = row["input_ids"]
    missing = (0, length - ids.shape[1])
    mask = row.get("attention_mask", torch.ones_like(ids))
    return {
        "input_ids": nn.functional.pad(ids, missing),
        "attention_mask": nn.functional.pad(mask, missing),
    }


def no_offsets(tokenizer: Any) -> str:
    """That a tokenizer does not say where in a text its tokens are, and which one would."""
    return (
        f"{type(tokenizer).__name__} is written in Python and does not say where in a prompt its "
        "tokens are; load the tokenizer with transformers.AutoTokenizer.from_pretrained, which "
        "takes one of the tokenizers library where the model has its file (tokenizer.json)"
    )


def special_ids_of(tokenizer: Any) -> frozenset[int]:
    """Tokens that a tokenizer puts around texts, or pads them with."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
    return frozenset(tokenizer.all_special_ids)


@contextmanager
def recording_texts(tokenizer: Any, *, strict: bool = True) -> Iterator[TokenizedTexts]:
    """Inside, every text that the tokenizer tokenizes is noted under the row it makes.

    The tokenizer's class is swapped, as a call looks for its methods there, not at the instance.
    What it swaps is what `__call__`, `encode` and `tokenize` all end in.
    With `strict`, a tokenizer that gives no offsets is an error; otherwise nothing is noted of it.

    Raises:
        UnknownFamilyError: It gives no offsets.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # below a processor
    rows: TokenizedTexts = defaultdict(list)
    stock = type(tokenizer)

    def tokenize_and_note(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        found = stock._encode_plus(self, text, *args, **kwargs)
        if found.encodings is None:
            if not strict:
                return found
            raise UnknownFamilyError(no_offsets(self))
        texts = [text] if isinstance(text, str) else text
        if len(texts) == len(found.encodings):  # not so of words that were split before
            for one, encoding in zip(texts, found.encodings, strict=True):
                rows[tuple(encoding.ids)].append((one, encoding))
        return found

    tokenizer.__class__ = type(stock.__name__, (stock,), {"_encode_plus": tokenize_and_note})
    try:
        yield rows
    finally:
        tokenizer.__class__ = stock
