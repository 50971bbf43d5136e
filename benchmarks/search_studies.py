"""This project's own studies on known curves, and what any strategy answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.search_curves import AbstractCurves, SimulatedCohort
from tuner.evidence import Recommendation, Trial, Verdict
from tuner.search.halving import halving
from tuner.search.planning import plan_cohort
from tuner.search.recommendation import recommend
from tuner.search.search import Search
from tuner.search.settling import settled
from tuner.spec import ClipSetting, StudySpec
from tuner.tuning import add, record


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a strategy answered, and what it spent.

    Attributes:
        setting: to train with.
        verdict: whether clipping matters; for strategies without one, whether the setting was better than *off* by the
            effect that matters, as their users would judge.
        lane_steps: optimizer steps, summed over all runs.
        is_batched: whether runs train together, as lanes.
    """

    setting: ClipSetting
    verdict: Verdict
    lane_steps: int
    is_batched: bool = False


def study_spec(curves: AbstractCurves, seed: int, fields: Mapping[str, Any]) -> StudySpec:
    """The question of one repeat.

    Args:
        curves: give the length of a full run.
        seed: of the search.
        fields: other fields of the spec than their defaults.

    Returns:
        The spec.
    """
    return StudySpec(workload="simulated", **{"num_steps": curves.num_steps, "seed": seed, **fields})


def simulate_study(spec: StudySpec, curves: AbstractCurves) -> Recommendation:
    """A whole study, every cohort looked up.

    Args:
        spec: the question.
        curves: of every lane.

    Returns:
        What the study recommends.
    """
    trials: dict[str, Trial] = {}
    reference = curves.reference
    while (asked := Search.from_trials(spec, reference, trials.values()).ask()) is not None:
        add(trials, asked)
        for ended in settled(trials.values()):
            record(trials, ended)
        cohort = plan_cohort(spec, reference, {}, trials.values())
        if cohort is None:
            continue
        for event in SimulatedCohort(cohort, curves, halving(cohort.rung_steps, cohort.clips)).events():
            record(trials, event)
    return recommend(spec, reference, trials.values())


def study(curves: AbstractCurves, seed: int, fields: Mapping[str, Any]) -> Outcome:
    """The strategy of this project.

    Args:
        curves: of every lane.
        seed: of the search.
        fields: other fields of the spec than their defaults.

    Returns:
        What it answered.
    """
    answer = simulate_study(study_spec(curves, seed, fields), curves)
    return Outcome(
        setting=answer.setting, verdict=answer.verdict, lane_steps=answer.lane_steps, is_batched=True
    )
