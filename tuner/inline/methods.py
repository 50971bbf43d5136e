"""How each method clips the gradients of an ordinary loop, in place; nothing is copied, nothing read back to the host.

The methods that PyTorch has functions for do what those do; the others are the clippers that trained a study's lanes,
on norms instead of gradients.

A method's *facts* are the few 0-dim tensors that a step leaves behind; what they mean is worked out when somebody
looks, for one step or for a stack of N: recording a step of *global_norm* takes no kernel at all.

Shape letters: N = steps, or nothing for a single one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import inf
from operator import is_
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from tuner.clippers import clipper_class
from tuner.clippers.base import EPSILON, Clipper, ClipState
from tuner.inline.errors import ClipperStateError, ParametersChangedError
from tuner.inline.groups import (
    Groups,
    TensorGroups,
    UnitGroups,
    WholeGroup,
    grads_of,
    largest_element,
    total_norm,
)
from tuner.spec import ClipSetting


class ClipOutcome(NamedTuple):
    """What one call did, or N calls; tensors on the gradients' device, 0-dim or of shape (N,).

    Attributes:
        norm: L2 gradient norm before clipping.
        clipped_norm: L2 gradient norm after clipping.
        scale: norm after clipping / norm before, in [0, 1]; 1 where the gradient was left alone, 0 where skipped.
        clipped: bool; scaled, clamped or skipped.
        skipped: bool; the optimizer's step is not to be taken.
        finite: bool; the norm is finite. A gradient whose norm is not is left as it is.
    """

    norm: Tensor
    clipped_norm: Tensor
    scale: Tensor
    clipped: Tensor
    skipped: Tensor
    finite: Tensor


#: What a step leaves behind, 0-dim tensors; the gradient norm before clipping first.
Facts = tuple[Tensor, ...]


class InlineMethod(ABC):
    """A clip setting for gradients that lie in ``.grad``."""

    #: Whether `ClipOutcome.skipped` can be True.
    can_skip = False

    @abstractmethod
    def clip(self, parameters: Sequence[Tensor], loss: Tensor | None) -> Facts:
        """Clip the gradients in place.

        Args:
            parameters: all of the step's; those without a gradient stay without.
            loss: the step's loss, one number.

        Returns:
            The facts of the step.
        """

    @abstractmethod
    def outcome(self, facts: Facts) -> ClipOutcome:
        """What the facts of one step, or of N, say."""

    def state(self) -> Mapping[str, Tensor]:
        """What the method remembers between steps; empty for a method without memory."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Args:
            state: of the same method.

        Raises:
            ClipperStateError: if the method has no memory, and the state has.
        """
        if state:
            raise ClipperStateError(f"the method remembers nothing, got {', '.join(sorted(state))}")


@final
class NormMethod(InlineMethod):
    """*none* and *global_norm*: the whole gradient times ``min(1, max_norm / (norm + 1e-6))``.

    Bit for bit ``clip_grad_norm_``, but for a norm that is not finite: PyTorch multiplies by 0 or NaN, here the
    gradient is left as it is, so that whoever looks at it sees what happened.

    Args:
        max_norm: > 0; ``inf`` never clips.
    """

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def clip(self, parameters: Sequence[Tensor], loss: Tensor | None) -> Facts:  # noqa: D102
        del loss
        grads = grads_of(parameters)
        norm = total_norm(grads, parameters)
        if grads and self._max_norm < inf:
            _scale(grads, self._max_norm, norm)
        return (norm,)

    def outcome(self, facts: Facts) -> ClipOutcome:  # noqa: D102
        return _limited(facts[0], facts[0], self._max_norm)


@final
class LargestElementMethod(InlineMethod):
    """*global_norm_inf*: the whole gradient scaled so that its largest element is at most ``max_norm``."""

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def clip(self, parameters: Sequence[Tensor], loss: Tensor | None) -> Facts:  # noqa: D102
        del loss
        grads = grads_of(parameters)
        norm, largest = total_norm(grads, parameters), largest_element(grads, parameters)
        if grads:
            _scale(grads, self._max_norm, largest, norm)
        return norm, largest

    def outcome(self, facts: Facts) -> ClipOutcome:  # noqa: D102
        return _limited(facts[0], facts[1], self._max_norm)


@final
class ValueMethod(InlineMethod):
    """*value*: every element clamped to ``[-clip_value, clip_value]``; a gradient that is not finite is left alone."""

    def __init__(self, clip_value: float) -> None:
        self._clip_value = clip_value

    def clip(self, parameters: Sequence[Tensor], loss: Tensor | None) -> Facts:  # noqa: D102
        del loss
        grads = grads_of(parameters)
        norm, largest = total_norm(grads, parameters), largest_element(grads, parameters)
        # Clamping to an infinite bound changes no bit.
        bound = torch.where(norm < inf, self._clip_value, inf)
        if grads:
            torch._foreach_clamp_max_(grads, [bound.to(each.dtype) for each in grads])
            torch._foreach_clamp_min_(grads, [-bound.to(each.dtype) for each in grads])
        return norm, largest, total_norm(grads, parameters)

    def outcome(self, facts: Facts) -> ClipOutcome:  # noqa: D102
        norm, largest, after = facts
        return _measured(norm, after, (largest > self._clip_value) & norm.isfinite())


@final
class ReducedMethod(InlineMethod):
    """Every other method, by the clipper that trained a study's lanes, on a row of norms instead of gradients.

    These methods look at norms, and multiply: the whole gradient, its tensors or its output units. A row with one
    number per group, the group's norm, has the same norms as the gradients themselves; what becomes of the row's
    numbers becomes of the groups. So nothing of the model's size is copied.

    Args:
        setting: what to do.
        reference_norm: see `tuner.clippers.create_clipper`.
        constants: the method's other constants.
    """

    def __init__(
        self, setting: ClipSetting, *, reference_norm: float | None, constants: Mapping[str, Any]
    ) -> None:
        self.can_skip = setting.method == "skip_step"
        self._setting = setting
        self._threshold = inf if setting.threshold is None else setting.threshold
        self._options = {"reference_norm": reference_norm, **constants}
        self._groups = _GROUPS.get(setting.method, WholeGroup)()
        self._clipper: Clipper | None = None
        # Held, so that their ids stay theirs.
        self._parameters: list[Tensor] = []
        self._state: ClipState = {}

    def clip(self, parameters: Sequence[Tensor], loss: Tensor | None) -> Facts:  # noqa: D102
        taken = taking_part(parameters)
        if not taken:
            raise ValueError("there is nothing to clip: no parameter requires a gradient")
        row = self._groups.norms(taken)
        clipper = self._clipper_of(taken, row)
        told = torch.zeros((1,), device=row.device) if loss is None else loss.to(row.device).reshape(1)
        weights = self._groups.weight_norms(taken, row)
        result = clipper.clip(row, self._state, weights=weights, loss=told)
        self._state = result.state
        if not self.can_skip:
            self._groups.scale(taken, row, result)
        return result.norm[0], result.scale[0], result.clipped[0], result.skipped[0]

    def outcome(self, facts: Facts) -> ClipOutcome:  # noqa: D102
        norm, scale, clipped, skipped = facts
        return ClipOutcome(norm, norm * scale, scale, clipped, skipped, norm.isfinite())

    def state(self) -> Mapping[str, Tensor]:  # noqa: D102
        return {name: rows.clone() for name, rows in self._state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        if self._clipper is not None:
            _require_alike(self._state, state)
            # A checkpoint may lie on another device than the gradients.
            self._state = {name: state[name].to(rows, copy=True) for name, rows in self._state.items()}
            return
        self._state = {name: rows.clone() for name, rows in state.items()}

    def _clipper_of(self, taken: list[Tensor], row: Tensor) -> Clipper:
        """The clipper of these parameters; the first call makes it, and other ones if the method has no memory.

        Raises:
            ParametersChangedError: if it has, and these are other parameters.
        """
        is_same = len(taken) == len(self._parameters) and all(map(is_, taken, self._parameters))
        if self._clipper is not None and is_same:
            return self._clipper
        if self._clipper is not None and self._state:
            raise ParametersChangedError(str(self._setting))
        thresholds = torch.tensor([self._threshold], dtype=torch.float64, device=row.device)
        clipper = clipper_class(self._setting.method)(thresholds, self._groups.layout(taken), **self._options)
        initial = clipper.initial_state(row)
        if self._state:
            # A state that was loaded before it was known how many parameters there are.
            _require_alike(initial, self._state)
            initial = {name: self._state[name].to(rows) for name, rows in initial.items()}
        self._clipper, self._parameters, self._state = clipper, taken, initial
        return clipper


_IN_PLACE: Mapping[str, type[NormMethod | LargestElementMethod | ValueMethod]] = {
    "global_norm": NormMethod,
    "global_norm_inf": LargestElementMethod,
    "value": ValueMethod,
}
_GROUPS: Mapping[str, type[Groups]] = {
    "per_tensor_norm": TensorGroups,
    "adagc": TensorGroups,
    "agc": UnitGroups,
}


def inline_method(
    setting: ClipSetting, *, reference_norm: float | None, constants: Mapping[str, Any]
) -> InlineMethod:
    """How to do what a setting says.

    Args:
        setting: any setting.
        reference_norm: median gradient norm that a probe measured, or None; only methods with constants of that scale
            look at it.
        constants: the method's other constants, checked.

    Returns:
        The method, without any step yet.
    """
    if setting.threshold is None:
        return NormMethod(inf)
    if setting.method in _IN_PLACE:
        return _IN_PLACE[setting.method](setting.threshold)
    return ReducedMethod(setting, reference_norm=reference_norm, constants=constants)


def taking_part(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parameters that require a gradient or have one."""
    return [each for each in parameters if each.requires_grad or each.grad is not None]


def _require_alike(expected: ClipState, given: Mapping[str, Tensor]) -> None:
    shapes = [{name: tuple(rows.shape) for name, rows in each.items()} for each in (expected, given)]
    if shapes[0] != shapes[1]:
        raise ClipperStateError(f"what the method remembers has shapes {shapes[1]}, expected {shapes[0]}")


def _scale(grads: list[Tensor], max_norm: float, compared: Tensor, norm: Tensor | None = None) -> None:
    """Multiply by ``min(1, max_norm / (compared + 1e-6))``, by exactly 1 if the norm is not finite."""
    factor = torch.clamp(max_norm / (compared + EPSILON), max=1.0)
    # A norm is never negative, and NaN is not below anything: one comparison asks whether it is finite.
    finite = (compared if norm is None else norm) < inf
    torch._foreach_mul_(grads, torch.where(finite, factor, 1.0))


def _limited(norm: Tensor, compared: Tensor, max_norm: float) -> ClipOutcome:
    padded, finite = compared + EPSILON, norm.isfinite()
    clipped = (padded > max_norm) & finite
    scale = torch.where(clipped, max_norm / padded, 1.0)
    return ClipOutcome(norm, norm * scale, scale, clipped, torch.zeros_like(clipped), finite)


def _measured(norm: Tensor, after: Tensor, clipped: Tensor) -> ClipOutcome:
    # Rounding may put the quotient of two nearly equal norms above 1.
    scale = torch.where(clipped, (after / norm).clamp(max=1.0), 1.0)
    return ClipOutcome(norm, after, scale, clipped, torch.zeros_like(clipped), norm.isfinite())
