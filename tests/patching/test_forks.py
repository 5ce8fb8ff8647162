"""A process forked while threads of ours are at work.

Locks of threads that the child does not have are free there, and no weight is half-written.
"""

import multiprocessing
import os
import threading
import time

import pytest
import torch

from conftest import assert_same_bits, bits, draw
from diffusers_erasepro.errors import AdapterStateError
from diffusers_erasepro.patching import rwlock
from diffusers_erasepro.patching.rwlock import ReadWriteLock

PATIENCE = 8
"""Seconds after which a child counts as hanging."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def ends_well(target, *args):
    """Whether a forked child carries `target` out."""
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    child.join(PATIENCE)
    hangs = child.is_alive()
    if hangs:
        child.kill()
        child.join()
    return not hangs and child.exitcode == 0


def enter(side):
    with side():
        pass


def forks_while(busy, work, *args):
    """Whether a child forked while a thread is inside `busy` carries `work` out."""
    inside = threading.Event()
    leave = threading.Event()

    def stay():
        with busy():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    try:
        return ends_well(work, *args)
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("side", ["reading", "writing"])
def test_a_child_owns_no_lock_of_a_reader_it_does_not_have(side):
    lock = ReadWriteLock()
    assert forks_while(lock.reading, enter, getattr(lock, side))


@pytest.mark.parametrize("side", ["reading", "writing"])
def test_a_writer_that_waits_does_not_wait_in_the_child(side):
    lock = ReadWriteLock()
    with lock.reading():
        writer = threading.Thread(target=enter, args=(lock.writing,))
        writer.start()
        while not lock._writers_waiting:
            time.sleep(0.001)

        def both():
            with lock.reading():
                pass
            if side == "reading":
                new = threading.Thread(target=enter, args=(lock.reading,), daemon=True)
                new.start()
                new.join(PATIENCE / 4)
                assert not new.is_alive()

        assert ends_well(both)
    writer.join()
    enter(lock.writing)


def test_a_fork_waits_for_a_thread_that_writes():
    lock = ReadWriteLock()
    weights = torch.zeros(2)
    half = threading.Event()

    def write():
        with lock.writing():
            weights[0] = 1
            half.set()
            time.sleep(0.3)
            weights[1] = 1

    def check():
        with lock.writing():
            assert weights[0] == weights[1]

    writer = threading.Thread(target=write)
    writer.start()
    half.wait()
    assert ends_well(check)
    writer.join()


def test_a_fork_does_not_wait_for_ever_and_the_child_says_what_happened(monkeypatch):
    monkeypatch.setattr(rwlock, "FORK_PATIENCE", 0.1)
    lock = ReadWriteLock()

    def refuses():
        for side in (lock.reading, lock.writing):
            with pytest.raises(AdapterStateError, match=r"forked while.*spawn"):
                enter(side)

    assert forks_while(lock.writing, refuses)
    enter(lock.writing)


def test_a_thread_that_forks_inside_keeps_what_it_is_inside_of():
    lock = ReadWriteLock()

    def write_inside():
        enter(lock.writing)
        enter(lock.reading)

    with lock.writing():
        assert ends_well(write_inside)
        enter(lock.writing)
    enter(lock.writing)


def test_a_worker_forked_while_a_thread_draws_switches_the_erasure(pipe, no_star):
    before = bits(pipe)
    pipe.load_erasure_adapter(no_star)
    drawing = threading.Event()
    leave = threading.Event()

    def wait_once(*args):
        drawing.set()
        leave.wait()
        return args[-1]

    def call():
        pipe("a star", num_inference_steps=1, output_type="latent", callback_on_step_end=wait_once)

    def switch():
        torch.set_num_threads(1)  # OpenMP's own threads are not in the child
        pipe.disable_erasure()
        assert_same_bits(pipe, before)
        pipe.enable_erasure()
        assert draw(pipe, ["a star"], steps=1).isfinite().all()

    thread = threading.Thread(target=call)
    thread.start()
    drawing.wait()
    try:
        assert ends_well(switch)
    finally:
        leave.set()
        thread.join()
    assert pipe.verify_erasure().ok
