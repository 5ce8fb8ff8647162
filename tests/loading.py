"""Ways of loading a pipeline, and what comes of an erasure there: the cells of docs/loading.md.

A referee of its own says whether an erasure acts: it calls `encode_prompt` and the pipeline, and
compares with a pipeline that was loaded plainly. What the package says of itself counts only where
both agree.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from torch import Tensor, nn

import siblings
import tiny
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase
from diffusers_erasepro.config.options import READERS
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.families.encode_prompt import encode, tensors_in
from diffusers_erasepro.families.pipelines import family_of, reader_paths
from quantisers import bnb, bnb_int8, bnb_nf4, gguf_q8

CPU = torch.device("cpu")
STEPS = 3
CLOSED = 0.1
"""Positions count where the plain pipeline leaves at most this share of the target."""
PLAIN = 0.5
"""And where target and anchor are at least so far apart, of the farthest of those: elsewhere
rounding is as large."""
SLACK = 1e-3
"""Share of the target that may be left beyond what the plain pipeline leaves: a hundred times the
rounding of float32, 1e-5 in the worst cell."""
ROUNDINGS = 3
"""On ways that round or skip: what is compared are two encodings and an edit, and each may be as
far off as an encoding on this way, without an erasure, is from the plain pipeline's."""
LOST = 0.5
"""Where roundings as large as this share of the target are allowed for, nothing is proved. And so
much may be lost of the effect on a picture that even plainly is brought to the anchor's in part."""
EDIT_SIZE = 1e3
"""Random weights of width 32 take larger edits than trained ones, which the limit is made for."""
CALL = {
    "num_inference_steps": STEPS,
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "guidance_scale": 1.0,
    "true_cfg_scale": 1.0,
    "use_resolution_binning": False,
    "output_type": "latent",
}
ARCHITECTURES = {
    "CLIP": "StableDiffusionPipeline",
    "T5": "PixArtAlphaPipeline",
    "UMT5": "AuraFlowPipeline",
    "Qwen2.5-VL": "QwenImagePipeline",
    "Qwen3": "ZImagePipeline",
    "Llama, CLIP": "HunyuanVideoPipeline",
    "Gemma": "Lumina2Pipeline",
    "BERT, T5": "HunyuanDiTPipeline",
    "CLIP, T5": "FluxPipeline",
}
LAYERS: dict[str, tuple[int | str, ...] | None] = {
    "blocks": (0, -1),
    "rows and gates": ("embedding", "gates:0"),
    "K/V": (READERS,),
}
GATED = ("CLIP", "CLIP, T5")
"""Where a second name gets gates. Weights are noise, which tells no name from others: elsewhere
gates leave more than there was, or find no margin, and the rows are alone."""
TARGET = "star"
ANCHOR = "circle"
SECOND = Concept("red cross", "square", ("a {}",), ())
"""Erased beside the target by rows and gates: a name of two tokens, one of which others use."""


# ---------------------------------------------------------------------- the ways


@dataclass(frozen=True)
class Way:
    """One way to load a pipeline, or to make it ready to run."""

    name: str
    go: Callable[[Any, Path], Any]
    """`(pipe, empty folder) -> pipe`: in place, or another."""
    late: bool = False
    """Whether the erasure is loaded first."""
    exact: bool = True
    """Whether inputs, edits and products keep the rounding of float32; weights may be others."""
    encoders: bool = True
    """Whether anything but the denoiser is loaded in another way."""

    @property
    def title(self) -> str:
        """Its row in the table."""
        return f"{self.name}, after the erasure" if self.late else self.name


WAYS: list[Way] = []


def way(name: str, *, late: bool = False, **facts: bool) -> Callable[..., Any]:
    """Add a way; with `late`, also the same after the erasure."""

    def add(go: Callable[[Any, Path], Any]) -> Callable[[Any, Path], Any]:
        WAYS.append(Way(name, go, **facts))
        if late:
            WAYS.append(Way(name, go, late=True, **facts))
        return go

    return add


def denoiser_name(pipe: Any) -> str:
    return "unet" if "unet" in pipe.components else "transformer"


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, denoiser_name(pipe))


def encoders_of(pipe: Any) -> dict[str, Any]:
    return {n: m for n, m in pipe.components.items() if n.startswith("text_encoder") and m}


def replace_parts(pipe: Any, change: Callable[[Any], Any]) -> None:
    """Each encoder and the denoiser by what `change` makes of it."""
    for name in (*encoders_of(pipe), denoiser_name(pipe)):
        setattr(pipe, name, change(getattr(pipe, name)))


def reload(pipe: Any, folder: Path, *, shard: str = "10GB", **options: Any) -> Any:
    """The pipeline saved and loaded again."""
    pipe.save_pretrained(folder / "saved", max_shard_size=shard)
    cls = getattr(diffusers, type(pipe).__name__)
    found = cls.from_pretrained(folder / "saved", **options)
    found.set_progress_bar_config(disable=True)
    return found


@way("as it is built")
def _(pipe, folder):
    return pipe


@way("from_pretrained")
def _(pipe, folder):
    return reload(pipe, folder)


@way("from_pretrained of a sharded checkpoint")
def _(pipe, folder):
    return reload(pipe, folder, shard="40KB")


@way("from_pretrained(torch_dtype=bfloat16)", exact=False)
def _(pipe, folder):
    return reload(pipe, folder, torch_dtype=torch.bfloat16)


@way("from_pretrained(text_encoder=one's own)")
def _(pipe, folder):
    return reload(pipe, folder, text_encoder=pipe.text_encoder)


@way("from_pretrained(vae=None)")
def _(pipe, folder):
    return reload(pipe, folder, vae=None)


@way("from_pretrained without the denoiser")
def _(pipe, folder):
    return reload(pipe, folder, **{denoiser_name(pipe): None})


@way("from_pretrained without the first text encoder")
def _(pipe, folder):
    return reload(pipe, folder, text_encoder=None)


@way("from_pretrained(device_map='cpu')")
def _(pipe, folder):
    return reload(pipe, folder, device_map="cpu")


@way("from_pretrained(device_map='balanced')")
def _(pipe, folder):
    return reload(pipe, folder, device_map="balanced")


@way("device_map of each part (accelerate.dispatch_model)", late=True)
def _(pipe, folder):
    for part in (*encoders_of(pipe).values(), denoiser_of(pipe)):
        accelerate.dispatch_model(part, {"": "cpu"}, force_hooks=True)


@way("device_map with text encoders on disk (accelerate.disk_offload)", late=True)
def _(pipe, folder):
    for name, encoder in encoders_of(pipe).items():
        accelerate.disk_offload(encoder, str(folder / name), execution_device="cpu")


@way(".to(bfloat16)", late=True, exact=False)
def _(pipe, folder):
    return pipe.to(torch.bfloat16)


@way("model offload", late=True)
def _(pipe, folder):
    pipe.enable_model_cpu_offload(device="cpu")


@way("sequential offload (accelerate.cpu_offload)", late=True)
def _(pipe, folder):
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            accelerate.cpu_offload(module, CPU, offload_buffers=True)


def group_offload(pipe: Any, folder: Path, kind: str, **options: Any) -> None:
    pipe.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type=f"{kind}_level", **options
    )


@way("group offload, leaf", late=True)
def _(pipe, folder):
    group_offload(pipe, folder, "leaf")


@way("group offload, block", late=True)
def _(pipe, folder):
    group_offload(pipe, folder, "block", num_blocks_per_group=1)


@way("group offload, leaf, on disk", late=True)
def _(pipe, folder):
    group_offload(pipe, folder, "leaf", offload_to_disk_path=str(folder / "groups"))


@way("group offload, leaf, bfloat16", late=True, exact=False)
def _(pipe, folder):
    group_offload(pipe.to(torch.bfloat16), folder, "leaf")


@way("group offload, block, bfloat16", late=True, exact=False)
def _(pipe, folder):
    group_offload(pipe.to(torch.bfloat16), folder, "block", num_blocks_per_group=1)


FLOAT8 = torch.float8_e4m3fn


@way("layerwise casting of the denoiser to 8-bit floats", late=True, exact=False, encoders=False)
def _(pipe, folder):
    denoiser_of(pipe).enable_layerwise_casting(storage_dtype=FLOAT8, compute_dtype=torch.float32)


@way("layerwise casting of the text encoders to 8-bit floats", late=True, exact=False)
def _(pipe, folder):
    for encoder in encoders_of(pipe).values():
        diffusers.hooks.apply_layerwise_casting(encoder, FLOAT8, torch.float32)


@way("denoiser.compile_repeated_blocks(), eager", late=True, encoders=False)
def _(pipe, folder):
    denoiser_of(pipe).compile_repeated_blocks(backend="eager")


@way("torch.compile of denoiser and text encoders, eager", late=True)
def _(pipe, folder):
    replace_parts(pipe, partial(torch.compile, backend="eager"))


@way("part.compile() of denoiser and text encoders, aot_eager")
def _(pipe, folder):
    for part in (*encoders_of(pipe).values(), denoiser_of(pipe)):
        part.compile(backend="aot_eager")


@way("denoiser.compile_repeated_blocks(), inductor", encoders=False)
def _(pipe, folder):
    denoiser_of(pipe).compile_repeated_blocks()


@way("torch.compile of the text encoders, inductor")
def _(pipe, folder):
    for name, encoder in encoders_of(pipe).items():
        setattr(pipe, name, torch.compile(encoder))


def timestep(pipe: Any) -> Callable[[], Any]:
    return lambda: pipe._current_timestep


CACHES: dict[str, Callable[[Any], Any]] = {
    "FirstBlockCache": lambda pipe: diffusers.FirstBlockCacheConfig(threshold=0.5),
    "PyramidAttentionBroadcast": lambda pipe: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=timestep(pipe),
    ),
    "FasterCache": lambda pipe: diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 990),  # not the first step
        current_timestep_callback=timestep(pipe),
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCHW",
        is_guidance_distilled=True,
    ),
    "MagCache": lambda pipe: diffusers.MagCacheConfig(
        mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS, retention_ratio=0.1, threshold=0.5
    ),
    "TaylorSeer": lambda pipe: diffusers.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32
    ),
    "SeaCache": lambda pipe: diffusers.hooks.SeaCacheConfig(),
    "TextKVCache": lambda pipe: diffusers.hooks.TextKVCacheConfig(),
}


def enable_cache(pipe: Any, folder: Path, config: Callable[[Any], Any]) -> None:
    denoiser_of(pipe).enable_cache(config(pipe))


for cache_name, cache_config in CACHES.items():
    way(f"cache: {cache_name}", late=True, exact=False, encoders=False)(
        partial(enable_cache, config=cache_config)
    )


def linears_of(part: nn.Module, multiple: int = 32) -> list[str]:
    """Paths of linears that every library can pack: no bias, wide enough, not T5's last."""
    return [
        path
        for path, module in part.named_modules()
        if type(module) is nn.Linear
        and not module.in_features % multiple
        and not path.endswith((".wo", "lm_head"))
    ]


def quantise_parts(
    pipe: Any, folder: Path, quantise: Callable[[Any, list[str]], None], encoders: bool = True
) -> None:
    parts = [*encoders_of(pipe).values()] if encoders else []
    for part in (*parts, denoiser_of(pipe)):
        with torch.no_grad():
            quantise(part, linears_of(part))
        part.eval()  # as loaders leave it


def with_bias(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`make`, of linears with a bias too."""

    def made(old: Any) -> Any:
        new = make(old)
        if old.bias is not None:
            new.bias = nn.Parameter(torch.zeros_like(old.bias), requires_grad=False)
        return new

    return made


def torchao_int8(part: Any, paths: list[str]) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(part, Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in paths)


def torchao_dynamic(part: Any, paths: list[str]) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    config = Int8DynamicActivationInt8WeightConfig()
    quantize_(part, config, filter_fn=lambda _, name: name in paths)


def quanto_int8(part: Any, paths: list[str]) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(part, weights=qint8, include=paths)
    freeze(part)


def gguf_with_bias(part: Any, paths: list[str]) -> None:
    biases = {path: part.get_submodule(path).bias for path in paths}
    gguf_q8(part, paths)
    for path, bias in biases.items():
        part.get_submodule(path).bias = bias


def sdnq_int8(part: Any, paths: list[str]) -> None:
    from sdnq import sdnq_post_load_quant

    others = [p for p, m in part.named_modules() if isinstance(m, nn.Linear) and p not in paths]
    sdnq_post_load_quant(
        part, weights_dtype="int8", minimum_allowed_numel=1, modules_to_not_convert=others
    )


QUANTISERS: dict[str, Callable[[Any, list[str]], None]] = {
    "bitsandbytes 4 bit": bnb(with_bias(bnb_nf4)),
    "bitsandbytes 8 bit": bnb(with_bias(bnb_int8)),
    "torchao, 8-bit weights": torchao_int8,
    "torchao, 8-bit weights and inputs": torchao_dynamic,
    "GGUF Q8_0, of the denoiser": gguf_with_bias,
    "quanto, 8-bit weights": quanto_int8,
    "SDNQ, 8-bit weights": sdnq_int8,
}
ROUND_INPUTS = ("bitsandbytes 8 bit", "torchao, 8-bit weights and inputs")
for quantiser_name, quantise in QUANTISERS.items():
    of_encoders = "of the denoiser" not in quantiser_name
    go = partial(quantise_parts, quantise=quantise, encoders=of_encoders)
    way(quantiser_name, exact=quantiser_name not in ROUND_INPUTS, encoders=of_encoders)(go)


@way("torchao, 8-bit weights, then torch.compile, eager")
def _(pipe, folder):
    quantise_parts(pipe, folder, torchao_int8)
    replace_parts(pipe, partial(torch.compile, backend="eager"))


# ---------------------------------------------------------------------- the referee


def hunyuan_dit() -> Any:
    """Its sibling lacks the denoiser."""
    pipe = siblings.build("HunyuanDiTPipeline").pipe
    torch.manual_seed(0)
    net = diffusers.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=tiny.WIDTH,
        cross_attention_dim_t5=tiny.WIDTH,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    )
    vae = diffusers.AutoencoderKL(  # eight times smaller, as the pipeline's rotary grid takes it
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipe.register_modules(transformer=net.eval(), scheduler=tiny.ddim(), vae=vae.eval())
    pipe.vae_scale_factor = 8
    return pipe


def build(architecture: str) -> Any:
    """A tiny pipeline whose encoders are of this architecture; the same weights each time."""
    name = ARCHITECTURES[architecture]
    pipe = hunyuan_dit() if name == "HunyuanDiTPipeline" else tiny.build(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request_of(architecture: str, layers: str) -> tuple[ErasureSpec, tuple[int | str, ...] | None]:
    """What is erased, and in which layers, as `erase` takes both."""
    first = Concept(TARGET, ANCHOR, ("a {}",), ())
    alone = ErasureSpec((first,), preserve=tiny.PRESERVE)
    if layers != "rows and gates":
        return alone, LAYERS[layers]
    if architecture not in GATED:
        return alone, ("embedding",)
    return replace(alone, concepts=(first, SECOND)), LAYERS[layers]


@dataclass(frozen=True)
class Seen:
    """What one prompt becomes on a pipeline."""

    states: list[Tensor]
    """Tensors of `encode_prompt`, `(positions, d)`."""
    readers: list[Tensor]
    """What the denoiser's linears make of the first of them."""
    picture: Tensor | None
    """Latents; None where the pipeline has no denoiser, or nothing was drawn."""

    def same(self, other: Seen) -> bool:
        """Whether every bit is; of pictures where both have one."""
        some = [*self.states, *self.readers]
        others = [*other.states, *other.readers]
        if self.picture is not None and other.picture is not None:
            some.append(self.picture)
            others.append(other.picture)
        return len(some) == len(others) and all(map(torch.equal, some, others))


@torch.no_grad()
def see(pipe: Any, text: str, *, draw: bool = True) -> Seen:
    """Encode a prompt, and draw it."""
    encoded = [x.detach() for x in tensors_in(encode(pipe, [text])) if x.is_floating_point()]
    rows = [x.reshape(-1, x.shape[-1]) for x in encoded]
    states = [x.double().cpu() for x in rows]
    if denoiser_of(pipe) is None:
        return Seen(states, [], None)
    return Seen(states, _read(pipe, rows[0]), _draw(pipe, text) if draw else None)


def _draw(pipe: Any, text: str) -> Tensor:
    known = inspect.signature(pipe.__call__).parameters
    given = {name: value for name, value in CALL.items() if name in known}
    drawn = pipe(text, generator=torch.Generator().manual_seed(0), **given)[0]
    return (drawn if isinstance(drawn, Tensor) else drawn[0]).detach().double().cpu()


def _read(pipe: Any, states: Tensor) -> list[Tensor]:
    """What the linears make of `states` that alone read them."""
    family = family_of(pipe)
    use = family.read_whole
    if use is None:
        return []
    root = getattr(denoiser_of(pipe), "_orig_mod", denoiser_of(pipe))
    norm = next(r.norm for r in use.readings if not r.pooled)
    states = root.get_submodule(norm)(states) if norm else states
    found = []
    for path in reader_paths(root, family):
        reader = root.get_submodule(path)
        if reader.in_features == states.shape[-1]:
            found.append(reader(states).detach().double().cpu())
    return found


def share_left(on: Tensor, target: Tensor, anchor: Tensor) -> Tensor:
    """Per position: how much of the target is left, 0 to 1. Not a number where both are alike."""
    apart = (target - anchor).norm(dim=-1)
    share = (on - anchor).norm(dim=-1) / apart
    share[apart <= 1e-3 * anchor.norm(dim=-1)] = float("nan")
    return share


def compared(seen: Seen, layers: str) -> list[Tensor]:
    """What an erasure acts on, `(positions, d)` each; last the picture, as one position."""
    found = seen.readers if LAYERS[layers] == (READERS,) else seen.states
    return found if seen.picture is None else [*found, seen.picture.reshape(1, -1)]


@dataclass(frozen=True)
class Reference:
    """What an erasure does on the plainly loaded pipeline."""

    closed: list[Tensor]
    """Per tensor of `compared`: the positions where next to nothing of the target is left."""
    left: list[Tensor]
    """And what is, per position."""
    moved: float = 0.0
    """How far the picture goes from the target's, of the way to the anchor's."""
    refusal: str = ""
    """Why there is no erasure of this kind."""


@dataclass(frozen=True)
class Prepared:
    """A pipeline that is loaded in some way, without erasures."""

    pipe: Any
    base: Mapping[str, Seen]
    """What prompts become on it."""
    folder: tempfile.TemporaryDirectory[str]
    """Holds what it keeps on disk."""


@lru_cache(maxsize=1)
def prepare(architecture: str, way: Way) -> Prepared:
    """Load a pipeline. All kinds of edit take turns on it: each leaves it as it was.

    Raises:
        ArithmeticError: What it gives without an erasure is not finite: memory that nothing wrote.
    """
    torch.compiler.reset()
    folder = tempfile.TemporaryDirectory()
    pipe = build(architecture)
    pipe = way.go(pipe, Path(folder.name)) or pipe
    base = {text: see(pipe, f"a {text}") for text in (TARGET, ANCHOR)}
    if not all(x.isfinite().all() for seen in base.values() for x in seen.states):
        raise ArithmeticError("the text states are not finite, without an erasure either")
    return Prepared(pipe, base, folder)


@cache
def plain_base_of(architecture: str) -> Mapping[str, Seen]:
    return prepare(architecture, WAYS[0]).base


def make_adapter(pipe: Any, architecture: str, layers: str) -> ErasureAdapter:
    """The erasure of this kind, made on `pipe`."""
    spec, where = request_of(architecture, layers)
    return erase(pipe, spec, layers=where, measure=False, max_edit_size=EDIT_SIZE)


@cache
def plain_adapter(architecture: str, layers: str) -> ErasureAdapter:
    """Made on the plainly loaded pipeline, for every way that comes after the erasure.

    Raises:
        ErasureError: There is no erasure of this kind.
    """
    return make_adapter(build(architecture), architecture, layers)


@cache
def reference_of(architecture: str, layers: str) -> Reference:
    base = plain_base_of(architecture)
    pipe = erasable(build(architecture))
    try:
        pipe.load_erasure_adapter(plain_adapter(architecture, layers))
    except ErasureError as error:
        return Reference([], [], refusal=f"{type(error).__name__}: {error}")
    on = see(pipe, f"a {TARGET}")
    closed = []
    left = []
    for have, was, goal in zip(*(compared(x, layers) for x in (on, *base.values())), strict=True):
        share = share_left(have, was, goal)
        apart = (was - goal).norm(dim=-1)
        apart[~(share <= CLOSED)] = 0
        closed.append((apart > 0) & (apart >= PLAIN * apart.max()))
        left.append(share)
    assert any(map(torch.any, closed)), f"{architecture}, {layers}: nothing to see of the erasure"
    return Reference(closed, left, moved_in(on, base))


def moved_in(on: Seen, base: Mapping[str, Seen]) -> float:
    """How far the picture is from the target's, of the way from there to the anchor's."""
    have, was, goal = (x.picture for x in (on, base[TARGET], base[ANCHOR]))
    return 0.0 if have is None else float((have - was).norm() / (goal - was).norm())


# ---------------------------------------------------------------------- what comes of it


@dataclass(frozen=True)
class Cell:
    """What came of one erasure on one way."""

    way: str
    architecture: str
    layers: str
    result: str
    """"holds", "refused", "listed", "no such way", "no such edit", "not proved"; or, each a fault,
    "SILENT", "FALSE ALARM", "CRASH", "CHANGED"."""
    why: str = ""
    left: float = float("nan")
    """Largest share of the target that is left beyond what the plain pipeline leaves there."""
    allowed: float = float("nan")
    """Of it, where it is most of what is allowed."""
    proved: int = 0
    """Positions that were compared, the picture being one."""
    residual: float = float("nan")
    """What `verify_erasure` says."""


FAULTS = ("SILENT", "FALSE ALARM", "CRASH", "CHANGED")


def cells() -> Iterator[tuple[str, str, Way]]:
    """Architecture, layers and way of every cell of the table, each architecture's own edit first.

    Rows and gates lie in the encoders as edits of blocks do: where only the denoiser is loaded
    in another way, nothing that they meet is, and they are left out.
    """
    for turn in range(len(LAYERS)):
        for architecture in ARCHITECTURES:
            kinds = ["blocks", "K/V", "rows and gates"]
            if architecture == "Gemma":  # has no place for blocks
                kinds = ["K/V", "blocks", "rows and gates"]
            for way in sorted(WAYS, key=lambda way: "compile" in way.name):  # they take longest
                if way.encoders or kinds[turn] != "rows and gates":
                    yield architecture, kinds[turn], way


def way_named(title: str) -> Way:
    return next(way for way in WAYS if way.title == title)


def try_cell(architecture: str, layers: str, way: Way) -> Cell:
    """Erase, load, draw, verify, switch off and on, unload; all on a pipeline loaded this way."""
    made = partial(Cell, way.title, architecture, layers)
    reference = reference_of(architecture, layers)
    if reference.refusal:
        return made("no such edit", reference.refusal)
    try:
        prepared = prepare(architecture, replace(way, late=False))
    except Exception as error:  # without us: whatever it raises
        return _try_without_base(made, architecture, layers, way, error)
    found = _try(made, architecture, layers, way, prepared, reference)
    if found.result in FAULTS or getattr(prepared.pipe, "get_erasure_adapters", dict)():
        prepare.cache_clear()  # it may not be as it was
    return found


def _try_without_base(
    made: Callable[..., Cell], architecture: str, layers: str, way: Way, error: Exception
) -> Cell:
    """Where the pipeline does not run even without us, `erase` says why it cannot, or works."""
    why = f"{type(error).__name__}: {error}"
    if way.late:
        return made("no such way", why)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pipe = build(architecture)
            pipe = way.go(pipe, Path(folder)) or pipe
        except Exception:
            return made("no such way", why)
        try:
            make_adapter(pipe, architecture, layers)
        except ErasureError as refusal:
            return made("refused", f"erase: {type(refusal).__name__}: {refusal}")
        except Exception as crash:
            return made("CRASH", f"erase: {type(crash).__name__}: {crash}; without us {why}")
    return made("no such way", why)


def _try(
    made: Callable[..., Cell],
    architecture: str,
    layers: str,
    way: Way,
    prepared: Prepared,
    reference: Reference,
) -> Cell:
    base = prepared.base
    text = f"a {TARGET}"
    pipe = erasable(build(architecture) if way.late else prepared.pipe)
    folder = Path(tempfile.mkdtemp(dir=prepared.folder.name))
    step = "erase"
    try:
        adapter = (
            plain_adapter(architecture, layers)
            if way.late
            else make_adapter(pipe, architecture, layers)
        )
        step = "load_erasure_adapter"
        pipe.load_erasure_adapter(adapter)
        if way.late:
            step = "the way itself"
            pipe = erasable(way.go(pipe, folder) or pipe)
        step = "generating"
        on = see(pipe, text)
        step = "verify_erasure"
        verified = pipe.verify_erasure()
        step = "disable_erasure"
        pipe.disable_erasure()
        # where neither the edit nor the way is in the denoiser, the states say what it draws
        draw = LAYERS[layers] == (READERS,) or not way.encoders
        off = see(pipe, text, draw=draw)
        step = "enable_erasure"
        pipe.enable_erasure()
        again = see(pipe, text, draw=draw)
        step = "unload_erasure_adapters"
        pipe.unload_erasure_adapters()
        clean = see(pipe, text, draw=draw)
    except ErasureError as error:
        why = f"{step}: {type(error).__name__}: {error}"
        return made(*_after_refusal(pipe, step, text, base[TARGET], why))
    except Exception as error:
        return made("CRASH", f"{step}: {type(error).__name__}: {error}")
    left, allowed, proved = judge(way, architecture, layers, base, on)
    acts = left <= allowed
    numbers = {"left": left, "allowed": allowed, "proved": proved, "residual": verified.residual}
    if not proved:
        return made("not proved", "roundings are as large as the target", **numbers)
    if acts and not verified.ok:  # weights that are rounded after the edit hold less of it
        alarm = "FALSE ALARM" if way.exact else "listed"
        most = f"at most {verified.threshold:.0e}"
        why = f"verify_erasure: residual {verified.residual:.1e}, {most}; {verified.uncovered[0]}"
        return made(alarm, why, **numbers)
    if not acts:
        why = "; ".join(verified.uncovered[:2])
        return made("SILENT" if verified.ok else "listed", why, **numbers)
    if not off.same(base[TARGET]) or not clean.same(base[TARGET]):
        return made("CHANGED", "off is not the base", **numbers)
    if way.exact and not again.same(on):  # a cast after the edit rounds what it adds, too
        return made("CHANGED", "on again is not what it was", **numbers)
    return made("holds", "", **numbers)


def judge(
    way: Way, architecture: str, layers: str, base: Mapping[str, Seen], on: Seen
) -> tuple[float, float, int]:
    """What is left of the target beyond the plain pipeline's, what of it is allowed, and how many
    positions say so; the position that uses up most of what it is allowed decides.

    The target and the anchor are those of this way, so that other weights do not count; how far the
    anchor is from the plain pipeline's tells how much the way rounds.
    """
    reference = reference_of(architecture, layers)
    seen = (on, base[TARGET], base[ANCHOR], plain_base_of(architecture)[ANCHOR])
    worst = (0.0, SLACK)
    proved = 0
    tensors = [compared(x, layers) for x in seen]
    # without the denoiser there is no picture, and the rest is compared; one of another size is
    # another picture, of which the plain pipeline's closed position says nothing
    if not _same_size(on, plain_base_of(architecture)[ANCHOR]):
        tensors = [parts[: len(reference.closed) - 1] for parts in tensors]
    for closed, plain, *same in zip(reference.closed, reference.left, *tensors, strict=False):
        have, was, goal = (x[closed] for x in same[:3])
        apart = (was - goal).norm(dim=-1)
        beyond = (have - goal).norm(dim=-1) / apart - plain[closed]
        allowed = torch.full_like(beyond, SLACK)
        if not way.exact:
            allowed += ROUNDINGS * (goal - same[3][closed]).norm(dim=-1) / apart
        says = allowed < LOST
        proved += int(says.sum())
        pairs = [*zip(beyond[says].tolist(), allowed[says].tolist(), strict=True)]
        worst = max([worst, *pairs], key=lambda pair: pair[0] / pair[1])
    if _moves_the_picture(way, architecture, reference, base, on):
        proved += 1  # not one position but many weigh in it, in other weights otherwise
        lost = 1 - moved_in(on, base) / reference.moved
        worst = max(worst, (lost, LOST), key=lambda pair: pair[0] / pair[1])
    return *worst, proved


def _same_size(on: Seen, plain: Seen) -> bool:
    if on.picture is None or plain.picture is None:
        return True
    return on.picture.shape == plain.picture.shape


def _moves_the_picture(
    way: Way, architecture: str, reference: Reference, base: Mapping[str, Seen], on: Seen
) -> bool:
    """Whether the plain pipeline's picture goes far enough to the anchor's to be a proof here.

    Not where it is the anchor's, which is compared as one position, nor where the way rounds
    pictures by as much as half of the way that it goes.
    """
    if on.picture is None or reference.moved <= CLOSED:
        return False
    plain = plain_base_of(architecture)[ANCHOR]
    if not _same_size(on, plain):
        return True
    if reference.closed[-1].any():
        return False
    was, goal = (base[text].picture for text in (TARGET, ANCHOR))
    rounding = 0.0 if way.exact else float((goal - plain.picture).norm() / (goal - was).norm())
    return ROUNDINGS * rounding < LOST * reference.moved


def _after_refusal(pipe: Any, step: str, text: str, base: Seen, why: str) -> tuple[str, str]:
    """A refusal must leave what was there."""
    if step not in ("erase", "load_erasure_adapter"):
        return "refused", why
    now = see(pipe, text)
    return ("refused", why) if now.same(base) else ("CHANGED", f"{why}; and something changed")
