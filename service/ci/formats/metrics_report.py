"""GitLab's metrics report: numbers that a merge request shows with their change against the target branch.

Source:
    https://docs.gitlab.com/ci/testing/metrics_reports/, in the format of OpenMetrics,
    https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from service.ci.formats.texts import visible
from service.ci.judgement import Judgement, Severity
from service.ci.report import Report


def _evidence(judgement: Judgement) -> float | None:
    return judgement.evidence.mean if judgement.evidence is not None else None


def _recommended(judgement: Judgement) -> float | None:
    return judgement.recommended.threshold if judgement.recommended is not None else None


#: Metric by name, with its help text. A value that is off, or not known, has no line.
_METRICS: Mapping[str, tuple[str, Callable[[Judgement], float | None]]] = {
    "cliptune_threshold": ("clip threshold in the config", lambda each: each.value),
    "cliptune_recommended_threshold": ("recommended clip threshold", _recommended),
    "cliptune_recommended_low": ("lowest recommended clip threshold", lambda each: each.low),
    "cliptune_recommended_high": ("highest recommended clip threshold", lambda each: each.high),
    "cliptune_objective_excess": ("how much worse the config's value was measured to be", _evidence),
    "cliptune_failed": ("1 if the value fails the check", lambda each: each.severity is Severity.FAILURE),
}


def render(report: Report) -> str:
    """A report as metrics.

    Args:
        report: what the check found.

    Returns:
        OpenMetrics text.
    """
    lines: list[str] = []
    for name, (meaning, read) in _METRICS.items():
        samples = [
            f"{name}{_labels(each)} {value:.12g}"
            for each in report.judgements
            if (value := read(each)) is not None
        ]
        samples += [f"{name}{_labelled(labels)} {value:.12g}" for labels, value in _study(report, name)]
        if samples:
            lines += [f"# TYPE {name} gauge", f"# HELP {name} {meaning}", *samples]
    lines += [
        "# TYPE cliptune_exit_code gauge",
        "# HELP cliptune_exit_code exit code of the check",
        f"cliptune_exit_code {report.exit_code}",
        "# EOF",
    ]
    return "\n".join(lines) + "\n"


def _study(report: Report, name: str) -> list[tuple[dict[str, str], float]]:
    """What a study recommends, where no config says it."""
    found = report.study.settled if report.study is not None else None
    if found is None or report.judgements:
        return []
    low, high = found.interval or (None, None)
    values = {
        "cliptune_recommended_threshold": found.setting.threshold,
        "cliptune_recommended_low": low,
        "cliptune_recommended_high": high,
    }
    value = values.get(name)
    return [] if value is None else [({"workload": found.workload}, value)]


def _labels(judgement: Judgement) -> str:
    return _labelled({"file": judgement.checked.file, "key": judgement.checked.key})


def _labelled(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return visible(value).replace("\\", "\\\\").replace('"', '\\"')
