"""Whether a clip recommendation still fits the code: a probe of now against the probe that its study began with. Pure.

A change counts if it is as large as `service.ci.drift_figures` says and its interval leaves out "no change".
``benchmarks/drift.py`` measures how often that errs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from service.ci.drift_figures import (
    LARGE_CHANGE,
    Ratio,
    Shares,
    Spreads,
    compare_quantiles,
    compare_shares,
)
from service.ci.probed import Probed
from tuner.evidence import NormSketch, Reference
from tuner.methods import GradientScale, get_method
from tuner.spec import ClipSetting

#: Quantiles that differ by less were measured by the same code: devices and libraries round differently.
SAME = 0.01
#: Fewest seeds of a probe of now: with fewer their spread says next to nothing.
MIN_SEEDS, NUM_SEEDS = 4, 8
#: A threshold that fewer gradients pass does not act on them.
_NEVER = 0.01
#: Methods whose threshold a gradient passes or does not, whatever came before it.
_COUNTED = ("global_norm", "global_norm_inf", "value")
_JUDGED = ("median", "q90")


class Change(StrEnum):
    """What happened to a threshold, or to the norms where no threshold can be compared."""

    #: No change that counts.
    UNCHANGED = "unchanged"
    #: The gradients no longer reach the threshold.
    NO_LONGER_ENGAGES = "no_longer_engages"
    #: It changes gradients less, or fewer of them.
    ENGAGES_LESS = "engages_less"
    #: It changes gradients more, or more of them.
    ENGAGES_MORE = "engages_more"
    #: Twice as many gradients pass it, or every one of them is twice as large.
    CLIPS_FAR_MORE = "clips_far_more"
    #: Norms grew; what that does to the threshold, if there is one, a probe does not show.
    NORMS_GREW = "norms_grew"
    #: Norms shrank, likewise.
    NORMS_SHRANK = "norms_shrank"
    #: A change that would count, and too few independent gradients to tell it from chance.
    UNSETTLED = "unsettled"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A probe of now against the study's.

    Attributes:
        setting: whose threshold is meant.
        quantity: what was compared of a gradient: that of the threshold, if it was measured, else the norm.
        change: what happened.
        ratios: of the quantiles that are judged.
        shares: above the threshold; None where a probe can't count them.
        q99: 99 % quantiles then and now, which are not judged: too few gradients lie there.
        num_batches: gradients measured then and now.
        num_seeds: initial weights then and now.
        num_independent: gradients that they are worth then and now.
        is_repeat: whether the study's own probe was run again and gave the same.
    """

    setting: ClipSetting
    quantity: GradientScale
    change: Change
    ratios: tuple[Ratio, ...]
    shares: Shares | None
    q99: tuple[float, float]
    num_batches: tuple[int, int]
    num_seeds: tuple[int, int]
    num_independent: tuple[float, float]
    is_repeat: bool = False

    @property
    def has_drifted(self) -> bool:
        """Whether the gradients no longer match the recommendation's."""
        return self.change not in (Change.UNCHANGED, Change.UNSETTLED)


def is_same(then: Probed, now: Reference) -> bool:
    """Whether the study's own probe, run again, measured the same gradients.

    Args:
        then: the study's.
        now: with the same seeds and numbers of batches.

    Returns:
        True if no quantile of the norm or of the largest element differs by more than 1 %.
    """
    pairs = ((then.l2_norm, now.l2_norm), (then.max_abs, now.max_abs))
    return all(_is_close(one, other) for one, other in pairs if one is not None)


def compare(then: Probed, now: Reference, setting: ClipSetting, *, is_repeat: bool = False) -> Comparison:
    """Compare two probes at a threshold.

    Args:
        then: the study's probe.
        now: of the code as it is now, seed by seed, under other seeds; or `is_same`.
        setting: any; of *off*, and of methods whose threshold is no gradient's size, norms alone are compared.
        is_repeat: whether ``now`` is the study's own probe again, which `is_same`.

    Returns:
        What happened, with the figures.
    """
    quantity: GradientScale = "l2_norm"
    before, after = then.l2_norm, now.norms
    if get_method(setting.method).scale == "max_abs" and then.max_abs is not None and now.max_abs is not None:
        before, after, quantity = then.max_abs, now.max_abs, "max_abs"
    seeds = [each.max_abs if quantity == "max_abs" else each.l2_norm for each in now.by_seed]
    spreads = Spreads(tuple(seeds), then.num_seeds)
    batches = then.num_batches, now.num_batches
    independent = spreads.independent(batches)
    ratios = tuple(compare_quantiles(name, before, after, spreads) for name in _JUDGED)
    is_counted = setting.method in _COUNTED and get_method(setting.method).scale == quantity
    shares = (
        compare_shares(setting.threshold, before, after, spreads, independent)
        if setting.threshold is not None and is_counted
        else None
    )
    if is_repeat:
        # The same gradients: what lies between them is no chance.
        ratios = tuple(replace(each, low=each.value, high=each.value) for each in ratios)
        shares = None if shares is None else replace(shares, margin=0.0)
    return Comparison(
        setting=setting,
        quantity=quantity,
        change=Change.UNCHANGED if is_repeat else _change(ratios, shares),
        ratios=ratios,
        shares=shares,
        q99=(before.q99, after.q99),
        num_batches=batches,
        num_seeds=(then.num_seeds, len(seeds)),
        num_independent=independent,
        is_repeat=is_repeat,
    )


def _is_close(one: NormSketch, other: NormSketch | None) -> bool:
    if other is None:
        return False
    pairs = ((getattr(one, name), getattr(other, name)) for name in ("q10", "median", "q90", "q99"))
    # Earlier versions recorded no 10 % quantile.
    return all(
        math.isclose(known, measured, rel_tol=SAME)
        for known, measured in pairs
        if known is not None and measured is not None
    )


def _change(ratios: Sequence[Ratio], shares: Shares | None) -> Change:
    """The one decision: what changed by as much as counts, and is not chance."""
    found: list[Ratio | Shares] = [*ratios, *([shares] if shares is not None else [])]
    if not any(each.matters and each.is_settled for each in found):
        # Within the factor for sure, a narrow distribution's share can still swing by chance: that is no question.
        is_open = not all(each.is_within for each in ratios) and any(each.matters for each in found)
        return Change.UNSETTLED if is_open else Change.UNCHANGED
    moved = next((each for each in ratios if each.matters and each.is_settled), None)
    if shares is not None:
        told = _engagement(shares, moved)
        if told is not None:
            return told
    assert moved is not None  # Shares that matter have been told.
    return Change.NORMS_GREW if moved.value > 1 else Change.NORMS_SHRANK


def _engagement(shares: Shares, moved: Ratio | None) -> Change | None:
    """What a threshold does now; None where it acts on hardly any gradient, then as now."""
    then, now = shares.then, shares.now
    if max(then, now) <= _NEVER:
        return None
    if now <= _NEVER:
        return Change.NO_LONGER_ENGAGES
    if shares.matters:
        is_far = now - then >= LARGE_CHANGE and now >= 2 * then
        return Change.CLIPS_FAR_MORE if is_far else Change.ENGAGES_MORE if now > then else Change.ENGAGES_LESS
    factor = 1.0 if moved is None else moved.value
    if factor > 1:
        # As many gradients as before pass it, each scaled down further.
        return Change.CLIPS_FAR_MORE if factor >= 2 and now >= 0.5 else Change.ENGAGES_MORE
    return Change.ENGAGES_LESS
