"""A pipeline's weights in float32."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def quiet_casts() -> Iterator[None]:
    """Inside, diffusers 0.42 warns of no cast of a model that keeps nothing in float32.

    It casts some models itself, the UNet of AnimateDiff say, and its warning then names an empty
    list of modules.
    """
    logger = logging.getLogger("diffusers.models.modeling_utils")
    logger.addFilter(_names_a_module)
    try:
        yield
    finally:
        logger.removeFilter(_names_a_module)


def _names_a_module(record: logging.LogRecord) -> bool:
    return "should be kept in float32: []" not in record.getMessage()
