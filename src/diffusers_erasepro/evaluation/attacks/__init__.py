"""Attacks on an erasure: each a record with its access and budget; a judge decides on success."""

from .registry import ATTACKS, attack, check_names, list_unfit, success
from .siege import Attack, Siege, takes_states

__all__ = [
    "ATTACKS",
    "Attack",
    "Siege",
    "attack",
    "check_names",
    "list_unfit",
    "success",
    "takes_states",
]
