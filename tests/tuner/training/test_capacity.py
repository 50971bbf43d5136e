"""How many settings train together, as tables with their arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tuner.training import capacity
from tuner.training.capacity import Capacity, choose_trials, measure_rate

LONG = 10**9


def rates(table: dict[int, float | None]) -> Callable[[int], float | None]:
    """Measure from a table; a size is asked for once at most, and only sizes in the table."""
    left = dict(table)
    return lambda size: left.pop(size)


def choose(
    table: dict[int, float | None], *, most: int, solo: float | None = 1.0, steps: int = LONG
) -> Capacity:
    return choose_trials(rates(table), most=most, solo_per_second=solo, num_lane_steps=steps)


@pytest.mark.parametrize(
    ("table", "most", "expected"),
    [
        # The whole cohort first, then doubling. 180 is within 10 % of 196 (180 * 1.1 = 198), so 4 suffice.
        ({16: 195.0, 1: 60.0, 2: 110.0, 4: 180.0, 8: 196.0}, 16, 4),
        # Growth by less than a tenth ends the doubling: 2 -> 105 < 100 * 1.1; and 100 * 1.1 >= 105: 1 suffices.
        ({8: 90.0, 1: 100.0, 2: 105.0}, 8, 1),
        # Growth by exactly a tenth goes on.
        ({4: 100.0, 1: 100.0, 2: 120.0}, 4, 2),
        # The whole cohort is the best.
        ({4: 400.0, 1: 100.0, 2: 200.0}, 4, 4),
        # One setting is all there is.
        ({1: 100.0}, 1, 1),
    ],
)
def test_throughput_decides_while_memory_lasts(
    table: dict[int, float | None], most: int, expected: int
) -> None:
    chosen = choose(table, most=most)
    assert chosen.num_trials == expected
    assert chosen.lanes_per_second == table[expected]


def test_memory_that_ends_is_narrowed_down() -> None:
    # 16 do not fit; 1, 2, 4, 8 do, and grow. Between 8 and 16: 12 fits, 14 does not, 13 fits, and 14 is the next.
    table = {16: None, 1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0, 12: 120.0, 14: None, 13: 130.0}
    chosen = choose(table, most=16)
    # 120 * 1.1 = 132 >= 130: twelve are as good as thirteen.
    assert chosen.num_trials == 12
    assert chosen.reason == "120.0 times as fast as one lane at a time; 14 settings do not fit in memory"


def test_memory_that_ends_while_doubling_is_narrowed_down() -> None:
    # 4 do not fit, 2 do; 3 lies between.
    chosen = choose({64: None, 1: 10.0, 2: 20.0, 4: None, 3: 30.0}, most=64)
    assert chosen.num_trials == 3
    assert chosen.reason.endswith("; 4 settings do not fit in memory")


def test_narrowing_stops_at_a_tenth() -> None:
    # Between 32 and 64: 48 and 40 and 36 fail, 34 fits: 36 - 34 = 2 <= 34 // 10 = 3.
    table = {
        100: None,
        **{2**n: 10.0 * 2**n for n in range(6)},
        64: None,
        48: None,
        40: None,
        36: None,
        34: 340.0,
    }
    assert choose(table, most=100).num_trials == 32  # 320 * 1.1 = 352 >= 340


def test_nothing_fits() -> None:
    chosen = choose({4: None, 1: None}, most=4, solo=7.0)
    assert chosen == Capacity(0, None, 7.0, "not even one setting fits in memory as a batch")


def test_only_setting_does_not_fit() -> None:
    assert choose({1: None}, most=1).num_trials == 0


def test_short_cohort_takes_its_full_size_unmeasured() -> None:
    # 2,900 steps at 100 per second are 29 seconds: fewer than the 30 that further measuring is worth.
    assert choose({16: 100.0}, most=16, steps=2_900) == Capacity(
        16, 100.0, 1.0, "100.0 times as fast as one lane at a time"
    )
    assert capacity.WORTH_SECONDS == 30.0


def test_long_cohort_is_measured() -> None:
    # 3,000 steps are 30 seconds.
    assert choose({4: 100.0, 1: 99.0, 2: 100.0}, most=4, steps=3_000).num_trials == 1


def test_short_cohort_that_does_not_fit_is_measured() -> None:
    assert choose({4: None, 1: 10.0, 2: 20.0, 3: 30.0}, most=4, steps=10).num_trials == 3


@pytest.mark.parametrize("steps", [10, LONG])
def test_solo_wins_if_it_is_faster(steps: int) -> None:
    chosen = choose({2: 40.0, 1: 40.0}, most=2, solo=100.0, steps=steps)
    assert chosen == Capacity(0, 40.0, 100.0, "one lane at a time is 2.5 times as fast")


def test_batch_wins_a_tie() -> None:
    assert choose({1: 100.0}, most=1, solo=100.0).num_trials == 1


def test_batch_is_not_compared_where_other_parts_are_batched() -> None:
    chosen = choose({64: None, 1: 10.0, 2: 20.0, 4: None, 3: 30.0}, most=64, solo=None)
    reason = "as it was measured for the cohort's other parts; 4 settings do not fit in memory"
    assert chosen == Capacity(3, 30.0, None, reason)


def test_nothing_fits_where_other_parts_are_batched() -> None:
    assert choose({1: None}, most=1, solo=None).num_trials == 0


class Clock:
    """Seconds that pass only inside steps."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.calls, self.seconds = 0.0, 0, seconds

    def step(self) -> None:
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


def measured(monkeypatch: pytest.MonkeyPatch, clock: Clock, num_lanes: int) -> float:
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    return measure_rate(clock.step, num_lanes=num_lanes, device=torch.device("cpu"))


def test_rate_leaves_out_the_first_step_and_the_slower_half(monkeypatch: pytest.MonkeyPatch) -> None:
    # After the warm-up of 9 s: 0.1, 0.2, 0.1 s are three steps and more than a quarter of a second.
    # The faster half, rounded up, is 0.1 and 0.1: 4 lanes * 2 steps / 0.2 s = 40.
    clock = Clock(9.0, 0.1, 0.2, 0.1)
    assert measured(monkeypatch, clock, 4) == pytest.approx(40.0)
    assert clock.calls == 4


def test_rate_of_quick_steps_rests_on_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.001)
    assert measured(monkeypatch, clock, 8) == pytest.approx(8000.0)
    assert clock.calls == 1 + capacity.MAX_STEPS


def test_rate_of_slow_steps_rests_on_three(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(2.0)
    assert measured(monkeypatch, clock, 1) == pytest.approx(0.5)
    assert clock.calls == 1 + capacity.MIN_STEPS
