"""The table of benchmarks/results/versions.md.

The wheel in environments with the lowest and the newest versions it says it works with.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import tomllib
from pathlib import Path

from common import ROOT, built_wheel, commit, new_environment, provenance

NAMES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface_hub",
)
TESTING = ("pytest", "hypothesis", "fastapi", "uvicorn", "ftfy")
SMOKE = (
    "tests/erasure/test_erase.py",
    "tests/adapters/test_adapter.py",
    "tests/loaders/test_loader.py",
    "tests/loaders/test_compose.py",
)


def bounds() -> list[str]:
    """What pyproject.toml asks for, of `NAMES`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = tomllib.load(file)["project"]["dependencies"]
    return [line for line in asked if line.partition(">=")[0] in NAMES]


def lowest() -> list[str]:
    """The lower bounds as exact versions."""
    return [line.replace(">=", "==") for line in bounds()]


def tried(label: str, pins: list[str], folder: Path, wheel: Path) -> str:
    """A row: what was installed, and how the smoke tests ended.

    Below it the errors they met, each once.
    """
    bin = new_environment(folder / label, *pins, str(wheel), *TESTING)
    listed = subprocess.run(
        [bin / "pip", "list", "--format=freeze"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    have = dict(line.replace("-", "_").split("==") for line in listed.split())
    done = subprocess.run(
        [bin / "python", "-m", "pytest", *SMOKE], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
    last = done.stdout.strip().splitlines()[-1]
    errors = {
        line.removeprefix("E").strip()
        for line in done.stdout.splitlines()
        if line.startswith("E  ") and "Error" in line
    }
    versions = " | ".join(have.get(name, "-") for name in NAMES)
    row = f"| {label} | {versions} | {last.strip('= ')} | {commit()} |"
    return "\n".join([row, *(f"- {label}: `{error}`" for error in sorted(errors))])


def earlier(page: Path, label: str) -> list[str]:
    """The lines of a label on the page of an earlier run."""
    return [
        line
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith((f"| {label} |", f"- {label}:"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        choices=["lowest", "newest"],
        help="run this row; the other stays as the page has it",
    )
    parser.add_argument(
        "--newest-torch", default="torch", help="a requirement; a plain torch may bring CUDA"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks/results/versions.md")
    args = parser.parse_args()
    where = provenance(0)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        wheel = built_wheel(Path(name))
        for label, pins in {"lowest": lowest(), "newest": [args.newest_torch, *NAMES[1:]]}.items():
            run = args.only in (None, label)
            lines += (
                tried(label, pins, Path(name), wheel).splitlines()
                if run
                else earlier(args.page, label)
            )
    rows = [line for line in lines if line[0] == "|"]
    errors = [line for line in lines if line[0] == "-"]
    args.page.write_text(
        "\n".join(
            [
                "# Versions",
                "",
                f"pyproject.toml asks for `{', '.join(bounds())}`.",
                "",
                (
                    f"`python benchmarks/matrix.py` wrote this page: {where}; each row names the "
                    "commit it ran on."
                ),
                (
                    "The wheel in a new environment, and the smoke tests "
                    f"({', '.join(f'`{path}`' for path in SMOKE)}) against it."
                ),
                "",
                f"| | {' | '.join(NAMES)} | tests | commit |",
                "|---|" + "---|" * (len(NAMES) + 2),
                *rows,
                "",
                *errors,
                "",
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
