"""What a study's ended trials say, worked out once: the leader, *off*, and how they compare: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tuner.evidence import (
    Estimate,
    LaneResult,
    PairedDifference,
    Reference,
    Stage,
    Trial,
    TrialState,
    Verdict,
)
from tuner.search import failure, reasons
from tuner.search.confirmation import baseline, candidates, confirmed, lead, leaders, matched_setting
from tuner.search.interval import untried
from tuner.search.statistics import estimate, mean_value
from tuner.search.verdict import Comparison, values_without_failures
from tuner.spec import MAX_CONFIRM_SEEDS, OFF_SETTING, ClipSetting, StudySpec


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The evidence of a study.

    Attributes:
        spec: the question.
        reference: the probe's result.
        trials: all ended trials, ordered by number.
        objective: name of the minimized number.
    """

    spec: StudySpec
    reference: Reference
    trials: tuple[Trial, ...]
    objective: str

    @cached_property
    def off(self) -> Trial | None:
        """The search's trial without clipping."""
        return baseline(self.trials)

    @cached_property
    def candidates(self) -> tuple[Trial, ...]:
        """What the best is chosen among, the best first."""
        return candidates(self.trials)

    @cached_property
    def best(self) -> Trial | None:
        """The leader that the answer is about; None without any."""
        chain = leaders(self.trials)
        return lead(self.trials, chain) if chain else None

    @cached_property
    def is_fresh(self) -> bool:
        """Whether both the best and *off* have results on seeds that the search never saw."""
        return all(
            trial is not None and confirmed(self.trials, trial.setting) for trial in (self.best, self.off)
        )

    @cached_property
    def num_fresh_seeds(self) -> int:
        """Fresh seeds behind the verdict."""
        return len(self.comparison.seeds) if self.is_fresh and self.comparison else 0

    @cached_property
    def goal(self) -> float | None:
        """What training reaches in this study."""
        return failure.goal(self.trials)

    def has_failed(self, lane: LaneResult) -> bool:
        """Whether a lane counts as a failure.

        Args:
            lane: of this study.

        Returns:
            See `tuner.search.failure.has_failed`.
        """
        return failure.has_failed(lane, self.goal)

    def lanes_of(self, setting: ClipSetting) -> tuple[LaneResult, ...]:
        """The lanes that a setting is judged by.

        Args:
            setting: of this study.

        Returns:
            Those of its confirmation if the study was confirmed, else those of the search.
        """
        if self.is_fresh:
            return tuple(lane for trial in confirmed(self.trials, setting) for lane in trial.lanes)
        found = (
            trial
            for trial in self.trials
            if trial.setting == setting and trial.stage is Stage.SEARCH and trial.state is TrialState.COMPLETE
        )
        return next((trial.lanes for trial in found), ())

    def all_lanes_of(self, setting: ClipSetting) -> tuple[LaneResult, ...]:
        """A setting's lanes over search and confirmation.

        Args:
            setting: of this study.

        Returns:
            Those of its complete trials.
        """
        return tuple(
            lane
            for trial in self.trials
            if trial.setting == setting and trial.state is TrialState.COMPLETE
            for lane in trial.lanes
        )

    def estimate_of(self, setting: ClipSetting) -> Estimate:
        """Mean and standard error of what a setting is judged by.

        Args:
            setting: of this study.

        Returns:
            The estimate, over the seeds that did not diverge.
        """
        return estimate(lane.value for lane in self.lanes_of(setting))

    @cached_property
    def off_estimate(self) -> Estimate:
        """The same of *off*; empty without one."""
        return self.estimate_of(self.off.setting) if self.off else estimate([])

    @cached_property
    def margin(self) -> float:
        """The difference that matters, in the objective's unit: relative to *off* where it did not fail."""
        for trial in (self.off, self.best):
            if trial is not None:
                scale = estimate(self._values(trial.setting).values()).mean
                if scale is not None:
                    return self.spec.effect * abs(scale)
        return 0.0

    @cached_property
    def comparison(self) -> Comparison | None:
        """The best against *off*."""
        return self._compare(self.off.setting if self.off else None)

    @cached_property
    def matched(self) -> Comparison | None:
        """The best against *off* at the learning rate that its clipping amounts to."""
        return self._compare(self.matched_off)

    @cached_property
    def matched_off(self) -> ClipSetting | None:
        """That setting, if it was confirmed."""
        if self.best is None:
            return None
        setting = matched_setting(self.reference, self.trials, self.best)
        return setting if setting is not None and self.lanes_of(setting) else None

    def against_current(self) -> PairedDifference | None:
        """The best against today's value.

        Returns:
            The difference; None without a value in use, or if it has no result.
        """
        found = self._compare(self.spec.current)
        return found.difference if found else None

    def _compare(self, setting: ClipSetting | None) -> Comparison | None:
        if self.best is None or setting is None:
            return None
        return Comparison(
            mine=self._values(self.best.setting),
            theirs=self._values(setting),
            margin=self.margin,
            num_candidates=1 if self.is_fresh else max(1, len(self.candidates)),
            num_looks=self.num_looks,
        )

    @cached_property
    def num_looks(self) -> int:
        """How often the question was judged on fresh seeds: rounds with a result, at least 1."""
        return max(1, len(confirmed(self.trials, self.best.setting))) if self.best and self.is_fresh else 1

    def _values(self, setting: ClipSetting) -> dict[int, float | None]:
        lanes = self.lanes_of(setting)
        failed = [lane.seed for lane in lanes if self.has_failed(lane)]
        return values_without_failures({lane.seed: lane.value for lane in lanes}, failed)

    def verdict(self) -> tuple[Verdict, str]:
        """The verdict and its reason; the first rule that applies decides.

        Returns:
            1. Without an effective clip trial: no difference if *off* is fine and no threshold was ever exceeded, do
               not clip if *off* is fine and every clip setting diverged, otherwise inconclusive.
            2. Without two common seeds: inconclusive.
            3. One objective in every run: no difference.
            4. What `tuner.search.verdict.Comparison` says of the best and *off*; but not that clipping hurts, if
               thresholds between the best and those that were never exceeded were not tried.
        """
        if self.best is None:
            return self._without_best()
        if self.off is None or self.comparison is None:
            return Verdict.INCONCLUSIVE, reasons.off_is_missing(self.best.setting)
        if len(self.comparison.seeds) < 2:
            return Verdict.INCONCLUSIVE, reasons.too_few_seeds()
        if self._is_constant:
            return Verdict.NO_DIFFERENCE, reasons.constant(self.objective, self.off_estimate)
        verdict = self.comparison.judge()
        facts = reasons.Facts(
            best=self.best.setting,
            value=estimate(self.comparison.mine.values()),
            off=estimate(self.comparison.theirs.values()),
            comparison=self.comparison,
            margin=self.margin,
            effect=self.spec.effect,
            objective=self.objective,
            is_fresh=self.is_fresh,
            more_seeds=self.more_seeds(verdict),
        )
        if verdict is Verdict.DO_NOT_CLIP and (gap := untried(self.best.setting, self.trials)) is not None:
            return Verdict.INCONCLUSIVE, reasons.only_tight(facts, *gap)
        says = reasons.failed if self.comparison.is_by_ranks else reasons.compared
        return verdict, says(verdict, facts)

    @property
    def _is_constant(self) -> bool:
        """Whether every lane of the study ended with one and the same objective."""
        values = {lane.value for trial in self.trials for lane in trial.lanes}
        return len(values) == 1 and None not in values

    def more_seeds(self, verdict: Verdict) -> int | None:
        """Further fresh seeds that would about settle an inconclusive verdict.

        Args:
            verdict: the study's.

        Returns:
            How many, at least 2; None if it is settled, or if no reasonable number would.
        """
        if verdict is not Verdict.INCONCLUSIVE or self.comparison is None:
            return None
        # Fresh seeds of a study that had none would be a first look at one setting.
        wanted = self.comparison.seeds_to_settle(self.num_looks + 1 if self.is_fresh else 1)
        if wanted is None:
            return None
        more = max(2, wanted - self.num_fresh_seeds)
        return more if self.num_fresh_seeds + more <= MAX_CONFIRM_SEEDS else None

    def setting(self, verdict: Verdict) -> ClipSetting:
        """What to train with.

        Args:
            verdict: the study's.

        Returns:
            The best when clipping is recommended, *off* when it is not; when nothing is settled the one of the two
            that failed less often, then of the lower mean, over all seeds: those of the search tell something too.
        """
        off = self.off.setting if self.off else OFF_SETTING
        if self.best is None or verdict in (Verdict.NO_DIFFERENCE, Verdict.DO_NOT_CLIP):
            return off
        is_open = verdict is Verdict.INCONCLUSIVE and self.off is not None
        if is_open and self._burden(off) <= self._burden(self.best.setting):
            return off
        return self.best.setting

    def _burden(self, setting: ClipSetting) -> tuple[float, float]:
        """Share of a setting's lanes that failed, then the mean of the others."""
        lanes = self.all_lanes_of(setting)
        sound = [lane.value for lane in lanes if not self.has_failed(lane)]
        return 1 - len(sound) / max(1, len(lanes)), mean_value(sound)

    def _without_best(self) -> tuple[Verdict, str]:
        searched = [trial for trial in self.trials if trial.stage is Stage.SEARCH]
        clip = [trial for trial in searched if not trial.setting.is_off]
        complete = [trial for trial in searched if trial.state is TrialState.COMPLETE]
        num_diverged = sum(trial.num_diverged > 0 for trial in clip)
        dead = [trial for trial in searched if trial.num_diverged == len(trial.lanes)]
        if self.off in dead and all(trial in dead for trial in complete):
            return Verdict.INCONCLUSIVE, reasons.everything_diverged(len(dead))
        if self.off is None or self.off_estimate.num_diverged > 0:
            return Verdict.INCONCLUSIVE, reasons.no_sound_trial(len(clip), num_diverged)
        sound = [trial for trial in complete if not trial.setting.is_off and trial.num_diverged == 0]
        if sound and not any(lane.may_have_clipped for trial in clip for lane in trial.lanes):
            return Verdict.NO_DIFFERENCE, reasons.never_exceeded(
                len(sound), _largest_norm((self.off, *sound))
            )
        if clip and num_diverged == len(clip):
            return Verdict.DO_NOT_CLIP, reasons.only_clipping_diverged(
                len(clip), self.off_estimate, self.objective
            )
        return Verdict.INCONCLUSIVE, reasons.no_sound_trial(len(clip), num_diverged)


def _largest_norm(trials: Sequence[Trial]) -> float:
    return max((lane.norms.max for trial in trials for lane in trial.lanes if lane.norms), default=0.0)
