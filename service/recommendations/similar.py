"""Answers of studies that trained something similar, for who has no study of their own yet.

The newest version of each study's recommendation counts, and only if it is settled. Reading is bounded: one range of
one index (tenant, optimizer, number of parameters), at most `_MOST_READ` rows without their bodies, then the bodies of
the nearest until enough can be carried over, at most `MOST_BODIES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from service.db.models import RecommendationRow
from service.recommendations.answers import Found
from service.recommendations.carrying import Carried, carried_scale, carry_over
from service.recommendations.distance import FARTHEST, OTHER_MODEL, Comparison, Subject, compare
from service.schemas import NeighbourOut
from tuner.evidence import Verdict
from tuner.methods import GradientScale, get_method
from tuner.spec import ClipSetting

#: Neighbours in an answer.
MAX_NEIGHBOURS = 5
#: Rows that one query looks at, those nearest in size first.
_MOST_READ = 1000
#: Bodies that one question reads, one by one: in the usual case two or five are enough. A worker asks while it holds
#: its study's row: without a bound, 1,000 neighbours of one setting held it for 0.8 s on PostgreSQL, 9 s on a busy
#: machine.
MOST_BODIES = 20
_SETTLED = (Verdict.CLIP, Verdict.NO_DIFFERENCE, Verdict.DO_NOT_CLIP)
_ADVICE = "submit a study with POST /v1/studies"


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A settled recommendation near what is asked about.

    Attributes:
        row: its columns, without the body.
        comparison: how far it is, and why.
    """

    row: Row[Any]
    comparison: Comparison


def find_similar(session: Session, *, tenant_id: str, asked: Subject, median_norm: float | None) -> Found:
    """Answers of similar studies, carried over to the norms of the training that is asked about.

    Args:
        session: any transaction.
        tenant_id: whose recommendations.
        asked: what is trained.
        median_norm: median L2 norm of its gradients before clipping, at the start of training.

    Returns:
        ``similar`` with the nearest, or ``none`` with the reason: no norm to carry a threshold over with, another
        optimizer, too far, or nothing settled.
    """
    if median_norm is None:
        return _none(
            "a threshold is carried over relative to the median gradient norm: give median_norm, the median L2 norm of "
            "your gradients before clipping over the first steps"
        )
    near = neighbours(session, tenant_id=tenant_id, asked=asked)
    reachable = [each for each in near if each.comparison.quality is not None]
    if not reachable:
        return _none(_why_none(session, tenant_id, asked, near))
    found = _carried(session, reachable, asked, {"l2_norm": median_norm})
    if not found:
        return _none(_why_not_carried(session, asked, reachable[0]))
    return Found("similar", None, _sentence(found), neighbours=tuple(found))


def neighbours(
    session: Session, *, tenant_id: str, asked: Subject, without_study: str | None = None
) -> list[Neighbour]:
    """Settled recommendations with the same optimizer, the nearest first, those too far to use included.

    Args:
        session: any transaction.
        tenant_id: whose recommendations.
        asked: what is trained.
        without_study: a study that does not count.

    Returns:
        One per study; equally near ones in the order of their age, the newest first.
    """
    newest: dict[str, Row[Any]] = {}
    for row in session.execute(_candidates(tenant_id, asked)):
        if row.study_id != without_study and (
            row.study_id not in newest or newest[row.study_id].version < row.version
        ):
            newest[row.study_id] = row
    found = [
        Neighbour(row=row, comparison=compare(asked, _subject(row)))
        for row in newest.values()
        if row.verdict in _SETTLED
    ]
    return sorted(found, key=lambda each: (each.comparison.distance, -each.row.created_at, each.row.id))


def body_of(session: Session, neighbour: Neighbour) -> dict[str, Any]:
    """A neighbour's recommendation, as `service.schemas.RecommendationOut` in JSON values."""
    wanted = select(RecommendationRow.body).where(RecommendationRow.id == neighbour.row.id)
    body: dict[str, Any] = session.execute(wanted).scalar_one()
    return body


def has_median(neighbour: Neighbour, medians: Mapping[GradientScale, float]) -> bool:
    """Whether a neighbour's threshold could be carried over, as far as its method tells.

    Args:
        neighbour: it.
        medians: see `service.recommendations.carrying.carry_over`.

    Returns:
        False if its threshold is relative to a quantity that is not known here, or is 0.
    """
    scale = get_method(neighbour.row.method).scale
    return scale is None or bool(medians.get(scale))


def carry(
    neighbour: Neighbour, body: Mapping[str, Any], asked: Subject, medians: Mapping[GradientScale, float]
) -> Carried | None:
    """What a stored recommendation suggests at other gradient norms and another base learning rate.

    Args:
        neighbour: it.
        body: its recommendation.
        asked: what is trained here.
        medians: see `service.recommendations.carrying.carry_over`.

    Returns:
        The setting with its interval; None if it can't be carried over.
    """
    interval = body["interval"]
    return carry_over(
        ClipSetting(**body["setting"]),
        None if interval is None else (interval[0], interval[1]),
        kappa=body["kappa"],
        medians=medians,
        rate_there=neighbour.row.learning_rate,
        rate_here=asked.learning_rate,
    )


def _candidates(tenant_id: str, asked: Subject) -> Select[*tuple[Any, ...]]:
    row = RecommendationRow
    columns = (row.id, row.study_id, row.version, row.workload, row.verdict, row.method, row.created_at)
    features = (row.num_parameters, row.learning_rate, row.batch_size, row.precision, row.model_signature)
    found: Select[*tuple[Any, ...]] = select(*columns, row.optimizer, *features).where(
        row.tenant_id == tenant_id, row.optimizer == asked.optimizer
    )
    if asked.num_parameters is None:
        return found.order_by(row.created_at.desc(), row.id).limit(_MOST_READ)
    # Twice the reach in size, so that the reason of a refusal can name what is there.
    reach = 10 ** (2 * (FARTHEST - OTHER_MODEL))
    low, high = int(asked.num_parameters / reach), int(asked.num_parameters * reach)
    return (
        found.where(row.num_parameters.between(low, min(high, 2**62)))
        .order_by(func.abs(row.num_parameters - asked.num_parameters), row.created_at.desc(), row.id)
        .limit(_MOST_READ)
    )


def _subject(row: Row[Any]) -> Subject:
    return Subject(**{name: getattr(row, name) for name in Subject.__dataclass_fields__})


def _carried(
    session: Session, near: Sequence[Neighbour], asked: Subject, medians: Mapping[GradientScale, float]
) -> list[NeighbourOut]:
    found: list[NeighbourOut] = []
    known = [each for each in near if has_median(each, medians)]
    for each in known[:MOST_BODIES]:
        if len(found) == MAX_NEIGHBOURS:
            break
        body = body_of(session, each)
        if (carried := carry(each, body, asked, medians)) is None or each.comparison.quality is None:
            continue
        found.append(
            NeighbourOut(
                recommendation_id=each.row.id,
                study_id=each.row.study_id,
                workload=each.row.workload,
                verdict=Verdict(each.row.verdict),
                setting=carried.setting,
                interval=carried.interval,
                kappa=None if carried.setting.is_off else body["kappa"],
                distance=each.comparison.distance,
                quality=each.comparison.quality,
                differences=each.comparison.differences,
                created_at=datetime.fromtimestamp(each.row.created_at / 1000, UTC),
            )
        )
    return found


_SAID = {
    Verdict.CLIP: "clipping helped",
    Verdict.NO_DIFFERENCE: "clipping made no difference",
    Verdict.DO_NOT_CLIP: "clipping did harm",
}


def _sentence(found: Sequence[NeighbourOut]) -> str:
    nearest = found[0]
    counts = {verdict: sum(each.verdict is verdict for each in found) for verdict in _SAID}
    told = ", ".join(f"{_SAID[verdict]} in {count}" for verdict, count in counts.items() if count)
    what = (
        f"{nearest.setting} is its setting at your median norm"
        if nearest.verdict is Verdict.CLIP
        else "train without it"
    )
    return (
        f"of {len(found)} similar studies {told}; the nearest ({nearest.quality}, distance {nearest.distance:.2f}) is "
        f"of workload {nearest.workload}: {what}. A starting point, not a measurement of yours: {_ADVICE}"
    )


def _why_not_carried(session: Session, asked: Subject, nearest: Neighbour) -> str:
    row = nearest.row
    setting = ClipSetting(**body_of(session, nearest)["setting"])
    if carried_scale(setting.learning_rate_scale, row.learning_rate, asked.learning_rate) is None:
        remedy = "give learning_rate, your base rate" if not asked.learning_rate else _ADVICE
        return (
            f"the nearest study, {row.study_id}, recommends {setting.learning_rate_scale:g} times its learning rate, "
            f"and the base rate is not known {'here' if not asked.learning_rate else 'there'}: {remedy}"
        )
    return (
        f"the nearest study, {row.study_id}, recommends {row.method}, whose threshold is not relative to the norm that "
        f"was given: {_ADVICE}"
    )


def _why_none(session: Session, tenant_id: str, asked: Subject, near: Sequence[Neighbour]) -> str:
    if near:
        nearest = near[0]
        return (
            f"the nearest settled study, {nearest.row.study_id}, is at distance {nearest.comparison.distance:.2f}, and "
            f"beyond {FARTHEST:g} nothing is carried over ({', '.join(nearest.comparison.differences)}): {_ADVICE}"
        )
    row = RecommendationRow
    known = select(row.optimizer).where(row.tenant_id == tenant_id, row.optimizer.is_not(None)).distinct()
    optimizers = sorted(str(each) for each in session.scalars(known.limit(20)))
    if optimizers and asked.optimizer not in optimizers:
        return (
            f"no study trained with {asked.optimizer}, and thresholds of another optimizer "
            f"({', '.join(optimizers)}) do not carry over: {_ADVICE}"
        )
    if optimizers:
        return f"no settled study with {asked.optimizer} is near this size: {_ADVICE}"
    return f"no study of this key has recorded what it trained: {_ADVICE}"


def _none(reason: str) -> Found:
    return Found("none", None, reason)
