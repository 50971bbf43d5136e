"""Random streams: every lane has its own, and the caller's are given back as they were.

A stream is named by a training seed and a purpose, so the lanes of one seed draw the same numbers in the same
order whichever other lanes train between their steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str) -> int:
    """A generator seed for one purpose under one training seed.

    Args:
        seed: the training seed.
        purpose: for example ``"data"``.

    Returns:
        A whole number below 2**63; different purposes and seeds give unrelated ones.

    Example:
        >>> stream_seed(0, "data") == stream_seed(0, "data"), stream_seed(0, "data") == stream_seed(1, "data")
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def data_generator(seed: int) -> torch.Generator:
    """The generator that `tuner.workloads.Workload.train_batch` draws from.

    Args:
        seed: the training seed; nothing else enters.

    Returns:
        A fresh generator on the CPU.
    """
    return torch.Generator().manual_seed(stream_seed(seed, "data"))


@dataclass(frozen=True)
class _GlobalState:
    """PyTorch's global generators, on the CPU and on the device in use."""

    cpu: Tensor
    device: Tensor | None


class GlobalStream:
    """A stream for code that draws from PyTorch's global generators: initialisation and dropout.

    Inside `active` the global generators continue this stream; outside they are the caller's.
    """

    def __init__(self, seed: int, purpose: str, device: torch.device) -> None:
        self._seed = stream_seed(seed, purpose)
        self._device = device
        self._state: _GlobalState | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Continue this stream, then restore the caller's generators."""
        caller = self._read()
        try:
            if self._state is None:
                self._start()
            else:
                self._write(self._state)
            yield
            self._state = self._read()
        finally:
            self._write(caller)

    def state(self) -> Tensor:
        """Where the stream is, uint8; an empty tensor before its first draw."""
        if self._state is None:
            return torch.empty(0, dtype=torch.uint8)
        return self._state.cpu if self._state.device is None else self._state.device

    def restore(self, state: Tensor) -> None:
        """Continue from what `state`, or a generator of this stream's device, gave."""
        state = state.clone()  # torch reads a view from the start of its storage
        if len(state) == 0:
            self._state = None
        elif self._device.type == "cuda":
            # What a model draws on the CPU in between starts its stream again.
            seeded = torch.Generator().manual_seed(self._seed).get_state()
            self._state = _GlobalState(cpu=seeded, device=state)
        else:
            self._state = _GlobalState(cpu=state, device=None)

    def _start(self) -> None:
        torch.default_generator.manual_seed(self._seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(self._seed)

    def _read(self) -> _GlobalState:
        on_device = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return _GlobalState(cpu=torch.get_rng_state(), device=on_device)

    def _write(self, state: _GlobalState) -> None:
        torch.set_rng_state(state.cpu)
        if state.device is not None:
            torch.cuda.set_rng_state(state.device, self._device)
