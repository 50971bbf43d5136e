"""The whole report as JSON, for other programs; `document` says what each field is."""

from __future__ import annotations

import json
import math
from typing import Any

from service.ci.formats.texts import visible
from service.ci.judgement import Evidence, Judgement
from service.ci.report import Report
from service.ci.tuned import Tuned

#: Grows when a field changes its meaning or goes; a new field does not count.
SCHEMA_VERSION = 1


def render(report: Report) -> str:
    """A report as JSON.

    Args:
        report: what the check found.

    Returns:
        ASCII text with a final line end.
    """
    return json.dumps(document(report), indent=2, allow_nan=False) + "\n"


def document(report: Report) -> dict[str, Any]:
    """A report as JSON values.

    Args:
        report: what the check found.

    Returns:
        ``schema_version``; ``exit_code`` of the process; ``summary``, a sentence; ``counts`` of values that ``failed``,
        of ``warnings``, of values that are ``ok`` and of files ``refused``; ``outage`` (``code``, ``title``,
        ``sentence``) or null; ``refusals`` (``file``, ``line``, ``code``, ``sentence``); ``judgements``, the worst
        first, with the fields of `service.ci.judgement.Judgement`, settings written as ``METHOD:THRESHOLD``; ``study``,
        the one that was waited for, or null in a check: ``id``, ``url``, ``workload``, its ``state``, the ``ending`` of
        the waiting (`service.ci.tuned.Ending`), its ``verdict`` (null without an answer), ``recommended``, ``low`` and
        ``high`` (null also if it has not settled), ``reason``, ``num_seeds``, ``more_seeds`` that would settle it, how
        it is told (``severity``, ``title``, ``sentence``), ``is_replayed``, ``code`` and ``cause`` of a failure.
    """
    outage = report.outage
    return {
        "schema_version": SCHEMA_VERSION,
        "exit_code": report.exit_code,
        "summary": report.summary,
        "counts": {
            "failed": report.num_failures,
            "warnings": report.num_warnings,
            "ok": report.num_ok,
            "refused": len(report.refusals),
        },
        "outage": None
        if outage is None
        else {"code": outage.code, "title": outage.title, "sentence": _valid(outage.sentence)},
        "refusals": [
            {
                "file": _valid(each.file),
                "line": each.line,
                "code": each.code,
                "sentence": _valid(each.sentence),
            }
            for each in report.refusals
        ],
        "judgements": [_judgement(each) for each in report.judgements],
        "study": None if report.study is None else _study(report.study),
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    checked = judgement.checked
    return {
        "file": _valid(checked.file),
        "line": checked.line,
        "column": checked.column,
        "framework": None if checked.framework is None else _valid(checked.framework),
        "key": _valid(checked.key),
        "spelled": _valid(checked.spelled),
        "is_implicit": checked.is_implicit,
        "setting": None if checked.setting is None else str(checked.setting),
        "verdict": str(judgement.verdict),
        "severity": str(judgement.severity),
        "title": judgement.title,
        "sentence": _valid(judgement.sentence),
        "value": _finite(judgement.value),
        "low": _finite(judgement.low),
        "high": _finite(judgement.high),
        "recommended": None if judgement.recommended is None else str(judgement.recommended),
        "recommended_spelled": _valid(judgement.recommended_spelled),
        "evidence": None if judgement.evidence is None else _evidence(judgement.evidence),
        "margin": judgement.margin,
        "objective": _valid(judgement.objective),
        "num_seeds": judgement.num_seeds,
        "more_seeds": judgement.more_seeds,
        "workload": _valid(judgement.workload),
        "study_id": _valid(judgement.study_id),
        "study_url": _valid(judgement.study_url),
        "age_days": judgement.age_days,
        "is_stale": judgement.is_stale,
    }


def _study(study: Tuned) -> dict[str, Any]:
    found, settled = study.recommendation, study.settled
    low, high = settled.interval if settled is not None and settled.interval is not None else (None, None)
    return {
        "id": _valid(study.study_id),
        "url": _valid(study.url),
        "workload": _valid(study.workload),
        "state": _valid(study.state),
        "ending": str(study.ending),
        "is_replayed": study.is_replayed,
        "verdict": None if found is None else str(found.verdict),
        "recommended": None if settled is None else str(settled.setting),
        "low": low,
        "high": high,
        "reason": "" if found is None else _valid(found.reason),
        "num_seeds": 0 if found is None else found.num_seeds,
        "more_seeds": None if found is None else found.more_seeds,
        "severity": str(study.severity),
        "title": study.title,
        "sentence": _valid(study.sentence),
        "code": _valid(study.code),
        "cause": _valid(study.cause),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "setting": str(evidence.setting),
        "is_exact": evidence.is_exact,
        "baseline": str(evidence.baseline),
        "mean": evidence.mean,
        "low": evidence.low,
        "high": evidence.high,
        "num_pairs": evidence.num_pairs,
        "num_seeds": evidence.num_seeds,
        "num_diverged": evidence.num_diverged,
        "is_fresh": evidence.is_fresh,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or not math.isfinite(value) else value


def _valid(text: str) -> str:
    """A text as it is; one with undecodable bytes, which no JSON can hold, as it is shown elsewhere."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return visible(text)
    return text
