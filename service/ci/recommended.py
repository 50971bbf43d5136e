"""What a study recommends, as far as a config value is judged by it: read from the service's documents, or from a lock.

The same values come from both, so that a check without a connection gives the verdict that the service would give.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.ci.probed import Probed, probed
from service.report.intervals import t_bound
from tuner.evidence import PairedDifference, Stage, TrialState, Verdict
from tuner.spec import OFF_SETTING, ClipSetting, canonical_digest

#: Parts of a recommendation's provenance that are versions.
VERSIONS = ("cliptune", "optuna", "python", "torch")
#: The relative difference that matters where the study does not say: `tuner.spec.StudySpec`'s own default.
_EFFECT = 0.01


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting that the study trained, compared with the best clip setting seed by seed.

    Attributes:
        setting: the setting.
        difference: best - setting, negative where the setting is worse; None with fewer than two common seeds.
        num_seeds: seeds that ended with a value.
        num_diverged: seeds that diverged.
        is_fresh: whether the seeds are ones that the search never saw.
    """

    setting: ClipSetting
    difference: PairedDifference | None
    num_seeds: int
    num_diverged: int
    is_fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """A recommendation with the evidence that a verdict on a config value needs.

    Attributes:
        study_id: the study that found it.
        recommendation_id: its identity.
        version: 1, and one more each time the study was extended.
        workload: what was trained.
        fingerprint: of what was trained.
        verdict: what the study answered.
        setting: what to train with.
        interval: lowest and highest threshold that is as good; None where the study has none.
        best: the best clip setting, which every difference is about; None if every one diverged.
        methods: the clipping methods that the study tried.
        objective: name of the minimized number.
        margin: difference of the objective that matters, >= 0; None if it can't be said.
        reason: the study's own sentence.
        num_seeds: seeds that the answer rests on.
        more_seeds: further seeds that would about settle an inconclusive answer.
        kappa: threshold of ``best`` / median reference norm.
        clip_fraction: share of steps that ``best`` scaled.
        created_at: when it was stored, aware.
        spec_digest: SHA-256 of the study's spec; empty if the study was not at hand.
        study_url: where a person reads about the study; empty if there is no such page.
        versions: of what it was found with.
        measured: the settings that the study trained.
        probed: what its probe measured; None if that is not known.
    """

    study_id: str
    recommendation_id: str
    version: int
    workload: str
    fingerprint: str
    verdict: Verdict
    setting: ClipSetting
    interval: tuple[float, float] | None
    best: ClipSetting | None
    methods: tuple[str, ...]
    objective: str
    margin: float | None
    reason: str
    num_seeds: int
    more_seeds: int | None
    kappa: float | None
    clip_fraction: float | None
    created_at: datetime
    spec_digest: str = ""
    study_url: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    probed: Probed | None = None


def recommended(
    answer: Mapping[str, Any],
    *,
    spec: Mapping[str, Any] | None = None,
    reference: Mapping[str, Any] | None = None,
    trials: Iterable[Mapping[str, Any]] = (),
    study_url: str = "",
) -> Recommended:
    """Read the service's documents.

    Args:
        answer: a `service.schemas.RecommendationOut` as JSON values.
        spec: the study's question, ``StudyOut.spec``; without it the value in use then is not known by its number.
        reference: what the study's probe measured, ``StudyOut.reference``.
        trials: the study's `TrialOut`, likewise; without them only *off* and the value in use can be compared.
        study_url: see the class.

    Returns:
        The recommendation.
    """
    setting = ClipSetting(**answer["setting"])
    best = ClipSetting(**answer["best"]) if answer["best"] else None
    tried = tuple(spec.get("methods", ())) if spec else ()
    known = [each.method for each in (best, setting) if each is not None and not each.is_off]
    off, value = answer["off"], answer["value"]
    return Recommended(
        study_id=answer["study_id"],
        recommendation_id=answer["id"],
        version=answer.get("version", 1),
        workload=answer["workload"],
        fingerprint=answer["fingerprint"],
        verdict=Verdict(answer["verdict"]),
        setting=setting,
        interval=_pair(answer["interval"]),
        best=best,
        methods=tried or tuple(dict.fromkeys(known)),
        objective=answer["objective"],
        margin=_margin((spec or {}).get("effect", _EFFECT), off, value),
        reason=answer["reason"],
        num_seeds=answer.get("num_fresh_seeds") or (value or off)["num_seeds"],
        more_seeds=answer.get("more_seeds"),
        kappa=answer["kappa"],
        clip_fraction=answer["clip_fraction"],
        created_at=datetime.fromisoformat(answer["created_at"]),
        spec_digest=canonical_digest(spec) if spec else "",
        study_url=study_url,
        versions={name: str(answer["provenance"][name]) for name in VERSIONS if name in answer["provenance"]},
        measured=_measured(answer, spec, best, trials),
        probed=probed(reference, spec, device=str(answer["provenance"].get("device", ""))),
    )


def poor_match(found: Mapping[str, Any]) -> str | None:
    """Why what the service found is nothing to judge by.

    Args:
        found: a `service.schemas.RecommendationAnswer` as JSON values.

    Returns:
        The reason as the end of a sentence, with what the nearest study suggests; None for an exact match.
    """
    if found["match"] == "exact":
        return None
    nearest = found["recommendation"] or next(iter(found["neighbours"]), None)
    if nearest is None:
        return str(found["reason"])
    setting = ClipSetting(**nearest["setting"])
    differences = ", ".join(nearest.get("differences") or ())
    return (
        f"{found['reason']}. The nearest study, {nearest['study_id'][:8]} of {nearest['workload']}"
        f"{f' ({differences})' if differences else ''}, suggests {setting} to start from"
    )


def _measured(
    answer: Mapping[str, Any],
    spec: Mapping[str, Any] | None,
    best: ClipSetting | None,
    trials: Iterable[Mapping[str, Any]],
) -> tuple[Measured, ...]:
    """Every setting once: on fresh seeds rather than on the search's, as the answer compares it rather than here."""
    found = _of_trials(trials, best)
    is_fresh = bool(answer.get("num_fresh_seeds"))
    off, difference = answer["off"], _difference(answer["against_current"])
    if off["num_seeds"] or off["num_diverged"]:
        found[OFF_SETTING] = Measured(
            setting=OFF_SETTING,
            difference=_difference(answer["difference"]),
            num_seeds=off["num_seeds"],
            num_diverged=off["num_diverged"],
            is_fresh=is_fresh,
        )
    value = answer["value"]
    if best is not None and value is not None:
        own = Measured(
            setting=best,
            difference=None,
            num_seeds=value["num_seeds"],
            num_diverged=value["num_diverged"],
            is_fresh=is_fresh,
        )
        found.setdefault(best, own)
    if spec and spec.get("current") and difference is not None:
        current = ClipSetting(**spec["current"])
        there = found.get(current)
        found[current] = Measured(
            setting=current,
            difference=difference,
            num_seeds=there.num_seeds if there else difference.num_pairs,
            num_diverged=there.num_diverged if there else 0,
            is_fresh=is_fresh,
        )
    return tuple(
        sorted(found.values(), key=lambda each: (each.setting.method, each.setting.threshold or 0.0))
    )


def _of_trials(trials: Iterable[Mapping[str, Any]], best: ClipSetting | None) -> dict[ClipSetting, Measured]:
    """Trials that were trained to the end against the best one, on the same seeds."""
    values: dict[tuple[bool, ClipSetting], dict[int, float | None]] = {}
    for trial in trials:
        if trial["state"] == TrialState.COMPLETE:
            place = (trial["stage"] == Stage.CONFIRM, ClipSetting(**trial["setting"]))
            values.setdefault(place, {}).update({lane["seed"]: lane["value"] for lane in trial["lanes"]})
    found: dict[ClipSetting, Measured] = {}
    # False sorts first: a confirmation takes the place of the search.
    for is_fresh, setting in sorted(values, key=lambda place: place[0]):
        theirs = values[is_fresh, setting]
        mine = values.get((is_fresh, best), {}) if best is not None and best != setting else {}
        found[setting] = Measured(
            setting=setting,
            difference=_paired(mine, theirs),
            num_seeds=sum(value is not None for value in theirs.values()),
            num_diverged=sum(value is None for value in theirs.values()),
            is_fresh=is_fresh,
        )
    return found


def _paired(mine: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> PairedDifference | None:
    """Student's interval, as `tuner.search.statistics.paired_difference` has it, without a numerical library."""
    pairs = ((mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys()))
    values = [one - other for one, other in pairs if one is not None and other is not None]
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = t_bound(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return PairedDifference(mean=mean, low=mean - half, high=mean + half, num_pairs=len(values))


def _difference(document: Mapping[str, Any] | None) -> PairedDifference | None:
    return None if document is None else PairedDifference(**document)


def _pair(bounds: Iterable[float] | None) -> tuple[float, float] | None:
    if bounds is None:
        return None
    low, high = bounds
    return low, high


def _margin(effect: float, *estimates: Mapping[str, Any] | None) -> float | None:
    """The difference that matters: relative to *off*, and to the best setting where every seed of *off* diverged."""
    means = [each["mean"] for each in estimates if each is not None and each["mean"] is not None]
    return effect * abs(means[0]) if means else None
