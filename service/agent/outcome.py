"""What the end of a command means for its lane: pure.

Causes are those of a worker's trainings, so that a study counts both alike: a machine that was taken away says nothing
about the setting, a bug does.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Literal

from service.agent.child import Ending
from service.agent.metrics import Measurement, MetricKeys

Kind = Literal["complete", "diverged", "stopped", "failed"]
Cause = Literal["bug", "oom", "stall", "bad_output", "device_lost"]

#: What the last line of a program says that ran out of memory: Python, PyTorch on a GPU, PyTorch on the CPU.
_OUT_OF_MEMORY = re.compile(
    r"^(?:MemoryError\b|torch\.(?:cuda\.)?OutOfMemoryError:)|CUDA out of memory|can't allocate memory"
)

#: How much of the output goes along with an error, in characters; the service takes 8000 in all.
_MAX_TAIL = 6000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a lane ended.

    Attributes:
        kind: ``complete``, ``diverged`` (the objective was not finite), ``stopped`` (the service wants no more of
            it) or ``failed``.
        value: the objective at the end of a complete lane; None otherwise.
        cause: of a failure; None otherwise.
        detail: of a failure, with the end of the output; or why the lane was stopped.
    """

    kind: Kind
    value: float | None = None
    cause: Cause | None = None
    detail: str = ""

    @property
    def headline(self) -> str:
        """The first line of the detail."""
        return self.detail.partition("\n")[0]


def failed(cause: Cause, detail: str) -> Outcome:
    """A lane that failed.

    Args:
        cause: of the failure.
        detail: what happened, for people.

    Returns:
        The outcome.
    """
    return Outcome(kind="failed", cause=cause, detail=detail)


def judge(
    ending: Ending,
    *,
    last: Measurement | None,
    keys: MetricKeys,
    seen_keys: tuple[str, ...],
    num_beyond: int,
    num_steps: int,
    tail: str,
    was_memory_short: bool,
) -> Outcome:
    """What the end of a command that nobody stopped means.

    Args:
        ending: of the command.
        last: the newest measurement within the run, if there was any.
        keys: under which names its metrics were looked for.
        seen_keys: names of the numbers that it logged.
        num_beyond: measurements beyond the run.
        num_steps: of a full run.
        tail: its last lines of output.
        was_memory_short: whether the system killed a process for memory meanwhile.

    Returns:
        The outcome.
    """
    if ending.status == 0:
        if last is not None:
            return Outcome(kind="diverged" if last.is_diverged else "complete", value=last.value)
        return failed(
            "bad_output", _with_tail(_nothing_measured(keys, seen_keys, num_beyond, num_steps), tail)
        )
    if ending.status is None:
        return failed("bug", f"the command can't be started: {ending.error}")
    if ending.status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        if was_memory_short:
            return failed("oom", _with_tail("the system killed the command, because memory ran out", tail))
        what = (
            "the command was killed by SIGKILL, which was not ours: most likely the system ran out of memory, or the "
            "machine was taken away"
        )
        return failed("device_lost", _with_tail(what, tail))
    how = _signal_name(-ending.status) if ending.status < 0 else f"exit code {ending.status}"
    last_line = tail.rpartition("\n")[2][:500]
    cause: Cause = "oom" if _OUT_OF_MEMORY.search(last_line) else "bug"
    # Where there is room for one line only, it is the one that says why.
    return failed(
        cause, _with_tail(": ".join(filter(None, (f"the command ended with {how}", last_line))), tail)
    )


def stalled(seconds: float, tail: str) -> Outcome:
    """A command that was ended because it logged nothing.

    Args:
        seconds: for so long.
        tail: its last lines of output.

    Returns:
        The outcome.
    """
    what = f"the command logged neither objective nor gradient norm for {seconds:g} s (--stall)"
    return failed("stall", _with_tail(what, tail))


def _nothing_measured(keys: MetricKeys, seen_keys: tuple[str, ...], num_beyond: int, num_steps: int) -> str:
    if num_beyond:
        return (
            f"the command logged {keys.objective!r} only beyond the study's {num_steps} steps: train for {{num_steps}} "
            f"steps, and count optimizer steps in {keys.step!r}"
        )
    seen = f"it logged {', '.join(seen_keys)}" if seen_keys else f"it logged no number beside {keys.step!r}"
    return (
        f"the command ended well but never logged the objective {keys.objective!r}; {seen}: name the right key with "
        "--objective-key and --step-key, and where to look with --metrics"
    )


def _with_tail(what: str, tail: str) -> str:
    return f"{what}\n{tail[-_MAX_TAIL:]}".rstrip()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
