"""A function of another module with some of its global names bound to something else."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def rebind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A copy of a plain Python function that finds other things under some global names.

    For functions of `torch.nn.functional` that do the right thing except for one call they make. The original
    and its module stay as they are, unlike with a patch, which every thread would see. A copy never hands
    itself to a function mode: it already is what a mode chose.

    Args:
        function: defined by ``def``; its module's names are copied now.
        names: what the copy finds under these names.

    Returns:
        The copy.

    Raises:
        TypeError: if the function is not written in Python.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> import torch.nn.functional as F
        >>> halve = rebind(F.dropout, _VF=SimpleNamespace(dropout=lambda x, p, train: x * p))
        >>> halve(torch.ones(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"only a function written in Python can be rebound, got {function!r}")
    never = dict.fromkeys(_MODE_CHECKS, _never)
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **never, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__doc__ = function.__doc__
    return copy


_MODE_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _never(*_: Any) -> bool:
    return False
