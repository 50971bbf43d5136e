"""Several methods in one lane batch: each acts on its own lanes.

Lanes without clipping join any other method with an infinite threshold, which never acts; a batch of one method
and *off* therefore costs what the method alone costs.

Shape letters: L = lanes, P = trainable parameters of one lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState
from tuner.lanes import Layout


@final
class MixedClipper(Clipper):
    """Clippers with the lanes they act on; every lane belongs to exactly one.

    Args:
        parts: for each clipper the lanes it acts on, int64, shape (lanes of that clipper,).
        layout: of all of them.

    Example:
        >>> from tuner.clippers.global_norm import GlobalNormClipper
        >>> from tuner.clippers.value import ValueClipper
        >>> layout = Layout(("weight",), ((2,),))
        >>> norm, value = GlobalNormClipper(torch.ones(1), layout), ValueClipper(torch.ones(1), layout)
        >>> clipper = MixedClipper([(norm, torch.tensor([1])), (value, torch.tensor([0]))], layout)
        >>> grads = torch.tensor([[3.0, -0.5], [3.0, 4.0]])
        >>> clipper.clip(grads, {}, weights=grads, loss=torch.zeros(2)).grads
        tensor([[ 1.0000, -0.5000],
                [ 0.6000,  0.8000]])
    """

    def __init__(self, parts: Sequence[tuple[Clipper, Tensor]], layout: Layout) -> None:
        order = torch.cat([lanes for _, lanes in parts])
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            raise ValueError(f"every lane must have exactly one clipper, got lanes {order.tolist()}")
        self._parts = tuple(parts)
        self._back = order.argsort()
        thresholds = torch.cat([clipper.thresholds for clipper, _ in parts])[self._back]
        super().__init__(thresholds, layout)

    def initial_state(self, weights: Tensor) -> ClipState:  # noqa: D102
        state = {}
        for number, (clipper, lanes) in enumerate(self._parts):
            for name, rows in clipper.initial_state(weights[lanes]).items():
                # Kept for all lanes, so that compaction and forking are a selection of rows like everywhere else.
                full = rows.new_zeros((self.num_lanes, *rows.shape[1:]))
                state[f"{number}.{name}"] = full.index_copy(0, lanes, rows)
        return state

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        results = []
        after: dict[str, Tensor] = dict(state)
        for number, (clipper, lanes) in enumerate(self._parts):
            own = _of_part(state, number)
            result = clipper.clip(
                grads[lanes],
                {name: rows[lanes] for name, rows in own.items()},
                weights=weights[lanes],
                loss=loss[lanes],
            )
            for name, rows in result.state.items():
                after[f"{number}.{name}"] = own[name].index_copy(0, lanes, rows)
            results.append(result)
        together = [torch.cat(column)[self._back] for column in zip(*map(_tensors, results), strict=True)]
        grads, norm, scale, clipped, finite, skipped = together
        return ClipResult(grads, after, norm, scale, clipped, finite, skipped)


def _of_part(state: ClipState, number: int) -> Mapping[str, Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): rows for name, rows in state.items() if name.startswith(prefix)}


def _tensors(result: ClipResult) -> tuple[Tensor, ...]:
    return (result.grads, result.norm, result.scale, result.clipped, result.finite, result.skipped)
