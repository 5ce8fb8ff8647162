"""Load the pipeline that a command names: the glyph world, a folder, a single file or a Hub id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from .. import glyphs, pictures
from ..adapters.hub import is_beside_folders, is_local, suggest_path, translate_hub_errors
from ..adapters.model_card import GLYPHS
from ..config.kinds import Kind
from ..config.spec import DEFAULT_KIND
from ..errors import (
    AdapterFormatError,
    ErasureError,
    EvaluationError,
    HubError,
    HubNotFoundError,
    UnsafeFileError,
)
from ..evaluation.calls import is_out_of_memory
from ..evaluation.detectors import Detector, find_detector
from ..loaders.mixin import erasable
from ..modules.widening import quiet_casts, to_float32


@dataclass(frozen=True)
class WorldModel:
    """An embedded world as a model that a command names."""

    load: Callable[[], Any]
    detector: Callable[[], Detector]
    """Its judge, who knows nothing else."""
    steps: int
    guidance: float
    size: tuple[int, int] | None = None
    """Pixels, where the pipeline's own default is another."""


BROKEN_FOLDER = (ValueError, KeyError, TypeError, AttributeError)
"""What diffusers raises where a folder lacks parts of a pipeline."""
WORLD_MODELS = {
    GLYPHS: WorldModel(glyphs.load_pipeline, partial(find_detector, "glyphs"), 15, 3.0),
    "pictures": WorldModel(
        partial(pictures.load_pipeline, "unet"), partial(find_detector, "pictures"), 20, 4.0
    ),
    "pictures-dit": WorldModel(
        partial(pictures.load_pipeline, "dit"),
        partial(find_detector, "pictures"),
        20,
        4.0,
        (64, 64),
    ),
}
"""Name -> world, with the steps and the guidance that it was made for."""


def load_model(name: str, *, config: str | None = None, revision: str | None = None) -> Any:
    """A pipeline in float32 with the erasure methods.

    Args:
        name: A world ("glyphs", "pictures", "pictures-dit"), a folder in diffusers'
            layout, a `.safetensors` checkpoint, or a Hub id.
        config: For a single file: folder or Hub id of the same model in diffusers' layout; None
            asks diffusers.
        revision: For a Hub id: branch, tag or commit.

    Raises:
        UnsafeFileError: A single file that is not safetensors.
        AdapterFormatError: A single file that cannot be read, or is not the model that `config`
            describes.
        HubNotFoundError: No such file, folder or repository.
        HubError: The Hub did not give it.
        UnknownFamilyError: The pipeline has no record.
    """
    if name in WORLD_MODELS:
        return erasable(WORLD_MODELS[name].load())
    path = Path(name)
    if path.is_file():
        return _ready(_single_file(path, config))
    mistyped = is_local(name) or (revision is None and is_beside_folders(path))
    if not path.is_dir() and mistyped:
        raise HubNotFoundError(
            f"no model {name!r}{suggest_path(path)}; give {', '.join(map(repr, WORLD_MODELS))}, a "
            "folder, a .safetensors checkpoint or a Hub id 'owner/name' (with revision=, where a "
            "folder here is called like its owner)"
        )
    if path.is_dir() and not (path / diffusers.DiffusionPipeline.config_name).is_file():
        raise HubNotFoundError(
            f"{name} holds no {diffusers.DiffusionPipeline.config_name}; "
            "give a folder in diffusers' layout"
        )
    try:
        with translate_hub_errors(name), quiet_casts():
            loaded = diffusers.DiffusionPipeline.from_pretrained(name, revision=revision)
            return _ready(loaded)
    except ErasureError:
        raise
    except BROKEN_FOLDER as error:
        raise AdapterFormatError(
            f"{name} is no pipeline that diffusers {diffusers.__version__} loads whole: {error}"
        ) from error


def default_captions(name: str) -> tuple[str, ...] | None:
    """Preserve captions for a model without a spec.

    Of the glyph world its own; None, which means the shipped ones, for others.
    """
    return tuple(glyphs.captions(400, seed=0)) if name == GLYPHS else None


def default_templates(name: str, target: str) -> str | Kind:
    """What is said around a target of a model where nobody says which kind it is.

    Of the glyph world its own phrases; of others, those for objects.
    """
    if name != GLYPHS:
        return DEFAULT_KIND
    if target in glyphs.STYLES:
        return glyphs.templates("style")
    return glyphs.templates("attribute" if target in glyphs.ATTRIBUTE_WORDS else "shape")


def default_prompts(name: str, target: str) -> tuple[str, ...]:
    """Prompts to try an erasure with: some that name the target, and one that does not."""
    if name == GLYPHS:
        return ("a red star on snow", "a green ring on snow", "a blue square on sand, by Mira Voss")
    named = f"a photo of {target}" if target else "a photo of ..."
    return (named, "a street market in the rain", "a portrait of an old fisherman")


def place_pipeline(
    pipe: Any, device: str | None = None, dtype: str = "float32", *, offload: bool = False
) -> Any:
    """The pipeline where it shall run; erasures are loaded afterwards.

    Args:
        pipe: In float32.
        device: As torch names it; None takes a GPU if there is one.
        dtype: "float32", "float16" or "bfloat16".
        offload: Keep only the part that runs on the GPU.

    Raises:
        EvaluationError: There is no such device, or nothing to offload from.
    """
    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if offload and found == "cpu":
        raise EvaluationError("there is no GPU to keep parts away from; leave offload out")
    try:
        if dtype != "float32":
            pipe.to(getattr(torch, dtype))
        if offload:
            pipe.enable_model_cpu_offload(device=found)
        else:
            pipe.to(found)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise EvaluationError(
                f"{found} has no room for this {type(pipe).__name__} in {dtype}; try --dtype "
                "float16 or bfloat16, or --offload"
            ) from error
        raise EvaluationError(f"torch cannot run on {found!r} here: {error}") from error
    return pipe


def _ready(pipe: Any) -> Any:
    return erasable(to_float32(pipe))  # an erasure made in float32 also fits narrower dtypes


def _single_file(path: Path, config: str | None) -> Any:
    if path.suffix != ".safetensors":
        raise UnsafeFileError(
            f"{path} is not a safetensors file; pickles are never loaded, convert it first"
        )
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        with safe_open(path, framework="pt"):
            pass
        with translate_hub_errors(f"the configuration of {path.name}"):
            config = config or _stock_config(path)
            stock = diffusers.DiffusionPipeline.load_config(config)["_class_name"]
            return getattr(diffusers, stock).from_single_file(path, config=config)
    except SafetensorError as error:
        raise AdapterFormatError(f"{path} is not a readable safetensors file: {error}") from error
    except HubError as error:
        raise type(error)(
            f"{error}; or give a folder of the same model in diffusers' layout: --config FOLDER"
        ) from error
    except (SingleFileComponentError, KeyError, RuntimeError, ValueError) as error:
        raise AdapterFormatError(
            f"{path} is not the model that {config} describes; "
            f"--config names one that fits: {error}"
        ) from error


def _stock_config(path: Path) -> str:
    """The Hub id of the stock model with the same layout, by diffusers' own table."""
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    return fetch_diffusers_config(load_single_file_checkpoint(path))[
        "pretrained_model_name_or_path"
    ]
