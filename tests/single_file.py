"""A pipeline's weights as one checkpoint under the names of the original Stable Diffusion code,
as model sites offer them."""

import re

from safetensors.torch import save_file

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name, per_block):
    """Input and output blocks are counted through; a downsampler counts as one."""
    path, _, end = name.rpartition(".")
    if path in UNET_ENDS:
        return f"{UNET_ENDS[path]}.{end}"
    side, block, kind, i, rest = re.fullmatch(
        r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name
    ).groups()
    first = int(block or 0) * per_block
    i = int(i)
    if kind == "resnets":
        layer, _, end = rest.rpartition(".")
        rest = f"{UNET_RESNET[layer]}.{end}"
    if side == "mid":
        return f"middle_block.{2 * i if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block}.0.op.{end}"
    if kind == "upsamplers":
        return f"output_blocks.{first + per_block - 1}.2.conv.{end}"
    at = f"input_blocks.{first + i + 1}" if side == "down" else f"output_blocks.{first + i}"
    return f"{at}.{0 if kind == 'resnets' else 1}.{rest}"


def vae_name(name, blocks):
    """The decoder's blocks are counted from the other end."""
    name = re.sub(
        r"up_blocks\.(\d+)",
        lambda m: f"up.{blocks - 1 - int(m[1])}",
        name.replace("down_blocks", "down"),
    )
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in (
        ("resnets", "block"),
        ("samplers.0", "sample"),
        ("conv_norm_out", "norm_out"),
        ("conv_sh", "nin_sh"),
    ):
        name = name.replace(ours, theirs)
    return name


def save_single_file(pipe, path):
    """Write the text encoder, UNet and VAE of a Stable Diffusion 1 pipeline."""
    per_block = pipe.unet.config.layers_per_block + 1
    blocks = len(pipe.vae.config.up_block_types)
    text = {k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}
    tensors = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}
    tensors |= {
        f"model.diffusion_model.{unet_name(k, per_block)}": v
        for k, v in pipe.unet.state_dict().items()
    }
    tensors |= {
        f"first_stage_model.{vae_name(k, blocks)}": v for k, v in pipe.vae.state_dict().items()
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
