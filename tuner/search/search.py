"""Propose clip settings: a broad opening, refinement around the leaders by Optuna, then confirmation on fresh seeds.

The opening is *off*, the value in use today, what earlier studies suggest and a log-uniform spread over the methods;
after it the sampler is asked (`tuner.search.sampler`, imported when first needed) within the stretch that the opening
leaves open. A proposal depends on the spec, the reference and the trials alone: the same trials always give the same
proposals, so a study that crashed goes on exactly like an undisturbed one. Nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuner.evidence import Reference, Stage, Trial
from tuner.search.confirmation import Asked, confirmation
from tuner.search.space import Space, is_known, refined, search_space
from tuner.search.stopping import reason_to_stop
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec

#: Thresholds of the opening beyond *off* and today's value, if the first cohort has no room for more.
MIN_OPENING = 4
#: Share of an opening with a tuned learning rate that trains without clipping.
OFF_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to train next in a study.

    Attributes:
        spec: the question.
        reference: the probe's result.
        space: where settings may lie.
        trials: all trials so far, whatever their state, ordered by number.
        extensions: further rounds of confirmation that were asked for, each with its number of seeds.
        warm_start: settings that earlier studies suggest; they are part of the opening.
    """

    spec: StudySpec
    reference: Reference
    space: Space
    trials: tuple[Trial, ...]
    extensions: tuple[int, ...] = ()
    warm_start: tuple[ClipSetting, ...] = ()

    @classmethod
    def from_trials(
        cls,
        spec: StudySpec,
        reference: Reference,
        trials: Iterable[Trial],
        *,
        extensions: Iterable[int] = (),
        warm_start: Iterable[ClipSetting] = (),
    ) -> Search:
        """Rebuild the search from what is stored.

        Args:
            spec: the question.
            reference: the probe's result.
            trials: all trials so far, in any order.
            extensions: numbers of further fresh seeds, in the order in which they were asked for.
            warm_start: settings that earlier studies suggest, the same in every call for a study.

        Returns:
            The search.
        """
        return cls(
            spec=spec,
            reference=reference,
            space=search_space(spec, reference),
            trials=tuple(sorted(trials, key=lambda trial: trial.number)),
            extensions=tuple(extensions),
            warm_start=tuple(warm_start),
        )

    @property
    def searched(self) -> tuple[Trial, ...]:
        """The trials that search; the others confirm."""
        return tuple(trial for trial in self.trials if trial.stage is Stage.SEARCH)

    @property
    def end(self) -> str | None:
        """Why no further setting is tried, as a sentence; None while the search goes on."""
        searched = self.searched
        if len(searched) >= self.spec.num_trials:
            return f"all {self.spec.num_trials} settings asked for were tried"
        tried = [trial.setting for trial in searched]
        if any(trial.state.is_open for trial in searched) or not all(
            is_known(each, tried) for each in self._opening()
        ):
            return None
        return reason_to_stop(self.spec, searched)

    def ask(self) -> Asked | None:
        """The settings to train next, together.

        Returns:
            During the search at most the spec's ``cohort_size`` of them, different from each other and from those
            tried (by 1 % at least, while there is room), *off* first in a new study; then what is to be confirmed on
            fresh seeds; None if nothing is left to train.
        """
        if self.end is None:
            return Asked(settings=self._propose(), stage=Stage.SEARCH, seeds=self.spec.seeds)
        if any(trial.state.is_open for trial in self.searched):
            return None
        return confirmation(self.spec, self.reference, self.trials, self.extensions)

    def _propose(self) -> tuple[ClipSetting, ...]:
        searched = self.searched
        tried = [trial.setting for trial in searched]
        count = min(self.spec.cohort_size, self.spec.num_trials - len(searched))
        chosen = [each for each in self._opening() if not is_known(each, tried)][:count]
        if len(chosen) < count:
            from tuner.search.sampler import propose

            space = refined(self.space, searched) if not chosen else self.space
            chosen += propose(space, searched, chosen, count=count - len(chosen), seed=self.spec.seed)
        return tuple(chosen)

    def _opening(self) -> tuple[ClipSetting, ...]:
        return opening(self.spec, self.space, self.warm_start)


def opening(spec: StudySpec, space: Space, warm_start: Iterable[ClipSetting] = ()) -> tuple[ClipSetting, ...]:
    """What a study tries before it learns: as many settings as the first cohort holds, or a few more.

    Args:
        spec: gives today's value and the sizes.
        space: where settings may lie.
        warm_start: what earlier studies suggest.

    Returns:
        *off*, today's value and the suggestions, then the same number of log-spaced thresholds for every method (one
        more for the first ones if they don't divide). With a tuned learning rate a quarter of the opening is *off* at
        other rates, and the thresholds are spread over the rates too.
    """
    settings: list[ClipSetting] = []
    fixed = (OFF_SETTING, spec.current, *warm_start)
    for setting in (each for each in fixed if each is not None):
        if not is_known(setting, settings):
            settings.append(setting)
    settings = settings[: max(2, spec.num_trials // 2)]
    size = min(spec.num_trials, max(spec.cohort_size, len(settings) + MIN_OPENING))
    if space.rates is not None:
        for scale in space.rates.spread(round(size * OFF_SHARE)):
            _add(settings, ClipSetting(method=OFF_SETTING.method, learning_rate_scale=scale))
    share, rest = divmod(max(size - len(settings), 0), len(space.ranges))
    for number, each in enumerate(space.ranges):
        for setting in space.spread(each, share + (number < rest)):
            _add(settings, setting)
    return tuple(settings[:size])


def _add(settings: list[ClipSetting], setting: ClipSetting) -> None:
    if not is_known(setting, settings):
        settings.append(setting)
