"""Let a user's unchanged model be trained in many lanes at once.

Some functions of torch fail, fall back to one lane at a time, or are silently wrong under vmap. A model calls
them through nn.LSTM, nn.Dropout and so on; `LaneFunctions` answers those calls with forms that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from tuner.functions import attention, autocasting, cells, draws, dropout, embedding, formulas, recurrent


class LaneFunctions(TorchFunctionMode):
    """While entered, calls of some torch functions are answered by forms that batch over lanes.

    Put it around the vmapped call; it costs a dictionary look-up per torch call, so trace inside it and run
    the traced graph outside. What is replaced, by the module that reaches it:

    - nn.Dropout and its kin, `torch.randn_like`, `rand_like`, `normal`, `bernoulli` of probabilities,
      `gumbel_softmax`, nn.RReLU: drawn once for all trials of a seed.
    - nn.MultiheadAttention, nn.Transformer and its parts, `scaled_dot_product_attention`: plain products and
      a softmax; the fast path of inference is off.
    - nn.RNN, nn.LSTM, nn.GRU: one opaque operation per layer and direction; their cells: formulas.
    - nn.Embedding: no gradient for `padding_idx` in any lane.
    - weight_norm, nn.Bilinear, nn.KLDivLoss, nn.GaussianNLLLoss, nn.MSELoss, nn.HuberLoss, nn.SmoothL1Loss: formulas.
    - Linear and convolution layers under autocast: in the lower precision throughout.

    Everything else is called as it is. On exit torch is as it was before. The two switches of torch that are
    turned meanwhile (the fast path, and the comparison of a mask with the causal one) are global to the
    process; neither changes a result.

    Raises:
        NotLaneFriendlyError: from inside, where the model uses an option that no form here offers.

    Example:
        >>> from torch.func import vmap
        >>> layer = torch.nn.LSTM(2, 3)
        >>> with LaneFunctions():
        ...     outputs = vmap(lambda sequence: layer(sequence)[0])(torch.zeros(4, 5, 1, 2))
        >>> outputs.shape
        torch.Size([4, 5, 1, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self._restore: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        fast_path = torch.backends.mha.get_fastpath_enabled()
        detect = transformer._detect_is_causal_mask
        self._restore += [
            lambda: torch.backends.mha.set_fastpath_enabled(fast_path),
            lambda: setattr(transformer, "_detect_is_causal_mask", detect),
        ]
        torch.backends.mha.set_fastpath_enabled(False)
        transformer._detect_is_causal_mask = _trust_the_hint
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)  # type: ignore[no-untyped-call]
        for _ in range(2):
            self._restore.pop()()

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


def _trust_the_hint(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether to treat a mask as causal: only if told so.

    The mask itself gives the same result, and looking at its values is what a trace cannot do.
    """
    del mask, size
    return bool(is_causal)


_REPLACEMENTS: dict[Any, Any] = {
    **dropout.REPLACEMENTS,
    **draws.REPLACEMENTS,
    **attention.REPLACEMENTS,
    **embedding.REPLACEMENTS,
    **recurrent.REPLACEMENTS,
    **cells.REPLACEMENTS,
    **formulas.REPLACEMENTS,
    **autocasting.REPLACEMENTS,
}
