"""Train one lane at a time with plain PyTorch: works for every model, and is the reference for faster engines.

All lanes of a cohort stay in memory between rungs. A step is forward, backward, norm, clip, update; it reads
nothing back to the host, so on a GPU the host runs ahead and waits about once a second.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tuner.clippers import Clipper, ClipState, create_clipper
from tuner.clippers.base import batched, unbatched
from tuner.errors import LaneError
from tuner.spec import ClipSetting
from tuner.training.batches import batch_size, to_device
from tuner.training.cohort import Cohort
from tuner.training.engine import Advance, Evaluation, LaneId
from tuner.training.randomness import GlobalStream, data_generator
from tuner.training.trace import LaneRecord, Trace
from tuner.workloads.base import AnyWorkload

#: How long a lane trains before the host looks at it.
READ_SECONDS = 1.0

Clock = Callable[[], float]


@dataclass
class _Lane:
    """Everything one lane owns."""

    id: LaneId
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clipper: Clipper
    clip_state: ClipState
    trace: Trace
    data: torch.Generator
    randomness: GlobalStream
    parameters: dict[str, nn.Parameter] = field(init=False)
    step: int = 0
    seconds: float = 0.0
    has_stopped: bool = False

    def __post_init__(self) -> None:
        self.parameters = {name: each for name, each in self.model.named_parameters() if each.requires_grad}


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
        self._workload = workload
        self._device = torch.device(device)
        self._clock = clock
        self._validation = [to_device(batch, self._device) for batch in workload.validation_batches()]
        self._lanes: dict[LaneId, _Lane] = {}
        for seed in cohort.seeds:
            initial = initial_model(workload, seed, self._device)
            for trial in cohort.trials:
                lane = LaneId(trial.id, seed)
                self._lanes[lane] = self._create_lane(lane, trial.setting, copy.deepcopy(initial))

    def _create_lane(self, lane: LaneId, setting: ClipSetting, model: nn.Module) -> _Lane:
        clipper = create_clipper(setting, device=self._device)
        return _Lane(
            id=lane,
            model=model,
            optimizer=self._workload.optimizer().build(
                [each for each in model.parameters() if each.requires_grad]
            ),
            clipper=clipper,
            clip_state=clipper.initial_state(),
            trace=Trace(1, self._device),
            data=data_generator(lane.seed),
            randomness=GlobalStream(lane.seed, "training", self._device),
        )

    def advance(self, lanes: Sequence[LaneId], step: int) -> Iterator[Advance]:  # noqa: D102
        for each in lanes:
            lane = self._lanes[each]
            while lane.step < step and not lane.has_stopped:
                before = lane.step
                self._train(lane, step)
                yield Advance(lane.step - before, lane.step)

    def _train(self, lane: _Lane, step: int) -> None:
        """Train one lane up to a step, or until the host should look at it."""
        started = self._clock()
        with lane.randomness.active(), _blaming(lane):
            lane.model.train()
            while lane.step < step:
                self._step(lane)
                if self._clock() - started >= READ_SECONDS:
                    break
        lane.has_stopped = not bool(
            lane.trace.live.all()
        )  # waits for the device: once per call, not per step
        lane.seconds += self._clock() - started

    def _step(self, lane: _Lane) -> None:
        """One optimizer step; nothing in here reads a tensor on the host."""
        batch = to_device(self._workload.train_batch(lane.step, lane.data), self._device)
        lane.optimizer.zero_grad(set_to_none=True)
        loss = self._workload.loss(lane.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = {name: each for name, each in lane.parameters.items() if each.grad is not None}
        grads = {name: each.grad for name, each in trained.items() if each.grad is not None}
        result = lane.clipper.clip(batched(grads), lane.clip_state)
        live = lane.trace.record(result, loss.detach().reshape(1))
        lane.clip_state = {
            name: torch.where(live, new, lane.clip_state[name]) for name, new in result.state.items()
        }
        for name, grad in unbatched(result.grads).items():
            trained[name].grad = grad
        _masked_update(lane.optimizer, list(trained.values()), live)
        lane.step += 1

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
        return torch.stack([function(model, batch).reshape(()) for batch in self._validation]).double().cpu()

    def read(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, LaneRecord]:  # noqa: D102
        return {each: self._lanes[each].trace.read()[0] for each in lanes}

    def seconds(self, lane: LaneId) -> float:  # noqa: D102
        return self._lanes[lane].seconds

    def retire(self, lanes: Sequence[LaneId]) -> None:  # noqa: D102
        for each in lanes:
            del self._lanes[each]


def initial_model(workload: AnyWorkload, seed: int, device: torch.device) -> nn.Module:
    """The model every trial of a seed starts from.

    Args:
        workload: whose model.
        seed: the training seed.
        device: where it will train; the weights are drawn on the CPU, so that devices start alike.

    Returns:
        A fresh module on the device.
    """
    with GlobalStream(seed, "model", torch.device("cpu")).active():
        model = workload.model()
    return model.to(device)


def _masked_update(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], live: Tensor) -> None:
    """Take the optimizer's step, and put the weights back if the lane is not live (decided on the device)."""
    with torch.no_grad():
        before = [each.clone() for each in parameters]
        optimizer.step()
        for each, old in zip(parameters, before, strict=True):
            each.copy_(torch.where(live, each, old) if each.ndim else torch.where(live[0], each, old))


@contextmanager
def _blaming(lane: _Lane) -> Iterator[None]:
    """Raise an exception of the workload's code as `LaneError`, which names the trial.

    Raises:
        LaneError: if the code raised.
    """
    try:
        yield
    except Exception as error:
        raise LaneError(lane.id.trial_id, lane.id.seed, lane.step, error) from error
