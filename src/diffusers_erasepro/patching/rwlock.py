"""Who may touch the weights: many threads that read them, or one that writes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from ..errors import AdapterStateError

FORK_PATIENCE = 5.0
"""Seconds that a fork waits for a thread that writes. It may itself wait for the forking one."""
_LOCKS: WeakSet[ReadWriteLock] = WeakSet()
"""All that there are; `os.register_at_fork` keeps its functions for ever, so it gets none of
theirs."""


class ReadWriteLock:
    """A writer waits for the readers at work, and readers wait for the writer.

    Both sides are re-entrant within a thread, and a thread that writes may read. A thread that
    reads cannot begin to write, since other threads may be reading; that is an error, not a
    deadlock.

    A child process has only the thread that forked it: the others own nothing there. A fork waits
    for a writer, so that no weight is half-written in the child.
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
        self._forked_while_writing = False
        _LOCKS.add(self)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, no other thread changes a weight.

        Raises:
            AdapterStateError: This process was forked while a thread was writing.
        """
        me = threading.get_ident()
        with self._released:
            self._refuse_half_written()
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
            AdapterStateError: This thread is reading, or this process was forked while a thread
                was writing.
        """
        me = threading.get_ident()
        with self._released:
            self._refuse_half_written()
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

    def _refuse_half_written(self) -> None:
        if self._forked_while_writing:
            raise AdapterStateError(
                "this process was forked while another thread was switching or making an erasure, "
                f"which took longer than the {FORK_PATIENCE:g} s that a fork waits: its weights "
                "may be half-written. Fork before or after, or start the process by 'spawn'"
            )

    def _before_fork(self) -> None:
        me = threading.get_ident()
        self._released.acquire()
        self._released.wait_for(lambda: self._writer in (None, me), FORK_PATIENCE)

    def _after_fork_in_parent(self) -> None:
        self._released.release()

    def _after_fork_in_child(self) -> None:
        me = threading.get_ident()
        self._released = threading.Condition()
        self._readers = +Counter({me: self._readers[me]})
        self._writers_waiting = 0
        if self._writer != me:
            self._forked_while_writing |= self._writer is not None
            self._writer = None
            self._depth = 0


def _before_fork() -> None:
    for lock in sorted(_LOCKS, key=id):  # in one order, whichever thread forks
        lock._before_fork()


def _after_fork_in_parent() -> None:
    for lock in _LOCKS:
        lock._after_fork_in_parent()


def _after_fork_in_child() -> None:
    for lock in _LOCKS:
        lock._after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

WEIGHTS_LOCK = ReadWriteLock()
"""One for the process: pipelines share components, so a lock per pipeline would not do."""
