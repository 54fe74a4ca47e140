"""figures before and after an audit, of all models -> what the audit brought out, with intervals.

A figure says something only beside what a model without the knowledge would show under the same audit:

- with the retrained model: its figure under the same audit, item by item; and where there is a holdout, too,
  that difference on the forget set beside the same difference on text never seen;
- without it: text never seen, after the same treatment, both in its level and in its rise.

Something was brought out only where *every* comparison at hand says so, by permutation tests whose p-values
are adjusted for all the findings of the audit: a model that never saw the forget set is accused of anything
at all in at most 1 audit of 40. Without a holdout and without the retrained model nothing is concluded.

All tests are permutation tests: where forget set and never-seen text are alike to a model that saw neither,
every way of dealing the items to the two sets is equally likely. With few items nothing can be shown, and the
tests say so: of 3 and 3 items no p-value is below 0.05.

Source: Good 2005, "Permutation, parametric and bootstrap tests of hypotheses", chapters 3 and 5; for two ROC
curves Venkatraman & Begg 1996, Biometrika 83(4); for many tests at once Holm 1979, Scand. J. Statist. 6(2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from ngdiff.audits.subject import Audit, Outcome, Role
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.statistics import auc_resamples, interval, percentiles

RETRAINED = "the retrained model under the same audit"
RETRAINED_NEVER_SEEN = "the same difference on text never seen"
NEVER_SEEN = "text never seen under the same audit"
TARGET_NEVER_SEEN = "the target model on text never seen"
NEVER_SEEN_RISE = "the rise of text never seen under the same audit"
GUESSING = "guessing"

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """One figure beside one level that a model without the knowledge reaches.

    Args:
        beside: what it is compared with.
        excess: how far it is above that.
        interval: of the excess, 95% over items.
        p_value: chance of such an excess where there is none, before any adjustment.
    """

    beside: str
    excess: float
    interval: Bounds
    p_value: float


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
        comparisons: every fair comparison at hand; empty where there is none.
        p_value: the largest of theirs, adjusted for the number of findings; ``None`` without one.
        found: whether that is at most 0.025; ``None`` without a comparison.
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
    comparisons: Sequence[Comparison] = field(default_factory=tuple)
    p_value: float | None = None
    found: bool | None = None

    @property
    def weakest(self) -> Comparison | None:
        """The comparison that says least, which decides."""
        return max(self.comparisons, key=lambda one: one.p_value, default=None)


def find(
    audits: Sequence[Audit],
    outcomes: Mapping[str, Mapping[Role, Mapping[str, Outcome]]],
    before: Mapping[Role, Mapping[str, Figure]],
    bootstrap: Bootstrap,
) -> list[Finding]:
    """Compare the outcomes of all audits, and decide with all of them in view.

    Args:
        audits: rows of the table.
        outcomes: audit to role to form to outcome.
        before: role to the figures before any audit.
        bootstrap: how intervals are drawn.
    """
    return decided(
        [
            _Compared(audit, form, key, outcomes[audit.name], before, bootstrap).finding()
            for audit in audits
            for form, mine in outcomes[audit.name].get("audited", {}).items()
            for key in audit.headlines
            if key in mine.figures and mine.figures[key].value is not None
        ]
    )


def decided(findings: Sequence[Finding]) -> list[Finding]:
    """Adjust p-values for the number of findings that have one, and say what was found."""
    weakest = [finding.weakest for finding in findings]
    adjusted = iter(holm([one.p_value for one in weakest if one is not None]))
    result = []
    for finding, one in zip(findings, weakest, strict=True):
        p_value = None if one is None else next(adjusted)
        found = None if p_value is None else p_value <= LEVEL
        result.append(replace(finding, p_value=p_value, found=found))
    return result


@dataclass(frozen=True)
class _Compared:
    audit: Audit
    form: str
    key: str
    roles: Mapping[Role, Mapping[str, Outcome]]
    before: Mapping[Role, Mapping[str, Figure]]
    bootstrap: Bootstrap

    def finding(self) -> Finding:
        figure = self._figure("audited")
        assert figure is not None and figure.value is not None
        earlier = self._earlier("audited", self.key)
        start: float | None = None
        change: tuple[float | None, Bounds | None] = (None, None)
        recovered: tuple[float | None, Bounds | None] = (None, None)
        if earlier is not None and self.audit.changes:
            gained = _minus(_items(figure), earlier)
            change, recovered = self._mean(gained), self._recovered(gained, earlier)
            start = sum(earlier) / len(earlier)
        return Finding(
            self.audit.name,
            self.form,
            self.key,
            start,
            figure.value,
            figure.interval,
            *change,
            *recovered,
            tuple(self._of_attack(figure) if figure.metric == "auc" else self._of_items()),
        )

    def _figure(self, role: Role, key: str | None = None) -> Figure | None:
        outcome = self.roles.get(role, {}).get(self.form)
        found = None if outcome is None else outcome.figures.get(key or self.key)
        return None if found is None or found.value is None else found

    def _after(self, role: Role, key: str) -> list[float] | None:
        figure = self._figure(role, key)
        return None if figure is None else _items(figure)

    def _earlier(self, role: Role, key: str) -> list[float] | None:
        """Return a model's items before the audit, on the rows that the audit measures."""
        figure = self.before.get(role, {}).get(key)
        outcome = self.roles["audited"][self.form]
        if figure is None:
            return None
        items, rows = _items(figure), outcome.rows.get(key.partition(".")[0])
        return items if rows is None else [items[row] for row in rows]

    def _mean(self, values: Sequence[float]) -> tuple[float, Bounds]:
        boot = self.bootstrap
        bounds = interval(values, resamples=boot.resamples, seed=boot.seed)
        return sum(values) / len(values), bounds

    def _recovered(
        self, gained: Sequence[float], earlier: Sequence[float]
    ) -> tuple[float | None, Bounds | None]:
        target = self._earlier("target", self.key)
        if target is None:
            return None, None
        return share_recovered(gained, _minus(target, earlier), self.bootstrap)

    # ---- comparisons ----

    def _of_items(self) -> Iterator[Comparison]:
        unseen = self.key.replace("forget.", "holdout.", 1)
        mine, never = self._after("audited", self.key), self._after("audited", unseen)
        theirs, their_never = self._after("reference", self.key), self._after("reference", unseen)
        assert mine is not None
        if theirs is not None:
            apart = _minus(mine, theirs)
            seed = self.bootstrap.seed
            yield Comparison(RETRAINED, *self._mean(apart), flipped(apart, seed=seed))
            if never is not None and their_never is not None and not self.audit.damage:
                yield self._beside(RETRAINED_NEVER_SEEN, apart, _minus(never, their_never))
        elif self.audit.damage and (whole := self._after("target", unseen)) is not None:
            yield self._beside(TARGET_NEVER_SEEN, mine, whole)
        elif never is not None:
            yield self._beside(NEVER_SEEN, mine, never)
            earlier = self._earlier("audited", self.key)
            never_earlier = self._earlier("audited", unseen)
            if self.audit.changes and earlier is not None and never_earlier is not None:
                rises = _minus(mine, earlier), _minus(never, never_earlier)
                yield self._beside(NEVER_SEEN_RISE, *rises)

    def _beside(self, beside: str, left: Sequence[float], right: Sequence[float]) -> Comparison:
        value, bounds = difference_of_means(left, right, self.bootstrap)
        return Comparison(beside, value, bounds, permuted(left, right, seed=self.bootstrap.seed))

    def _of_attack(self, mine: Figure) -> Iterator[Comparison]:
        """Compare an AUC with the retrained model's or with 1/2, both ways."""
        theirs, boot = self._figure("reference"), self.bootstrap
        count = len(self.before["audited"]["forget.nll"].items)
        members, others = _items(mine)[:count], _items(mine)[count:]
        drawn = auc_resamples(members, others, seed=boot.seed, resamples=boot.resamples)
        assert mine.value is not None
        if theirs is None:
            low, high = percentiles(drawn - 0.5)
            p_value = permuted(*_ranked(members, others), "two-sided", boot.seed)
            yield Comparison(GUESSING, mine.value - 0.5, (low, high), p_value)
            return
        assert theirs.value is not None
        known = _items(theirs)
        again = auc_resamples(known[:count], known[count:], seed=boot.seed, resamples=boot.resamples)
        p_value = ranks_apart(_items(mine), known, count, boot.seed)
        yield Comparison(RETRAINED, mine.value - theirs.value, percentiles(drawn - again), p_value)


def _ranked(members: Sequence[float], others: Sequence[float]) -> tuple[list[float], list[float]]:
    ranks = rankdata([*members, *others]).tolist()
    return ranks[: len(members)], ranks[len(members) :]


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


# ---- permutation tests ----


Side = Literal["greater", "two-sided"]

LEVEL = 0.025
"""Chance of one or more false findings in a whole audit of a model that never saw the forget set.

As of a 95% interval that lies above 0.
"""

PERMUTATIONS = 9_999
"""Drawn where there are more than can be counted out."""

_AT_ONCE = 4_000_000


def permuted(left: Sequence[float], right: Sequence[float], side: Side = "greater", seed: int = 0) -> float:
    """Return the p-value of mean(left) - mean(right), items being dealt to the two sets at random.

    Args:
        left: one number an item.
        right: those of the other set.
        side: ``greater`` asks whether the left mean is the greater one.
        seed: of the permutations drawn, where there are too many.
    """
    return _tested((left, right), _difference, "independent", side, seed)


def flipped(differences: Sequence[float], side: Side = "greater", seed: int = 0) -> float:
    """Return the p-value of the mean of paired differences, their signs being dealt at random."""
    return _tested((differences,), _mean, "samples", side, seed)


def ranks_apart(mine: Sequence[float], theirs: Sequence[float], members: int, seed: int = 0) -> float:
    """Return the two-sided p-value of a difference between two models' AUCs on the same items.

    An AUC is linear in the members' ranks, so exchanging the two models' ranks of an item flips the sign of
    its share in the difference.

    Args:
        mine: scores of one model, those of the members first.
        theirs: scores of the other, in the same order.
        members: how many are members.
        seed: of the signs drawn, where there are too many.
    """
    apart = rankdata(mine) - rankdata(theirs)
    others = len(apart) - members
    return flipped([*(apart[:members] / members), *(-apart[members:] / others)], "two-sided", seed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number: at most 1, in the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for passed, place in enumerate(order):
        reached = max(reached, min(1.0, (len(p_values) - passed) * p_values[place]))
        adjusted[place] = reached
    return adjusted


def _tested(
    samples: tuple[Sequence[float], ...], statistic: object, kind: str, side: Side, seed: int
) -> float:
    arrays = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    size = sum(map(len, arrays))
    if all(bool((array == arrays[0][0]).all()) for array in arrays) and (
        len(arrays) > 1 or not arrays[0].any()
    ):
        return 1.0
    found = permutation_test(
        arrays,
        statistic,
        permutation_type=kind,
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=max(1, _AT_ONCE // size),
        alternative=side,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _difference(left: NDArray[np.float64], right: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.mean(left, axis=axis) - np.mean(right, axis=axis)
    return found


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.mean(values, axis=axis)
    return found
