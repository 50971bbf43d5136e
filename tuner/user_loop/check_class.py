"""What a check looks at in a workload's class: seeds, data, loss, gradients, repeatability, and lanes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tuner.errors import SpecError
from tuner.evidence import Reference
from tuner.optimizers import OptimizerSetting
from tuner.parameters import ParameterField
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.auto import AutoEngine
from tuner.training.cohort import Cohort, CohortTrial
from tuner.training.engine import LaneId
from tuner.training.initial import initial_model
from tuner.training.precision import autocast
from tuner.training.probe import measure_reference
from tuner.training.randomness import GlobalStream, data_generator
from tuner.training.solo import SoloEngine
from tuner.user_loop.check import Look
from tuner.user_loop.findings import Finding
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import batch_size, tensors, to_device

#: Batches of a seed that are compared.
_NUM_BATCHES = 3
#: Lanes of the cohort on which ways of training are compared: settings, and steps of a full run.
_NUM_TRIALS, _FULL_RUN = 4, 10_000
#: How far the quotient of a batch's loss and that of half of it may be from 2; half precision rounds to 1 in 256.
_SUM_TOLERANCE = 0.01


class ClassCheck:
    """Looks at one workload.

    Args:
        workload: with its parameters.
        num_steps: of a run.
        device: where to train.

    Attributes:
        solo_per_second: measured on the way; see `tuner.user_loop.findings.Checked`.
        lanes_per_second: likewise.
        data_share: likewise.
    """

    def __init__(self, workload: AnyWorkload, num_steps: int, device: torch.device) -> None:
        self.solo_per_second: float | None = None
        self.lanes_per_second: float | None = None
        self.data_share: float | None = None
        self._workload = workload
        self._num_steps = num_steps
        self._device = device
        self._reference: Reference | None = None
        # The objective of the newest run.
        self._value = 0.0
        workload.device = device

    def looks(self) -> Iterator[Look]:
        """What is looked at, in order."""
        yield "settings", self._settings
        yield "optimizer", self._optimizer
        yield "model", self._model
        yield "batches", self._batches
        yield "held-out data", self._held_out
        yield "loss", self._loss
        yield "objective", self._objective
        yield "repeatable", self._repeatable
        yield "lanes", self._lanes

    def _settings(self) -> Iterator[Finding]:
        self._workload.require_sound()
        fields = self._workload.parameter_fields()
        names = ", ".join(each.name for each in fields) or "none"
        yield Finding(about="parameters", standing="ok", text=names)
        if loose := [each.name for each in fields if _is_loose(each)]:
            yield Finding(
                about="parameters",
                standing="note",
                text=f"without bounds: {', '.join(loose)}",
                remedy="give parameter(...) low and high, so that a study can't ask for nonsense",
            )

    def _optimizer(self) -> Iterator[Finding]:
        given = self._workload.optimizer()
        if not isinstance(given, OptimizerSetting):
            raise SpecError(
                "optimizer()",
                f"must give a setting of tuner.optimizers, got {type(given).__name__}; return for example sgd(lr=0.1), "
                "or CustomOptimizer(function) with a function from parameters to a PyTorch optimizer",
            )
        yield from ()

    def _model(self) -> Iterator[Finding]:
        one, same, other = (self._weights(seed) for seed in (0, 0, 1))
        if not _are_equal(one, same):
            yield Finding(
                about="model",
                standing="fix",
                text="two models under one seed start from different weights",
                remedy="draw initial weights from PyTorch's global generator, not from numpy, random or the clock",
            )
        elif _are_equal(one, other):
            yield Finding(
                about="model",
                standing="note",
                text="every seed starts from the same weights",
                remedy="seeds then differ in their batches alone; right for pretrained weights",
            )
        else:
            count = sum(each.numel() for each in one)
            yield Finding(
                about="model", standing="ok", text=f"{count:,} trainable numbers, weights follow the seed"
            )

    def _weights(self, seed: int) -> list[Tensor]:
        model = initial_model(self._workload, seed, self._device)
        return [each.detach().clone() for each in model.parameters() if each.requires_grad]

    def _batches(self) -> Iterator[Finding]:
        one, same, other = (self._first_batches(seed) for seed in (0, 0, 1))
        if not all(map(_are_equal, one, same)):
            yield Finding(
                about="batches",
                standing="fix",
                text="two runs under one seed get different training batches",
                remedy="draw from the generator that train_batch is given, and from nothing else",
            )
        elif all(map(_are_equal, one, other)):
            is_whole = _are_equal(one[0], one[-1])
            yield Finding(
                about="batches",
                standing="note" if is_whole else "fix",
                text="every seed gets the same training batches"
                + (", the same in each step" if is_whole else ""),
                remedy="right only if a batch is all the data"
                if is_whole
                else "choose examples with the generator that train_batch is given",
            )
        else:
            yield Finding(about="batches", standing="ok", text="batches follow the seed")

    def _first_batches(self, seed: int) -> list[list[Tensor]]:
        generator = data_generator(seed)
        return [_copied(self._workload.train_batch(step, generator)) for step in range(_NUM_BATCHES)]

    def _held_out(self) -> Iterator[Finding]:
        first, second = ([_copied(each) for each in self._workload.validation_batches()] for _ in range(2))
        if not first:
            yield Finding(
                about="held-out data",
                standing="fix",
                text="validation_batches() gives no batch",
                remedy="give held-out batches: without them there is no objective",
            )
        elif len(first) != len(second) or not all(map(_are_equal, first, second)):
            gone = " (the second time there was none)" if not second else ""
            yield Finding(
                about="held-out data",
                standing="fix",
                text=f"validation_batches() is not the same on every call{gone}",
                remedy="give a list of fixed batches, drawn with their own generator; an iterator is read only once",
            )
        else:
            plural = "es" if len(first) > 1 else ""
            yield Finding(
                about="held-out data",
                standing="ok",
                text=f"{len(first)} batch{plural}, the same on every call",
            )

    def _loss(self) -> Iterator[Finding]:
        self._reference = measure_reference(
            self._workload, (0,), num_batches=_NUM_BATCHES, device=self._device
        )
        norms = self._reference.norms
        yield Finding(
            about="loss",
            standing="ok",
            text=f"finite in {self._workload.precision}; gradient norm {norms.median:.3g} at the initial weights",
        )
        if self._is_sum():
            yield Finding(
                about="loss",
                standing="note",
                text="twice the examples give twice the loss, so it is a sum over the batch",
                remedy="take the mean: a threshold then holds for other batch sizes, and held-out batches of different "
                "sizes count by their examples",
            )

    def _is_sum(self) -> bool:
        """Whether a batch with every example twice has twice the loss; False where that can't be tried."""
        model = initial_model(self._workload, 0, self._device).eval()
        batch = to_device(self._workload.train_batch(0, data_generator(0)), self._device)
        # A loss may want a batch of one size, or read more of it than tensors.
        with suppress(Exception):
            twice = _doubled(batch, batch_size(batch))
            one, two = (float(self._called(self._workload.loss, model, each)) for each in (batch, twice))
            return one != 0 and abs(two / one - 2) < _SUM_TOLERANCE
        return False

    def _objective(self) -> Iterator[Finding]:
        if self._workload.has_metric:
            model = initial_model(self._workload, 0, self._device).eval()
            batch = to_device(next(iter(self._workload.validation_batches())), self._device)
            shape = tuple(self._called(self._workload.metric, model, batch).shape)
            if prod(shape) != 1:
                raise SpecError(
                    "metric()", f"must be one number, got shape {shape}; take the mean over the batch"
                )
        yield from ()

    def _called(
        self, function: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: object
    ) -> Tensor:
        """What a function of a model and a batch gives, with the draws of a validation."""
        stream = GlobalStream(0, "validation", self._device)
        with stream.active(), torch.no_grad(), autocast(self._workload.precision, self._device):
            return torch.as_tensor(function(model, batch))

    def _repeatable(self) -> Iterator[Finding]:
        with _timed(self._workload) as spent:
            one, seconds = self._run()
        self.data_share = min(1.0, spent[0] / seconds)
        self.solo_per_second = self._num_steps / seconds
        if not math.isfinite(self._value):
            yield Finding(
                about="objective",
                standing="fix",
                text=f"the objective after {self._num_steps} steps is {self._value}: this counts as diverged",
                remedy="look at the metric on the held-out batches, at the loss and at the learning rate",
            )
        other, _ = self._run()
        if one != other:
            yield Finding(
                about="repeatable",
                standing="fix" if self._device.type == "cpu" else "note",
                text=f"two equal runs of {self._num_steps} steps end in different numbers",
                remedy="look for random numbers from numpy or random, for state that is kept between calls, and for "
                "results that depend on time",
            )
        else:
            yield Finding(
                about="repeatable",
                standing="ok",
                text=f"two runs of {self._num_steps} steps are equal in every bit",
            )

    def _run(self) -> tuple[tuple[object, ...], float]:
        """What a lane without clipping ends with (its record, its value, the bits of its state), and its seconds."""
        cohort = self._cohort(1, self._num_steps)
        engine, lane = SoloEngine(cohort, self._workload, device=self._device), LaneId("0", 0)
        for _ in engine.advance([lane], self._num_steps):
            pass
        state = engine.state()
        bits = () if state is None else tuple(_bits(each) for each in state.tensors.values())
        record, reached = engine.read([lane])[lane], engine.evaluate([lane])[lane]
        self._value = reached.objective
        return (repr(record), repr(reached), bits), max(engine.seconds(lane), 1e-9)

    def _lanes(self) -> Iterator[Finding]:
        engine = AutoEngine(self._cohort(_NUM_TRIALS, _FULL_RUN), self._workload, device=self._device)
        choice = engine.choice
        self.lanes_per_second = choice.lanes_per_second
        self.solo_per_second = choice.solo_per_second or self.solo_per_second
        if choice.path == "lanes":
            yield Finding(
                about="lanes",
                standing="ok",
                text=f"{choice.num_lanes} lanes train as one program: {choice.reason}",
            )
        else:
            yield Finding(about="lanes", standing="note", text=f"solo, one lane at a time: {choice.reason}")

    def _cohort(self, num_trials: int, num_steps: int) -> Cohort:
        norm = self._reference.norms.median if self._reference is not None else 1.0
        settings = [
            OFF_SETTING,
            *(ClipSetting(method="global_norm", threshold=norm / 2**power) for power in range(9)),
        ]
        return Cohort(
            workload=self._workload.name,
            parameters=self._workload.parameter_values,
            trials=tuple(
                CohortTrial(id=str(number), setting=each)
                for number, each in islice(enumerate(settings), num_trials)
            ),
            seeds=(0, 1) if num_trials > 1 else (0,),
            rung_steps=(num_steps,),
            divergence_factor=3.0,
            reference_norm=norm,
        )


@contextmanager
def _timed(workload: AnyWorkload) -> Iterator[list[float]]:
    """Inside the block the seconds that the workload spends on making batches are added up."""
    spent = [0.0]
    train_batch = workload.train_batch

    def timed(step: int, generator: torch.Generator) -> object:
        started = time.perf_counter()
        try:
            return train_batch(step, generator)
        finally:
            spent[0] += time.perf_counter() - started

    vars(workload)["train_batch"] = timed
    try:
        yield spent
    finally:
        del vars(workload)["train_batch"]


def _doubled(batch: object, num_examples: int) -> object:
    """A batch with every example twice: of tensors whose first dimension has another size, each as it is."""
    if isinstance(batch, Tensor):
        return torch.cat([batch, batch]) if batch.ndim and len(batch) == num_examples else batch
    if isinstance(batch, Mapping):
        return {key: _doubled(value, num_examples) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [_doubled(value, num_examples) for value in batch]
        made: object = getattr(type(batch), "_make", type(batch))(values)
        return made
    return batch


def _copied(batch: object) -> list[Tensor]:
    """The tensors of a batch as they are now; the workload may write into them later."""
    return [each.detach().clone() for each in tensors(batch)]


def _are_equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors agree in every bit."""
    return len(one) == len(other) and all(map(_is_same, one, other))


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and _bits(one) == _bits(other)


def _bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy())


def _is_loose(field: ParameterField) -> bool:
    return field.type in ("integer", "number") and (field.low is None or field.high is None)
