"""Every bad input gets a status, a stable code, a sentence that says what to do, and the place of the mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from service.api.problems import KINDS
from service.db.clock import database_now
from service.db.migrate import upgrade
from service.db.session import Database
from service.keys import revoke_key
from service.schemas import StudyRequest


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: what is refused here never reaches a database, or does the same on both."""
    return sqlite_database


def assert_problem(response: Any, status: int, code: str, *words: str, pointer: str | None = None) -> None:
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert problem["type"] == f"/errors/{code}" and code in KINDS and problem["title"] == KINDS[code].title
    assert problem["request_id"] == response.headers["x-request-id"] != ""
    assert problem["instance"] == response.request.url.path
    for word in words:
        assert word in problem["detail"], problem["detail"]
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]]
    assert "Traceback" not in response.text and "SELECT" not in response.text


@pytest.mark.parametrize(
    ("changes", "code", "pointer", "words"),
    [
        ({"workload": "nope"}, "unknown_workload", "/workload", ["'nope'", "charlm-rnn"]),
        ({"workload": ""}, "invalid_spec", "/workload", ["GET /v1/workloads"]),
        ({"methods": ["spam"]}, "unknown_method", "/methods/0", ["'spam'", "global_norm"]),
        ({"methods": ["value", "spam"]}, "unknown_method", "/methods/1", ["'spam'"]),
        ({"methods": []}, "invalid_spec", "/methods", ["at least one"]),
        ({"methods": ["none"]}, "invalid_spec", "/methods", ["always a candidate"]),
        ({"current": {"method": "spam"}}, "unknown_method", "/current/method", ["'spam'"]),
        ({"current": {"method": "value"}}, "invalid_spec", "/current/threshold", ["give clip_value > 0"]),
        (
            {"current": {"method": "value", "threshold": 0}},
            "invalid_spec",
            "/current/threshold",
            ["> 0", "use method 'none' for off"],
        ),
        ({"current": {"method": "value", "threshold": -1}}, "invalid_spec", "/current/threshold", ["got -1"]),
        (
            {"current": {"method": "autoclip", "threshold": 100}},
            "invalid_spec",
            "/current/threshold",
            ["> 0 and < 100 for the percentile of 'autoclip', got 100", "use method 'none' for off"],
        ),
        (
            {"methods": ["adagc"], "threshold_low": 1, "threshold_high": 2},
            "invalid_spec",
            "/threshold_low",
            ["> 1 for the lambda_rel of 'adagc', got 1"],
        ),
        ({"threshold_low": 0, "threshold_high": 1}, "invalid_spec", "/threshold_low", ["> 0, got 0"]),
        ({"threshold_low": 1}, "invalid_spec", "/threshold_high", ["give both ends"]),
        ({"threshold_low": 2, "threshold_high": 1}, "invalid_spec", "/threshold_low", ["< threshold_high"]),
        ({"num_trials": 0}, "invalid_spec", "/num_trials", ["between 2 and 1000, got 0"]),
        ({"num_seeds": 0}, "invalid_spec", "/num_seeds", ["between 2 and 32"]),
        ({"num_steps": 0}, "invalid_spec", "/num_steps", ["between 1 and", "got 0"]),
        ({"num_steps": -1}, "invalid_spec", "/num_steps", ["got -1"]),
        ({"num_steps": 2**70}, "invalid_spec", "/num_steps", ["between 1 and"]),
        (
            {"num_trials": 101},
            "budget_exceeded",
            "/num_trials",
            ["101", "at most 100", "CLIPTUNE_MAX_TRIALS"],
        ),
        ({"num_steps": 10_001}, "budget_exceeded", "/num_steps", ["at most 10000", "CLIPTUNE_MAX_STEPS"]),
        (
            {"num_trials": 100, "num_steps": 10_000},
            "budget_exceeded",
            "/num_steps",
            ["+ 8 x num_confirm_seeds", "2480000", "at most 1000000", "CLIPTUNE_MAX_LANE_STEPS"],
        ),
        ({"num_trails": 4}, "invalid_request", "/num_trails", ["did you mean num_trials?"]),
        ({"zzz": 4}, "invalid_request", "/zzz", ["is no field here"]),
        ({"current": {"method": "none", "x": 1}}, "invalid_request", "/current/x", ["is no field here"]),
        ({"num_trials": "many"}, "invalid_request", "/num_trials", ["valid integer"]),
        ({"num_trials": None}, "invalid_request", "/num_trials", ["valid integer"]),
        ({"parameters": {"hiden": 3}}, "invalid_spec", "/parameters/hiden", ["its parameters are: hidden"]),
        ({"parameters": {"hidden": 0}}, "invalid_spec", "/parameters/hidden", [">= 1, got 0"]),
        ({"parameters": {"hidden": 1.5}}, "invalid_spec", "/parameters/hidden", ["type integer"]),
        ({"parameters": {"hidden": True}}, "invalid_spec", "/parameters/hidden", ["type integer"]),
        ({"parameters": {"hidden": None}}, "invalid_request", "/parameters/hidden", []),
        ({"parameters": {"hidden": [1]}}, "invalid_request", "/parameters/hidden", []),
        (
            {"parameters": {"optimizer": "lion"}},
            "invalid_spec",
            "/parameters/optimizer",
            ["one of sgd, adam"],
        ),
        ({"parameters": {"learning_rate": 10**400}}, "invalid_spec", "/parameters", ["too large"]),
        ({"parameters": {"a/b~c": 1}}, "invalid_spec", "/parameters/a~1b~0c", []),
        ({"effect": 10**400}, "invalid_request", "/effect", []),
        ({"name": ""}, "invalid_spec", "/name", ["1 to 100 characters"]),
        ({"name": "a" * 101}, "invalid_spec", "/name", ["1 to 100 characters"]),
        ({"name": "a\x00b"}, "invalid_spec", "/name", ["take out control characters"]),
        ({"name": "a\ud800b"}, "invalid_spec", "/name", ["printable"]),
        ({"workload": "a\x00b"}, "invalid_spec", "/workload", ["printable"]),
        ({"parameters": {"optimizer": "\ud800"}}, "invalid_spec", "/parameters/optimizer", ["printable"]),
        ({"methods": ["\ud800"]}, "invalid_spec", "/methods", ["printable"]),
    ],
)
def test_a_wrong_field_is_named(
    api: Any, changes: dict[str, Any], code: str, pointer: str, words: list[str]
) -> None:
    content = json.dumps(api.body(**changes))
    response = api.http.post(
        "/v1/studies", content=content, headers={"Content-Type": "application/json", "Idempotency-Key": "k"}
    )
    assert_problem(response, 422, code, *words, pointer=pointer)


@pytest.mark.parametrize(
    ("field", "number", "code"),
    [
        ("effect", "NaN", "invalid_spec"),
        ("effect", "Infinity", "invalid_spec"),
        ("effect", "1e400", "invalid_spec"),
        ("effect", "-1", "invalid_spec"),
        ("num_steps", "1e400", "invalid_request"),
        ("num_steps", "NaN", "invalid_request"),
        ("divergence_factor", "1", "invalid_spec"),
        ("divergence_factor", "-Infinity", "invalid_spec"),
    ],
)
def test_a_number_that_is_none_is_refused(api: Any, field: str, number: str, code: str) -> None:
    response = post(api, f'{{"workload": "charlm-rnn", "{field}": {number}}}')
    assert_problem(response, 422, code, field, pointer=f"/{field}")


def test_a_threshold_that_is_no_number_is_refused(api: Any) -> None:
    for number in ("NaN", "1e400", "-0.0"):
        body = f'{{"workload": "charlm-rnn", "current": {{"method": "value", "threshold": {number}}}}}'
        assert_problem(post(api, body), 422, "invalid_spec", "finite and > 0", pointer="/current/threshold")
    body = '{"workload": "charlm-rnn", "parameters": {"learning_rate": NaN}}'
    assert_problem(post(api, body), 422, "invalid_spec", "finite", pointer="/parameters/learning_rate")


@pytest.mark.parametrize(
    "body", ['{"workload": ', "{'workload': 1}", "nonsense", '{"workload": "a",}', "\x00"]
)
def test_malformed_json_names_the_position(api: Any, body: str) -> None:
    assert_problem(post(api, body), 400, "malformed_json", "at character")


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b"[" * 5_000, b'{"num_steps": ' + b"1" * 5_000 + b"}"])
def test_json_that_no_parser_takes_is_refused(api: Any, body: bytes) -> None:
    assert_problem(post(api, body), 400, "malformed_json")


@pytest.mark.parametrize("body", ["[]", '"text"', "5", "null"])
def test_json_that_is_no_object_is_refused(api: Any, body: str) -> None:
    assert_problem(post(api, body), 422, "invalid_request")


def test_an_empty_body_is_refused(api: Any) -> None:
    assert_problem(post(api, ""), 422, "invalid_request", "the body is missing")


@pytest.mark.parametrize(
    "declared", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "/"]
)
def test_another_content_type_is_refused_with_advice(api: Any, declared: str | None) -> None:
    headers = {"Idempotency-Key": "k"} | ({"Content-Type": declared} if declared else {})
    response = api.http.post("/v1/studies", content=json.dumps(api.body()), headers=headers)
    assert_problem(response, 415, "unsupported_media_type", "curl --json")


def test_a_body_above_the_limit_is_refused(api: Any) -> None:
    body = json.dumps(api.body(name="a" * api.settings.max_body_bytes))
    assert_problem(post(api, body), 413, "body_too_large", "CLIPTUNE_MAX_BODY_BYTES")


def test_a_body_above_the_limit_is_refused_while_it_streams(api: Any) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield b" " * 10_000

    response = post(api, chunks())
    assert "content-length" not in response.request.headers
    assert_problem(response, 413, "body_too_large", "CLIPTUNE_MAX_BODY_BYTES")


def test_a_submission_without_an_idempotency_key_is_refused(api: Any) -> None:
    response = api.http.post("/v1/studies", json=api.body())
    assert_problem(response, 400, "idempotency_key_missing", "send a new random value")


@pytest.mark.parametrize("key", ["a" * 201, " a", "é"])
def test_an_idempotency_key_of_another_form_is_refused(api: Any, key: str) -> None:
    response = api.http.post(
        "/v1/studies", json=api.body(), headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert_problem(response, 400, "idempotency_key_invalid", "use a UUID")


WITH_KEY = [
    ("GET", "/v1/studies"),
    ("GET", f"/v1/studies/{uuid.UUID(int=0)}"),
    ("GET", f"/v1/studies/{uuid.UUID(int=0)}/trials"),
    ("GET", f"/v1/studies/{uuid.UUID(int=0)}/events"),
    ("GET", f"/v1/studies/{uuid.UUID(int=0)}/recommendation"),
    ("POST", f"/v1/studies/{uuid.UUID(int=0)}/cancel"),
    ("POST", f"/v1/studies/{uuid.UUID(int=0)}/extend"),
    ("POST", f"/v1/studies/{uuid.UUID(int=0)}/trials:ask"),
    ("POST", f"/v1/trials/{uuid.UUID(int=0)}/heartbeat"),
    ("POST", f"/v1/trials/{uuid.UUID(int=0)}/report"),
    ("POST", f"/v1/trials/{uuid.UUID(int=0)}/complete"),
    ("POST", "/v1/studies"),
    ("GET", "/v1/recommendations?workload=w"),
    ("GET", f"/v1/recommendations/{uuid.UUID(int=0)}"),
    ("GET", "/v1/recommendations/badge?workload=w"),
    ("GET", "/v1/recommendations/badge.json?workload=w"),
    ("GET", "/v1/recommendations/badge.svg?workload=w"),
    ("GET", "/v1/workloads"),
    ("GET", "/v1/methods"),
    ("GET", "/v1/workers"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("GET", f"/v1/keys/{uuid.UUID(int=0)}"),
    ("DELETE", f"/v1/keys/{uuid.UUID(int=0)}"),
    ("GET", "/v1/webhooks"),
    ("POST", "/v1/webhooks"),
    ("GET", f"/v1/webhooks/{uuid.UUID(int=0)}"),
    ("DELETE", f"/v1/webhooks/{uuid.UUID(int=0)}"),
    ("POST", f"/v1/webhooks/{uuid.UUID(int=0)}:rotate"),
    ("POST", f"/v1/webhooks/{uuid.UUID(int=0)}:test"),
    ("POST", f"/v1/webhooks/{uuid.UUID(int=0)}:enable"),
    ("GET", f"/v1/webhooks/{uuid.UUID(int=0)}/deliveries"),
    ("GET", "/metrics"),
]


def test_the_list_of_routes_with_a_key_is_complete(api: Any) -> None:
    documented = {
        (
            method.upper(),
            re.sub(r"{\w+}", str(uuid.UUID(int=0)), path),
        )
        for path, operations in api.app.openapi()["paths"].items()
        for method in operations
    }
    listed = {(method, path.partition("?")[0]) for method, path in WITH_KEY}
    assert documented - listed == {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/version")}


def body_of(api: Any, method: str, path: str) -> dict[str, Any]:
    """What a route needs to be sent, besides the key."""
    token = {"lease_token": f"0.1.{'A' * 43}"}
    bodies = {
        "/v1/studies": api.body(),
        "/v1/keys": {"label": "a", "scopes": ["read"]},
        "/v1/webhooks": {"url": "https://example.org/"},
        "/extend": {"num_seeds": 2},
        "/trials:ask": {"client_id": "a"},
        "/heartbeat": token,
        "/report": token | {"step": 1},
        "/complete": token | {"outcome": "complete"},
    }
    ending = next((end for end in bodies if method == "POST" and path.endswith(end)), None)
    return {} if ending is None else {"json": bodies[ending], "headers": {"Idempotency-Key": "k"}}


@pytest.mark.parametrize(("method", "path"), WITH_KEY)
def test_no_route_answers_without_a_good_key(api: Any, method: str, path: str) -> None:
    good = api.key
    wrong = good[:30] + ("A" if good[30] != "A" else "B") + good[31:]
    options = body_of(api, method, path)
    for key, code in ((None, "key_missing"), ("hunter2", "key_malformed"), (wrong, "key_malformed")):
        response = api.with_key(key).request(method, path, **options)
        assert_problem(response, 401, code)
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("method", "path"), WITH_KEY)
def test_a_key_without_the_scope_is_refused(api: Any, method: str, path: str) -> None:
    none = api.with_key(api.new_key(scopes=[]))
    options = body_of(api, method, path)
    needed = "write" if method == "POST" else "read"
    if path.endswith((":ask", "/heartbeat", "/report", "/complete")):
        needed = "worker"
    if path.startswith(("/v1/keys", "/v1/webhooks")):
        needed = "admin"
    assert_problem(none.request(method, path, **options), 403, "forbidden", f"this needs {needed}")


def test_a_reading_key_may_not_write(api: Any) -> None:
    reader = api.with_key(api.new_key(scopes=["read"]))
    study = api.study()
    assert reader.get(f"/v1/studies/{study['id']}").status_code == 200
    response = reader.post("/v1/studies", json=api.body(), headers={"Idempotency-Key": "k"})
    assert_problem(response, 403, "forbidden", "read", "needs write")
    assert_problem(reader.post(f"/v1/studies/{study['id']}/cancel"), 403, "forbidden")


def test_an_unknown_expired_or_revoked_key_says_so(api: Any, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path / 'other.db'}")
    upgrade(other)
    from service.keys import create_key

    with other.write() as session:
        unknown = create_key(session, label="elsewhere")
    other.close()
    with api.database.read() as session:
        past = database_now(session) - 1
    expired, revoked = api.new_key(expires_at=past), api.new_key()
    with api.database.write() as session:
        assert revoke_key(session, revoked.split("_")[2])
    for key, code, words in (
        (unknown, "key_unknown", "check that it belongs to this service"),
        (expired, "key_expired", "ask for a new one"),
        (revoked, "key_revoked", "ask for a new one"),
    ):
        assert_problem(api.with_key(key).get("/v1/studies"), 401, code, words)


def test_a_key_may_come_in_its_own_header(api: Any) -> None:
    bare = api.with_key(None)
    assert bare.get("/v1/methods", headers={"X-API-Key": api.key}).status_code == 200
    assert_problem(
        bare.get("/v1/methods", headers={"Authorization": "Basic abc"}), 401, "key_missing", "Bearer KEY"
    )
    assert_problem(
        bare.get("/v1/methods", headers={"Authorization": "Bearer é".encode()}), 401, "key_malformed"
    )


@pytest.mark.parametrize(
    "study_id", [str(uuid.uuid4()), "x", "%00", "..%2f..", str(uuid.uuid4()).upper(), "a" * 101]
)
@pytest.mark.parametrize("rest", ["", "/trials", "/recommendation", "/events"])
def test_an_unknown_study_is_not_found(api: Any, study_id: str, rest: str) -> None:
    response = api.http.get(f"/v1/studies/{study_id}{rest}")
    code = {"..%2f..": "route_not_found", "a" * 101: "invalid_request"}.get(study_id, "study_not_found")
    assert response.json()["code"] == code
    if code == "study_not_found":
        assert_problem(response, 404, code, "there is no study")


def test_an_unknown_recommendation_is_not_found(api: Any) -> None:
    assert_problem(
        api.http.get(f"/v1/recommendations/{uuid.uuid4()}"), 404, "recommendation_not_found", "workload=NAME"
    )
    assert_problem(api.http.get("/v1/recommendations/x"), 404, "recommendation_not_found")


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/studies?limit=0", "query/limit"),
        ("/v1/studies?limit=101", "query/limit"),
        ("/v1/studies?limit=x", "query/limit"),
        ("/v1/studies?prefix=%25", "query/prefix"),
        ("/v1/recommendations?optimizer=S%20G", "query/optimizer"),
        ("/v1/recommendations?optimizer=sgd&num_parameters=0", "query/num_parameters"),
        ("/v1/recommendations?optimizer=sgd&learning_rate=nan", "query/learning_rate"),
        ("/v1/recommendations?optimizer=sgd&batch_size=0", "query/batch_size"),
        ("/v1/recommendations?optimizer=sgd&precision=fp8", "query/precision"),
        ("/v1/recommendations?optimizer=sgd&model_signature=x", "query/model_signature"),
        ("/v1/recommendations?optimizer=sgd&median_norm=inf", "query/median_norm"),
        ("/v1/recommendations?optimizer=sgd&median_norm=0", "query/median_norm"),
        ("/v1/studies/ID/recommendation?version=0", "query/version"),
        ("/v1/recommendations?workload=%00", "query/workload"),
        ("/v1/recommendations?workload=w&fingerprint=zz", "query/fingerprint"),
        ("/v1/studies/ID?wait=31", "query/wait"),
        ("/v1/studies/ID?wait=nan", "query/wait"),
        ("/v1/studies/ID/events?after=-1", "query/after"),
        ("/v1/studies/ID/events?after=99999999999999999999", "query/after"),
    ],
)
def test_a_wrong_query_is_named(api: Any, path: str, pointer: str) -> None:
    response = api.http.get(path.replace("ID", api.study()["id"]))
    assert_problem(response, 422, "invalid_request", pointer=pointer)


def test_a_query_without_workload_and_optimizer_says_what_to_give(api: Any) -> None:
    response = api.http.get("/v1/recommendations", params={"batch_size": 8})
    assert_problem(
        response,
        422,
        "query_incomplete",
        "no fingerprint",
        "give workload, or optimizer",
        pointer="query/workload",
    )


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ('{"num_seeds": 0}', "invalid_spec", "/num_seeds"),
        ('{"num_seeds": 65}', "invalid_spec", "/num_seeds"),
        ('{"num_seeds": "many"}', "invalid_request", "/num_seeds"),
        ('{"num_seeds": "5"}', "invalid_request", "/num_seeds"),
        ('{"num_seeds": 5.0}', "invalid_request", "/num_seeds"),
        ('{"num_seeds": true}', "invalid_request", "/num_seeds"),
        ('{"num_seed": 4}', "invalid_request", "/num_seed"),
        ("[]", "invalid_request", ""),
    ],
)
def test_a_wrong_extension_is_named(api: Any, body: str, code: str, pointer: str) -> None:
    study = api.study()
    api.succeed(study["id"])
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    response = api.http.post(f"/v1/studies/{study['id']}/extend", content=body, headers=headers)
    assert_problem(response, 422, code, pointer=pointer)


def test_an_extension_needs_an_idempotency_key(api: Any) -> None:
    response = api.http.post(f"/v1/studies/{api.study()['id']}/extend", json={})
    assert_problem(response, 400, "idempotency_key_missing", "send a new random value")


def test_an_unknown_address_and_method_are_problems(api: Any) -> None:
    assert_problem(api.http.get("/v2/studies"), 404, "route_not_found", "GET /docs")
    response = api.http.delete("/v1/studies")
    assert_problem(response, 405, "method_not_allowed", "use GET, POST")
    assert response.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "", "127.0.0.1.evil.example", "localhost@evil"]
)
def test_another_host_is_refused(api: Any, host: str) -> None:
    assert_problem(
        api.http.get("/healthz", headers={"Host": host}), 400, "host_not_allowed", "CLIPTUNE_ALLOWED_HOSTS"
    )


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8765", "[::1]:8765", "[::1]"])
def test_the_own_hosts_are_served(api: Any, host: str) -> None:
    assert api.http.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_requests_of_other_sites_are_refused(api: Any, site: str, status: int) -> None:
    response = api.http.get("/v1/methods", headers={"Sec-Fetch-Site": site})
    assert response.status_code == status
    if status == 403:
        assert_problem(response, 403, "cross_site_request", "from a program")


def test_a_database_that_is_down_is_a_problem(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api.http.get("/v1/methods")  # the key is remembered

    def broken(*args: Any, **options: Any) -> Any:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    monkeypatch.setattr(type(api.database), "read", broken)
    monkeypatch.setattr(type(api.database), "glance", broken)
    for path in ("/v1/studies", "/v1/recommendations?workload=w", "/readyz"):
        response = api.http.get(path)
        assert_problem(response, 503, "database_unavailable", "send the same request again")
        assert response.headers["retry-after"] == "5"
    assert api.http.get("/healthz").status_code == 200


def test_a_bug_is_a_problem_without_a_trace(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("the secret sentence")

    monkeypatch.setattr("service.workloads.list_workloads", broken)
    response = api.http.get("/v1/workloads", headers={"X-Request-ID": "mine-1"})
    assert_problem(response, 500, "internal_error", "report the request id")
    assert response.json()["request_id"] == "mine-1"
    assert "secret" not in response.text


JUNK_NAMES = st.text(max_size=5) | st.sampled_from(["method", "threshold"])
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(
        ["charlm-rnn", "global_norm", "value", "none", "1", 10**400, 2**63, 1e308, "\x00", "\ud800"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JUNK_NAMES, inner, max_size=3),
    max_leaves=6,
)
FIELD_NAMES = [field.name for field in dataclasses.fields(StudyRequest)] + ["zzz"]


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(changes=st.dictionaries(st.sampled_from(FIELD_NAMES), JUNK, max_size=3))
def test_no_body_breaks_the_service(api: Any, changes: dict[str, Any]) -> None:
    response = post(api, json.dumps(api.body() | changes))
    assert response.status_code in (200, 202, 400, 409, 422), response.text
    if response.is_error:
        assert response.headers["content-type"] == "application/problem+json"
        assert len(response.json()["detail"]) > 10 and response.json()["errors"] is not None


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    content=st.binary(max_size=50)
    | st.text(max_size=50).map(str.encode)
    | JUNK.map(json.dumps).map(str.encode)
)
def test_no_bytes_break_the_service(api: Any, content: bytes) -> None:
    assert post(api, content).status_code in (400, 422)


def post(api: Any, content: Any) -> Any:
    return api.http.post(
        "/v1/studies",
        content=content,
        headers={"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())},
    )
