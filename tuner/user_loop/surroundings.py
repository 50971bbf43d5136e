"""What a training function changes of the process around it is put back, so that every lane begins like the first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


@contextmanager
def given_back() -> Iterator[None]:
    """Put back the working folder, and PyTorch's default dtype, default device and gradient mode.

    What is left as the code in the block leaves it: the environment, signal handlers, loggers, and what modules keep.
    """
    folder = _folder()
    dtype, device, grads = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(grads)
        torch.set_default_dtype(dtype)
        # Only if it has changed: a `with torch.device(...)` of the caller is not to be covered by a default.
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)
        if folder is not None and _folder() != folder:
            with suppress(OSError):
                os.chdir(folder)


def _folder() -> str | None:
    """The working folder; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None
