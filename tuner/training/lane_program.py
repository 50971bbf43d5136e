"""A workload's loss and gradient for a whole lane batch, as one recorded program per shape.

The user's model runs unchanged under two nested vmaps: the outer one over seeds (each with its own batch), the
inner one over the trials of a seed, which share batch and random numbers. Gradients are taken outside of vmap,
so backward needs no batching rules. All of it is recorded once per shape (`tuner.training.tracing`).

Shape letters: L = lanes = S seeds x K trials, row s * K + k; P = trainable parameters of one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tuner.functions import LaneFunctions
from tuner.lanes import Layout, trainable
from tuner.training.not_batchable import NotBatchableError
from tuner.training.precision import autocast
from tuner.training.stacking import Nesting, Stacked
from tuner.training.streams import SeedStreams
from tuner.training.tracing import Recorded, are_alike, record
from tuner.workloads.base import AnyWorkload, Precision

#: A workload whose batches have more shapes than this is trained one lane at a time.
MAX_SHAPES = 32
#: Programs kept at most, over all shapes and numbers of lanes.
MAX_PROGRAMS = 128

Tensors = dict[str, Tensor]
#: ``function(model, batch)``, a scalar.
LossFunction = Callable[[nn.Module, Any], Tensor]


class LossModule(nn.Module):
    """A function of model and batch as the forward of a module, so that `functional_call` reaches the model."""

    def __init__(self, model: nn.Module, function: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, batch: Any) -> Tensor:
        """The function's value, shape ().

        Raises:
            NotBatchableError: if it is not one number.
        """
        before = dict(self.model.named_buffers())
        loss = self._function(self.model, batch)
        for name, buffer in self.model.named_buffers():
            if buffer is not before[name]:
                # Replaced instead of written: what is passed in would never learn of it.
                before[name].copy_(buffer)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise NotBatchableError(f"the loss must be one number, got {shape}: take the mean over the batch")
        return loss.reshape(())


class LanePrograms:
    """The recorded programs of a workload.

    Args:
        workload: gives loss and metric.
        models: the initial model of every seed, on the device; the first one's code is what runs.
        precision: number format of forward and backward.
        compiles: whether programs are compiled with torch.compile.

    Attributes:
        model: the module whose code runs; its own parameters and buffers are not used.
        layout: of a lane's row.
        num_seeds: S.
        precision: see above.
    """

    def __init__(
        self,
        workload: AnyWorkload,
        models: Sequence[nn.Module],
        *,
        precision: Precision,
        compiles: bool = False,
    ) -> None:
        self._workload = workload
        self.model = models[0]
        self.precision = precision
        self._compiles = compiles
        self._device = next(models[0].parameters()).device
        self._frozen, self._frozen_axes = _frozen(models)
        self._programs: dict[object, Recorded] = {}
        self._nestings: set[tuple[str, Nesting]] = set()
        self.layout = Layout.of(trainable(self.model).items())
        self.num_seeds = len(models)

    @property
    def num_draws(self) -> int:
        """Random operations in the recorded programs."""
        return sum(program.num_draws for program in self._programs.values())

    def losses_and_gradients(
        self, weights: Tensor, buffers: Tensors, batch: Stacked, streams: SeedStreams, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One forward and backward of every lane; buffers (running statistics) are updated in place.

        Args:
            weights: shape (L, P).
            buffers: each of shape (L, ...).
            batch: of all seeds.
            streams: the seeds' training streams.
            scale: what each loss is multiplied by before the gradient is taken, shape (L,); None for 1.

        Returns:
            Losses without the scale, shape (L,), and gradients with it, shape (L, P).

        Raises:
            NotBatchableError: if the workload can't be batched.
        """
        args = (weights, buffers, self._frozen, batch.tensors, scale)
        kind = "train" if scale is None else "train scaled"
        program = self._find(kind, weights, batch.nesting, lambda: self._train_function(batch), args)
        losses, grads = program(streams, *args)
        return losses, grads

    def values(
        self,
        name: str,
        function: LossFunction,
        weights: Tensor,
        buffers: Tensors,
        batch: Stacked,
        streams: SeedStreams,
    ) -> Tensor:
        """A function of model and batch for every lane, in evaluation mode, without gradients.

        Args:
            name: ``loss`` or ``metric``.
            function: the workload's.
            weights: shape (L, P).
            buffers: each of shape (L, ...).
            batch: shared by all seeds.
            streams: the seeds' validation streams.

        Returns:
            Shape (L,), float64.

        Raises:
            NotBatchableError: if the function can't be batched.
        """
        args = (weights, buffers, self._frozen, batch.tensors)
        program = self._find(
            f"evaluate {name}", weights, batch.nesting, lambda: self._value_function(function, batch), args
        )
        result: Tensor = program(streams, *args)
        return result

    def frozen_of(self, seed: int) -> Tensors:
        """The parameters without a gradient of one seed, by its position."""
        return {
            name: each if self._frozen_axes[name] is None else each[seed]
            for name, each in self._frozen.items()
        }

    def is_reproducible(self, weights: Tensor, buffers: Tensors, batch: Stacked) -> bool:
        """Whether recording the training program again gives the program that runs."""
        args = (weights, buffers, self._frozen, batch.tensors, None)
        key = ("train", len(weights), batch.nesting)
        for _ in range(2):
            again = self._record(lambda: self._train_function(batch), args, trains=True)
            if are_alike(self._programs[key], again):
                return True
            # The first recording may have filled a cache of the model's.
            self._programs[key] = again
        return False

    def _find(
        self,
        kind: str,
        weights: Tensor,
        nesting: Nesting,
        make: Callable[[], Callable[..., Any]],
        args: tuple[Any, ...],
    ) -> Recorded:
        key = (kind, len(weights), nesting)
        if key not in self._programs:
            self._nestings.add((kind.partition(" ")[0], nesting))
            if len(self._nestings) > MAX_SHAPES:
                raise NotBatchableError(
                    f"the batches have more than {MAX_SHAPES} different shapes: pad them to a few"
                )
            while len(self._programs) >= MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            program = self._record(make, args, trains=kind.startswith("train"))
            if self._compiles:
                program.compile()
            self._programs[key] = program
        # The last one used is the last to be forgotten.
        self._programs[key] = found = self._programs.pop(key)
        return found

    def _record(
        self, make: Callable[[], Callable[..., Any]], args: tuple[Any, ...], *, trains: bool
    ) -> Recorded:
        self.model.train(trains)
        # Recording runs the code once: neither weights nor running statistics may notice.
        weights, buffers, *rest = args
        copies = {name: each.clone() for name, each in buffers.items()}
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), LaneFunctions():
            return record(make(), weights.clone(), copies, *rest)

    def _lanewise(self, function: LossFunction, batch: Stacked, *, per_seed: bool) -> Callable[..., Tensor]:
        """``function(views, buffers, frozen, tensors)`` for all lanes: shapes (S, K, ...) in, (S, K) out."""
        module = LossModule(self.model, function)

        def lane(views: Tensors, buffers: Tensors, frozen: Tensors, tensors: list[Tensor]) -> Tensor:
            values = {f"model.{name}": each for name, each in (views | buffers | frozen).items()}
            with autocast(self.precision, self._device):
                loss: Tensor = functional_call(module, values, (batch.rebuild(tensors),))
            return loss

        data = 0 if per_seed else None
        trials = vmap(lane, in_dims=(0, 0, None, None), randomness="same")
        return vmap(trials, in_dims=(0, 0, self._frozen_axes, data), randomness="different")

    def _train_function(self, batch: Stacked) -> Callable[..., tuple[Tensor, Tensor]]:
        lanewise = self._lanewise(self._workload.loss, batch, per_seed=True)

        def train(
            weights: Tensor, buffers: Tensors, frozen: Tensors, tensors: list[Tensor], scale: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                # Leaves of their own: a slice of one leaf would make backward fill a whole matrix per tensor.
                views = {name: each.detach().requires_grad_() for name, each in self._views(weights).items()}
                losses = lanewise(views, self._stacked(buffers), frozen, tensors).reshape(-1)
                total = losses.sum() if scale is None else (losses * scale.to(losses.dtype)).sum()
                found = torch.autograd.grad(total, list(views.values()), allow_unused=True)
            grads = {
                name: (torch.zeros_like(view) if grad is None else grad).flatten(0, 1)
                for (name, view), grad in zip(views.items(), found, strict=True)
            }
            return losses.detach().to(weights.dtype), self.layout.matrix(grads)

        return train

    def _value_function(self, function: LossFunction, batch: Stacked) -> Callable[..., Tensor]:
        lanewise = self._lanewise(function, batch, per_seed=False)

        def values(weights: Tensor, buffers: Tensors, frozen: Tensors, tensors: list[Tensor]) -> Tensor:
            with torch.no_grad():
                found = lanewise(self._views(weights), self._stacked(buffers), frozen, tensors)
            return found.reshape(-1).double()

        return values

    def _views(self, weights: Tensor) -> Tensors:
        return self.layout.views(weights, (self.num_seeds, len(weights) // self.num_seeds))

    def _stacked(self, buffers: Mapping[str, Tensor]) -> Tensors:
        return {name: each.view(self.num_seeds, -1, *each.shape[1:]) for name, each in buffers.items()}


def _frozen(models: Sequence[nn.Module]) -> tuple[Tensors, dict[str, int | None]]:
    """Parameters without a gradient, and their seed axis: None where all seeds have the same and share it."""
    named = [{n: each for n, each in model.named_parameters() if not each.requires_grad} for model in models]
    tensors: Tensors = {}
    axes: dict[str, int | None] = {}
    for name, first in named[0].items():
        is_shared = all(torch.equal(first, other[name]) for other in named[1:])
        tensors[name] = (
            first.detach() if is_shared else torch.stack([other[name].detach() for other in named])
        )
        axes[name] = None if is_shared else 0
    return tensors, axes
