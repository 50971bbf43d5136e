"""What a training recorded: norms, scales and the first non-finite step, per lane, on the device.

Memory is bounded whatever the number of steps: norms are kept at every ``stride``-th step, and whenever the
buffer is full every second one is dropped and the stride doubles. Sums, counts and the maximum are exact.
Recording reads nothing back to the host; `Trace.read` does, at rungs.

Shape letters: L = lanes, N = norms kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.clippers import ClipResult
from tuner.evidence import NormSketch

#: Norms kept per lane; a power of two. Quantiles of a longer run rest on at least half as many.
CAPACITY = 8192


@dataclass(frozen=True, kw_only=True)
class LaneRecord:
    """One lane's trace, on the host; the fields are those of `tuner.evidence.LaneResult`."""

    num_steps: int
    divergence_step: int | None
    clip_fraction: float
    mean_scale: float
    norms: NormSketch | None
    num_non_finite: int


class Trace:
    """The record of a lane batch.

    A lane is live until its first non-finite step; that step is its divergence step, and nothing after it is
    recorded.

    Attributes:
        live: shape (L,), bool, on the device.
    """

    def __init__(self, num_lanes: int, device: torch.device, *, capacity: int = CAPACITY) -> None:
        self.live = torch.ones(num_lanes, dtype=torch.bool, device=device)
        self._norms = torch.full((capacity, num_lanes), torch.nan, device=device)
        self._stride = 1
        self._num_recorded = 0
        self._max_norm = torch.zeros(num_lanes, device=device)
        self._num_steps = torch.zeros(num_lanes, dtype=torch.int64, device=device)
        self._num_clipped = torch.zeros(num_lanes, dtype=torch.int64, device=device)
        self._sum_scale = torch.zeros(num_lanes, dtype=torch.float64, device=device)

    def record(self, result: ClipResult, loss: Tensor) -> Tensor:
        """Add one step of every lane.

        Args:
            result: what the clipper did.
            loss: training loss, shape (L,).

        Returns:
            The lanes that may be updated: finite now and at every step before; shape (L,), bool, a device tensor.
        """
        self.live = self.live & result.finite & loss.isfinite()
        self._num_steps += self.live
        self._num_clipped += self.live & result.clipped
        self._sum_scale += torch.where(self.live, result.scale, 0.0)
        norm = torch.where(self.live, result.norm, torch.nan)
        self._max_norm = torch.fmax(self._max_norm, norm)
        self._keep(norm)
        return self.live

    def _keep(self, norm: Tensor) -> None:
        step, self._num_recorded = self._num_recorded, self._num_recorded + 1
        capacity = len(self._norms)
        if step == capacity * self._stride:
            self._norms[: capacity // 2] = self._norms[::2].clone()
            self._norms[capacity // 2 :] = torch.nan
            self._stride *= 2
        if step % self._stride == 0:
            self._norms[step // self._stride] = norm

    def read(self) -> tuple[LaneRecord, ...]:
        """The record on the host, one per lane; this waits for the device.

        Returns:
            A diverged lane's ``num_steps`` are the finite ones; its divergence step is the next.
        """
        rows = zip(
            self._num_steps.tolist(),
            self._num_clipped.tolist(),
            self._sum_scale.tolist(),
            self._max_norm.tolist(),
            self.live.tolist(),
            self._norms.T.cpu(),
            strict=True,
        )
        return tuple(
            LaneRecord(
                num_steps=num_steps,
                divergence_step=None if live else num_steps,
                clip_fraction=num_clipped / num_steps if num_steps else 0.0,
                mean_scale=sum_scale / num_steps if num_steps else 1.0,
                norms=sketch(norms, largest=max_norm),
                num_non_finite=0 if live else 1,
            )
            for num_steps, num_clipped, sum_scale, max_norm, live, norms in rows
        )


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
    finite = values[values.isfinite()].double()
    if len(finite) == 0:
        return None
    wanted = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64, device=finite.device)
    median, q90, q99 = torch.quantile(finite, wanted).tolist()
    return NormSketch(
        median=median, q90=q90, q99=q99, max=float(finite.max()) if largest is None else largest
    )
