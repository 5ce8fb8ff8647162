"""Somebody else's hooks in the encoder, which may change what the edits do."""

from __future__ import annotations

from torch import nn

from ..errors import AdapterStateError
from ..modules.hooks import names_of_hooks
from ..prompts.alignment import Rows
from ..prompts.tokens import TextPath
from .layerwise import Walk
from .residuals import largest, relative, target_states
from .states import edited

HOOK_TOLERANCE = 1e-3
"""Largest relative difference between what was solved and what runs, under somebody's hooks."""


def refuse_unsolved(encoder: nn.Module, path: TextPath, rows: Rows, done: Walk) -> None:
    """Where somebody else's hooks run in the encoder, the edits must do there what was solved.

    Raises:
        AdapterStateError: A hook changes what the edited modules make of the edits.
    """
    hooks = names_of_hooks(encoder, neutral=False)
    if not hooks:
        return
    with edited(encoder, done.edits_of(path.use.encoder)):
        states = target_states(encoder, rows, path.use.readings)
    for have, (expected, _) in zip(states, done.states["exact"], strict=True):
        off = largest([relative(have.cpu(), expected)])
        if not off <= HOOK_TOLERANCE:
            raise AdapterStateError(
                f"{path.use.encoder}: with the hook {', '.join(hooks)} the edits do not do what "
                f"was solved (residual {off:.1e}); remove it, erase, and add it again"
            )
