"""Whatever breaks a load, a switch or a save on the way.

Bits, registry, hooks and files are as before.
"""

import copy
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase
from diffusers_erasepro.adapters.file import write_atomically
from diffusers_erasepro.patching.rwlock import WEIGHTS_LOCK
from diffusers_erasepro.patching.weights import registry_of

MODULES = (
    "loaders/mixin",
    "loaders/stacking",
    "loaders/verification",
    "modules/storage",
    "patching/weights",
)
STEPS = tuple(f"diffusers_erasepro/{module}.py" for module in MODULES)
FAULTS = (RuntimeError("fault"), KeyboardInterrupt(), MemoryError())


def interrupted(act, at, fault):
    """Run `act`, and raise `fault` at the `at`-th line it executes in our modules.

    Whether it was reached.
    """
    seen = 0

    def line(frame, event, _):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == at:
                raise fault
        return line

    def call(frame, event, _):
        return line if frame.f_code.co_filename.endswith(STEPS) else None

    sys.settrace(call)
    try:
        act()
    except type(fault):
        return True
    finally:
        sys.settrace(None)
    return False


def state(pipe):
    """Registry, hooks and switches of every component."""
    roots = {"text_encoder": pipe.text_encoder, "unet": pipe.unet}
    hooks = {n: sum(len(m._forward_hooks) for m in root.modules()) for n, root in roots.items()}
    return (
        {n: id(registry_of(root)) for n, root in roots.items()},
        hooks,
        pipe.get_erasure_adapters(),
    )


def inject(pipe, act, undo, points):
    """Interrupt `act` at each of `points`.

    How often it was as before, and how often already done.
    """
    before = bits(pipe)
    known = state(pipe)
    done = 0
    act()
    after = bits(pipe)
    undo()
    assert_same_bits(pipe, before)
    known = state(pipe)
    for i, at in enumerate(points):
        if not interrupted(act, at, FAULTS[i % len(FAULTS)]):
            undo()
            break
        if state(pipe) == known:
            assert_same_bits(pipe, before)
        else:  # the last lines, after everything was written
            assert_same_bits(pipe, after)
            undo()
            known = state(pipe)
            done = done + 1
        assert not WEIGHTS_LOCK._readers and WEIGHTS_LOCK._writer is None
    else:
        pytest.fail("more lines than points")
    return i, done


@pytest.fixture(scope="module")
def both(shipped, preserve):
    return erase(
        shipped, ErasureSpec((Concept("star", "circle"),), preserve=preserve), layers=(0, "kv")
    )


def test_a_load_that_breaks_at_any_line_changes_nothing(pipe, both):
    tried, done = inject(
        pipe,
        lambda: pipe.load_erasure_adapter(both, adapter_name="a"),
        pipe.unload_erasure_adapters,
        range(1, 10**6, 251),
    )
    assert tried > 5 and done <= 1


@pytest.mark.slow
def test_a_load_that_breaks_at_every_line_changes_nothing(pipe, both):
    tried, done = inject(
        pipe,
        lambda: pipe.load_erasure_adapter(both, adapter_name="a"),
        pipe.unload_erasure_adapters,
        range(1, 10**6),
    )
    print(f"{tried} lines, {done} of them after the last write")
    assert tried > 500 and done < 20


@pytest.mark.parametrize("step", [149, pytest.param(1, marks=pytest.mark.slow)])
def test_a_switch_that_breaks_changes_nothing(pipe, both, step):
    pipe.load_erasure_adapter(both, adapter_name="a")
    on = bits(pipe)
    known = pipe.get_erasure_adapters()
    for at in range(1, 10**6, step):
        if not interrupted(pipe.disable_erasure, at, FAULTS[at % len(FAULTS)]):
            break
        if pipe.get_erasure_adapters() == known:
            assert_same_bits(pipe, on)
        else:
            pipe.enable_erasure()
    pipe.enable_erasure()
    assert_same_bits(pipe, on)


def test_an_interrupt_while_erasing_under_an_erasure_puts_it_back(pipe, both, preserve):
    pipe.load_erasure_adapter(both)
    on = bits(pipe)
    spec = ErasureSpec((Concept("cross", "square"),), preserve=preserve)
    for at in range(5, 200, 30):
        interrupted(lambda: erase(pipe, spec), at, KeyboardInterrupt())
        assert_same_bits(pipe, on)


STEPS_OF_A_SAVE = ("open", "fsync", "os.chmod", "os.rename", "os.mkdir", "tempfile.mkstemp", "done")


def save_and_die(target, content, at):
    """Save in a child process that kills itself at the `at`-th step into the file system.

    Whether it got that far.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def audit(event, _):
            nonlocal seen
            if event in STEPS_OF_A_SAVE:
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        real = os.fsync
        os.fsync = lambda handle: (sys.audit("fsync"), real(handle), sys.audit("fsync"))
        sys.addaudithook(audit)
        write_atomically(target, content)
        sys.audit("done")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_save_that_is_killed_leaves_a_whole_file(no_star, no_cross, tmp_path, rounds):
    old = no_star.to_bytes()
    new = no_cross.to_bytes()
    target = tmp_path / "a.safetensors"
    killed = 0
    for _ in range(rounds):
        for at in range(1, 100):
            target.write_bytes(old)
            if not save_and_die(target, new, at):
                break
            killed += 1
            assert target.read_bytes() in (old, new)
        assert target.read_bytes() == new
    print(f"{killed} kills")
    assert ErasureAdapter.from_pretrained(target).digest == no_cross.digest and killed >= 5 * rounds


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_fills_up_loses_nothing(no_star, no_cross, tmp_path, monkeypatch, number):
    """ENOSPC at the n-th call into the file system, among write, flush, fsync, chmod and
    replace."""
    target = no_star.save_pretrained(tmp_path)
    before = target.read_bytes()
    seen = 0

    def failing(real):
        def call(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == number + 1:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    for name in ("fdopen", "fsync", "chmod", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    with pytest.raises(OSError, match="No space left"):
        no_cross.save_pretrained(tmp_path)
    assert target.read_bytes() == before and [p.name for p in Path(tmp_path).iterdir()] == [
        target.name
    ]


def test_off_after_dtype_moves_is_what_the_base_would_be(pipe, shipped, both):
    plain = copy.deepcopy(shipped)
    pipe.load_erasure_adapter(both)
    for dtype in (torch.float16, torch.float32, torch.bfloat16, torch.float32):
        plain.to(dtype)
        pipe.to(dtype)
        pipe.disable_erasure()
        assert_same_bits(pipe, bits(plain))
        pipe.enable_erasure()
