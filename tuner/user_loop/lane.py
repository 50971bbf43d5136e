"""Call a training function for one lane: seeded, in this thread, with everything it can do to us kept at the border.

What a function raises, `sys.exit` included, becomes an error that names the trial; a process that it forked never
comes back into our code.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from tuner.errors import LaneError, TrialPruned
from tuner.user_loop.surroundings import given_back
from tuner.user_loop.trial import ContractError, FunctionTrial, RunawayError
from tuner.workloads.function import FunctionWorkload

#: NumPy's seeds are below this.
_NUMPY_SEEDS = 2**32


def call(workload: FunctionWorkload, trial: FunctionTrial, trial_id: str) -> float | None:
    """Train one lane.

    Args:
        workload: the function.
        trial: what it is given.
        trial_id: to blame.

    Returns:
        The number that the function returned, if it did; None if it was stopped.

    Raises:
        LaneError: if it raised, ended the program, could not be stopped, or returned something else.
    """
    try:
        with given_back(), seeded(trial.seed), _collected():
            returned = workload(trial)
        was_stopped = trial.stopped is not None
    except BaseException as error:
        if not trial.is_own_process:
            traceback.print_exc()
            _leave_fork(1)
        if isinstance(error, KeyboardInterrupt):
            raise
        if trial.stopped is not None and not isinstance(error, RunawayError):
            # Pruned, or what became of it on the way out: the lane's results are in.
            return None
        raise LaneError(trial_id, trial.seed, trial.clipper.num_steps, _told(error)) from error
    finally:
        trial.end()
    if not trial.is_own_process:
        _leave_fork(0)
    if returned is None or was_stopped:
        return None
    try:
        return float(returned)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        wrong = ContractError(
            f"it returned {type(returned).__name__}: return nothing, or the objective after the last step"
        )
        raise LaneError(trial_id, trial.seed, trial.clipper.num_steps, wrong) from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's global generators, then give the caller theirs back.

    Args:
        seed: training seed; the same as ``random.seed(seed)``, ``numpy.random.seed(seed)`` and
            ``torch.manual_seed(seed)``, so that a run can be repeated by hand.
    """
    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(cpu)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def _collected() -> Iterator[None]:
    """Free what a lane leaves behind in reference cycles: memory of a device is no reason for Python to look for it."""
    # Looking at what was there before takes 0.2 s, which is most of a short lane.
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if freezes:
            gc.unfreeze()


def _told(error: BaseException) -> BaseException:
    """The error as a person should read it."""
    if isinstance(error, SystemExit):
        return ContractError(
            f"the function ended the program with sys.exit({error.code!r}): return, or raise what went wrong"
        )
    if isinstance(error, TrialPruned):
        return ContractError(
            "the function raised TrialPruned itself: report NaN for a diverged training, or return"
        )
    return error


def _leave_fork(status: int) -> None:
    """End a forked child here: going on would train, and tell, what its parent does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
