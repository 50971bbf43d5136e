"""Turn finished trials into an answer with its evidence: pure.

The search's seeds choose the leader; fresh seeds, which the search never saw, judge it against *off*
(`tuner.search.verdict`). A study without confirmation is judged on the search's own seeds; then the best is chosen and
judged by the same values, and its interval is widened by Bonferroni's correction for that.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from tuner.errors import NoTrialsError
from tuner.evidence import (
    FailureRate,
    LaneResult,
    NormSketch,
    Recommendation,
    Reference,
    Stage,
    Trial,
    TrialState,
)
from tuner.methods import get_method
from tuner.records import mean_known
from tuner.search.answer import Answer
from tuner.search.confirmation import PROPORTIONAL
from tuner.search.failure import failure_rate
from tuner.search.interval import equally_good
from tuner.search.search import Search
from tuner.search.space import kappa
from tuner.spec import ClipSetting, StudySpec


def recommend(
    spec: StudySpec,
    reference: Reference,
    trials: Iterable[Trial],
    *,
    objective: str = "objective",
    extensions: Sequence[int] = (),
    warm_start: Sequence[ClipSetting] = (),
) -> Recommendation:
    """The answer to a study's question, from whatever trials have ended.

    Args:
        spec: the question; its ``effect`` says which difference matters.
        reference: the probe's result, for kappa.
        trials: all trials; open and failed ones are left out.
        objective: the objective's name, for the sentence.
        extensions: numbers of fresh seeds that were asked for after the first ones.
        warm_start: what earlier studies suggested to the search.

    Returns:
        Verdict, setting, interval and evidence.

    Raises:
        NoTrialsError: if no trial has ended.
    """
    known = tuple(sorted(trials, key=lambda trial: trial.number))
    ended = tuple(trial for trial in known if trial.state in (TrialState.COMPLETE, TrialState.PRUNED))
    if not ended:
        raise NoTrialsError
    answer = Answer(spec=spec, reference=reference, trials=ended, objective=objective)
    search = Search.from_trials(spec, reference, known, extensions=extensions, warm_start=warm_start)
    verdict, reason = answer.verdict()
    setting = answer.setting(verdict)
    best, searched = answer.best, [trial for trial in ended if trial.stage is Stage.SEARCH]
    lanes = answer.lanes_of(best.setting) if best else ()
    comparison, matched = answer.comparison, answer.matched
    lane_steps = sum(lane.num_steps - lane.num_shared_steps for trial in ended for lane in trial.lanes)
    return Recommendation(
        verdict=verdict,
        setting=setting,
        interval=None
        if best is None or setting.is_off or spec.tunes_learning_rate
        else equally_good(best, searched, answer.margin),
        reason=reason,
        best=best.setting if best else None,
        value=answer.estimate_of(best.setting) if best else None,
        off=answer.off_estimate,
        difference=comparison.difference if comparison else None,
        against_current=answer.against_current(),
        clip_fraction=mean_known(lane.clip_fraction for lane in lanes),
        mean_scale=mean_known(lane.mean_scale for lane in lanes),
        norms=_median_norms(lanes),
        spike_ratio=_median(lane.spike_ratio for lane in lanes),
        tail_index=_median(lane.tail_index for lane in lanes),
        kappa=kappa(best.setting, reference) if best else None,
        num_fresh_seeds=answer.num_fresh_seeds,
        more_seeds=answer.more_seeds(verdict),
        failures=_failures(answer, best.setting if best else None),
        off_failures=_failures(answer, answer.off.setting if answer.off else None),
        step_cap=step_cap(best.setting, reference) if best else None,
        matched=answer.estimate_of(answer.matched_off) if answer.matched_off else None,
        against_matched=matched.difference if matched else None,
        search_end=search.end or "",
        objective=objective,
        num_trials=len(searched),
        num_diverged_trials=sum(trial.num_diverged > 0 for trial in searched),
        lane_steps=lane_steps,
        full_runs=lane_steps / spec.num_steps,
        train_seconds=sum(lane.seconds for trial in ended for lane in trial.lanes),
    )


def step_cap(setting: ClipSetting, reference: Reference) -> float | None:
    """The longest step that a threshold allows, in units of the weights.

    Args:
        setting: any setting.
        reference: says which optimizer and learning rate it is.

    Returns:
        Learning rate x threshold; None unless the optimizer is SGD and the threshold is an L2 norm.
    """
    features = reference.features
    if features is None or features.optimizer not in PROPORTIONAL or features.learning_rate is None:
        return None
    if setting.threshold is None or get_method(setting.method).scale != "l2_norm":
        return None
    return features.learning_rate * setting.learning_rate_scale * setting.threshold


def _failures(answer: Answer, setting: ClipSetting | None) -> FailureRate | None:
    """Over the lanes of both stages: the search's choice does not make a failure more or less of one."""
    if setting is None:
        return None
    lanes = answer.all_lanes_of(setting)
    return failure_rate(sum(map(answer.has_failed, lanes)), len(lanes)) if lanes else None


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
