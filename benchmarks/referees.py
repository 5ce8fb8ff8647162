"""ComfyUI's and sd-scripts' own code as referees of the kohya export: every key mapped, every delta
equal.

    python benchmarks/referees.py --comfyui PATH --sd-scripts PATH

The paths are checkouts of the two repositories; nothing of them is in this one. What their modules
import but the key mapping does not need (image libraries, the other model classes) is replaced by
placeholders.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase, glyphs
from diffusers_erasepro.families.encoders import stored_name
from diffusers_erasepro.interop.lora import to_kohya
from diffusers_erasepro.linalg.low_rank import LowRank

BLOCKS = 12
SD15 = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
"""ComfyUI's description of the Stable Diffusion 1.5 UNet."""


class Anything(ModuleType):
    """A module whose every attribute is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def placeholders(*names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except Exception:
            sys.modules[name] = Anything(name)
            if parent := name.rpartition(".")[0]:
                setattr(sys.modules[parent], name.rpartition(".")[2], sys.modules[name])


def tiny_pipeline(seed: int = 0) -> Any:
    """Random weights in the layout of Stable Diffusion 1.5, narrow; the glyph world's tokenizer."""
    torch.manual_seed(seed)
    world = glyphs.load_pipeline()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(world.tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=BLOCKS,
            num_attention_heads=2,
            bos_token_id=world.tokenizer.bos_token_id,
            eos_token_id=world.tokenizer.eos_token_id,
            max_position_embeddings=world.tokenizer.model_max_length,
        )
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        sample_size=8,
    )
    return StableDiffusionPipeline(
        vae=world.vae,
        text_encoder=text,
        tokenizer=world.tokenizer,
        unet=unet,
        scheduler=world.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def everywhere(pipe: Any) -> ErasureAdapter:
    """Random factors, ranks 1 to 8, at every linear of the text encoder and every K/V reader."""
    made = erase(
        pipe,
        ErasureSpec((Concept("star", "circle"),), preserve=tuple(glyphs.captions(60))),
        max_edit_size=1e6,
    )
    roots = (
        ("text_encoder", pipe.text_encoder, "_proj", ".fc"),
        ("unet", pipe.unet, ".attn2.to_k", ".attn2.to_v"),
    )
    edits = {}
    for part, root, *marks in roots:
        for name, module in root.named_modules():
            if isinstance(module, nn.Linear) and any(mark in name for mark in marks):
                rank, (rows, columns) = 1 + len(edits) % 8, module.weight.shape
                edits[stored_name(part, name)] = LowRank(
                    torch.randn(rows, rank), torch.randn(rank, columns)
                )
    return replace(made, edits=edits)


def two_encoders(adapter: ErasureAdapter) -> ErasureAdapter:
    """The same edits in both text encoders of an SDXL layout, without the UNet."""
    first = {k: v for k, v in adapter.edits.items() if k.startswith("text_encoder.")}
    second = {k.replace("text_encoder.", "text_encoder_2."): v for k, v in first.items()}
    return replace(adapter, edits=first | second)


def worst(found: dict[str, Tensor], adapter: ErasureAdapter) -> float:
    """Largest difference from the adapter's own deltas, over the largest of these."""
    wanted = {k: f.dense().float() for k, f in adapter.edits.items()}
    assert found.keys() >= wanted.keys(), sorted(wanted.keys() - found.keys())[:3]
    return max(float((found[k] - w).abs().max() / w.abs().max()) for k, w in wanted.items())


# ---------------------------------------------------------------------- ComfyUI


def comfyui(path: Path, adapter: ErasureAdapter, clips: dict[str, str]) -> dict[str, Any]:
    """Map with ComfyUI's `model_lora_keys_*` and `load_lora`, apply with its `calculate_weight`.

    Args:
        clips: Our component -> ComfyUI's name of that text encoder.
    """
    sys.path.insert(0, str(path))
    sys.argv = sys.argv[:1]  # its options module reads the command line
    placeholders("comfy.model_base", "einops", "torchsde", "torchvision", "torchaudio")
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.lora as theirs
    import comfy.utils

    linears = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "mlp.fc1",
        "mlp.fc2",
    )
    clip = {}
    for ours, name in clips.items():
        for b, x in product(range(BLOCKS), linears):
            path = f"text_model.encoder.layers.{b}.{x}"
            clip[f"{name}.transformer.{path}.weight"] = f"{ours}.{path}"
    unet = {
        f"diffusion_model.{v}": f"unet.{k.removesuffix('.weight')}"
        for k, v in comfy.utils.unet_to_diffusers(SD15).items()
    }
    keys: dict[str, str] = theirs.model_lora_keys_clip(SimpleNamespace(state_dict=lambda: clip), {})
    diffusion = SimpleNamespace(
        state_dict=lambda: unet, model_config=SimpleNamespace(unet_config=copy.deepcopy(SD15))
    )
    keys = theirs.model_lora_keys_unet(diffusion, keys)

    lora = to_kohya(adapter)
    missing = Counter()
    logging.getLogger().addHandler(missing)
    patches = theirs.load_lora(lora, keys)
    logging.getLogger().removeHandler(missing)
    places = clip | unet
    found = {}
    for key, patch in patches.items():
        factors = adapter.edits.get(places[key])
        if factors is not None:
            zero = torch.zeros(factors.B.shape[0], factors.A.shape[1])
            found[places[key]] = theirs.calculate_weight([(1.0, patch, 1.0, None, None)], zero, key)
    return {
        "keys": len(lora),
        "not mapped": missing.count,
        "layers": len(patches),
        "worst difference": worst(found, adapter),
    }


class Counter(logging.Handler):
    """Counts ComfyUI's "lora key not loaded"."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "not loaded" in record.getMessage()


# ---------------------------------------------------------------------- sd-scripts


def sd_scripts(
    path: Path, adapter: ErasureAdapter, pipe: Any, encoders: tuple[str, ...]
) -> dict[str, Any]:
    """Build the network with sd-scripts' `create_network_from_weights`, merge with its
    `merge_to`."""
    sys.path.insert(0, str(path))
    placeholders("cv2", "torchvision", "einops")
    import networks.lora as theirs

    live = {name: copy.deepcopy(pipe.text_encoder) for name in encoders}
    unet = copy.deepcopy(pipe.unet)
    held = [
        nn.ModuleDict({"text_model": e}) for e in live.values()
    ]  # transformers 5 dropped this level, sd-scripts names it
    before = {**{k: weights(e) for k, e in live.items()}, "unet": weights(unet)}
    lora = to_kohya(adapter)
    network, _ = theirs.create_network_from_weights(
        1.0,
        None,
        None,
        held if len(held) > 1 else held[0],
        unet,
        weights_sd=lora,
        for_inference=True,
    )
    mapped = {x.lora_name for x in network.text_encoder_loras + network.unet_loras}
    network.merge_to(held, unet, lora, torch.float32, "cpu")
    after = {**{k: weights(e) for k, e in live.items()}, "unet": weights(unet)}
    found = {}
    for stored in adapter.edits:
        part, _, module = stored.partition(".")
        name = module.removeprefix("text_model.") if part in encoders else module
        found[stored] = after[part][name] - before[part][name]
    lost = {k.split(".")[0] for k in lora} - mapped
    return {
        "keys": len(lora),
        "not mapped": len(lost),
        "layers": len(mapped),
        "worst difference": worst(found, adapter),
    }


def weights(root: nn.Module) -> dict[str, Tensor]:
    return {
        name: m.weight.detach().clone()
        for name, m in root.named_modules()
        if isinstance(m, nn.Linear)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--sd-scripts", type=Path)
    args = parser.parse_args()
    pipe = tiny_pipeline()
    single = everywhere(pipe)
    double = two_encoders(single)
    print(
        "| referee | layout | keys | not mapped | layers | worst difference "
        "|\n|---|---|---|---|---|---|"
    )
    if args.comfyui:
        show("ComfyUI", "SD 1.5", comfyui(args.comfyui, single, {"text_encoder": "clip_l"}))
        show(
            "ComfyUI",
            "SDXL's two encoders",
            comfyui(args.comfyui, double, {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}),
        )
    if args.sd_scripts:
        show("sd-scripts", "SD 1.5", sd_scripts(args.sd_scripts, single, pipe, ("text_encoder",)))
        show(
            "sd-scripts",
            "SDXL's two encoders",
            sd_scripts(args.sd_scripts, double, pipe, ("text_encoder", "text_encoder_2")),
        )


def show(name: str, layout: str, row: dict[str, Any]) -> None:
    cells = [
        name,
        layout,
        row["keys"],
        row["not mapped"],
        row["layers"],
        f"{row['worst difference']:.1e}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
