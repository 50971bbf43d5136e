"""What a study trains, in 16 characters: the key under which its recommendation is found again."""

from __future__ import annotations

import dataclasses

from tuner.evidence import Features
from tuner.spec import StudySpec, canonical_digest


def study_fingerprint(spec: StudySpec, features: Features | None) -> str:
    """Identify what is trained.

    Args:
        spec: the question, parameters resolved.
        features: what the probe saw; None before it.

    Returns:
        16 hexadecimal characters: a digest of workload, parameters and features. Without features it is
        `tuner.spec.StudySpec.fingerprint`, so two programs of one name and with the same parameters, but other models,
        are told apart only after the probe.

    Example:
        >>> spec = StudySpec(workload="w")
        >>> study_fingerprint(spec, None) == spec.fingerprint
        True
    """
    if features is None:
        return spec.fingerprint
    document = {
        "workload": spec.workload,
        "parameters": dict(spec.parameters),
        "features": dataclasses.asdict(features),
    }
    return canonical_digest(document)[:16]
