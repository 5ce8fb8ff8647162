"""One rule for what an erasure may be called, checked wherever a name comes in."""

import pytest

from diffusers_erasepro.adapters import hub as hubs
from diffusers_erasepro.adapters.hub import find
from diffusers_erasepro.adapters.lockfile import add_pin, find_pinned, read_lock
from diffusers_erasepro.adapters.naming import check_adapter_name, make_adapter_name
from diffusers_erasepro.errors import AdapterFormatError, ConceptSpecError, HubNotFoundError

REPOS = ("me/sd1.5-no-star", "me/no_star", "me/" + "x" * 90, "me/1.0", "me/a-_b")


@pytest.mark.parametrize("repo", REPOS)
def test_a_pulled_lock_loads(hub, pipe, no_star, run, tmp_path, repo):
    no_star.save_pretrained(tmp_path / "made")
    hubs.push(tmp_path / "made", repo)
    lock = tmp_path / "erasures.lock"
    code, _, err = run("pull", repo, "--lock", lock)
    assert code == 0 and "not pinned" in err
    (name,) = read_lock(lock)
    assert pipe.load_erasure_adapter(lock) == (name,) == (check_adapter_name(name),)


def test_what_the_hub_calls_nothing_is_not_pushed(hub, no_star, tmp_path):
    no_star.save_pretrained(tmp_path / "made")
    hub.requests.clear()
    with pytest.raises(HubNotFoundError, match="me/a--b is no Hub id: Cannot have --"):
        hubs.push(tmp_path / "made", "me/a--b")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["no star, please!", "", "a/b", "x" * 65, "sd1.5", "étoile"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_fetched(
    hub, pipe, run, tmp_path, name
):
    hub.requests.clear()
    lock = tmp_path / "erasures.lock"
    code, _, error = run("pull", "me/no-star", "--lock", lock, "--name", name)
    assert code == 1 and "1 to 64 letters" in error and "such as" in error
    for act in (
        lambda: pipe.load_erasure_adapter("me/no-star", adapter_name=name),
        lambda: pipe.load_erasure_adapters({name: "me/no-star"}),
        lambda: pipe.require_erasure(name),
        lambda: add_pin(lock, name, hubs.Origin(tmp_path, "0")),
    ):
        with pytest.raises(ConceptSpecError, match="1 to 64 letters"):
            act()
    assert not lock.exists() and hub.requests == []
    assert check_adapter_name(make_adapter_name(name))


def test_a_lock_with_such_a_name_says_what_to_rename(tmp_path):
    lock = tmp_path / "erasures.lock"
    lock.write_text('["sd1.5-no-star"]\nsource = "x"\nsha256 = "0"\n')
    with pytest.raises(AdapterFormatError, match="such as 'sd1-5-no-star'; rename its table there"):
        find_pinned(lock)


def test_another_source_does_not_push_a_pin_out(no_star, no_cross, tmp_path):
    lock = tmp_path / "erasures.lock"
    first = find(no_star.save_pretrained(tmp_path / "me" / "it"))
    second = find(no_cross.save_pretrained(tmp_path / "you" / "it"))
    add_pin(lock, "it", first)
    before = lock.read_text()
    with pytest.raises(ConceptSpecError, match="give another --name"):
        add_pin(lock, "it", second)
    assert lock.read_text() == before
    add_pin(lock, "it", find(no_cross.save_pretrained(tmp_path / "me" / "it")))  # the same, renewed
    assert lock.read_text() != before
