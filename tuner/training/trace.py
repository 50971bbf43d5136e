"""What a training recorded: norms, losses and clipping of each lane, step by step, on the device.

Memory is bounded whatever the number of steps: norms and losses are kept at every ``stride``-th step, and whenever
the buffer is full every second one is dropped and the stride doubles. Counts, sums, extremes and the steps at which
things happened are exact, and none of them depends on how the steps were cut into folds. Recording reads nothing
back to the host; `Trace.read` does, at rungs.

Shape letters: L = lanes, N = steps in one fold, C = steps kept at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tuner.evidence import LaneRecord as LaneRecord
from tuner.training.columns import NEVER, SCALE_UNITS, Columns, Count, empty_columns
from tuner.training.readout import read_lanes
from tuner.training.sketches import sketch as sketch

#: Norms, and losses, kept per lane; a power of two. Quantiles of a longer run rest on at least half as many.
CAPACITY = 8192


class StepRecords(NamedTuple):
    """What N consecutive steps of every lane recorded, on the device; each of shape (N, L).

    Attributes:
        loss: training loss.
        norm: L2 gradient norm before clipping.
        scale: norm after clipping / norm before, in [0, 1].
        clipped: bool; scaled, clamped or skipped by the clipper.
        live: bool; the lane was live before the step, and its loss and gradient are finite or its overflow was
            forgiven.
        applied: bool; the optimizer's update was taken.
    """

    loss: Tensor
    norm: Tensor
    scale: Tensor
    clipped: Tensor
    live: Tensor
    applied: Tensor


class Trace:
    """The record of a lane batch.

    A lane is live until its first step that is not; that step is its divergence step, and nothing from it on is
    recorded. All lanes are at the same step.

    Args:
        num_lanes: L.
        num_steps: length of a full run, at least 1, which the phases divide; a longer run stays in the last.
        device: where the steps are recorded.
        capacity: C, a power of two; less is held if a full run is shorter.

    Raises:
        ValueError: if ``num_steps`` or ``capacity`` is out of range.
    """

    def __init__(
        self, num_lanes: int, num_steps: int, device: torch.device | str, *, capacity: int = CAPACITY
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be >= 1, got {num_steps}")
        if capacity < 2 or capacity.bit_count() != 1:
            raise ValueError(f"capacity must be a power of two >= 2, got {capacity}")
        self._num_steps = num_steps
        self._num_recorded = 0
        held = min(capacity, max(2, 1 << (num_steps - 1).bit_length()))
        self._columns = empty_columns(num_lanes, held, torch.device(device))

    @property
    def live(self) -> Tensor:
        """The lanes that may be updated: every step so far was live; shape (L,), bool, on the device."""
        return self._columns.live

    @property
    def num_recorded(self) -> int:
        """Steps folded in so far; the same for every lane, diverged ones included."""
        return self._num_recorded

    @property
    def _stride(self) -> int:
        """The smallest power of two at which the steps so far fit: a function of their number alone."""
        kept = -(-self._num_recorded // self._columns.norms.shape[1])
        return 1 << max(0, kept - 1).bit_length()

    def fold(self, records: StepRecords) -> None:
        """Add the next N steps of every lane.

        It takes about fifty small kernels whatever N is, so that an engine saves time by folding many steps at once.

        Args:
            records: what the steps recorded; N may be 0.
        """
        num_new = len(records.live)
        if num_new == 0:
            return
        start, old_stride = self._num_recorded, self._stride
        self._num_recorded += num_new
        columns = self._columns
        live = records.live.cumprod(0, dtype=torch.uint8).bool() & columns.live
        norm, loss = records.norm.float(), records.loss.float()
        measured = live & norm.isfinite()
        told = live & loss.isfinite()
        clipped = live & records.clipped
        # A gradient of norm 0 has no ratio.
        scale = records.scale.double().nan_to_num(nan=1.0)
        self._keep(norm.where(measured, torch.nan), loss.where(told, torch.nan), start, old_stride)
        self._count(
            torch.stack([live, measured, clipped, live & ~records.applied], dim=2),
            (scale * SCALE_UNITS).round().long().where(measured, 0),
            norm.where(measured, torch.inf),
            norm.where(measured, -torch.inf),
            start,
        )
        steps = torch.arange(num_new, device=live.device)[:, None]
        first = (steps + start).where(clipped, NEVER).amin(0)
        last = (steps + start).where(clipped, -1).amax(0)
        last_told = steps.where(told, -1).amax(0)
        newest = loss.gather(0, last_told.clamp(min=0)[None])[0]
        self._columns = columns._replace(
            live=live[-1],
            min_scale=columns.min_scale.minimum(scale.float().where(measured, torch.inf).amin(0)),
            first_clipped=columns.first_clipped.minimum(first),
            last_clipped=columns.last_clipped.maximum(last),
            min_loss=columns.min_loss.minimum(loss.where(told, torch.inf).amin(0)),
            last_loss=newest.where(last_told >= 0, columns.last_loss),
        )

    def _keep(self, norm: Tensor, loss: Tensor, start: int, old_stride: int) -> None:
        """Thin out what is kept to the present stride, and keep the new steps that are on it."""
        stride, end = self._stride, self._num_recorded
        first, last = -(-start // stride), -(-end // stride)
        for kept, new in ((self._columns.norms, norm), (self._columns.losses, loss)):
            if stride > old_stride:
                thinned = kept[:, :: stride // old_stride].clone()
                kept.fill_(torch.nan)
                kept[:, : thinned.shape[1]] = thinned
            kept[:, first:last] = new[first * stride - start :: stride].T

    def _count(self, happened: Tensor, scale: Tensor, low: Tensor, high: Tensor, start: int) -> None:
        """Add up the steps phase by phase; a fold rarely has more than one."""
        columns = self._columns
        for phase, (begin, end) in enumerate(self._phases()):
            rows = slice(max(begin - start, 0), end - start)
            if rows.start < rows.stop:
                columns.counts[:, phase, : Count.SCALE] += happened[rows].sum(0)
                columns.counts[:, phase, Count.SCALE] += scale[rows].sum(0)
                columns.min_norm[:, phase] = columns.min_norm[:, phase].minimum(low[rows].amin(0))
                columns.max_norm[:, phase] = columns.max_norm[:, phase].maximum(high[rows].amax(0))

    def _phases(self) -> Iterator[tuple[int, int]]:
        """First step of each phase and one past its last, of the steps so far; empty where they are equal."""
        begin, num_taken = 0, self._num_recorded
        warm_up = -(-self._num_steps // 20)
        for end in (warm_up, -(-self._num_steps // 3), -(-2 * self._num_steps // 3), num_taken):
            end = max(begin, min(end, num_taken))
            yield begin, end
            begin = end

    def select(self, rows: Tensor) -> Trace:
        """Some of the lanes, copied.

        Args:
            rows: lane indices on the trace's device, int64; they may repeat.

        Returns:
            A trace with one lane per index.
        """
        return self._like(Columns(*(each.index_select(0, rows) for each in self._columns)))

    @staticmethod
    def concat(traces: Sequence[Trace]) -> Trace:
        """Lanes of several traces side by side, copied.

        Args:
            traces: at least one; all of one length of run, capacity, device, and at the same step.

        Returns:
            A trace with all their lanes, in order.

        Raises:
            ValueError: if they do not fit together.
        """
        kinds = {(each._num_steps, each._num_recorded, each._columns.norms.shape[1]) for each in traces}
        if len(kinds) != 1:
            raise ValueError(
                f"traces must agree in length of run, steps recorded and capacity, got {sorted(kinds)}"
            )
        return traces[0]._like(
            Columns(*(torch.cat(each) for each in zip(*(one._columns for one in traces), strict=True)))
        )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs, copied: tensors with the lanes in front, and ``num_recorded``, 0-d int64."""
        state = {name: each.clone() for name, each in self._columns._asdict().items()}
        return state | {"num_recorded": torch.tensor(self._num_recorded)}

    @classmethod
    def restore(cls, num_steps: int, state: Mapping[str, Tensor]) -> Trace:
        """The trace that `state` was taken of; it goes on bit for bit, on the tensors' device.

        Args:
            num_steps: length of a full run, as before.
            state: from `state`; copied.

        Returns:
            The trace.
        """
        trace = cls(0, num_steps, state["live"].device)
        trace._num_recorded = int(state["num_recorded"])
        trace._columns = Columns(*(state[name].clone() for name in Columns._fields))
        return trace

    def _like(self, columns: Columns) -> Trace:
        trace = Trace(0, self._num_steps, columns.live.device)
        trace._num_recorded, trace._columns = self._num_recorded, columns
        return trace

    def read(self) -> tuple[LaneRecord, ...]:
        """The record on the host, one per lane; this waits for the device.

        Returns:
            A diverged lane's ``num_steps`` are the live ones; its divergence step is the next.
        """
        stride = self._stride
        kept = [slice(-(-begin // stride), -(-end // stride)) for begin, end in self._phases()]
        return read_lanes(self._columns, kept, stride)
