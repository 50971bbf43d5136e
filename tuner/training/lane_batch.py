"""A lane batch: everything that lanes which train in lock-step own, one row per lane.

`LaneBatch.update` is the part of a step behind the gradients: unscale, measure, clip, mask, optimize, record. It
works in place, on the device, and reads nothing back to the host. A lane that is no longer live keeps its
weights and optimizer state bit for bit. Rows can be selected and put side by side, which is all that
compaction, forking and checkpoints need.

Shape letters: L = lanes, P = trainable parameters of one lane, N = steps since the last flush.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tuner.clippers import create_clipper
from tuner.lanes import Layout, per_lane
from tuner.methods import OFF
from tuner.optimizers import OptimizerSetting
from tuner.spec import ClipSetting
from tuner.training.precision import LossScale
from tuner.training.sharing import Watch
from tuner.training.trace import StepRecords, Trace
from tuner.workloads.base import Precision

#: Steps between two flushes of the records at most.
MAX_UNFLUSHED = 32
_FIELDS = len(StepRecords._fields)

#: Flat names of tensors; the first part of a name says what they belong to.
Tensors = Mapping[str, Tensor]


class LaneBatch:
    """Lanes that train in lock-step.

    Args:
        settings: clip setting per lane, length L; a lane trains at the optimizer's rate times its setting's scale.
        layout: of a row.
        weights: initial weights, shape (L, P); owned by the batch from now on.
        optimizer: lane-wise setting.
        num_steps: length of a full run.
        precision: fp16 adds a loss scale per lane.
        reference_norm: see `tuner.clippers.base.Clipper`.
        buffers: the modules' buffers, each of shape (L, ...).

    Attributes:
        weights: shape (L, P).
        buffers: by name, each of shape (L, ...).
        optimizer_state: as the optimizer setting describes it.
        scale: the loss scales; None without fp16.
        step: steps taken, shape (), on the device.
        trace: what was recorded up to the last flush.
        watch: looks at every gradient before it is clipped, if there is one.
        live: lanes that have not diverged, shape (L,), bool, on the device.
    """

    def __init__(
        self,
        settings: Sequence[ClipSetting],
        layout: Layout,
        weights: Tensor,
        *,
        optimizer: OptimizerSetting,
        num_steps: int,
        precision: Precision = "fp32",
        reference_norm: float | None = None,
        buffers: Tensors | None = None,
    ) -> None:
        device, num_lanes = weights.device, len(settings)
        self.settings = tuple(settings)
        self.layout = layout
        self.weights = weights
        self.buffers = dict(buffers or {})
        self.live = torch.ones(num_lanes, dtype=torch.bool, device=device)
        self.trace = Trace(num_lanes, num_steps, device)
        self.optimizer = optimizer
        self.precision = precision
        self.reference_norm = reference_norm
        self.num_steps = num_steps
        self._clipper = create_clipper(settings, layout, reference_norm=reference_norm, device=device)
        self._clip_state = {name: each.clone() for name, each in self._clipper.initial_state(weights).items()}
        self.optimizer_state = optimizer.initial_state(weights, layout) if optimizer.is_lane_wise else {}
        rates = [optimizer.lr * setting.learning_rate_scale for setting in settings]
        self._lr = torch.tensor(rates, dtype=torch.float64, device=device)
        self.step = torch.zeros((), dtype=torch.float64, device=device)
        self.scale = LossScale.initial(num_lanes, device) if precision == "fp16" else None
        self._recent = torch.zeros(MAX_UNFLUSHED, _FIELDS, num_lanes, dtype=weights.dtype, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._unflushed = 0
        self.watch: Watch | None = None

    def __len__(self) -> int:
        """L."""
        return len(self.settings)

    @property
    def loss_scale(self) -> Tensor | None:
        """What each lane's loss is multiplied by before the gradient is taken, shape (L,); None without fp16."""
        return None if self.scale is None else self.scale.scale

    @property
    def is_full(self) -> bool:
        """Whether `flush` must be called before the next update."""
        return self._unflushed == MAX_UNFLUSHED

    def update(self, losses: Tensor, grads: Tensor) -> None:
        """Take one step with the gradients of the (scaled) losses.

        Args:
            losses: training loss without its scale, shape (L,).
            grads: gradient of the scaled loss, shape (L, P); overwritten.
        """
        self.apply(losses, grads)
        self.count()

    def apply(self, losses: Tensor, grads: Tensor) -> None:
        """The tensor operations of `update`, and nothing else: what a CUDA graph captures."""
        if self.scale is not None:
            grads.div_(self.scale.scale.to(grads.dtype).unsqueeze(1))
        result = self._clipper.clip(grads, self._clip_state, weights=self.weights, loss=losses)
        if self.watch is not None:
            self.watch.observe(grads, result.norm, self.live)
        finite = result.finite & losses.isfinite()
        live = self.live & finite
        if self.scale is not None:
            overflowed = self.live & losses.isfinite() & ~result.finite
            live = live | self.scale.forgives(overflowed)
            self.scale.update(overflowed)
        applied = live & finite & ~result.skipped
        for name, rows in result.state.items():
            self._clip_state[name].copy_(rows)
        self._optimize(result.grads.masked_fill_(~applied.unsqueeze(1), 0.0), applied)
        row = (losses, result.norm, result.scale, result.clipped, live, applied)
        self._recent.index_copy_(
            0, self._position, torch.stack([each.to(self._recent.dtype) for each in row]).unsqueeze(0)
        )
        self._position.add_(1)
        self.step.add_(1)
        self.live.copy_(live)

    def count(self) -> None:
        """Note on the host that a step was applied."""
        self._unflushed += 1

    def _optimize(self, grads: Tensor, applied: Tensor) -> None:
        lr = self._lr * self.optimizer.schedule.factor(self.step)
        self.optimizer.update(
            self.weights, grads, self.optimizer_state, layout=self.layout, lr=lr, applied=applied
        )

    def flush(self) -> None:
        """Move what the last steps recorded into the trace; no host synchronization."""
        if self._unflushed == 0:
            return
        loss, norm, scale, clipped, live, applied = self._recent[: self._unflushed].unbind(1)
        self.trace.fold(StepRecords(loss, norm, scale, clipped.bool(), live.bool(), applied.bool()))
        self._position.zero_()
        self._unflushed = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, flushed; the tensors themselves, not copies."""
        self.flush()
        named = {"weights": self.weights, "live": self.live, "step": self.step.reshape(1)}
        named |= _prefixed("buffer", self.buffers)
        named |= _prefixed("clip", self.named_clip_state())
        named |= _prefixed("optimizer", self.optimizer_state)
        named |= _prefixed("trace", self.trace.state())
        if self.scale is not None:
            named |= {"scale": self.scale.scale, "streak": self.scale.streak}
        return named

    def restore(self, tensors: Tensors) -> None:
        """Continue from what `tensors` gave, bit for bit.

        Args:
            tensors: of a batch with the same settings; copied.
        """
        own = self.tensors()
        for name, tensor in own.items():
            if not name.startswith("trace."):
                tensor.copy_(tensors[name])
        self.trace = Trace.restore(self.num_steps, _of("trace", tensors, self.weights.device))

    def named_clip_state(self) -> dict[str, Tensor]:
        """The clippers' state by ``method.name``, whatever the mixture of methods."""
        methods = sorted({setting.method for setting in self.settings} - {OFF}) or [OFF]
        if len(methods) == 1:
            return _prefixed(methods[0], self._clip_state)
        numbered = {f"{number}": method for number, method in enumerate(methods)}
        split = {name: name.partition(".") for name in self._clip_state}
        return {
            f"{numbered[split[name][0]]}.{split[name][2]}": each for name, each in self._clip_state.items()
        }

    def select(self, rows: Sequence[int], settings: Sequence[ClipSetting] | None = None) -> LaneBatch:
        """Some of the lanes as a batch of their own, copied; see `side_by_side`."""
        return side_by_side([self], rows, settings)


def side_by_side(
    batches: Sequence[LaneBatch], rows: Sequence[int], settings: Sequence[ClipSetting] | None = None
) -> LaneBatch:
    """Lanes of several batches as one batch.

    Args:
        batches: at the same step and alike but for their lanes, at least one.
        rows: for each lane of the result its row in the batches put one after the other; a lane may be taken twice.
        settings: the lanes' clip settings from now on; by default those they have. Only lanes of methods without a
            state may change theirs. Their learning rates are those of the new settings.

    Returns:
        A batch that shares no tensor with the given ones.
    """
    for each in batches:
        each.flush()
    first = batches[0]
    index = torch.tensor(rows, dtype=torch.int64, device=first.weights.device)
    theirs = tuple(setting for each in batches for setting in each.settings)

    def chosen(tensors: Sequence[Tensor]) -> Tensor:
        return (tensors[0] if len(tensors) == 1 else torch.cat(list(tensors)))[index]

    new = LaneBatch(
        tuple(theirs[row] for row in rows) if settings is None else settings,
        first.layout,
        chosen([each.weights for each in batches]),
        optimizer=first.optimizer,
        num_steps=first.num_steps,
        precision=first.precision,
        reference_norm=first.reference_norm,
        buffers={name: chosen([each.buffers[name] for each in batches]) for name in first.buffers},
    )
    new.step.copy_(first.step)
    new.live.copy_(chosen([each.live for each in batches]))
    for name, tensor in new.optimizer_state.items():
        tensor.copy_(chosen([each.optimizer_state[name] for each in batches]))
    if new.scale is not None:
        scales = [each.scale for each in batches if each.scale is not None]
        new.scale.scale.copy_(chosen([each.scale for each in scales]))
        new.scale.streak.copy_(chosen([each.streak for each in scales]))
    for name, tensor in new.named_clip_state().items():
        # A batch without a lane of the method has nothing to hand on: its rows keep the method's first state.
        states = [each.named_clip_state().get(name) for each in batches]
        has_state = [
            own is not None for own, each in zip(states, batches, strict=True) for _ in each.settings
        ]
        rows_of = [
            tensor.new_zeros(len(each), *tensor.shape[1:]) if own is None else own
            for own, each in zip(states, batches, strict=True)
        ]
        kept = torch.tensor(has_state, device=tensor.device)[index]
        tensor.copy_(torch.where(per_lane(kept, tensor), chosen(rows_of), tensor))
    trace = first.trace if len(batches) == 1 else Trace.concat([each.trace for each in batches])
    new.trace = trace.select(index)
    return new


def mean_of_parts(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of an optimizer step from those of its batches, summed in their order.

    Args:
        parts: losses of shape (L,) and gradients of shape (L, P), at least one pair.

    Returns:
        Their means; a single pair as it is.
    """
    losses, grads = parts[0]
    if len(parts) == 1:
        return losses, grads
    for other_losses, other_grads in parts[1:]:
        losses = losses + other_losses
        grads = grads.add_(other_grads)
    return losses / len(parts), grads.div_(len(parts))


def _prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": each for name, each in tensors.items()}


def _of(prefix: str, tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): each.to(device)
        for name, each in tensors.items()
        if name.startswith(f"{prefix}.")
    }
