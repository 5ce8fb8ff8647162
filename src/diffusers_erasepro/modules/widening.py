"""A pipeline's weights in float32."""

from __future__ import annotations

from typing import Any

from torch import nn


def to_float32(pipe: Any) -> Any:
    """The same pipeline, its models in float32; quantised ones stay as they are.

    Model by model: a cast of the whole by `to` makes diffusers 0.42 warn of every model, whether
    anything in it should be kept in float32 or not.
    """
    for module in pipe.components.values():
        if isinstance(module, nn.Module) and not getattr(module, "is_quantized", False):
            module.float()
    return pipe
