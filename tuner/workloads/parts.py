"""A workload made of parts the caller already holds; see `Workload.of`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from tuner.optimizers import CustomOptimizer, OptimizerSetting
from tuner.workloads.base import BatchT, Workload
from tuner.workloads.batches import to_device


class PartsWorkload(Workload[BatchT]):
    """Model, data, loss and optimizer as they were handed to `Workload.of`."""

    def __init__(
        self,
        *,
        model: nn.Module | Callable[[], nn.Module],
        train: Iterable[BatchT] | Callable[[int, torch.Generator], BatchT],
        validation: Iterable[BatchT],
        loss: Callable[[nn.Module, BatchT], Tensor],
        optimizer: OptimizerSetting | Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        metric: Callable[[nn.Module, BatchT], Tensor] | None,
    ) -> None:
        super().__init__()
        self._model = model
        self._function = train if callable(train) else None
        self._batches: tuple[BatchT, ...] = () if callable(train) else tuple(train)
        if self._function is None and not self._batches:
            raise ValueError("train must hold at least one batch")
        self._resident = self.device
        self._validation = tuple(validation)
        if not self._validation:
            raise ValueError("validation must hold at least one batch")
        self._loss = loss
        self._optimizer = optimizer if isinstance(optimizer, OptimizerSetting) else CustomOptimizer(optimizer)
        self._metric = metric

    def model(self) -> nn.Module:  # noqa: D102
        if isinstance(self._model, nn.Module):
            return copy.deepcopy(self._model)
        return self._model()

    def train_batch(self, step: int, generator: torch.Generator) -> BatchT:  # noqa: D102
        if self._function is not None:
            return self._function(step, generator)
        if self._resident != self.device:
            self._batches = tuple(to_device(batch, self.device) for batch in self._batches)
            self._resident = self.device
        epoch, position = divmod(step, len(self._batches))
        return self._batches[_order(len(self._batches), generator.initial_seed(), epoch)[position]]

    def validation_batches(self) -> Iterable[BatchT]:  # noqa: D102
        return self._validation

    def loss(self, model: nn.Module, batch: BatchT) -> Tensor:  # noqa: D102
        return self._loss(model, batch)

    def metric(self, model: nn.Module, batch: BatchT) -> Tensor:  # noqa: D102
        return (self._metric or self._loss)(model, batch)

    def optimizer(self) -> OptimizerSetting:  # noqa: D102
        return self._optimizer

    @property
    def has_metric(self) -> bool:  # noqa: D102
        return self._metric is not None


@lru_cache(maxsize=64)
def _order(num_batches: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation; it is a function of the seed, so that lanes of one seed agree whoever asks first."""
    generator = torch.Generator().manual_seed((seed + epoch) % 2**63)
    return tuple(torch.randperm(num_batches, generator=generator).tolist())
