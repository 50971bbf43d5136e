"""The objective of every setting by its threshold: where the good ones are, how sure that is, what failed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from service.report.candidates import Findings, trial_estimate, trial_interval
from service.report.figures import (
    COLOURS,
    FAILED,
    FAINT,
    PLAIN,
    Figure,
    Trace,
    axis,
    band,
    is_spread,
    log_range,
    threshold_axis,
    vertical_line,
)
from service.report.intervals import mean_interval
from service.report.markup import chart_text
from service.report.wording import estimate_interval, estimate_words, number, role_words, setting_words, span
from service.schemas import TrialOut
from tuner.evidence import Stage, TrialState
from tuner.methods import Method, get_method

#: Most single seeds drawn: a browser gets slow beyond, and the eye sees no more.
_MAX_DOTS = 5000
#: Colours of the lowest and the highest learning rate, as red, green and blue.
_RATE_COLOURS = ((58, 123, 213), (214, 69, 65))
#: Objectives that are further apart than this factor are drawn on a logarithmic axis.
_SPREAD = 4.0


def objective_figure(findings: Findings, method_name: str) -> Figure:
    """One method's settings, with *off* and today's value across.

    Args:
        findings: the study.
        method_name: whose thresholds to draw; it has at least one lane that ended.

    Returns:
        The chart.
    """
    method = get_method(method_name)
    trials = [each for each in findings.trials if each.setting.method == method_name]
    shown = [each for each in trials if each.lanes]
    seeds = [lane.value for trial in shown for lane in trial.lanes if lane.value is not None]
    bands = _bands(findings, method)
    means = [trial.mean for trial in shown if trial.mean is not None]
    levels = [*means, *(each.mean for _, each in _levels(findings) if each.mean is not None)]
    vertical = _objective_axis(findings.objective, levels, seeds)
    thresholds = [each.setting.threshold for each in trials if each.setting.threshold is not None]
    return Figure(
        id=f"objective-{method_name}",
        title=f"{findings.objective} by threshold, {method_name}",
        caption=_caption(trials, method, num_dots=len(seeds)),
        data=[
            *([_seed_dots(shown)] if len(seeds) <= _MAX_DOTS else []),
            *_marks(shown, findings),
            *_rate_legend(findings),
            *_lost(shown, top=_top(vertical, levels)),
        ],
        layout={
            "xaxis": threshold_axis(method, thresholds),
            "yaxis": vertical,
            "shapes": bands,
            "height": 470,
            "hovermode": "closest",
        },
    )


def _caption(trials: list[TrialOut], method: Method, *, num_dots: int) -> str:
    waiting = sum(trial.state.is_open for trial in trials)
    words = (
        "Lower is better. A mark is a setting's mean over seeds with its 95 % interval (Student's t, of this setting "
        "alone: the verdict rests on paired differences, which are sharper); faint dots are single seeds. A hollow "
        "mark was stopped early, at the value it had then. Bands are off and today's value with their own intervals."
    )
    if any(trial.stage is Stage.CONFIRM for trial in trials):
        words += " Diamonds are repeats on fresh seeds, which the search never saw."
    if num_dots > _MAX_DOTS:
        words += f" Single seeds are left out: there are {num_dots:,}."
    return words + (
        f" Without a result yet: {waiting} of {len(trials)} trials of {method.name}." if waiting else ""
    )


def _levels(findings: Findings) -> list[tuple[str, Any]]:
    """What every method's settings are compared with: role and estimate."""
    found = []
    for role, candidate in findings.compared:
        if role == "off":
            answer = findings.study.result
            found.append((role, answer.off if answer else candidate.estimate))
        elif role != "best":
            found.append((role, candidate.estimate))
    return found


def _bands(findings: Findings, method: Method) -> list[dict[str, Any]]:
    """*Off* and today's value across, equally good thresholds and the best one upright."""
    shapes = []
    for role, estimate in _levels(findings):
        if estimate.mean is not None:
            interval = mean_interval(estimate.mean, estimate.standard_error, estimate.num_seeds)
            low, high = interval or (estimate.mean, estimate.mean)
            words = f"{role}: {estimate_words(estimate)}"
            shapes.append(band(low, high, words, COLOURS[role], across="y"))
            shapes.append(
                band(estimate.mean, estimate.mean, words, COLOURS[role], across="y") | {"showlegend": False}
            )
    answer = findings.study.result
    if answer is not None and answer.interval and answer.best and answer.best.method == method.name:
        words = f"equally good: {span(*answer.interval)}"
        shapes.append(band(*answer.interval, words, COLOURS["best"], across="x"))
    best = findings.best
    if best is not None and best.setting.method == method.name and best.setting.threshold is not None:
        words = role_words("best", best.setting)
        shapes.append(vertical_line(best.setting.threshold, words, COLOURS["best"]))
    return shapes


def _seed_dots(trials: Iterable[TrialOut]) -> Trace:
    dots = [
        (trial.setting.threshold, lane.value, f"{setting_words(trial.setting)}<br>seed {lane.seed}")
        for trial in trials
        for lane in trial.lanes
        if lane.value is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "single seeds",
        "x": [x for x, _, _ in dots],
        "y": [y for _, y, _ in dots],
        "text": [f"{words}: {number(y)}" for _, y, words in dots],
        "hoverinfo": "text",
        "marker": {"size": 5, "color": PLAIN, "opacity": FAINT},
    }


#: Kinds of mark: name, whether a trial is of it, symbol, colour.
_KINDS = (
    ("a seed diverged: mean of the others", lambda trial: trial.num_diverged > 0, "x", FAILED),
    ("stopped early", lambda trial: trial.state is TrialState.PRUNED, "circle-open", PLAIN),
    ("repeated on fresh seeds", lambda trial: trial.stage is Stage.CONFIRM, "diamond", None),
    ("trained to the end", lambda trial: True, "circle", PLAIN),
)


def _marks(trials: Iterable[TrialOut], findings: Findings) -> list[Trace]:
    """One trace per kind of mark, so that the legend explains it; a trial is of the first kind that fits."""
    left = [trial for trial in trials if trial.mean is not None]
    traces: list[Trace] = []
    for name, belongs, symbol, colour in _KINDS:
        mine = [trial for trial in left if belongs(trial)]
        left = [trial for trial in left if not belongs(trial)]
        if mine:
            marker: dict[str, Any] = {"symbol": symbol, "size": 10, "color": colour or COLOURS["best"]}
            if _tunes_learning_rate(findings):
                marker["color"] = [
                    _rate_colour(trial.setting.learning_rate_scale, findings) for trial in mine
                ]
            traces.append(_mark_trace(mine, name, marker, findings.objective))
    return traces


def _mark_trace(trials: list[TrialOut], name: str, marker: dict[str, Any], objective: str) -> Trace:
    intervals = [trial_interval(trial) or (trial.mean or 0.0, trial.mean or 0.0) for trial in trials]
    means = [trial.mean or 0.0 for trial in trials]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.setting.threshold for trial in trials],
        "y": means,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - mean for (_, high), mean in zip(intervals, means, strict=True)],
            "arrayminus": [mean - low for (low, _), mean in zip(intervals, means, strict=True)],
            "thickness": 1.2,
            "width": 3,
            "color": FAILED if marker["symbol"] == "x" else PLAIN,
        },
        "text": [_hover(trial, objective) for trial in trials],
        "hoverinfo": "text",
        "marker": marker,
    }


def _tunes_learning_rate(findings: Findings) -> bool:
    return findings.study.spec.get("learning_rate_low") is not None


def _rate_ends(findings: Findings) -> tuple[float, float]:
    """Logarithms of the least and the greatest factor on the learning rate."""
    spec = findings.study.spec
    return math.log10(spec["learning_rate_low"]), math.log10(spec["learning_rate_high"])


def _rate_colour(factor: float, findings: Findings) -> str:
    """Between the colours of the ends."""
    low, high = _rate_ends(findings)
    share = min(1.0, max(0.0, (math.log10(factor) - low) / (high - low)))
    parts = [round(one + share * (other - one)) for one, other in zip(*_RATE_COLOURS, strict=True)]
    return "rgb({},{},{})".format(*parts)


def _rate_legend(findings: Findings) -> list[Trace]:
    """A colour bar of the factor on the learning rate, where the study tunes it."""
    if not _tunes_learning_rate(findings):
        return []
    low, high = _rate_ends(findings)
    ticks = [low, (low + high) / 2, high]
    marker = {
        "color": [low],
        "cmin": low,
        "cmax": high,
        "colorscale": [[end, "rgb({},{},{})".format(*colour)] for end, colour in enumerate(_RATE_COLOURS)],
        "colorbar": {
            "title": {"text": "learning rate<br>(factor)"},
            "tickvals": ticks,
            "ticktext": [f"{10**tick:.3g}" for tick in ticks],
            "thickness": 12,
        },
    }
    nowhere: list[None] = [None]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": nowhere,
            "y": nowhere,
            "marker": marker,
            "showlegend": False,
            "hoverinfo": "skip",
        }
    ]


def _hover(trial: TrialOut, objective: str) -> str:
    estimate = trial_estimate(trial)
    lines = [
        f"trial {trial.number}: {setting_words(trial.setting)}",
        f"{chart_text(objective)} {estimate_words(estimate)}",
        f"95 % interval {estimate_interval(estimate)}",
        f"{trial.state}, {trial.stage}",
    ]
    if trial.clip_fraction is not None:
        lines.append(f"{trial.clip_fraction:.0%} of steps clipped")
    return "<br>".join(lines)


def _lost(trials: Iterable[TrialOut], *, top: float) -> list[Trace]:
    """Settings without a mean: every seed diverged."""
    lost = [trial for trial in trials if trial.mean is None]
    if not lost:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "every seed diverged (drawn at the top)",
            "x": [trial.setting.threshold for trial in lost],
            "y": [top] * len(lost),
            "text": [
                f"trial {trial.number}: {setting_words(trial.setting)}<br>{trial.num_diverged} of {len(trial.lanes)} "
                "seeds diverged"
                for trial in lost
            ],
            "hoverinfo": "text",
            "marker": {"symbol": "x-thin-open", "size": 11, "color": FAILED, "line": {"width": 3}},
        }
    ]


def _objective_axis(objective: str, levels: list[float], seeds: list[float]) -> dict[str, Any]:
    """A range that the means and seeds decide: an interval of two seeds may leave it."""
    if not levels:
        return axis(objective, range=[0, 1], showticklabels=False)
    values = sorted([*levels, *seeds])
    if is_spread(values, _SPREAD):
        return axis(f"{objective} (log)", log=True, range=log_range(values[0], values[-1], room=0.08))
    margin = 0.08 * (values[-1] - values[0]) or abs(values[0]) * 0.1 or 1.0
    return axis(objective, range=[values[0] - margin, values[-1] + margin])


def _top(vertical: dict[str, Any], levels: list[float]) -> float:
    """Just inside the upper end of the axis."""
    low, high = vertical["range"]
    inside = high - 0.03 * (high - low)
    return float(10**inside if vertical.get("type") == "log" and levels else inside)
