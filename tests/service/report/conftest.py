"""Documents as the service sends them: lanes with what a real trace records, trials, studies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from service.schemas import RecommendationOut, StudyError, StudyOut, TrialOut
from service.states import JobState
from tuner.evidence import (
    Estimate,
    FailureRate,
    LaneResult,
    NormSketch,
    PairedDifference,
    Stage,
    TrialState,
    Verdict,
)
from tuner.search.statistics import estimate
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec
from tuner.training.trace import StepRecords, Trace

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STEPS = 30
BEST = ClipSetting(method="global_norm", threshold=0.25)


class Documents:
    """Builders; every default makes a study in which clipping helps."""

    best, when = BEST, WHEN

    @staticmethod
    def lane(seed: int, value: float | None, *, steps: int = STEPS, **changes: Any) -> LaneResult:
        """A lane whose norms and losses were recorded by a trace; diverged at its last step without a value."""
        generator = torch.Generator().manual_seed(seed)
        norms = torch.rand(steps, 1, generator=generator) + 0.1
        if value is None:
            norms[-1] = torch.nan
        scale = (0.25 / norms).clamp(max=1.0)
        trace = Trace(1, STEPS, "cpu")
        trace.fold(
            StepRecords(
                loss=1 / norms,
                norm=norms,
                scale=scale,
                clipped=scale < 1,
                live=norms.isfinite(),
                applied=norms.isfinite(),
            )
        )
        (record,) = trace.read()
        result = LaneResult.of(
            record, seed=seed, value=value, divergence_step=record.divergence_step, seconds=0.5, initial=4.0
        )
        return dataclasses.replace(result, **changes)

    @classmethod
    def trial(
        cls, number: int, setting: ClipSetting | str, values: Sequence[float | None], **changes: Any
    ) -> TrialOut:
        """A trial with one lane per value; none if there is no value."""
        lanes = tuple(cls.lane(seed, value) for seed, value in enumerate(values))
        found = estimate(values)
        document: dict[str, Any] = {
            "id": str(number),
            "number": number,
            "cohort": 0,
            "setting": ClipSetting.parse(setting) if isinstance(setting, str) else setting,
            "stage": Stage.SEARCH,
            "state": TrialState.COMPLETE if values else TrialState.RUNNING,
            "mean": found.mean,
            "standard_error": found.standard_error,
            "num_diverged": found.num_diverged,
            "clip_fraction": 0.25 if values else None,
            "lanes": lanes,
            "rungs": {STEPS: dict(enumerate(values))} if values else {},
        }
        return TrialOut(**document | changes)

    @classmethod
    def trials(cls) -> list[TrialOut]:
        """Search and confirmation of a study in which clipping helps."""
        return [
            cls.trial(0, OFF_SETTING, [2.0, 2.1, 2.2]),
            cls.trial(1, "global_norm:1", [1.9, 2.0, 2.1]),
            cls.trial(2, BEST, [1.4, 1.5, 1.6]),
            cls.trial(3, "global_norm:0.01", [3.0, 3.1, 3.2], state=TrialState.PRUNED),
            cls.trial(4, "global_norm:8", [2.3, None, 2.4]),
            cls.trial(5, "global_norm:16", [None, None, None]),
            cls.trial(6, OFF_SETTING, [2.0, 2.2], stage=Stage.CONFIRM),
            cls.trial(7, BEST, [1.4, 1.6], stage=Stage.CONFIRM),
        ]

    @staticmethod
    def answer(verdict: Verdict = Verdict.CLIP, **changes: Any) -> RecommendationOut:
        """A recommendation."""
        norms = NormSketch(median=0.5, q90=0.75, q99=1.0, max=2.0)
        document: dict[str, Any] = {
            "id": "r",
            "study_id": "7f3c0000-0000",
            "workload": "charlm-rnn",
            "fingerprint": "f" * 16,
            "parameters": {},
            "created_at": WHEN,
            "verdict": verdict,
            "setting": BEST,
            "threshold_name": "max_norm",
            "threshold_unit": "gradient norm (L2, before clipping)",
            "interval": (0.125, 1.0),
            "reason": "Clipping lowers the objective by 0.6.",
            "best": BEST,
            "value": Estimate(mean=1.5, standard_error=0.1, num_seeds=2, num_diverged=0),
            "off": Estimate(mean=2.1, standard_error=0.1, num_seeds=2, num_diverged=0),
            "difference": PairedDifference(mean=-0.6, low=-0.9, high=-0.3, num_pairs=2),
            "against_current": None,
            "clip_fraction": 0.25,
            "mean_scale": 0.9,
            "norms": norms,
            "kappa": 0.5,
            "objective": "val_loss",
            "num_trials": 6,
            "num_diverged_trials": 2,
            "lane_steps": 1000,
            "full_runs": 33.3,
            "train_seconds": 12.0,
            "spike_ratio": 4.0,
            "tail_index": 3.0,
            "num_fresh_seeds": 2,
            "failures": FailureRate(num_failed=0, num_lanes=5, low=0.0, high=0.43),
            "off_failures": FailureRate(num_failed=1, num_lanes=5, low=0.04, high=0.62),
            "snippets": {"pytorch": "torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)"},
            "provenance": {"torch": "2.13.0", "device": "cpu"},
        }
        return RecommendationOut(**document | changes)

    @staticmethod
    def study(
        answer: RecommendationOut | None = None, *, spec: dict[str, Any] | None = None, **changes: Any
    ) -> StudyOut:
        """A study that succeeded, or one that runs if it has no answer."""
        question = StudySpec(workload="charlm-rnn", num_trials=6, num_steps=STEPS, **spec or {})
        document: dict[str, Any] = {
            "id": "7f3c0000-0000",
            "name": "mine",
            "state": JobState.SUCCEEDED if answer else JobState.RUNNING,
            "done": answer is not None,
            "workload": "charlm-rnn",
            "spec": question.to_json(),
            "fingerprint": "f" * 16,
            "created_at": WHEN,
            "started_at": WHEN,
            "finished_at": WHEN if answer else None,
            "attempt": 1,
            "num_trials_ended": 6 if answer else 1,
            "reference": {"l2_norm": {"median": 0.5, "q90": 0.8, "max": 1.5}, "num_batches": 8},
            "result": answer,
            "error": None,
        }
        return StudyOut(**document | changes)

    @staticmethod
    def error() -> StudyError:
        """Why a study failed."""
        return StudyError(code="oom", detail="the device ran out of memory")


@pytest.fixture
def documents() -> type[Documents]:
    """Builders of documents."""
    return Documents
