"""From the columns of a trace to one record per lane: what can wait until somebody reads.

Exact figures are divided, kept norms and losses are summarized, on the device as far as possible; then one list
per figure is read back to the host.

Shape letters: L = lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import pad

from tuner.evidence import LaneRecord, LossSketch, NormSketch, Phase, PhaseSketch
from tuner.records import MAX_POINTS, LossCurve
from tuner.training.columns import SCALE_UNITS, Columns, Count
from tuner.training.sketches import finite_or_none, histograms, rank, sketch_lanes, tail_indices


def read_lanes(columns: Columns, kept: Sequence[slice], stride: int) -> tuple[LaneRecord, ...]:
    """What each lane recorded; this waits for the device.

    Args:
        columns: of a trace.
        kept: per phase, which of the kept steps lie in it; ascending, without gaps, from 0.
        stride: steps from one kept step to the next.

    Returns:
        One record per lane.
    """
    ranked, count = rank(columns.norms[:, : kept[-1].stop])
    smallest, largest = columns.min_norm.amin(1), columns.max_norm.amax(1)
    norms = sketch_lanes(ranked, count, smallest=smallest, largest=largest)
    tails = tail_indices(ranked, count)
    first_norms = columns.norms[:, 0].tolist()
    totals = columns.counts.sum(1).tolist()
    live, min_scales = columns.live.tolist(), columns.min_scale.tolist()
    first_clipped, last_clipped = columns.first_clipped.tolist(), columns.last_clipped.tolist()
    losses, phases = _read_losses(columns, kept), _read_phases(columns, kept)
    curves = _read_curves(columns, [counts[Count.STEPS] for counts in totals], stride)
    bins = histograms(ranked)
    return tuple(
        LaneRecord(
            num_steps=counts[Count.STEPS],
            divergence_step=None if live[lane] else counts[Count.STEPS],
            clip_fraction=_clip_fraction(counts),
            mean_scale=_mean_scale(counts),
            norms=_with_first(norms[lane], first_norms[lane]),
            num_non_finite=counts[Count.STEPS] - counts[Count.MEASURED] + (not live[lane]),
            num_skipped=counts[Count.SKIPPED],
            min_scale=finite_or_none(min_scales[lane]),
            first_clipped_step=first_clipped[lane] if counts[Count.CLIPPED] else None,
            last_clipped_step=last_clipped[lane] if counts[Count.CLIPPED] else None,
            spike_ratio=_spike_ratio(norms[lane]),
            tail_index=tails[lane],
            loss=losses[lane],
            phases=phases[lane],
            curve=curves[lane],
            histogram=bins[lane],
        )
        for lane, counts in enumerate(totals)
    )


def _read_losses(columns: Columns, kept: Sequence[slice]) -> list[LossSketch | None]:
    means = torch.stack([columns.losses[:, each].double().nanmean(1) for each in kept], dim=1)
    rows = zip(columns.last_loss.tolist(), columns.min_loss.tolist(), means.tolist(), strict=True)
    return [
        LossSketch(last=last, min=least, mean=next(filter(math.isfinite, reversed(by_phase)), last))
        if math.isfinite(last)
        else None
        for last, least, by_phase in rows
    ]


def _read_curves(columns: Columns, num_steps: Sequence[int], stride: int) -> list[LossCurve | None]:
    """Lanes of one length have stretches of one length; a lane's own length decides, not how far others came."""
    curves: list[LossCurve | None] = [None] * len(num_steps)
    for length in set(num_steps) - {0}:
        lanes = [lane for lane, steps in enumerate(num_steps) if steps == length]
        num_kept = -(-length // stride)
        per_stretch = -(-num_kept // MAX_POINTS)
        num_stretches = -(-num_kept // per_stretch)
        losses = columns.losses[lanes, :num_kept].double()
        padded = pad(losses, (0, num_stretches * per_stretch - num_kept), value=math.nan)
        means = padded.view(len(lanes), num_stretches, per_stretch).nanmean(2).tolist()
        for lane, row in zip(lanes, means, strict=True):
            rounded = tuple(float(f"{mean:.6g}") if math.isfinite(mean) else None for mean in row)
            if any(each is not None for each in rounded):
                curves[lane] = LossCurve(stride=per_stretch * stride, losses=rounded)
    return curves


def _read_phases(columns: Columns, kept: Sequence[slice]) -> list[tuple[PhaseSketch, ...]]:
    norms = [
        sketch_lanes(
            *rank(columns.norms[:, each]),
            smallest=columns.min_norm[:, phase],
            largest=columns.max_norm[:, phase],
        )
        for phase, each in enumerate(kept)
    ]
    return [
        tuple(
            PhaseSketch(
                phase=phase,
                num_steps=counts[Count.STEPS],
                clip_fraction=_clip_fraction(counts),
                mean_scale=_mean_scale(counts),
                norms=by_lane[lane],
            )
            for phase, counts, by_lane in zip(Phase, by_phase, norms, strict=True)
            if counts[Count.STEPS]
        )
        for lane, by_phase in enumerate(columns.counts.tolist())
    ]


def _with_first(norms: NormSketch | None, first: float) -> NormSketch | None:
    return None if norms is None else replace(norms, first=finite_or_none(first))


def _spike_ratio(norms: NormSketch | None) -> float | None:
    """Largest / median; None where that is no number."""
    return norms.max / norms.median if norms is not None and norms.median > 0 else None


def _clip_fraction(counts: Sequence[int]) -> float:
    return counts[Count.CLIPPED] / counts[Count.STEPS] if counts[Count.STEPS] else 0.0


def _mean_scale(counts: Sequence[int]) -> float:
    """Mean over the steps with a finite norm; 1 without any."""
    measured = counts[Count.MEASURED]
    return counts[Count.SCALE] / SCALE_UNITS / measured if measured else 1.0
