"""All that one check or one tuning found, and what the process exits with: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from service.ci.judgement import Judgement, Severity
from service.ci.outage import Outage
from service.ci.tuned import EXIT_INTERRUPTED, Ending, Tuned

#: Whether an outage of the service fails the check.
OnServiceError = Literal["fail", "warn"]

EXIT_FAILED, EXIT_REFUSED, EXIT_OUTAGE = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A config file whose clip value can't be told.

    Attributes:
        file: its path, as the report shows it.
        line: of what is in the way, from 1; 1 if it is about the whole file.
        code: of the error, stable.
        sentence: what is in the way and what to do.
    """

    file: str
    line: int
    code: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        judgements: the worst first, then by place; `report` orders them.
        refusals: files that could not be judged, by place.
        outage: why the service gave nothing; None if it answered, or was not asked.
        on_service_error: whether an outage fails the check.
        exit_zero: whether the process exits with 0 whatever was found; then nothing in the report fails.
        study: the one that was waited for; None in a check.
    """

    judgements: tuple[Judgement, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    outage: Outage | None = None
    on_service_error: OnServiceError = "warn"
    exit_zero: bool = False
    study: Tuned | None = None

    @property
    def exit_code(self) -> int:
        """1 for a value that failed, 2 for a file that is refused, the study's own, 3 for an outage that counts."""
        if self.study is not None and self.study.ending is Ending.INTERRUPTED:
            return EXIT_INTERRUPTED
        if self.exit_zero:
            return 0
        if self.num_failures:
            return EXIT_FAILED
        if self.refusals:
            return EXIT_REFUSED
        if self.study is not None and self.study.exit_code:
            return self.study.exit_code
        return EXIT_OUTAGE if self.outage is not None and self.on_service_error == "fail" else 0

    @property
    def worst(self) -> Judgement | None:
        """The judgement that a single line is about; None without any."""
        return self.judgements[0] if self.judgements else None

    @property
    def num_failures(self) -> int:
        """Values that fail the check."""
        return self._counts[Severity.FAILURE]

    @property
    def num_warnings(self) -> int:
        """Values to look at."""
        return self._counts[Severity.WARNING]

    @property
    def num_ok(self) -> int:
        """Values that are as they should be."""
        return self._counts[Severity.OK]

    @cached_property
    def _counts(self) -> Counter[Severity]:
        return Counter(each.severity for each in self.judgements)

    @property
    def summary(self) -> str:
        """The counts as a sentence.

        Example:
            >>> Report().summary
            'No clip value was checked.'
        """
        total = len(self.judgements)
        counts = [
            (self.num_failures, "failed"),
            (self.num_warnings, "to look at"),
            (self.num_ok, "ok"),
            (len(self.refusals), "not readable"),
        ]
        told = ", ".join(f"{count} {words}" for count, words in counts if count)
        if not total and not self.refusals:
            # No text of the service: formats print this as it is.
            title = "No clip value was checked" if self.study is None else self.study.title
            return f"{title[:1].upper()}{title[1:]}."
        return f"{total} clip value{'' if total == 1 else 's'} checked: {told}."


def report(
    judgements: Iterable[Judgement],
    *,
    refusals: Iterable[Refusal] = (),
    outage: Outage | None = None,
    on_service_error: OnServiceError = "warn",
    exit_zero: bool = False,
    study: Tuned | None = None,
) -> Report:
    """Put a check's findings in the order in which every format shows them.

    Args:
        judgements: one per value, in any order.
        refusals: files that could not be judged, likewise.
        outage: why the service gave nothing.
        on_service_error: whether an outage fails the check.
        exit_zero: whether nothing does.
        study: the one that was waited for.

    Returns:
        The report; what is softened by ``exit_zero`` is a warning in it.
    """
    found = map(_softened, judgements) if exit_zero else judgements
    ordered = sorted(
        found,
        key=lambda each: (each.severity.rank, each.checked.file, each.checked.line, each.checked.key),
    )
    return Report(
        judgements=tuple(ordered),
        refusals=tuple(sorted(refusals, key=lambda each: (each.file, each.line))),
        outage=outage,
        on_service_error="warn" if exit_zero else on_service_error,
        exit_zero=exit_zero,
        study=replace(study, is_softened=True) if study is not None and exit_zero else study,
    )


def _softened(judgement: Judgement) -> Judgement:
    if judgement.severity is not Severity.FAILURE:
        return judgement
    return replace(judgement, severity=Severity.WARNING)
