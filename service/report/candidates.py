"""A study's trials by setting, and what each setting is to the reader: the best, *off*, today's value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from service.report.intervals import mean_interval
from service.schemas import StudyOut, TrialOut
from tuner.evidence import Estimate, FailureRate, LaneResult, Stage, Trial, TrialState
from tuner.search.failure import failure_rate, goal, has_failed
from tuner.spec import OFF_SETTING, ClipSetting


@dataclass(frozen=True)
class Candidate:
    """One setting of a study.

    Attributes:
        setting: the clip setting.
        trials: its trials in the order of asking, at least one; a confirmed setting has one of each stage.
    """

    setting: ClipSetting
    trials: tuple[TrialOut, ...]

    @property
    def lanes(self) -> tuple[LaneResult, ...]:
        """Every lane that ended, of both stages."""
        return tuple(lane for trial in self.trials for lane in trial.lanes)

    @property
    def told(self) -> TrialOut:
        """The trial to believe: the confirmation if it has a result, else the last one with any."""
        ended = [trial for trial in self.trials if trial.lanes]
        confirmed = [trial for trial in ended if trial.stage is Stage.CONFIRM]
        return (confirmed or ended or list(self.trials))[-1]

    @property
    def estimate(self) -> Estimate:
        """Objective of the trial to believe."""
        return trial_estimate(self.told)


@dataclass(frozen=True)
class Findings:
    """A study with its trials, as the page reads them.

    Attributes:
        study: where it stands.
        trials: in the order of asking.
    """

    study: StudyOut
    trials: tuple[TrialOut, ...]

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every setting, in the order of asking."""
        by_setting: dict[ClipSetting, list[TrialOut]] = {}
        for trial in self.trials:
            by_setting.setdefault(trial.setting, []).append(trial)
        return tuple(Candidate(setting, tuple(trials)) for setting, trials in by_setting.items())

    @property
    def objective(self) -> str:
        """Name of the minimized number."""
        return self.study.result.objective if self.study.result else "objective"

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The clipping methods that have a trial, the best one's first, then in the order of asking."""
        tried = dict.fromkeys(each.setting.method for each in self.candidates if not each.setting.is_off)
        first = self.best.setting.method if self.best else None
        return tuple(sorted(tried, key=lambda method: method != first))

    @property
    def current(self) -> ClipSetting | None:
        """The setting in use today, if the study names one."""
        document = self.study.spec.get("current")
        return ClipSetting(**document) if document else None

    @cached_property
    def best(self) -> Candidate | None:
        """The best clip setting: the recommendation's, or the lowest sound mean so far."""
        if self.study.result is not None:
            return self._find(self.study.result.best)
        return lowest(each for each in self.candidates if not each.setting.is_off)

    @cached_property
    def off(self) -> Candidate | None:
        """*Off*: at the workload's own learning rate, unless the answer compares with another."""
        answer = self.study.result.off.mean if self.study.result else None
        compared = [
            each
            for each in self.candidates
            if each.setting.is_off
            and answer is not None
            and any(trial.mean is not None and math.isclose(trial.mean, answer) for trial in each.trials)
        ]
        return compared[0] if len(compared) == 1 else self._find(OFF_SETTING)

    @property
    def compared(self) -> tuple[tuple[str, Candidate], ...]:
        """The settings that the page compares throughout, each once, with the role that names it."""
        roles = {
            "best": self.best,
            "off": self.off,
            "today's value": self._find(self.current),
        }
        named: dict[ClipSetting, tuple[str, Candidate]] = {}
        for role, candidate in roles.items():
            if candidate is not None and candidate.setting not in named:
                named[candidate.setting] = (role, candidate)
        return tuple(named.values())

    @cached_property
    def goal(self) -> float | None:
        """The objective that training reaches, against which failures are told."""
        return goal(map(_as_trial, self.trials))

    def failures(self, trials: Iterable[TrialOut]) -> FailureRate | None:
        """How often lanes failed, with the 95 % interval.

        Args:
            trials: those trained to the end count; where one was stopped early it is open how it would have ended.

        Returns:
            The rate; None without a lane trained to the end.
        """
        lanes = [lane for each in trials if each.state is TrialState.COMPLETE for lane in each.lanes]
        return failure_rate(sum(has_failed(lane, self.goal) for lane in lanes), len(lanes)) if lanes else None

    def _find(self, setting: ClipSetting | None) -> Candidate | None:
        return next((each for each in self.candidates if each.setting == setting), None)


def lowest(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the lowest mean, of those trained to the end without divergence."""
    sound = [
        each
        for each in candidates
        if each.told.state is TrialState.COMPLETE
        and each.told.mean is not None
        and not each.told.num_diverged
    ]
    return min(sound, key=lambda each: each.told.mean or 0.0, default=None)


def trial_estimate(trial: TrialOut) -> Estimate:
    """A trial's objective over its seeds."""
    values = [lane.value for lane in trial.lanes if lane.value is not None]
    return Estimate(
        mean=trial.mean,
        standard_error=trial.standard_error,
        num_seeds=len(values),
        num_diverged=trial.num_diverged,
    )


def trial_interval(trial: TrialOut) -> tuple[float, float] | None:
    """The 95 % interval of a trial's mean; None with fewer than two values."""
    found = trial_estimate(trial)
    return None if found.mean is None else mean_interval(found.mean, found.standard_error, found.num_seeds)


def _as_trial(trial: TrialOut) -> Trial:
    return Trial(
        id=trial.id,
        number=trial.number,
        cohort=trial.cohort,
        setting=trial.setting,
        state=trial.state,
        rungs=trial.rungs,
        lanes=trial.lanes,
        stage=trial.stage,
        seeds=trial.seeds,
    )
