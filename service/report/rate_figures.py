"""What each threshold does to a run: how many steps it clips, how much it scales, how often training fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from service.report.candidates import Findings
from service.report.figures import (
    COLOURS,
    FAILED,
    PLAIN,
    Figure,
    Trace,
    axis,
    band,
    threshold_axis,
    vertical_line,
)
from service.report.wording import failure_interval, failure_words, percent
from service.schemas import TrialOut
from tuner.evidence import FailureRate, LaneResult, TrialState
from tuner.methods import get_method
from tuner.search.failure import failure_rate
from tuner.spec import ClipSetting

#: The trials of a method that have a result, by threshold, whatever their stage and learning rate.
Tried = dict[float, list[TrialOut]]


def rate_figures(findings: Findings, method_name: str) -> list[Figure]:
    """Clipping and failures of one method by threshold.

    Args:
        findings: the study.
        method_name: a method with at least one trial.

    Returns:
        Two charts; none without a lane that ended.
    """
    by_threshold: Tried = defaultdict(list)
    for trial in findings.trials:
        if trial.setting.method == method_name and trial.setting.threshold is not None and trial.lanes:
            by_threshold[trial.setting.threshold].append(trial)
    tried = dict(sorted(by_threshold.items()))
    return [_clipping(method_name, tried, findings), _failing(method_name, tried, findings)] if tried else []


def _clipping(method_name: str, tried: Tried, findings: Findings) -> Figure:
    ended = {threshold: _lanes(trials, is_complete=True) for threshold, trials in tried.items()}
    stopped = {threshold: _lanes(trials, is_complete=False) for threshold, trials in tried.items()}
    return Figure(
        id=f"clipping-{method_name}",
        title=f"How much {method_name} clips",
        caption=(
            "Clip fraction: share of steps whose gradient was scaled, clamped or skipped. Mean scale: mean factor on "
            "the gradient norm, 1 = never clipped. Means over seeds, bars from the lowest to the highest seed. Where "
            "nearly every step is clipped, the threshold acts as a smaller learning rate."
        ),
        data=[
            *_share_traces("clip fraction", "clip_fraction", ended, stopped, PLAIN, "circle"),
            *_share_traces("mean scale", "mean_scale", ended, stopped, COLOURS["today's value"], "square"),
        ],
        layout=_layout(method_name, tried, "share of steps; factor")
        | {"shapes": _best_line(method_name, findings)},
    )


def _lanes(trials: Iterable[TrialOut], *, is_complete: bool) -> list[LaneResult]:
    """Lanes of the trials that were trained to the end, or of the others."""
    return [
        lane for each in trials if (each.state is TrialState.COMPLETE) == is_complete for lane in each.lanes
    ]


def _share_traces(
    name: str,
    field: str,
    ended: dict[float, list[LaneResult]],
    stopped: dict[float, list[LaneResult]],
    colour: str,
    symbol: str,
) -> list[Trace]:
    """A line through the settings trained to the end; hollow marks for the others, which saw other phases."""
    drawn = (
        (name, ended, "lines+markers", symbol),
        (f"{name}, stopped early", stopped, "markers", f"{symbol}-open"),
    )
    return [
        _share_trace(
            words,
            {
                threshold: [getattr(lane, field) for lane in lanes]
                for threshold, lanes in found.items()
                if lanes
            },
            {"mode": mode, "line": {"color": colour, "width": 2}},
            {"size": 8, "symbol": mark, "color": colour},
        )
        for words, found, mode, mark in drawn
        if any(found.values())
    ]


def _share_trace(name: str, shares: dict[float, list[float]], line: Trace, marker: Trace) -> Trace:
    means = [fmean(found) for found in shares.values()]
    return line | {
        "type": "scatter",
        "name": name,
        "x": list(shares),
        "y": means,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [max(found) - mean for found, mean in zip(shares.values(), means, strict=True)],
            "arrayminus": [mean - min(found) for found, mean in zip(shares.values(), means, strict=True)],
            "width": 3,
        },
        "text": [
            f"threshold {threshold:g}<br>{name} {mean:.3g} ({min(found):.3g} to {max(found):.3g}, {len(found)} seeds)"
            for (threshold, found), mean in zip(shares.items(), means, strict=True)
        ],
        "hoverinfo": "text",
        "marker": marker,
    }


def _failing(method_name: str, tried: Tried, findings: Findings) -> Figure:
    ended = {threshold: findings.failures(trials) for threshold, trials in tried.items()}
    stopped = {threshold: _stopped(trials) for threshold, trials in tried.items()}
    shapes = _best_line(method_name, findings)
    off = findings.failures(findings.off.trials) if findings.off else None
    if off is not None:
        words = f"off: {failure_words(off)}, 95 % {failure_interval(off)}"
        share = off.num_failed / off.num_lanes
        shapes.append(band(off.low, off.high, words, COLOURS["off"], across="y"))
        shapes.append(band(share, share, words, COLOURS["off"], across="y") | {"showlegend": False})
    return Figure(
        id=f"failures-{method_name}",
        title=f"How often {method_name} fails",
        caption=(
            "Share of runs that diverged, or ended less than half way from the start to the best objective. Of a "
            "setting that was stopped early (hollow) only the divergences until then are known. Bars are the 95 % "
            "interval of the probability (Wilson): with few seeds it is wide even where none failed."
        ),
        data=[
            *_rate_trace("trained to the end", "failed", ended, "circle"),
            *_rate_trace("stopped early: diverged until then", "diverged", stopped, "circle-open"),
        ],
        layout=_layout(method_name, tried, "share of runs that failed") | {"shapes": shapes},
    )


def _stopped(trials: Iterable[TrialOut]) -> FailureRate | None:
    """How often trials that were stopped early had diverged by then."""
    lanes = _lanes(trials, is_complete=False)
    return failure_rate(sum(lane.diverged for lane in lanes), len(lanes)) if lanes else None


def _rate_trace(name: str, happened: str, found: dict[float, FailureRate | None], symbol: str) -> list[Trace]:
    rates = {threshold: rate for threshold, rate in found.items() if rate is not None}
    if not rates:
        return []
    shares = [rate.num_failed / rate.num_lanes for rate in rates.values()]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(rates),
        "y": shares,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [rate.high - share for rate, share in zip(rates.values(), shares, strict=True)],
            "arrayminus": [share - rate.low for rate, share in zip(rates.values(), shares, strict=True)],
            "width": 3,
        },
        "text": [
            f"threshold {threshold:g}<br>{failure_words(rate)} {happened}: {percent(share)}, "
            f"95 % {failure_interval(rate)}"
            for (threshold, rate), share in zip(rates.items(), shares, strict=True)
        ],
        "hoverinfo": "text",
        "marker": {"size": 10, "color": FAILED, "symbol": symbol},
    }
    return [trace]


def _layout(method_name: str, tried: Tried, words: str) -> dict[str, object]:
    return {
        "xaxis": threshold_axis(get_method(method_name), list(tried)),
        "yaxis": axis(words, tickformat=".0%", range=[-0.03, 1.03]),
        "height": 360,
        "hovermode": "closest",
    }


def _best_line(method_name: str, findings: Findings) -> list[dict[str, object]]:
    setting: ClipSetting | None = findings.best.setting if findings.best else None
    if setting is None or setting.method != method_name or setting.threshold is None:
        return []
    return [vertical_line(setting.threshold, f"best: {setting.threshold:g}", COLOURS["best"])]
