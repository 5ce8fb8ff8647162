"""Three small text encoders of the classes that pipelines use, distilled from all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = ("clip", "t5", "qwen3")
FOLDER = Path(__file__).parent


def load_encoder(kind: str, folder: Path = FOLDER) -> tuple[Any, Any]:
    """An encoder in float32 and its tokenizer.

    Its weights are kept in eight bits, with one scale a row; what comes back are those values
    exactly, and they are what was measured.

    Args:
        kind: `clip` (`CLIPTextModel`), `t5` (`T5EncoderModel`) or `qwen3` (`Qwen3Model`).
        folder: Where `kind` is kept.

    Raises:
        ValueError: There is no such encoder.
    """
    import transformers
    from safetensors.torch import load_file

    if kind not in KINDS:
        raise ValueError(f"there is no encoder {kind!r}; there are {', '.join(KINDS)}")
    files = folder / kind
    config = transformers.AutoConfig.from_pretrained(files)
    (name,) = config.architectures
    model = getattr(transformers, name)(config).float().eval()
    kept = load_file(files / "rounded.safetensors")
    weights = {}
    for key, value in kept.items():
        if f"{key}.scale" in kept:
            weights[key] = value.float() * kept[f"{key}.scale"].float()
        elif not key.endswith(".scale"):
            weights[key] = value.float()
    lacking = model.load_state_dict(weights, strict=False)
    tied = {"encoder.embed_tokens.weight"}  # T5's second name for the token embedding
    if set(lacking.missing_keys) - tied or lacking.unexpected_keys:
        raise ValueError(f"{files} does not fit {name}: {lacking}")
    return model, transformers.AutoTokenizer.from_pretrained(files)
