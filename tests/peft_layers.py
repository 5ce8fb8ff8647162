"""Every kind of layer that PEFT can put on a linear, with weights that do something."""

import warnings
from contextlib import suppress

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer

SIZES = {
    "ADALORA": {"init_r": 2, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": []},
    "LILY": {"r": 2},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "RANDLORA": {"r": 2},
    "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "topk": 2},
    "VERA": {"r": 2},
    "WAVEFT": {"n_frequency": 20},
    "LN_TUNING": {"target_modules": ["layer_norm1", "layer_norm2"]},
    "TRAINABLE_TOKENS": {"target_modules": ["token_embedding"], "token_indices": [*range(7, 700)]},
}
"""PEFT type -> arguments of its config, where the defaults do not fit a tiny model."""
VARIANTS = {
    "DORA": ("LORA", {"use_dora": True}),
    "RSLORA": ("LORA", {"use_rslora": True}),
    "IA3 of the inputs": ("IA3", {"feedforward_modules": None}),
    "LOKR decomposed": ("LOKR", {"decompose_both": True}),
}
"""Names of our own for what a flag changes."""
KINDS = sorted({t.value for t in PEFT_TYPE_TO_TUNER_MAPPING} | {*VARIANTS})


def put(kind, model, targets, *, name="style", size=0.3, seed=0, **more):
    """Hang the layers of a kind into a model; the model itself comes back.

    Args:
        kind: Of `KINDS`.
        model: A text encoder or a denoiser.
        targets: The names of the linears.
        name: The adapter's.
        size: What the adapter's weights are moved by.
        seed: Of that.
        more: Arguments of the config.

    Raises:
        Exception: Whatever PEFT has to say of a kind that this model cannot have.
    """
    type_, given = VARIANTS.get(kind, (kind, {}))
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(type_)]
    arguments = {"target_modules": list(targets), **SIZES.get(type_, {}), **given, **more}
    if arguments.get("feedforward_modules", ()) is None:
        arguments["feedforward_modules"] = list(targets)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config(**arguments), adapter_name=name).base_model.model
    with torch.no_grad():
        for layer in [m for m in model.modules() if isinstance(m, BaseTunerLayer)]:
            for path, value in layer.named_parameters():
                if "base_layer" not in path and value.is_floating_point():
                    value.add_(size * torch.randn(value.shape).to(value))
    for layer in model.modules():
        with suppress(AttributeError):
            layer.requires_grad_(False)
    return model.eval()
