"""What a clipper's calls did, kept on the device until somebody asks; bounded memory whatever the number of steps.

A step's facts are appended to a list, which takes no kernel. Every `FOLD_STEPS` steps they are stacked and folded into
a `tuner.training.trace.Trace`, about fifty small kernels. Only `read`, `drain` and `figures` wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from tuner.inline.errors import ClipperStateError
from tuner.inline.methods import ClipOutcome, Facts
from tuner.records import LaneRecord
from tuner.training.trace import CAPACITY, StepRecords, Trace

#: Steps that are folded at once.
FOLD_STEPS = 256
#: Length of a run whose length is not known: every step lies in its first phase.
_ENDLESS = 2**62


class StepLog:
    """The record of a clipper's calls.

    Args:
        outcome: what the facts of N steps say.
        run_steps: optimizer steps of a full run, which its phases divide; None leaves phases out.
    """

    def __init__(self, outcome: Callable[[Facts], ClipOutcome], run_steps: int | None) -> None:
        self._outcome = outcome
        self._run_steps = run_steps
        self._trace: Trace | None = None
        self._facts: list[Facts] = []
        self._losses: list[Tensor | None] = []
        self._newest: tuple[Facts, Tensor | None] = ((), None)
        self._undrained = Undrained()
        # Of the steps since the last `figures`, on the device.
        self._num_clipped = torch.zeros((), dtype=torch.int64)
        self._num_since = 0

    def add(self, facts: Facts, loss: Tensor | None) -> None:
        """Take in one step.

        Args:
            facts: of the step, 0-dim tensors of its own.
            loss: training loss, a 0-dim tensor of its own; None if it was not told.
        """
        self._newest = (facts, loss)
        self._facts.append(facts)
        self._losses.append(loss)
        if len(self._facts) == FOLD_STEPS:
            self._fold()

    def read(self) -> LaneRecord:
        """The record of all steps; waits for the device.

        Returns:
            The record. Whether the run diverged is for the objective to say, so ``divergence_step`` is None: a norm
            that is not finite is an everyday event under a ``GradScaler``. ``phases`` are left out without the
            length of a full run.
        """
        self._fold()
        if self._trace is None:
            return LaneRecord(
                num_steps=0,
                divergence_step=None,
                clip_fraction=0.0,
                mean_scale=1.0,
                norms=None,
                num_non_finite=0,
            )
        (record,) = self._trace.read()
        return replace(record, phases=()) if self._run_steps is None else record

    def drain(self) -> list[float]:
        """The finite norms before clipping since the last call; waits for the device."""
        self._fold()
        undrained, self._undrained = self._undrained, Undrained()
        return undrained.read()

    def figures(self) -> dict[str, float]:
        """What a monitor shows of the newest step, read back at once; there must be one.

        Returns:
            ``pre_clip_norm``, ``post_clip_norm`` and ``scale`` of that step, its ``train_loss`` if it was told, and
            ``clip_fraction``, the share of clipped steps since the last call.
        """
        facts, loss = self._newest
        newest = self._outcome(facts)
        self._fold()
        told = {
            "pre_clip_norm": newest.norm,
            "post_clip_norm": newest.clipped_norm,
            "scale": newest.scale,
            "clip_fraction": self._num_clipped / max(self._num_since, 1),
        }
        if loss is not None:
            told["train_loss"] = loss
        read = torch.stack([each.to(newest.norm.device, torch.float64) for each in told.values()]).tolist()
        self._num_clipped, self._num_since = torch.zeros((), dtype=torch.int64), 0
        return dict(zip(told, read, strict=True))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs, on the device; norms that were not drained are not part of it."""
        self._fold()
        return {} if self._trace is None else self._trace.state()

    def load(self, state: Mapping[str, Tensor], device: torch.device | None) -> None:
        """Go on from what `state` gave.

        Args:
            state: empty for a log without steps.
            device: where the next steps will be; None if that is not known yet.

        Raises:
            ClipperStateError: if it is something else.
        """
        self._facts, self._losses, self._undrained = [], [], Undrained()
        self._num_clipped, self._num_since = torch.zeros((), dtype=torch.int64), 0
        try:
            placed = {name: rows if device is None else rows.to(device) for name, rows in state.items()}
            self._trace = Trace.restore(self._run_steps or _ENDLESS, placed) if placed else None
        except (KeyError, AttributeError, TypeError, RuntimeError) as error:
            raise ClipperStateError(f"its record can't be read ({error!r})") from error

    def _fold(self) -> None:
        """Move the pending steps into the trace; reads nothing back."""
        if not self._facts:
            return
        facts, losses = self._facts, self._losses
        self._facts, self._losses = [], []
        device = facts[0][0].device
        if self._trace is None:
            self._trace = Trace(1, self._run_steps or _ENDLESS, device)
        elif self._trace.live.device != device:
            # A state that was loaded before the parameters' device was known, or a model that has moved.
            moved = {name: rows.to(device) for name, rows in self._trace.state().items()}
            self._trace = Trace.restore(self._run_steps or _ENDLESS, moved)
        steps = self._outcome(
            tuple(torch.stack([each.to(device) for each in column]) for column in zip(*facts, strict=True))
        )
        self._trace.fold(_records(steps, _stacked(losses, device)))
        self._undrained.add(steps.norm)
        # A 0-dim CPU tensor joins an addition on any device without a copy of its own.
        self._num_clipped = steps.clipped.sum() + self._num_clipped
        self._num_since += len(facts)


class Undrained:
    """Norms that nobody has asked for yet: all of them, or evenly spaced ones if there are too many."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._stride = 1
        self._num_seen = 0
        self._num_kept = 0

    def add(self, norms: Tensor) -> None:
        """Take in norms, shape (N,)."""
        kept = norms[-self._num_seen % self._stride :: self._stride]
        self._num_seen += len(norms)
        if not len(kept):
            return
        # A slice would hold all that it was cut from.
        self._chunks.append(kept if self._stride == 1 else kept.clone())
        self._num_kept += len(kept)
        if self._num_kept > CAPACITY:
            self._chunks = [torch.cat(self._chunks)[::2].clone()]
            self._num_kept = len(self._chunks[0])
            self._stride *= 2

    def read(self) -> list[float]:
        """The finite ones among what is kept, in order; waits for the device."""
        kept = torch.cat(self._chunks).tolist() if self._chunks else []
        return [norm for norm in kept if isfinite(norm)]


def _records(steps: ClipOutcome, losses: Tensor) -> StepRecords:
    """N steps of one lane, shape (N, 1)."""

    def column(values: Tensor) -> Tensor:
        return values.unsqueeze(1)

    return StepRecords(
        loss=column(losses),
        norm=column(steps.norm),
        scale=column(steps.scale),
        clipped=column(steps.clipped),
        live=column(torch.ones_like(steps.clipped)),
        applied=column(~steps.skipped),
    )


def _stacked(losses: list[Tensor | None], device: torch.device) -> Tensor:
    """Shape (N,); NaN where no loss was told."""
    told = [each for each in losses if each is not None]
    if not told:
        return torch.full((len(losses),), torch.nan, device=device)
    # Where the losses are: numbers of the host are sent over together.
    where = told[0].device
    untold = torch.full((), torch.nan, device=where)
    same = [untold if each is None else each.to(where, torch.float32) for each in losses]
    return torch.stack(same).to(device)
