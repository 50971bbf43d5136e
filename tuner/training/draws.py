"""A recorded program's random operations, drawn per seed.

Every draw has the seeds as its first axis and no axis for trials: what is drawn for a seed serves all its trials,
with the numbers that a plain run of that seed draws on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tuner.training.not_batchable import NotBatchableError

aten = torch.ops.aten
#: Fills a tensor in place from a generator.
Fill = Callable[[Tensor, torch.Generator], object]


def redirect_draws(graph: fx.GraphModule, draw: Callable[[Fill, Tensor], Tensor]) -> int:
    """Let every random operation of a graph draw per seed.

    Args:
        graph: changed in place.
        draw: as `tuner.training.streams.SeedStreams.draw`.

    Returns:
        How many random operations there are.

    Raises:
        NotBatchableError: if there is no rule for one.
    """
    num_draws = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(
            node.target, "tags", ()
        ):
            continue
        rule = _DRAWS.get(node.target)
        if rule is None:
            raise NotBatchableError(
                f"the model draws random numbers with {node.target}, which has no rule per seed"
            )
        node.target = _drawing(rule, draw, f"draw_{num_draws}")
        num_draws += 1
    return num_draws


def _drawing(
    rule: Callable[..., tuple[Fill, Tensor]], draw: Callable[[Fill, Tensor], Tensor], name: str
) -> Callable[..., Tensor]:
    def drawing(*args: Any, **kwargs: Any) -> Tensor:
        return draw(*rule(*args, **kwargs))

    drawing.__name__ = drawing.__qualname__ = name
    return drawing


def _bernoulli(like: Tensor, p: float, **_: Any) -> tuple[Fill, Tensor]:
    return lambda row, generator: row.bernoulli_(p, generator=generator), like


def _uniform(like: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> tuple[Fill, Tensor]:
    return lambda row, generator: row.uniform_(low, high, generator=generator), like


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> tuple[Fill, Tensor]:
    return lambda row, generator: row.normal_(mean, std, generator=generator), like


def _like(fill: Callable[..., tuple[Fill, Tensor]]) -> Callable[..., tuple[Fill, Tensor]]:
    def rule(like: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> tuple[Fill, Tensor]:
        return fill(like if dtype is None else torch.empty_like(like, dtype=dtype))

    return rule


def _sized(fill: Callable[..., tuple[Fill, Tensor]]) -> Callable[..., tuple[Fill, Tensor]]:
    def rule(
        size: list[int], *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
    ) -> tuple[Fill, Tensor]:
        return fill(torch.empty(size, dtype=dtype, device=device))

    return rule


_DRAWS: Mapping[Any, Callable[..., tuple[Fill, Tensor]]] = {
    aten.bernoulli.p: _bernoulli,
    aten.rand_like.default: _like(_uniform),
    aten.randn_like.default: _like(_normal),
    aten.rand.default: _sized(_uniform),
    aten.randn.default: _sized(_normal),
}
