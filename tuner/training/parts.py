"""A cohort split into parts that train at the same time, each on a device of its own. Pure, no torch.

A grid of seed groups x trial groups says which lanes a part has. Its groups depend on the cohort's trials as they
were asked, not on which of them have ended: a cohort that goes on after a crash has the same parts, and finds
their checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from tuner.training.cohort import Cohort

_TEXT = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


class Grid(NamedTuple):
    """Into how many parts a cohort is split: one per pair of a seed group and a trial group.

    Attributes:
        num_seed_groups: >= 1.
        num_trial_groups: >= 1.
    """

    num_seed_groups: int
    num_trial_groups: int

    @property
    def num_parts(self) -> int:
        """Seed groups x trial groups."""
        return self.num_seed_groups * self.num_trial_groups

    def __str__(self) -> str:
        return f"{self.num_seed_groups}x{self.num_trial_groups}"

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Read what ``str`` gives.

        Args:
            text: for example ``2x1``.

        Returns:
            The grid.

        Raises:
            ValueError: if it is no such text.

        Example:
            >>> Grid.parse("2x3").num_parts
            6
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"a grid is <seed groups>x<trial groups>, each from 1 to 9999, got {text!r}")
        return cls(int(found[1]), int(found[2]))


def choose_grid(num_trials: int, num_seeds: int, num_slots: int) -> Grid:
    """The grid whose largest part is smallest: the slowest part is what a rung waits for.

    Among equal ones it has the fewest parts, because each costs a process; then the most seed groups, because the
    trials of a seed share its batches and the lane without clipping.

    Args:
        num_trials: of the whole cohort, >= 1.
        num_seeds: >= 1.
        num_slots: devices that may train it, >= 1.

    Returns:
        A grid of at most ``num_slots`` parts, none of them empty.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> str(choose_grid(24, 3, 2)), str(choose_grid(24, 3, 3)), str(choose_grid(24, 1, 4))
        ('1x2', '3x1', '1x4')
    """
    numbers = {"num_trials": num_trials, "num_seeds": num_seeds, "num_slots": num_slots}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be >= 1, got {number}")
    grids = (
        Grid(seed_groups, trial_groups)
        for seed_groups in range(1, min(num_seeds, num_slots) + 1)
        for trial_groups in range(1, min(num_trials, num_slots // seed_groups) + 1)
    )

    def cost(grid: Grid) -> tuple[int, int, int]:
        largest = -(-num_seeds // grid.num_seed_groups) * -(-num_trials // grid.num_trial_groups)
        return largest, grid.num_parts, -grid.num_seed_groups

    return min(grids, key=cost)


def split(cohort: Cohort, whole: Sequence[str], grid: Grid) -> dict[int, Cohort]:
    """The parts of a cohort.

    Seeds are split into runs of neighbours, trials by turns: neighbours of the best threshold live longest, and so
    they spread over the parts. Part ``g * num_trial_groups + h`` has seed group g and trial group h.

    Args:
        cohort: what is left to train.
        whole: ids of all its trials in the order of asking: open, ended and failed.
        grid: at most as many seed groups as seeds, and as many trial groups as ``whole`` has trials.

    Returns:
        By index, from 0; a part without an open trial is left out, the others keep their index. Each has its share of
        ``cohort.ended``.

    Raises:
        ValueError: if the grid has more groups than there are seeds or trials, or the cohort a trial that is not in
            ``whole``.

    Example:
        >>> from tuner.spec import ClipSetting
        >>> from tuner.training.cohort import CohortTrial
        >>> off = ClipSetting.parse("none")
        >>> trials = tuple(CohortTrial(id=each, setting=off) for each in "ac")
        >>> cohort = Cohort(workload="w", parameters={}, trials=trials, seeds=(0, 1), rung_steps=(9,),
        ...     divergence_factor=3.0, ended=("b",))
        >>> [(index, part.clips or part.trials[0].id, part.seeds, part.ended)
        ...     for index, part in split(cohort, "abc", Grid(2, 1)).items()]
        [(0, 'a', (0,), ('b',)), (1, 'a', (1,), ('b',))]
    """
    num_seeds, num_trials = len(cohort.seeds), len(whole)
    if grid.num_seed_groups > num_seeds or grid.num_trial_groups > num_trials:
        raise ValueError(f"a cohort of {num_trials} trials x {num_seeds} seeds can't be split {grid}")
    if unknown := {trial.id for trial in cohort.trials} - set(whole):
        raise ValueError(f"trial {min(unknown)} is not among all trials of its cohort")
    groups = product(range(grid.num_seed_groups), range(grid.num_trial_groups))
    parts = {}
    for index, (seed_group, trial_group) in enumerate(groups):
        ids = set(whole[trial_group :: grid.num_trial_groups])
        trials = tuple(trial for trial in cohort.trials if trial.id in ids)
        first, end = (num_seeds * group // grid.num_seed_groups for group in (seed_group, seed_group + 1))
        if trials:
            ended = tuple(trial for trial in cohort.ended if trial in ids)
            parts[index] = replace(cohort, trials=trials, seeds=cohort.seeds[first:end], ended=ended)
    return parts
