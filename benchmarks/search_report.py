"""How good an answer is, by the truth: regret, cost, wrong verdicts; and whether the goals are met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from benchmarks.search_curves import TableCurves
from benchmarks.search_studies import Outcome
from benchmarks.search_truth import Truth
from tuner.evidence import PairedDifference, Verdict
from tuner.search.statistics import paired_difference
from tuner.spec import ClipSetting, StudySpec

#: Relative difference that matters, as in a study that does not say.
EFFECT = StudySpec(workload="simulated").effect
#: Goals of the project for its own studies.
MEDIAN_REGRET, P90_REGRET, WRONG_VERDICTS, COST_SHARE = 0.02, 0.10, 0.05, 1 / 3
#: Regrets that differ by less are equal: a thousandth of the gap is less than a step of the truth's grid costs.
TOLERANCE = 0.001
#: The strategy whose answers are to be had for less, with rising numbers of seeds.
RIVALS = ("tpe-1", "tpe-2", "tpe-3", "tpe-5", "tpe-8")


class Judge:
    """What a problem's table says of an answer.

    The value of a setting is the mean over all seeds. A run that ends worse than it began counts as one that did not
    train, so that a mean is about the answer and not about how far the worst run exploded.

    Args:
        truth: the problem's table.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._curves = TableCurves(truth, range(truth.num_seeds))

    @cached_property
    def _finals(self) -> list[list[float]]:
        """Last objective by setting and seed."""
        return [
            [
                start if each[-1] is None else min(each[-1], start)
                for each, start in zip(row, self._truth.initial, strict=True)
            ]
            for row in self._truth.values
        ]

    @cached_property
    def _means(self) -> list[float]:
        return [statistics.fmean(row) for row in self._finals]

    @property
    def off(self) -> float:
        """Without clipping."""
        return self._means[0]

    @cached_property
    def best_row(self) -> int:
        """The best threshold that ever clips."""
        rows = [
            row
            for row, text in enumerate(self._truth.settings)
            if ClipSetting.parse(text).threshold is not None and any(self._truth.clip_fraction[row])
        ]
        return min(rows, key=lambda row: self._means[row])

    @property
    def best(self) -> float:
        """The lowest value of any setting at the workload's own learning rate, *off* included."""
        return min(self.off, self._means[self.best_row])

    @cached_property
    def difference(self) -> PairedDifference:
        """The best threshold against *off* over all seeds, its interval corrected for the choice among the grid.

        Raises:
            ValueError: if the truth has fewer than two seeds.
        """
        values = [dict(enumerate(self._finals[row])) for row in (self.best_row, 0)]
        found = paired_difference(values[0], values[1], num_candidates=len(self._truth.settings))
        if found is None:
            raise ValueError(f"a truth needs at least 2 seeds, got {self._truth.num_seeds}")
        return found

    @cached_property
    def verdict(self) -> Verdict:
        """Whether clipping matters: its interval excludes 0 and its mean is at least the effect that matters."""
        found, margin = self.difference, EFFECT * abs(self.off)
        if abs(found.mean) < margin or found.low <= 0 <= found.high:
            return Verdict.NO_DIFFERENCE
        return Verdict.CLIP if found.mean < 0 else Verdict.DO_NOT_CLIP

    def value(self, setting: ClipSetting) -> float:
        """The mean objective of an answer."""
        return self._means[self._curves.row(setting)]

    def regret(self, setting: ClipSetting) -> float:
        """Share of the gap between *off* and the best that an answer leaves; 1 = no better than *off*."""
        return max(0.0, (self.value(setting) - self.best) / (self.off - self.best))

    def relative_loss(self, setting: ClipSetting) -> float:
        """How much worse an answer is than the best, relative to the best."""
        return max(0.0, self.value(setting) / self.best - 1)

    def describe(self) -> dict[str, Any]:
        """The truth in figures, for a line of the results."""
        truth, row = self._truth, self.best_row
        best = ClipSetting.parse(truth.settings[row])
        return {
            "verdict": self.verdict.value,
            "off": _short(self.off),
            "best": _short(self._means[row]),
            "best_kappa": _short((best.threshold or math.nan) / truth.reference["l2_norm"]["median"]),
            "difference": [
                _short(each) for each in (self.difference.mean, self.difference.low, self.difference.high)
            ],
            "share_worse_than_start_off": _short(
                statistics.fmean(
                    each[-1] is None or each[-1] > start
                    for each, start in zip(truth.values[0], truth.initial, strict=True)
                )
            ),
            "thresholds": sum(not text.startswith("none") for text in truth.settings),
            "seeds": truth.num_seeds,
            "num_steps": truth.num_steps,
            "solo_seconds_per_step": truth.solo_seconds,
            "lanes_seconds_per_step": truth.lanes_seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Score:
    """One strategy on one problem, over its repeats.

    Attributes:
        regrets: one per repeat; empty where the truth is that clipping makes no difference.
        losses: relative to the best, likewise, for every problem.
        full_runs: what each repeat spent, in full runs of one seed.
        seconds: the same as training time, from the measured time per step.
        num_wrong: verdicts that contradict the truth; one that says it is not settled does not.
        verdicts: one per repeat.
    """

    problem: str
    strategy: str
    regrets: tuple[float, ...]
    losses: tuple[float, ...]
    full_runs: tuple[float, ...]
    seconds: tuple[float, ...]
    num_wrong: int
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """A line of the results; of each list the median and the 90th percentile, of costs the mean."""
        count = len(self.losses)
        return {
            "problem": self.problem,
            "strategy": self.strategy,
            "repeats": count,
            "regret": _median_and_p90(self.regrets),
            "relative_loss": _median_and_p90(self.losses),
            "full_runs": _short(statistics.fmean(self.full_runs)),
            "train_seconds": _short(statistics.fmean(self.seconds)),
            "wrong_verdicts": _short(self.num_wrong / count),
            "undecided": _short(self.verdicts.count(Verdict.INCONCLUSIVE) / count),
            "verdicts": {each.value: self.verdicts.count(each) for each in Verdict if each in self.verdicts},
        }


def score(problem: str, strategy: str, truth: Truth, outcomes: Sequence[Outcome]) -> Score:
    """Judge a strategy's answers on one problem.

    Args:
        problem: its name.
        strategy: its name.
        truth: the problem's table.
        outcomes: one per repeat.

    Returns:
        The score.
    """
    judge = Judge(truth)
    matters = judge.verdict is not Verdict.NO_DIFFERENCE
    return Score(
        problem=problem,
        strategy=strategy,
        regrets=tuple(judge.regret(each.setting) for each in outcomes) if matters else (),
        losses=tuple(judge.relative_loss(each.setting) for each in outcomes),
        full_runs=tuple(each.lane_steps / truth.num_steps for each in outcomes),
        seconds=tuple(
            each.lane_steps * (truth.lanes_seconds if each.is_batched else truth.solo_seconds)
            for each in outcomes
        ),
        num_wrong=sum(each.verdict not in (judge.verdict, Verdict.INCONCLUSIVE) for each in outcomes),
        verdicts=tuple(each.verdict for each in outcomes),
    )


def pooled(scores: Sequence[Score], strategy: str) -> Score:
    """One strategy over all problems, every repeat of every problem with the same weight.

    Args:
        scores: of every problem and strategy.
        strategy: which.

    Returns:
        The score, its problem named ``all``.
    """
    own = [each for each in scores if each.strategy == strategy]
    return Score(
        problem="all",
        strategy=strategy,
        regrets=tuple(each for score in own for each in score.regrets),
        losses=tuple(each for score in own for each in score.losses),
        full_runs=tuple(each for score in own for each in score.full_runs),
        seconds=tuple(each for score in own for each in score.seconds),
        num_wrong=sum(score.num_wrong for score in own),
        verdicts=tuple(each for score in own for each in score.verdicts),
    )


def summary(scores: Sequence[Score], own: str) -> dict[str, Any]:
    """Whether a study reaches its goals.

    Args:
        scores: of every problem and strategy.
        own: name of this project's strategy.

    Returns:
        The last line of the results.
    """
    total = pooled(scores, own)
    median, p90 = _median_and_p90(total.regrets) or (math.nan, math.nan)
    wrong = total.num_wrong / len(total.losses)
    totals = [pooled(scores, name) for name in dict.fromkeys(each.strategy for each in scores)]
    share = _cost_share(totals, own, "regrets", TOLERANCE)
    return {
        "summary": own,
        "median_regret": median,
        "median_regret_goal": MEDIAN_REGRET,
        "p90_regret": p90,
        "p90_regret_goal": P90_REGRET,
        "wrong_verdicts": _short(wrong),
        "wrong_verdicts_goal": WRONG_VERDICTS,
        "cost_at_equal_regret": share,
        "cost_at_equal_regret_by_problem": {
            problem: _cost_share(
                [each for each in scores if each.problem == problem], own, "regrets", TOLERANCE
            )
            for problem in dict.fromkeys(each.problem for each in scores if each.regrets)
        },
        "cost_at_equal_loss": _cost_share(totals, own, "losses", EFFECT),
        "cost_goal": _short(COST_SHARE),
        "goals_met": {
            "median_regret": median <= MEDIAN_REGRET,
            "p90_regret": p90 <= P90_REGRET,
            "wrong_verdicts": wrong <= WRONG_VERDICTS,
            "cost": share is not None and share["share"] <= COST_SHARE,
        },
    }


def _cost_share(
    scores: Sequence[Score], own: str, kind: Literal["regrets", "losses"], tolerance: float
) -> dict[str, Any] | None:
    """Full runs of a study relative to those of the cheapest rival that is no worse, in median and 90th percentile.

    Differences below the tolerance do not make a rival worse. Where none of the rivals gets there, the one with the
    most seeds stands in, and the share is an upper bound.
    """
    by_name: Mapping[str, Score] = {each.strategy: each for each in scores}
    rivals = [by_name[name] for name in RIVALS if name in by_name]
    if own not in by_name or not rivals:
        return None
    mine = by_name[own]
    wanted = [each + tolerance for each in _median_and_p90(getattr(mine, kind)) or (0.0, 0.0)]
    equal = [
        each
        for each in rivals
        if all(
            theirs <= most
            for theirs, most in zip(_median_and_p90(getattr(each, kind)) or (0.0, 0.0), wanted, strict=True)
        )
    ]
    rival = equal[0] if equal else rivals[-1]
    return {
        "rival": rival.strategy,
        "share": _short(statistics.fmean(mine.full_runs) / statistics.fmean(rival.full_runs)),
        "is_bound": not equal,
    }


def _median_and_p90(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    return _short(statistics.median(values)), _short(float(np.percentile(values, 90)))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
