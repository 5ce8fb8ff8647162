"""What a loaded erasure may be called: one rule, wherever a name comes in."""

from __future__ import annotations

import re

from ..errors import ConceptSpecError

LONGEST = 64
PLAIN = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}")
RULE = f"1 to {LONGEST} letters, digits, '_' or '-'"


def check_adapter_name(name: object) -> str:
    """`name`, if an erasure may be called so.

    Raises:
        ConceptSpecError: It may not; the message has one that it may.
    """
    if isinstance(name, str) and PLAIN.fullmatch(name):
        return name
    instead = f"; such as {make_adapter_name(name)!r}" if isinstance(name, str) else ""
    raise ConceptSpecError(f"adapter_name {name!r} must be {RULE}{instead}")


def make_adapter_name(text: str) -> str:
    """A name like `text`, of a repository or folder: what no name may hold becomes '-'."""
    if PLAIN.fullmatch(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")
    return plain[:LONGEST].rstrip("-") or "erasure"
