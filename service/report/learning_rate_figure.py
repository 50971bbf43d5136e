"""The objective by learning rate, where a study tunes it: *off* beside clipping, each at its own best rate."""

from __future__ import annotations

from service.report.candidates import Findings, trial_interval
from service.report.figures import COLOURS, PLAIN, Figure, Trace, axis, is_spread
from service.report.wording import number, setting_words
from service.schemas import TrialOut
from tuner.evidence import TrialState

#: Objectives that are further apart than this factor are drawn on a logarithmic axis.
_SPREAD = 4.0


def learning_rate_figures(findings: Findings) -> list[Figure]:
    """Every setting with a mean, by its factor on the learning rate.

    Args:
        findings: the study.

    Returns:
        One chart; none if the study leaves the rate alone, or without a result.
    """
    trials = [trial for trial in findings.trials if trial.mean is not None]
    if findings.study.spec.get("learning_rate_low") is None or not trials:
        return []
    is_log = is_spread([trial.mean or 0.0 for trial in trials], _SPREAD)
    kinds = (
        ("off", COLOURS["off"], [trial for trial in trials if trial.setting.is_off]),
        ("clipping", PLAIN, [trial for trial in trials if not trial.setting.is_off]),
    )
    return [
        Figure(
            id="learning-rate",
            title=f"{findings.objective} by learning rate",
            caption=(
                "Lower is better. Clipping and off are compared fairly where each has its own best learning rate. "
                "Hollow marks were stopped early; bars are 95 % intervals of single settings."
            ),
            data=[_marks(name, colour, drawn) for name, colour, drawn in kinds if drawn],
            layout={
                "xaxis": axis("factor on the workload's learning rate (log)", log=True),
                "yaxis": axis(f"{findings.objective} (log)" if is_log else findings.objective, log=is_log),
                "height": 380,
                "hovermode": "closest",
            },
        )
    ]


def _marks(name: str, colour: str, trials: list[TrialOut]) -> Trace:
    means = [trial.mean or 0.0 for trial in trials]
    intervals = [trial_interval(trial) or (mean, mean) for trial, mean in zip(trials, means, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.setting.learning_rate_scale for trial in trials],
        "y": means,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - mean for (_, high), mean in zip(intervals, means, strict=True)],
            "arrayminus": [mean - low for (low, _), mean in zip(intervals, means, strict=True)],
            "thickness": 1.2,
            "width": 3,
        },
        "text": [
            f"trial {trial.number}: {setting_words(trial.setting)}<br>{number(mean)}, {trial.state}"
            for trial, mean in zip(trials, means, strict=True)
        ],
        "hoverinfo": "text",
        "marker": {
            "size": 10,
            "color": colour,
            "symbol": ["circle" if trial.state is TrialState.COMPLETE else "circle-open" for trial in trials],
        },
    }
