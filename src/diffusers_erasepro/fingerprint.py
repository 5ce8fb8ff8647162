"""Which weights an adapter was made for: a short hash per component and dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAMPLES = 256
"""Values looked at per parameter; a fine-tune changes all of them, and hashing every weight would cost seconds."""


def base_parameters(root: nn.Module, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by stock name: PEFT's additions left out, edited weights replaced by `originals`."""
    found = {}
    for name, value in root.named_parameters():
        if "lora_" not in name:
            plain = name.replace(".base_layer", "").removeprefix("text_model.")
            found[plain] = originals.get(plain.removesuffix(".weight"), value)
    return found


def fingerprint(root: nn.Module, dtype: torch.dtype, originals: Mapping[str, Tensor]) -> str:
    """Sha256 over names, shapes and an even sample of every parameter, rounded to `dtype`."""
    digest = hashlib.sha256()
    for name, value in sorted(base_parameters(root, originals).items()):
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)].to(dtype).float()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def fingerprints(root: nn.Module, originals: Mapping[str, Tensor]) -> dict[str, str]:
    """One fingerprint per dtype the weights may be loaded in; narrower than the live one cannot be undone."""
    live = next(root.parameters()).dtype
    wider = {name: dtype for name, dtype in DTYPES.items() if live == torch.float32 or dtype == live}
    return {name: fingerprint(root, dtype, originals) for name, dtype in wider.items()}
