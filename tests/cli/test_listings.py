"""What ``ngdiff ls`` shows is what the tables hold, and showing it loads none of the code behind them."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.listings import FILE, written

ALONE = """
import sys
sys.argv = ["ngdiff", "ls", {table!r}]
from ngdiff.cli.app import main
try:
    main()
finally:
    loaded = sorted({{"torch", "transformers", "numpy"}} & set(sys.modules))
    assert not loaded, loaded
"""


def test_the_tables_are_written_out_as_they_are() -> None:
    assert FILE.read_text(encoding="utf-8") == written(), "run: python -m benchmarks.listings"


def test_to_list_methods_loads_no_torch() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ALONE.format(table="methods")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "ngdiff-counterfactual" in ran.stdout
