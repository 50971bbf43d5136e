"""Import what is registered: a name becomes a workload's class, or a training function.

The training process does this, when workloads are described or first used; what can't be used is told with its reason
and hides no other. Importing this module loads no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tuner.errors import SpecError, UnknownWorkloadError
from tuner.parameters import ParameterValue, WorkloadDescription
from tuner.workloads.registrations import BUILT_IN, RefusedWorkload, Registrations

if TYPE_CHECKING:
    from tuner.workloads.base import AnyWorkload
    from tuner.workloads.function import FunctionWorkload

#: The built-in workloads as ``module:Class`` by name.
WORKLOADS: Mapping[str, str] = MappingProxyType({each.name: each.target for each in BUILT_IN})


class Described(NamedTuple):
    """What registered workloads say of themselves.

    Attributes:
        workloads: descriptions of those that can be used.
        refused: those that can't.
    """

    workloads: tuple[WorkloadDescription, ...]
    refused: tuple[RefusedWorkload, ...]


@dataclass(frozen=True)
class Registry:
    """The code behind registrations.

    Attributes:
        registrations: of this installation.
    """

    registrations: Registrations

    def get(self, name: str) -> type[AnyWorkload] | FunctionWorkload:
        """The code that is registered under a name.

        Args:
            name: of a registration.

        Returns:
            A workload's class, or a training function.

        Raises:
            UnknownWorkloadError: if nothing is registered under it.
            SpecError: if its module can't be imported, or the attribute is no workload; it says why.
        """
        found = self.registrations.find(name)
        if found is None:
            raise UnknownWorkloadError(name, (each.name for each in self.registrations))
        if found.fault is not None:
            raise SpecError("workload", f"{name!r} can't be used: {found.fault}")
        cause: BaseException | None = None
        try:
            return _usable(_imported(found.target), name)
        except _UnusableError as error:
            reason = str(error)
        except Exception as error:
            reason, cause = f"{type(error).__name__}: {error}", error
        except SystemExit as error:
            # A script without a main guard: it must not take this process with it.
            reason, cause = (
                "it ends the program when it is imported; put that under if __name__ == '__main__'",
                error,
            )
        raise SpecError("workload", f"{name!r} can't be used: {found}: {reason}") from cause

    def create(self, name: str, parameters: Mapping[str, ParameterValue]) -> AnyWorkload | FunctionWorkload:
        """A registered workload with some of its parameters set.

        Args:
            name: of a registration.
            parameters: values by name; the others keep their defaults.

        Returns:
            The workload.

        Raises:
            UnknownWorkloadError: if nothing is registered under the name.
            SpecError: if the registered code can't be used, or a parameter is unknown or out of its bounds.
        """
        return self.get(name).create(parameters)

    def describe(self) -> Described:
        """What every registered workload says of itself; one that can't be used hides no other.

        Returns:
            Descriptions and refusals, both by name.
        """
        described, refused = [], []
        for each in self.registrations:
            try:
                described.append(_described(each.name, self.get(each.name)))
            except Exception as error:
                reason = error.reason if isinstance(error, SpecError) else f"{type(error).__name__}: {error}"
                refused.append(RefusedWorkload(name=each.name, target=each.target, reason=reason[:2000]))
        return Described(tuple(described), tuple(refused))


class _UnusableError(Exception):
    """What is registered is no workload; the message says why."""


def get_workload(name: str) -> type[AnyWorkload]:
    """The class of a built-in workload.

    Args:
        name: a key of `WORKLOADS`.

    Returns:
        The workload's class.

    Raises:
        UnknownWorkloadError: if no built-in workload has that name.

    Example:
        >>> get_workload("charlm-rnn").objective
        'val_loss'
    """
    if name not in WORKLOADS:
        raise UnknownWorkloadError(name, WORKLOADS)
    workload: type[AnyWorkload] = _imported(WORKLOADS[name])
    return workload


def create_workload(name: str, parameters: Mapping[str, ParameterValue]) -> AnyWorkload:
    """A built-in workload with some of its parameters set.

    Args:
        name: a key of `WORKLOADS`.
        parameters: values by name; the others keep their defaults.

    Returns:
        The workload.

    Raises:
        UnknownWorkloadError: if no built-in workload has that name.
        SpecError: if a parameter is unknown or out of its bounds.

    Example:
        >>> create_workload("digits-mlp", {"hidden": 8}).parameter_values
        {'hidden': 8, 'batch_size': 64, 'learning_rate': 0.1}
    """
    return get_workload(name).create(parameters)


def describe_workloads() -> tuple[WorkloadDescription, ...]:
    """Every built-in workload with its parameters.

    Returns:
        One description per workload, by name.

    Example:
        >>> [each.name for each in describe_workloads()]
        ['charlm-rnn', 'digits-mlp']
    """
    return Registry(BUILT_IN).describe().workloads


def _imported(target: str) -> Any:
    """What a ``module:attribute`` names."""
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found


def _usable(found: Any, name: str) -> type[AnyWorkload] | FunctionWorkload:
    """A workload's class as it is, a training function as a workload.

    Raises:
        _UnusableError: if it is neither.
    """
    from tuner.workloads.base import Workload
    from tuner.workloads.function import FunctionWorkload

    if isinstance(found, type) and issubclass(found, Workload):
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise _UnusableError(f"the class still lacks {missing}")
        return found
    if isinstance(found, FunctionWorkload):
        return found
    if inspect.isfunction(found):
        return FunctionWorkload.of(found, name=name)
    raise _UnusableError(
        f"it is {'the class' if isinstance(found, type) else 'of type'} "
        f"{found.__name__ if isinstance(found, type) else type(found).__name__}; register a subclass of "
        "tuner.Workload, or a function train(trial)"
    )


def _described(name: str, found: type[AnyWorkload] | FunctionWorkload) -> WorkloadDescription:
    from tuner.workloads.function import FunctionWorkload

    return WorkloadDescription(
        name=name,
        description=found.description,
        objective=found.objective,
        parameters=found.parameter_fields(),
        is_function=isinstance(found, FunctionWorkload),
    )
