"""Propose clip settings: a fixed opening, then Optuna by ask and tell, in memory.

The opening is *off*, the value in use today and a log-uniform spread over the methods; after it the sampler is
asked (`tuner.search.sampler`, imported when first needed). A proposal depends on the spec, the reference and
the trials alone: the same trials always give the same proposals, so a study that crashed goes on exactly like
an undisturbed one. Nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuner.evidence import Reference, Trial
from tuner.search.space import ThresholdRange, is_known, threshold_ranges
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec

#: Thresholds of the opening beyond *off* and today's value, if the first cohort has no room for more.
MIN_OPENING = 4


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to try next in a study.

    Attributes:
        spec: the question.
        ranges: where thresholds may lie, one range per method.
        trials: all trials so far, whatever their state, ordered by number.
    """

    spec: StudySpec
    ranges: tuple[ThresholdRange, ...]
    trials: tuple[Trial, ...]

    @classmethod
    def from_trials(cls, spec: StudySpec, reference: Reference, trials: Iterable[Trial]) -> Search:
        """Rebuild the search from what is stored.

        Args:
            spec: the question.
            reference: the probe's result.
            trials: all trials so far, in any order.

        Returns:
            The search.
        """
        ordered = tuple(sorted(trials, key=lambda trial: trial.number))
        return cls(spec=spec, ranges=threshold_ranges(spec, reference), trials=ordered)

    @property
    def remaining(self) -> int:
        """Settings still to be proposed; failed trials count as proposed."""
        return max(0, self.spec.num_trials - len(self.trials))

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be proposed."""
        return self.remaining == 0

    def ask(self, count: int) -> tuple[ClipSetting, ...]:
        """The next settings, different from each other and from those tried (by 1 % at least, while there is room).

        Args:
            count: how many are wanted, >= 0, for example the spec's ``cohort_size``.

        Returns:
            At most ``remaining`` settings; *off* first in a new study.
        """
        count = min(count, self.remaining)
        tried = [trial.setting for trial in self.trials]
        chosen = [each for each in opening(self.spec, self.ranges) if not is_known(each, tried)][:count]
        if len(chosen) < count:
            from tuner.search.sampler import propose

            chosen += propose(
                self.ranges, self.trials, chosen, count=count - len(chosen), seed=self.spec.seed
            )
        return tuple(chosen)


def opening(spec: StudySpec, ranges: tuple[ThresholdRange, ...]) -> tuple[ClipSetting, ...]:
    """What a study tries before it learns: as many settings as the first cohort holds, or a few more.

    Args:
        spec: gives today's value and the sizes.
        ranges: one per method.

    Returns:
        *off*, today's value, then the same number of log-spaced thresholds for every method (one more for the
        first ones if they don't divide).
    """
    settings = [OFF_SETTING]
    if spec.current is not None and not spec.current.is_off:
        settings.append(spec.current)
    size = min(spec.num_trials, max(spec.cohort_size, len(settings) + MIN_OPENING)) - len(settings)
    share, rest = divmod(max(size, 0), len(ranges))
    for number, each in enumerate(ranges):
        for threshold in each.spread(share + (number < rest)):
            setting = ClipSetting(method=each.method, threshold=threshold)
            if not is_known(setting, settings):
                settings.append(setting)
    return tuple(settings)
