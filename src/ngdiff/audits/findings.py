"""figures before and after an audit, of all models -> what the audit brought out, with intervals.

Differences are taken item by item, since every model answers the same questions, and drawn anew together.
What counts as brought out is a rise over the fairest level there is: the retrained model under the same
audit; without one, the model itself before it (or, for extraction, text never seen).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ngdiff.audits.row import Audit, Outcome, Role
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.statistics import interval
from ngdiff.evaluation.two_samples import percentiles

HEADLINES = ("forget.extraction_strength", "forget.probability", "forget.rouge", "forget.membership.min_k")
"""Figures that findings are made of, the one that decides first."""

RETRAINED = "the retrained model under the same audit"
ITSELF = "the model before the audit"
NEVER_SEEN = "text never seen"
GUESSING = "guessing"

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Finding:
    """One figure of the audited model under one form of an audit.

    Args:
        audit: its name.
        form: of the audit, such as ``8 bits``.
        figure: key.
        before: on the same items, before the audit; ``None`` where the audit changes nothing.
        after: under it, with its interval.
        change: after minus before.
        recovered: share of what the target model had above it that came back, where the target is given.
        beside: what the figure is compared with, or ``None`` where nothing fair is at hand.
        excess: after minus that.
        found: whether the excess is above 0 beyond chance (membership: away from 0); ``None`` without one.
    """

    audit: str
    form: str
    figure: str
    before: float | None
    after: float
    after_interval: Bounds | None
    change: float | None = None
    change_interval: Bounds | None = None
    recovered: float | None = None
    recovered_interval: Bounds | None = None
    beside: str | None = None
    excess: float | None = None
    excess_interval: Bounds | None = None
    found: bool | None = None


def find(
    audit: Audit,
    outcomes: Mapping[Role, Mapping[str, Outcome]],
    before: Mapping[Role, Mapping[str, Figure]],
    bootstrap: Bootstrap,
) -> list[Finding]:
    """Compare one audit's outcomes.

    Args:
        audit: the row of the table.
        outcomes: role to form to outcome.
        before: role to the figures before any audit.
        bootstrap: how intervals are drawn.
    """
    findings = []
    for form, mine in outcomes["audited"].items():
        theirs = outcomes.get("reference", {}).get(form)
        for key in HEADLINES:
            if key in mine.figures and mine.figures[key].value is not None:
                finding = _Compared(audit, form, key, mine, theirs, before, bootstrap).finding()
                findings.append(finding)
    return findings


@dataclass(frozen=True)
class _Compared:
    audit: Audit
    form: str
    key: str
    mine: Outcome
    theirs: Outcome | None
    before: Mapping[Role, Mapping[str, Figure]]
    bootstrap: Bootstrap

    def finding(self) -> Finding:
        found = self.mine.figures[self.key]
        assert found.value is not None
        earlier = self._earlier("audited")
        start: float | None = None
        change: tuple[float | None, Bounds | None] = (None, None)
        recovered: tuple[float | None, Bounds | None] = (None, None)
        if earlier is not None and self.audit.changes:
            gained = _minus(_items(found), earlier)
            change, recovered = self._mean(gained), self._recovered(gained, earlier)
            start = sum(earlier) / len(earlier)
        beside, excess = self._excess(earlier)
        return Finding(
            self.audit.name,
            self.form,
            self.key,
            start,
            found.value,
            found.interval,
            *change,
            *recovered,
            beside,
            *excess,
            self._stands_out(excess[1]),
        )

    def _earlier(self, role: Role) -> list[float] | None:
        """Return a model's items before the audit, on the rows that the audit measures."""
        figure = self.before.get(role, {}).get(self.key)
        if figure is None:
            return None
        items = _items(figure)
        return items if self.mine.rows is None else [items[row] for row in self.mine.rows]

    def _mean(self, values: Sequence[float]) -> tuple[float, Bounds]:
        boot = self.bootstrap
        bounds = interval(values, resamples=boot.resamples, seed=boot.seed)
        return sum(values) / len(values), bounds

    def _recovered(
        self, gained: Sequence[float], earlier: Sequence[float]
    ) -> tuple[float | None, Bounds | None]:
        target = self._earlier("target")
        if target is None:
            return None, None
        return share_recovered(gained, _minus(target, earlier), self.bootstrap)

    def _excess(
        self, earlier: Sequence[float] | None
    ) -> tuple[str | None, tuple[float | None, Bounds | None]]:
        mine = self.mine.figures[self.key]
        assert mine.value is not None
        theirs = None if self.theirs is None else self.theirs.figures.get(self.key)
        if mine.metric == "auc":
            known = None if theirs is None else theirs.value
            level = 0.5 if known is None else known
            low, high = mine.interval or (mine.value, mine.value)
            return (
                GUESSING if known is None else RETRAINED,
                (mine.value - level, (low - level, high - level)),
            )
        if theirs is not None:
            return RETRAINED, self._mean(_minus(_items(mine), _items(theirs)))
        if not self.audit.changes:
            return self._over_never_seen(mine)
        if self.form in self.audit.teaches or earlier is None:
            return None, (None, None)
        return ITSELF, self._mean(_minus(_items(mine), earlier))

    def _over_never_seen(self, mine: Figure) -> tuple[str | None, tuple[float | None, Bounds | None]]:
        never = self.mine.figures.get(self.key.replace("forget.", "holdout."))
        if never is None:
            return None, (None, None)
        return NEVER_SEEN, difference_of_means(_items(mine), _items(never), self.bootstrap)

    def _stands_out(self, bounds: Bounds | None) -> bool | None:
        if bounds is None:
            return None
        both_ways = self.mine.figures[self.key].metric == "auc"
        return bounds[0] > 0 or (both_ways and bounds[1] < 0)


def _items(figure: Figure) -> list[float]:
    return [item for item in figure.items if item is not None]


def _minus(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def share_recovered(
    gained: Sequence[float], lost: Sequence[float], bootstrap: Bootstrap
) -> tuple[float | None, Bounds | None]:
    """Return sum(gained) / sum(lost), with its interval over items drawn together; none where none was lost.

    Resamples in which nothing was lost are left out of the interval.
    """
    top, bottom = np.asarray(gained, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    if bottom.sum() <= 0:
        return None, None
    rng = np.random.default_rng(bootstrap.seed)
    count = len(top)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap.resamples)
    tops, bottoms = drawn @ top, drawn @ bottom
    usable = bottoms > 0
    return float(top.sum() / bottom.sum()), percentiles(tops[usable] / bottoms[usable])


def difference_of_means(
    left: Sequence[float], right: Sequence[float], bootstrap: Bootstrap
) -> tuple[float, Bounds]:
    """Return mean(left) - mean(right) with its interval; both samples are drawn anew, independently."""
    rng = np.random.default_rng(bootstrap.seed)
    draws = []
    for sample in (np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)):
        count = len(sample)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap.resamples)
        draws.append(drawn @ sample / count)
    value = sum(left) / len(left) - sum(right) / len(right)
    return value, percentiles(draws[0] - draws[1])
