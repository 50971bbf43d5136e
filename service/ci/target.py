"""What a config trains, and what is recommended for that: by the service, or by a lock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from service.ci.gather import Value
from service.ci.locked import LockFile
from service.ci.recommended import Recommended, poor_match, recommended
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.client import Client

#: How many of the newest studies are looked through for one with given parameters.
_MAX_STUDIES = 1000
_REMEDY = (
    "give --workload NAME (`cliptune workloads` lists them) or --fingerprint, and keep it with --write-lock"
)


class WorkloadNotNamedError(ServiceError):
    """Nothing tells what a config trains."""

    code = "workload_not_named"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is trained.

    Attributes:
        workload: its name; empty if it is not given.
        fingerprint: of what is trained; empty likewise.
        parameters: of the workload, those that matter.
        study_id: of the one study that is to answer; then nothing else is looked at.
    """

    workload: str = ""
    fingerprint: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    study_id: str = ""

    @property
    def is_named(self) -> bool:
        """Whether anything is given."""
        return bool(self.workload or self.fingerprint or self.study_id)


@dataclass(frozen=True)
class Answer:
    """What a value is judged by.

    Attributes:
        recommendation: None if there is nothing that fits.
        reason: why not, as the end of a sentence.
    """

    recommendation: Recommended | None
    reason: str = ""


def require_target(target: Target, lock: LockFile, values: Iterable[Value]) -> None:
    """Refuse to ask about values of which nobody has said what they train.

    Args:
        target: what was given.
        lock: what was kept.
        values: to be judged.

    Raises:
        WorkloadNotNamedError: if nothing was given, and there is no lock.
    """
    first = next(iter(values), None)
    if first is not None and not target.is_named and not lock.exists:
        raise WorkloadNotNamedError(f"which workload {first.file} trains is not known: {_REMEDY}")


def answer_from_lock(value: Value, target: Target, lock: LockFile) -> Answer:
    """What a lock has for a value.

    Args:
        value: to be judged.
        target: what it trains; nothing takes what the lock has for this file and key.
        lock: the lock.

    Returns:
        The recommendation; for a given target also one that the lock has for another file, the newest.
    """
    own = lock.find(value.path, value.key)
    if not target.is_named:
        return Answer(own) if own else Answer(None, f"{lock.path.name} has nothing for it: {_REMEDY}")
    others = sorted(lock.lock.entries.values(), key=lambda each: each.created_at, reverse=True)
    for each in others if own is None else [own, *others]:
        if target.workload in ("", each.workload) and target.fingerprint in ("", each.fingerprint):
            return Answer(each)
    wanted = target.workload or target.fingerprint
    return Answer(
        None,
        f"{lock.path.name} has no recommendation for {wanted}: check without --offline, with --write-lock",
    )


def answers_of_service(
    client: Client, values: Iterable[Value], target: Target, lock: LockFile
) -> tuple[Answer, ...]:
    """What the service has for values.

    Args:
        client: of the service; each target is asked for once.
        values: to be judged.
        target: what they train; nothing takes what the lock says of each.
        lock: what was kept.

    Returns:
        An answer for each value.

    Raises:
        ServiceError: if the service gives none.
    """
    known: dict[Target, Answer] = {}
    answers = []
    for value in values:
        wanted = target if target.is_named else _kept_target(value, lock)
        if wanted is None:
            answers.append(Answer(None, f"which workload it trains is not known: {_REMEDY}"))
            continue
        if wanted not in known:
            known[wanted] = answer_of_service(client, wanted)
        answers.append(known[wanted])
    return tuple(answers)


def _kept_target(value: Value, lock: LockFile) -> Target | None:
    """What the lock says that a value trains."""
    kept = lock.find(value.path, value.key)
    return None if kept is None else Target(workload=kept.workload, fingerprint=kept.fingerprint)


def answer_of_service(client: Client, target: Target) -> Answer:
    """What the service has for a target, with what a verdict needs of its study.

    Args:
        client: of the service.
        target: what is trained.

    Returns:
        The recommendation.

    Raises:
        ServiceError: if the service gives none.
    """
    if target.study_id:
        return answer_of_study(client, target.study_id)
    fingerprint = target.fingerprint
    if target.parameters:
        found_fingerprint = fingerprint_with(client, target)
        if found_fingerprint is None:
            wanted = ", ".join(f"{name}={json.dumps(value)}" for name, value in target.parameters.items())
            return Answer(None, f"no finished study of {target.workload} has {wanted}")
        fingerprint = found_fingerprint
    answer = client.find_recommendation(target.workload or None, fingerprint or None).model_dump(mode="json")
    why = poor_match(answer)
    if why is not None:
        return Answer(None, why)
    return _read(client, answer["recommendation"])


def answer_of_study(client: Client, study_id: str) -> Answer:
    """What one study recommends.

    Args:
        client: of the service.
        study_id: a study that has succeeded.

    Returns:
        Its newest recommendation.

    Raises:
        ServiceError: if the service gives none.
    """
    return _read(client, client.get_recommendation(study_id).model_dump(mode="json"))


def _read(client: Client, found: Mapping[str, Any]) -> Answer:
    """A recommendation with what a verdict needs of its study."""
    study = client.get_study(found["study_id"])
    trials = [each.model_dump(mode="json") for each in client.list_trials(found["study_id"])]
    url = f"{client.url}/v1/studies/{found['study_id']}"
    return Answer(
        recommended(found, spec=study.spec, reference=study.reference, trials=trials, study_url=url)
    )


def fingerprint_with(client: Client, target: Target) -> str | None:
    """What is trained by the newest study with a result that was run with given parameters.

    Args:
        client: of the service.
        target: a workload with parameters.

    Returns:
        Its fingerprint; None without such a study.
    """
    for study in islice(client.iter_studies(), _MAX_STUDIES):
        if study.workload != target.workload or study.result is None:
            continue
        if target.fingerprint not in ("", study.fingerprint):
            continue
        has = study.spec["parameters"]
        if all(name in has and has[name] == value for name, value in target.parameters.items()):
            return study.fingerprint
    return None
