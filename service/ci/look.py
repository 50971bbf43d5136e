"""One recommendation and a probe of the code as it is now, which says whether the one still fits the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.ci.drift import NUM_SEEDS, Change, Comparison, compare, is_same
from service.ci.drift_words import at_own_value, circumstances, other_training, statement
from service.ci.judgement import Drift
from service.ci.probed import Probed
from service.ci.recommended import Recommended
from service.errors import ServiceError
from tuner.errors import UnknownWorkloadError
from tuner.parameters import ParameterValue, resolve_parameters
from tuner.spec import ClipSetting

if TYPE_CHECKING:
    from service.launchers.probing import Prober
    from tuner.evidence import Reference


class NormsNotKeptError(ServiceError):
    """There is nothing to compare a probe with."""

    code = "norms_not_kept"


class WorkloadNotHereError(ServiceError, LookupError):
    """The code that a study trained can't be run here."""

    code = "workload_not_here"


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How the code as it is now is probed.

    Attributes:
        given: parameters that differ from the study's.
        num_seeds: initial weights, if the study's own do not give the same norms.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    num_seeds: int = NUM_SEEDS


@dataclass(frozen=True, kw_only=True)
class Look:
    """One recommendation, and a probe of the code as it is now.

    Attributes:
        recommendation: what is recommended.
        then: the study's probe.
        now: the probe of now.
        is_repeat: whether ``now`` is the study's own probe again, with the same result.
        first: what is trained now that was not then, as a sentence; empty if nothing.
        last: what else differs, likewise.
    """

    recommendation: Recommended
    then: Probed
    now: Reference
    is_repeat: bool
    first: str
    last: str

    def compare(self) -> Comparison:
        """The probes at the recommended setting."""
        return compare(self.then, self.now, self.recommendation.setting, is_repeat=self.is_repeat)

    def drift(self, own: ClipSetting | None = None) -> Drift:
        """What the probes say, for a verdict.

        Args:
            own: a config's value; None if it is about the recommendation alone, or if the value is no setting.

        Returns:
            The finding at the recommended setting, and the figures at the config's own.
        """
        found = self.compare()
        parts = [self.first, statement(found)]
        if own is not None and own != self.recommendation.setting:
            parts.append(at_own_value(compare(self.then, self.now, own, is_repeat=self.is_repeat)))
        return Drift(
            has_drifted=found.has_drifted,
            reason=" ".join(part for part in (*parts, self.last) if part),
            is_settled=found.change is not Change.UNSETTLED,
        )


def look(recommendation: Recommended, probing: Probing, prober: Prober) -> Look:
    """Probe what a study trained, as it is now.

    The study's own probe is run again first: where that gives the same, nothing that a probe sees has changed. Only
    otherwise other seeds are measured, whose spread tells what is chance.

    Args:
        recommendation: of the study.
        probing: how to probe.
        prober: measures.

    Returns:
        Both probes, and what else differs.

    Raises:
        NormsNotKeptError: if the study's norms are not known.
        WorkloadNotHereError: if its code is not registered here.
        ServiceError: if the probe fails.
        TunerError: if a parameter is wrong.
    """
    then = recommendation.probed
    if then is None:
        raise NormsNotKeptError(
            f"study {recommendation.study_id[:8]} of {recommendation.workload} has no gradient norms to compare with: "
            "a lock file of an earlier version holds none (write it anew: cliptune check --write-lock), and a "
            "training that `cliptune run` starts has no probe"
        )
    try:
        fields = prober.describe(recommendation.workload).parameters
    except UnknownWorkloadError as error:
        raise WorkloadNotHereError(
            f"{error}: register the training's code as CLIPTUNE_WORKLOADS={recommendation.workload}=MODULE:ATTRIBUTE; "
            "a training that `cliptune run` starts can't be probed"
        ) from None
    known = {each.name for each in fields}
    gone = tuple(name for name in then.parameters if name not in known)
    kept = {name: value for name, value in then.parameters.items() if name in known}
    parameters = resolve_parameters(fields, {**kept, **probing.given})
    now = _measured(prober, recommendation.workload, parameters, then, then.seeds)
    first = other_training(then, now.features)
    is_repeat = is_same(then, now)
    if not is_repeat:
        others = tuple(range(then.num_seeds, then.num_seeds + probing.num_seeds))
        now = _measured(prober, recommendation.workload, parameters, then, others)
    return Look(
        recommendation=recommendation,
        then=then,
        now=now,
        is_repeat=is_repeat,
        first=first,
        last=circumstances(then, parameters, prober.device, gone=gone),
    )


def _measured(
    prober: Prober,
    workload: str,
    parameters: Mapping[str, ParameterValue],
    then: Probed,
    seeds: tuple[int, ...],
) -> Reference:
    """As many gradients of each seed as the study measured."""
    per_seed = -(-then.num_batches // then.num_seeds)
    return prober.measure(
        workload, parameters, seeds, num_batches=per_seed * len(seeds), num_steps=then.num_steps
    )
