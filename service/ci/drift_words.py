"""The words of a comparison of two probes: every figure with what it is, then and now, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from service.ci.drift import MIN_SEEDS, SAME, Change, Comparison
from service.ci.drift_figures import CONFIDENCE, FACTOR, Ratio, Shares
from service.ci.probed import Probed
from tuner.evidence import Features
from tuner.methods import get_method
from tuner.parameters import ParameterValue
from tuner.spec import MAX_SEEDS

#: What a threshold does now.
_TOLD: Mapping[Change, str] = {
    Change.UNCHANGED: "still engages as it did",
    Change.NO_LONGER_ENGAGES: "no longer engages",
    Change.ENGAGES_LESS: "engages less than it did",
    Change.ENGAGES_MORE: "engages more than it did",
    Change.CLIPS_FAR_MORE: "clips far more than it did",
}
#: The same of the gradients, where a threshold's own doing can't be told.
_TOLD_OF_NORMS: Mapping[Change, str] = {
    Change.UNCHANGED: "are as they were",
    Change.NORMS_GREW: "are larger than they were",
    Change.NORMS_SHRANK: "are smaller than they were",
}
_NAMES = {"median": "median", "q90": "90 % quantile"}
_FEATURES = {
    "num_parameters": "parameters",
    "num_tensors": "tensors",
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "precision": "precision",
}


def statement(found: Comparison) -> str:
    """What happened, and the figures.

    Args:
        found: two probes at a setting.

    Returns:
        Sentences; the first begins in lower case, to stand behind a colon.
    """
    parts = [f"{headline(found)}: {_figures(found)}."]
    unseen = _unseen(found)
    if unseen:
        parts.append(unseen)
    if found.is_repeat:
        parts.append(f"The study's own probe was run again and gave the same norms within {SAME:.0%}.")
    else:
        parts.append(f"A factor of {FACTOR:g} would count. {_basis(found)}")
    if found.change is Change.UNSETTLED:
        parts.append(_remedy(found))
    return " ".join(parts)


def headline(found: Comparison) -> str:
    """What happened, in a few words.

    Args:
        found: two probes at a setting.

    Returns:
        Words without an end.
    """
    told = _TOLD_OF_NORMS if found.shares is None else _TOLD
    subject = f"the {_quantity(found)}s" if found.shares is None else str(found.setting)
    if found.change is Change.UNSETTLED:
        verb = "are as they were" if found.shares is None else "still engages as it did"
        return f"whether {subject} {verb} can't be told"
    if found.change in told:
        return f"{subject} {told[found.change]}"
    # A threshold above all gradients, then as now, whose scale has changed.
    return f"the {_quantity(found)}s {_TOLD_OF_NORMS[found.change]}"


def at_own_value(found: Comparison) -> str:
    """What two probes say of a config's own threshold.

    Args:
        found: at the config's value.

    Returns:
        A sentence; empty if a probe can't count what is above it.
    """
    return "" if found.shares is None else f"At the config's own {found.setting}, {_counted(found.shares)}."


def other_training(then: Probed, now: Features | None) -> str:
    """What is trained now that was not then.

    Args:
        then: the study's probe.
        now: what the probe of now saw.

    Returns:
        A sentence; empty if it is the same, or if one of them does not tell.
    """
    before = then.features
    if before is None or now is None or before == now:
        return ""
    told = []
    for each in fields(Features):
        one, other = getattr(before, each.name), getattr(now, each.name)
        if one != other and each.name in _FEATURES:
            told.append(f"{_FEATURES[each.name]} {_shown(one)} then and {_shown(other)} now")
    if not told:
        told.append("the names or the kinds of its layers differ")
    return f"This is not the training that the study tuned: {', '.join(told)}."


def circumstances(
    then: Probed, parameters: Mapping[str, ParameterValue], device: str, *, gone: tuple[str, ...] = ()
) -> str:
    """What else differs between the probes.

    Args:
        then: the study's probe.
        parameters: that the workload was probed with now.
        device: on which.
        gone: parameters of the study that the workload no longer has.

    Returns:
        Sentences; empty if nothing does.
    """
    parts = []
    changed = [
        f"{name}={_shown(value)} where the study had {_shown(then.parameters[name])}"
        if name in then.parameters
        else f"{name}={_shown(value)}, which is new"
        for name, value in parameters.items()
        if name not in then.parameters or then.parameters[name] != value
    ]
    if changed:
        parts.append(f"It was probed with {', '.join(changed)}.")
    if gone:
        parts.append(f"The workload no longer has {', '.join(gone)}.")
    if then.device and then.device != device:
        parts.append(f"This probe ran on {device}, the study's on {then.device}.")
    return " ".join(parts)


def _figures(found: Comparison) -> str:
    told = [] if found.shares is None else [_counted(found.shares, with_margin=not found.is_repeat)]
    told += [_ratio(each, with_interval=not found.is_repeat) for each in found.ratios]
    then, now = found.q99
    judged = "" if found.is_repeat else " (too few to judge by)"
    told.append(f"99 % quantile {then:.3g} then and {now:.3g} now{judged}")
    # The headline has named the gradients where it is not about a threshold.
    subject = "" if found.shares is None else f"{_quantity(found)}s "
    return f"{subject}before clipping, at initial weights: {'; '.join(told)}"


def _counted(shares: Shares, *, with_margin: bool = False) -> str:
    margin = (
        f" (difference {shares.now - shares.then:+.0%}, give or take {shares.margin:.0%})"
        if with_margin
        else ""
    )
    return f"{shares.then:.0%} were above {shares.threshold:g} then and {shares.now:.0%} are now{margin}"


def _ratio(ratio: Ratio, *, with_interval: bool) -> str:
    told = f"{_NAMES[ratio.name]} {ratio.then:.3g} then and {ratio.now:.3g} now"
    if not with_interval:
        return told
    if not math.isfinite(ratio.high):
        return f"{told}, a ratio that the seeds leave open"
    return f"{told}, times {ratio.value:.3g} ({CONFIDENCE:.1%} interval {ratio.low:.3g} to {ratio.high:.3g})"


def _basis(found: Comparison) -> str:
    """How much the figures rest on: gradients of one seed are no independent samples."""
    sides = [
        f"{batches} gradients of {seeds} seeds {when} are worth about {worth:.0f} independent ones"
        for batches, seeds, worth, when in zip(
            found.num_batches, found.num_seeds, found.num_independent, ("then", "now"), strict=True
        )
    ]
    few = f" That is fewer than {MIN_SEEDS} seeds." if found.num_seeds[1] < MIN_SEEDS else ""
    return f"{', '.join(sides)}.{few}".replace("are worth about", "were worth about", 1)


def _remedy(found: Comparison) -> str:
    """What may settle an open question: the study's seeds are as many as they are."""
    if found.num_seeds[1] < MAX_SEEDS:
        return f"A probe of more seeds may settle it: --seeds {MAX_SEEDS} at most."
    return "A study of more seeds (cliptune submit --seeds) has a probe that tells more."


def _unseen(found: Comparison) -> str:
    """What a probe does not show of a threshold."""
    setting = found.setting
    if found.shares is not None:
        if max(found.shares.then, found.shares.now) == 0:
            return "The threshold is above all of them: it can only act later in a training, where no probe looks."
        return ""
    if setting.is_off:
        return ""
    unit = get_method(setting.method).threshold_unit
    return f"Whether {setting} acts as it did is not seen: its number is of {unit}, which the probes did not count."


def _quantity(found: Comparison) -> str:
    return "largest gradient element" if found.quantity == "max_abs" else "gradient norm"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
