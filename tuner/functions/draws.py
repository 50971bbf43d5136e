"""Random tensors that a model draws in its forward pass, one draw for all trials of a seed.

A draw shaped like a tensor, or with its values as parameters, is batched over trials as that tensor is, and
torch refuses to share it. Here the numbers are drawn from the lane's shape alone and then transformed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tuner.functions.errors import NotLaneFriendlyError


def randn_like(input: Tensor, **options: Any) -> Tensor:
    """`torch.randn_like` for lanes; torch's own numbers if the input is contiguous.

    Args:
        input: gives shape, and dtype and device unless the options do.
        options: as in torch; a memory format is ignored.

    Returns:
        Standard normal numbers, not batched by trial.
    """
    return torch.randn(input.shape, **_options(input, options))


def rand_like(input: Tensor, **options: Any) -> Tensor:
    """`torch.rand_like` for lanes; torch's own numbers if the input is contiguous.

    Args:
        input: gives shape, and dtype and device unless the options do.
        options: as in torch; a memory format is ignored.

    Returns:
        Uniform numbers in [0, 1), not batched by trial.
    """
    return torch.rand(input.shape, **_options(input, options))


def normal(mean: Any, std: Any = 1.0, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.normal` for lanes; torch's own numbers up to rounding.

    Args:
        mean: tensor or number.
        std: tensor or number, >= 0.
        args: passed on if neither is a tensor.
        kwargs: passed on if neither is a tensor.

    Returns:
        Normal numbers in the shape both broadcast to.
    """
    tensors = [each for each in (mean, std) if isinstance(each, Tensor)]
    if not tensors:
        return torch.normal(mean, std, *args, **kwargs)
    shape = sum(tensors[1:], tensors[0]).shape
    noise = torch.randn(shape, dtype=tensors[0].dtype, device=tensors[0].device)
    return noise.mul(std).add(mean)


def bernoulli(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.bernoulli` for lanes: a one where a shared uniform number is below the lane's probability.

    Not the numbers torch draws.

    Args:
        input: probabilities in [0, 1]; only shape and dtype count if a number p is given.
        args: p.
        kwargs: passed on with p.

    Returns:
        Zeros and ones in the input's shape and dtype.
    """
    if args or "p" in kwargs:
        shared = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        return torch.bernoulli(shared, *args, **kwargs)
    return (rand_like(input) < input).to(input.dtype)


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """`torch.nn.functional.gumbel_softmax` for lanes; not the numbers torch draws.

    Args:
        logits: any shape.
        tau: temperature, > 0.
        hard: return one-hot samples with the gradient of the soft ones.
        eps: without effect, as in torch.
        dim: the axis of the classes.

    Returns:
        Samples in the logits' shape.

    Source:
        Jang et al., Categorical Reparameterization with Gumbel-Softmax, 2017,
        https://arxiv.org/abs/1611.01144
    """
    del eps
    # Not `aten.exponential`: vmap has no random rule for it and silently gives all seeds the same numbers.
    exponential = (-torch.log1p(-rand_like(logits))).clamp_min(torch.finfo(logits.dtype).tiny)
    soft = ((logits - exponential.log()) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(logits).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """`torch.nn.functional.rrelu` for lanes; not the numbers torch draws.

    Args:
        input: any shape.
        lower: smallest slope of a negative value.
        upper: largest slope.
        training: draw the slopes instead of using their mean.
        inplace: ignored, since the slopes may have a seed axis that the input lacks.

    Returns:
        The activations.

    Source:
        Xu et al., Empirical Evaluation of Rectified Activations, 2015, https://arxiv.org/abs/1505.00853
    """
    del inplace
    slope = lower + (upper - lower) * rand_like(input) if training else (lower + upper) / 2
    return torch.where(input >= 0, input, input * slope)


def _options(input: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None and name != "memory_format"}
    return {"dtype": input.dtype, "device": input.device} | given


def _refuse_inside_vmap(method: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """An in-place draw that raises where lanes are batched, and is torch's own elsewhere."""

    def draw(*args: Any, **kwargs: Any) -> Tensor:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise NotLaneFriendlyError(
                f"Tensor.{name}()",
                "a tensor that already exists cannot be filled once per seed",
                "draw a new tensor with torch.randn_like or torch.rand_like",
            )
        return method(*args, **kwargs)

    return draw


_IN_PLACE = (
    "normal_",
    "uniform_",
    "exponential_",
    "bernoulli_",
    "cauchy_",
    "geometric_",
    "log_normal_",
    "random_",
)

REPLACEMENTS: dict[Any, Any] = {
    torch.randn_like: randn_like,
    torch.rand_like: rand_like,
    torch.normal: normal,
    torch.bernoulli: bernoulli,
    Tensor.bernoulli: bernoulli,
    functional.gumbel_softmax: gumbel_softmax,
    functional.rrelu: rrelu,
    **{getattr(Tensor, name): _refuse_inside_vmap(getattr(Tensor, name), name) for name in _IN_PLACE},
}
"""What replaces what; see `tuner.functions.substitution`."""
