"""Look at a workload the way a study will use it, for a few steps, and say what to repair.

Every look is a function that yields findings; one whose code raises becomes a finding too, with the line it was raised
in, and the looks behind it that need it are left out.
"""

from __future__ import annotations

import resource
import sys
import traceback
from collections.abc import Callable, Iterator

import torch

from tuner.errors import TunerError
from tuner.user_loop.findings import Checked, Finding
from tuner.workloads.base import AnyWorkload
from tuner.workloads.function import FunctionWorkload

#: ``ru_maxrss`` is in KiB everywhere but on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def check(
    name: str, workload: AnyWorkload | FunctionWorkload, *, num_steps: int, device: torch.device | str = "cpu"
) -> Checked:
    """Check a workload.

    Args:
        name: what to call it.
        workload: a workload, or a training function, with its parameters.
        num_steps: optimizer steps of a run, >= 1.
        device: where a workload trains; a function goes where it likes.

    Returns:
        What was found.
    """
    from tuner.user_loop.check_class import ClassCheck
    from tuner.user_loop.check_function import FunctionCheck

    where = torch.device(device)
    if isinstance(workload, FunctionWorkload):
        function = FunctionCheck(workload, num_steps)
        findings = tuple(_looked_at(function.looks()))
        return Checked(
            workload=name,
            form="function",
            num_steps=num_steps,
            device=str(where),
            findings=findings,
            solo_per_second=function.steps_per_second,
            peak_bytes=_peak_bytes(where),
        )
    one = ClassCheck(workload, num_steps, where)
    findings = tuple(_looked_at(one.looks()))
    return Checked(
        workload=name,
        form="class",
        num_steps=num_steps,
        device=str(where),
        findings=findings,
        lanes_per_second=one.lanes_per_second,
        solo_per_second=one.solo_per_second,
        peak_bytes=_peak_bytes(where),
        data_share=one.data_share,
    )


Look = tuple[str, Callable[[], Iterator[Finding]]]


def _looked_at(looks: Iterator[Look]) -> Iterator[Finding]:
    """The findings of looks, up to the first one that could not be finished."""
    for about, look in looks:
        try:
            yield from look()
        except Exception as error:
            yield _raised(about, error)
            return


def _raised(about: str, error: Exception) -> Finding:
    """An exception as a finding: an error of ours by its sentence, another one by where it was raised."""
    first = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(first, TunerError):
        text, _, remedy = str(first).partition("; ")
        return Finding(about=about, standing="fix", text=text, remedy=remedy)
    frames = traceback.extract_tb(first.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    return Finding(
        about=about,
        standing="fix",
        text=f"{type(first).__name__}: {first}{where}",
        remedy="repair this first; what depends on it was not looked at",
    )


def _peak_bytes(device: torch.device) -> int:
    """Most memory held so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
