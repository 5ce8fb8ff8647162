"""The transcript of notes/2026-11-first-try.md.

The quickstart as a stranger does it, in an empty environment outside the repository.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, built_wheel, new_environment, provenance

TIMED = {
    "import diffusers_erasepro": ["python", "-c", "import diffusers_erasepro"],
    "python -c pass": ["python", "-c", "pass"],
    "erasepro --help": ["erasepro", "--help"],
}


def steps(page: str) -> Iterator[tuple[str, str]]:
    """("sh", a command) and ("python", all Python blocks so far), in the page's order.

    What needs a real model is left out.
    """
    so_far = ""
    for block in re.finditer(r"```python\n(.*?)```|^    (erasepro [^\n]*)$", page, re.M | re.S):
        code, command = block.groups()
        if command and "PATH/TO" not in command:
            yield "sh", command
        elif code:
            so_far += code
    yield "python", so_far


def ran(command: list[str], folder: Path, bin: Path) -> str:
    """What the command prints, in `folder`, with nothing of this checkout on its path."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env = clean | {"PATH": f"{bin}:/usr/bin:/bin", "COLUMNS": "110", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=folder, env=env, encoding="utf-8", capture_output=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def seconds(command: list[str], folder: Path, bin: Path) -> float:
    """The fastest of five."""
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        ran(command, folder, bin)
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--torch",
        default="torch==2.13.0",
        help="what to install first; a plain torch may bring CUDA",
    )
    parser.add_argument("--page", type=Path, default=ROOT / "notes" / "2026-11-first-try.md")
    args = parser.parse_args()
    where = provenance(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = built_wheel(folder)
        bin = new_environment(folder / "venv", args.torch, str(wheel))
        lines = [
            "# The first try",
            "",
            (
                f"`python benchmarks/first_try.py` wrote this page: {where}. A new environment in "
                "an empty folder,"
            ),
            (
                f"`pip install {args.torch} {wheel.name}` ({wheel.stat().st_size / 2**20:.1f} "
                "MB), then the commands of the"
            ),
            "[first steps](../docs/get-started.md), as they stand there.",
            "",
        ]
        for kind, text in steps((ROOT / "docs" / "get-started.md").read_text(encoding="utf-8")):
            out = ran(["bash", "-c", text] if kind == "sh" else ["python", "-c", text], folder, bin)
            shown = f"$ {text}"
            if kind != "sh":
                shown = f">>> # the Python blocks of the quickstart, one by one\n{text.rstrip()}"
            lines += ["```text", shown, *out.splitlines(), "```", ""]
        lines += ["| fastest of five | seconds |", "|---|---|"]
        lines += [
            f"| `{what}` | {seconds(command, folder, bin):.2f} |" for what, command in TIMED.items()
        ]
    args.page.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
