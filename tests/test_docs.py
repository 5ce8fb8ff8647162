"""Every Python snippet of the documents runs, page by page, in a folder of its own.

The site builds without a warning.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MODEL = re.compile(r'StableDiffusionPipeline\.from_pretrained\("([^"]+)"')
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if SNIPPET.search(p.read_text())], ids=lambda p: p.stem
)
def test_the_snippets_run(page, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    for model in {*MODEL.findall(page.read_text())}:  # a folder of that name, a small layout
        tiny.build("StableDiffusionPipeline").save_pretrained(model)
    names = {}
    for code in SNIPPET.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), names)


def test_links_between_pages_and_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_in_the_documents_exist():
    from diffusers_erasepro.cli.main import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    for page in PAGES:
        for command in re.findall(
            r"^(?:    |\$ )erasepro ([a-z-]+)", page.read_text(), re.MULTILINE
        ):
            assert command in known, f"{page.name}: erasepro {command}"


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
