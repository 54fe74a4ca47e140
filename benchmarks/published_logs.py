"""TOFU's published evaluation logs, recomputed beside TOFU's own script; behind docs/results-evaluation.md.

git clone https://github.com/locuslab/tofu
python -m benchmarks.published_logs tofu

The logs of TOFU's fine-tuned and retrained models lie in that repository, item by item. Their aggregates are
worked out twice: by the two functions of its ``aggregate_eval_stat.py``, run as they are (but for the two
imports that read a command line), and by what ``ngdiff recompute`` runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.pages import put
from ngdiff.evaluation.openunlearning import read_log
from ngdiff.evaluation.recompute import recompute

MODELS = {"Llama-2-7B": "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01", "Phi-1.5": "ft_epoch5_lr2e-05_phi_{}_wd0.01"}
PARTS = ("full", "retain99", "retain95", "retain90")
LOG = "eval_results/ds_size300/eval_log_aggregated.json"
FULL_AGAINST = "retain90"
"""The retrained models that were asked the fine-tuned ones' forget questions, forget10's."""

Own = Callable[..., dict[str, float]]


def own_functions(clone: Path) -> tuple[Own, Own]:
    """Return TOFU's functions for model utility and forget quality."""
    without_command_line: Any = ModuleType("hydra")
    without_command_line.main = lambda **_: lambda function: function
    settings: Any = ModuleType("omegaconf")
    settings.OmegaConf = None
    sys.modules.setdefault("hydra", without_command_line)
    sys.modules.setdefault("omegaconf", settings)
    names: dict[str, Any] = {"__name__": "aggregate_eval_stat"}
    exec((clone / "aggregate_eval_stat.py").read_text(encoding="utf-8"), names)
    return names["get_model_utility"], names["get_forget_quality"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path, help="TOFU's repository")
    repository = parser.parse_args().clone
    utility, quality = own_functions(repository)
    clone = repository / "data"
    lines = [
        "| log | model utility: TOFU | recomputed | forget truth ratio: TOFU | recomputed "
        "| forget quality: TOFU | recomputed |",
        "|" + "---|" * 7,
    ]
    worst = 0.0
    for model, folder in MODELS.items():
        against = clone / folder.format(FULL_AGAINST) / LOG
        retrained, reference = json.loads(against.read_text(encoding="utf-8")), read_log(against)
        for part in PARTS:
            path = clone / folder.format(part) / LOG
            log = json.loads(path.read_text(encoding="utf-8"))
            theirs = utility(log)
            stated = [theirs["Model Utility"], theirs["Truth Ratio Forget"]]
            compared = part in ("full", FULL_AGAINST)
            ours = recompute(read_log(path), reference if compared else None)
            keys = ["model_utility", "forget.truth_ratio"]
            if compared:
                stated.append(quality(log, retrained)["Forget Quality"])
                keys.append("forget_quality")
            found = [ours[key].exact or 0.0 for key in keys]
            worst = max([worst, *(abs(a / b - 1) for a, b in zip(found, stated, strict=True))])
            cells = [f"{value:.6g}" for pair in zip(stated, found, strict=True) for value in pair]
            lines.append(f"| {model}, {part} | {' | '.join(cells + [''] * (6 - len(cells)))} |")
    put("Published logs", "\n".join(lines))
    print("\n".join(lines), f"\nlargest relative difference: {worst:.1e}")


if __name__ == "__main__":
    main()
