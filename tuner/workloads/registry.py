"""The workloads a study may name.

A workload is registered as ``module:Class`` and imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from tuner.errors import UnknownWorkloadError
from tuner.parameters import ParameterValue, WorkloadDescription
from tuner.workloads.base import AnyWorkload

WORKLOADS: Mapping[str, str] = MappingProxyType(
    {
        "charlm-rnn": "tuner.workloads.charlm_rnn:CharlmRnn",
        "digits-mlp": "tuner.workloads.digits_mlp:DigitsMlp",
    }
)


def get_workload(name: str) -> type[AnyWorkload]:
    """The class registered under a name.

    Args:
        name: a key of `WORKLOADS`.

    Returns:
        The workload's class.

    Raises:
        UnknownWorkloadError: if no workload has that name.

    Example:
        >>> get_workload("charlm-rnn").objective
        'val_loss'
    """
    if name not in WORKLOADS:
        raise UnknownWorkloadError(name, WORKLOADS)
    module, _, attribute = WORKLOADS[name].partition(":")
    workload: type[AnyWorkload] = getattr(import_module(module), attribute)
    return workload


def create_workload(name: str, parameters: Mapping[str, ParameterValue]) -> AnyWorkload:
    """A registered workload with some of its parameters set.

    Args:
        name: a key of `WORKLOADS`.
        parameters: values by name; the others keep their defaults.

    Returns:
        The workload.

    Raises:
        UnknownWorkloadError: if no workload has that name.
        SpecError: if a parameter is unknown or out of its bounds.

    Example:
        >>> create_workload("digits-mlp", {"hidden": 8}).parameter_values
        {'hidden': 8, 'batch_size': 64, 'learning_rate': 0.1}
    """
    return get_workload(name).create(parameters)


def describe_workloads() -> tuple[WorkloadDescription, ...]:
    """Every registered workload with its parameters.

    Returns:
        One description per workload, by name.

    Example:
        >>> [each.name for each in describe_workloads()]
        ['charlm-rnn', 'digits-mlp']
    """
    classes = [get_workload(name) for name in sorted(WORKLOADS)]
    return tuple(
        WorkloadDescription(
            name=each.name,
            description=each.description,
            objective=each.objective,
            parameters=each.parameter_fields(),
        )
        for each in classes
    )
