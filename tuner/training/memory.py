"""Running out of memory, as each device tells it."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

#: Share of the memory that a batch must leave free.
HEADROOM = 0.1
#: What torch's CPU allocator says; it raises a plain RuntimeError.
_CPU_SIGN = "can't allocate memory"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception means that memory ended, so that a smaller batch is worth a try.

    Args:
        error: any exception, or None.

    Returns:
        True for an out-of-memory error of a device, of torch on the CPU, or of Python.

    Example:
        >>> is_out_of_memory(MemoryError())
        True
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_SIGN in str(error)


def has_headroom(device: torch.device) -> bool:
    """Whether a tenth of the memory is still free: what is measured once must go on fitting for hours.

    Args:
        device: a CUDA device, of which torch has by now reserved what it needs, or the CPU.

    Returns:
        True if so, and where nobody can tell.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free >= HEADROOM * total
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    sizes = {line.partition(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
    return sizes.get("MemAvailable", 1) >= HEADROOM * sizes.get("MemTotal", 1)


def release_memory(device: torch.device) -> None:
    """Give memory that nothing refers to back to the device.

    Args:
        device: where memory ended.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
