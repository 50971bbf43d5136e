"""The clipping methods on an ordinary module: one lane, gradients in ``.grad``.

What a study recommends is used here: the same code that trained its lanes, behind the one call that replaces
``torch.nn.utils.clip_grad_norm_``. Unlike that function it may have a memory, so it is made once, before the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from tuner.clippers import clipper_class
from tuner.clippers.base import ClipResult
from tuner.lanes import Layout, trainable
from tuner.spec import ClipSetting


class PlainClipper:
    """A clip setting for a module that trains by itself.

    The gradients are copied into one row, and back, each step. A parameter without a gradient counts as one whose
    gradient is zero, and stays without. Works on one device and without sharding, whose norms would be local.

    Args:
        setting: what to do, as a `ClipSetting` or as its text, for example ``"zclip:2.5"``.
        parameters: a module, whose trainable parameters are taken, or names with parameters; all of one type.
        reference_norm: median gradient norm that the study's probe measured; None takes each paper's own constants.
        **constants: the method's other constants, for example ``window`` of AutoClip.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clipper = PlainClipper("global_norm:0.5", model)
        >>> loss = model(torch.ones(8, 2)).square().sum()
        >>> loss.backward()
        >>> result = clipper.clip(loss)
        >>> if not result.skipped:
        ...     optimizer.step()
        >>> norms = [each.grad.norm() for each in model.parameters()]
        >>> bool(torch.stack(norms).norm() <= 0.5 + 1e-6)
        True
    """

    def __init__(
        self,
        setting: ClipSetting | str,
        parameters: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        reference_norm: float | None = None,
        **constants: Any,
    ) -> None:
        if isinstance(setting, str):
            setting = ClipSetting.parse(setting)
        named = trainable(parameters) if isinstance(parameters, nn.Module) else dict(parameters)
        if not named:
            raise ValueError("there is nothing to clip: no parameter requires a gradient")
        self.setting = setting
        self._parameters: Mapping[str, Tensor] = named
        layout = Layout.of(named.items())
        threshold = inf if setting.threshold is None else setting.threshold
        self._clipper = clipper_class(setting.method)(
            torch.tensor([threshold], dtype=torch.float64, device=next(iter(named.values())).device),
            layout,
            reference_norm=reference_norm,
            **constants,
        )
        self._state = self._clipper.initial_state(self._row(named.values()))

    @torch.no_grad()
    def clip(self, loss: Tensor | float | None = None) -> ClipResult:
        """Clip the gradients in place, after ``backward`` and before ``optimizer.step``.

        Nothing is read back to the host.

        Args:
            loss: the step's loss, one number; only *skip_step* looks at it, and judges the norm alone without it.

        Returns:
            What was done, as one lane. Where ``skipped`` is True the gradients are as they were and the step is not to
            be taken; ``if not result.skipped: optimizer.step()``. Zeroed gradients would not do: momentum would still
            move the weights. A gradient that is not finite (``finite`` is False) is left as it is, too.
        """
        weights = self._row(self._parameters.values())
        grads = self._row(
            torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters.values()
        )
        step_loss = torch.as_tensor(0.0 if loss is None else loss, device=grads.device).detach().reshape(1)
        result = self._clipper.clip(grads, self._state, weights=weights, loss=step_loss)
        self._state = result.state
        clipped = self._clipper.layout.views(result.grads)
        for name, each in self._parameters.items():
            if each.grad is not None:
                each.grad.copy_(clipped[name][0])
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """What the method remembers, for a checkpoint beside the optimizer's.

        Returns:
            Tensors by name; empty for a method without memory.
        """
        return {name: rows.clone() for name, rows in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint.

        Args:
            state: what `state_dict` gave, for the same method, constants and parameters.

        Raises:
            ValueError: if the names or the shapes are others.
        """
        expected = {name: tuple(rows.shape) for name, rows in self._state.items()}
        given = {name: tuple(rows.shape) for name, rows in state.items()}
        if given != expected:
            raise ValueError(f"this is not the state of {self.setting}: expected {expected}, got {given}")
        self._state = {name: state[name].to(rows, copy=True) for name, rows in self._state.items()}

    @staticmethod
    def _row(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([each.detach().reshape(-1) for each in tensors]).unsqueeze(0)
