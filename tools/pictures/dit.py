"""The flow-matching transformer of the pictures world: AuraFlow's MMDiT, 11.6 M parameters.

    python tools/pictures/dit.py FOLDER --seconds 6000

Resumes from FOLDER/dit.pt; more seconds than it has run train it on.
"""

from __future__ import annotations

import torch
from diffusers import AuraFlowTransformer2DModel
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn
from training import Batch, Scenes, Training, arguments


def dit() -> AuraFlowTransformer2DModel:
    """Sixteen tokens of 2 x 2 latents; two joint blocks, then five on text and picture alike."""
    model = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_mmdit_layers=2,
        num_single_dit_layers=5,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=384,
        caption_projection_dim=256,
        pos_embed_max_size=16,
    )
    # every block begins as the identity, so that early steps are stable (adaLN-zero)
    for module in model.modules():
        if isinstance(module, AdaLayerNormZero):
            nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(model.proj_out.weight)
    return model


def flow_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the flow `noise - x` at `(1 - s) x + s noise`.

    States of padding are zero, as AuraFlow's pipeline gives them.
    """
    x = batch.latents
    noise = torch.randn_like(x)
    s = torch.randn(len(x)).sigmoid()
    at = s[:, None, None, None]
    states = batch.states * batch.masks[:, :, None]
    flow = model((1 - at) * x + at * noise, states, s, return_dict=False)[0]
    return (flow - (noise - x)).square().mean()


def main() -> None:
    args = arguments(__doc__, rate=6e-4)
    torch.manual_seed(args.seed)
    training = Training(dit(), args.folder / "dit.pt", args)
    training.run(Scenes(args.folder / "latents.pt"), flow_loss, args)


if __name__ == "__main__":
    main()
