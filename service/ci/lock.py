"""``cliptune.lock.json``: recommendations kept beside the configs, so that a check needs no connection.

The file is canonical JSON: the same recommendations give the same bytes, and another one changes only its own lines.
``configs`` names a recommendation for each file and key, ``recommendations`` holds each of them once.

LockError(ServiceError)
|-- LockNotFoundError     there is no lock file
|-- LockUnreadableError   it can't be read or written
|-- LockCorruptError      it is no lock: not JSON, or a field is missing or wrong
`-- LockVersionError      a newer cliptune wrote it
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any

from service.ci.lock_fields import Fields, LockFieldError
from service.ci.probed import read_probed
from service.ci.recommended import Measured, Recommended
from service.errors import ServiceError
from tuner.evidence import PairedDifference, Verdict
from tuner.spec import ClipSetting

LOCK_FILE = "cliptune.lock.json"
SCHEMA_VERSION = 1
_CONFLICT = "<<<<<<< "
_REMEDY = "restore it from version control, or write it anew from the service"


class LockError(ServiceError):
    """Base: a lock file and why it can't be used.

    Attributes:
        path: of the file.
        reason: what is wrong and what to do.
    """

    code = "lock_error"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class LockNotFoundError(LockError):
    """There is no lock file to check against."""

    code = "lock_not_found"


class LockUnreadableError(LockError):
    """The lock file, or its folder, does not let itself be read or written."""

    code = "lock_unreadable"


class LockCorruptError(LockError):
    """The file is no lock file, or somebody changed it by hand."""

    code = "lock_corrupt"


class LockVersionError(LockError):
    """The file has a form that this version does not know."""

    code = "lock_version"


@dataclass(frozen=True, order=True)
class Place:
    """A clip value: which config, and which key in it.

    Attributes:
        file: path from the lock's folder, with forward slashes.
        key: as ``--key`` takes it.
    """

    file: str
    key: str


@dataclass(frozen=True)
class Lock:
    """What a lock file holds.

    Attributes:
        entries: recommendation by place.
    """

    entries: Mapping[Place, Recommended]

    def find(self, file: str, key: str) -> Recommended | None:
        """The recommendation for a value.

        Args:
            file: path from the lock's folder; a leading ``./`` and backslashes do not matter.
            key: the value's name.

        Returns:
            The recommendation; None if the lock has none.
        """
        return self.entries.get(Place(normalized(file), key))

    def with_entry(self, file: str, key: str, recommendation: Recommended) -> Lock:
        """The lock with one recommendation added or replaced.

        Args:
            file: as for `find`.
            key: likewise.
            recommendation: what to keep.

        Returns:
            Another lock.
        """
        return Lock({**self.entries, Place(normalized(file), key): recommendation})


def normalized(file: str) -> str:
    r"""A path as locks and reports write it.

    Args:
        file: relative, as the user gave it.

    Returns:
        The path with forward slashes and without a leading ``./``.

    Example:
        >>> normalized(".\\conf\\train.yaml")
        'conf/train.yaml'
    """
    return file.replace("\\", "/").removeprefix("./")


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Args:
        path: of the file.

    Returns:
        The lock.

    Raises:
        LockNotFoundError: if there is none.
        LockUnreadableError: if it can't be read.
        LockCorruptError: if it is no lock.
        LockVersionError: if a newer version wrote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise LockNotFoundError(
            path, "there is no such file: write one from the service, or check without --offline"
        ) from None
    except OSError as error:
        raise LockUnreadableError(path, f"can't be read: {error.strerror}") from None
    return parse_lock(content, path)


def parse_lock(content: bytes, path: Path) -> Lock:
    """Read the bytes of a lock file.

    Args:
        content: of the file.
        path: where they are from, for errors.

    Returns:
        The lock.

    Raises:
        LockCorruptError: if it is no lock.
        LockVersionError: if a newer version wrote it.
    """
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        if any(line.startswith(_CONFLICT.encode()) for line in content.splitlines()):
            raise LockCorruptError(
                path, f"has conflict markers of a merge: resolve it, or {_REMEDY}"
            ) from None
        raise LockCorruptError(path, f"is not JSON ({error}): {_REMEDY}") from None
    try:
        fields = Fields(document)
        version = fields.integer("schema_version", low=1)
        if version > SCHEMA_VERSION:
            raise LockVersionError(
                path,
                f"has schema_version {version}, and this version reads up to {SCHEMA_VERSION}: upgrade cliptune",
            )
        known = {each: _read_entry(found) for each, found in fields.fields("recommendations").items()}
        entries = {
            Place(file, key): _named(keys, key, known)
            for file, keys in fields.fields("configs").items()
            for key in keys.names
        }
    except LockFieldError as error:
        raise LockCorruptError(path, f"{error}: {_REMEDY}") from None
    return Lock(entries)


def format_lock(lock: Lock) -> str:
    """A lock as text.

    Args:
        lock: what to keep.

    Returns:
        Canonical JSON with a final line end.

    Raises:
        ValueError: if a figure is NaN or infinite.
    """
    configs: dict[str, dict[str, str]] = {}
    kept: dict[str, Recommended] = {}
    for place, each in lock.entries.items():
        configs.setdefault(place.file, {})[place.key] = each.recommendation_id
        kept[each.recommendation_id] = each
    document = {
        "schema_version": SCHEMA_VERSION,
        "configs": configs,
        "recommendations": {name: _entry(each) for name, each in kept.items()},
    }
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_lock(path: Path, lock: Lock) -> bool:
    """Write a lock file, whole or not at all.

    Args:
        path: of the file; its folder exists.
        lock: what to keep.

    Returns:
        Whether the file has changed.

    Raises:
        LockUnreadableError: if it can't be written.
    """
    content = format_lock(lock).encode()
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        if path.exists() and path.read_bytes() == content:
            return False
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise LockUnreadableError(path, f"can't be written: {error.strerror}") from None
    return True


def _entry(recommendation: Recommended) -> dict[str, Any]:
    """One recommendation as JSON values."""
    values = asdict(recommendation)
    del values["recommendation_id"], values["measured"]
    if recommendation.probed is None:
        # As earlier versions wrote it, whose locks stay as they are.
        del values["probed"]
    return values | {
        "verdict": str(recommendation.verdict),
        "setting": _exact(recommendation.setting),
        "best": None if recommendation.best is None else _exact(recommendation.best),
        "created_at": recommendation.created_at.astimezone(UTC).isoformat(),
        "measured": {_exact(each.setting): _measured_entry(each) for each in recommendation.measured},
    }


def _exact(setting: ClipSetting) -> str:
    """What `ClipSetting.parse` reads, with every digit."""
    text = setting.method if setting.threshold is None else f"{setting.method}:{float(setting.threshold)!r}"
    return text if setting.learning_rate_scale == 1 else f"{text}@{float(setting.learning_rate_scale)!r}"


def _measured_entry(measured: Measured) -> dict[str, Any]:
    difference = None if measured.difference is None else asdict(measured.difference)
    return {
        "difference": difference,
        "num_seeds": measured.num_seeds,
        "num_diverged": measured.num_diverged,
        "is_fresh": measured.is_fresh,
    }


def _named(keys: Fields, key: str, known: Mapping[str, Recommended]) -> Recommended:
    """The recommendation whose id a place holds.

    Raises:
        LockFieldError: if the lock has no such recommendation.
    """
    name = keys.text(key)
    if name not in known:
        raise LockFieldError(f"{keys.at(key)} names recommendation {name}, which is not in /recommendations")
    return replace(known[name], recommendation_id=name)


def _read_entry(fields: Fields) -> Recommended:
    return Recommended(
        study_id=fields.text("study_id"),
        recommendation_id="",
        version=fields.integer("version", low=1),
        workload=fields.text("workload"),
        fingerprint=fields.text("fingerprint"),
        verdict=fields.choice("verdict", Verdict),
        setting=fields.setting("setting"),
        interval=fields.interval("interval"),
        best=fields.optional("best", fields.setting),
        methods=fields.texts("methods"),
        objective=fields.text("objective"),
        margin=fields.optional("margin", fields.number),
        reason=fields.text("reason"),
        num_seeds=fields.integer("num_seeds"),
        more_seeds=fields.optional("more_seeds", fields.integer),
        kappa=fields.optional("kappa", fields.number),
        clip_fraction=fields.optional("clip_fraction", fields.number),
        created_at=fields.moment("created_at"),
        spec_digest=fields.text("spec_digest"),
        study_url=fields.text("study_url"),
        versions={name: fields.fields("versions").text(name) for name in fields.fields("versions").names},
        measured=tuple(
            _read_measured(setting, each)
            for setting, each in sorted(
                fields.fields("measured").settings(),
                key=lambda pair: (pair[0].method, pair[0].threshold or 0.0),
            )
        ),
        probed=read_probed(fields.fields("probed")) if "probed" in fields.names else None,
    )


def _read_measured(setting: ClipSetting, fields: Fields) -> Measured:
    return Measured(
        setting=setting,
        difference=fields.optional("difference", lambda name: _read_difference(fields.fields(name))),
        num_seeds=fields.integer("num_seeds"),
        num_diverged=fields.integer("num_diverged"),
        is_fresh=fields.flag("is_fresh"),
    )


def _read_difference(fields: Fields) -> PairedDifference:
    return PairedDifference(
        mean=fields.number("mean"),
        low=fields.number("low"),
        high=fields.number("high"),
        num_pairs=fields.integer("num_pairs", low=2),
        test=fields.text("test"),
        p_value=fields.optional("p_value", fields.number),
    )
