"""Where a new study's search begins: the settings of its nearest neighbours, at its own norms."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service.recommendations.carrying import Carried
from service.recommendations.distance import Subject
from service.recommendations.similar import MOST_BODIES, body_of, carry, has_median, neighbours
from service.schemas import WarmStart
from tuner.evidence import NormSketch, Reference, Verdict
from tuner.methods import GradientScale, get_method
from tuner.spec import ClipSetting, StudySpec

#: Settings that a study takes over; the rest of its first cohort is spread as without them.
MAX_WARM_SETTINGS = 2


def warm_start(
    session: Session, *, tenant_id: str, study_id: str, spec: StudySpec, reference: Reference
) -> list[dict[str, Any]]:
    """Look for what similar studies of the same tenant recommend.

    Args:
        session: any transaction.
        tenant_id: whose studies.
        study_id: the new study.
        spec: its question: a setting that it would not search is not taken over.
        reference: what its probe measured.

    Returns:
        `service.schemas.WarmStart` as JSON values, the nearest first, at most two; empty if nothing is near, or if the
        probe did not say what it measured. Only the nearest `MOST_BODIES` that might give a setting are looked at.
    """
    if reference.features is None:
        return []
    sketches: dict[GradientScale, NormSketch | None] = {
        "l2_norm": reference.l2_norm,
        "max_abs": reference.max_abs,
    }
    medians = {scale: each.median for scale, each in sketches.items() if each is not None}
    found: list[WarmStart] = []
    asked = Subject.of(reference.features)
    near = [
        each
        for each in neighbours(session, tenant_id=tenant_id, asked=asked, without_study=study_id)
        if each.comparison.quality is not None
        and each.row.verdict == Verdict.CLIP
        and each.row.method in spec.methods
        and has_median(each, medians)
    ]
    for each in near[:MOST_BODIES]:
        if len(found) == MAX_WARM_SETTINGS:
            break
        carried = carry(each, body_of(session, each), asked, medians)
        if carried is None or not _is_searched(carried, spec):
            continue
        if any(_is_same(carried.setting, other.setting) for other in found):
            continue
        found.append(
            WarmStart(
                recommendation_id=each.row.id,
                study_id=each.row.study_id,
                distance=each.comparison.distance,
                setting=carried.setting,
            )
        )
    return [each.model_dump(mode="json") for each in found]


def _is_searched(carried: Carried, spec: StudySpec) -> bool:
    """Whether a setting could have been proposed by the study itself."""
    setting = carried.setting
    if setting.method not in spec.methods or setting.threshold is None:
        return False
    lowest, highest = spec.threshold_low, spec.threshold_high
    if lowest is not None and highest is not None and not lowest <= setting.threshold <= highest:
        return False
    low, high = spec.learning_rate_low or 1.0, spec.learning_rate_high or 1.0
    return low <= setting.learning_rate_scale <= high


def _is_same(one: ClipSetting, other: ClipSetting) -> bool:
    """Whether two settings are one for a search, which tells thresholds apart by three digits."""
    if one.method != other.method or one.learning_rate_scale != other.learning_rate_scale:
        return False
    if one.threshold is None or other.threshold is None:
        return one == other
    rounded = get_method(one.method).rounded
    return rounded(one.threshold) == rounded(other.threshold)
