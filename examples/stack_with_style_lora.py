"""Two erasures under a style LoRA: any order, and a refit where it changes the text encoder.

python examples/stack_with_style_lora.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusers_erasepro import erasable, glyphs

ADAPTERS = Path(__file__).parent.parent / "adapters" / "glyphs"


def style_lora(pipe: Any, *, seed: int = 0, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """A random LoRA on text encoder and UNet, in place of one that you downloaded."""
    noise = torch.Generator().manual_seed(seed)
    tensors = {}
    parts = (
        ("text_encoder.text_model.", pipe.text_encoder, "q_proj"),
        ("unet.", pipe.unet, "attn1.to_q"),
    )
    for prefix, root, ending in parts:
        for name, module in root.named_modules():
            if name.endswith(ending):
                rows, columns = module.weight.shape
                A = torch.randn(4, columns, generator=noise) / columns**0.5
                B = torch.randn(rows, 4, generator=noise) * scale
                tensors[f"{prefix}{name}.lora_A.weight"] = A
                tensors[f"{prefix}{name}.lora_B.weight"] = B
    return tensors


def main() -> dict[str, float]:
    """Residual by state of the pipeline."""
    pipe = erasable(glyphs.load_pipeline())
    residuals = {}
    for name in ("no-star", "no-mira-voss"):
        pipe.load_erasure_adapter(ADAPTERS / name, adapter_name=name)
    residuals["erased"] = pipe.verify_erasure(raise_on_fail=True).residual
    pipe.load_lora_weights(style_lora(pipe), adapter_name="style")
    residuals["with the LoRA"] = pipe.verify_erasure().residual
    pipe.refit_erasure()
    residuals["solved again"] = pipe.verify_erasure(raise_on_fail=True).residual
    pipe.unload_lora_weights()
    pipe.refit_erasure()
    residuals["LoRA taken off"] = pipe.verify_erasure(raise_on_fail=True).residual
    return residuals


if __name__ == "__main__":
    for state, residual in main().items():
        print(f"{state}: residual {residual:.1e}")
