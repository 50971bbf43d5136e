"""What published rules of thumb would pick, and whether clipping is likely to matter, before anything was trained.

All of it rests on the probe: gradients at the initial weights, before clipping. It is a prior for reading a probe or
starting a search, no verdict: norms drift while a model trains, and no rule knows the learning rate's part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from tuner.evidence import NormSketch, Reference
from tuner.search.space import kappa, round_threshold
from tuner.spec import ClipSetting

#: The rule to begin with where a single one is wanted: the only one that tells how to go on from it.
START_RULE = "90th percentile"
#: Tails with a smaller exponent have no finite variance; with one below the second number, no finite fourth moment.
NO_VARIANCE, HEAVY_TAIL = 2.0, 4.0
#: Largest / median norm from which spikes are likely, and from which they are plain; ours.
SOME_SPIKES, PLAIN_SPIKES = 3.0, 10.0
#: Growth of the curvature, L1 x largest norm / L0, from which it counts, and from which it dominates; ours.
SOME_GROWTH, PLAIN_GROWTH = 1.0, 10.0
#: A slope of curvature over norm with a smaller correlation is taken for chance.
LEAST_CORRELATION = 0.5
#: Learning rate x curvature beyond which gradient descent moves away from the minimum of a quadratic: without momentum,
#: and with any (2 + 2 x momentum, which a probe does not know).
STABLE_STEP, STABLE_WITH_MOMENTUM = 2.0, 4.0


class Expectation(StrEnum):
    """How likely clipping is to matter, by the probe alone."""

    #: A plain sign: large spikes, a tail without variance, curvature that follows the norm, steps too long for it.
    HELPS = "helps"
    #: A sign, or nothing that could be judged.
    MAY_HELP = "may_help"
    #: No sign.
    UNLIKELY = "unlikely"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one rule of thumb picks.

    Attributes:
        name: of the rule, in a few words.
        setting: the threshold, as a fixed norm.
        kappa: threshold / median norm of the probe.
        clip_fraction: share of the probe's gradients above the threshold, in [0, 1], read off the quantiles.
        source: who says so.
        sentence: how the threshold lies among the norms.
    """

    name: str
    setting: ClipSetting
    kappa: float
    clip_fraction: float
    source: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is to be expected before the first trial.

    Attributes:
        rules: one per rule of thumb that applies, by ascending threshold.
        expectation: see `Expectation`.
        sentence: the signs it rests on, with their figures.
    """

    rules: tuple[Rule, ...]
    expectation: Expectation
    sentence: str

    def rule(self, name: str) -> Rule | None:
        """The rule of a name; None if it does not apply."""
        return next((each for each in self.rules if each.name == name), None)


def prior(reference: Reference) -> Prior:
    """Read a probe by published rules of thumb.

    Args:
        reference: what the probe measured.

    Returns:
        The rules' thresholds and the expectation. A rule whose figure was not measured, or is 0, is left out.

    Example:
        >>> norms = NormSketch(median=1.0, q90=2.0, q99=3.0, max=4.0)
        >>> found = prior(Reference(l2_norm=norms, max_abs=norms, num_batches=100, spike_ratio=4.0))
        >>> [f"{each.name}: {each.setting}" for each in found.rules]
        ['1.0: global_norm:1', 'median: global_norm:1', '90th percentile: global_norm:2', ...]
        >>> found.expectation.value
        'may_help'
    """
    rules = [
        _rule(reference, *picked)
        for picked in _picked(reference)
        if picked[1] > 0 and math.isfinite(picked[1])
    ]
    strength, sentence = _signs(reference)
    expectation = (Expectation.UNLIKELY, Expectation.MAY_HELP, Expectation.HELPS)[strength]
    return Prior(
        rules=tuple(sorted(rules, key=lambda each: each.setting.threshold or 0.0)),
        expectation=expectation,
        sentence=sentence,
    )


def share_above(norms: NormSketch, threshold: float) -> float:
    """Share of the norms above a threshold, read off the quantiles.

    Args:
        norms: what was measured.
        threshold: > 0.

    Returns:
        In [0, 1]; between two quantiles by the threshold's logarithm. Below the lowest known quantile it is that
        quantile's own share, the least that it can be.

    Example:
        >>> norms = NormSketch(median=1.0, q90=4.0, q99=5.0, max=6.0, q10=0.5, q01=0.4, min=0.3)
        >>> share_above(norms, 0.2), round(share_above(norms, 2.0), 3), share_above(norms, 6.0)
        (1.0, 0.3, 0.0)
    """
    known = [(norms.min, 1.0), (norms.q01, 0.99), (norms.q10, 0.9), (norms.median, 0.5)]
    known += [(norms.q90, 0.1), (norms.q99, 0.01), (norms.max, 0.0)]
    points = [(value, share) for value, share in known if value is not None and value > 0]
    if threshold < points[0][0]:
        return points[0][1]
    for (low, before), (high, after) in reversed([*pairwise(points)]):
        if low <= threshold < high:
            return before + (after - before) * math.log(threshold / low) / math.log(high / low)
    return 0.0


def _picked(reference: Reference) -> Iterator[tuple[str, float, str]]:
    """Name, threshold and source of each rule whose figure was measured."""
    norms, smoothness = reference.norms, reference.smoothness
    yield "1.0", 1.0, "default of nanoGPT and of the Hugging Face Trainer"
    yield "median", norms.median, "Andrew et al. (2021), arXiv:1905.03871"
    yield START_RULE, norms.q90, "Google's deep learning tuning playbook"
    if norms.q10 is not None:
        yield (
            "10th percentile",
            norms.q10,
            "AutoClip with p = 10, arXiv:2007.14469; 'autoclip:10' follows the training",
        )
    for factor in (5, 10):
        source = "Pascanu et al. (2013), arXiv:1211.5063, as cited by AutoClip"
        yield f"mean x {factor}", factor * _mean(norms), source
    if smoothness is not None and smoothness.l1 > 0 and smoothness.correlation >= LEAST_CORRELATION:
        yield "L0 / L1", smoothness.l0 / smoothness.l1, "Zhang et al. (2020), theorem 3, arXiv:1905.11881"


def _mean(norms: NormSketch) -> float:
    """Mean of the norms if they are log-normal; the median if their logarithms are not known."""
    if norms.log_mean is None or norms.log_std is None:
        return norms.median
    return math.exp(norms.log_mean + norms.log_std**2 / 2)


def _rule(reference: Reference, name: str, threshold: float, source: str) -> Rule:
    setting = ClipSetting(method="global_norm", threshold=round_threshold(threshold))
    relative, share = kappa(setting, reference), share_above(reference.norms, threshold)
    assert relative is not None
    if share == 1:
        sentence = "below every norm: clips every step and so acts as a learning rate"
    elif share == 0:
        sentence = "above every norm: would never act on such gradients"
    else:
        sentence = f"clips about {share:.0%} of the steps"
    return Rule(
        name=name, setting=setting, kappa=relative, clip_fraction=share, source=source, sentence=sentence
    )


def _signs(reference: Reference) -> tuple[int, str]:
    """The strongest sign (0 none, 1 some, 2 plain), and all of them as a sentence."""
    judged = [sign for each in (_tail, _spikes, _growth, _step) if (sign := each(reference)) is not None]
    if not judged:
        return (
            1,
            "neither spikes, tail nor curvature were measured, so nothing speaks for or against clipping",
        )
    judged.sort(key=lambda sign: -sign[0])
    return judged[0][0], "; ".join(text for _, text in judged)


def _tail(reference: Reference) -> tuple[int, str] | None:
    index = reference.tail_index
    if index is None:
        return None
    if index < NO_VARIANCE:
        return 2, f"the norms' tail is so heavy that their variance is infinite (tail index {index:.2g})"
    if index < HEAVY_TAIL:
        return 1, f"the norms' tail is heavy (tail index {index:.2g})"
    return 0, f"the norms' tail is light (tail index {index:.2g})"


def _spikes(reference: Reference) -> tuple[int, str] | None:
    ratio = reference.spike_ratio
    if ratio is None:
        return None
    level = (ratio >= SOME_SPIKES) + (ratio >= PLAIN_SPIKES)
    return level, f"{('no spikes', 'spikes', 'large spikes')[level]} (largest / median norm {ratio:.3g})"


def _growth(reference: Reference) -> tuple[int, str] | None:
    """How much the largest gradient adds to the curvature, relative to what there is without it."""
    found = reference.smoothness
    if found is None:
        return None
    if found.correlation < LEAST_CORRELATION:
        return 0, f"curvature does not follow the gradient's norm (correlation {found.correlation:.2f})"
    growth = reference.norms.max * found.l1 / found.l0 if found.l0 > 0 else math.inf
    level = (growth >= SOME_GROWTH) + (growth >= PLAIN_GROWTH)
    verb = ("hardly grows", "grows", "grows in proportion")[level]
    return level, f"curvature {verb} with the gradient's norm (L1 x largest norm / L0 = {growth:.3g})"


def _step(reference: Reference) -> tuple[int, str] | None:
    """Whether SGD's steps are too long for the curvature at the median norm; None for other optimizers."""
    features, smoothness = reference.features, reference.smoothness
    if (
        smoothness is None
        or features is None
        or features.optimizer != "sgd"
        or features.learning_rate is None
    ):
        return None
    curvature = smoothness.l0 + smoothness.l1 * reference.norms.median
    length = features.learning_rate * curvature
    level = (length > STABLE_STEP) + (length > STABLE_WITH_MOMENTUM)
    fit = ("short enough", "too long without momentum", "too long")[level]
    return level, f"unclipped steps are {fit} for the curvature (learning rate x curvature = {length:.3g})"
