"""Grids and parts: every lane in one part, the largest part as small as it can be, and folders that stay."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import cohort_of

from tuner.training.parts import Grid, choose_grid, split

SETTINGS = ("none", *(f"value:{number}" for number in range(1, 12)))


def largest(grid: Grid, num_trials: int, num_seeds: int) -> int:
    parts = split_of(num_trials, num_seeds, grid)
    return max(len(part.trials) * len(part.seeds) for part in parts.values())


def split_of(num_trials: int, num_seeds: int, grid: Grid):  # type: ignore[no-untyped-def]
    asked = cohort_of(*SETTINGS[:num_trials], seeds=range(num_seeds))
    return split(asked, SETTINGS[:num_trials], grid)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 14))
def test_no_other_grid_has_a_smaller_largest_part(num_trials: int, num_seeds: int, num_slots: int) -> None:
    chosen = choose_grid(num_trials, num_seeds, num_slots)
    every = [Grid(a, b) for a, b in product(range(1, num_seeds + 1), range(1, num_trials + 1))]
    possible = [grid for grid in every if grid.num_parts <= num_slots]
    assert chosen in possible
    best = min(possible, key=lambda grid: (largest(grid, num_trials, num_seeds), grid.num_parts))
    assert largest(chosen, num_trials, num_seeds) == largest(best, num_trials, num_seeds)
    assert chosen.num_parts == best.num_parts


@pytest.mark.parametrize(
    ("num_trials", "num_seeds", "num_slots", "expected"),
    [
        (24, 3, 1, "1x1"),  # one slot
        (24, 3, 2, "1x2"),  # 12 x 3 = 36 lanes; 24 x 2 = 48 the other way
        (24, 2, 2, "2x1"),  # 24 either way: the lane without clipping is shared within a seed
        (24, 3, 4, "1x4"),  # 6 x 3 = 18; 3x1 leaves 24, 2x2 leaves 12 x 2 = 24
        (2, 2, 100, "2x2"),  # a lane each, and no more parts than lanes
        (3, 1, 2, "1x2"),
    ],
)
def test_grids_by_arithmetic(num_trials: int, num_seeds: int, num_slots: int, expected: str) -> None:
    assert str(choose_grid(num_trials, num_seeds, num_slots)) == expected


@given(st.data())
def test_every_lane_is_in_exactly_one_part(data: st.DataObject) -> None:
    num_trials, num_seeds = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    grid = Grid(data.draw(st.integers(1, num_seeds)), data.draw(st.integers(1, num_trials)))
    parts = split_of(num_trials, num_seeds, grid)
    lanes = [(t.id, seed) for part in parts.values() for t in part.trials for seed in part.seeds]
    assert len(parts) == grid.num_parts
    assert sorted(lanes) == sorted(product(SETTINGS[:num_trials], range(num_seeds)))
    sizes = [len(part.trials) for part in parts.values()], [len(part.seeds) for part in parts.values()]
    assert all(max(each) - min(each) <= 1 for each in sizes), "groups are even"


def test_groups_and_indices_do_not_depend_on_what_has_ended() -> None:
    whole = SETTINGS[:5]
    asked = cohort_of(*whole, seeds=(7, 8, 9))
    left = dataclasses.replace(asked, trials=asked.trials[::4], ended=(whole[1], whole[2]))
    parts = split(left, whole, Grid(2, 2))
    assert list(parts) == [0, 2], "the second trial group has nothing left: value:1 ended, value:3 failed"
    assert [part.seeds for part in parts.values()] == [(7,), (8, 9)]
    assert {tuple(trial.id for trial in part.trials) for part in parts.values()} == {(whole[0], whole[4])}
    assert {part.ended for part in parts.values()} == {(whole[2],)}


def test_one_part_is_the_cohort() -> None:
    asked = cohort_of("none", "value:1", history={4: (1.0,)})
    assert split(asked, ("none", "value:1"), Grid(1, 1)) == {0: asked}


@pytest.mark.parametrize("text", ["", "2", "0x1", "2x", "2x1x1", "../2x1", "2x1\n", "-1x2", "12345x1"])
def test_text_that_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a grid is <seed groups>x<trial groups>"):
        Grid.parse(text)


def test_grid_survives_its_text() -> None:
    assert Grid.parse(str(Grid(12, 3))) == Grid(12, 3)


@pytest.mark.parametrize("name", ["num_trials", "num_seeds", "num_slots"])
def test_number_below_one_is_refused(name: str) -> None:
    numbers = {"num_trials": 2, "num_seeds": 2, "num_slots": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        choose_grid(**numbers)


@pytest.mark.parametrize("grid", [Grid(3, 1), Grid(1, 3)])
def test_grid_with_more_groups_than_there_are_lanes_is_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match=f"a cohort of 2 trials x 2 seeds can't be split {grid}"):
        split(cohort_of("none", "value:1"), ("none", "value:1"), grid)


def test_trial_of_another_cohort_is_refused() -> None:
    with pytest.raises(ValueError, match="trial value:1 is not among all trials"):
        split(cohort_of("none", "value:1"), ("none",), Grid(1, 1))
