"""Recurrent layers for models written for lanes; the same as torch's in every other respect.

An unchanged nn.LSTM trains in lanes too, inside `LaneFunctions`. These need no context: alone and under vmap
they run the same operations, so that a lane and a training of its own agree more closely.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tuner.functions.errors import NotLaneFriendlyError
from tuner.functions.substitution import LaneFunctions


class Rnn(nn.RNN):
    """nn.RNN, parameters and all, on operations that batch over lanes.

    Example:
        >>> import torch
        >>> Rnn(2, 3)(torch.zeros(5, 1, 2))[0].shape
        torch.Size([5, 1, 3])
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch."""
        with LaneFunctions():
            return super().forward(*args, **kwargs)


class Lstm(nn.LSTM):
    """nn.LSTM, parameters and all, on operations that batch over lanes.

    Raises:
        NotLaneFriendlyError: when built with ``proj_size``.

    Example:
        >>> import torch
        >>> Lstm(2, 3)(torch.zeros(5, 1, 2))[0].shape
        torch.Size([5, 1, 3])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise NotLaneFriendlyError(
                f"Lstm(proj_size={self.proj_size})",
                "projected states have no lane form",
                "use proj_size=0 and a Linear layer",
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch."""
        with LaneFunctions():
            return super().forward(*args, **kwargs)


class Gru(nn.GRU):
    """nn.GRU, parameters and all, on operations that batch over lanes.

    Example:
        >>> import torch
        >>> Gru(2, 3)(torch.zeros(5, 1, 2))[0].shape
        torch.Size([5, 1, 3])
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch."""
        with LaneFunctions():
            return super().forward(*args, **kwargs)
