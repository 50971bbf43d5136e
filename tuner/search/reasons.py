"""The sentences of a recommendation: every number with its unit and what it is compared with."""

from __future__ import annotations

from tuner.evidence import Estimate, PairedDifference, Verdict
from tuner.spec import ClipSetting


def compared(
    verdict: Verdict,
    best: ClipSetting,
    value: Estimate,
    off: Estimate,
    difference: PairedDifference,
    *,
    margin: float,
    effect: float,
    objective: str,
    seeds: int | None,
    num_candidates: int,
) -> str:
    """Both settings ended in every seed, and their paired difference decided.

    Args:
        verdict: what it supports.
        best: the best clip setting.
        value: its objective.
        off: the objective without clipping.
        difference: best - off.
        margin: the difference that matters, in the objective's unit.
        effect: the same, relative to *off*.
        objective: name of the objective.
        seeds: about how many seeds would settle an inconclusive comparison; None if more than 1000.
        num_candidates: clip settings among which the best was chosen by these values, itself included, >= 1.

    Returns:
        One to three sentences.
    """
    facts = (
        f"{_named(best)} ends at {objective} {_with_error(value)}, off at {_with_error(off)}: difference "
        f"{difference.mean:+.3g} (95 % interval {difference.low:.3g} to {difference.high:.3g}, "
        f"{difference.num_pairs} paired seeds)"
    )
    chosen = ""
    if num_candidates > 1:
        chosen = (
            f" The best was chosen among {num_candidates} settings on the same seeds, which the interval "
            "allows for."
        )
    bound = f"the {effect:.3g} of off that matters to you ({margin:.3g})"
    if verdict in (Verdict.CLIP, Verdict.DO_NOT_CLIP):
        return f"{facts}. The interval excludes 0, and the difference is at least {bound}.{chosen}"
    if verdict is Verdict.NO_DIFFERENCE:
        return f"{facts}, which is less than {bound}.{chosen}"
    wanted = "more than 1000 seeds" if seeds is None else f"about {seeds} seeds"
    doubt = "may be noise" if difference.low <= 0 <= difference.high else f"may be less or more than {bound}"
    return f"{facts}, which {doubt}.{chosen} At this spread {wanted} would settle it."


def off_diverged(best: ClipSetting, value: Estimate, off: Estimate, objective: str) -> str:
    """Training without clipping diverged, with the best setting it did not.

    Args:
        best: the best clip setting.
        value: its objective.
        off: the objective without clipping.
        objective: name of the objective.

    Returns:
        A sentence.
    """
    others = "" if off.mean is None else f" and ended at {objective} {off.mean:.4g} on average in the others"
    total = off.num_seeds + off.num_diverged
    return (
        f"Without clipping, training diverged in {off.num_diverged} of {total} seeds{others}; {_named(best)} "
        f"diverged in none of {value.num_seeds} and ends at {objective} {_with_error(value)}."
    )


def never_exceeded(num_trials: int, highest: float) -> str:
    """Every threshold tried was above every gradient.

    Args:
        num_trials: complete clip trials.
        highest: largest gradient norm seen (L2, before clipping).

    Returns:
        A sentence.
    """
    return (
        f"No threshold tried was ever exceeded ({num_trials} clip settings trained to the end; the largest gradient "
        f"norm was {highest:.3g} before clipping), so each of them trained exactly like off."
    )


def only_clipping_diverged(num_trials: int, off: Estimate, objective: str) -> str:
    """Off is fine and every clip setting diverged.

    Args:
        num_trials: clip settings.
        off: the objective without clipping.
        objective: name of the objective.

    Returns:
        A sentence.
    """
    return (
        f"All {num_trials} clip settings diverged in at least one seed; off diverged in none of {off.num_seeds} "
        f"and ends at {objective} {_with_error(off)}."
    )


def everything_diverged(num_trials: int) -> str:
    """No setting that was trained to the end survived in any seed.

    Args:
        num_trials: settings that diverged in every seed, *off* included.

    Returns:
        Two sentences.
    """
    return (
        f"All {num_trials} settings that were not pruned diverged in every seed, off included. Lower the learning "
        "rate, for example to a third, and ask again."
    )


def no_sound_trial(num_trials: int, num_diverged: int) -> str:
    """Nothing can be compared with off yet.

    Args:
        num_trials: clip settings that ended.
        num_diverged: those with a diverged seed.

    Returns:
        Two sentences.
    """
    return (
        f"None of {num_trials} clip settings trained to the end without divergence ({num_diverged} diverged in at "
        "least one seed, the others were pruned), or off has no result in every seed. Ask for more trials, or lower "
        "the learning rate."
    )


def off_is_missing(best: ClipSetting) -> str:
    """The baseline has not ended, or failed.

    Args:
        best: the best clip setting so far.

    Returns:
        A sentence.
    """
    return f"{_named(best)} is the best clip setting so far, but off has no result to compare it with."


def too_few_seeds() -> str:
    """Fewer than two paired values."""
    return (
        "Fewer than 2 seeds have a value under both settings, so there is no error bar. Ask with more seeds."
    )


def _named(setting: ClipSetting) -> str:
    return setting.method if setting.threshold is None else f"{setting.method} {setting.threshold:g}"


def _with_error(value: Estimate) -> str:
    if value.mean is None:
        return "no value"
    error = "" if value.standard_error is None else f" +- {value.standard_error:.2g}"
    return f"{value.mean:.4g}{error}"
