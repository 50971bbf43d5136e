"""How many lanes train together: measured, not guessed.

`choose_trials` is the decision: a pure function of measured rates. It doubles the settings in a batch until
throughput stops growing or memory ends, then bisects; one lane at a time wins if it is faster. `measure_rate`
takes the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tuner.training.cohort import AS_OTHERS

#: Doubling stops when throughput grows by less than this.
LEAST_GAIN = 0.1
#: A cohort that needs less than this at the first rate tried is not worth finding a better one, in seconds.
WORTH_SECONDS = 30.0
#: Steps and seconds of one measurement, after one step to warm up.
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 3, 20, 0.25

#: ``rate(settings in a batch)``: lane-steps per second, None if memory does not hold them.
Rate = Callable[[int], float | None]


@dataclass(frozen=True)
class Capacity:
    """What was chosen, and what it rests on.

    Attributes:
        num_trials: settings in one batch; 0 = one lane at a time.
        lanes_per_second: lane-steps per second batched, at the best size that was measured; None if none fits.
        solo_per_second: the same one lane at a time; None if it was not measured.
        reason: a sentence.
    """

    num_trials: int
    lanes_per_second: float | None
    solo_per_second: float | None
    reason: str


def choose_trials(rate: Rate, *, most: int, solo_per_second: float | None, num_lane_steps: int) -> Capacity:
    """The number of settings to train in one batch.

    Args:
        rate: measures a size, 1 to ``most``; called at most once per size.
        most: settings of the cohort.
        solo_per_second: lane-steps per second, one lane at a time; None if that is out of the question, because other
            parts of the cohort train batched: it is left only where nothing fits in memory.
        num_lane_steps: of the whole cohort; a short one is not measured further than its full size.

    Returns:
        The choice.

    Example:
        Throughput that no longer grows beyond two settings:

        >>> choose_trials(lambda n: min(n, 2) * 100.0, most=8, solo_per_second=60, num_lane_steps=10**6).num_trials
        2
    """
    measured: dict[int, float | None] = {most: rate(most)}
    whole = measured[most]
    is_short = whole is not None and num_lane_steps / whole < WORTH_SECONDS
    if not is_short:
        _double(rate, measured, most)
    fitting = {size: each for size, each in measured.items() if each is not None}
    if not fitting:
        return Capacity(0, None, solo_per_second, "not even one setting fits in memory as a batch")
    best = min(size for size, each in fitting.items() if each * (1 + LEAST_GAIN) >= max(fitting.values()))
    best = most if is_short else best
    found = fitting[best]
    failed = min((size for size, each in measured.items() if each is None), default=None)
    limit = f"; {failed} settings do not fit in memory" if failed is not None else ""
    if solo_per_second is None:
        return Capacity(best, found, None, f"{AS_OTHERS}{limit}")
    if found < solo_per_second:
        return Capacity(
            0, found, solo_per_second, f"one lane at a time is {solo_per_second / found:.1f} times as fast"
        )
    return Capacity(
        best,
        found,
        solo_per_second,
        f"{found / solo_per_second:.1f} times as fast as one lane at a time{limit}",
    )


def _double(rate: Rate, measured: dict[int, float | None], most: int) -> None:
    """Measure 1, 2, 4, ... until throughput stops growing or memory ends, then between the last two sizes."""
    size, best = 1, 0.0
    while size < most:
        measured[size] = found = rate(size)
        if found is None:
            _bisect(rate, measured, size // 2, size)
            return
        if found < best * (1 + LEAST_GAIN):
            return
        size, best = 2 * size, max(best, found)
    if measured[most] is None:
        _bisect(rate, measured, size // 2, most)


def _bisect(rate: Rate, measured: dict[int, float | None], fits: int, fails: int) -> None:
    """Narrow down where memory ends, to a tenth."""
    while fails - fits > max(1, fits // 10):
        middle = (fits + fails) // 2
        measured[middle] = rate(middle)
        if measured[middle] is None:
            fails = middle
        else:
            fits = middle


def measure_rate(step: Callable[[], object], *, num_lanes: int, device: torch.device) -> float:
    """Lane-steps per second.

    Args:
        step: takes one step of all lanes.
        num_lanes: lanes that it trains.
        device: waited for before the clock is read.

    Returns:
        The rate of the fastest half of the steps, > 0: other work on the machine only ever slows steps down.
    """
    step()
    seconds: list[float] = []
    while len(seconds) < MIN_STEPS or (len(seconds) < MAX_STEPS and sum(seconds) < MAX_SECONDS):
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    fastest = sorted(seconds)[: (len(seconds) + 1) // 2]
    return num_lanes * len(fastest) / sum(fastest)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
