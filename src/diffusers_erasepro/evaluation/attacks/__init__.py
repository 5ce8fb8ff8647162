"""Attacks on an erasure: each a record with its access and budget; a judge decides on success."""

from .registry import ATTACKS, attack, success
from .siege import Attack, Siege

__all__ = ["ATTACKS", "Attack", "Siege", "attack", "success"]
