"""Who may touch the weights: many drawings at once, or one change."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AdapterStateError


class Gate:
    """A readers-writer lock: a change waits for the drawings under way, and drawings wait for the change.

    Both are re-entrant within a thread, and a thread that changes may draw. The other way round cannot be granted
    (other threads may be drawing), so it is an error and not a deadlock.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._drawing: Counter[int] = Counter()
        """Thread -> how often it is inside `drawing`."""
        self._changing: int | None = None
        self._depth = 0
        self._waiting = 0
        """Changes in line; a new drawing lets them go first, or a busy server could never switch."""

    def _may_draw(self, me: int) -> bool:
        inside = self._changing == me or self._drawing[me] > 0
        return inside or (self._changing is None and not self._waiting)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, no other thread changes a weight."""
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: self._may_draw(me))
            self._drawing[me] += 1
        try:
            yield
        finally:
            with self._free:
                self._drawing[me] -= 1
                self._drawing += Counter()  # drops the zeros
                self._free.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, no other thread draws or changes.

        Raises:
            AdapterStateError: This thread is drawing.
        """
        me = threading.get_ident()
        with self._free:
            if self._changing != me and self._drawing[me]:
                raise AdapterStateError(
                    "an erasure cannot be switched from inside a drawing; do it before or after the call"
                )
            self._waiting += 1
            try:
                self._free.wait_for(
                    lambda: (
                        self._changing == me
                        or (self._changing is None and not self._drawing.total())
                    )
                )
                self._changing, self._depth = me, self._depth + 1
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._free:
                self._depth -= 1
                self._changing = me if self._depth else None
                self._free.notify_all()


GATE = Gate()
"""One for the process: pipelines share components, so a lock per pipeline would not do."""
