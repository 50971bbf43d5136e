"""What the first runs without clipping tell of gradient norms: the probe of a study that people train elsewhere. Pure.

A probe measures at initial weights. Of a run elsewhere only its norms are known, along its way; where the run blows up
they say nothing about the scale of a gradient any more, so only its beginning counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from service.lanes import LaneState
from tuner.errors import ProbeError
from tuner.evidence import Reference
from tuner.records import NormSketch, tail_index

#: So many norms are enough to scale thresholds by; of one lane no more are used.
ENOUGH_NORMS = 100
#: A run that stays above this multiple of its median so far has blown up.
BLOW_UP = 10.0
#: Norms whose median is a scale.
_FIRST_NORMS = 3


def calm_norms(norms: Sequence[float]) -> Sequence[float]:
    """A run's norms before it blows up.

    Args:
        norms: before clipping, in the order of the steps.

    Returns:
        The first ones, at most 100: those before the first one that, with all that follow, is above 10 times the median
        of those before it. Spikes that pass are no blow-up.

    Example:
        >>> calm_norms([5.0, 4.0, 80.0, 6.0, 5.0]), calm_norms([5.0, 4.0, 6.0, 80.0, 9e3, 2e6])
        ([5.0, 4.0, 80.0, 6.0, 5.0], [5.0, 4.0, 6.0])
    """
    first = norms[:ENOUGH_NORMS]
    for end in range(_FIRST_NORMS, len(first)):
        if min(first[end:]) > BLOW_UP * statistics.median(first[:end]):
            return first[:end]
    return first


def told_norms(lanes: Iterable[LaneState]) -> list[float]:
    """The norms of several runs that a reference rests on.

    Args:
        lanes: of *off*.

    Returns:
        Each run's calm norms, one run after the other.
    """
    return [norm for lane in lanes for norm in calm_norms(lane.norms)]


def lane_reference(lanes: Iterable[LaneState]) -> Reference:
    """The scales that kappa is relative to.

    Args:
        lanes: of *off*, as far as they are.

    Returns:
        A reference without largest elements, smoothness or features.

    Raises:
        ProbeError: if no norm above 0 was told.
    """
    norms = told_norms(lanes)
    sketch = NormSketch.of(norms)
    if sketch is None or sketch.median <= 0:
        raise ProbeError(
            "the first run without clipping reported no gradient norm above 0, so that no range of thresholds can be "
            "derived",
            "report norms before clipping (cliptune run reads grad_norm), or give threshold_low and threshold_high",
        )
    return Reference(
        l2_norm=sketch,
        max_abs=None,
        num_batches=len(norms),
        spike_ratio=sketch.max / sketch.median,
        tail_index=tail_index(norms),
    )
