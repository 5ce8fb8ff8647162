"""Records of text encoders and pipelines: what they say of one, and nothing of any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..errors import UnknownFamilyError
from ..modules.linear import resident_tensor

POOLED = ("pooler_output", "text_embeds")


@dataclass(frozen=True)
class EncoderFamily:
    """A text encoder: where its blocks are and which linear of a block writes the residual stream last."""

    classes: tuple[str, ...]
    blocks: tuple[str, ...]
    """Candidate paths of the block list; transformers 5.6 dropped `text_model.` from CLIPTextModel."""
    writer: str | None
    """Inside a block; None where a norm follows every linear, so that no edit of one reaches an arbitrary state."""
    linears: tuple[str, ...]
    """Every linear inside a block, in the order they run; those a model lacks are passed over."""
    causal: bool = True
    """Whether a token sees only those before it."""
    trees: bool = False
    """Whether prompts may run as trees (`tree`): it is causal, and takes a mask of four dimensions, and positions."""
    detector: str | None = None
    """Inside a block, where the MLP is two linears with an activation between: the first of them."""
    activation: str | None = None
    """And the activation."""
    padding_row: str | None = None
    """An attention linear inside a block: stock loaders refuse CLIP files without any (diffusers 0.42)."""
    file_blocks: str | None = None
    """Path of the block list in files, the spelling every stock loader maps; None keeps the live one."""


class Norm(NamedTuple):
    """A denoiser's RMS norm of the states, before its first linear reads them."""

    weight: Tensor
    """`(d,)`"""
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        return rms_norm(
            states.float(), self.weight.shape, self.weight.float().to(states.device), self.eps
        )


@dataclass(frozen=True)
class Reading:
    """One tensor that a denoiser reads of a text encoder's output."""

    name: str
    """Field of the output: "last_hidden_state", "hidden_states", or a pooled one of `POOLED`."""
    index: int | None = None
    """Which of the hidden states, as the pipeline counts them: 0 are the embeddings, -1 is the last block's."""
    norm: str | None = None
    """Module of the denoiser that norms the states before `readers` read them; None where they read them as they are."""
    through: Norm | None = field(default=None, compare=False, repr=False)
    """That norm, on a pipeline."""

    @property
    def pooled(self) -> bool:
        """One vector per prompt, taken at the end of the prompt."""
        return self.name in POOLED

    @property
    def inner(self) -> bool:
        """A block's own output, which no final norm has seen."""
        return self.index not in (None, -1)

    def on(self, denoiser: Callable[[], nn.Module]) -> Reading:
        """The same, with the norm that stands in `denoiser`."""
        if self.norm is None:
            return self
        module: Any = denoiser().get_submodule(self.norm)
        return replace(self, through=Norm(resident_tensor(module, "weight").detach(), module.eps))

    def of(self, output: Any) -> Tensor:
        """Of the encoder's output: `(n, length, d)`, or `(n, 1, d)` if pooled."""
        found: Any = getattr(output, self.name)
        return found[:, None] if self.pooled else found if self.index is None else found[self.index]

    def everywhere(self, encoder: Any, output: Any) -> Tensor:
        """Of a pooled one, `(n, length, d)`: the vector of a prompt that ends at each position."""
        states: Tensor = output.last_hidden_state
        return encoder.text_projection(states) if self.name == "text_embeds" else states

    def received(self, states: Tensor) -> Tensor:
        """What the denoiser's first linear makes of `states` it reads: themselves, or normed."""
        return states if self.through is None else self.through(states)

    def block(self, count: int) -> int:
        """The last block, of `count`, that it depends on."""
        return (
            count - 1
            if self.index is None
            else self.index - 1
            if self.index > 0
            else count + self.index
        )

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


class Use(NamedTuple):
    """What a pipeline does with one of its text encoders."""

    encoder: str
    tokenizer: str
    readings: tuple[Reading, ...]

    def on(self, denoiser: Callable[[], nn.Module]) -> Use:
        """The same, on a pipeline that has this denoiser."""
        return self._replace(readings=tuple(reading.on(denoiser) for reading in self.readings))


@dataclass(frozen=True)
class PipelineFamily:
    """A pipeline: what it reads of which encoder. How it wraps and pads prompts is recorded from its `encode_prompt`."""

    pipelines: tuple[str, ...]
    encoders: tuple[Use, ...]
    denoiser: str
    readers: str | None = None
    """Pattern of the denoiser's linears that read the text states as the encoder gives them, and nothing else; None
    where there are none, or where they read several encoders at once or image tokens as well."""
    stock: tuple[str, ...] = field(default=())
    """Components that stock `load_lora_weights` really reaches (diffusers 0.42)."""
    frames: int | None = None
    """Frames of the clips that `layers="auto"` looks at, the second axis of a latent after its channels; None for pictures."""

    @property
    def read_whole(self) -> Use | None:
        """The one encoder whose states, position by position, `readers` read."""
        whole = [use for use in self.encoders if any(not r.pooled for r in use.readings)]
        return whole[0] if self.readers and len(whole) == 1 else None


LAST = Reading("last_hidden_state")

T = TypeVar("T", EncoderFamily, PipelineFamily)


def find_record(obj: object, table: Sequence[T], names: str, what: str) -> T:
    mro = [c.__name__ for c in type(obj).__mro__]
    for record in table:
        if set(getattr(record, names)) & set(mro):
            return record
    known = ", ".join(n for r in table for n in getattr(r, names))
    raise UnknownFamilyError(
        f"{mro[0]} is not a known {what} (known: {known}); families.probe.propose_records(pipe) proposes a record, docs/families.md "
        "shows how to add one"
    )
