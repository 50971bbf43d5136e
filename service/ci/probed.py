"""What a study's probe measured, as far as another probe can be compared with it: from the service, or from a lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from service.ci.lock_fields import Fields
from tuner.evidence import Features, NormSketch
from tuner.parameters import ParameterValue
from tuner.spec import MAX_SEEDS, StudySpec

_SKETCH = tuple(each.name for each in fields(NormSketch))
#: Figures of a sketch that every version has recorded.
_ALWAYS = ("median", "q90", "q99", "max")


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A study's probe: gradients at frozen initial weights, before clipping.

    Attributes:
        l2_norm: of the whole gradient.
        max_abs: of its largest absolute element; None if that was not measured.
        num_batches: gradients measured, over all seeds.
        num_seeds: training seeds 0, 1, ..., with as many gradients each.
        num_steps: optimizer steps of a full run, as a training function is told.
        parameters: of the workload, all of them.
        device: on which it was measured; empty if that is not known.
        features: what was trained; None if that was not told.
    """

    l2_norm: NormSketch
    max_abs: NormSketch | None
    num_batches: int
    num_seeds: int
    num_steps: int
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    device: str = ""
    features: Features | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds it was measured under."""
        return tuple(range(self.num_seeds))


def probed(
    reference: Mapping[str, Any] | None, spec: Mapping[str, Any] | None, *, device: str = ""
) -> Probed | None:
    """Read what the service keeps of a study's probe.

    Args:
        reference: ``StudyOut.reference``.
        spec: ``StudyOut.spec``; what is missing has its default, and what a newer service asks besides does not matter.
        device: of the recommendation's provenance.

    Returns:
        The probe; None if the study had none: what trainings outside of workers tell are norms on the way.
    """
    if not reference or not spec or not reference["l2_norm"] or spec.get("external"):
        return None
    features = reference.get("features")
    return Probed(
        l2_norm=_sketch(reference["l2_norm"]),
        max_abs=_sketch(reference["max_abs"]) if reference["max_abs"] else None,
        num_batches=reference["num_batches"],
        num_seeds=spec.get("num_seeds", StudySpec.num_seeds),
        num_steps=spec.get("num_steps", StudySpec.num_steps),
        parameters=dict(spec.get("parameters", {})),
        device=device,
        features=Features(**_known(features, Features)) if features else None,
    )


def read_probed(found: Fields) -> Probed:
    """Read what a lock keeps of a study's probe.

    Args:
        found: the fields of a `Probed`.

    Returns:
        The probe.

    Raises:
        LockFieldError: if a field is missing or wrong.
    """
    return Probed(
        l2_norm=_read_sketch(found.fields("l2_norm")),
        max_abs=found.optional("max_abs", lambda name: _read_sketch(found.fields(name))),
        num_batches=found.integer("num_batches", low=1),
        num_seeds=found.integer("num_seeds", low=1, high=MAX_SEEDS),
        num_steps=found.integer("num_steps", low=1),
        parameters=found.fields("parameters").scalars(),
        device=found.text("device"),
        features=found.optional("features", lambda name: _read_features(found.fields(name))),
    )


def _sketch(document: Mapping[str, Any]) -> NormSketch:
    return NormSketch(**_known(document, NormSketch))


def _known(document: Mapping[str, Any], kind: type[NormSketch] | type[Features]) -> dict[str, Any]:
    """The fields that this version knows: a newer service may have more."""
    return {each.name: document[each.name] for each in fields(kind) if each.name in document}


def _read_sketch(found: Fields) -> NormSketch:
    figures: dict[str, Any] = {name: found.number(name) for name in _ALWAYS}
    figures |= {name: found.optional(name, found.number) for name in _SKETCH if name not in _ALWAYS}
    return NormSketch(**figures)


def _read_features(found: Fields) -> Features:
    return Features(
        model_signature=found.text("model_signature"),
        num_parameters=found.integer("num_parameters"),
        num_tensors=found.integer("num_tensors"),
        optimizer=found.text("optimizer"),
        learning_rate=found.optional("learning_rate", found.number),
        batch_size=found.optional("batch_size", found.integer),
        precision=found.text("precision"),
    )
