"""A study as its rows have it: all that a runner decides on, read anew before every decision."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from service.db.models import StudyRow
from service.launchers.protocol import read_reference
from service.schemas import WarmStart
from service.studies import load_trials, stored_spec
from tuner.evidence import Reference, Trial
from tuner.search.search import Search
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec

_WARM_STARTS: TypeAdapter[tuple[WarmStart, ...]] = TypeAdapter(tuple[WarmStart, ...])


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study and what has become of it.

    Attributes:
        spec: its question.
        reference: what its probe measured; None before.
        trials: all of them, in the order of asking.
        extensions: numbers of further fresh seeds that were asked for, in order.
        warm_start: settings taken over from similar studies; fixed with the probe's result.
    """

    spec: StudySpec
    reference: Reference | None
    trials: tuple[Trial, ...]
    extensions: tuple[int, ...] = ()
    warm_start: tuple[WarmStart, ...] = ()

    @property
    def warm_settings(self) -> tuple[ClipSetting, ...]:
        """What the search begins with."""
        return tuple(each.setting for each in self.warm_start)

    @property
    def is_off_alone(self) -> bool:
        """Whether there is nothing but the first open trial without clipping, beside which others can be trained."""
        return (
            len(self.trials) == 1 and self.trials[0].setting == OFF_SETTING and self.trials[0].state.is_open
        )

    def search(self, reference: Reference) -> Search:
        """The search as it stands.

        Args:
            reference: the probe's result.

        Returns:
            What to train next, and why the search ended if it has.
        """
        return Search.from_trials(
            self.spec, reference, self.trials, extensions=self.extensions, warm_start=self.warm_settings
        )


def load_study(session: Session, study_id: str) -> StoredStudy:
    """Read a study.

    Args:
        session: any transaction.
        study_id: the study.

    Returns:
        The study as of now.
    """
    row = session.get_one(StudyRow, study_id)
    return StoredStudy(
        spec=stored_spec(row.spec),
        reference=read_reference(row.reference) if row.reference else None,
        trials=load_trials(session, row.id),
        extensions=tuple(row.extensions),
        warm_start=_WARM_STARTS.validate_python(row.warm_start or ()),
    )
