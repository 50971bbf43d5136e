"""A training function as a workload: the user's own loop, with its own data, device and optimizer.

The function is given a trial and trains it: it calls ``trial.clip`` where ``clip_grad_norm_`` stood and
``trial.report`` with the objective on held-out data. A function that is registered as it stands is a workload without
parameters that minimizes ``val_loss``; `training_function` says more about it. `tuner.user_loop` trains it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.errors import SpecError
from tuner.parameters import ParameterField, ParameterValue, resolve_parameters
from tuner.workloads.base import Workload

#: Trains one trial under one seed; may return the objective after the last step.
Train = Callable[[Any], float | None]


@dataclass(frozen=True, kw_only=True)
class FunctionWorkload:
    """A training function with its name, its parameters and its objective; calling it calls the function.

    Attributes:
        train: the function; it takes a trial.
        name: as in a study's ``workload``.
        description: one sentence for people.
        objective: name of the number that it reports, to be minimized.
        kind: a frozen dataclass of `tuner.workloads.base.parameter` fields.
        parameters: an instance of that class.
    """

    train: Train
    name: str
    description: str = ""
    objective: str = "val_loss"
    kind: type = Workload.Parameters
    parameters: Any = dataclasses.field(default_factory=Workload.Parameters)

    @classmethod
    def of(
        cls,
        train: Train,
        *,
        name: str | None = None,
        description: str | None = None,
        objective: str = "val_loss",
        parameters: type | None = None,
    ) -> FunctionWorkload:
        """A workload of a function.

        Args:
            train: the function.
            name: None takes the function's.
            description: None takes the first line of its docstring.
            objective: see the class.
            parameters: a frozen dataclass of `tuner.workloads.base.parameter` fields; None is without any.

        Returns:
            The workload, its parameters at their defaults.

        Raises:
            SpecError: if the function does not take exactly one argument, or is a coroutine or a generator.
        """
        called = getattr(train, "__name__", type(train).__name__)
        _require_callable_with_trial(train, called)
        kind = Workload.Parameters if parameters is None else parameters
        found = cls(
            train=train,
            name=name or called,
            description=_first_line(train.__doc__) if description is None else description,
            objective=objective,
            kind=kind,
            parameters=None,
        )
        found.parameter_fields()
        return dataclasses.replace(found, parameters=kind())

    def __call__(self, trial: Any) -> float | None:
        """Train a trial, as the function itself does."""
        return self.train(trial)

    def parameter_fields(self) -> tuple[ParameterField, ...]:
        """The parameters as a study and a JSON schema see them.

        Returns:
            One description per field, in order.

        Raises:
            TypeError: as `tuner.workloads.base.Workload.parameter_fields`.
        """
        carrier: type[Workload[Any]] = type(self.name, (Workload,), {"Parameters": self.kind})
        return carrier.parameter_fields()

    def create(self, given: Mapping[str, ParameterValue]) -> FunctionWorkload:
        """The workload with some of its parameters set.

        Args:
            given: values by name; the others keep their defaults.

        Returns:
            A new instance.

        Raises:
            SpecError: if a name is unknown, a type differs or a bound is passed.
        """
        return dataclasses.replace(
            self, parameters=self.kind(**resolve_parameters(self.parameter_fields(), given))
        )

    @property
    def parameter_values(self) -> dict[str, ParameterValue]:
        """All parameters by name, as plain values."""
        return dataclasses.asdict(self.parameters)


def training_function(
    *,
    name: str | None = None,
    description: str | None = None,
    objective: str = "val_loss",
    parameters: type | None = None,
) -> Callable[[Train], FunctionWorkload]:
    """Say more about a training function than its code does.

    Args:
        name: what a library call shows; a registered function has the name of its registration.
        description: one sentence for people; None takes the first line of the docstring.
        objective: name of the number that the function reports, to be minimized.
        parameters: a frozen dataclass of `tuner.workloads.base.parameter` fields: what a study may set, with bounds.
            The function finds them in ``trial.parameters``.

    Returns:
        A decorator.

    Raises:
        SpecError: if the function does not take exactly one argument.

    Example:
        >>> @training_function(objective="val_error")
        ... def train(trial):
        ...     "A model of mine."
        >>> train.objective, train.description
        ('val_error', 'A model of mine.')
    """

    def described(train: Train) -> FunctionWorkload:
        return FunctionWorkload.of(
            train, name=name, description=description, objective=objective, parameters=parameters
        )

    return described


def _require_callable_with_trial(train: Train, called: str) -> None:
    """Refuse what can't be called as ``train(trial)``.

    Raises:
        SpecError: says what to change.
    """
    if not callable(train):
        raise SpecError(
            "workload", f"must be a workload, the name of one, or a function train(trial), got {train!r}"
        )
    if inspect.iscoroutinefunction(train) or inspect.isgeneratorfunction(train):
        raise SpecError("workload", f"{called!r} must be a plain function: no async def, no yield")
    try:
        inspect.signature(train).bind(object())
    except TypeError:
        raise SpecError(
            "workload",
            f"{called!r} must take exactly one argument, the trial, got {inspect.signature(train)}",
        ) from None


def _first_line(text: str | None) -> str:
    return (inspect.cleandoc(text or "").splitlines() or [""])[0]
