"""A tiny pipeline of every family.

The real classes, built from configs, random weights, a tokenizer made on the spot.
"""

import os
from functools import cache

import diffusers
import torch
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from diffusers_erasepro import Concept, glyphs

SPECIAL = ["<pad>", "<bos>", "<unk>", "<eos>", "<|im_start|>", "<|im_end|>", "[IMG]"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH = 32
DEVICE = os.environ.get("ERASEPRO_TEST_DEVICE", "cpu")
"""Where the tests' pipelines live.

`ERASEPRO_TEST_DEVICE=cuda make test` runs the same tests on a GPU, in full float32.
"""
torch.backends.cudnn.allow_tf32 = False
VOCABULARY = 800
PRESERVE = tuple(glyphs.captions(6, seed=0))
STAR = Concept("star", "circle", ("a {}",), ())


@cache
def _trained() -> str:
    """A byte-level BPE of the glyph captions, as JSON.

    It knows HunyuanVideo's template, whose length that pipeline counts on.
    """
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        [*glyphs.captions(200, seed=5), DEFAULT_PROMPT_TEMPLATE["template"]], trainer
    )
    return bpe.to_str()


def tokenizer(
    around: str, *, length: int = 77, pad: str = "<pad>", side: str = "right"
) -> PreTrainedTokenizerFast:
    """`around` says what stands around a prompt, such as "<bos> $A <eos>"."""
    bpe = Tokenizer.from_str(_trained())
    bpe.normalizer = normalizers.NFC()
    special = [(t, bpe.token_to_id(t)) for t in ("<bos>", "<eos>")]
    if around != "$A":
        bpe.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token=pad,
        model_max_length=length,
        padding_side=side,
    )
    made.chat_template = CHAT
    return made


def clip_tokenizer(pad: str = "<eos>"):
    return tokenizer("<bos> $A <eos>", pad=pad)


def save_clip(folder):
    """A whole CLIP, texts and images, with its processor, as transformers saves them."""
    small = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    words = {"vocab_size": VOCABULARY, "eos_token_id": 3, "bos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=small | words,
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    size = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessorPil(size=size, crop_size=size)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(images, clip_tokenizer()).save_pretrained(folder)
    return folder


def t5_tokenizer(length: int = 77):
    return tokenizer("$A <eos>", length=length)


def chat_tokenizer(length: int = 600, side: str = "right"):
    return tokenizer("$A", length=length, side=side)


def clip(width: int = WIDTH, layers: int = 4, projection: int | None = None):
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=projection or width,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    kind = (
        transformers.CLIPTextModel
        if projection is None
        else transformers.CLIPTextModelWithProjection
    )
    return _spread(kind(config))


def t5(width: int = WIDTH, kind: str = "T5", layers: int = 3):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        d_model=width,
        d_ff=2 * width,
        d_kv=8,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=3,
    )
    return _spread(getattr(transformers, f"{kind}EncoderModel")(config))


def llm(kind: str, config: str, layers: int = 4, **more):
    return _spread(
        getattr(transformers, kind)(getattr(transformers, config)(**_sizes(layers), **more))
    )


def _sizes(layers: int) -> dict:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }


def _spread(model):
    """Weights large enough that a token's words matter.

    Initial ones leave the residual stream almost alone.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "shared" not in name:
                weight.copy_(torch.randn(weight.shape) / weight.shape[1] ** 0.5)
    return model.eval()


def qwen_vl():
    text = _sizes(3) | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return _spread(transformers.Qwen2_5_VLForConditionalGeneration(config))


def mistral3():
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", **_sizes(30)},
        vision_config={"model_type": "pixtral", **vision},
        image_token_index=6,
    )
    return _spread(transformers.Mistral3ForConditionalGeneration(config))


def unet(cross: int, **more):
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        out_channels=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=4,
        **{"in_channels": 4} | more,
    ).eval()


def vae(latents: int = 4, **more):
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        in_channels=3,
        out_channels=3,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        **more,
    ).eval()


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler()


def ddim():
    return diffusers.DDIMScheduler()


def stable_diffusion(kind="StableDiffusionPipeline"):
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(WIDTH),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(kind="StableDiffusionXLPipeline"):
    net = unet(
        2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=24 + WIDTH,
    )
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=WIDTH),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer("<pad>"),
        unet=net,
        scheduler=ddim(),
    )


def sd3():
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=net,
        scheduler=flow(),
        vae=vae(shift_factor=0.0),
        text_encoder=clip(projection=WIDTH),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=WIDTH),
        tokenizer_2=clip_tokenizer("<pad>"),
        text_encoder_3=t5(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux(kind="FluxPipeline"):
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return getattr(diffusers, kind)(
        scheduler=flow(),
        vae=vae(shift_factor=0.0),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=net,
    )


def flux2_net(states: int):
    return diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=states * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        timestep_guidance_channels=16,
    )


def flux2_vae():
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def flux2():
    return diffusers.Flux2Pipeline(
        scheduler=flow(),
        vae=flux2_vae(),
        text_encoder=mistral3(),
        tokenizer=chat_tokenizer(side="left"),
        transformer=flux2_net(3),
    )


def flux2_klein():
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(),
        vae=flux2_vae(),
        text_encoder=llm("Qwen3ForCausalLM", "Qwen3Config", 28),
        tokenizer=chat_tokenizer(),
        transformer=flux2_net(3),
    )


def pixart(kind="PixArtAlphaPipeline"):
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        use_additional_conditions=False,
        norm_type="ada_norm_single",
    )
    return getattr(diffusers, kind)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=net,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def sana():
    net = diffusers.SanaTransformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
    )
    coder = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer("<bos> $A", length=1200),
        text_encoder=llm("Gemma2Model", "Gemma2Config", query_pre_attn_scalar=8),
        vae=coder,
        transformer=net,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def lumina2():
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=8,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=WIDTH,
    )
    with torch.no_grad():
        net.time_caption_embed.caption_embedder[0].weight.uniform_(0.5, 1.5)  # a norm that is seen
    return diffusers.Lumina2Pipeline(
        tokenizer=tokenizer("<bos> $A", length=256),
        text_encoder=llm("Gemma2Model", "Gemma2Config", query_pre_attn_scalar=8),
        vae=vae(shift_factor=0.0),
        transformer=net,
        scheduler=flow(),
    )


def allegro():
    """No record knows it, so that there is something to probe."""
    net = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        cross_attention_dim=24,
        sample_height=8,
        sample_width=8,
        sample_frames=4,
        caption_channels=WIDTH,
    )
    coder = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8,) * 4, norm_num_groups=4, layers_per_block=1
    )
    return diffusers.AllegroPipeline(
        tokenizer=t5_tokenizer(600),
        text_encoder=t5(),
        vae=coder,
        transformer=net,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )


def aura_flow():
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(kind="UMT5"),
        vae=vae(),
        transformer=net,
        scheduler=flow(),
    )


def chroma():
    net = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow(),
        vae=vae(shift_factor=0.0),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=net,
    )


def qwen_image():
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    coder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        temperal_downsample=[False, True],
        latents_std=[1.0] * 4,
    )
    return diffusers.QwenImagePipeline(
        scheduler=flow(),
        vae=coder,
        text_encoder=qwen_vl(),
        tokenizer=chat_tokenizer(1200),
        transformer=net,
    )


def z_image():
    net = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        scheduler=flow(),
        vae=vae(shift_factor=0.0),
        text_encoder=llm("Qwen3Model", "Qwen3Config"),
        tokenizer=chat_tokenizer(),
        transformer=net,
    )


def hunyuan_video():
    net = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    coder = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(4, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        mid_block_add_attention=False,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=llm("LlamaModel", "LlamaConfig", 5),
        tokenizer=chat_tokenizer(),
        transformer=net,
        vae=coder,
        scheduler=flow(),
        text_encoder_2=clip(),
        tokenizer_2=clip_tokenizer(),
    )


def wan():
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    coder = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        temperal_downsample=[False, True, True],
        latents_std=[1.0] * 4,
    )
    return diffusers.WanPipeline(
        tokenizer=t5_tokenizer(600),
        text_encoder=t5(kind="UMT5"),
        vae=coder,
        scheduler=flow(),
        transformer=net,
    )


def ltx():
    net = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    coder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return diffusers.LTXPipeline(
        scheduler=flow(), vae=coder, text_encoder=t5(), tokenizer=t5_tokenizer(600), transformer=net
    )


def cogvideox():
    net = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=226,
    )
    coder = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=t5_tokenizer(600),
        text_encoder=t5(),
        vae=coder,
        transformer=net,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def mochi():
    net = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=16,
    )
    coder = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    return diffusers.MochiPipeline(
        scheduler=flow(),
        vae=coder,
        text_encoder=t5(),
        tokenizer=t5_tokenizer(600),
        transformer=net,
        force_zeros_for_empty_prompt=True,
    )


def animatediff():
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    return diffusers.AnimateDiffPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(WIDTH),
        motion_adapter=motion,
        scheduler=ddim(),
    )


BUILDERS = {
    "StableDiffusionPipeline": stable_diffusion,
    "AnimateDiffPipeline": animatediff,
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusion3Pipeline": sd3,
    "FluxPipeline": flux,
    "FluxKontextPipeline": lambda: flux("FluxKontextPipeline"),
    "Flux2Pipeline": flux2,
    "Flux2KleinPipeline": flux2_klein,
    "PixArtAlphaPipeline": pixart,
    "PixArtSigmaPipeline": lambda: pixart("PixArtSigmaPipeline"),
    "SanaPipeline": sana,
    "AuraFlowPipeline": aura_flow,
    "Lumina2Pipeline": lumina2,
    "ChromaPipeline": chroma,
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
    "HunyuanVideoPipeline": hunyuan_video,
    "WanPipeline": wan,
    "LTXPipeline": ltx,
    "CogVideoXPipeline": cogvideox,
    "MochiPipeline": mochi,
}


def build(name: str):
    """The tiny pipeline of a class; the same weights each time."""
    torch.manual_seed(0)
    pipe = BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(DEVICE)
