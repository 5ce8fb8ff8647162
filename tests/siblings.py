"""A tiny pipeline of every class of diffusers that takes text, of parts that siblings share.

A class gets what its constructor asks for, by the names and annotations there: text encoders and
tokenizers of the annotated classes, the other parts from the family's pipeline in `tiny`, or a
small one of the annotated class. What cannot be made small is left out, and said.
"""

import copy
import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines import ltx2

import tiny
from diffusers_erasepro.families.encode_prompt import text_block_of
from tiny import WIDTH

AUDIO = (
    "AceStepPipeline",
    "AudioLDM2Pipeline",
    "LongCatAudioDiTPipeline",
    "StableAudioPipeline",
    "StableAudio3Pipeline",
    "StableAudio3AudioToAudioPipeline",
    "StableAudio3InpaintPipeline",
)
"""They make no picture."""
PREFIXES = {
    "StableDiffusionXL": "StableDiffusionXLPipeline",
    "LEditsPPPipelineStableDiffusionXL": "StableDiffusionXLPipeline",
    "AnimateDiffSDXL": "StableDiffusionXLPipeline",
    "AnimateDiff": "AnimateDiffPipeline",
    "StableDiffusion3": "StableDiffusion3Pipeline",
    "StableDiffusion": "StableDiffusionPipeline",
    "LEditsPPPipelineStableDiffusion": "StableDiffusionPipeline",
    "LatentConsistency": "StableDiffusionPipeline",
    "StableUnCLIP": "StableDiffusionPipeline",
    "Flux2Klein": "Flux2KleinPipeline",
    "Flux2": "Flux2Pipeline",
    "Flux": "FluxPipeline",
    "VisualCloze": "FluxPipeline",
    "PixArt": "PixArtSigmaPipeline",
    "SanaWM": "SanaPipeline",
    "Sana": "SanaPipeline",
    "Chroma": "ChromaPipeline",
    "AuraFlow": "AuraFlowPipeline",
    "Lumina2": "Lumina2Pipeline",
    "QwenImage": "QwenImagePipeline",
    "ZImage": "ZImagePipeline",
    "HunyuanVideo": "HunyuanVideoPipeline",
    "HunyuanSkyreels": "HunyuanVideoPipeline",
    "Wan": "WanPipeline",
    "SkyReelsV2": "WanPipeline",
    "ChronoEdit": "WanPipeline",
    "AnyFlow": "WanPipeline",
    "LucyEdit": "WanPipeline",
    "Helios": "WanPipeline",
    "Cosmos2_5": "WanPipeline",
    "LTX2": "",
    "LTX": "LTXPipeline",
    "CogVideoX": "CogVideoXPipeline",
    "Mochi": "MochiPipeline",
}
"""The pipeline of `tiny.BUILDERS` whose parts a class takes, by the longest prefix of its name."""


@dataclass
class Sibling:
    """A tiny pipeline, and what it was built without."""

    pipe: Any
    left_out: list[str] = field(default_factory=list)


def text_pipelines() -> dict[str, type]:
    """Every live class of the installed diffusers whose constructor asks for a tokenizer.

    Deprecated ones are left out, and so is what makes no picture.
    """
    found = {}
    for name in sorted(dir(diffusers)):
        one = getattr(diffusers, name, None) if "Pipeline" in name else None
        if not inspect.isclass(one) or not issubclass(one, DiffusionPipeline):
            continue
        if ".deprecated." in one.__module__ or name in AUDIO or "Onnx" in name:
            continue
        asked = inspect.signature(one.__init__).parameters
        if any("tokenizer" in part or "processor" in part for part in asked):
            reads = [part for part in asked if "text" in part or "token" in part]
            if reads or "processor" in asked:
                found[name] = one
    return found


def base_of(name: str) -> str:
    """The tiny pipeline that a class shares its parts with; empty if there is none."""
    fitting = [prefix for prefix in PREFIXES if name.startswith(prefix)]
    return PREFIXES[max(fitting, key=len)] if fitting else ""


@cache
def _made(name: str) -> Any:
    torch.manual_seed(0)
    return tiny.BUILDERS[name]()


def _shared(name: str) -> Any:
    """A copy of the tiny pipeline: an erasure stays on the parts that it edits."""
    return copy.deepcopy(_made(name))


def vision_text(kind: str, config: str, layers: int = 4, **more: Any) -> Any:
    """A language model that also sees: its text part is what counts here."""
    text = tiny._sizes(layers) | {"rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]}}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    }
    made = getattr(transformers, config)(text_config=text, vision_config=vision, **more)
    return tiny._spread(getattr(transformers, kind)(made))


def smol() -> Any:
    """Bria FIBO writes token 128000 for an empty prompt, whatever the tokenizer."""
    sizes = tiny._sizes(4) | {"vocab_size": 128_001}
    config = transformers.SmolLM3Config(**sizes, tie_word_embeddings=True)
    return tiny._spread(transformers.SmolLM3ForCausalLM(config))


def glm() -> Any:
    return tiny.llm("GlmModel", "GlmConfig")


def mistral3_model() -> Any:
    whole = tiny.mistral3()
    return whole.model


def qwen_text() -> Any:
    return tiny.qwen_vl().model.language_model


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    return tiny._spread(transformers.BertModel(config))


def qwen2vl() -> Any:
    text = tiny._sizes(3) | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 1, "hidden_size": WIDTH}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    return tiny._spread(transformers.Qwen2VLForConditionalGeneration(config))


def llava() -> Any:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "model_type": "clip_vision_model",
    }
    text = {"model_type": "llama", **tiny._sizes(5)}
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    return tiny._spread(transformers.LlavaForConditionalGeneration(config))


def t5gemma() -> Any:
    sizes = tiny._sizes(3)
    part = transformers.T5GemmaModuleConfig(**sizes, query_pre_attn_scalar=8)
    config = transformers.T5GemmaConfig(
        encoder=part, decoder=part, vocab_size=tiny.VOCABULARY, is_encoder_decoder=False
    )
    return tiny._spread(transformers.T5GemmaEncoderModel(config)).encoder


def t5gemma2() -> Any:
    text = tiny._sizes(3) | {"query_pre_attn_scalar": 8}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    part = transformers.T5Gemma2EncoderConfig(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    config = transformers.T5Gemma2Config(encoder=part, decoder=text)
    return tiny._spread(transformers.T5Gemma2Model(config)).encoder


def gemma3() -> Any:
    sizes = tiny._sizes(3) | {"query_pre_attn_scalar": 8}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=sizes, vision_config=vision, mm_tokens_per_image=4
    )
    return tiny._spread(transformers.Gemma3ForConditionalGeneration(config))


TEXT_ENCODERS = {
    "CLIPTextModel": tiny.clip,
    "CLIPTextModelWithProjection": lambda: tiny.clip(projection=WIDTH),
    "T5EncoderModel": tiny.t5,
    "UMT5EncoderModel": lambda: tiny.t5(kind="UMT5"),
    "Gemma2PreTrainedModel": lambda: tiny.llm(
        "Gemma2Model", "Gemma2Config", query_pre_attn_scalar=8
    ),
    "GemmaPreTrainedModel": lambda: tiny.llm("GemmaModel", "GemmaConfig"),
    "LlamaModel": lambda: tiny.llm("LlamaModel", "LlamaConfig", 5),
    "LlamaForCausalLM": lambda: tiny.llm("LlamaForCausalLM", "LlamaConfig"),
    "Qwen3Model": lambda: tiny.llm("Qwen3Model", "Qwen3Config"),
    "Qwen3ForCausalLM": lambda: tiny.llm("Qwen3ForCausalLM", "Qwen3Config", 28),
    "Qwen2_5_VLForConditionalGeneration": tiny.qwen_vl,
    "Qwen2_5_VLTextModel": qwen_text,
    "Qwen2VLForConditionalGeneration": qwen2vl,
    "Qwen3VLForConditionalGeneration": lambda: vision_text(
        "Qwen3VLForConditionalGeneration", "Qwen3VLConfig"
    ),
    "Qwen3VLModel": lambda: vision_text("Qwen3VLModel", "Qwen3VLConfig"),
    "Mistral3ForConditionalGeneration": tiny.mistral3,
    "Mistral3Model": mistral3_model,
    "LlavaForConditionalGeneration": llava,
    "SmolLM3ForCausalLM": smol,
    "GlmModel": glm,
    "BertModel": bert,
    "T5GemmaEncoder": t5gemma,
    "T5Gemma2Encoder": t5gemma2,
    "Gemma4UnifiedForConditionalGeneration": gemma3,
    "Gemma3ForConditionalGeneration": gemma3,
}
"""By the class that a constructor names."""
UNNAMED = {
    "ZImage": "Qwen3Model",
    "Ideogram4": "Qwen3VLModel",
    "EasyAnimate": "Qwen2VLForConditionalGeneration",
    "PRXPixel": "Qwen3Model",
    "Krea2": "Qwen3VLModel",
    "Echo": "Gemma3ForConditionalGeneration",
    "LTX2": "Gemma3ForConditionalGeneration",
}
"""Where a constructor names a base class, or another than real checkpoints hold."""


DEEP = {
    "BriaFibo2": 36,
    "NucleusMoE": 10,
    "Krea2Modular": 36,
    "Krea2TurboModular": 36,
    "Flux3": 36,
    "MiniMaxH3": 52,
    "Ideogram4": 36,
}
"""Blocks of a Qwen3-VL, where the pipeline reads inner ones that it counts in a full-size one."""


def long_clip() -> Any:
    """HiDream's CLIPs read 248 tokens."""
    made = tiny.clip(projection=WIDTH)
    config = copy.deepcopy(made.config)
    config.max_position_embeddings = 248
    return tiny._spread(transformers.CLIPTextModelWithProjection(config))


def _text_encoder(pipeline: str, annotation: str) -> Any:
    if pipeline.startswith("HiDream") and "CLIP" in annotation:
        return long_clip()
    for prefix, layers in DEEP.items():
        if pipeline.startswith(prefix):
            return vision_text(UNNAMED.get(prefix, annotation), "Qwen3VLConfig", layers)
    if pipeline.startswith("StableDiffusion3") and annotation == "T5EncoderModel":
        return tiny.t5(2 * WIDTH)  # as wide as both CLIPs side by side
    fitting = [kind for prefix, kind in UNNAMED.items() if pipeline.startswith(prefix)]
    kind = fitting[0] if fitting else annotation
    return TEXT_ENCODERS[kind]()


def _tokenizer(pipeline: str, part: str, annotation: str, encoder: str) -> Any:
    """What makes tokens, as the encoder beside it has them."""
    if annotation == "ByT5Tokenizer":
        return transformers.ByT5Tokenizer(model_max_length=600)
    if annotation.endswith("Processor"):
        return processor("Qwen3VLProcessor" if annotation == "AutoProcessor" else annotation)
    if part == "t5_tokenizer":
        return tiny.t5_tokenizer(600)
    if "CLIP" in encoder:
        return tiny.clip_tokenizer("<eos>" if part == "tokenizer" else "<pad>")
    if "T5" in encoder and "Gemma" not in encoder:
        return tiny.t5_tokenizer(600)
    if "Gemma" in encoder or "Glm" in encoder:
        return tiny.tokenizer("<bos> $A", length=1200)
    return tiny.chat_tokenizer(2000, side="left" if "Mistral3For" in encoder else "right")


class WithoutVideos:
    """A processor that is asked for no video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def processor(kind: str) -> Any:
    """A processor of text and pictures around the tiny tokenizer."""
    made = tiny.chat_tokenizer(2000)
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    made.add_tokens(marks, special_tokens=True)
    pictures = transformers.Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=56 * 56, patch_size=14, merge_size=2
    )
    stock = getattr(transformers, kind)
    cls = type(kind, (WithoutVideos, stock), {"__init__": _init_processor})
    return cls(pictures, made)


def sees(encoder: Any) -> bool:
    return hasattr(encoder.config, "vision_config")


def let_see(encoder: Any, made: Any) -> None:
    """The marks of pictures get rows of their own in the encoder's token embedding."""
    count = len(made.tokenizer)
    if encoder.get_input_embeddings().num_embeddings < count:
        encoder.resize_token_embeddings(count, mean_resizing=False)
    for mark in ("image", "video"):
        setattr(encoder.config, f"{mark}_token_id", getattr(made, f"{mark}_token_id"))


def _init_processor(self: Any, pictures: Any, tokens: Any) -> None:
    for mark in ("image", "video"):
        setattr(self, f"{mark}_token", f"<|{mark}_pad|>")
        number = tokens.convert_tokens_to_ids(f"<|{mark}_pad|>")
        setattr(self, f"{mark}_token_id", number)
    transformers.ProcessorMixin.__init__(self, pictures, tokens, chat_template=tiny.CHAT)


SMALL = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "num_blocks": 1,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "depth": 1,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": WIDTH,
    "caption_channels": WIDTH,
    "joint_attention_dim": WIDTH,
    "cross_attention_dim": WIDTH,
    "text_embed_dim": WIDTH,
    "in_text_dim": WIDTH,
    "in_text_dim2": WIDTH,
    "pooled_projection_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "time_embed_dim": 16,
    "time_dim": 16,
    "model_dim": 24,
    "ff_dim": 32,
    "hidden_size": 24,
    "inner_dim": 24,
    "intermediate_size": 32,
    "sample_size": 8,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "num_frames": 9,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 32,
    "qk_norm": "rms_norm_across_heads",
    "motion_encoder_dim": 16,
    "motion_encoder_size": 8,
    "motion_dim": 8,
    "num_injection_layers": 1,
    "inject_face_latents_blocks": 1,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "adaln_lora_dim": 4,
    "max_size": (8, 8, 8),
    "vace_layers": [0],
    "vace_in_channels": 4,
}
"""Sizes by the name that a model's constructor gives them."""
GIVEN = {"text_encoder_select_layers": (1, 2, 4), "text_encoder_out_layers": ((1,), (2, 4))}
"""What is counted in the layers of a full-size encoder."""
OWN_SIZES = {
    "PRXTransformer2DModel": {
        "context_in_dim": WIDTH,
        "hidden_size": 24,
        "num_heads": 2,
        "axes_dim": [6, 6],
        "mlp_ratio": 1.0,
    },
    "MotifVideoTransformer3DModel": {"rope_axes_dim": (4, 4, 4), "qk_norm": "rms_norm"},
    "SanaVideoTransformer3DModel": {
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
    },
    "LTX2TextConnectors": {
        "caption_channels": WIDTH,
        "text_proj_in_factor": 4,
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": WIDTH // 2,
        "video_connector_num_layers": 1,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": WIDTH // 2,
        "audio_connector_num_layers": 1,
    },
    "SanaWMTransformer3DModel": {"linear_head_dim": 12, "chunk_plucker_channels": 4},
}
"""Sizes of models that `SMALL` does not fit."""
MOST_PARAMETERS = 3_000_000


def _small_model(annotation: str) -> Any:
    """A small model of a diffusers class, if `SMALL` makes one; None otherwise."""
    cls = getattr(diffusers, annotation, getattr(ltx2, annotation, None))
    if not inspect.isclass(cls) or not issubclass(cls, diffusers.ModelMixin):
        return None
    asked = inspect.signature(cls.__init__).parameters
    sizes = {name: value for name, value in SMALL.items() if name in asked}
    sizes |= OWN_SIZES.get(annotation, {})
    if "qk_norm" in sizes and "heads" not in str(asked["qk_norm"].default):
        sizes["qk_norm"] = asked["qk_norm"].default
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in cls(**sizes).parameters())
        return cls(**sizes).eval() if count < MOST_PARAMETERS else None
    except Exception:  # a class whose sizes hang together in ways that SMALL does not know
        return None


def _control(annotation: str, base: Any) -> Any:
    """ControlNets and adapters, made to fit the base's denoiser."""
    if annotation in ("MultiControlNetModel", "ControlNetModel"):
        plain = isinstance(base.unet, diffusers.UNet2DConditionModel)
        unet = base.unet if plain else tiny.unet(WIDTH)
        return diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    if annotation.startswith("T2IAdapter"):
        return diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=8)
    if annotation == "ZImageControlNetModel":
        return diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=4,
            add_control_noise_refiner="control_noise_refiner",
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
    if annotation == "MotionAdapter":
        return tiny.animatediff().motion_adapter
    return None


class Unguarded(torch.nn.Module):
    """In place of Cosmos' safety checker, which is another package."""

    dtype = torch.float32
    device = torch.device("cpu")


def annotated(parameter: inspect.Parameter) -> str:
    """The first class that a constructor's annotation names."""
    text = str(parameter.annotation)
    names = re.findall(r"[A-Za-z_0-9]+", text.replace("<class", "").replace("<enum", ""))
    for name in names:
        if name[0].isupper() and name not in ("Union", "Optional", "List", "None", "Any"):
            return name
    return names[-1] if names else ""


def build(name: str) -> Sibling:
    """The tiny pipeline of a diffusers class; the same weights each time.

    Raises whatever its constructor raises, where it cannot be built from small parts.
    """
    torch.manual_seed(0)
    cls = getattr(diffusers, name)
    base_name = base_of(name)
    base = _shared(base_name) if base_name else None
    own = dict(base.components) if base is not None else {}
    asked = dict(inspect.signature(cls.__init__).parameters)
    asked.pop("self")
    given: dict[str, Any] = {}
    left_out = []
    encoders = {
        part: annotated(parameter)
        for part, parameter in asked.items()
        if re.fullmatch(r"(prior_)?text_encoder(_\d)?", part)
    }
    order = sorted(asked, key=lambda part: part not in encoders)  # tokenizers fit their encoders
    for part in order:
        parameter = asked[part]
        annotation = annotated(parameter)
        default = parameter.default
        if part in GIVEN:
            given[part] = GIVEN[part]
        elif part in encoders:
            kind = type(own.get(part)).__name__
            same = kind == annotation and part in own
            given[part] = own[part] if same else _text_encoder(name, annotation)
        elif re.fullmatch(r"(prior_)?tokenizer(_\d)?|(text_)?processor", part):
            beside = part.replace("tokenizer", "text_encoder")
            beside = beside if beside in given else next(iter(encoders), part)
            encoder = type(given.get(beside)).__name__
            given[part] = _tokenizer(name, part, annotation, encoder)
        elif part == "scheduler":
            given[part] = own.get(part) or tiny.flow()
        elif part == "safety_checker" and annotation.startswith("Cosmos"):
            given[part] = Unguarded()
            left_out.append(part)
        elif part == "vae" and name.startswith(("SanaVideo", "SanaImageToVideo")):
            given[part] = _shared("WanPipeline").vae
        elif type(own.get(part)).__name__ in str(parameter.annotation) or (
            part == "vae" and part in own
        ):
            given[part] = own[part]
        elif (made := _control(annotation, base) or _small_model(annotation)) is not None:
            given[part] = made
        elif default is inspect.Parameter.empty:
            given[part] = False if annotation == "bool" else None
            left_out.append(part)
    for made in list(given.values()):
        if hasattr(made, "image_token_id") and sees(given["text_encoder"]):
            let_see(given["text_encoder"], made)
            if "tokenizer" in given:
                given["tokenizer"] = made.tokenizer
    pipe = cls(**given)
    pipe.set_progress_bar_config(disable=True)
    return Sibling(pipe.to(tiny.DEVICE), left_out)


def anima_conditioner() -> Any:
    """What reads the tokens of T5, in a later block."""
    made = diffusers.AnimaTextConditioner(
        source_dim=WIDTH,
        target_dim=WIDTH,
        model_dim=WIDTH,
        num_layers=2,
        num_attention_heads=2,
        target_vocab_size=tiny.VOCABULARY,
        min_sequence_length=16,
    )
    return tiny._spread(made)


def hunyuan15_net() -> Any:
    """Its text block asks the denoiser for a dtype."""
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
    ).eval()


BESIDE = {
    "AnimaModularPipeline": {"text_conditioner": anima_conditioner},
    "HunyuanVideo15ModularPipeline": {"transformer": hunyuan15_net},
}
"""Parts beyond those that a text block says it needs."""


def modular_pipelines() -> list[str]:
    """Every modular pipeline of the installed diffusers that makes pictures."""
    names = [name for name in sorted(dir(diffusers)) if name.endswith("ModularPipeline")]
    return [
        name for name in names if name not in ("ModularPipeline", "MiniMaxMusic3ModularPipeline")
    ]


def build_modular(name: str) -> Sibling:
    """A modular pipeline with its blocks, and small parts for its text block alone."""
    torch.manual_seed(0)
    pipe = getattr(diffusers, name)()
    block = text_block_of(pipe)
    if block is None:
        return Sibling(pipe)
    given: dict[str, Any] = {}
    left_out = []
    specs = {spec.name: spec.type_hint.__name__ for spec in block.expected_components}
    encoders = [part for part in specs if part.startswith("text_encoder")]
    for part in encoders:
        given[part] = _text_encoder(name, specs[part])
    for part, kind in specs.items():
        if re.fullmatch(r"(t5_|text_)?tokenizer(_\d)?|processor", part):
            beside = part.replace("tokenizer", "text_encoder")
            encoder = given.get(beside, given.get("text_encoder"))
            given[part] = _tokenizer(name, part, kind, type(encoder).__name__)
        elif part not in given and getattr(pipe, part, None) is None:
            if (made := _small_model(kind)) is not None:
                given[part] = made
            else:
                left_out.append(part)
    for made in list(given.values()):
        if hasattr(made, "image_token_id") and sees(given["text_encoder"]):
            let_see(given["text_encoder"], made)
    for part, make in BESIDE.get(name, {}).items():
        given[part] = make()
    pipe.update_components(**given)
    return Sibling(pipe, left_out)
