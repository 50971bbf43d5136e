"""Train one lane at a time with the plain module: works for every model, and is the reference for the batched engine.

All lanes of a cohort stay in memory between rungs. Only forward and backward are per module: a lane's parameters
are views of a lane batch of one row, so that norms, clipping, optimizer and records are the code of the batched
engine. A step reads nothing back to the host, so on a GPU the host runs ahead and waits about once a second.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuner.errors import LaneError, UnsupportedModelError
from tuner.lanes import Layout, row_of, trainable
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, EngineChosen
from tuner.training.custom_optimizer import CustomLaneBatch
from tuner.training.engine import Advance, EngineState, Evaluation, LaneId
from tuner.training.initial import initial_model, require_scalar
from tuner.training.lane_batch import LaneBatch, mean_of_parts
from tuner.training.precision import autocast
from tuner.training.randomness import GlobalStream, data_generator
from tuner.training.trace import LaneRecord
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import batch_size, tensors, to_device

#: How long a lane trains before the host looks at it.
READ_SECONDS = 1.0

Clock = Callable[[], float]


@dataclass
class _Lane:
    """Everything one lane owns."""

    id: LaneId
    model: nn.Module
    batch: LaneBatch
    data: torch.Generator
    randomness: GlobalStream
    step: int = 0
    seconds: float = 0.0
    has_stopped: bool = False

    def __post_init__(self) -> None:
        """Let the module's parameters be views of the row."""
        self.parameters = trainable(self.model)
        for name, view in self.batch.layout.views(self.batch.weights).items():
            self.parameters[name].data = view[0]

    def require_views(self) -> None:
        """Check that the model has not put other tensors in the place of its parameters'.

        Raises:
            UnsupportedModelError: if it has: they would not be trained.
        """
        for name, view in self.batch.layout.views(self.batch.weights).items():
            if self.parameters[name].data_ptr() != view.data_ptr():
                raise UnsupportedModelError(
                    f"parameter {name!r}",
                    "is replaced by the model: write into it with copy_() under torch.no_grad()",
                )

    def take_grads(self) -> Tensor:
        """The gradients as a row, shape (1, P); an unused parameter's is 0."""
        rows = []
        for each in self.parameters.values():
            rows.append((torch.zeros_like(each) if each.grad is None else each.grad).reshape(-1))
            each.grad = None
        return torch.cat(rows).unsqueeze(0)


class SoloEngine:
    """An `tuner.training.engine.Engine` that trains its lanes one after the other.

    Args:
        cohort: trials and seeds.
        workload: what to train.
        device: where to train.
        clock: monotonic seconds; only for telling progress and measuring time, never for results.
    """

    def __init__(
        self,
        cohort: Cohort,
        workload: AnyWorkload,
        *,
        device: torch.device | str = "cpu",
        clock: Clock = time.monotonic,
    ) -> None:
        self.choice = EngineChosen(path="solo", num_lanes=1, reason="asked for")
        self._cohort = cohort
        self._workload = workload
        self._device = torch.device(device)
        self._clock = clock
        workload.device = self._device
        self._validation = [to_device(batch, self._device) for batch in workload.validation_batches()]
        self._lanes: dict[LaneId, _Lane] = {}
        for seed in cohort.seeds:
            initial = initial_model(workload, seed, self._device)
            for trial in cohort.trials:
                lane = LaneId(trial.id, seed)
                self._lanes[lane] = self._create_lane(lane, trial.setting, copy.deepcopy(initial))

    def _create_lane(self, lane: LaneId, setting: ClipSetting, model: nn.Module) -> _Lane:
        parameters = trainable(model)
        optimizer = self._workload.optimizer()
        kind = LaneBatch if optimizer.is_lane_wise else CustomLaneBatch
        return _Lane(
            id=lane,
            model=model,
            batch=kind(
                (setting,),
                Layout.of(parameters.items()),
                row_of(parameters).unsqueeze(0),
                optimizer=optimizer,
                num_steps=self._cohort.rung_steps[-1],
                precision=self._workload.precision,
                reference_norm=self._cohort.reference_norm,
            ),
            data=data_generator(lane.seed),
            randomness=self._stream(lane.seed),
        )

    def advance(self, lanes: Sequence[LaneId], step: int) -> Iterator[Advance]:  # noqa: D102
        for each in lanes:
            lane = self._lanes[each]
            while lane.step < step and not lane.has_stopped:
                before = lane.step
                self._train(lane, step)
                yield Advance(lane.step - before, lane.step)

    def rehearsal(self) -> Callable[[], None]:
        """A step of the first lane, to be timed; the engine is of no other use afterwards."""
        lane = next(iter(self._lanes.values()))
        batch = self._workload.train_batch(0, lane.data)

        def step() -> None:
            with lane.randomness.active():
                self._update(lane, [batch] * self._workload.accumulation_steps)

        return step

    def _train(self, lane: _Lane, step: int) -> None:
        """Train one lane up to a step, or until the host should look at it."""
        started = self._clock()
        with lane.randomness.active(), _blaming(lane):
            lane.model.train()
            while lane.step < step:
                self._step(lane)
                if self._clock() - started >= READ_SECONDS:
                    break
        lane.require_views()
        lane.batch.flush()
        lane.has_stopped = not bool(lane.batch.live)  # waits for the device: once per call, not per step
        lane.seconds += self._clock() - started

    def _step(self, lane: _Lane) -> None:
        """One optimizer step; nothing in here reads a tensor on the host."""
        num_parts = self._workload.accumulation_steps
        indices = range(lane.step * num_parts, (lane.step + 1) * num_parts)
        self._update(lane, (self._workload.train_batch(index, lane.data) for index in indices))
        lane.step += 1

    def _update(self, lane: _Lane, batches: Iterable[object]) -> None:
        """An optimizer step with the mean gradient of some batches."""
        lane.batch.update(*mean_of_parts([self._backward(lane, batch) for batch in batches]))
        if lane.batch.is_full:
            lane.batch.flush()

    def _backward(self, lane: _Lane, batch: object) -> tuple[Tensor, Tensor]:
        """Loss and gradient of one batch, shapes (1,) and (1, P).

        Raises:
            UnsupportedModelError: if the loss is not one number, or changes its batch.
        """
        batch = to_device(batch, self._device)
        versions = [each._version for each in tensors(batch)]
        with autocast(self._workload.precision, self._device):
            loss = self._workload.loss(lane.model, batch)
        require_scalar(loss)
        if [each._version for each in tensors(batch)] != versions:
            raise UnsupportedModelError(
                "the loss",
                "changes its batch in place, which other lanes train on too: write it out of place",
            )
        loss = loss.reshape(1)
        scale = lane.batch.loss_scale
        (loss if scale is None else loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), lane.take_grads()

    def evaluate(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, Evaluation]:  # noqa: D102
        return {each: self._evaluate(self._lanes[each]) for each in lanes}

    def _evaluate(self, lane: _Lane) -> Evaluation:
        fixed = GlobalStream(lane.id.seed, "validation", self._device)  # fresh: the same draws at every rung
        with fixed.active(), _blaming(lane), torch.no_grad():
            lane.model.eval()
            sizes = torch.tensor([batch_size(batch) for batch in self._validation], dtype=torch.float64)
            losses = self._values(self._workload.loss, lane.model)
            objectives = (
                self._values(self._workload.metric, lane.model) if self._workload.has_metric else losses
            )
        return Evaluation(*(float((values @ sizes) / sizes.sum()) for values in (losses, objectives)))

    def _values(self, function: Callable[[nn.Module, Any], Tensor], model: nn.Module) -> Tensor:
        """A function of every held-out batch, in double precision on the host."""
        values = []
        for batch in self._validation:
            with autocast(self._workload.precision, self._device):
                values.append(torch.as_tensor(function(model, batch), device=self._device).reshape(()))
        return torch.stack(values).double().cpu()

    def read(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, LaneRecord]:  # noqa: D102
        return {each: self._lanes[each].batch.trace.read()[0] for each in lanes}

    def num_shared_steps(self, lane: LaneId) -> int:  # noqa: D102
        del lane
        return 0

    def seconds(self, lane: LaneId) -> float:  # noqa: D102
        return self._lanes[lane].seconds

    def retire(self, lanes: Sequence[LaneId]) -> None:  # noqa: D102
        for each in lanes:
            del self._lanes[each]

    def adopt(
        self, lane: LaneId, batch: LaneBatch, *, step: int, data: Tensor, draws: Tensor, seconds: float
    ) -> None:
        """Put another engine's lane in the place of one of this engine's.

        Args:
            lane: which.
            batch: a lane batch of one, with the module's changing buffers; owned by the engine from now on.
            step: optimizer steps it has taken.
            data: state of its data generator.
            draws: state of the generator behind its dropout masks.
            seconds: wall time spent on it.
        """
        model = self._lanes[lane].model
        buffers = dict(model.named_buffers())
        for name, value in batch.buffers.items():
            buffers[name].copy_(value[0])
        batch.buffers.clear()
        own = _Lane(lane, model, batch, data_generator(lane.seed), self._stream(lane.seed), step, seconds)
        own.data.set_state(data.clone())
        own.randomness.restore(draws)
        own.has_stopped = not bool(batch.live)
        self._lanes[lane] = own

    def keep(self, lanes: Sequence[LaneId]) -> None:
        """Forget every other lane."""
        self._lanes = {lane: self._lanes[lane] for lane in lanes}

    def state(self) -> EngineState | None:  # noqa: D102
        tensors: dict[str, Tensor] = {}
        lanes = []
        for number, lane in enumerate(self._lanes.values()):
            if not lane.batch.optimizer.is_lane_wise:
                return None
            named = lane.batch.tensors() | {
                f"module.{name}": each for name, each in lane.model.named_buffers()
            }
            named |= {"data": lane.data.get_state(), "draws": lane.randomness.state()}
            tensors |= {f"lane{number}.{name}": each for name, each in named.items()}
            lanes.append([*lane.id, lane.step, lane.seconds])
        return EngineState(tensors, {"lanes": lanes})

    def restore(self, state: EngineState) -> None:  # noqa: D102
        kept = {}
        for number, (trial, seed, step, seconds) in enumerate(state.values["lanes"]):
            lane = self._lanes[LaneId(trial, seed)]
            prefix = f"lane{number}."
            named = {
                n.removeprefix(prefix): each for n, each in state.tensors.items() if n.startswith(prefix)
            }
            lane.batch.restore(named)
            for name, buffer in lane.model.named_buffers():
                buffer.copy_(named[f"module.{name}"])
            lane.data.set_state(named["data"].clone())
            lane.randomness.restore(named["draws"])
            lane.step, lane.seconds = step, seconds
            lane.has_stopped = not bool(lane.batch.live)
            kept[lane.id] = lane
        self._lanes = kept

    def _stream(self, seed: int) -> GlobalStream:
        """Where a lane's dropout masks come from."""
        return GlobalStream(seed, "training", self._device)


@contextmanager
def _blaming(lane: _Lane) -> Iterator[None]:
    """Raise an exception of the workload's code as `LaneError`, which names the trial.

    Raises:
        LaneError: if the code raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise LaneError(lane.id.trial_id, lane.id.seed, lane.step, error) from error
