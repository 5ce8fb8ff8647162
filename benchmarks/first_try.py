"""The transcript in docs/quickstart.md: its commands and Python as a stranger types them, in an empty environment outside the repository.

Every command and every Python block of the page is run, and what it printed is written under it. `--here` takes the
environment that runs this script, for a check; tests/test_docs.py does that.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from common import provenance

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "quickstart.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```\n", re.M | re.S)
PYTHON = re.compile(r"(^```python\n(.*?)^```\n)(?:\n```text\n.*?^```\n)?", re.M | re.S)
TRIED = re.compile(r"^Tried by .*?\n\n", re.M | re.S)
TIMED = {"import diffusers_erasepro": ["python", "-c", "import diffusers_erasepro"], "erasepro --help": ["erasepro", "--help"]}
MARK = "----- next block -----"


def run(command: list[str], folder: Path, bin: Path) -> str:
    """What a shell without a terminal shows of the command: nothing of this checkout is on its path."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env = clean | {"PATH": f"{bin}:/usr/bin:/bin", "COLUMNS": "110", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def transcript(page: str, folder: Path, bin: Path) -> str:
    """The page with what its commands and its Python print now.

    The Python blocks are one program, which runs after the commands.
    """

    def answered(block: re.Match[str]) -> str:
        commands = re.findall(r"^\$ (.*)$", block[1], re.M)
        said = [f"$ {c}\n{run(['bash', '-c', c], folder, bin)}" for c in commands]
        return f"```console\n{''.join(said)}```\n"

    page = CONSOLE.sub(answered, page)
    blocks = [block[2] for block in PYTHON.finditer(page)]
    printed = iter(run(["python", "-c", f"print({MARK!r})\n".join(blocks)], folder, bin).split(f"{MARK}\n"))
    return PYTHON.sub(lambda b: b[1] + (f"\n```text\n{said}```\n" if (said := next(printed)) else ""), page)


def fastest(command: list[str], folder: Path, bin: Path) -> float:
    """Seconds, the fastest of seven."""
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        run(command, folder, bin)
        taken.append(time.perf_counter() - began)
    return min(taken)


def installed(folder: Path, torch: str) -> tuple[Path, str]:
    """A new environment with the wheel of this tree; its programs, and how it was made."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    subprocess.run([folder / "venv" / "bin" / "pip", "install", "-q", torch, str(wheel)], check=True)
    return folder / "venv" / "bin", f"a new environment, `pip install {torch} {wheel.name}` ({wheel.stat().st_size / 1e6:.0f} MB)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install first; a plain torch may bring CUDA")
    parser.add_argument("--bin", type=Path, help="programs of an environment that has the wheel already")
    args = parser.parse_args()
    where = provenance(0)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as empty:
        bin, how = (args.bin, f"the wheel in {args.bin}") if args.bin else installed(Path(name), args.torch)
        seconds = {what: fastest(command, Path(empty), bin) for what, command in TIMED.items()}
        page = transcript(PAGE.read_text(), Path(empty), bin)
    times = ", ".join(f"`{what}` {took:.2f} s" for what, took in seconds.items())
    tried = f"Tried by `benchmarks/first_try.py` in an empty folder: {how};\n{where}. Fastest of seven: {times}.\n\n"
    PAGE.write_text(TRIED.sub(lambda _: tried, page))


if __name__ == "__main__":
    main()
