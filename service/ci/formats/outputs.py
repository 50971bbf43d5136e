"""What later steps of a pipeline read: one value per name, about the worst finding of a check."""

from __future__ import annotations

import re

from service.ci.report import Report
from service.ci.sentences import number

#: All that a value may consist of: no shell, dotenv reader or expression evaluates any of it.
_UNSAFE = re.compile(r"[^A-Za-z0-9._:/?&=%~+@-]")
_LONGEST = 500


def outputs(report: Report) -> dict[str, str]:
    """The outputs of a check.

    Args:
        report: what it found.

    Returns:
        Values by name, empty where there is nothing to say. ``status`` is ``passed``, ``failed``, ``refused`` (a file
        could not be read) or ``unavailable`` (the service gave nothing); ``current`` and ``recommended`` are thresholds
        or ``off``.
    """
    worst = report.worst
    if worst is None:
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
    return "unavailable" if report.outage is not None else "passed"


def _number(threshold: float | None) -> str:
    return "off" if threshold is None else number(threshold)


def _safe(value: str) -> str:
    return _UNSAFE.sub("_", value)[:_LONGEST]
