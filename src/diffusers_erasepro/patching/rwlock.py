"""Who may touch the weights: many threads that read them, or one that writes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AdapterStateError


class ReadWriteLock:
    """A writer waits for the readers at work, and readers wait for the writer.

    Both sides are re-entrant within a thread, and a thread that writes may read. A thread that
    reads cannot begin to write, since other threads may be reading; that is an error, not a
    deadlock.
    """

    def __init__(self) -> None:
        self._released = threading.Condition()
        self._readers: Counter[int] = Counter()
        """Thread -> how often it is inside `reading`."""
        self._writer: int | None = None
        """Thread that is inside `writing`."""
        self._depth = 0
        """How often it is."""
        self._writers_waiting = 0
        """They go before new readers, or a busy server could never switch an erasure."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, no other thread changes a weight."""
        me = threading.get_ident()
        with self._released:
            self._released.wait_for(lambda: self._may_read(me))
            self._readers[me] += 1
        try:
            yield
        finally:
            with self._released:
                self._readers[me] -= 1
                self._readers += Counter()  # drops the zeros
                self._released.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no other thread reads or writes.

        Raises:
            AdapterStateError: This thread is reading.
        """
        me = threading.get_ident()
        with self._released:
            if self._writer != me and self._readers[me]:
                raise AdapterStateError(
                    "an erasure cannot be switched from inside a call of the pipeline; do it "
                    "before or after the call"
                )
            self._writers_waiting += 1
            try:
                self._released.wait_for(lambda: self._may_write(me))
                self._writer = me
                self._depth += 1
            finally:
                self._writers_waiting -= 1
        try:
            yield
        finally:
            with self._released:
                self._depth -= 1
                self._writer = me if self._depth else None
                self._released.notify_all()

    def _may_read(self, me: int) -> bool:
        inside = self._writer == me or self._readers[me] > 0
        return inside or (self._writer is None and not self._writers_waiting)

    def _may_write(self, me: int) -> bool:
        return self._writer == me or (self._writer is None and not self._readers.total())


WEIGHTS_LOCK = ReadWriteLock()
"""One for the process: pipelines share components, so a lock per pipeline would not do."""
