"""Learning curves of the settings that matter: training loss by step, and the objective at the rungs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from service.report.candidates import Candidate, Findings
from service.report.figures import COLOURS, FAINT, Figure, Trace, axis, is_spread
from service.report.wording import role_words

#: Values that are further apart than this factor are drawn on a logarithmic axis.
_SPREAD = 8.0

#: One seed's curve: steps with their values.
Curve = tuple[tuple[float, float], ...]


def curve_figures(findings: Findings) -> list[Figure]:
    """Training loss and objective of best, *off* and today's value.

    Args:
        findings: the study.

    Returns:
        A chart for each of the two that anything was recorded of.
    """
    figures = [
        _figure(
            "training-loss",
            "Training loss by step",
            "training loss",
            {role: _losses(candidate) for role, candidate in findings.compared},
            findings,
            "Thin lines are single seeds, each point the mean over a stretch of steps; bold is the mean of those that "
            "trained longest. A line that ends early is a seed that diverged or was stopped.",
        ),
        _figure(
            "objective-by-step",
            f"{findings.objective} at the rungs",
            findings.objective,
            {role: _objectives(candidate) for role, candidate in findings.compared},
            findings,
            "On held-out data, before the first step and at each rung. Thin lines are single seeds, "
            "bold is the mean of those that trained longest.",
        ),
    ]
    return [each for each in figures if each.data]


def _losses(candidate: Candidate) -> list[tuple[str, Curve]]:
    return [
        (f"seed {lane.seed}", lane.curve.points(lane.num_steps))
        for lane in candidate.lanes
        if lane.curve is not None
    ]


def _objectives(candidate: Candidate) -> list[tuple[str, Curve]]:
    """By seed over both stages; a trial that still runs has rungs but no lanes."""
    curves: dict[int, dict[float, float]] = defaultdict(dict)
    for lane in candidate.lanes:
        if lane.initial is not None:
            curves[lane.seed][0.0] = lane.initial
        if lane.value is not None:
            curves[lane.seed][float(lane.num_steps)] = lane.value
    for trial in candidate.trials:
        for step, values in trial.rungs.items():
            for seed, value in values.items():
                if value is not None:
                    curves[seed][float(step)] = value
    return [(f"seed {seed}", tuple(sorted(curve.items()))) for seed, curve in sorted(curves.items())]


def _figure(
    name: str,
    title: str,
    quantity: str,
    curves: dict[str, list[tuple[str, Curve]]],
    findings: Findings,
    caption: str,
) -> Figure:
    words = {role: role_words(role, each.setting) for role, each in findings.compared}
    values = [value for lines in curves.values() for _, curve in lines for _, value in curve]
    is_log = is_spread(values, _SPREAD)
    return Figure(
        id=name,
        title=title,
        caption=caption,
        data=[
            trace for role, lines in curves.items() for trace in _lines(role, words[role], lines, quantity)
        ],
        layout={
            "xaxis": axis("step", rangemode="tozero"),
            "yaxis": axis(f"{quantity} (log)" if is_log else quantity, log=is_log),
            "height": 380,
            "hovermode": "closest",
        },
    )


def _lines(role: str, words: str, lines: Sequence[tuple[str, Curve]], quantity: str) -> list[Trace]:
    """Thin lines and their mean; the legend switches them together."""
    drawn = [(name, curve) for name, curve in lines if curve]
    if not drawn:
        return []
    common = {"type": "scatter", "mode": "lines", "legendgroup": role, "hoverinfo": "text"}
    traces = [
        common
        | {
            "x": [step for step, _ in curve],
            "y": [value for _, value in curve],
            "text": [f"{words}<br>{name}, step {step:g}: {value:.4g}" for step, value in curve],
            "opacity": FAINT,
            "line": {"color": COLOURS[role], "width": 1},
            "showlegend": False,
        }
        for name, curve in drawn
    ]
    end = max(curve[-1][0] for _, curve in drawn)
    longest = [curve for _, curve in drawn if curve[-1][0] == end]
    mean = mean_curve(longest)
    bold = {
        "x": [step for step, _ in mean],
        "y": [value for _, value in mean],
        "text": [
            f"{words}<br>mean of {len(longest)} seeds, step {step:g}: {value:.4g}" for step, value in mean
        ],
        "name": words,
        "mode": "lines+markers" if len(mean) < 15 else "lines",
        "line": {"color": COLOURS[role], "width": 3},
        "marker": {"size": 6},
    }
    return [*traces, common | bold]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at the steps that all of them have a value at.

    Args:
        curves: at least one.

    Returns:
        The mean curve; empty if the curves share no step.

    Example:
        >>> mean_curve([((0.0, 1.0), (5.0, 3.0)), ((0.0, 2.0),)])
        ((0.0, 1.5),)
    """
    by_step: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        for step, value in curve:
            by_step[step].append(value)
    return tuple(
        (step, fmean(values)) for step, values in sorted(by_step.items()) if len(values) == len(curves)
    )
