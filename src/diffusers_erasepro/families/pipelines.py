"""One record per text-encoder family and per pipeline family; nothing else knows their module names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..errors import AdapterStateError, ConceptSpecError, UnknownFamilyError
from ..modules.linear import resident
from .encode_prompt import arguments

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
        return replace(self, through=Norm(resident(module, "weight").detach(), module.eps))

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


T = TypeVar("T", EncoderFamily, PipelineFamily)

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA = (*ATTENTION, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

ENCODERS: list[EncoderFamily] = [
    EncoderFamily(
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        blocks=("encoder.layers", "text_model.encoder.layers"),
        writer="mlp.fc2",
        linears=(*ATTENTION, "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
        detector="mlp.fc1",
        activation="mlp.activation_fn",
        trees=True,
        padding_row="self_attn.out_proj",
        file_blocks="text_model.encoder.layers",
    ),
    EncoderFamily(
        classes=("T5EncoderModel", "UMT5EncoderModel"),
        blocks=("encoder.block",),
        writer="layer.1.DenseReluDense.wo",
        linears=(
            *(f"layer.0.SelfAttention.{x}" for x in "qkvo"),
            *(f"layer.1.DenseReluDense.{x}" for x in ("wi", "wi_0", "wi_1", "wo")),
        ),
        causal=False,
    ),
    EncoderFamily(
        classes=(
            "LlamaModel",
            "Qwen2Model",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen3Model",
            "Qwen3ForCausalLM",
            "MistralModel",
            "Mistral3ForConditionalGeneration",
        ),
        blocks=("layers", "model.layers", "model.language_model.layers"),
        writer="mlp.down_proj",
        linears=LLAMA,
    ),
    EncoderFamily(
        classes=("Gemma2Model", "Gemma2ForCausalLM"),
        blocks=("layers", "model.layers"),
        writer=None,
        linears=LLAMA,
    ),
]

LAST, NEXT_TO_LAST = Reading("last_hidden_state"), Reading("hidden_states", -2)
POOLER, PROJECTED = Reading("pooler_output"), Reading("text_embeds")
CLIP_UNET = r"\.attn2\.to_[kv]$"
SPATIAL_UNET = (
    r"\.attentions\..+" + CLIP_UNET
)  # the attn2 of motion modules attends to frames, not to text
CONTEXT = r"^context_embedder$"
CAPTION = r"^caption_projection\.linear_1$"


def _one(*readings: Reading) -> tuple[Use, ...]:
    return (Use("text_encoder", "tokenizer", readings),)


PIPELINES: list[PipelineFamily] = [
    PipelineFamily(
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
        ),
        encoders=_one(LAST),
        denoiser="unet",
        readers=CLIP_UNET,
        stock=("unet", "text_encoder"),
    ),
    PipelineFamily(
        pipelines=("AnimateDiffPipeline",),
        encoders=_one(LAST),
        denoiser="unet",
        readers=SPATIAL_UNET,
        stock=("unet", "text_encoder"),
        frames=8,
    ),
    PipelineFamily(
        pipelines=(
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
        ),
        encoders=(
            Use("text_encoder", "tokenizer", (NEXT_TO_LAST,)),
            Use("text_encoder_2", "tokenizer_2", (NEXT_TO_LAST, PROJECTED)),
        ),
        denoiser="unet",
        stock=("unet", "text_encoder", "text_encoder_2"),
    ),
    PipelineFamily(
        pipelines=(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
        ),
        encoders=(
            Use("text_encoder", "tokenizer", (NEXT_TO_LAST, PROJECTED)),
            Use("text_encoder_2", "tokenizer_2", (NEXT_TO_LAST, PROJECTED)),
            Use("text_encoder_3", "tokenizer_3", (LAST,)),
        ),
        denoiser="transformer",
        stock=("transformer", "text_encoder", "text_encoder_2"),
    ),
    PipelineFamily(
        pipelines=(
            "FluxPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxFillPipeline",
            "FluxKontextPipeline",
            "FluxKontextInpaintPipeline",
            "FluxControlPipeline",
            "FluxControlNetPipeline",
        ),
        encoders=(
            Use("text_encoder", "tokenizer", (POOLER,)),
            Use("text_encoder_2", "tokenizer_2", (LAST,)),
        ),
        denoiser="transformer",
        readers=CONTEXT,
        stock=("transformer", "text_encoder"),
    ),
    PipelineFamily(
        pipelines=("Flux2Pipeline",),
        encoders=_one(*(Reading("hidden_states", i) for i in (10, 20, 30))),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
        encoders=_one(*(Reading("hidden_states", i) for i in (9, 18, 27))),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "SanaPipeline",
            "SanaSprintPipeline",
        ),  # a ControlNet would read the prompt beside the denoiser
        encoders=_one(LAST),
        denoiser="transformer",
        readers=CAPTION,
        stock=("transformer",),
    ),
    PipelineFamily(  # Gemma-2 as Sana, and a norm in between
        pipelines=("Lumina2Pipeline",),
        encoders=_one(replace(NEXT_TO_LAST, norm="time_caption_embed.caption_embedder.0")),
        denoiser="transformer",
        readers=r"^time_caption_embed\.caption_embedder\.1$",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        encoders=_one(LAST),
        denoiser="transformer",
        readers=CAPTION,
    ),
    PipelineFamily(
        pipelines=(
            "AuraFlowPipeline",
            "ChromaPipeline",
            "ChromaImg2ImgPipeline",
            "ChromaInpaintPipeline",
        ),
        encoders=_one(LAST),
        denoiser="transformer",
        readers=CONTEXT,
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImageControlNetPipeline",
        ),
        encoders=_one(Reading("hidden_states", -1)),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "ZImagePipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageControlNetPipeline",
        ),
        encoders=_one(NEXT_TO_LAST),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("HunyuanVideoPipeline", "HunyuanVideoFramepackPipeline"),
        encoders=(
            Use("text_encoder", "tokenizer", (Reading("hidden_states", -3),)),
            Use("text_encoder_2", "tokenizer_2", (POOLER,)),
        ),
        denoiser="transformer",
        readers=r"^context_embedder\.(proj_in|time_text_embed\.text_embedder\.linear_1)$",
        stock=("transformer",),
    ),
    PipelineFamily(  # Wan 2.2 has two denoisers
        pipelines=(
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVideoToVideoPipeline",
            "WanVACEPipeline",
        ),
        encoders=_one(LAST),
        denoiser="transformer",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("MochiPipeline",),
        encoders=_one(LAST),
        denoiser="transformer",
        readers=r"^time_embed\.(caption_proj|pooler\.to_(kv|q))$",
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        encoders=_one(LAST),
        denoiser="transformer",
        readers=CAPTION,
        stock=("transformer",),
    ),
    PipelineFamily(
        pipelines=(
            "CogVideoXPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXVideoToVideoPipeline",
        ),
        encoders=_one(LAST),
        denoiser="transformer",
        readers=r"^patch_embed\.text_proj$",
        stock=("transformer",),
    ),
]
"""Linears that text and image tokens share (Flux single blocks, CogVideoX, Z-Image) match no `readers`: an edit of
them would touch image tokens. There the encoders carry the erasure."""


def register(*records: EncoderFamily | PipelineFamily) -> None:
    """Make records known, before the shipped ones; `docs/families.md` shows how to write one."""
    for record in records:
        table: list[Any] = PIPELINES if isinstance(record, PipelineFamily) else ENCODERS
        table.insert(0, record)


class Proposal(NamedTuple):
    """Records for a pipeline that has none, made by looking; read them before you `register` them."""

    pipeline: PipelineFamily
    encoders: tuple[EncoderFamily, ...]


@torch.no_grad()
def probe(pipe: Any) -> Proposal:
    """Propose records for `pipe`: its encoders' blocks and writers by shape, and what `encode_prompt` returns of them.

    Readers and the reach of the stock loader cannot be seen from outside; they are left empty.
    """
    names = [
        n
        for n, m in pipe.components.items()
        if n.startswith("text_encoder") and isinstance(m, nn.Module)
    ]
    heard: dict[str, Any] = {}

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"output_hidden_states": True}

    handles = [getattr(pipe, n).register_forward_pre_hook(ask, with_kwargs=True) for n in names]
    handles += [
        getattr(pipe, n).register_forward_hook(lambda _, __, out, n=n: heard.__setitem__(n, out))
        for n in names
    ]
    try:
        found = pipe.encode_prompt(**arguments(pipe, ["a star"], False))
    finally:
        for handle in handles:
            handle.remove()
    returned = [x[0] for x in found if x is not None and len(x)]
    uses = [
        Use(n, n.replace("text_encoder", "tokenizer"), _readings(heard[n], returned))
        for n in names
        if n in heard
    ]
    denoiser = next((n for n in ("transformer", "unet") if n in pipe.components), "")
    encoders = tuple(_proposed(getattr(pipe, use.encoder)) for use in uses)
    return Proposal(PipelineFamily((type(pipe).__name__,), tuple(uses), denoiser), encoders)


def _readings(output: Any, returned: Sequence[Tensor]) -> tuple[Reading, ...]:
    """Which fields of an encoder's output are among the tensors returned, looked for by one row of each."""
    count = len(output.hidden_states) - 1
    inner = [Reading("hidden_states", i - count - 1) for i in range(1, count + 1)]
    closing = [LAST] if "last_hidden_state" in output else inner[-1:]
    wanted = [*inner[:-1], *closing, *(Reading(name) for name in POOLED if name in output)]
    return tuple(
        r
        for r in wanted
        if any(x.ndim == 2 - r.pooled and _holds(x, r.of(output)[0]) for x in returned)
    )


def _holds(returned: Tensor, states: Tensor) -> bool:
    """Whether a row of `returned` begins or ends with, or stacks, some row of `states` that is not padding: any will do."""
    width = states.shape[-1]
    if not returned.is_floating_point() or returned.shape[-1] < width:
        return False
    rows = returned.reshape(-1, returned.shape[-1])
    parts = rows.unfold(
        1, width, width if rows.shape[1] % width == 0 else rows.shape[1] - width
    ).reshape(-1, width)
    return bool(
        (
            torch.cdist(states.double(), parts.double())
            < 1e-6 * (1 + states.double().norm(dim=1))[:, None]
        ).any()
    )


def _proposed(encoder: nn.Module) -> EncoderFamily:
    lists = {
        n: m
        for n, m in encoder.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) > 1 and "vis" not in n
    }
    path = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    block = lists[path][0]
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    width = next(m for m in encoder.modules() if isinstance(m, nn.Embedding)).embedding_dim
    writers = [
        n for n, m in linears.items() if m.out_features == width and _writes(encoder, block, m)
    ]
    causal = torch.allclose(_stream(encoder, block, 1, 2)[0], _stream(encoder, block, 1, 3)[0])
    return EncoderFamily(
        (type(encoder).__name__,), (path,), writers[-1] if writers else None, tuple(linears), causal
    )


def _stream(encoder: nn.Module, block: nn.Module, *ids: int) -> Tensor:
    """`(n, d)` what a block gives for n token ids; 0 may be padding, which some embed as zeros."""
    seen: list[Tensor] = []
    handle = block.register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    try:
        encoder(torch.tensor([ids], device=next(encoder.parameters()).device))
    finally:
        handle.remove()
    return seen[0][0]


def _writes(encoder: nn.Module, block: nn.Module, linear: nn.Module) -> bool:
    """Whether the linear's output is added to the block's as it is: no norm follows, and nothing else in the block reads it."""
    before = _stream(encoder, block, 1, 2)
    amount = before.abs().max()  # as large as the stream, so that 16 bits see it
    handle = linear.register_forward_hook(lambda _, __, out: out + amount)
    try:
        after = _stream(encoder, block, 1, 2)
    finally:
        handle.remove()
    return bool(((after - before) / amount - 1).abs().max() < 0.05)


def _record(obj: object, table: Sequence[T], names: str, what: str) -> T:
    mro = [c.__name__ for c in type(obj).__mro__]
    for record in table:
        if set(getattr(record, names)) & set(mro):
            return record
    known = ", ".join(n for r in table for n in getattr(r, names))
    raise UnknownFamilyError(
        f"{mro[0]} is not a known {what} (known: {known}); families.probe(pipe) proposes a record, docs/families.md "
        "shows how to add one"
    )


def family_of(pipe: object) -> PipelineFamily:
    """The record of a pipeline, found by its class or a base class."""
    return _record(pipe, PIPELINES, "pipelines", "pipeline family")


def encoder_family_of(encoder: object) -> EncoderFamily:
    """The record of a text encoder."""
    return _record(encoder, ENCODERS, "classes", "text-encoder family")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module below a `torch.compile` wrapper."""
    return getattr(module, "_orig_mod", module)


def base_linear(module: nn.Module) -> nn.Module:
    """The linear below a PEFT wrapper."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module  # type: ignore[operator]


def component(pipe: Any, name: str) -> nn.Module:
    """A component of the pipeline that is really there."""
    module = getattr(pipe, name, None)
    if not isinstance(module, nn.Module):  # a deleted one leaves its config entry
        raise AdapterStateError(
            f"the pipeline's {name} is None; load the pipeline with its {name} to erase there"
        )
    return unwrapped(module)


def blocks_of(encoder: nn.Module) -> nn.ModuleList:
    """The transformer blocks of a text encoder, shallow to deep."""
    return encoder.get_submodule(_blocks_path(encoder))  # type: ignore[return-value]


def closing_blocks(encoder: nn.Module, readings: Sequence[Reading]) -> list[int]:
    """The blocks whose output a denoiser reads; what lies deeper than the last does not count.

    Raises:
        UnknownFamilyError: The encoder has fewer blocks than the pipeline reads.
    """
    count = len(blocks_of(encoder))
    found = sorted({reading.block(count) for reading in readings})
    if not 0 <= found[0] <= found[-1] < count:
        raise UnknownFamilyError(
            f"{type(encoder).__name__} has {count} blocks, too few to read {', '.join(map(str, readings))}"
        )
    return found


def _blocks_path(encoder: nn.Module) -> str:
    names = {name for name, _ in encoder.named_modules()}
    paths = encoder_family_of(encoder).blocks
    for path in paths:
        if path in names:
            return path
    raise UnknownFamilyError(f"{type(encoder).__name__} has no block list at {' or '.join(paths)}")


@dataclass(frozen=True)
class Site:
    """A linear to edit, and the module whose output shall be the anchor's afterwards."""

    linear: str
    closes: str


VARIANTS: dict[str, Callable[[EncoderFamily, str], list[Site]]] = {
    "block": lambda family, block: [Site(f"{block}.{family.writer}", block)],
    "linear": lambda family, block: [
        Site(f"{block}.{name}", f"{block}.{name}") for name in family.linears
    ],
}
"""`block` edits the linear that writes the residual stream last, until the stream itself is the anchor's (our
reading); `linear` edits every linear, until its own output is the anchor's (the paper's formula, read literally)."""


def sites_of(encoder: nn.Module, blocks: Sequence[int], variant: str) -> list[Site]:
    """What is edited in `blocks`, in the order it runs."""
    family, path = encoder_family_of(encoder), _blocks_path(encoder)
    if blocks and family.writer is None:
        raise ConceptSpecError(
            f"layers: in {type(encoder).__name__} a norm follows every linear, so no edit of one reaches an arbitrary state; use "
            "layers='kv', the denoiser's linears that read it"
        )
    names = {name for name, _ in encoder.named_modules()}
    sites = [
        site
        for block in blocks
        for site in VARIANTS[variant](family, f"{path}.{block}")
        if site.linear in names
    ]
    if blocks and not sites:
        raise UnknownFamilyError(
            f"{type(encoder).__name__} has no {family.writer} in its blocks; see docs/families.md"
        )
    return sites


def reader_paths(denoiser: nn.Module, family: PipelineFamily) -> list[str]:
    """Module names of the linears that read the text states, PEFT wrappers looked through."""
    pattern = re.compile(family.readers or r"(?!)")
    return [name for name, _ in denoiser.named_modules() if pattern.search(name)]


def file_name(component_name: str, module_name: str) -> str:
    """Spelling of a module in a file: CLIP blocks always under `text_model.`, which every loader maps."""
    for family in ENCODERS:
        for path in sorted(family.blocks, key=len) if family.file_blocks else ():
            if component_name.startswith("text_encoder") and module_name.startswith(path + "."):
                return f"{component_name}.{family.file_blocks}{module_name[len(path) :]}"
    return f"{component_name}.{module_name}"


def module_name(root: nn.Module, stored: str) -> str | None:
    """The live name of a module written by `file_name`, or None if `root` has no such module."""
    for name in (stored, stored.removeprefix("text_model."), f"text_model.{stored}"):
        with suppress(AttributeError):
            root.get_submodule(name)
            return name
    return None
