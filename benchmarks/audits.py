"""TOFU -> what every audit brings out of the target, the retrained model and each method's model.

    python -m benchmarks.audits --split forget10 --jobs 6 --batch-size 32          # one data-centre GPU
    python -m benchmarks.audits --split forget01 --questions 400 --samples 16      # two cores, hours

Models are made as by ``benchmarks.goals``, in the same folder, unless they are there. Each is put to all
audits, beside the retrained model and text never seen (TOFU's first questions, where they were not learned;
else TOFU's holdout, where the data has it). The retrained model itself is compared with text never seen
alone. An audit that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.goals import ALL, SIZES, Goals
from ngdiff.audits.audit import audit_several
from ngdiff.audits.audit_request import AuditRequest
from ngdiff.data.sources import read_rows
from ngdiff.settings import DEFAULT_METHOD

METHODS = (DEFAULT_METHOD, "ngdiff", "graddiff", "npo")
COMPARED = ("target", "retrained")
Audit = Mapping[str, Any]


class Audits(Goals):
    """Folders and audits of one study."""

    def audits(self) -> dict[str, Audit]:
        """Make models and audits that are missing; return every audit by model."""
        self.make()
        names = [*COMPARED, *self.methods]
        missing = [name for name in names if not self._audit(name).exists()]
        beside = [name for name in missing if name != "retrained"]
        for group, reference in ((beside, "retrained"), ([n for n in missing if n not in beside], None)):
            if group:
                audit_several([self._request(name, reference) for name in group])
        return {name: json.loads(self._audit(name).read_text(encoding="utf-8")) for name in names}

    def _audit(self, name: str) -> Path:
        return Path(self.folder / f"{name}.audit.json")

    def _never_seen(self) -> tuple[str, ...]:
        """Write TOFU's first questions to a file, where they were not learned."""
        size = min(SIZES[self.args.split], max(0, ALL - self.args.questions))
        if not size:
            return ()
        rows = [json.dumps(row.values) for row in read_rows(f"tofu:full[:{size}]", where="--questions")]
        file = self.folder / "never_seen.jsonl"
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return (str(file),)

    def _request(self, name: str, reference: str | None) -> AuditRequest:
        args, folder = self.args, self.asked()
        return AuditRequest(
            str(self.folder / name),
            self._audit(name),
            (args.split,),
            holdout=self._never_seen(),
            suite="tofu",
            target=str(self.folder / "target"),
            reference=None if reference is None else str(self.folder / reference),
            folders={} if folder is None else {"tofu": folder},
            samples=args.samples,
            batch_size=int(args.batch_size or 8),
        )


def table(audits: Mapping[str, Audit]) -> str:
    """Return one row a figure of each form of an audit and one column a model, in Markdown.

    A cell has the figure, before → under the audit, and how far it is above the comparison that says least,
    in bold where something was found.
    """
    by_model = {
        name: {(one["audit"], one["form"], one["figure"]): one for one in found["findings"]}
        for name, found in audits.items()
    }
    keys = dict.fromkeys(key for found in by_model.values() for key in found)
    lines = [f"| audit | figure | {' | '.join(audits)} |", "|" + "---|" * (len(audits) + 2)]
    for audit, form, figure in keys:
        cells = [_cell(found.get((audit, form, figure))) for found in by_model.values()]
        lines.append(f"| {audit}: {form} | {figure.removeprefix('forget.')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(finding: Audit | None) -> str:
    if finding is None:
        return ""
    before = "" if finding["before"] is None else f"{finding['before']:.3f} → "
    text = f"{before}{finding['after']:.3f}"
    if not finding["comparisons"]:
        return text
    weakest = max(finding["comparisons"], key=lambda one: one["p_value"])
    excess = f"{weakest['excess']:+.3f} [{weakest['interval'][0]:.3f}, {weakest['interval'][1]:.3f}]"
    return f"{text} (**{excess}**)" if finding["found"] else f"{text} ({excess})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Goals.add_arguments(parser, METHODS)
    parser.add_argument("--samples", type=int, default=64, help="answers sampled to each question")
    study = Audits(parser.parse_args())
    text = table(study.audits())
    (study.folder / "audits.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
