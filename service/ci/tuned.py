"""The study that `cliptune tune` waited for, as a report tells it: how it ended, and what it recommends. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from service.ci.judgement import Severity
from service.ci.recommended import Measured, Recommended
from service.ci.sentences import number
from tuner.evidence import Verdict
from tuner.methods import get_method
from tuner.spec import OFF_SETTING, ClipSetting

EXIT_TIMED_OUT, EXIT_STUDY, EXIT_INTERRUPTED = 4, 5, 130


class Ending(StrEnum):
    """How the waiting for a study ended."""

    #: With an answer.
    SUCCEEDED = "succeeded"
    #: The study gave up.
    FAILED = "study_failed"
    #: Somebody cancelled it.
    CANCELLED = "study_cancelled"
    #: The time was over; the study goes on.
    TIMED_OUT = "timed_out"
    #: The command was interrupted; the study goes on.
    INTERRUPTED = "interrupted"
    #: The service went away; the study goes on once it is back.
    LOST = "unavailable"


_EXIT_CODES: Mapping[Ending, int] = {
    Ending.FAILED: EXIT_STUDY,
    Ending.CANCELLED: EXIT_STUDY,
    Ending.TIMED_OUT: EXIT_TIMED_OUT,
    Ending.INTERRUPTED: EXIT_INTERRUPTED,
}
_TITLES: Mapping[Verdict, str] = {
    Verdict.CLIP: "clipping helps",
    Verdict.DO_NOT_CLIP: "clipping off is recommended",
    Verdict.NO_DIFFERENCE: "clipping makes no difference here",
    Verdict.INCONCLUSIVE: "the study has not settled",
}
_ENDED_TITLES: Mapping[Ending, str] = {
    Ending.FAILED: "the study failed",
    Ending.CANCELLED: "the study was cancelled",
    Ending.TIMED_OUT: "the study is not done yet",
    Ending.INTERRUPTED: "the wait for the study was interrupted",
    Ending.LOST: "the study could not be followed",
}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A study and how it ended.

    Attributes:
        study_id: the study.
        url: where a program reads about it.
        workload: what it trains.
        state: of the study, in the service's word, when it was last seen.
        ending: how the waiting ended.
        is_replayed: whether the study was there already when it was asked for.
        recommendation: its answer; None unless it succeeded.
        current: the setting in use that it compared with; None without one.
        cause: why it failed, or went out of sight; empty otherwise.
        code: of the cause, stable.
        resume: the command that goes on waiting.
        is_softened: whether nothing fails the command.
    """

    study_id: str
    url: str
    workload: str
    state: str
    ending: Ending
    is_replayed: bool = False
    recommendation: Recommended | None = None
    current: ClipSetting | None = None
    cause: str = ""
    code: str = ""
    resume: str = ""
    is_softened: bool = False

    @property
    def exit_code(self) -> int:
        """What the command exits with for the study alone; an outage has a rule of its own."""
        return _EXIT_CODES.get(self.ending, 0)

    @property
    def verdict(self) -> str:
        """The study's verdict, else how the waiting ended."""
        return str(self.recommendation.verdict) if self.recommendation is not None else str(self.ending)

    @property
    def settled(self) -> Recommended | None:
        """The answer if it says what to use: that of a study that has not settled does not."""
        found = self.recommendation
        return None if found is None or found.verdict is Verdict.INCONCLUSIVE else found

    @property
    def severity(self) -> Severity:
        """Whether to look at it."""
        if self.recommendation is not None:
            return Severity.WARNING if self.settled is None else Severity.OK
        return Severity.FAILURE if self.exit_code and not self.is_softened else Severity.WARNING

    @property
    def title(self) -> str:
        """How it ended in a few words."""
        found = self.recommendation
        return _ENDED_TITLES[self.ending] if found is None else _TITLES[found.verdict]

    @property
    def subject(self) -> str:
        """The study as the first words of a sentence."""
        return f"study {self.study_id[:8]} of {self.workload}"

    @property
    def sentence(self) -> str:
        """How it ended, with its figures or with what to do."""
        if self.recommendation is not None:
            return _answer(self.recommendation)
        if self.ending in (Ending.FAILED, Ending.CANCELLED):
            cause = f": {self.cause.removesuffix('.')}" if self.cause else ""
            earlier = " It was submitted earlier." if self.is_replayed else ""
            return f"T{self.title[1:]}{cause}.{earlier} Give --again to submit it anew."
        state = f"is {self.state} and " if self.ending is Ending.TIMED_OUT else ""
        return f"T{self.title[1:]}: it {state}goes on (resume with: {self.resume})."

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """The answer as names and values, for a table; nothing without one."""
        found = self.recommendation
        if found is None:
            return ()
        rows = [("recommended", recommended_words(found))]
        if found.interval is not None:
            low, high = found.interval
            unit = get_method(found.setting.method).threshold_unit
            rows.append(("as good", f"{number(low)} to {number(high)}, in units of the {unit}"))
        for name, setting in (("against off", OFF_SETTING), ("against now", self.current)):
            measured = next((each for each in found.measured if each.setting == setting), None)
            if found.best is not None and measured is not None and setting != found.best:
                rows.append((name, _compared(found, found.best, measured)))
        if found.margin is not None:
            rows.append(("would matter", f"{found.margin:.3g}"))
        rows.append(("why", found.reason))
        return tuple(rows)


def recommended_words(found: Recommended) -> str:
    """What to train with, in a word; a study that has not settled says so.

    Args:
        found: the recommendation.

    Returns:
        A setting.
    """
    setting = "off" if found.setting.is_off else str(found.setting)
    return f"{setting} (not settled)" if found.verdict is Verdict.INCONCLUSIVE else setting


def _answer(found: Recommended) -> str:
    """The answer in sentences."""
    if found.verdict is Verdict.INCONCLUSIVE:
        told, more = f"It has not settled. {_ended(found.reason)}", found.more_seeds
        if more is None:
            # The reason says what would help: seeds are not all that a study can lack.
            return told
        return (
            f"{told} About {more} further fresh seeds would settle it: cliptune extend {found.study_id[:8]} "
            f"--seeds {more}."
        )
    use = recommended_words(found)
    good = ""
    if found.interval is not None:
        unit = get_method(found.setting.method).threshold_unit
        good = f", and {number(found.interval[0])} to {number(found.interval[1])} is as good, in units of the {unit}"
    plural = "" if found.num_seeds == 1 else "s"
    return f"Use {use}{good}. {_ended(found.reason)} {found.num_seeds} seed{plural}, {found.created_at:%Y-%m-%d}."


def _compared(found: Recommended, best: ClipSetting, measured: Measured) -> str:
    """How the best clip setting did against another one, seed by seed."""
    other = "off" if measured.setting.is_off else str(measured.setting)
    total = measured.num_seeds + measured.num_diverged
    lost = f"; {other} diverged in {measured.num_diverged} of {total} seeds" if measured.num_diverged else ""
    difference = measured.difference
    if difference is None:
        return f"{best} has too few seeds in common with {other} to compare them{lost}"
    word = "worse" if difference.mean > 0 else "better"
    seeds = "fresh" if measured.is_fresh else "search"
    return (
        f"{best} ends at a {found.objective} {abs(difference.mean):.3g} {word} than {other} (95 % interval "
        f"of the difference {difference.low:+.3g} to {difference.high:+.3g}, {difference.num_pairs} paired {seeds} "
        f"seeds){lost}"
    )


def _ended(text: str) -> str:
    """A sentence's end, with its full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
