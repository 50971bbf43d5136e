"""What reports of a lane mean, as tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tuner.errors import SpecError
from tuner.user_loop.reports import Reports

INF = math.inf


@pytest.mark.parametrize(
    ("reported", "rungs", "value", "divergence_step"),
    [
        ([(0, 4.0), (10, 3.0), (30, 2.0), (90, 1.0)], {10: 3.0, 30: 2.0, 90: 1.0}, 1.0, None),
        ([(12, 3.0), (29, 2.5), (31, 2.0), (95, 1.0)], {10: 3.0, 30: 2.0, 90: 1.0}, 1.0, None),
        ([(90, 1.0)], {10: 1.0, 30: 1.0, 90: 1.0}, 1.0, None),
        ([(12, 3.0)], {10: 3.0}, 3.0, None),
        ([(12, 3.0), (20, math.nan)], {10: 3.0, 30: INF, 90: INF}, None, 20),
        ([(0, 4.0), (12, 12.1)], {10: INF, 30: INF, 90: INF}, None, 12),
        ([(0, 4.0), (12, 12.0)], {10: 12.0}, 12.0, None),
        ([(1, 4.0), (12, 1000.0)], {10: 1000.0}, 1000.0, None),
        ([(0, -4.0), (12, 1000.0)], {10: 1000.0}, 1000.0, None),
        ([(0, -INF)], {10: INF, 30: INF, 90: INF}, None, 0),
    ],
)
def test_rungs_and_divergence(
    reported: list[tuple[int, float]],
    rungs: dict[int, float],
    value: float | None,
    divergence_step: int | None,
) -> None:
    reports = Reports((10, 30, 90), divergence_factor=3.0)
    told = [step for report in reported for step in reports.add(*report)]
    assert reports.rungs == rungs
    assert told == list(rungs)
    assert (reports.value, reports.divergence_step) == (value, divergence_step)


def test_last_value_stands_for_rungs_that_were_not_reached() -> None:
    reports = Reports((10, 30, 90), divergence_factor=3.0)
    assert reports.close() == ()
    reports.add(12, 3.0)
    assert reports.close() == (30, 90)
    assert reports.rungs == {10: 3.0, 30: 3.0, 90: 3.0}


def test_numbers_of_any_library_are_numbers() -> None:
    reports = Reports((10,), divergence_factor=3.0)
    reports.add(torch.tensor(0), torch.tensor(2.0))
    reports.add(torch.tensor(10), torch.tensor([1.5]))
    assert (reports.initial, reports.value) == (2.0, 1.5)


@pytest.mark.parametrize(
    ("step", "value", "sentence"),
    [
        (5, 1.0, "step must be >= 6, because 5 was reported, got 5: count optimizer steps"),
        (-1, 1.0, "step must be >= 6, because 5 was reported, got -1"),
        (6.0, 1.0, "step must be a whole number of optimizer steps, got 6.0"),
        ("6", 1.0, "step must be a whole number of optimizer steps, got '6'"),
        (6, None, "value must be one number, the objective, got NoneType"),
        (6, "low", "value must be one number, the objective, got str"),
        (6, torch.ones(2), "value must be one number, the objective, got Tensor"),
    ],
)
def test_what_is_no_report_is_refused(step: Any, value: Any, sentence: str) -> None:
    reports = Reports((10,), divergence_factor=3.0)
    reports.add(5, 1.0)
    with pytest.raises(SpecError) as caught:
        reports.add(step, value)
    assert str(caught.value).startswith(sentence)
    assert reports.last_step == 5


def test_first_step_is_not_negative() -> None:
    with pytest.raises(SpecError, match="step must be >= 0, got -1"):
        Reports((10,), divergence_factor=3.0).add(-1, 1.0)
