"""Gradient norms before clipping: how they are distributed, and how they change along the run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from service.report.candidates import Candidate, Findings
from service.report.figures import COLOURS, Figure, Trace, axis, log_range, vertical_line
from service.report.wording import percent, role_words, setting_words
from tuner.methods import get_method
from tuner.records import BINS_PER_OCTAVE, NormHistogram, Phase, PhaseSketch

#: Bins with a smaller share of the steps are beyond the axis at first.
_RARE = 0.005


def norm_figures(findings: Findings) -> list[Figure]:
    """The histogram, and the norms by phase.

    Args:
        findings: the study.

    Returns:
        A chart for each of the two that anything was recorded of.
    """
    return [each for each in (_histogram(findings), _by_phase(findings)) if each.data]


def _histogram(findings: Findings) -> Figure:
    merged = [(role, candidate, _merged(candidate)) for role, candidate in findings.compared]
    drawn = [(role, candidate, whole) for role, candidate, whole in merged if whole is not None]
    words = (
        "All seeds together, over the steps kept. Areas compare: a height is the share of steps per doubling. Bins "
        "with less than 0.5 % of the steps may lie beyond the axis."
    )
    shapes = []
    best = findings.best
    if best is not None and best.setting.threshold is not None:
        if get_method(best.setting.method).scale == "l2_norm":
            line = f"threshold {best.setting.threshold:g}"
            shapes.append(vertical_line(best.setting.threshold, line, COLOURS["best"]))
            words += " Steps to the right of the dashed line are clipped under the best setting."
        else:
            words += f" The threshold of {best.setting.method} is no norm, so it has no place on this axis."
    return Figure(
        id="norm-histogram",
        title="Gradient norms before clipping",
        caption=words,
        data=[_outline(*each) for each in drawn],
        layout={
            "xaxis": axis("gradient norm before clipping (log)", log=True, **_usual_range(drawn, shapes)),
            "yaxis": axis("density: share of steps per doubling", rangemode="tozero"),
            "shapes": shapes,
            "height": 380,
        },
    )


def _usual_range(
    drawn: Sequence[tuple[str, Candidate, NormHistogram]], lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The axis without the rarest norms, one of which can be a thousand times the others."""
    edges = [float(line["x0"]) for line in lines if drawn]
    edges += [
        edge
        for _, _, whole in drawn
        for index, count in enumerate(whole.counts)
        if count > _RARE * sum(whole.counts)
        for edge in whole.edges[index : index + 2]
    ]
    return {"range": log_range(min(edges), max(edges), room=0.04)} if edges else {}


def _merged(candidate: Candidate) -> NormHistogram | None:
    return NormHistogram.merged(lane.histogram for lane in candidate.lanes if lane.histogram is not None)


def _outline(role: str, candidate: Candidate, whole: NormHistogram) -> Trace:
    """The outline of a histogram: bars of equal width do not exist on a logarithmic axis."""
    total = sum(whole.counts)
    shares = [count / total for count in whole.counts]
    per_octave = [share * BINS_PER_OCTAVE / whole.width for share in shares]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": role_words(role, candidate.setting),
        "x": [whole.edges[0], *whole.edges],
        "y": [0.0, *per_octave, 0.0],
        "text": ["", *(_bin_words(whole, index, share) for index, share in enumerate(shares)), ""],
        "hoverinfo": "text",
        "line": {"shape": "hv", "color": COLOURS[role], "width": 2},
        "fill": "tozeroy",
        "opacity": 0.9,
    }


def _bin_words(whole: NormHistogram, index: int, share: float) -> str:
    return f"{whole.edges[index]:.3g} to {whole.edges[index + 1]:.3g}: {percent(share)} of steps"


def _by_phase(findings: Findings) -> Figure:
    return Figure(
        id="norms-by-phase",
        title="Gradient norms by phase of the run",
        caption=(
            "Before clipping, medians over seeds. A mark is the median norm of the phase, its bar goes from the "
            "10 % to the 90 % quantile. Warm-up is the first 5 % of a full run's steps, early goes to a third, "
            "mid to two thirds."
        ),
        data=[trace for role, candidate in findings.compared for trace in _phase_trace(role, candidate)],
        layout={
            "xaxis": axis("phase", type="category", categoryarray=[_phase_words(each) for each in Phase]),
            "yaxis": axis("gradient norm before clipping (log)", log=True),
            "scattermode": "group",
            "height": 380,
        },
    )


def _phase_trace(role: str, candidate: Candidate) -> list[Trace]:
    by_phase = {
        phase: [
            each for lane in candidate.lanes for each in lane.phases if each.phase is phase and each.norms
        ]
        for phase in Phase
    }
    drawn = {phase: found for phase, found in by_phase.items() if found}
    if not drawn:
        return []
    middles = [_middle(found, "median") for found in drawn.values()]
    lows = [_middle(found, "q10") for found in drawn.values()]
    highs = [_middle(found, "q90") for found in drawn.values()]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": role_words(role, candidate.setting),
            "x": [_phase_words(phase) for phase in drawn],
            "y": middles,
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [high - middle for high, middle in zip(highs, middles, strict=True)],
                "arrayminus": [middle - low for low, middle in zip(lows, middles, strict=True)],
                "width": 5,
            },
            "text": [
                f"{setting_words(candidate.setting)}, {_phase_words(phase)}<br>median norm {middle:.3g} "
                f"(10 to 90 %: {low:.3g} to {high:.3g})<br>{_clipped(found)} of steps clipped"
                for (phase, found), low, middle, high in zip(drawn.items(), lows, middles, highs, strict=True)
            ],
            "hoverinfo": "text",
            "marker": {"size": 10, "color": COLOURS[role]},
        }
    ]


def _middle(sketches: Sequence[PhaseSketch], name: str) -> float:
    """Median over seeds of one quantile; a quantile that is not recorded is the median."""
    norms = [each.norms for each in sketches if each.norms is not None]
    values = [getattr(each, name) for each in norms]
    return median(norm.median if value is None else value for norm, value in zip(norms, values, strict=True))


def _clipped(sketches: Sequence[PhaseSketch]) -> str:
    steps = sum(each.num_steps for each in sketches)
    return percent(sum(each.clip_fraction * each.num_steps for each in sketches) / steps)


def _phase_words(phase: Phase) -> str:
    return phase.replace("_", "-")
