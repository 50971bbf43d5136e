"""Order statistics of recorded norms, many lanes at once: quantiles, logarithms, histograms, the weight of the tail.

What a lane gets is the same bits whichever lanes are summarized beside it. Quantiles are computed where the values
are; one list per figure is then read back to the host.

Shape letters: L = lanes, N = values, Q = quantiles, M = figures, B = bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tuner.evidence import NormSketch
from tuner.records import BINS_PER_OCTAVE, MAX_BINS, NormHistogram

#: What a sketch holds, in the order of `_QUANTILES`.
_NAMES = ("q01", "q10", "median", "q90", "q99")
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
#: The largest 1 in this many values are the tail.
TAIL_PART = 10
#: Fewest values in a tail.
MIN_TAIL = 10
#: The coarsest grid: bins of 2**8 / 32 = 8 octaves hold every float32 in 40.
_MAX_LEVEL = 8


def sketch(values: Tensor, *, largest: float | None = None) -> NormSketch | None:
    """Quantiles of the finite values.

    Args:
        values: shape (N,); NaN and infinities are left out.
        largest: the maximum, if the values are a sample of more.

    Returns:
        The sketch, quantiles interpolated linearly; None if no value is finite.

    Example:
        >>> sketch(torch.tensor([1.0, 2.0, 3.0, torch.nan])).median
        2.0
    """
    ranked, count = rank(values[None])
    if not int(count):
        return None
    most = ranked[:, int(count) - 1] if largest is None else torch.tensor([largest], dtype=torch.float64)
    return sketch_lanes(ranked, count, smallest=ranked[:, 0], largest=most)[0]


def rank(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each lane's finite values in ascending order.

    Args:
        values: shape (L, N); NaN and infinities are left out.

    Returns:
        The values in double precision, shape (L, N), NaN behind the finite ones; how many are finite, shape (L,).
    """
    finite = values.isfinite()
    ranked = values.where(finite, torch.nan).sort(dim=1).values
    return ranked.double(), finite.sum(1)


def sketch_lanes(
    ranked: Tensor, count: Tensor, *, smallest: Tensor, largest: Tensor
) -> list[NormSketch | None]:
    """Sketches of ranked values, one per lane; this waits for the device.

    Args:
        ranked: from `rank`, shape (L, N).
        count: from `rank`, shape (L,).
        smallest: the exact minimum, shape (L,); not read in a lane without values.
        largest: the exact maximum, likewise.

    Returns:
        One sketch per lane; None where no value is finite.
    """
    if ranked.shape[1] == 0:
        return [None] * len(ranked)
    log_mean, log_std = _log_moments(ranked)
    rows = zip(
        count.tolist(),
        _quantiles(ranked, count).tolist(),
        smallest.tolist(),
        largest.tolist(),
        log_mean.tolist(),
        log_std.tolist(),
        strict=True,
    )
    return [
        NormSketch(
            **dict(zip(_NAMES, quantiles, strict=True)),
            min=least,
            max=most,
            log_mean=finite_or_none(mean),
            log_std=finite_or_none(std),
        )
        if number
        else None
        for number, quantiles, least, most, mean, std in rows
    ]


def tail_indices(ranked: Tensor, count: Tensor) -> list[float | None]:
    """Hill's estimate of how heavy each lane's upper tail is; this waits for the device.

    With x(1) >= x(2) >= ... and k = n // 10, the estimate is ``k / sum(ln x(i) - ln x(k + 1) for i = 1..k)``: the
    exponent a of a tail P(X > x) ~ x^-a. Moments of order a and above are infinite.

    Args:
        ranked: from `rank`, shape (L, N), values >= 0.
        count: from `rank`, shape (L,).

    Returns:
        One estimate > 0 per lane; None with k < 10, and if the tail's values are all equal or begin at 0.

    Source:
        B. M. Hill (1975), A simple general approach to inference about the tail of a distribution, Annals of
        Statistics 3(5), equation 2.2, https://doi.org/10.1214/aos/1176343247. The share of a tenth is ours.

    Example:
        >>> ranked, count = rank(torch.linspace(1.0, 0.001, 1000)[None] ** -0.5)  # P(X > x) = x^-2
        >>> round(tail_indices(ranked, count)[0], 1)
        2.0
    """
    size = count // TAIL_PART
    if ranked.shape[1] < TAIL_PART * MIN_TAIL:
        return [None] * len(ranked)
    before = (count - size - 1).clamp(min=0)[:, None]
    positions = torch.arange(ranked.shape[1], device=ranked.device)
    in_tail = (positions > before) & (positions < count[:, None])
    excess = (ranked / ranked.gather(1, before)).log().where(in_tail, 0.0).sum(1)
    estimates = (size / excess).where(size >= MIN_TAIL, torch.nan)
    return [finite_or_none(each) for each in estimates.tolist()]


def histograms(ranked: Tensor) -> list[NormHistogram | None]:
    """How many of each lane's values lie where, on the finest grid with enough bins; this waits for the device.

    Args:
        ranked: from `rank`, shape (L, N), values >= 0 that float32 can hold.

    Returns:
        One histogram per lane; None where no value is above 0.

    Example:
        >>> ranked, _ = rank(torch.tensor([[0.0, 1.0, 1.01, 1.03, 1.5]]))
        >>> histograms(ranked)[0].counts
        (2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    """
    if ranked.shape[1] == 0:
        return [None] * len(ranked)
    positive = ranked > 0
    position = (ranked.where(positive, 1.0).log2() * BINS_PER_OCTAVE).floor().long()
    far = torch.iinfo(torch.int64).max
    lowest = position.where(positive, far).amin(1)
    highest = position.where(positive, -far).amax(1)
    levels = torch.arange(_MAX_LEVEL + 1, device=ranked.device)
    spans = (highest[:, None] >> levels) - (lowest[:, None] >> levels)
    level = (spans >= MAX_BINS).sum(1)
    first = lowest >> level
    index = ((position >> level[:, None]) - first[:, None]).where(positive, 0)
    counts = torch.zeros(len(ranked), MAX_BINS, dtype=torch.int64, device=ranked.device)
    counts.scatter_add_(1, index, positive.long())
    rows = zip(
        first.tolist(),
        level.tolist(),
        ((highest >> level) - first + 1).tolist(),
        counts.tolist(),
        (ranked == 0).sum(1).tolist(),
        strict=True,
    )
    return [
        NormHistogram.on_grid(begin, 2**exponent, row[:number], num_zero) if any(row) else None
        for begin, exponent, number, row, num_zero in rows
    ]


def finite_or_none(value: float) -> float | None:
    """A figure that may be stored: None for NaN and infinities."""
    return value if math.isfinite(value) else None


def _quantiles(ranked: Tensor, count: Tensor) -> Tensor:
    """Linearly interpolated quantiles, shape (L, Q); NaN in a lane without values."""
    wanted = torch.tensor(_QUANTILES, dtype=torch.float64, device=ranked.device)
    position = wanted * (count[:, None] - 1).clamp(min=0)
    below = position.floor()
    lower = ranked.gather(1, below.long())
    upper = ranked.gather(1, position.ceil().long())
    return lower + (upper - lower) * (position - below)


def _log_moments(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the logarithms of the values above 0, shape (L,); NaN without any."""
    positive = ranked > 0
    number = positive.sum(1)
    logs = ranked.log()
    mean = logs.where(positive, 0.0).sum(1) / number
    squares = (logs - mean[:, None]).square().where(positive, 0.0)
    return mean, (squares.sum(1) / number).sqrt()
