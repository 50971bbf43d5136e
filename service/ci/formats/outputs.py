"""What later steps of a pipeline read: one value per name, about the worst finding, else about the study itself."""

from __future__ import annotations

import re

from service.ci.report import Report
from service.ci.sentences import number
from service.ci.tuned import Ending, Tuned

#: All that a value may consist of: no shell, dotenv reader or expression evaluates any of it.
_UNSAFE = re.compile(r"[^A-Za-z0-9._:/?&=%~+@-]")
_LONGEST = 500


def outputs(report: Report) -> dict[str, str]:
    """The outputs of a check.

    Args:
        report: what it found.

    Returns:
        Values by name, empty where there is nothing to say. ``status`` is ``passed``, ``failed``, ``refused`` (a file
        could not be read) or ``unavailable`` (the service gave nothing), and of a study that was waited for and has no
        answer ``study_failed``, ``study_cancelled``, ``timed_out`` or ``interrupted``; ``current`` and ``recommended``
        are thresholds or ``off``; ``verdict`` is a config's, and without configs the study's.
    """
    worst = report.worst
    if worst is None and report.study is not None:
        told = _study(report.study)
    elif worst is None:
        told = dict.fromkeys(
            ("verdict", "current", "recommended", "low", "high", "study-id", "study-url"), ""
        )
    else:
        setting, recommended = worst.checked.setting, worst.recommended
        told = {
            "verdict": str(worst.verdict),
            "current": "" if setting is None else _number(worst.value),
            "recommended": "" if recommended is None else _number(recommended.threshold),
            "low": "" if worst.low is None else number(worst.low),
            "high": "" if worst.high is None else number(worst.high),
            "study-id": worst.study_id,
            "study-url": worst.study_url,
        }
    return {name: _safe(value) for name, value in told.items()} | {
        "status": _status(report),
        "num-failed": str(report.num_failures),
        "num-warnings": str(report.num_warnings),
        "exit-code": str(report.exit_code),
    }


def _status(report: Report) -> str:
    if report.num_failures:
        return "failed"
    if report.refusals:
        return "refused"
    if report.study is not None and report.study.ending is not Ending.SUCCEEDED:
        return str(report.study.ending)
    return "unavailable" if report.outage is not None else "passed"


def _study(study: Tuned) -> dict[str, str]:
    """The same of a study alone: what is recommended, which a study that has not settled does not say."""
    found, settled = study.recommendation, study.settled
    low, high = settled.interval if settled is not None and settled.interval is not None else (None, None)
    return {
        "verdict": "" if found is None else str(found.verdict),
        "current": "" if study.current is None else _number(study.current.threshold),
        "recommended": "" if settled is None else _number(settled.setting.threshold),
        "low": "" if low is None else number(low),
        "high": "" if high is None else number(high),
        "study-id": study.study_id,
        "study-url": study.url,
    }


def _number(threshold: float | None) -> str:
    return "off" if threshold is None else number(threshold)


def _safe(value: str) -> str:
    return _UNSAFE.sub("_", value)[:_LONGEST]
