"""What to train: the `Workload` interface, training functions, the built-in workloads and the registry.

Each name is imported when it is first used, so that reading the registry loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.workloads.base import AnyWorkload as AnyWorkload
    from tuner.workloads.base import Workload as Workload
    from tuner.workloads.base import parameter as parameter
    from tuner.workloads.function import FunctionWorkload as FunctionWorkload
    from tuner.workloads.function import training_function as training_function
    from tuner.workloads.registry import WORKLOADS as WORKLOADS
    from tuner.workloads.registry import Registry as Registry
    from tuner.workloads.registry import create_workload as create_workload
    from tuner.workloads.registry import describe_workloads as describe_workloads
    from tuner.workloads.registry import get_workload as get_workload

_HOME = {
    "AnyWorkload": "base",
    "FunctionWorkload": "function",
    "Registry": "registry",
    "WORKLOADS": "registry",
    "Workload": "base",
    "create_workload": "registry",
    "describe_workloads": "registry",
    "get_workload": "registry",
    "parameter": "base",
    "training_function": "function",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
