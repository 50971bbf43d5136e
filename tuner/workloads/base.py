"""What a user writes: data, model, loss and optimizer. The training loop owns everything else.

A workload knows nothing of lanes, seeds or clipping. The engine seeds PyTorch's generators before it calls
`model`, hands `train_batch` a generator that depends on the training seed alone, and calls it exactly once per
step, in order. Under one seed every clip setting therefore sees the same weights, data and dropout masks. Only
PyTorch's generators are seeded: draw random numbers from the one you are given.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor, nn

from tuner.optimizers import OptimizerSetting
from tuner.parameters import ParameterField, ParameterValue, resolve_parameters

if TYPE_CHECKING:
    from tuner.workloads.parts import PartsWorkload

#: Any nesting of tensors, each of shape [batch, ...].
BatchT = TypeVar("BatchT")

#: Number format of forward and backward; weights and optimizer states stay as the model has them.
Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def parameter(
    default: ParameterValue,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of a workload's ``Parameters`` with its bounds.

    Args:
        default: the value when a study leaves it out.
        description: a sentence with the unit.
        low: smallest allowed number.
        high: largest allowed number.
        choices: allowed strings.

    Returns:
        What `dataclasses.field` gives; the type is the field's annotation.
    """
    metadata = {
        "description": description,
        "low": low,
        "high": high,
        "choices": None if choices is None else tuple(choices),
    }
    return dataclasses.field(default=default, metadata=metadata)


class Workload(ABC, Generic[BatchT]):
    """One training problem.

    Attributes:
        name: as in a study's ``workload``.
        description: one sentence for people.
        objective: name of the number that is minimized on held-out data, for example ``val_loss``.
        precision: number format of forward and backward: ``fp32``, ``bf16`` or ``fp16`` (with a loss scale per run).
        accumulation_steps: batches whose mean gradient makes one optimizer step, >= 1; clipping sees that mean.
        parameters: this workload's values; an instance of the class's own ``Parameters``.
        device: where the engine trains; it sets this before the first batch. Data that lies there need not be copied
            at every step.
    """

    @dataclass(frozen=True)
    class Parameters:
        """Typed, bounded values a study may set; override with a frozen dataclass of `parameter` fields."""

    name: ClassVar[str] = "custom"
    description: ClassVar[str] = ""
    objective: ClassVar[str] = "val_loss"
    precision: Precision = "fp32"
    accumulation_steps: int = 1
    parameters: Any
    device: torch.device = torch.device("cpu")

    def __init__(self, parameters: object | None = None) -> None:
        self.parameters = type(self).Parameters() if parameters is None else parameters

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model; called once per seed, after the engine has seeded PyTorch's generators."""

    @abstractmethod
    def train_batch(self, step: int, generator: torch.Generator) -> BatchT:
        """The training batch of a step.

        Args:
            step: 0, 1, 2, ... without gaps; with ``accumulation_steps`` n, the batches n * t to n * t + n - 1
                make the optimizer step t.
            generator: on the CPU; seeded from the training seed alone.

        Returns:
            Any nesting of tensors, each of shape [batch, ...].
        """

    @abstractmethod
    def validation_batches(self) -> Iterable[BatchT]:
        """The held-out data, the same on every call and disjoint from the training data."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: BatchT) -> Tensor:
        """Scalar loss, mean over the batch."""

    def metric(self, model: nn.Module, batch: BatchT) -> Tensor:
        """Scalar objective on a held-out batch, mean over the batch, to be minimized; the loss by default."""
        return self.loss(model, batch)

    @abstractmethod
    def optimizer(self) -> OptimizerSetting:
        """What to train with, for example ``sgd(lr=self.parameters.learning_rate)``."""

    def require_sound(self) -> None:
        """Check what a subclass may set.

        Raises:
            ValueError: if ``precision`` or ``accumulation_steps`` is out of its bounds.
        """
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise ValueError(f"precision must be one of {known}, got {self.precision!r}")
        if self.accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be >= 1, got {self.accumulation_steps}")

    @property
    def has_metric(self) -> bool:
        """Whether the objective is something else than the loss."""
        return type(self).metric is not Workload.metric

    @classmethod
    def parameter_fields(cls) -> tuple[ParameterField, ...]:
        """The fields of ``Parameters`` as a study and a JSON schema see them.

        Returns:
            One description per field, in order.

        Raises:
            TypeError: if ``Parameters`` is not a dataclass, or a field is not int, float, str or bool,
                or has no default.
        """
        if not dataclasses.is_dataclass(cls.Parameters):
            raise TypeError(f"{cls.__name__}.Parameters must be a frozen dataclass")
        hints = get_type_hints(cls.Parameters)
        fields = []
        for each in dataclasses.fields(cls.Parameters):
            if hints[each.name] not in _TYPES:
                raise TypeError(
                    f"{cls.__name__}.Parameters.{each.name} must be int, float, str or bool, "
                    f"got {hints[each.name]}"
                )
            if each.default is dataclasses.MISSING:
                raise TypeError(f"{cls.__name__}.Parameters.{each.name} needs a default")
            known = {
                key: each.metadata[key]
                for key in ("description", "low", "high", "choices")
                if key in each.metadata
            }
            fields.append(
                ParameterField(name=each.name, type=_TYPES[hints[each.name]], default=each.default, **known)
            )
        return tuple(fields)

    @classmethod
    def create(cls, given: Mapping[str, ParameterValue]) -> Workload[BatchT]:
        """The workload with some of its parameters set.

        Args:
            given: values by name; the others keep their defaults.

        Returns:
            A new instance.

        Raises:
            SpecError: if a name is unknown, a type differs or a bound is passed.
        """
        return cls(cls.Parameters(**resolve_parameters(cls.parameter_fields(), given)))

    @property
    def parameter_values(self) -> dict[str, ParameterValue]:
        """All parameters by name, as plain values."""
        return dataclasses.asdict(self.parameters)

    @staticmethod
    def of(
        *,
        model: nn.Module | Callable[[], nn.Module],
        train: Iterable[BatchT] | Callable[[int, torch.Generator], BatchT],
        validation: Iterable[BatchT],
        loss: Callable[[nn.Module, BatchT], Tensor],
        optimizer: OptimizerSetting | Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        metric: Callable[[nn.Module, BatchT], Tensor] | None = None,
        precision: Precision = "fp32",
        accumulation_steps: int = 1,
    ) -> PartsWorkload[BatchT]:
        """A workload from parts you already hold, without a class.

        Args:
            model: a function that makes a fresh module, or a module, which is copied for every run (so that all
                seeds start from its weights).
            train: batches (a list or a ``DataLoader``, read once and kept in memory), taken in a new random order
                every epoch; or a function of step and generator, as `train_batch`.
            validation: held-out batches, read once and kept in memory.
            loss: as the method `loss`.
            optimizer: for example ``sgd(lr=0.1)``, or a function from parameters to a PyTorch optimizer.
            metric: as the method `metric`.
            precision: see `Workload`.
            accumulation_steps: see `Workload`.

        Returns:
            The workload, for `tuner.tune`.

        Raises:
            ValueError: if ``precision`` or ``accumulation_steps`` is out of its bounds.
        """
        from tuner.workloads.parts import PartsWorkload

        made = PartsWorkload(
            model=model, train=train, validation=validation, loss=loss, optimizer=optimizer, metric=metric
        )
        made.precision, made.accumulation_steps = precision, accumulation_steps
        made.require_sound()
        return made


#: A workload whose batches are its own business: what the engine handles.
AnyWorkload = Workload[Any]
