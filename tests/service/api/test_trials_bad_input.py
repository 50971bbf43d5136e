"""Bad bodies of asking and telling: each wrong field is named, nothing is kept, nothing breaks."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.problems import KINDS
from service.db.session import Database
from service.lanes import load_lanes


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: what is refused here never reaches a database, or does the same on both."""
    return sqlite_database


def assert_problem(response: Any, status: int, code: str, *words: str, pointer: str | None = None) -> None:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json" and code in KINDS
    for word in words:
        assert word in problem["detail"], problem["detail"]
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], problem


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/client_id"),
        ({"client_id": ""}, "/client_id"),
        ({"client_id": "a" * 101}, "/client_id"),
        ({"client_id": "a\x00b"}, "/client_id"),
        ({"client_id": "\ud800"}, "/client_id"),
        ({"client_id": 7}, "/client_id"),
        ({"client_id": "a", "wait": 31}, "/wait"),
        ({"client_id": "a", "wait": -1}, "/wait"),
        ({"client_id": "a", "wait": "1"}, "/wait"),
        ({"client_id": "a", "zzz": 1}, "/zzz"),
        ([], ""),
    ],
)
def test_a_wrong_question_is_named(lanes: Any, body: Any, pointer: str) -> None:
    response = lanes.api.http.post(
        f"/v1/studies/{lanes.study_id}/trials:ask",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert_problem(response, 422, "invalid_request", pointer=pointer)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"step": -1}, "/step"),
        ({"step": 1.0}, "/step"),
        ({"step": True}, "/step"),
        ({"step": 10**400}, "/step"),
        ({"value": "1"}, "/value"),
        ({"value": True}, "/value"),
        ({"value": float("nan")}, "/value"),
        ({"value": float("inf")}, "/value"),
        ({"value": 10**400}, "/value"),
        ({"norms": [-1.0]}, "/norms/0"),
        ({"norms": [float("nan")]}, "/norms/0"),
        ({"norms": [1.0] * 1001}, "/norms"),
        ({"norms": None}, "/norms"),
        ({"diverged": 1}, "/diverged"),
        ({"lease_token": None}, "/lease_token"),
        ({"lease_token": "1" * 201}, "/lease_token"),
        ({"lease_token": f"0.1.{'A' * 42}\x00"}, "/lease_token"),
    ],
)
def test_a_wrong_report_is_named_and_not_kept(lanes: Any, changes: Any, pointer: str) -> None:
    body = {"lease_token": lanes.token(), "step": 5, "value": 1.0} | changes
    response = lanes.api.http.post(
        f"/v1/trials/{lanes.trial_id}/report",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert_problem(response, 422, "invalid_request", pointer=pointer)
    with lanes.api.database.read() as session:
        assert load_lanes(session, lanes.study_id, [lanes.trial_id])[0].reports == {}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"outcome": "done"}, "/outcome"),
        ({"outcome": None}, "/outcome"),
        ({"cause": "worker_lost"}, "/cause"),
        ({"error": "x" * 8001}, "/error"),
        ({"record": {"clip_fraction": 1.5}}, "/record/clip_fraction"),
        ({"record": {"norms": []}}, "/record/norms"),
        ({"record": {"seconds": float("inf")}}, "/record/seconds"),
        ({"record": 1}, "/record"),
    ],
)
def test_a_wrong_completion_is_named(lanes: Any, changes: Any, pointer: str) -> None:
    body = {"lease_token": lanes.token(), "outcome": "complete", "value": 1.0} | changes
    response = lanes.api.http.post(
        f"/v1/trials/{lanes.trial_id}/complete",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert_problem(response, 422, "invalid_request", pointer=pointer)
    assert lanes.states()[0] == "leased"


def test_a_body_must_be_declared_as_json(lanes: Any) -> None:
    for path in (f"/v1/studies/{lanes.study_id}/trials:ask", f"/v1/trials/{lanes.trial_id}/report"):
        response = lanes.api.http.post(path, content="{}", headers={"Content-Type": "text/plain"})
        assert_problem(response, 415, "unsupported_media_type", "curl --json")


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from([10**400, 2**63, -1, "\x00", "\ud800", "complete", "failed", "oom", f"0.1.{'A' * 43}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["lease_token", "step", "value", "norms", "diverged", "outcome", "cause", "error", "record",
         "client_id", "wait", "zzz"]  # fmt: skip


@pytest.fixture
def many_lanes(make_lanes: Any) -> Any:
    """One for each body."""
    return make_lanes(num_lanes=200)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    verb=st.sampled_from(["trials:ask", "heartbeat", "report", "complete"]),
    changes=st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=4),
)
def test_no_body_breaks_the_service(many_lanes: Any, verb: str, changes: dict[str, Any]) -> None:
    good = {
        "trials:ask": {"client_id": "a"},
        "heartbeat": {"lease_token": ""},
        "report": {"lease_token": "", "step": 1, "value": 1.0},
        "complete": {"lease_token": "", "outcome": "failed"},
    }[verb]
    token = {"lease_token": many_lanes.token(str(uuid.uuid4()))} if "lease_token" in good else {}
    where = f"studies/{many_lanes.study_id}" if verb == "trials:ask" else f"trials/{many_lanes.trial_id}"
    response = many_lanes.api.http.post(
        f"/v1/{where}/{verb}",
        content=json.dumps(good | token | changes),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code in (200, 202, 400, 404, 409, 422), response.text
    if response.is_error:
        assert len(response.json()["detail"]) > 10
