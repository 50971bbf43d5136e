"""Recommendations as the service sends them, values as they are found in configs, and what is judged of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from service.ci.judgement import Checked, Judgement
from service.ci.recommended import Recommended, recommended
from service.ci.verdict import judge
from service.schemas import RecommendationOut, TrialOut
from tuner.evidence import Estimate, LaneResult, PairedDifference, Stage, TrialState, Verdict
from tuner.records import NormSketch
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STUDY = "0f5a1b2c-0000-4000-8000-000000000000"
NORMS = NormSketch(median=0.5, q90=0.75, q99=1.0, max=2.0)


class Findings:
    """Builders; every default makes a study in which global_norm:0.35 is best and 0.28 to 0.45 is as good."""

    when = WHEN
    study_id = STUDY

    @staticmethod
    def answer(verdict: Verdict = Verdict.CLIP, setting: str | None = None, **changes: Any) -> dict[str, Any]:
        """A recommendation as JSON values; *off* is worse by 0.5."""
        chosen = ClipSetting.parse(setting or ("global_norm:0.35" if verdict is Verdict.CLIP else "none"))
        values: dict[str, Any] = {
            "id": "7e57ab1e-0000-4000-8000-000000000000",
            "study_id": STUDY,
            "workload": "charlm-rnn",
            "fingerprint": "0123456789abcdef",
            "parameters": {},
            "created_at": WHEN,
            "verdict": verdict,
            "setting": chosen,
            "threshold_name": None if chosen.is_off else "max_norm",
            "threshold_unit": "" if chosen.is_off else "gradient norm (L2, before clipping)",
            "interval": None if chosen.is_off else (0.28, 0.45),
            "reason": "The study says so.",
            "best": ClipSetting.parse("global_norm:0.35"),
            "value": Estimate(mean=1.5, standard_error=0.01, num_seeds=6, num_diverged=0),
            "off": Estimate(mean=2.0, standard_error=0.01, num_seeds=6, num_diverged=0),
            "difference": PairedDifference(mean=-0.5, low=-0.75, high=-0.25, num_pairs=6),
            "against_current": None,
            "clip_fraction": 0.5,
            "mean_scale": 0.75,
            "norms": NORMS,
            "kappa": 0.7,
            "objective": "val_loss",
            "num_trials": 8,
            "num_diverged_trials": 1,
            "lane_steps": 100,
            "full_runs": 2.0,
            "train_seconds": 3.0,
            "num_fresh_seeds": 6,
            "snippets": {},
            "provenance": {"cliptune": "0.1.0", "torch": "2.13.0", "sampler": "tpe", "extensions": []},
        }
        return RecommendationOut(**values | changes).model_dump(mode="json")

    @staticmethod
    def trial(
        setting: str, values: Mapping[int, float | None], *, stage: Stage = Stage.SEARCH
    ) -> dict[str, Any]:
        """A trial that was trained to the end, as JSON values; None for a seed that diverged."""
        lanes = tuple(
            LaneResult(
                seed=seed,
                value=value,
                seconds=1.0,
                num_steps=100,
                divergence_step=50 if value is None else None,
                clip_fraction=0.5,
                mean_scale=0.75,
                norms=NORMS,
                num_non_finite=int(value is None),
            )
            for seed, value in values.items()
        )
        trial = TrialOut(
            id=f"trial of {setting}",
            number=0,
            cohort=0,
            setting=ClipSetting.parse(setting),
            stage=stage,
            seeds=tuple(values),
            state=TrialState.COMPLETE,
            mean=None,
            standard_error=None,
            num_diverged=sum(value is None for value in values.values()),
            clip_fraction=0.5,
            lanes=lanes,
            rungs={},
        )
        return trial.model_dump(mode="json")

    @staticmethod
    def spec(current: str | None = None, **changes: Any) -> dict[str, Any]:
        """The study's question as JSON values."""
        setting = None if current is None else ClipSetting.parse(current)
        return StudySpec(workload="charlm-rnn", current=setting, **changes).to_json()

    def recommendation(
        self, verdict: Verdict = Verdict.CLIP, *, current: str | None = None, **changes: Any
    ) -> Recommended:
        """What a value is judged by, with the trials at 0.35 (best), 0.2 and 1.0 (worse by 0.2)."""
        trials = [
            self.trial("none", {0: 2.0, 1: 2.1, 2: 1.9}),
            self.trial("global_norm:0.35", {0: 1.5, 1: 1.6, 2: 1.4}),
            self.trial("global_norm:1", {0: 1.7, 1: 1.81, 2: 1.59}),
            self.trial("global_norm:0.2", {0: 1.5, 1: 1.62, 2: 1.41}),
        ]
        return recommended(
            self.answer(verdict, **changes),
            spec=self.spec(current),
            trials=trials,
            study_url="https://cliptune.example/studies/0f5a1b2c",
        )

    @staticmethod
    def checked(setting: str | None = "global_norm:1", **changes: Any) -> Checked:
        """A value found in a config."""
        parsed = None if setting is None else ClipSetting.parse(setting)
        values: dict[str, Any] = {
            "file": "conf/train.yaml",
            "line": 12,
            "column": 16,
            "framework": "Hugging Face",
            "key": "max_grad_norm",
            "spelled": "1.0" if parsed is None or parsed.threshold is None else f"{parsed.threshold}",
            "setting": parsed,
            "off_spelled": "0.0",
        }
        if parsed == OFF_SETTING:
            values["spelled"] = "0.0"
        return Checked(**values | changes)

    def judged(self, setting: str | None = "global_norm:1", **changes: Any) -> Judgement:
        """A judgement by the default study; changes are those of `checked`."""
        return judge(self.checked(setting, **changes), self.recommendation(), now=WHEN)


@pytest.fixture
def findings() -> Findings:
    return Findings()
