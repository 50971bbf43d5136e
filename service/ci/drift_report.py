"""What probes say of recommendations, where no config is judged: as lines, and as JSON. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from service.ci.drift import Comparison
from service.ci.drift_figures import Ratio
from service.ci.drift_session import Finding, Findings
from service.ci.formats.plain_report import WORDS
from service.ci.formats.texts import visible
from service.ci.judgement import CheckVerdict, Severity
from service.ci.look import Look
from service.ci.report import EXIT_FAILED, EXIT_OUTAGE, OnServiceError
from service.ci.sentences import source
from tuner.evidence import Verdict

#: Grows when a field changes its meaning or goes; a new field does not count.
SCHEMA_VERSION = 1
#: Formats that need no config.
FORMATS = ("plain", "json")
#: What a study answered, before what became of it.
_ANSWERS = {
    Verdict.CLIP: "",
    Verdict.DO_NOT_CLIP: "off was recommended, and ",
    Verdict.NO_DIFFERENCE: "clipping made no difference, and ",
    Verdict.INCONCLUSIVE: "the study was inconclusive, and ",
}


def exit_code(found: Findings, *, on_service_error: OnServiceError, exit_zero: bool) -> int:
    """What the process exits with.

    Args:
        found: everything.
        on_service_error: whether an outage counts.
        exit_zero: whether nothing does.

    Returns:
        1 for a drift that fails, else 3 for an outage that counts, else 0.
    """
    if exit_zero:
        return 0
    if any(each.severity is Severity.FAILURE for each in found.findings):
        return EXIT_FAILED
    return EXIT_OUTAGE if found.outage is not None and on_service_error == "fail" else 0


def render(found: Findings, format_name: str, code: int) -> str:
    """Write what was found.

    Args:
        found: everything.
        format_name: one of `FORMATS`.
        code: that the process exits with.

    Returns:
        Text that ends with a line end: a line for each recommendation, or JSON.
    """
    return _json(found, code) if format_name == "json" else _plain(found, code)


def _plain(found: Findings, code: int) -> str:
    lines = []
    if found.outage is not None:
        word = WORDS[Severity.FAILURE if code == EXIT_OUTAGE else Severity.WARNING]
        lines.append(f"{word}: {visible(found.outage.sentence)} [{visible(found.outage.code)}]")
    lines += [_line(each) for each in found.findings]
    return "".join(f"{line}\n" for line in lines)


def _json(found: Findings, code: int) -> str:
    """Everything, for other programs.

    Returns:
        ``schema_version``, ``exit_code``, ``outage`` (``code``, ``title``, ``sentence``) or null, and ``findings``:
        ``workload``, ``severity``, ``change`` (`service.ci.drift.Change`, or null where nothing was compared),
        ``has_drifted``, ``sentence``; without probes ``code``, why there are none; with probes ``setting``,
        ``verdict`` of the study, ``study_id``, ``study_url``, ``ratios``, ``shares``, ``q99``, ``num_batches``,
        ``num_seeds``, ``num_independent``, ``is_repeat`` and ``is_other_training``.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": code,
        "outage": None if found.outage is None else asdict(found.outage),
        "findings": [_finding(each) for each in found.findings],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _line(finding: Finding) -> str:
    seen = finding.look
    if seen is None:
        name = visible(finding.workload)
        reason = visible(finding.reason).removesuffix(".")
        return f"{WORDS[finding.severity]}: {name}: nothing was compared: {reason}. [{finding.code}]"
    url = f" {visible(seen.recommendation.study_url)}" if seen.recommendation.study_url else ""
    verdict = str(CheckVerdict.DRIFT if seen.drift().has_drifted else seen.compare().change)
    return (
        f"{WORDS[finding.severity]}: {visible(finding.workload)}: {visible(_sentence(seen))} [{verdict}]{url}"
    )


def _sentence(seen: Look) -> str:
    """The finding with its study; what is trained now comes first where it is something else."""
    answer, reason = _ANSWERS[seen.recommendation.verdict], seen.drift().reason
    first = f"{seen.first} " if seen.first else ""
    remedy = " Run the study again." if seen.drift().has_drifted else ""
    return f"{first}{answer}{reason.removeprefix(first)}{remedy} {source(seen.recommendation)}"


def _finding(finding: Finding) -> dict[str, Any]:
    seen = finding.look
    told: dict[str, Any] = {"workload": visible(finding.workload), "severity": str(finding.severity)}
    if seen is None:
        return told | {
            "change": None,
            "has_drifted": False,
            "sentence": visible(finding.reason),
            "code": finding.code,
        }
    compared = seen.compare()
    recommendation = seen.recommendation
    return told | {
        "change": str(compared.change),
        "has_drifted": compared.has_drifted,
        "sentence": visible(_sentence(seen)),
        "setting": str(compared.setting),
        "verdict": str(recommendation.verdict),
        "study_id": recommendation.study_id,
        "study_url": visible(recommendation.study_url),
        "is_other_training": bool(seen.first),
        **_figures(compared),
    }


def _figures(compared: Comparison) -> dict[str, Any]:
    return {
        "ratios": {each.name: _ratio(each) for each in compared.ratios},
        "shares": None if compared.shares is None else asdict(compared.shares),
        "q99": {"then": compared.q99[0], "now": compared.q99[1]},
        "num_batches": {"then": compared.num_batches[0], "now": compared.num_batches[1]},
        "num_seeds": {"then": compared.num_seeds[0], "now": compared.num_seeds[1]},
        "num_independent": {"then": compared.num_independent[0], "now": compared.num_independent[1]},
        "is_repeat": compared.is_repeat,
    }


def _ratio(ratio: Ratio) -> dict[str, float | None]:
    """JSON has no infinity."""
    figures = {
        "then": ratio.then,
        "now": ratio.now,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
    }
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
