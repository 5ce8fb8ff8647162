"""Publishing and loading through the real Hub client, over HTTP against a small Hub on the
loopback; its failures by name."""

import hashlib
import warnings

import pytest
from huggingface_hub import ModelCard

from diffusers_erasepro import ErasureAdapter
from diffusers_erasepro.adapters.hub import WEIGHT_NAME
from diffusers_erasepro.adapters.lockfile import add_pin, make_pin, read_lock
from diffusers_erasepro.errors import (
    AdapterFormatError,
    AdapterIntegrityError,
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubRateLimitError,
)

REPO = "me/no-star"


def load(repo=REPO, **more):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is not pinned")
        return ErasureAdapter.from_pretrained(repo, **more)


@pytest.fixture
def published(hub, no_star, tmp_path):
    """The star's adapter on the Hub; returns its commit."""
    no_star.push_to_hub(REPO, base_model="owner/base", license="apache-2.0")
    return hub.repos[REPO].branches["main"]


def test_what_is_pushed_comes_back_with_its_commit_and_sha256(hub, published, no_star, tmp_path):
    back = load(revision=published, cache_dir=tmp_path)
    assert back.to_bytes() == no_star.to_bytes()
    assert (back.origin.repo, back.origin.commit) == (REPO, published)
    assert back.origin.sha256 == hashlib.sha256(no_star.to_bytes()).hexdigest()
    files = hub.repos[REPO].commits[published]
    assert set(files) == {WEIGHT_NAME, "README.md", "spec.toml"} and files[WEIGHT_NAME][1]
    assert ModelCard(files["README.md"][0].decode()).data.base_model == "owner/base"


def test_a_pipeline_loads_by_hub_id_and_offline_from_the_cache(hub, published, pipe, tmp_path):
    pipe.load_erasure_adapter(REPO, revision=published, cache_dir=tmp_path, adapter_name="first")
    assert pipe.verify_erasure().ok
    pipe.unload_erasure_adapters()
    hub.requests.clear()
    pipe.load_erasure_adapter(REPO, revision=published, cache_dir=tmp_path, local_files_only=True)
    assert not hub.requests


def test_unpinned_loads_warn_with_the_commit_to_pin(published, tmp_path):
    with pytest.warns(UserWarning, match=f"not pinned.*revision='{published}'"):
        ErasureAdapter.from_pretrained(REPO, cache_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ErasureAdapter.from_pretrained(REPO, revision=published, cache_dir=tmp_path)


def test_branches_pull_requests_and_private_repositories(hub, no_star, no_cross):
    no_star.push_to_hub(REPO, private=True)
    assert hub.repos[REPO].private
    no_cross.push_to_hub(REPO, revision="next")
    assert load(revision="next").digest == no_cross.digest and load().digest == no_star.digest
    assert no_cross.push_to_hub(REPO, create_pr=True).endswith("/discussions/1")
    assert load(revision="refs/pr/1").digest == no_cross.digest and load().digest == no_star.digest


def test_several_adapters_in_one_repository(hub, no_star, no_cross):
    no_star.push_to_hub("me/set", subfolder="no-star")
    no_cross.push_to_hub("me/set", subfolder="no-cross", weight_name="cross.safetensors")
    assert load("me/set", subfolder="no-star").digest == no_star.digest
    assert (
        load("me/set", subfolder="no-cross", weight_name="cross.safetensors").digest
        == no_cross.digest
    )
    with pytest.raises(HubNotFoundError, match="entry was not found"):
        load("me/set")


def test_pictures_are_pushed_and_shown_by_the_card(hub, no_star, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    no_star.push_to_hub(REPO, pictures={"a red star": tmp_path / "a.png"})
    files = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    assert files["0.png"][0] == b"\x89PNG"
    assert ModelCard(files["README.md"][0].decode()).data.widget == [
        {"text": "a red star", "output": {"url": "0.png"}}
    ]


def test_a_card_of_ones_own_is_never_overwritten(hub, no_star, no_cross):
    no_star.push_to_hub(REPO)
    no_cross.push_to_hub(REPO)
    files = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    assert b"cross" in files["README.md"][0]
    hub.commit(REPO, "main", {"README.md": (b"my own words", False)})
    no_star.push_to_hub(REPO)
    files = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    assert files["README.md"][0] == b"my own words" and files[WEIGHT_NAME][0] == no_star.to_bytes()


# ---------------------------------------------------------------------- failures


def status(code, **headers):
    def fault(response):
        response.status_code = code
        response.body = b""
        response.headers.update(headers | {"content-length": "0"})
        return response

    return fault


def truncated(response):
    response.body = response.body[:1000]
    response.headers["content-length"] = "1000"
    return response


def altered(response):
    body = bytearray(response.body)
    body[-1] ^= 1
    response.body = bytes(body)
    return response


@pytest.mark.parametrize(
    ("faults", "error", "says"),
    [
        ({"HEAD": status(401)}, HubAccessError, "401, not allowed; run `hf auth login`"),
        ({"HEAD": status(403)}, HubAccessError, "403, not allowed"),
        (
            {"HEAD": status(404, **{"x-error-code": "RepoNotFound"})},
            HubNotFoundError,
            "repository was not found, or is private",
        ),
        (
            {"HEAD": status(404, **{"x-error-code": "RevisionNotFound"})},
            HubNotFoundError,
            "revision was not found",
        ),
        (
            {"HEAD": status(404, **{"x-error-code": "EntryNotFound"})},
            HubNotFoundError,
            "entry was not found",
        ),
        (
            {"HEAD": status(429, **{"retry-after": "7"})},
            HubRateLimitError,
            "429, too many requests; wait 7 s",
        ),
        ({"HEAD": status(500)}, HubError, "answered 500"),
        ({"GET": status(403)}, HubAccessError, "403"),
        ({"GET": truncated}, HubError, "the transfer failed"),
        ({"GET": altered}, AdapterIntegrityError, "the Hub announced .* fetch it again"),
    ],
)
def test_failures_have_names_and_leave_the_cache_usable(
    hub, published, no_star, tmp_path, monkeypatch, faults, error, says
):
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits between its own retries
    hub.faults = faults
    with pytest.raises(error, match=says):
        load(revision=published, cache_dir=tmp_path)
    hub.faults = {}
    assert load(revision=published, cache_dir=tmp_path).digest == no_star.digest


def test_a_failed_load_leaves_the_pipeline_as_it_was(hub, published, pipe, tmp_path):
    hub.faults = {"GET": altered}
    with pytest.raises(AdapterIntegrityError):
        pipe.load_erasure_adapter(REPO, revision=published, cache_dir=tmp_path)
    assert pipe.get_erasure_adapters() == {}


def test_pushing_without_a_right_is_named(hub, no_star, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(HubAccessError, match="not allowed"):
        no_star.push_to_hub(REPO)
    assert not hub.repos


def test_unknown_repositories_and_ids(hub):
    with pytest.raises(HubNotFoundError, match="repository was not found"):
        load("me/nothing")
    with pytest.raises(HubNotFoundError, match="no Hub id"):
        load("me/-bad-.")


def test_what_is_not_cached_is_named_offline(hub, tmp_path):
    with pytest.raises(HubNotFoundError, match="not in the cache"):
        load(cache_dir=tmp_path, local_files_only=True)


# ---------------------------------------------------------------------- the lock


@pytest.fixture
def lock(hub, published, no_cross, tmp_path):
    """A lock with one adapter of the Hub and one beside it."""
    no_cross.save_pretrained(tmp_path / "no-cross")
    path = tmp_path / "erasures.lock"
    add_pin(path, "no-star", load().origin)
    add_pin(path, "no-cross", load(tmp_path / "no-cross").origin)
    return path


def test_a_lock_pins_commit_and_sha256_and_loads_just_that(
    lock, hub, published, no_star, no_cross, pipe
):
    pins = read_lock(lock)
    assert (
        pins["no-star"].revision == published
        and pins["no-cross"].source == "no-cross/pytorch_lora_weights.safetensors"
    )
    no_cross.push_to_hub(REPO)  # main moves on
    assert load().digest == no_cross.digest
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert pipe.load_erasure_adapter(lock) == ("no-cross", "no-star")
    assert (
        pipe.get_erasure_adapters() == {"no-cross": True, "no-star": True}
        and pipe.verify_erasure().ok
    )
    assert make_pin(load(revision=published).origin, lock.parent) == pins["no-star"]


def test_a_lock_whose_file_changed_loads_nothing(lock, no_star, pipe):
    no_star.save_pretrained(lock.parent / "no-cross")
    with pytest.raises(AdapterIntegrityError, match=r"no-cross: .* erasures.lock pins"):
        pipe.load_erasure_adapter(lock)
    assert pipe.get_erasure_adapters() == {}


@pytest.mark.parametrize(
    "text", ["[a", "[a]\nsource = 'x'", "a = 1", "[a]\nsource='x'\nsha256='y'\nmore=1"]
)
def test_a_file_that_is_no_lock_is_named(tmp_path, text):
    (tmp_path / "erasures.lock").write_text(text)
    with pytest.raises(AdapterFormatError, match="is no lock file"):
        read_lock(tmp_path / "erasures.lock")
