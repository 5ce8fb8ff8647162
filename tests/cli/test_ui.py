"""The page in a real browser: erase, see the picture change, toggle, download, errors, keyboard, a
narrow screen.

Gradio 6 wants an older Hub client than the pinned set has, so this runs in an environment of its
own: `make test-ui`.
"""

import shutil

import pytest

from diffusers_erasepro import ErasureAdapter

pytest.importorskip("gradio", reason="gradio is not installed; make test-ui")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; make test-ui"
)

WAIT = 120_000  # ms: two shared cores


@pytest.fixture(scope="module")
def address():
    from diffusers_erasepro.cli.gradio_app import page

    blocks = page("glyphs")
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, address):
    tab = browser.new_page()
    tab.set_default_timeout(WAIT)
    tab.goto(address)
    tab.get_by_role("button", name="Erase", exact=True).wait_for()
    yield tab
    tab.close()


IMAGES = ".grid-container img"


def pictures(tab):
    """The gallery's pictures, as their bytes, after asking for new ones."""
    old = [image.get_attribute("src") for image in tab.locator(IMAGES).all()]
    tab.get_by_role("button", name="Draw before and after").click()
    tab.wait_for_function(
        "([images, old]) => "
        "{const now = [...document.querySelectorAll(images)].map(i => i.getAttribute('src'));"
        " return now.length == 2 && JSON.stringify(now) !== JSON.stringify(old)}",
        arg=[IMAGES, old],
    )
    return [
        tab.request.get(image.get_attribute("src")).body() for image in tab.locator(IMAGES).all()
    ]


def test_erase_see_toggle_and_download(tab, tmp_path):
    tab.get_by_label("Target").fill("star")
    tab.get_by_label("Anchor").fill("circle")
    tab.get_by_role("button", name="Erase", exact=True).click()
    tab.get_by_text("on listed prompts").wait_for()
    switch = tab.get_by_label("no-star")
    assert switch.is_checked()

    tab.get_by_label("Prompts, one a line").fill("a red star on snow")
    before, after = pictures(tab)
    assert before != after

    with tab.expect_download() as got:
        tab.locator("a[download]").last.click()
    got.value.save_as(tmp_path / "no-star.safetensors")
    assert (
        ErasureAdapter.from_pretrained(tmp_path / "no-star.safetensors").spec.concepts[0].target
        == "star"
    )

    switch.uncheck()
    tab.get_by_text("All off: the base, bit for bit.").wait_for()
    before, after = pictures(tab)
    assert before == after
    switch.check()
    tab.get_by_text("Holds: residual").wait_for()


def test_errors_are_messages(tab):
    tab.get_by_label("Target").fill("ring")
    tab.get_by_label("Anchor").fill("ring")
    tab.get_by_role("button", name="Erase", exact=True).click()
    tab.get_by_text("there would be nothing to erase").first.wait_for()


def test_the_keyboard_is_enough(tab):
    tab.get_by_label("Target").focus()
    tab.keyboard.type("drop")
    tab.keyboard.press("Tab")
    tab.keyboard.type("circle")
    tab.keyboard.press("Enter")
    tab.get_by_label("no-drop").wait_for()
    assert tab.get_by_label("no-drop").is_checked()


def test_a_narrow_screen_needs_no_sideways_scrolling(tab):
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.get_by_role("button", name="Erase", exact=True).wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for label in ("Target", "Anchor", "Prompts, one a line"):
        assert tab.get_by_label(label).is_visible()
