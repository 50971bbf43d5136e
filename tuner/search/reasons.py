"""The sentences of a recommendation: every number with its unit and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.evidence import Estimate, Verdict
from tuner.search.verdict import Comparison
from tuner.spec import ClipSetting


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a comparison's sentence is made of.

    Attributes:
        best: the best clip setting.
        value: its objective.
        off: the objective without clipping.
        comparison: the two, seed by seed.
        margin: the difference that matters, in the objective's unit.
        effect: the same, relative to *off*.
        objective: name of the objective.
        is_fresh: whether the seeds are ones that the search never saw.
        more_seeds: how many more would about settle it; None if no reasonable number would.
    """

    best: ClipSetting
    value: Estimate
    off: Estimate
    comparison: Comparison
    margin: float
    effect: float
    objective: str
    is_fresh: bool
    more_seeds: int | None

    @property
    def seeds(self) -> str:
        """The seeds in words."""
        return f"{len(self.comparison.seeds)} {'fresh' if self.is_fresh else 'paired'} seeds"


def compared(verdict: Verdict, facts: Facts) -> str:
    """Both settings ended soundly in every seed, and their paired difference decided.

    Args:
        verdict: what it supports.
        facts: the figures.

    Returns:
        One to three sentences.
    """
    difference = facts.comparison.difference
    if difference is None:
        return too_few_seeds()
    found = (
        f"{_named(facts.best)} ends at {facts.objective} {_with_error(facts.value)}, off at "
        f"{_with_error(facts.off)}: difference {difference.mean:+.3g} (95 % interval {difference.low:.3g} to "
        f"{difference.high:.3g}, {facts.seeds})"
    )
    chosen = ""
    if facts.comparison.num_candidates > 1:
        chosen = (
            f" The best was chosen among {facts.comparison.num_candidates} settings on the same seeds, which the "
            "interval allows for."
        )
    bound = f"the {facts.effect:.3g} of off that matters to you ({facts.margin:.3g})"
    if verdict in (Verdict.CLIP, Verdict.DO_NOT_CLIP):
        return f"{found}. The interval excludes 0, and the difference is at least {bound}.{chosen}"
    if verdict is Verdict.NO_DIFFERENCE:
        return f"{found}, which is less than {bound}.{chosen}"
    doubt = "may be noise" if difference.low <= 0 <= difference.high else f"may be less or more than {bound}"
    return f"{found}, which {doubt}.{chosen} {_more(facts)}"


def failed(verdict: Verdict, facts: Facts) -> str:
    """Training failed in some seeds, and the test by ranks decided.

    Args:
        verdict: what it supports.
        facts: the figures.

    Returns:
        Two or three sentences.
    """
    mine, theirs = facts.comparison.mine, facts.comparison.theirs
    seeds, total = facts.comparison.seeds, facts.seeds
    num_mine, num_theirs = (sum(values[seed] is None for seed in seeds) for values in (mine, theirs))
    found = (
        f"Without clipping, training failed (diverged, or got less than half way) in {num_theirs} of {total}"
        f"{_otherwise(facts.off, facts.objective)}; with {_named(facts.best)} it failed in {num_mine}"
        f"{_otherwise(facts.value, facts.objective)}."
    )
    test = f"by ranks, p = {facts.comparison.p_value:.2g}"
    if verdict is Verdict.INCONCLUSIVE:
        return f"{found} That may be chance ({test}). {_more(facts)}"
    if num_theirs == len(seeds) or num_mine == len(seeds):
        return found
    return f"{found} That is not chance ({test})."


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
        f"norm was {highest:.3g} before clipping), so each of them trained exactly like off. "
        f"Thresholds below {highest:.3g} are the ones that would act: search there if you want to know about them."
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


def only_tight(facts: Facts, low: float, high: float) -> str:
    """The best clip setting hurts, those that never act do nothing, and nothing in between was tried.

    Args:
        facts: the figures.
        low: highest threshold tried below the gap.
        high: lowest one that was never exceeded.

    Returns:
        Two sentences.
    """
    return (
        f"{_named(facts.best)} is worse than off ({_with_error(facts.value)} against {_with_error(facts.off)}), and "
        f"thresholds from {high:.3g} up were never exceeded, so they train like off; nothing between {low:.3g} and "
        f"{high:.3g} was tried. Ask for more trials, or for a range around these two."
    )


def constant(objective: str, value: Estimate) -> str:
    """Every run ended with the same objective.

    Args:
        objective: its name.
        value: that of *off*.

    Returns:
        Two sentences.
    """
    shown = "" if value.mean is None else f" ({value.mean:.6g})"
    return (
        f"{objective} is the same{shown} in every run of the study, whatever the setting and the seed, so it says "
        "nothing about clipping. Look at the workload's metric() and its held-out data."
    )


def _otherwise(value: Estimate, objective: str) -> str:
    return "" if value.mean is None else f" and ended at {objective} {_with_error(value)} otherwise"


def _more(facts: Facts) -> str:
    if facts.more_seeds is None:
        return "No reasonable number of further seeds would settle it."
    return f"At this spread about {facts.more_seeds} more fresh seeds would settle it."


def _named(setting: ClipSetting) -> str:
    text = setting.method if setting.threshold is None else f"{setting.method} {setting.threshold:g}"
    rate = setting.learning_rate_scale
    return text if rate == 1 else f"{text} at {rate:g} times the learning rate"


def _with_error(value: Estimate) -> str:
    if value.mean is None:
        return "no value"
    error = "" if value.standard_error is None else f" +- {value.standard_error:.2g}"
    return f"{value.mean:.4g}{error}"
