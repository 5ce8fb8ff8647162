"""The table of docs/families.md: runs tests/families/test_families.py on every tiny pipeline.

`python benchmarks/families.py`
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
START = "<!-- table: benchmarks/families.py -->"
END = "<!-- end of table -->"


class Results:
    """What each check said of each family."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = re.search(r"::test_(\w+)\[(\w+Pipeline)\]$", report.nodeid)
        if found and (report.when == "call" or report.failed) and "probe" not in found[1]:
            self.cells.setdefault(found[2], {})[found[1].replace("_", " ")] = (
                "yes" if report.passed else "**no**"
            )

    def table(self) -> str:
        """Families x checks, in Markdown."""
        checks = list(dict.fromkeys(check for row in self.cells.values() for check in row))
        lines = ["| pipeline | " + " | ".join(checks) + " |", "|---" * (1 + len(checks)) + "|"]
        lines += [
            f"| {name} | " + " | ".join(row.get(c, "") for c in checks) + " |"
            for name, row in self.cells.items()
        ]
        return "\n".join(lines)


if __name__ == "__main__":
    results = Results()
    code = pytest.main(
        [str(ROOT / "tests" / "test_families.py"), "-m", "slow or not slow"], plugins=[results]
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8"
    ).stdout.strip()
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    note = f"`python benchmarks/families.py`, CPU, float32, commit {commit}."
    PAGE.write_text(
        f"{before}{START}\n{note}\n\n{results.table()}\n{END}{rest.split(END)[1]}", encoding="utf-8"
    )
    sys.exit(code)
