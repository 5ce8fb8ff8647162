"""Hooks that diffusers and accelerate hang into a module, which replace its `forward`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from accelerate.hooks import (
    AlignDevicesHook,
    CpuOffload,
    LayerwiseCastingHook,
    SequentialHook,
    UserCpuOffloadHook,
)
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import GroupOffloadingHook, LazyPrefetchGroupOffloadingHook
from diffusers.hooks.layerwise_casting import LayerwiseCastingHook as DiffusersCastingHook
from diffusers.hooks.layerwise_casting import PeftInputAutocastDisableHook
from torch import nn

from ..errors import AdapterStateError

NEUTRAL = (
    AlignDevicesHook,
    CpuOffload,
    LayerwiseCastingHook,
    UserCpuOffloadHook,
    GroupOffloadingHook,
    LazyPrefetchGroupOffloadingHook,
    DiffusersCastingHook,
    PeftInputAutocastDisableHook,
)
"""Hooks that move or cast weights, and leave to the module what it computes."""
KNOWN_HOOKS = (__name__.partition(".")[0], "transformers")
"""Packages whose hooks change nothing of what an encoder computes: ours widen its weights."""


def hooks_of(module: nn.Module) -> Iterator[object]:
    """The hooks of one module, diffusers' and accelerate's."""
    registry = getattr(module, "_diffusers_hook", None)
    yield from [] if registry is None else registry.hooks.values()
    hook = getattr(module, "_hf_hook", None)
    if isinstance(hook, SequentialHook):
        yield from hook.hooks
    elif hook is not None:
        yield hook


def offloaded_values(module: nn.Module) -> Any:
    """Name -> value of the weights that accelerate took from one module; None where it took none.

    The hook that holds them may be one of several: the module that a whole model begins with also
    has one that sends its outputs back.
    """
    maps = (getattr(hook, "weights_map", None) for hook in hooks_of(module))
    return next((values for values in maps if values is not None), None)


def names_of_hooks(root: nn.Module, *, neutral: bool = True) -> list[str]:
    """Class names of all hooks in `root`, or of those alone that may change what is computed."""
    names: set[str] = set()
    for module in root.modules():
        for hook in hooks_of(module):
            if neutral or not isinstance(hook, NEUTRAL):
                names.add(type(hook).__name__)
    return sorted(names)


def has_hooks_of_others(root: nn.Module) -> bool:
    """Whether somebody's hook, torch's own kind too, may change what `root` computes."""
    if names_of_hooks(root, neutral=False):
        return True
    for module in root.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if str(getattr(hook, "__module__", None)).partition(".")[0] not in KNOWN_HOOKS:
                return True
    return False


def refuse_on_disk(root: nn.Module) -> None:
    """No weight of `root` may lie on disk: what stands in its place there is not its value.

    Raises:
        AdapterStateError: diffusers' group offloading has put weights there.
    """
    for path, module in root.named_modules():
        for hook in hooks_of(module):
            folder = getattr(getattr(hook, "group", None), "offload_to_disk_path", None)
            if folder is not None:
                raise AdapterStateError(
                    f"{type(root).__name__}: the weights of {path or 'the model'} are on disk, "
                    f"where group offloading put them (hook {type(hook).__name__}, {folder}); they "
                    "can be neither read nor edited there. Erase, load and switch erasures before "
                    "enable_group_offload, or leave out offload_to_disk_path"
                )


def rehook(copied: nn.Module) -> None:
    """Give a deep copy diffusers hooks of its own.

    The function that such a hook puts in place of `forward` is shared by all copies, and calls the
    module that it was made for. Hooks that cast weights are left out: the copy runs in float32.
    """
    for module in copied.modules():
        old: Any = getattr(module, "_diffusers_hook", None)
        if old is None or not old._fn_refs:
            continue
        innermost = old._fn_refs[0].original_forward or old._fn_refs[0].forward
        outer = vars(module).get("forward") if _is_below_accelerate(module) else None
        vars(module)["forward"] = innermost
        registry = HookRegistry(module)
        for name in old._hook_order:
            hook = old.hooks[name]
            if not isinstance(hook, DiffusersCastingHook):
                vars(hook)["initialize_hook"] = lambda owner: owner
                registry.register_hook(hook, name)
                del vars(hook)["initialize_hook"]
        module._diffusers_hook = registry  # type: ignore[assignment]
        if outer is not None:
            vars(module)["_old_forward"] = vars(module)["forward"]
            vars(module)["forward"] = outer


def _is_below_accelerate(module: nn.Module) -> bool:
    """Whether accelerate's hook came last, so that it calls what diffusers' hooks made."""
    below: Any = vars(module).get("_old_forward")
    return "HookRegistry" in getattr(getattr(below, "func", None), "__qualname__", "")


def casts_weights(module: nn.Module) -> bool:
    """Whether a hook of diffusers keeps this module's weights in another dtype than it runs in."""
    return any(isinstance(hook, DiffusersCastingHook) for hook in hooks_of(module))


def refuse_uncalled(root: nn.Module, names: Iterable[str]) -> None:
    """No module of `names` may have been left out when `root` ran.

    Raises:
        AdapterStateError: Some were.
    """
    names = list(names)
    if names:
        hooks = ", ".join(names_of_hooks(root)) or "none that we know"
        raise AdapterStateError(
            f"{names[0]} was not called when {type(root).__name__} ran, so no edit of it can be "
            f"solved: something replaces its forward, or that of a module above it (hooks: "
            f"{hooks}). Erase before the hooks are added"
        )
