"""Cliptune's science: clip settings, cohorts of trainings, search and statistics. Importing it is free.

``from tuner import tune, Workload`` works; each name is imported when it is first used, so that the web
process, which needs only `tuner.spec`, never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.errors import TrialPruned as TrialPruned
    from tuner.evidence import Recommendation as Recommendation
    from tuner.inline import Clipper as Clipper
    from tuner.spec import ClipSetting as ClipSetting
    from tuner.spec import StudySpec as StudySpec
    from tuner.tuning import tune as tune
    from tuner.workloads.base import Workload as Workload
    from tuner.workloads.function import training_function as training_function

_HOME = {
    "ClipSetting": "tuner.spec",
    "Clipper": "tuner.inline",
    "Recommendation": "tuner.evidence",
    "StudySpec": "tuner.spec",
    "TrialPruned": "tuner.errors",
    "Workload": "tuner.workloads.base",
    "training_function": "tuner.workloads.function",
    "tune": "tuner.tuning",
}

__all__ = [
    "ClipSetting",
    "Clipper",
    "Recommendation",
    "StudySpec",
    "TrialPruned",
    "Workload",
    "training_function",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
