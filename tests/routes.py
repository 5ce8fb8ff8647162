"""Ways around an erasure that a diffusers user may take: rows of docs/reliability.md's table."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from diffusers_erasepro import (
    Concept,
    ErasureAdapter,
    ErasureLoaderMixin,
    ErasureSpec,
    erasable,
    erase,
)
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.loaders.verification import THRESHOLDS, Verification
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import pairs_of

TARGET = "a star"
ANCHOR = "a circle"
WHERE: dict[str, tuple[int | str, ...]] = {
    "text encoder": (0, -1),
    "K/V": ("kv",),
    "both": (0, "kv"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARE = 0.1
"""Largest share of the target in a drawing that counts as erased.

It is 0.04 with nothing in the way (padding is not aligned), and 1 where nothing is erased.
"""

Draw = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Kit:
    """What the routes need beside a pipeline."""

    folder: Path
    """Holds the LoRA folders "unet", "kv", "text" and "both"."""
    adapter: ErasureAdapter
    """The erasure that the pipeline holds; on the pipeline without it nothing is loaded."""

    def lora(self, name: str) -> Path:
        return self.folder / name


def make_kit(
    shipped: Any, folder: Path, layers: tuple[int | str, ...], preserve: tuple[str, ...]
) -> Kit:
    """Write the style LoRAs and make the erasure."""
    parts = {
        "unet": (["attn1.to_q", "attn1.to_k", "ff.net.2"], []),
        "kv": (["attn2.to_k", "attn2.to_v"], []),
        "text": ([], ["q_proj", "fc1", "fc2"]),
        "both": (["attn2.to_k", "attn2.to_v", "attn1.to_q"], ["v_proj", "fc2"]),
    }
    for name, (denoiser, encoder) in parts.items():
        layers_of = {
            "unet_lora_layers": _lora(shipped.unet, denoiser),
            "text_encoder_lora_layers": _lora(shipped.text_encoder, encoder),
        }
        StableDiffusionPipeline.save_lora_weights(
            folder / name, **{k: v for k, v in layers_of.items() if v}
        )
    spec = ErasureSpec((Concept("star", anchor="circle"),), preserve=preserve)
    made = erase(shipped, spec, layers=layers, alignment="subject_to_eos", measure=False)
    return Kit(folder, made)


def _lora(module: Any, targets: list[str]) -> dict[str, torch.Tensor]:
    if not targets:
        return {}
    torch.manual_seed(0)
    module = copy.deepcopy(module)
    module.add_adapter(
        LoraConfig(r=2, lora_alpha=1, init_lora_weights=False, target_modules=targets)
    )
    return {k: 0.3 * v for k, v in get_peft_model_state_dict(module).items()}


def draw(pipe: Any, prompt: str | None = None, **kwargs: Any) -> torch.Tensor:
    """Latents after two steps, without guidance: what the prompt itself does."""
    noise = torch.Generator().manual_seed(0)
    given = {} if prompt is None else {"prompt": prompt}
    return pipe(
        **given,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=noise,
        output_type="latent",
        **kwargs,
    ).images.float()


# ---------------------------------------------------------------------- the routes


@dataclass(frozen=True)
class Route:
    """One way: what is done to a pipeline, and how it then draws."""

    name: str
    go: Callable[[Any, Kit], tuple[Any, Draw]]
    """`(pipe, kit) -> (pipe to verify, draw)`, of the pipeline with and without the erasure."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Cell ("both, fp32"), place, dtype or "everywhere" -> "listed" or an error's name.

    A cell that is not named holds. "holds or listed" stands where rounding decides.
    """
    note: str = ""
    """Words of the note of `verify_erasure` that lists it, where its number does not."""

    def expects(self, where: str, dtype: str) -> tuple[str, ...]:
        """What may come of it with the erasure at `where`."""
        for cell in (f"{where}, {dtype}", where, dtype, "everywhere"):
            if cell in self.expected:
                return tuple(self.expected[cell].split(" or "))
        return ("holds",)


ROUTES: list[Route] = []


def route(
    name: str, *, expected: Mapping[str, str] | None = None, note: str = "", **kwargs: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a route that draws with `kwargs`.

    The function changes the pipeline, and returns the one to draw with if it is another.
    """

    def add(change: Callable[[Any, Kit], Any]) -> Callable[[Any, Kit], Any]:
        def go(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
            pipe = change(pipe, kit) or pipe
            return pipe, lambda prompt: draw(pipe, prompt, **kwargs)

        ROUTES.append(Route(name, go, expected or {}, note))
        return change

    return add


def style(pipe: Any, kit: Kit, which: str = "both", name: str = "style") -> None:
    pipe.load_lora_weights(kit.lora(which), adapter_name=name)


@route("nothing (control)")
def _(pipe, kit):
    pass


@route("load_lora_weights: style on UNet attention and feed-forward")
def _(pipe, kit):
    style(pipe, kit, "unet")


@route(
    "load_lora_weights: style on attn2.to_k/to_v",
    expected={"K/V": "listed", "both, fp32": "listed"},
)
def _(pipe, kit):
    style(pipe, kit, "kv")


@route(
    "load_lora_weights: style on the text encoder",
    expected={"everywhere": "listed"},
    note="LoRA 'style' is active",
)
def _(pipe, kit):
    style(pipe, kit, "text")


@route(
    "load_lora_weights: style on both",
    expected={"everywhere": "listed"},
    note="LoRA 'style' is active",
)
def _(pipe, kit):
    style(pipe, kit)


def refit(pipe: Any) -> None:
    """Where an erasure is loaded, solve it again."""
    if getattr(pipe, "get_erasure_adapters", dict)():
        pipe.refit_erasure()


@route("load_lora_weights: style on attn2.to_k/to_v, then refit_erasure()")
def _(pipe, kit):
    style(pipe, kit, "kv")
    refit(pipe)


@route("load_lora_weights: style on the text encoder, then refit_erasure()")
def _(pipe, kit):
    style(pipe, kit, "text")
    refit(pipe)


@route(
    "unet.load_lora_adapter: a style by the component's own call",
    expected={"K/V": "listed", "both, fp32": "listed"},
)
def _(pipe, kit):
    state, _ = pipe.lora_state_dict(kit.lora("kv"))
    pipe.unet.load_lora_adapter(state, adapter_name="style", prefix="unet")


@route(
    "unet.enable_adapters(), text_encoder.enable_adapters()",
    expected={"everywhere": "listed"},
    note="LoRA 'style' is active",
)
def _(pipe, kit):
    style(pipe, kit)
    pipe.disable_lora()
    pipe.unet.enable_adapters()
    pipe.text_encoder.enable_adapters()


@route("set_adapters('style')")
def _(pipe, kit):
    style(pipe, kit, "unet")
    pipe.set_adapters("style")


@route("set_adapters('style', .5)")
def _(pipe, kit):
    style(pipe, kit, "unet")
    pipe.set_adapters("style", 0.5)


@route("disable_lora()")
def _(pipe, kit):
    style(pipe, kit)
    pipe.disable_lora()


@route("disable_lora(), enable_lora(), disable_lora()")
def _(pipe, kit):
    style(pipe, kit)
    pipe.disable_lora()
    pipe.enable_lora()
    pipe.disable_lora()


@route("unet.disable_adapters(), text_encoder.disable_adapters()")
def _(pipe, kit):
    style(pipe, kit)
    pipe.unet.disable_adapters()
    pipe.text_encoder.disable_adapters()


@route("unet.set_adapters([...]) to another style")
def _(pipe, kit):
    style(pipe, kit, "kv")
    style(pipe, kit, "unet", "other")
    pipe.unet.set_adapters(["other"])


@route("delete_adapters('style')")
def _(pipe, kit):
    style(pipe, kit)
    pipe.delete_adapters("style")


@route("unet.delete_adapters('style')")
def _(pipe, kit):
    style(pipe, kit, "kv")
    pipe.unet.delete_adapters("style")


@route("unload_lora_weights()")
def _(pipe, kit):
    style(pipe, kit)
    pipe.unload_lora_weights()


@route("unload_lora_weights() with no LoRA loaded")
def _(pipe, kit):
    pipe.unload_lora_weights()


@route("fuse_lora(): style on UNet attention")
def _(pipe, kit):
    style(pipe, kit, "unet")
    pipe.fuse_lora()


@route(
    "fuse_lora(): style on both", expected={"everywhere": "listed"}, note="LoRA 'style' is active"
)
def _(pipe, kit):
    style(pipe, kit)
    pipe.fuse_lora()


@route("fuse_lora(lora_scale=.5)", expected={"K/V": "listed", "both, fp32": "listed"})
def _(pipe, kit):
    style(pipe, kit, "kv")
    pipe.fuse_lora(lora_scale=0.5)


@route("fuse_lora(), unfuse_lora(), unload_lora_weights()")
def _(pipe, kit):
    style(pipe, kit)
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()


@route(
    "fuse_lora(), unload_lora_weights(): the style baked in",
    expected={"K/V": "listed", "both, fp32": "listed"},
)
def _(pipe, kit):
    style(pipe, kit, "kv")
    pipe.fuse_lora()
    pipe.unload_lora_weights()


@route("fuse_lora(), then load_lora_weights of another")
def _(pipe, kit):
    style(pipe, kit, "unet")
    pipe.fuse_lora()
    style(pipe, kit, "unet", "other")


@route("unet.fuse_lora(), unet.unfuse_lora()")
def _(pipe, kit):
    style(pipe, kit, "kv")
    pipe.unet.fuse_lora()
    pipe.unet.unfuse_lora()
    pipe.unload_lora_weights()


@route("load_lora_weights(hotswap=True)")
def _(pipe, kit):
    style(pipe, kit, "unet")
    pipe.load_lora_weights(kit.lora("unet"), adapter_name="style", hotswap=True)


@route("cross_attention_kwargs={'scale': .5}", cross_attention_kwargs={"scale": 0.5})
def _(pipe, kit):
    style(pipe, kit, "unet")


@route(
    "cross_attention_kwargs={'scale': .5}: style on both",
    cross_attention_kwargs={"scale": 0.5},
    expected={
        "text encoder, fp32": "listed",
        "text encoder, bf16": "holds or listed",
        "K/V": "listed",
        "both, fp32": "listed",
        "both, bf16": "holds or listed",
    },
)
def _(pipe, kit):
    style(pipe, kit)


@route("cross_attention_kwargs={'scale': 0} without a LoRA", cross_attention_kwargs={"scale": 0.0})
def _(pipe, kit):
    pass


@route("scale 0 in one call, then a call without")
def _(pipe, kit):
    style(pipe, kit, "unet")
    draw(pipe, TARGET, cross_attention_kwargs={"scale": 0.0})


@route(
    "cross_attention_kwargs={'scale': nan}",
    cross_attention_kwargs={"scale": float("nan")},
    expected={"everywhere": "ConceptSpecError"},
)
def _(pipe, kit):
    style(pipe, kit, "unet")


@route(
    "the erasure's own file by stock load_lora_weights as well", expected={"everywhere": "listed"}
)
def _(pipe, kit):
    pipe.load_lora_weights(
        kit.adapter.save_pretrained(kit.folder / "own").parent, adapter_name="own"
    )


@route("the same erasure under a second name", expected={"everywhere": "AdapterStateError"})
def _(pipe, kit):
    if getattr(pipe, "get_erasure_adapters", dict)():
        pipe.load_erasure_adapter(kit.adapter, adapter_name="twin")


@route("the same file under a second name", expected={"everywhere": "AdapterStateError"})
def _(pipe, kit):
    if getattr(pipe, "get_erasure_adapters", dict)():
        path = kit.adapter.save_pretrained(kit.folder / "again")
        pipe.load_erasure_adapter(
            path.rename(path.with_name("another.safetensors")), adapter_name="twin"
        )


@route("from_pipe: stock text-to-image sibling", expected={"bf16": "listed"})
def _(pipe, kit):
    return StableDiffusionPipeline.from_pipe(pipe)


@route(
    "from_pipe: img2img sibling",
    image=Image.new("RGB", (64, 64), "gray"),
    strength=1.0,
    expected={"bf16": "listed"},
)
def _(pipe, kit):
    return StableDiffusionImg2ImgPipeline.from_pipe(pipe)


@route("from_pipe sibling: load and unload a style there", expected={"bf16": "listed"})
def _(pipe, kit):
    sibling = StableDiffusionPipeline.from_pipe(pipe)
    style(sibling, kit)
    sibling.unload_lora_weights()


@route("StableDiffusionPipeline(**components)")
def _(pipe, kit):
    return StableDiffusionPipeline(**pipe.components)


@route(
    "components with another unet in a new pipeline",
    expected={"K/V": "listed", "both, fp32": "listed"},
)
def _(pipe, kit):
    return StableDiffusionPipeline(**{**pipe.components, "unet": clean(pipe.unet)})


@route(
    "components with another text encoder in a new pipeline",
    expected={"text encoder": "listed", "both": "listed"},
)
def _(pipe, kit):
    return StableDiffusionPipeline(**{**pipe.components, "text_encoder": clean(pipe.text_encoder)})


@route(
    "pipe.unet = another", expected={"K/V": "ErasureInactiveError", "both": "ErasureInactiveError"}
)
def _(pipe, kit):
    pipe.unet = clean(pipe.unet)


@route(
    "pipe.text_encoder = another",
    expected={"text encoder": "ErasureInactiveError", "both": "ErasureInactiveError"},
)
def _(pipe, kit):
    pipe.text_encoder = clean(pipe.text_encoder)


@route(
    "register_modules(unet=another, text_encoder=another)",
    expected={"everywhere": "ErasureInactiveError"},
)
def _(pipe, kit):
    pipe.register_modules(unet=clean(pipe.unet), text_encoder=clean(pipe.text_encoder))


@route("load_state_dict of the base into the components", expected={"everywhere": "listed"})
def _(pipe, kit):
    for module in (pipe.unet, pipe.text_encoder):
        module.load_state_dict(clean(module).state_dict())


@route("load_state_dict of the component's own state")
def _(pipe, kit):
    for module in (pipe.unet, pipe.text_encoder):
        module.load_state_dict(copy.deepcopy(module.state_dict()))


@route(
    "fine-tuned after loading: every weight moved by 1 %",
    expected={
        "text encoder, fp32": "listed",
        "text encoder, bf16": "holds or listed",
        "K/V": "listed",
        "both, fp32": "listed",
        "both, bf16": "holds or listed",
    },
    note="was changed by someone else since the erasure was applied",
)
def _(pipe, kit):
    torch.manual_seed(0)
    for module in (pipe.unet, pipe.text_encoder):
        for value in module.parameters():
            value.data += (
                0.01
                * value.data.float().std(correction=0).to(value.dtype)
                * torch.randn_like(value)
            )


@route("copy.deepcopy(pipe)")
def _(pipe, kit):
    return copy.deepcopy(pipe)


@route("pickle")
def _(pipe, kit):
    return pickle.loads(pickle.dumps(pipe))


@route("save_pretrained, from_pretrained")
def _(pipe, kit):
    pipe.save_pretrained(kit.folder / "saved")
    return _reloaded(kit, pipe)


@route(
    "save_pretrained, from_pretrained, load the erasure again",
    expected={"everywhere": "BaseModelMismatchError"},
)
def _(pipe, kit):
    erased = bool(getattr(pipe, "get_erasure_adapters", dict)())
    pipe.save_pretrained(kit.folder / "saved")
    again = _reloaded(kit, pipe)
    if erased:
        erasable(again).load_erasure_adapter(kit.adapter)
    return again


@route("save_pretrained with a style on both loaded", expected={"everywhere": "AdapterStateError"})
def _(pipe, kit):
    style(pipe, kit)
    if getattr(
        pipe, "get_erasure_adapters", dict
    )():  # stock diffusers writes files here that it cannot load again
        pipe.save_pretrained(kit.folder / "with-style")


@route("save_pretrained after fuse_lora() and unload_lora_weights(): style on UNet attention")
def _(pipe, kit):
    style(pipe, kit, "unet")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(kit.folder / "saved")
    return _reloaded(kit, pipe)


@route("unet.save_pretrained, UNet2DConditionModel.from_pretrained into a new pipeline")
def _(pipe, kit):
    pipe.unet.save_pretrained(kit.folder / "unet-alone")
    unet = type(pipe.unet).from_pretrained(kit.folder / "unet-alone").to(pipe.unet.dtype)
    return StableDiffusionPipeline(**{**pipe.components, "unet": unet})


@route(".to(float16) and back", expected={"fp32": "listed"})
def _(pipe, kit):
    dtype = pipe.unet.dtype
    pipe.to(torch.float16)
    pipe.to(dtype)


@route(".to(bfloat16)")
def _(pipe, kit):
    pipe.to(torch.bfloat16)


@route("fuse_qkv_projections()")
def _(pipe, kit):
    pipe.fuse_qkv_projections(vae=False)


@route("fuse_qkv_projections(), unfuse_qkv_projections()")
def _(pipe, kit):
    pipe.fuse_qkv_projections(vae=False)
    pipe.unfuse_qkv_projections(vae=False)


@route("set_attn_processor")
def _(pipe, kit):
    pipe.unet.set_attn_processor(AttnProcessor())


@route("enable_attention_slicing, enable_freeu, vae.enable_slicing")
def _(pipe, kit):
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()
    pipe.enable_freeu(0.9, 0.9, 1.0, 1.0)


@route("torch.compile of the unet after loading")
def _(pipe, kit):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


@route("unet.compile() after loading, toggled off and on")
def _(pipe, kit):
    pipe.unet.compile(backend="eager")
    if getattr(pipe, "get_erasure_adapters", dict)():
        draw(pipe, TARGET)
        pipe.disable_erasure()
        draw(pipe, TARGET)
        pipe.enable_erasure()


@route("torch.compile of the unet and of the text encoder, then the erasure")
def _(pipe, kit):
    erased = bool(getattr(pipe, "get_erasure_adapters", dict)())
    if erased:
        pipe.unload_erasure_adapters()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.text_encoder.compile(backend="eager")
    draw(pipe, TARGET)
    if erased:
        pipe.load_erasure_adapter(kit.adapter, adapter_name="no-star")


@route("model CPU offload")
def _(pipe, kit):
    pipe.enable_model_cpu_offload(device="cpu")


@route("sequential offload (accelerate.cpu_offload), toggled off and on")
def _(pipe, kit):
    from accelerate import cpu_offload

    for module in (pipe.unet, pipe.text_encoder, pipe.vae):
        cpu_offload(module, torch.device("cpu"))
    if getattr(pipe, "get_erasure_adapters", dict)():
        pipe.disable_erasure()
        pipe.enable_erasure()


@route("group offload, toggled off and on")
def _(pipe, kit):
    for module in (pipe.unet, pipe.vae):
        module.enable_group_offload(
            torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
        )
    if getattr(pipe, "get_erasure_adapters", dict)():
        pipe.disable_erasure()
        pipe.enable_erasure()


@route(
    "layerwise casting of the unet to float8 after loading",
    expected={"K/V": "listed", "both": "listed"},
)
def _(pipe, kit):
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.unet.dtype
    )


@route(
    "layerwise casting to float8, toggled off and on",
    expected={"K/V": "listed", "both, fp32": "listed"},
)
def _(pipe, kit):
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.unet.dtype
    )
    if getattr(pipe, "get_erasure_adapters", dict)():
        pipe.disable_erasure()
        pipe.enable_erasure()


@route("clip_skip=1", clip_skip=1, expected={"everywhere": "AttributeError"})
def _(pipe, kit):
    pass


def _learned(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
    """A textual inversion token near the target, in prompts that are not listed."""
    ids = pipe.tokenizer("star", add_special_tokens=False).input_ids
    torch.manual_seed(0)
    rows = pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.load_textual_inversion(1.5 * rows[0] + 0.02 * torch.randn_like(rows[0]), token="<thing>")
    return pipe, lambda prompt: draw(pipe, prompt.replace("star", "<thing>"))


def _embeds(pipe: Any, prompt: str) -> torch.Tensor:
    return pipe.encode_prompt(prompt, pipe.device, 1, False)[0]


def _given_embeds(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
    """Embeddings made by the pipeline as it is."""
    return pipe, lambda prompt: draw(pipe, prompt_embeds=_embeds(pipe, prompt))


def _foreign_embeds(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
    """Embeddings that were made before the erasure was loaded."""
    elsewhere = StableDiffusionPipeline(
        **{**pipe.components, "text_encoder": clean(pipe.text_encoder)}
    )
    return pipe, lambda prompt: draw(pipe, prompt_embeds=_embeds(elsewhere, prompt))


def _weighted(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
    """Prompt weighting as compel does it: the subject's state times 1.5."""

    def weigh(prompt: str) -> torch.Tensor:
        states = _embeds(pipe, prompt).clone()
        states[:, 2] *= 1.5
        return draw(pipe, prompt_embeds=states)

    return pipe, weigh


def _ip_adapter(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
    """An image prompt beside the text."""
    torch.manual_seed(0)
    cross = pipe.unet.config.cross_attention_dim
    tokens = 4
    state: dict[str, dict[str, torch.Tensor]] = {
        "image_proj": {
            "proj.weight": 0.02 * torch.randn(tokens * cross, 16),
            "proj.bias": torch.zeros(tokens * cross),
            "norm.weight": torch.ones(cross),
            "norm.bias": torch.zeros(cross),
        },
        "ip_adapter": {},
    }
    names = [n for n in pipe.unet.attn_processors if "attn2" in n]
    for i, name in enumerate(names):
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for leaf in ("to_k_ip", "to_v_ip"):
            state["ip_adapter"][f"{2 * i + 1}.{leaf}.weight"] = 0.02 * torch.randn(width, cross)
    pipe.unet._load_ip_adapter_weights([state])
    pipe.unet.to(pipe.unet.dtype)
    image = torch.randn(1, 1, 16, dtype=pipe.unet.dtype)
    return pipe, lambda prompt: draw(pipe, prompt, ip_adapter_image_embeds=[image])


def _controlnet(pipe: Any, kit: Kit) -> tuple[Any, Draw]:
    """A ControlNet made from the erased UNet, so that its K/V carry the edit."""
    control = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(16, 32, 32)
    ).to(pipe.unet.dtype)
    pipe = StableDiffusionControlNetPipeline(**pipe.components, controlnet=control)
    image = Image.new("RGB", (64, 64), "gray")
    return pipe, lambda prompt: draw(pipe, prompt, image=image)


ROUTES += [
    Route(
        "learned token (textual inversion) near the target",
        _learned,
        {"everywhere": "listed"},
        note="learned token",
    ),
    Route("prompt_embeds made by this pipeline", _given_embeds),
    Route(
        "prompt_embeds made before the erasure was loaded",
        _foreign_embeds,
        {"text encoder": "listed", "both": "listed"},
        note="the last call was given prompt_embeds",
    ),
    Route("prompt weighting (subject x 1.5)", _weighted),
    Route("IP-Adapter with an image", _ip_adapter),
    Route("ControlNet from the erased UNet", _controlnet),
]


def clean(module: Any) -> Any:
    """A copy without the erasure: what somebody else's checkpoint would hold."""
    from diffusers_erasepro.patching.weights import original_weights

    bits = original_weights(module)
    copied = copy.deepcopy(module)
    copied.__dict__.pop("_erasepro", None)
    for name, value in bits.items():
        copied.get_submodule(name).weight.data.copy_(value)
    return copied


def _reloaded(kit: Kit, pipe: Any) -> Any:
    found = StableDiffusionPipeline.from_pretrained(kit.folder / "saved", safety_checker=None).to(
        pipe.unet.dtype
    )
    found.set_progress_bar_config(disable=True)
    return found


# ---------------------------------------------------------------------- what comes of them


@dataclass(frozen=True)
class Outcome:
    """What a route did to an erasure."""

    kind: str
    """"holds", "error", "listed", or "SILENT"."""
    residual: float
    """Worst over the denoiser's K/V.

    Target against anchor on the same route without the erasure.
    """
    share: float
    """|erased target - anchor| / |target - anchor|; the latter two without the erasure."""
    why: str
    """The error, or what `verify_erasure` says."""
    verified: Verification | None

    @property
    def result(self) -> str:
        """Its kind, or the name of the error."""
        if self.kind != "error":
            return self.kind
        return self.why.removeprefix("diffusers' own ").partition(":")[0]


def walk_route(route: Route, kit: Kit, shipped: Any, dtype: torch.dtype) -> Outcome:
    """Take the route with and without the erasure, and compare what the two draw."""
    plain = copy.deepcopy(shipped).to(dtype)
    plain.set_progress_bar_config(disable=True)
    erased = erasable(copy.deepcopy(plain))
    erased.load_erasure_adapter(kit.adapter, adapter_name="no-star")
    try:
        pipe, drawn = route.go(erased, kit)
        picture = drawn(TARGET)
    except ErasureError as error:
        return Outcome("error", 0.0, 0.0, f"{type(error).__name__}: {error}", None)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        _fails_without_us(route, kit, plain, type(error))
        return Outcome("error", 0.0, 0.0, f"diffusers' own {type(error).__name__}: {error}", None)
    other, drawn_plain = route.go(plain, kit)
    target = drawn_plain(TARGET)
    anchor = drawn_plain(ANCHOR)
    share = float((picture - anchor).norm() / (target - anchor).norm())
    residual = _residual(kit, (pipe, drawn), (other, drawn_plain))
    verified = (pipe if isinstance(pipe, ErasureLoaderMixin) else erasable(pipe)).verify_erasure()
    if residual <= THRESHOLDS[pipe.unet.dtype] and share <= SHARE:
        return Outcome("holds", residual, share, "", verified)
    if not verified.ok:
        broken = verified.residual > 1e9
        why = verified.uncovered[0] if broken else f"verify: {verified.residual:.1e}"
        return Outcome("listed", residual, share, why, verified)
    for note in verified.uncovered:
        if route.note and route.note in note:
            return Outcome("listed", residual, share, note, verified)
    return Outcome("SILENT", residual, share, "", verified)


def _fails_without_us(route: Route, kit: Kit, plain: Any, error: type[Exception]) -> None:
    try:
        route.go(plain, kit)[1](TARGET)
    except error:
        return
    raise AssertionError(f"{route.name} raises {error.__name__} only on an erased pipeline")


def _residual(kit: Kit, erased: tuple[Any, Draw], plain: tuple[Any, Draw]) -> float:
    """Worst relative difference of the K/V that reach attention, at the aligned positions."""
    exact = pairs_of(kit.adapter.spec.concepts, "exact")
    rows = rows_of(
        [pair for pair in exact if pair.target.text == TARGET],
        erased[0].tokenizer,
        ALIGNMENTS[kit.adapter.options.alignment],
    )
    have = _keys(*erased, TARGET)
    want = _keys(*plain, ANCHOR)
    each = [
        (h[rows.target_at] - w[rows.anchor_at]).norm(dim=-1) / w[rows.anchor_at].norm(dim=-1)
        for h, w in zip(have, want, strict=True)
    ]
    return float(torch.stack([e.max() for e in each]).max())


@torch.compiler.set_stance("force_eager")
def _keys(pipe: Any, drawn: Draw, prompt: str) -> list[torch.Tensor]:
    """`(length, d)` outputs of each K/V linear that is called in the first step."""
    with _recorded(pipe.unet) as seen:
        drawn(prompt)
    return [seen[name][0].double() for name in sorted(seen)]


@contextmanager
def _recorded(unet: Any) -> Iterator[dict[str, torch.Tensor]]:
    seen: dict[str, torch.Tensor] = {}
    handles = []
    try:
        for name, module in getattr(unet, "_orig_mod", unet).named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v", "attn2.to_kv")):
                keep = lambda _, __, out, name=name: seen.setdefault(name, out.detach())  # noqa: E731
                handles.append(module.register_forward_hook(keep))
        yield seen
    finally:
        for handle in handles:
            handle.remove()
