"""The examples do what they say."""

import importlib.util
import io
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from diffusers_erasepro import ErasureAdapter, glyphs
from diffusers_erasepro.adapters.hub import find
from diffusers_erasepro.adapters.lockfile import add_pin
from diffusers_erasepro.errors import ErasureLockedError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks its annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_stack_with_style_lora():
    residuals = example("stack_with_style_lora").main()
    assert residuals["with the LoRA"] > 1e-3
    assert max(residuals["erased"], residuals["solved again"], residuals["LoRA taken off"]) < 1e-5


@pytest.mark.slow
def test_one_table_measures_all_methods_alike(tmp_path):
    pytest.importorskip("diffusers_erasepro_pictures", reason="the pictures world is missing")
    recipe = example("compare_methods")
    rows = [*recipe.compare_methods(tmp_path, recipe.PROMPTS[::4], seeds=1, steps=2)]
    table = {row[0]: dict(zip(recipe.HEADS, row, strict=True)) for row in rows}
    assert [*table] == ["ours", "UCE", "one direction"]
    assert all(0 <= float(row["left, mean"]) <= float(row["left, worst"]) for row in table.values())
    moved = {name: float(row["other states moved"]) for name, row in table.items()}
    assert moved["ours"] < moved["UCE"]
    lines = [*recipe.format_table(rows)]
    assert len(lines) == 5
    assert all(line.count("|") == len(recipe.HEADS) + 1 for line in lines)
    assert ErasureAdapter.from_pretrained(tmp_path / "UCE" / "adapter").edits


def test_publish(hub):
    adapter = example("publish").main("me/no-heart")
    assert adapter.origin.commit == hub.repos["me/no-heart"].branches["main"]
    files = hub.repos["me/no-heart"].commits[adapter.origin.commit]
    assert glyphs.load_judge()([Image.open(io.BytesIO(files["0.png"][0]))])["shape"] == ["circle"]


@pytest.fixture(scope="module")
def client():
    from fastapi.testclient import TestClient

    with TestClient(example("serve").app) as client:
        yield client


def test_the_service_draws_erased_and_says_so(client):
    answer = client.post("/draw", json={"prompt": "a red star on snow"})
    assert answer.headers["content-type"] == "image/png"
    assert glyphs.load_judge()([Image.open(io.BytesIO(answer.content))])["shape"] == ["circle"]
    assert client.get("/health").json()["ok"]
    assert (
        client.post("/draw", json={"prompt": "x", "prompt_embeds": [0], "steps": 0}).status_code
        == 422
    )


@pytest.fixture
def address(client):
    """The service on a socket of its own."""
    server = uvicorn.Server(uvicorn.Config(client.app, port=0, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    (port,) = {s.getsockname()[1] for one in server.servers for s in one.sockets}
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def pin(folder, *names):
    """A lock of the ready adapters of these names."""
    for name in names:
        add_pin(folder / "erasures.lock", name, find(ROOT / "adapters" / "glyphs" / name))
    return folder / "erasures.lock"


def test_serve_check_sees_what_can_be_seen_from_outside(address, run, tmp_path):
    code, text, err = run("serve-check", address, "--lock", pin(tmp_path, "no-star"))
    assert code == 0 and "bad: " not in text and "cannot be seen from outside" in text, err + text
    assert "good: 'no-star' is on, the pinned file" in text
    assert "'a star' and 'a circle' differ by 0.0" in text
    (tmp_path / "other").mkdir()
    lock = pin(tmp_path / "other", "no-cross")
    code, text, _ = run("serve-check", address, "--lock", lock, "--json")
    found = json.loads(text)
    assert code == 3 and found["verdict"] == "bad"
    bad = [one["text"] for one in found["findings"] if one["verdict"] == "bad"]
    assert bad[0] == "'no-cross' is pinned and not on" and "'a cross' and 'a " in bad[1]


def test_serve_check_of_what_is_no_service_is_one_line(address, run, tmp_path):
    lock = pin(tmp_path, "no-star")
    for url, says in (
        ("http://127.0.0.1:9", "does not answer"),
        ("file:///etc", "no http or https"),
    ):
        code, text, err = run("serve-check", url, "--lock", lock)
        assert (code, text) == (1, "") and says in err and err.count("\n") == 1
    code, text, err = run("serve-check", address, "--lock", lock, "--draw", "/nowhere")
    assert (code, text) == (1, "") and "answered 404 and no picture" in err


def test_no_code_of_the_service_can_switch_it_off(client):
    pipe = client.app.state.pipe
    for switch_off in (
        pipe.disable_erasure,
        pipe.unload_erasure_adapters,
        lambda: pipe.set_erasure_adapters([]),
    ):
        with pytest.raises(ErasureLockedError):
            switch_off()
    assert client.get("/health").json()["ok"]


def test_the_service_is_unhealthy_when_the_weights_were_changed(client):
    weight = client.app.state.pipe.text_encoder.get_submodule(
        "encoder.layers.0.mlp.fc2"
    ).weight.data
    kept = weight.clone()
    weight.mul_(1.01)
    answer = client.get("/health")
    weight.copy_(kept)
    assert answer.status_code == 503 and not answer.json()["ok"]
    assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_two_hundred_requests_at_once(client):
    def ask(i):
        if i % 10 == 0:
            return client.get("/health").status_code, b""
        answer = client.post(
            "/draw", json={"prompt": "a red star on snow", "seed": i % 5, "steps": 3}
        )
        return answer.status_code, answer.content

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert {code for code, _ in answers} == {200}
    for seed in range(5):
        assert (
            len({content for i, (_, content) in enumerate(answers) if i % 5 == seed and i % 10})
            == 1
        )
