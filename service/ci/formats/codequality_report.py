"""GitLab's code quality report: findings shown beside the lines of a merge request.

Source:
    https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from service.ci.formats.texts import visible
from service.ci.judgement import CheckVerdict, Judgement, Severity
from service.ci.lock import normalized
from service.ci.report import Report

#: Weights of a failure; what does not fail weighs less.
_FAILURES = {CheckVerdict.REGRESSION: "critical"}
_WARNINGS = {CheckVerdict.OUTSIDE: "minor", CheckVerdict.REGRESSION: "minor", CheckVerdict.DRIFT: "minor"}


def render(report: Report) -> str:
    """A report as code quality findings.

    Args:
        report: what the check found.

    Returns:
        A JSON array with a finding per value that needs attention and per file that could not be read. An outage is no
        finding: it has no place in a file.
    """
    findings = [_judgement(each) for each in report.judgements if each.severity is not Severity.OK]
    weight = "minor" if report.exit_zero else "major"
    findings += [
        _finding(each.file, each.line, each.code, weight, each.sentence, "") for each in report.refusals
    ]
    return json.dumps(findings, indent=2) + "\n"


def _judgement(judgement: Judgement) -> dict[str, Any]:
    is_failure = judgement.severity is Severity.FAILURE
    weight = (
        _FAILURES.get(judgement.verdict, "major") if is_failure else _WARNINGS.get(judgement.verdict, "info")
    )
    # What is as it should be is a finding only because it is old.
    is_old = judgement.verdict in (CheckVerdict.INSIDE, CheckVerdict.NO_DIFFERENCE)
    name = "stale" if is_old else str(judgement.verdict)
    checked = judgement.checked
    return _finding(checked.file, checked.line, name, weight, judgement.sentence, checked.key)


def _finding(file: str, line: int, name: str, severity: str, description: str, key: str) -> dict[str, Any]:
    """One finding; its fingerprint stays when lines move and figures change, so that it counts as the same one."""
    path = visible(normalized(file))
    identity = "\0".join((path, visible(key), name))
    return {
        "description": visible(description) or name,
        "check_name": f"cliptune/{name}",
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "severity": severity,
        "location": {"path": path, "lines": {"begin": line}},
    }
