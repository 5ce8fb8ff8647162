"""Who may touch the weights: many drawings at once, or one change."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AdapterStateError


class ReadWriteLock:
    """A readers-writer lock: a change waits for the drawings under way, and drawings wait for the change.

    Both are re-entrant within a thread, and a thread that changes may draw. The other way round cannot be granted
    (other threads may be drawing), so it is an error and not a deadlock.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._readers: Counter[int] = Counter()
        """Thread -> how often it is inside `reading`."""
        self._writer: int | None = None
        self._depth = 0
        self._writers_waiting = 0
        """Changes in line; a new drawing lets them go first, or a busy server could never switch."""

    def _may_read(self, me: int) -> bool:
        inside = self._writer == me or self._readers[me] > 0
        return inside or (self._writer is None and not self._writers_waiting)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, no other thread changes a weight."""
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: self._may_read(me))
            self._readers[me] += 1
        try:
            yield
        finally:
            with self._free:
                self._readers[me] -= 1
                self._readers += Counter()  # drops the zeros
                self._free.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no other thread draws or changes.

        Raises:
            AdapterStateError: This thread is drawing.
        """
        me = threading.get_ident()
        with self._free:
            if self._writer != me and self._readers[me]:
                raise AdapterStateError(
                    "an erasure cannot be switched from inside a drawing; do it before or after the call"
                )
            self._writers_waiting += 1
            try:
                self._free.wait_for(
                    lambda: (
                        self._writer == me or (self._writer is None and not self._readers.total())
                    )
                )
                self._writer, self._depth = me, self._depth + 1
            finally:
                self._writers_waiting -= 1
        try:
            yield
        finally:
            with self._free:
                self._depth -= 1
                self._writer = me if self._depth else None
                self._free.notify_all()


WEIGHTS_LOCK = ReadWriteLock()
"""One for the process: pipelines share components, so a lock per pipeline would not do."""
