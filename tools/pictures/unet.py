"""The U-Net of the pictures world: 19.5 M parameters, v-prediction, on cached latents.

    python tools/pictures/unet.py FOLDER --seconds 6000 [--start unet.safetensors]

Resumes from FOLDER/unet.pt; more seconds than it has run train it on.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from training import Batch, Scenes, Training, arguments

NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}


def unet() -> UNet2DConditionModel:
    """Text states of 384 enter at both resolutions, 8 and 4."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(160, 256),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=32,
        norm_num_groups=32,
    )


NOISIER = 0.4
"""Times are `u ** NOISIER` of a uniform u: seven in ten above 600, where text makes a picture."""


class VelocityLoss:
    """Squared error of the velocity `a noise - b x` at `a x + b noise`; no mask, as in SD."""

    def __init__(self) -> None:
        self.alphas = DDPMScheduler(**NOISE).alphas_cumprod

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch.latents
        t = (1000 * torch.rand(len(x)) ** NOISIER).long().clamp(max=999)
        noise = torch.randn_like(x)
        a = self.alphas[t].sqrt()[:, None, None, None]
        b = (1 - self.alphas[t]).sqrt()[:, None, None, None]
        velocity = model(a * x + b * noise, t, batch.states, return_dict=False)[0]
        return (velocity - (a * noise - b * x)).square().mean()


def main() -> None:
    args = arguments(__doc__, rate=2e-4)
    torch.manual_seed(args.seed)
    training = Training(unet(), args.folder / "unet.pt", args)
    training.run(Scenes(args.folder / "latents.pt"), VelocityLoss(), args)


if __name__ == "__main__":
    main()
