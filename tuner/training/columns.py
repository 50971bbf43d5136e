"""What a trace holds on the device: a few numbers per lane, per phase, and the steps it keeps.

Shape letters: L = lanes, C = steps kept at most.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from tuner.evidence import Phase

#: Sums of scales are integers, in units of 1 / this: exact and the same in any order. 2^27 steps fit.
SCALE_UNITS = 2**36
#: The first clipped step of a lane that never clipped.
NEVER: int = torch.iinfo(torch.int64).max


class Count(IntEnum):
    """What is counted per phase; the last axis of `Columns.counts`."""

    STEPS = 0
    #: Steps with a finite norm: the others say nothing about norms and scales.
    MEASURED = 1
    CLIPPED = 2
    SKIPPED = 3
    SCALE = 4


class Columns(NamedTuple):
    """All of a trace that lies on the device, lanes in front.

    Attributes:
        live: shape (L,), bool.
        norms: norms kept, shape (L, C); NaN where there is none.
        losses: the same of the training loss.
        counts: shape (L, phases, `Count`), int64.
        min_norm: shape (L, phases); infinite before the first.
        max_norm: shape (L, phases); minus infinity before the first.
        min_scale: shape (L,); infinite before the first.
        first_clipped: shape (L,), int64; `NEVER` before the first.
        last_clipped: shape (L,), int64; -1 before the first.
        min_loss: shape (L,); infinite before the first.
        last_loss: shape (L,); NaN before the first.
    """

    live: Tensor
    norms: Tensor
    losses: Tensor
    counts: Tensor
    min_norm: Tensor
    max_norm: Tensor
    min_scale: Tensor
    first_clipped: Tensor
    last_clipped: Tensor
    min_loss: Tensor
    last_loss: Tensor


def empty_columns(num_lanes: int, capacity: int, device: torch.device) -> Columns:
    """The columns before the first step."""

    def filled(value: float, *shape: int) -> Tensor:
        return torch.full((num_lanes, *shape), value, dtype=torch.float32, device=device)

    def counted(value: int, *shape: int) -> Tensor:
        return torch.full((num_lanes, *shape), value, dtype=torch.int64, device=device)

    return Columns(
        live=torch.ones(num_lanes, dtype=torch.bool, device=device),
        norms=filled(torch.nan, capacity),
        losses=filled(torch.nan, capacity),
        counts=counted(0, len(Phase), len(Count)),
        min_norm=filled(torch.inf, len(Phase)),
        max_norm=filled(-torch.inf, len(Phase)),
        min_scale=filled(torch.inf),
        first_clipped=counted(NEVER),
        last_clipped=counted(-1),
        min_loss=filled(torch.inf),
        last_loss=filled(torch.nan),
    )
