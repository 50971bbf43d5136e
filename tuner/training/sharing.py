"""Lanes that are, bit for bit, the *off* lane of their seed are not trained twice.

Under a method without a state a lane equals the run without clipping at the same learning rate until its threshold
is first exceeded. Such a trial follows *off* and costs nothing; `Watch` looks on the device whether its threshold
would have been exceeded, and the engine then lets it go its own way from the last point where it was still the
same. A trial that never leaves is *off* under another name, and is reported with off's results.

Shape letters: S = seeds, F = trials that follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tuner.clippers import clipper_class
from tuner.spec import ClipSetting
from tuner.training.cohort import Cohort, CohortTrial

#: A trial starts as a follower if its threshold is this far above the largest norm the probe saw.
HEADROOM = 1.5
#: Followers that are this close to the largest norm so far leave together with one that must leave: each departure
#: costs the recording of another program.
COMPANY = 8.0


def followers(cohort: Cohort) -> dict[str, ClipSetting]:
    """The trials of a cohort that start as the leader's lanes of their seeds.

    Args:
        cohort: with *off* among its trials, and the probe's largest norm; without either nothing follows.

    Returns:
        Their settings by trial.
    """
    first = _leader(cohort)
    return {} if first is None else {trial.id: trial.setting for trial in _followers_of(first, cohort)}


def leader(cohort: Cohort) -> str | None:
    """The trial without clipping, with the most followers if there are several; None if the cohort has none."""
    first = _leader(cohort)
    return None if first is None else first.id


def _leader(cohort: Cohort) -> CohortTrial | None:
    off = [trial for trial in cohort.trials if trial.setting.is_off]
    return max(off, key=lambda trial: len(_followers_of(trial, cohort)), default=None)


def _followers_of(off: CohortTrial, cohort: Cohort) -> list[CohortTrial]:
    """Who may follow a trial without clipping: far thresholds of methods without a state, at its learning rate."""
    if cohort.largest_norm is None:
        return []
    bound = HEADROOM * cohort.largest_norm
    return [
        trial
        for trial in cohort.trials
        if trial.setting.threshold is not None
        and clipper_class(trial.setting.method).is_off_until_exceeded
        and trial.setting.threshold > bound
        and trial.setting.learning_rate_scale == off.setting.learning_rate_scale
    ]


class Watch:
    """Looks on the device whether *off* exceeds the thresholds of those that follow it.

    Args:
        rows: off's rows in its lane batch, one per seed, shape (S,), int64.
        settings: of the followers, by trial.
        before: a watch over the same followers whose observations since the last look go on to count; None if
            there is none.

    Attributes:
        trials: the followers, length F.
    """

    def __init__(
        self, rows: Tensor, settings: Mapping[str, ClipSetting], before: Watch | None = None
    ) -> None:
        self._rows = rows
        self.trials = tuple(sorted(settings, key=lambda trial: (settings[trial].method, trial)))
        self._methods = sorted({setting.method for setting in settings.values()})
        self._thresholds = {
            method: _thresholds([settings[trial] for trial in self.trials], method, rows.device)
            for method in self._methods
        }
        # What was seen since the last look, at the thresholds, at a share of them, and at a smaller share.
        self._seen = torch.zeros(3, len(self.trials), dtype=torch.bool, device=rows.device)
        if before is not None and before.trials == self.trials:
            self._seen.copy_(before._seen)

    def watches(self, settings: Mapping[str, ClipSetting]) -> bool:
        """Whether these are the followers."""
        return set(self.trials) == set(settings)

    def observe(self, grads: Tensor, norm: Tensor, live: Tensor) -> None:
        """Look at one step's gradients before clipping; no host synchronization.

        Args:
            grads: of the whole lane batch, shape (L, P).
            norm: their L2 norms, shape (L,).
            live: lanes that have not diverged, shape (L,), bool.
        """
        own, norms, alive = grads[self._rows], norm[self._rows], live[self._rows].unsqueeze(1)
        for level, share in enumerate((1.0, 1.0 / HEADROOM, 1.0 / COMPANY)):
            seen = [
                (clipper_class(method).is_exceeded(own, norms, share * self._thresholds[method]) & alive).any(
                    0
                )
                for method in self._methods
            ]
            self._seen[level] |= torch.cat(seen)

    def look(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Who must leave; waits for the device, and starts anew.

        Returns:
            Trials whose threshold was exceeded since the last look, and trials that leave now, before theirs is.
        """
        exceeded, near, company = (self._where(row) for row in self._seen.tolist())
        self._seen.zero_()
        if not near:
            return exceeded, ()
        return exceeded, tuple(trial for trial in company if trial not in exceeded)

    def _where(self, seen: Sequence[bool]) -> tuple[str, ...]:
        return tuple(trial for trial, is_seen in zip(self.trials, seen, strict=True) if is_seen)


def _thresholds(settings: Sequence[ClipSetting], method: str, device: torch.device) -> Tensor:
    values = [setting.threshold for setting in settings if setting.method == method]
    return torch.tensor(values, dtype=torch.float64, device=device)
