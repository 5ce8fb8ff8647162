"""Types of the records: a text encoder, a pipeline, and what a denoiser reads of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..errors import UnknownFamilyError
from ..modules.linear import resident_tensor

POOLED = ("pooler_output", "text_embeds")
"""Fields of an encoder's output that hold one vector per prompt."""


@dataclass(frozen=True)
class EncoderFamily:
    """A text encoder: where its blocks are, and which linear of a block writes the stream last."""

    classes: tuple[str, ...]
    """Names of classes; subclasses belong to the family too."""
    blocks: tuple[str, ...]
    """Candidate paths of the block list; transformers 5.6 dropped `text_model.` from
    CLIPTextModel."""
    writer: str | None
    """Inside a block, the linear that writes the residual stream last. None where a norm follows
    every linear, so that no edit of one reaches an arbitrary state."""
    linears: tuple[str, ...]
    """Every linear inside a block, in the order they run; those a model lacks are skipped."""
    causal: bool = True
    """Whether a token sees only those before it."""
    trees: bool = False
    """Whether prompts may run as prefix trees (`prompts.prefix_tree`): the encoder is causal, and
    takes a mask of four dimensions, and position ids."""
    embeddings: tuple[str, ...] = ()
    """Candidate paths of the token embedding."""
    file_embeddings: str | None = None
    """Its path in files, in the spelling that every stock loader maps. None keeps the live one."""
    stream: str | None = None
    """Inside a post-norm block, the norm that receives what its last linear adds to the stream; its
    input, and not the block's output, is what an edit of the linear reaches. None elsewhere."""
    detector: str | None = None
    """Inside a block, the linear of the MLP whose output the activation receives."""
    activation: str | None = None
    """Inside such a block, the activation."""
    factor: str | None = None
    """Inside a block whose MLP is gated: the linear whose output multiplies the activation's. None
    where the MLP is two linears with an activation between."""
    padding_row: str | None = None
    """An attention linear inside a block: stock loaders refuse CLIP files without any
    (diffusers 0.42)."""
    final_norm: tuple[str, ...] = ()
    """Candidate paths of the norm behind the last block, which pipelines with `clip_skip` also
    apply to the states of an earlier one. Empty where none does."""
    rows_only: bool = False
    """Whether its token embedding is all that is run and edited: a model that reads token ids
    beside other states, which `encode_prompt` returns and a later part of the pipeline hands on."""
    file_blocks: str | None = None
    """Path of the block list in files, in the spelling that every stock loader maps. None keeps
    the live one."""


class Norm(NamedTuple):
    """A denoiser's RMS norm of the text states, before its first linear reads them."""

    weight: Tensor
    """`(d,)`"""
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        weight = self.weight.float().to(states.device)
        return rms_norm(states.float(), weight.shape, weight, self.eps)


@dataclass(frozen=True)
class Reading:
    """One tensor that a denoiser reads of a text encoder's output."""

    name: str
    """Field of the output: "last_hidden_state", "hidden_states", or one of `POOLED`."""
    index: int | None = None
    """Which of the hidden states, as the pipeline counts them: 0 are the embeddings, -1 is the
    last block's output."""
    norm: str | None = None
    """Path of the denoiser's norm between the states and the readers; None where there is none."""
    through: Norm | None = field(default=None, compare=False, repr=False)
    """That norm, once the reading belongs to a pipeline (`on`)."""
    skips: bool = field(default=False, compare=False)
    """Whether the pipeline's `clip_skip` moves it to an earlier block."""
    final_norm: bool = False
    """Whether the encoder's own final norm is applied to the states of an inner block."""

    @property
    def pooled(self) -> bool:
        """Whether it is one vector per prompt, taken at the prompt's end."""
        return self.name in POOLED

    @property
    def inner(self) -> bool:
        """Whether it is a block's own output, which no final norm has seen."""
        return self.index not in (None, -1)

    def on(self, denoiser: Callable[[], nn.Module]) -> Reading:
        """The same reading, with the norm that stands in `denoiser`."""
        if self.norm is None:
            return self
        module: Any = denoiser().get_submodule(self.norm)
        weight = resident_tensor(module, "weight").detach()
        return replace(self, through=Norm(weight, module.eps))

    def skipping(self, blocks: int) -> Reading:
        """What is read in its place with `clip_skip=blocks`.

        As diffusers 0.42: of the last hidden state `hidden_states[-(blocks + 1)]` through the final
        norm, of `hidden_states[-2]` `hidden_states[-(blocks + 2)]`; pooled vectors stay.
        """
        if not (self.skips and blocks):
            return self
        if self.index is None:
            return replace(self, name="hidden_states", index=-1 - blocks, final_norm=True)
        return replace(self, index=self.index - blocks)

    def of(self, output: Any) -> Tensor:
        """The tensor in the encoder's output: `(n, length, d)`, or `(n, 1, d)` if pooled."""
        found: Any = getattr(output, self.name)
        if self.pooled:
            return found[:, None]
        return found if self.index is None else found[self.index]

    def everywhere(self, encoder: Any, output: Any) -> Tensor:
        """Of a pooled one, `(n, length, d)`: the vector of a prompt that ends at each position."""
        states: Tensor = output.last_hidden_state
        return encoder.text_projection(states) if self.name == "text_embeds" else states

    def received(self, states: Tensor) -> Tensor:
        """What the denoiser's first linear receives of `states`: themselves, or normed."""
        return states if self.through is None else self.through(states)

    def block(self, count: int) -> int:
        """The last block, of `count`, that the reading depends on."""
        if self.index is None:
            return count - 1
        return self.index - 1 if self.index > 0 else count + self.index

    def __str__(self) -> str:
        plain = self.name if self.index is None else f"{self.name}[{self.index}]"
        return f"final_norm({plain})" if self.final_norm else plain


LAST = Reading("last_hidden_state")
"""The encoder's last states, after its final norm."""


class Use(NamedTuple):
    """What a pipeline reads of one of its text encoders."""

    encoder: str
    """Name of the component."""
    tokenizer: str
    """Name of the component."""
    readings: tuple[Reading, ...]
    alone: bool = False
    """Whether what the encoder receives of a prompt depends on the others of its batch, so that
    prompts are given to the pipeline one at a time."""
    picture: str = ""
    """The argument of `encode_prompt` that takes a picture, where a prompt alone is not enough."""

    def on(self, denoiser: Callable[[], nn.Module]) -> Use:
        """The same use, on a pipeline that has this denoiser."""
        return self._replace(readings=tuple(reading.on(denoiser) for reading in self.readings))

    def skipping(self, blocks: int) -> Use:
        """The same use with `clip_skip=blocks`."""
        return self._replace(readings=tuple(r.skipping(blocks) for r in self.readings))

    @property
    def skips(self) -> bool:
        """Whether the pipeline's `clip_skip` changes what it reads of this encoder."""
        return any(reading.skips for reading in self.readings)

    @property
    def per_position(self) -> bool:
        """Whether any reading has one state per position, and not one vector per prompt."""
        return any(not reading.pooled for reading in self.readings)


@dataclass(frozen=True)
class PipelineFamily:
    """A pipeline: what it reads of which encoder.

    How it wraps, pads and masks prompts is recorded from its `encode_prompt`.
    """

    pipelines: tuple[str, ...]
    """Names of classes; subclasses belong to the family too."""
    encoders: tuple[Use, ...]
    denoiser: str
    """Name of the component; empty where the pipeline has none that is known."""
    readers: str | None = None
    """Pattern of the denoiser's linears that read the text states as the encoder gives them, and
    nothing else. None where there are none, or where they read several encoders at once, or image
    tokens as well."""
    stock: tuple[str, ...] = ()
    """Components that stock `load_lora_weights` really reaches (diffusers 0.42)."""
    frames: int | None = None
    """Frames of the clips that `layers="auto"` looks at, the second axis of a latent after its
    channels; None for images."""
    notes: tuple[str, ...] = ()
    """What of a prompt goes past these encoders; an adapter's report says so, and what lists the
    ways around it."""

    @property
    def read_whole(self) -> Use | None:
        """The one encoder whose states, position by position, `readers` read."""
        whole = [use for use in self.encoders if use.per_position]
        return whole[0] if self.readers and len(whole) == 1 else None

    def reads_whole(self, use: Use) -> bool:
        """Whether `use`, with any `clip_skip`, is that encoder."""
        return self.read_whole is not None and self.read_whole.encoder == use.encoder


@dataclass(frozen=True)
class DenoiserFamily:
    """What cannot be observed of a denoiser: which of its linears read the text states."""

    classes: tuple[str, ...]
    """Names of classes; subclasses belong to the family too."""
    readers: str
    """As `PipelineFamily.readers`."""
    norm: str | None = None
    """As `Reading.norm`."""
    frames: int | None = None
    """As `PipelineFamily.frames`."""


Record = TypeVar("Record", EncoderFamily, PipelineFamily, DenoiserFamily)


def find_record(obj: object, table: Sequence[Record], names: str, what: str) -> Record:
    """The first record of `table` whose class names, in the field `names`, fit `obj` or a base.

    Raises:
        UnknownFamilyError: No record does; the message calls the object a `what`.
    """
    bases = [c.__name__ for c in type(obj).__mro__]
    known: list[str] = []
    for record in table:
        classes = getattr(record, names)
        if set(classes) & set(bases):
            return record
        known.extend(classes)
    raise UnknownFamilyError(
        f"{bases[0]} is not a known {what} (known: {', '.join(known)}); "
        "diffusers_erasepro.families.probe.propose_records(pipe) proposes a record, "
        "docs/families.md shows how to add one"
    )
