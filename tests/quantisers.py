"""Quantises linears of a model with the real libraries."""

import torch


def torchao_int8(unet, paths):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(unet, Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in paths)


def bnb(make):
    def quantise(unet, paths):
        for path in paths:
            old = unet.get_submodule(path)
            new = make(old)
            new.load_state_dict(old.state_dict())
            unet.set_submodule(path, new.to("cpu"))

    return quantise


def bnb_nf4(old):
    from bitsandbytes.nn import Linear4bit

    new = Linear4bit(
        old.in_features, old.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32
    )
    # where a processor has products in bfloat16, they leave 1e-4 open and refuse narrow layers
    new.support_avx512bf16_for_cpu = False
    return new


def bnb_int8(old):
    from bitsandbytes.nn import Linear8bitLt

    return Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=False)


def gguf_q8(unet, paths):
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from gguf import GGMLQuantizationType, quants

    for path in paths:
        old = unet.get_submodule(path)
        new = GGUFLinear(old.in_features, old.out_features, bias=False, compute_dtype=torch.float32)
        data = torch.from_numpy(
            quants.quantize(old.weight.detach().numpy(), GGMLQuantizationType.Q8_0)
        )
        new.weight = GGUFParameter(data, quant_type=GGMLQuantizationType.Q8_0)
        unet.set_submodule(path, new)


def float8(unet, paths):
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


WAYS = {
    "torchao": torchao_int8,
    "bitsandbytes 4 bit": bnb(bnb_nf4),
    "bitsandbytes 8 bit": bnb(bnb_int8),
    "GGUF": gguf_q8,
    "8-bit floats": float8,
}
