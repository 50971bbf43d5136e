"""Turn finished trials into an answer with its evidence: pure.

The verdict compares the best clip setting with *off* on the same seeds (see `_Evidence.verdict`). The best of
many trials is chosen and judged on the same seeds, so its mean is on the optimistic side; its interval is widened
by Bonferroni's correction for the number of trials that it was chosen among.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from tuner.errors import NoTrialsError
from tuner.evidence import (
    Estimate,
    LaneResult,
    NormSketch,
    PairedDifference,
    Recommendation,
    Reference,
    Trial,
    TrialState,
    Verdict,
)
from tuner.search import reasons
from tuner.search.interval import equally_good, paired, values_by_seed
from tuner.search.space import kappa
from tuner.search.statistics import estimate, mean_value, seeds_to_settle
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec


def recommend(
    spec: StudySpec, reference: Reference, trials: Iterable[Trial], *, objective: str = "objective"
) -> Recommendation:
    """The answer to a study's question, from whatever trials have ended.

    Args:
        spec: the question; its ``effect`` says which difference matters.
        reference: the probe's result, for kappa.
        trials: all trials; open and failed ones are left out.
        objective: the objective's name, for the sentence.

    Returns:
        Verdict, setting, interval and evidence.

    Raises:
        NoTrialsError: if no trial has ended.
    """
    ended = tuple(
        trial
        for trial in sorted(trials, key=lambda trial: trial.number)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    if not ended:
        raise NoTrialsError
    evidence = _Evidence(spec=spec, trials=ended, objective=objective)
    verdict, reason = evidence.verdict()
    best = evidence.best
    setting = evidence.setting(verdict)
    lane_steps = sum(lane.num_steps - lane.num_shared_steps for trial in ended for lane in trial.lanes)
    return Recommendation(
        verdict=verdict,
        setting=setting,
        interval=equally_good(best, ended, evidence.margin) if best and not setting.is_off else None,
        reason=reason,
        best=best.setting if best else None,
        value=_estimate(best) if best else None,
        off=evidence.off_estimate,
        difference=evidence.difference,
        against_current=evidence.against_current(),
        clip_fraction=statistics.fmean(lane.clip_fraction for lane in best.lanes) if best else None,
        mean_scale=statistics.fmean(lane.mean_scale for lane in best.lanes) if best else None,
        norms=_median_norms(best.lanes) if best else None,
        spike_ratio=_median(lane.spike_ratio for lane in best.lanes) if best else None,
        tail_index=_median(lane.tail_index for lane in best.lanes) if best else None,
        kappa=kappa(best.setting, reference) if best else None,
        objective=objective,
        num_trials=len(ended),
        num_diverged_trials=sum(trial.num_diverged > 0 for trial in ended),
        lane_steps=lane_steps,
        full_runs=lane_steps / spec.num_steps,
        train_seconds=sum(lane.seconds for trial in ended for lane in trial.lanes),
    )


@dataclass(frozen=True)
class _Evidence:
    """What the ended trials say, worked out once."""

    spec: StudySpec
    trials: tuple[Trial, ...]
    objective: str

    @cached_property
    def off(self) -> Trial | None:
        """The complete trial without clipping."""
        return next((trial for trial in self._complete if trial.setting.is_off), None)

    @cached_property
    def off_estimate(self) -> Estimate:
        return _estimate(self.off) if self.off else estimate([])

    @cached_property
    def _complete(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.state is TrialState.COMPLETE)

    @cached_property
    def sound(self) -> tuple[Trial, ...]:
        """Complete clip trials without a diverged seed."""
        return tuple(
            trial for trial in self._complete if not trial.setting.is_off and trial.num_diverged == 0
        )

    @cached_property
    def candidates(self) -> tuple[Trial, ...]:
        """The sound trials that ever clipped: what the best is chosen among."""
        return tuple(trial for trial in self.sound if any(lane.clip_fraction > 0 for lane in trial.lanes))

    @cached_property
    def best(self) -> Trial | None:
        """The candidate with the lowest mean."""
        return min(self.candidates, key=_mean, default=None)

    @cached_property
    def difference(self) -> PairedDifference | None:
        """The best against *off*, as wide as having chosen it on the same seeds demands."""
        return paired(self.best, self.off, num_candidates=len(self.candidates) or 1)

    @cached_property
    def margin(self) -> float:
        """The difference that matters, in the objective's unit."""
        scale = self.off_estimate.mean
        if scale is None:
            scale = _mean(self.best) if self.best else 0.0
        return self.spec.effect * abs(scale)

    def verdict(self) -> tuple[Verdict, str]:
        """The verdict and its reason; the first rule that applies decides.

        1. Without an effective clip trial: no difference if *off* is fine and no threshold was ever exceeded, do
           not clip if *off* is fine and every clip setting diverged, otherwise inconclusive.
        2. *off* diverged in at least one seed: clip, because the best setting diverged in none.
        3. The simultaneous 95 % interval of the paired difference against the margin.
        """
        if self.best is None:
            return self._without_best()
        if self.off is None:
            return Verdict.INCONCLUSIVE, reasons.off_is_missing(self.best.setting)
        if self.off_estimate.num_diverged > 0:
            return Verdict.CLIP, reasons.off_diverged(
                self.best.setting, _estimate(self.best), self.off_estimate, self.objective
            )
        if self.difference is None:
            return Verdict.INCONCLUSIVE, reasons.too_few_seeds()
        verdict = judge(self.difference, self.margin)
        seeds = self._seeds_to_settle() if verdict is Verdict.INCONCLUSIVE else None
        return verdict, reasons.compared(
            verdict,
            self.best.setting,
            _estimate(self.best),
            self.off_estimate,
            self.difference,
            margin=self.margin,
            effect=self.spec.effect,
            objective=self.objective,
            seeds=seeds,
            num_candidates=len(self.candidates),
        )

    def _without_best(self) -> tuple[Verdict, str]:
        clip_trials = [trial for trial in self.trials if not trial.setting.is_off]
        num_diverged = sum(trial.num_diverged > 0 for trial in clip_trials)
        dead = [trial for trial in self.trials if trial.num_diverged == len(trial.lanes)]
        if self.off in dead and all(trial in dead for trial in self._complete):
            return Verdict.INCONCLUSIVE, reasons.everything_diverged(len(dead))
        if self.off is None or self.off_estimate.num_diverged > 0:
            return Verdict.INCONCLUSIVE, reasons.no_sound_trial(len(clip_trials), num_diverged)
        if self.sound:
            highest = max(_quantile_max(trial.lanes) for trial in (self.off, *self.sound))
            return Verdict.NO_DIFFERENCE, reasons.never_exceeded(len(self.sound), highest)
        if clip_trials and num_diverged == len(clip_trials):
            return Verdict.DO_NOT_CLIP, reasons.only_clipping_diverged(
                len(clip_trials), self.off_estimate, self.objective
            )
        return Verdict.INCONCLUSIVE, reasons.no_sound_trial(len(clip_trials), num_diverged)

    def _seeds_to_settle(self) -> int | None:
        """Seeds after which one of the interval rules would apply, if mean and spread stay."""
        if self.best is None or self.off is None or self.difference is None:
            return None
        mean = abs(self.difference.mean)
        wanted = mean if mean >= self.margin else self.margin - mean
        if wanted == 0:
            return None
        return seeds_to_settle(
            values_by_seed(self.best),
            values_by_seed(self.off),
            wanted,
            num_candidates=len(self.candidates),
        )

    def setting(self, verdict: Verdict) -> ClipSetting:
        """What to train with: the best when clipping is recommended, the best seen when nothing is settled."""
        if self.best is None or verdict in (Verdict.NO_DIFFERENCE, Verdict.DO_NOT_CLIP):
            return OFF_SETTING
        if verdict is Verdict.INCONCLUSIVE and self.off is not None and _mean(self.off) <= _mean(self.best):
            return OFF_SETTING
        return self.best.setting

    def against_current(self) -> PairedDifference | None:
        """The best against today's value; None without one, or if it was not trained to the end.

        Corrected like the difference from *off*: the best was chosen among as many, whatever it is compared with.
        """
        current = next((trial for trial in self._complete if trial.setting == self.spec.current), None)
        return paired(self.best, current, num_candidates=len(self.candidates) or 1)


def judge(difference: PairedDifference, margin: float) -> Verdict:
    """The verdict that a paired difference (clip - off) supports.

    Args:
        difference: with its 95 % interval.
        margin: the difference that matters, >= 0, in the same unit.

    Returns:
        No difference if the whole interval lies within the margin; clip or do not clip if it excludes 0 and the
        mean matters; inconclusive otherwise: the difference may be noise, or larger than what matters.

    Example:
        >>> judge(PairedDifference(mean=-0.2, low=-0.3, high=-0.1, num_pairs=3), margin=0.02).value
        'clip'
    """
    if -margin <= difference.low and difference.high <= margin:
        return Verdict.NO_DIFFERENCE
    if difference.low <= 0 <= difference.high or abs(difference.mean) < margin:
        return Verdict.INCONCLUSIVE
    return Verdict.CLIP if difference.mean < 0 else Verdict.DO_NOT_CLIP


def _estimate(trial: Trial) -> Estimate:
    return estimate(values_by_seed(trial).values())


def _mean(trial: Trial) -> float:
    return mean_value(values_by_seed(trial).values())


def _quantile_max(lanes: Iterable[LaneResult]) -> float:
    return max((lane.norms.max for lane in lanes if lane.norms), default=0.0)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _median_norms(lanes: Iterable[LaneResult]) -> NormSketch | None:
    """Each quantile's median over the seeds."""
    sketches = [lane.norms for lane in lanes if lane.norms is not None]
    if not sketches:
        return None
    return NormSketch(
        median=statistics.median(each.median for each in sketches),
        q90=statistics.median(each.q90 for each in sketches),
        q99=statistics.median(each.q99 for each in sketches),
        max=statistics.median(each.max for each in sketches),
    )
