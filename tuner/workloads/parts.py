"""A workload made of parts the caller already holds; see `Workload.of`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from tuner.optimizers import CustomOptimizer, OptimizerSetting
from tuner.workloads.base import BatchT, Workload


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
        self._train = train if callable(train) else _epochs(tuple(train))
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
        return self._train(step, generator)

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


def _epochs(batches: tuple[BatchT, ...]) -> Callable[[int, torch.Generator], BatchT]:
    """Walk through the batches in a random order that depends on the seed and the epoch alone.

    Raises:
        ValueError: if there is no batch.
    """
    if not batches:
        raise ValueError("train must hold at least one batch")

    def batch(step: int, generator: torch.Generator) -> BatchT:
        epoch, position = divmod(step, len(batches))
        return batches[_order(len(batches), generator.initial_seed(), epoch)[position]]

    return batch


@lru_cache(maxsize=64)
def _order(num_batches: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation; it is a function of the seed, so that lanes of one seed agree whoever asks first."""
    generator = torch.Generator().manual_seed((seed + epoch) % 2**63)
    return tuple(torch.randperm(num_batches, generator=generator).tolist())
