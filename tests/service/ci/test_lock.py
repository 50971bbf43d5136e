"""The lock file: the verdicts of the service without it, canonical bytes, a clear word on whatever is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ci.lock import (
    SCHEMA_VERSION,
    Lock,
    LockCorruptError,
    LockNotFoundError,
    LockUnreadableError,
    LockVersionError,
    Place,
    format_lock,
    parse_lock,
    read_lock,
    write_lock,
)
from service.ci.recommended import Measured, Recommended
from service.ci.verdict import judge
from tuner.evidence import PairedDifference, Verdict
from tuner.spec import ClipSetting

PATH = Path("cliptune.lock.json")


@pytest.fixture
def lock(findings: Any) -> Lock:
    return Lock({}).with_entry("conf/train.yaml", "max_grad_norm", findings.recommendation())


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize(
    "setting", ["global_norm:0.35", "global_norm:1", "global_norm:0.1", "none", "value:1"]
)
def test_verdict_from_a_lock_equals_that_from_the_service(
    findings: Any, tmp_path: Path, verdict: Verdict, setting: str
) -> None:
    stored = findings.recommendation(verdict, more_seeds=4, against_current=None)
    path = tmp_path / "cliptune.lock.json"
    write_lock(path, Lock({}).with_entry("a.yaml", "max_grad_norm", stored))
    kept = read_lock(path).find("a.yaml", "max_grad_norm")
    assert kept == stored
    checked = findings.checked(setting)
    assert judge(checked, kept, now=findings.when) == judge(checked, stored, now=findings.when)


def test_lock_is_canonical(findings: Any, lock: Lock) -> None:
    other = replace(findings.recommendation(), recommendation_id="b", study_id="s2")
    one = lock.with_entry("b.yaml", "grad_clip", other)
    entries = dict(reversed(one.entries.items()))
    assert format_lock(Lock(entries)) == format_lock(one)
    text = format_lock(one)
    assert text.isascii()
    assert text.endswith("}\n")
    assert format_lock(parse_lock(text.encode(), PATH)) == text


def test_another_recommendation_changes_only_its_own_lines(findings: Any, lock: Lock) -> None:
    other = replace(findings.recommendation(), recommendation_id="zzz")
    before = format_lock(lock.with_entry("z.yaml", "grad_clip", other)).splitlines()
    moved = replace(other, interval=(0.3, 0.5))
    after = format_lock(lock.with_entry("z.yaml", "grad_clip", moved)).splitlines()
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("        0.28,", "        0.3,"),
        ("        0.45", "        0.5"),
    ]


def test_recommendation_for_many_configs_is_kept_once(findings: Any) -> None:
    stored = findings.recommendation()
    lock = Lock({Place(f"{number}.yaml", "max_grad_norm"): stored for number in range(50)})
    document = json.loads(format_lock(lock))
    assert len(document["configs"]) == 50
    assert list(document["recommendations"]) == [stored.recommendation_id]
    assert parse_lock(format_lock(lock).encode(), PATH).entries == lock.entries


def test_lock_holds_what_the_contract_names(lock: Lock) -> None:
    document = json.loads(format_lock(lock))
    assert document["schema_version"] == SCHEMA_VERSION
    name = document["configs"]["conf/train.yaml"]["max_grad_norm"]
    entry = document["recommendations"][name]
    assert entry["study_id"] == "0f5a1b2c-0000-4000-8000-000000000000"
    assert (entry["setting"], entry["interval"], entry["verdict"]) == (
        "global_norm:0.35",
        [0.28, 0.45],
        "clip",
    )
    assert (entry["workload"], entry["fingerprint"], entry["kappa"]) == (
        "charlm-rnn",
        "0123456789abcdef",
        0.7,
    )
    assert entry["created_at"] == "2026-01-02T03:04:05+00:00"
    assert entry["versions"] == {"cliptune": "0.1.0", "torch": "2.13.0"}
    assert len(entry["spec_digest"]) == 64
    assert list(entry["measured"]) == ["global_norm:0.2", "global_norm:0.35", "global_norm:1.0", "none"]


@pytest.mark.parametrize("file", ["conf/train.yaml", "./conf/train.yaml", "conf\\train.yaml"])
def test_place_is_found_however_the_path_is_written(lock: Lock, file: str) -> None:
    assert lock.find(file, "max_grad_norm") is not None
    assert lock.find(file, "grad_clip") is None


def test_writing_the_same_lock_leaves_the_file_alone(lock: Lock, tmp_path: Path) -> None:
    path = tmp_path / "cliptune.lock.json"
    assert write_lock(path, lock)
    before = path.stat()
    assert not write_lock(path, lock)
    assert path.stat().st_ino == before.st_ino
    assert write_lock(path, Lock({}))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_time_of_another_zone_is_written_in_utc(findings: Any) -> None:
    elsewhere = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    stored = replace(findings.recommendation(), created_at=elsewhere)
    text = format_lock(Lock({Place("a", "b"): stored}))
    assert '"created_at": "2026-01-02T03:04:05+00:00"' in text
    assert parse_lock(text.encode(), PATH).entries[Place("a", "b")] == stored


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        LockNotFoundError, match="there is no such file: write one from the service"
    ) as raised:
        read_lock(tmp_path / "cliptune.lock.json")
    assert (raised.value.code, raised.value.exit_code) == ("lock_not_found", 2)


def test_folder_in_place_of_the_file_is_told(tmp_path: Path, lock: Lock) -> None:
    with pytest.raises(LockUnreadableError, match="can't be read: Is a directory") as raised:
        read_lock(tmp_path)
    assert raised.value.code == "lock_unreadable"
    (tmp_path / "lock").mkdir()
    with pytest.raises(LockUnreadableError, match="can't be written: Is a directory"):
        write_lock(tmp_path / "lock", lock)
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


def test_lock_of_a_newer_version_is_told() -> None:
    with pytest.raises(
        LockVersionError, match="schema_version 2, and this version reads up to 1: upgrade"
    ) as raised:
        parse_lock(b'{"schema_version": 2, "entries": "of another form"}', PATH)
    assert raised.value.code == "lock_version"


def changed(lock: Lock, pointer: str, value: Any) -> bytes:
    """The lock with one field of its only recommendation replaced; ... removes it."""
    document = json.loads(format_lock(lock))
    target = next(iter(document["recommendations"].values()))
    *parents, name = pointer.split("/")
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[name]
    else:
        target[name] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("pointer", "value", "words"),
    [
        ("study_id", ..., "/study_id is missing"),
        ("study_id", 7, "/study_id must be a text, got 7"),
        ("version", 0, "/version must be a whole number >= 1, got 0"),
        ("version", True, "/version must be a whole number >= 1, got True"),
        ("num_seeds", -1, "/num_seeds must be a whole number >= 0, got -1"),
        (
            "verdict",
            "maybe",
            "/verdict must be one of clip, no_difference, do_not_clip, inconclusive, got 'maybe'",
        ),
        (
            "setting",
            "global_norm:-1",
            "/setting is no clip setting (threshold must be finite and > 0, got -1.0",
        ),
        ("setting", "nothing:1", "/setting is no clip setting"),
        ("setting", {"method": "none"}, "/setting must be a text, got an object"),
        ("interval", [0.5, 0.1], "/interval must be two numbers in ascending order, got a list of 2"),
        ("interval", [0.5], "/interval must be null or two numbers, got a list of 1"),
        ("interval", ["0.1", 0.5], "/interval/0 must be a finite number, got '0.1'"),
        ("kappa", float("nan"), "/kappa must be a finite number, got nan"),
        ("methods", "global_norm", "/methods must be a list of texts, got 'global_norm'"),
        ("methods", [1], "/methods must be a list of texts, got a list of 1"),
        ("created_at", "2026-01-02", "/created_at must be a time with its zone"),
        ("created_at", "yesterday", "/created_at must be a time with its zone"),
        ("reason", ["x" * 200], "/reason must be a text, got a list of 1"),
        ("versions", [], "/versions must be an object, got a list of 0"),
        ("measured/none/is_fresh", 1, "/measured/none/is_fresh must be true or false, got 1"),
        (
            "measured/none/difference/low",
            "x" * 200,
            "/measured/none/difference/low must be a finite number, got 'xxx",
        ),
        ("measured/none/difference/num_pairs", 1, "/num_pairs must be a whole number >= 2, got 1"),
        ("measured/none", None, "/measured/none must be an object, got None"),
    ],
)
def test_wrong_field_is_named_with_its_value(lock: Lock, pointer: str, value: Any, words: str) -> None:
    with pytest.raises(LockCorruptError) as raised:
        parse_lock(changed(lock, pointer, value), PATH)
    assert words in str(raised.value)
    assert str(raised.value).endswith("restore it from version control, or write it anew from the service")
    assert len(str(raised.value)) < 400
    assert raised.value.code == "lock_corrupt"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "/ must be an object, got a list of 0"),
        (b"{}", "/schema_version is missing"),
        (b'{"schema_version": "1"}', "/schema_version must be a whole number >= 1, got '1'"),
        (b'{"schema_version": 1, "recommendations": {}}', "/configs is missing"),
        (
            b'{"schema_version": 1, "recommendations": {}, "configs": {"a/b.yaml": {"k": "x"}}}',
            "/configs/a~1b.yaml/k names recommendation x, which is not in /recommendations",
        ),
        (
            b'{\n<<<<<<< HEAD\n"a": 1\n=======\n>>>>>>> other\n}',
            "has conflict markers of a merge: resolve it",
        ),
    ],
)
def test_file_that_is_no_lock_is_told(content: bytes, words: str) -> None:
    with pytest.raises(LockCorruptError) as raised:
        parse_lock(content, PATH)
    assert words in str(raised.value)
    assert str(raised.value).startswith("cliptune.lock.json: ")


FIGURES = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text()
THRESHOLDS = st.floats(min_value=1e-300, max_value=1e300)
SETTINGS = st.one_of(
    st.just(ClipSetting(method="none")),
    st.builds(ClipSetting, method=st.sampled_from(["global_norm", "value"]), threshold=THRESHOLDS),
    st.builds(
        ClipSetting,
        method=st.just("global_norm"),
        threshold=THRESHOLDS,
        learning_rate_scale=st.floats(min_value=1e-4, max_value=1e4),
    ),
)
DIFFERENCES = st.builds(
    PairedDifference,
    mean=FIGURES,
    low=FIGURES,
    high=FIGURES,
    num_pairs=st.integers(2, 99),
    test=TEXTS,
    p_value=st.none() | FIGURES,
)
COUNTS = st.integers(0, 99)
MEASURED = st.lists(
    st.builds(
        Measured,
        setting=SETTINGS,
        difference=st.none() | DIFFERENCES,
        num_seeds=COUNTS,
        num_diverged=COUNTS,
        is_fresh=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda each: (each.setting.method, each.setting.threshold),
).map(
    lambda found: tuple(sorted(found, key=lambda each: (each.setting.method, each.setting.threshold or 0.0)))
)
RECOMMENDED = st.builds(
    Recommended,
    study_id=TEXTS,
    recommendation_id=TEXTS,
    version=st.integers(1, 99),
    workload=TEXTS,
    fingerprint=TEXTS,
    verdict=st.sampled_from(Verdict),
    setting=SETTINGS,
    interval=st.none() | st.tuples(FIGURES, FIGURES).map(lambda ends: (min(ends), max(ends))),
    best=st.none() | SETTINGS,
    methods=st.lists(TEXTS, max_size=3).map(tuple),
    objective=TEXTS,
    margin=st.none() | FIGURES,
    reason=TEXTS,
    num_seeds=COUNTS,
    more_seeds=st.none() | COUNTS,
    kappa=st.none() | FIGURES,
    clip_fraction=st.none() | FIGURES,
    created_at=st.datetimes(timezones=st.just(UTC)),
    spec_digest=TEXTS,
    study_url=TEXTS,
    versions=st.dictionaries(TEXTS, TEXTS, max_size=2),
    measured=MEASURED,
)


@given(file=TEXTS, key=TEXTS, stored=RECOMMENDED)
def test_any_recommendation_survives_the_way_through_the_file(
    file: str, key: str, stored: Recommended
) -> None:
    lock = Lock({}).with_entry(file, key, stored)
    assert parse_lock(format_lock(lock).encode(), PATH) == lock
