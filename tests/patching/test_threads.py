"""Many threads.

Nothing is lost, and every picture is drawn in one state that somebody asked for.
"""

import copy
import random
import threading

import pytest
import torch
from diffusers import StableDiffusionPipeline

from conftest import assert_same_bits, bits, draw
from diffusers_erasepro import erasable
from diffusers_erasepro.errors import AdapterStateError
from diffusers_erasepro.patching.rwlock import ReadWriteLock


def fingerprint(pipe, prompt="a red star on snow"):
    return tuple(draw(pipe, [prompt], steps=2).flatten()[:16].tolist())


def stress(pipe, adapters, rounds, workers=8):
    """Each worker loads, toggles, unloads and draws.

    Returns the pictures drawn and the errors met.
    """
    pictures = set()
    errors = []
    register = torch.nn.Module.register_parameter
    scheduler = copy.deepcopy(pipe.scheduler)
    tokenizer = copy.deepcopy(pipe.tokenizer)

    def work(number):
        mine = erasable(StableDiffusionPipeline.from_pipe(pipe))
        # a scheduler counts steps, and a tokenizer keeps how to pad (diffusers pads in two ways),
        # so threads cannot share them
        mine.scheduler = copy.deepcopy(scheduler)
        mine.tokenizer = copy.deepcopy(tokenizer)
        mine.set_progress_bar_config(disable=True)
        rng = random.Random(number)
        for _ in range(rounds):
            act = rng.choice(["draw", "draw", "load", "off", "on", "drop", "without"])
            name, adapter = rng.choice(adapters)
            try:
                if act == "draw":
                    pictures.add(fingerprint(mine))
                elif act == "load":
                    mine.load_erasure_adapter(adapter, adapter_name=name)
                elif act == "off":
                    mine.disable_erasure()
                elif act == "on":
                    mine.enable_erasure()
                elif act == "without":
                    with mine.erasure_disabled():
                        assert fingerprint(mine) == base
                else:
                    mine.delete_erasure_adapters(name)
            except AdapterStateError:
                pass  # another thread loaded or dropped it first, and it says so
            except BaseException as error:
                errors.append(error)

    base = fingerprint(pipe)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.nn.Module.register_parameter is register
    return pictures, errors


@pytest.mark.parametrize("rounds", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_eight_threads_lose_nothing_and_leak_nothing(pipe, shipped, no_star, no_cross, rounds):
    adapters = [("a", no_star), ("b", no_cross)]
    before = bits(pipe)
    wanted = set()
    for names in ((), (0,), (1,), (0, 1)):
        fresh = erasable(copy.deepcopy(shipped))
        fresh.load_erasure_adapters({adapters[i][0]: adapters[i][1] for i in names})
        wanted.add(fingerprint(fresh))
    pictures, errors = stress(pipe, adapters, rounds)
    assert not errors and pictures and pictures <= wanted
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


def test_loads_at_once_all_arrive(pipe, no_star, no_cross, no_style):
    threads = [
        threading.Thread(
            target=pipe.load_erasure_adapter, args=(adapter,), kwargs={"adapter_name": f"n{i}"}
        )
        for i, adapter in enumerate((no_star, no_cross, no_style))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        pipe.get_erasure_adapters() == dict.fromkeys(("n0", "n1", "n2"), True)
        and pipe.verify_erasure().ok
    )


def test_switching_from_inside_a_drawing_is_an_error_and_not_a_deadlock(pipe, no_star):
    pipe.load_erasure_adapter(no_star)

    def switch(*_):
        pipe.disable_erasure()

    with pytest.raises(AdapterStateError, match="from inside a call"):
        pipe("a star", num_inference_steps=1, callback_on_step_end=switch)
    assert pipe.verify_erasure().ok
    pipe.disable_erasure()


def test_readers_share_the_lock_and_a_writer_may_read():
    lock = ReadWriteLock()
    inside = threading.Barrier(2, timeout=5)
    both = []

    def read():
        with lock.reading(), lock.reading():
            inside.wait()
            both.append(1)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both == [1, 1]
    with lock.writing(), lock.writing(), lock.reading():
        assert lock._writer == threading.get_ident()
    assert lock._writer is None and not lock._readers and not lock._writers_waiting
