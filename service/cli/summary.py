"""A recommendation as a table a person reads: verdict first, then the figures it rests on. Pure: values in, lines out.

Wherever a number stands, its unit, its uncertainty and what to compare it with stand beside it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from service.cli.chart import Point, draw_chart
from service.schemas import NeighbourOut, RecommendationOut, TrialOut
from tuner.evidence import Estimate, FailureRate, NormSketch, PairedDifference, Stage, TrialState, Verdict
from tuner.methods import get_method
from tuner.spec import ClipSetting

#: Width at which a text is broken, and up to which it is left alone: with the label, 120 columns.
_COLUMNS, _LONGEST = 100, 108
#: A space at which no line is broken.
_TIED = "\0"

_HEADLINES = {
    Verdict.CLIP: "CLIP",
    Verdict.NO_DIFFERENCE: "NO DIFFERENCE",
    Verdict.DO_NOT_CLIP: "DO NOT CLIP",
    Verdict.INCONCLUSIVE: "INCONCLUSIVE",
}


def recommendation_lines(found: RecommendationOut) -> list[str]:
    """The table under every finished study.

    Args:
        found: the recommendation.

    Returns:
        Lines without colour, at most 120 columns; the label column is 11 wide. The setting of an inconclusive study
        is called the best seen, never what to use.
    """
    version = f"   version {found.version}" if found.version > 1 else ""
    rows = [("verdict", f"{_HEADLINES[found.verdict]}{version}"), ("", found.reason)]
    rows += _setting_rows(found)
    rows += _comparison_rows(found)
    if found.clip_fraction is not None and found.mean_scale is not None and found.best is not None:
        scaled = f"{found.clip_fraction:.0%} of steps clipped, mean scale {found.mean_scale:.3g}"
        rows.append(("engages", f"{scaled}   (under {found.best})"))
    if found.step_cap is not None:
        rows.append(("step cap", f"{found.step_cap:.3g}   (learning rate x threshold: no step is longer)"))
    if found.norms is not None:
        rows.append(("norms", _norms(found.norms, found)))
    rows += _failure_rows(found)
    rows.append(
        ("diverged", f"{found.num_diverged_trials} of {found.num_trials} settings had a diverged seed")
    )
    if found.search_end:
        rows.append(("search", f"ended because {found.search_end}"))
    rows.append(("cost", f"{found.full_runs:.1f} full runs, {found.train_seconds:.1f} s of training"))
    label = "use it"
    if found.verdict is Verdict.INCONCLUSIVE:
        label = "unsettled" if found.best is None else "best seen"
    for framework, snippet in found.snippets.items():
        rows.append((label if framework == next(iter(found.snippets)) else "", f"{framework}: {snippet}"))
    if found.more_seeds is not None:
        command = f"cliptune extend {found.study_id[:8]} --seeds {found.more_seeds}"
        rows.append(("settle it", f"{command}   (as many further fresh seeds would about do)"))
    return _lines(rows)


def neighbour_lines(neighbours: Sequence[NeighbourOut], reason: str) -> list[str]:
    """What similar studies recommend, carried over.

    Args:
        neighbours: the nearest first, at least one.
        reason: the answer's sentence about them.

    Returns:
        Lines without colour, at most 120 columns; two per neighbour.
    """
    rows = [("similar", reason)]
    for each in neighbours:
        good = "" if each.interval is None else f"   as good: {each.interval[0]:g} to {each.interval[1]:g}"
        kappa = "" if each.kappa is None else f"   kappa {each.kappa:.3g}"
        rows.append((each.quality, f"{each.setting}{good}{kappa}"))
        differs = ", ".join(each.differences) or "nothing that is known"
        where = f"{_HEADLINES[each.verdict]} in study {each.study_id[:8]} ({each.workload})"
        rows.append(("", f"{where}, distance {each.distance:.2f}: {differs}"))
    return _lines(rows)


def _lines(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f" {label if first else '':<10} {part}" for label, text in rows for first, part in _wrapped(text)]


def _comparison_rows(found: RecommendationOut) -> list[tuple[str, str]]:
    """The best against *off*, today's value and the matched learning rate, and the seeds that this rests on."""
    rows = [(found.objective, _against_off(found))]
    if found.difference is not None:
        surviving = "   surviving seeds only" if found.off.num_diverged else ""
        rows.append(("", f"difference from off {_difference(found.difference)}{surviving}"))
    if found.against_current is not None:
        rows.append(("", f"difference from today's value {_difference(found.against_current)}"))
    if found.matched is not None:
        rows.append(("matched", f"off at the learning rate x mean scale {_estimate(found.matched)}"))
    if found.against_matched is not None:
        rows.append(("", f"difference from the matched rate {_difference(found.against_matched)}"))
    if found.best is None:
        return rows
    fresh = "the search's own: the best was chosen on them, so it looks better than it is"
    if found.num_fresh_seeds:
        fresh = f"{found.num_fresh_seeds} fresh ones, which the search never saw"
    return [*rows, ("seeds", fresh)]


def _failure_rows(found: RecommendationOut) -> list[tuple[str, str]]:
    told = [
        f"{name} {_failure(rate)}"
        for name, rate in ((str(found.best), found.failures), ("off", found.off_failures))
        if rate is not None
    ]
    return [("failed", "   ".join(told))] if told else []


def _failure(rate: FailureRate) -> str:
    lanes = f"{rate.num_failed} of {rate.num_lanes} runs"
    return f"{lanes} (95 % interval {rate.low:.0%} to {rate.high:.0%})".replace(" ", _TIED)


def chart_lines(
    trials: Sequence[TrialOut], method: str, *, objective: str, interval: tuple[float, float] | None
) -> list[str]:
    """The chart of one method's settings and *off*.

    Args:
        trials: of one study, ended or not; repeats on fresh seeds are not drawn over those of the search.
        method: whose thresholds to draw.
        objective: name of the minimized number.
        interval: equally good thresholds of that method, or None.

    Returns:
        Lines; empty if nothing can be drawn yet.
    """
    points = [
        Point(
            threshold=trial.setting.threshold,
            value=trial.mean,
            diverged=trial.num_diverged > 0,
            pruned=trial.state is TrialState.PRUNED,
        )
        for trial in trials
        if trial.stage is Stage.SEARCH and (trial.setting.method == method or trial.setting.is_off)
    ]
    return draw_chart(
        points,
        title=f"{objective} by {method} threshold   * trained to the end  . stopped early  x a seed diverged  o off",
        interval=interval,
        coordinate=get_method(method).coordinate,
    )


def charted_method(trials: Sequence[TrialOut], best: ClipSetting | None) -> str | None:
    """Which method's chart to draw: the best setting's, else the first that was tried."""
    if best is not None and not best.is_off:
        return best.method
    return next((trial.setting.method for trial in trials if not trial.setting.is_off), None)


def trial_lines(trials: Sequence[TrialOut]) -> list[str]:
    """One line per trial, in the order of asking.

    Args:
        trials: of one study, ended or not.

    Returns:
        A heading and the lines; a setting that did nothing is marked, and the mark is explained below.
    """
    lines = [
        f" {'trial':>5}  {'setting':<26}{'state':<10}{'objective':>10}  {'+-':>7}  {'clipped':>7}  diverged"
    ]
    for trial in trials:
        mean = "-" if trial.mean is None else f"{trial.mean:.4f}"
        error = "-" if trial.standard_error is None else f"{trial.standard_error:.4f}"
        clipped = "-" if trial.clip_fraction is None else f"{trial.clip_fraction:.0%}"
        lines.append(
            f" {trial.number:>5}  {trial.setting!s:<26}{trial.state:<10}{mean:>10}  {error:>7}  {clipped:>7}  "
            f"{trial.num_diverged or '-':<8}{_mark(trial)}".rstrip()
        )
    if any(map(_is_off_run, trials)):
        lines.append(" = off: trained once as off: its threshold was never exceeded")
    return lines


def _mark(trial: TrialOut) -> str:
    fresh = ""
    if trial.stage is Stage.CONFIRM and trial.seeds:
        fresh = f"  fresh seeds {trial.seeds[0]} to {trial.seeds[-1]}"
    return fresh + ("  = off" if _is_off_run(trial) else "")


def _is_off_run(trial: TrialOut) -> bool:
    """Whether every lane of a clip setting was its seed's off lane to the end."""
    return not trial.setting.is_off and bool(trial.lanes) and all(lane.is_off_run for lane in trial.lanes)


def _wrapped(text: str) -> list[tuple[bool, str]]:
    """Lines of a cell, the first one marked; only sentences are long enough to be broken."""
    if len(text) <= _LONGEST:
        return [(True, text.replace(_TIED, " "))]
    # A number and its percent sign stay together.
    parts = textwrap.wrap(text.replace(" %", f"{_TIED}%"), _COLUMNS, break_on_hyphens=False)
    return [(index == 0, part.replace(_TIED, " ")) for index, part in enumerate(parts)]


def _setting_rows(found: RecommendationOut) -> list[tuple[str, str]]:
    doubt = ""
    if found.verdict is Verdict.INCONCLUSIVE:
        doubt = "   not settled" if found.best is None else "   best seen, not settled"
    scale = found.setting.learning_rate_scale
    rate = [("rate", f"learning rate x {scale:g}")] if scale != 1 else []
    if found.setting.is_off:
        return [("method", f"none (train without clipping){doubt}"), *rate]
    return [
        ("method", f"{found.setting.method}   ({found.threshold_unit}){doubt}"),
        ("threshold", _threshold(found)),
        *rate,
    ]


def _threshold(found: RecommendationOut) -> str:
    text = f"{found.threshold_name} = {found.setting.threshold:g}"
    if found.interval is not None:
        text += f"   as good: {found.interval[0]:g} to {found.interval[1]:g}"
    return text + (f"   kappa {found.kappa:.3g}" if found.kappa is not None else "")


def _norms(norms: NormSketch, found: RecommendationOut) -> str:
    figures = [("median", norms.median), ("q90", norms.q90), ("max", norms.max)]
    text = "   ".join(f"{name} {figure:.3g}" for name, figure in figures)
    if found.spike_ratio is not None:
        text += f"   spike ratio {found.spike_ratio:.3g}"
    if found.tail_index is not None:
        text += f"   tail index {found.tail_index:.3g}"
    return f"{text}   (before clipping)"


def _against_off(found: RecommendationOut) -> str:
    off = f"off {_estimate(found.off)}"
    if found.value is None or found.best is None:
        return off
    return f"{found.best} {_estimate(found.value)}   {off}"


def _estimate(estimate: Estimate) -> str:
    if estimate.mean is None and not estimate.num_diverged:
        return "no result"
    if estimate.mean is None:
        return f"diverged in all {estimate.num_diverged} seeds"
    text = f"{estimate.mean:.4f}"
    if estimate.standard_error is not None:
        text += f" +- {estimate.standard_error:.4f}"
    if estimate.num_diverged:
        text += f" ({estimate.num_diverged} of {estimate.num_seeds + estimate.num_diverged} seeds diverged)"
    return text


def _difference(difference: PairedDifference) -> str:
    interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    test = f"({difference.test})".replace(" ", _TIED)
    return f"{difference.mean:+.4f}   95 % interval {interval}   {difference.num_pairs} seeds {test}"
