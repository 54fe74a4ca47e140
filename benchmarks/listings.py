"""Write out the tables that ``ngdiff ls`` shows, so that it need not load the code behind them.

    python -m benchmarks.listings

Run it after a change to a table of methods, losses, rules, data sets, suites, metrics or audits; a test fails
where it was forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path

from ngdiff.cli.listing import LISTINGS, TABLES

FILE = Path(__file__).parent.parent / "src" / "ngdiff" / "cli" / LISTINGS


def written() -> str:
    """Return the file's text: by the name of each table its titles and its rows, one a line."""
    parts = []
    for name, make in TABLES.items():
        titles, rows = make()
        lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in (titles, *rows))
        parts.append(f" {json.dumps(name)}: [\n{lines}\n ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Write the file."""
    FILE.write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    main()
