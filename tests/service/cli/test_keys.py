"""`cliptune keys` against a real service, and what `cliptune check` says of each way in which a key is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from identity_issuer import DISCOVERY, Answers, LocalIssuer, answering
from serving import serving

from service.api.app import create_app
from service.cli.keys import create, expiry_warnings
from service.cli.run import _environment
from service.client.connection import Connection
from service.db.clock import database_now
from service.db.session import Database
from service.errors import UnauthorizedError
from service.keys import create_key, revoke_key
from service.schemas import KeyOut
from service.settings import Settings

WORKLOAD = ("--workload", "charlm-rnn")
#: What the service under test wants identity tokens to be made for.
AUDIENCE = "http://cliptune.test"


@dataclass(frozen=True)
class Service:
    """A service on a real socket, that trusts one issuer."""

    url: str
    database: Database
    admin: str
    issuer: LocalIssuer

    def key(self, **options: Any) -> str:
        with self.database.write() as session:
            return create_key(session, label="test", **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Service]:
    file = shutil.copyfile(migrated_file, tmp_path_factory.mktemp("service") / "cliptune.db")
    database = Database(f"sqlite:///{file}")
    with database.write() as session:
        admin = create_key(session, label="first")
    with answering() as answers:
        issuer = LocalIssuer(answers)
        rule = {"issuer": issuer.url, "audience": AUDIENCE, "match": {"repository": "octo/*"}}
        with serving(create_app(Settings(oidc=json.dumps([rule])), database)) as url:
            yield Service(url, database, admin, issuer)
    database.close()


@pytest.fixture
def service(shared: Service, repository: Any, monkeypatch: pytest.MonkeyPatch) -> Service:
    for name in (
        "ACTIONS_ID_TOKEN_REQUEST_URL",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "CLIPTUNE_ID_TOKEN",
        "CLIPTUNE_OIDC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLIPTUNE_URL", shared.url)
    monkeypatch.setenv("CLIPTUNE_API_KEY", shared.admin)
    repository.config("1.0")
    shared.issuer.restore()
    return shared


# ---- keys ----


def test_new_key_is_alone_on_standard_output_and_works(
    service: Service, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cliptune("keys", "create", "--label", "ci", "--scope", "read", "--expires-in-days", "90")
    assert made.code == 0
    assert re.fullmatch(r"cliptune_live_\w{8}_\w{43}_\w{6}\n", made.out)
    key_id = made.out.split("_")[2]
    until = f"{datetime.now(UTC) + timedelta(days=90):%Y-%m-%d}"
    where, what, how = made.err.splitlines()
    assert "only time" in where and "CLIPTUNE_API_KEY" in where
    assert "read studies and recommendations" in what and until[:7] in what
    assert how.endswith(f"cliptune keys revoke {key_id}")
    assert made.out.strip() not in made.err
    monkeypatch.setenv("CLIPTUNE_API_KEY", made.out.strip())
    assert cliptune("studies").code == 0
    refused = cliptune("keys", "list")
    assert refused.code == 3 and "this needs admin [forbidden]" in refused.err


def test_key_reads_for_90_days_unless_it_is_told_otherwise(service: Service, cliptune: Any) -> None:
    plain = json.loads(cliptune("keys", "create", "--label", "a", "--json").out)
    assert plain["scopes"] == ["read"] and plain["expires_at"] is not None
    assert plain["key"].startswith("cliptune_live_")
    more = cliptune(
        *("keys", "create", "--label", "b", "--scope", "write", "--scope", "worker", "--never-expires")
    )
    assert "submit, cancel and read studies and train lanes" in more.err
    assert "until it is revoked" in more.err


def test_list_shows_a_table_and_never_a_key(service: Service, cliptune: Any) -> None:
    key = service.key(scopes=["read"])
    listed = cliptune("keys", "list")
    lines = listed.out.splitlines()
    assert listed.code == 0
    assert re.split(r"  +", lines[0]) == ["id", "label", "scopes", "expires", "last used", "state"]
    row = next(line for line in lines if line.startswith(key.split("_")[2]))
    assert re.split(r"  +", row)[1:] == ["test", "read", "never", "never", "live"]
    documents = json.loads(cliptune("keys", "list", "--json").out)
    assert {each["id"] for each in documents} == {line[:8] for line in lines[1:]}
    assert not [each for each in documents if "key" in each]
    assert key.split("_")[3] not in listed.out + listed.err


def test_key_that_expires_soon_is_warned_about(service: Service, cliptune: Any) -> None:
    with service.database.read() as session:
        now = database_now(session)
    soon = service.key(expires_at=now + 3 * 86_400_000 + 60_000).split("_")[2]
    later = service.key(expires_at=now + 20 * 86_400_000).split("_")[2]
    listed = cliptune("keys", "list")
    assert f"the key {soon} (test) expires on " in listed.err and "in 3 days" in listed.err
    assert later not in listed.err and "put it in its place" in listed.err


def test_only_live_keys_are_warned_about() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def key(state: Any, expires_at: datetime | None) -> KeyOut:
        return KeyOut(
            id="0a1B2c3D",
            label="ci",
            scopes=("read",),
            created_at=now,
            expires_at=expires_at,
            last_used_at=None,
            revoked_at=None,
            state=state,
        )

    near = now + timedelta(days=14)
    assert len(expiry_warnings([key("live", near), key("live", now + timedelta(hours=5))], now)) == 2
    assert "less than a day" in expiry_warnings([key("live", near), key("live", now)], now)[0]
    assert "in 14 days" in expiry_warnings([key("live", near)], now)[0]
    assert "in 1 day:" in expiry_warnings([key("live", now + timedelta(hours=30))], now)[0]
    silent = [
        key("live", None),
        key("live", near + timedelta(seconds=1)),
        key("expired", now),
        key("revoked", near),
    ]
    assert expiry_warnings(silent, now) == []


def test_revoked_key_is_refused_and_says_so_twice(service: Service, cliptune: Any) -> None:
    key_id = service.key().split("_")[2]
    first = cliptune("keys", "revoke", key_id)
    assert first.code == 0 and first.out.startswith(f"key {key_id} (test) is revoked since 2")
    assert cliptune("keys", "revoke", key_id).out == first.out
    assert json.loads(cliptune("keys", "revoke", key_id, "--json").out)["state"] == "revoked"


def test_whole_key_is_revoked_by_its_id_alone(
    service: Service, cliptune: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    key = service.key()
    assert cliptune("keys", "revoke", key).code == 0
    addresses = [record.getMessage() for record in caplog.records if record.name == "httpx2"]
    assert addresses and not [each for each in addresses if key.split("_")[3] in each]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "--label", "a", "--never-expires", "--expires-in-days", "3"], 2, "leave one out"),
        (["create", "--label", "a", "--scope", "root"], 2, "must be one of read, write, worker, admin, got"),
        (["create"], 2, "--label"),
        (["create", "--label", ""], 2, "[invalid_request]"),
        (["create", "--label", "a", "--expires-in-days", "0"], 2, "[invalid_request]"),
        (["create", "--label", "a", "--scope", "read", "--scope", "read"], 2, "got read twice"),
        (["revoke", "00000000"], 2, "[key_not_found]"),
        (["revoke", "../studies"], 2, "[key_not_found]"),
        (["revoke", "0a1B2c3"], 2, "[key_not_found]"),
    ],
)
@pytest.mark.usefixtures("service")
def test_wrong_option_says_what_is_wrong(cliptune: Any, arguments: list[str], code: int, words: str) -> None:
    ended = cliptune("keys", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


def test_key_that_can_not_be_written_leaves_its_id(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost: list[str] = []

    def echo(text: str, err: bool = False) -> None:
        if not err:
            lost.append(text)
            raise OSError("no space left on device")
        print(text, file=sys.stderr)

    monkeypatch.setattr("service.cli.keys.typer.echo", echo)
    with pytest.raises(OSError, match="no space"):
        create("lost")
    assert f"to revoke it: cliptune keys revoke {lost[0].split('_')[2]}\n" in capsys.readouterr().err


def test_last_admin_key_stays(service: Service, cliptune: Any) -> None:
    with service.database.write() as session:
        only = create_key(session, label="only", tenant_id="alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPTUNE_API_KEY", only)
        ended = cliptune("keys", "revoke", only.split("_")[2])
    assert ended.code == 2 and ended.err.endswith("[last_admin_key]\n")


# ---- what a check says of a key that is refused ----


def wrong(service: Service) -> dict[str, str]:
    """A key that was taken back before anybody saw it."""
    with service.database.write() as session:
        key = create_key(session, label="never was")
        session.rollback()
    return {"CLIPTUNE_API_KEY": key}


def expired(service: Service) -> dict[str, str]:
    return {"CLIPTUNE_API_KEY": service.key(expires_at=1)}


def revoked(service: Service) -> dict[str, str]:
    key = service.key()
    with service.database.write() as session:
        assert revoke_key(session, key.split("_")[2])
    return {"CLIPTUNE_API_KEY": key}


def issued(service: Service, **changes: Any) -> dict[str, str]:
    claims = {"aud": AUDIENCE} | changes
    return {"CLIPTUNE_API_KEY": "", "CLIPTUNE_ID_TOKEN": service.issuer.token(**claims)}


REFUSED = {
    "wrong key": (wrong, "key_unknown", "The access key is wrong"),
    "mistyped key": (
        lambda service: {"CLIPTUNE_API_KEY": service.admin[:-1]},
        "key_malformed",
        "The access key is mistyped",
    ),
    "expired key": (expired, "key_expired", "The access key has expired"),
    "revoked key": (revoked, "key_revoked", "The access key was revoked"),
    "wrong scope": (
        lambda service: {"CLIPTUNE_API_KEY": service.key(scopes=["worker"])},
        "forbidden",
        "The access key lacks a scope",
    ),
    "no key": (lambda service: {"CLIPTUNE_API_KEY": ""}, "key_missing", "No access key was given"),
    "expired token": (
        lambda service: issued(service, exp=1),
        "token_expired",
        "The identity token has expired",
    ),
    "another repository's token": (
        lambda service: issued(service, repository="cat/a"),
        "token_untrusted",
        "The service does not trust the identity token",
    ),
    "cut token": (
        lambda service: {"CLIPTUNE_API_KEY": "", "CLIPTUNE_ID_TOKEN": "eyJhbGciOiJSUzI1NiJ9"},
        "token_malformed",
        "The identity token is mistyped",
    ),
    "runner without tokens": (
        lambda service: {
            "CLIPTUNE_API_KEY": "",
            "ACTIONS_ID_TOKEN_REQUEST_URL": "http://127.0.0.1:1/token",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "secret",
        },
        "id_token_unavailable",
        "GitHub gave no identity token",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_caller_has_its_own_sentence_and_exit_code_3(
    service: Service, cliptune: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    environment, code, title = REFUSED[what]
    given = environment(service)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    failed = cliptune("check", *WORKLOAD, "--on-service-error", "fail")
    assert failed.code == 3
    assert failed.out.startswith(f"failed: {title}, so that no clip value was judged: ")
    assert f"[{code}]\n" in failed.out
    for secret in given.values():
        assert len(secret) < 20 or secret not in failed.out + failed.err
    softened = cliptune("check", *WORKLOAD)
    assert softened.code == 0 and softened.out.startswith(f"warning: {title}")


@pytest.mark.parametrize("name", ["CLIPTUNE_API_KEY", "CLIPTUNE_ID_TOKEN"])
def test_white_space_around_a_secret_does_not_count(
    service: Service, cliptune: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    secret = service.admin if name == "CLIPTUNE_API_KEY" else service.issuer.token(aud=AUDIENCE)
    monkeypatch.setenv("CLIPTUNE_API_KEY", "")
    monkeypatch.setenv(name, f" {secret} \r\n")
    assert cliptune("studies").code == 0


@pytest.mark.parametrize("ending", [" ", "\n", "\u00e9"])
def test_key_that_no_header_can_carry_is_not_told(ending: str) -> None:
    with pytest.raises(UnauthorizedError, match="without quotes and spaces") as caught:
        Connection("http://127.0.0.1:1", f"my-secret{ending}")
    assert caught.value.code == "key_malformed" and "my-secret" not in caught.value.detail


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "correct ALL_PROXY"),
        ("HTTP_PROXY", "odd://127.0.0.1:1", "correct ALL_PROXY"),
        ("HTTP_PROXY", "http://127.0.0.1:port", "correct ALL_PROXY"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE in the environment"),
        ("CLIPTUNE_URL", f"http://{'a' * 64}.example", "no service answers at"),
        ("CLIPTUNE_URL", "http://me:my-secret@127.0.0.1:1", "holds a user or a password"),
    ],
)
@pytest.mark.usefixtures("service")
def test_environment_that_can_send_nothing_is_no_failed_check(
    cliptune: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 0 and words in ended.out and "[service_unreachable]" in ended.out
    assert "my-secret" not in ended.out + ended.err
    assert cliptune("check", *WORKLOAD, "--on-service-error", "fail").code == 3


def test_answer_that_can_not_be_unpacked_is_no_failed_check(
    cliptune: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering() as proxy:
        monkeypatch.setenv("CLIPTUNE_URL", proxy.url)
        proxy.bodies["/v1/keys"], proxy.headers["/v1/keys"] = b"no gzip", {"Content-Encoding": "gzip"}
        ended = cliptune("keys", "list")
    assert ended.code == 3 and ended.err.endswith("[service_unreachable]\n")


def test_each_refusal_has_another_sentence_which_the_documentation_lists() -> None:
    titles = [title for _, _, title in REFUSED.values()]
    assert len(set(titles)) == len(titles)
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "keys.md").read_text()
    assert not [title for _, code, title in REFUSED.values() if f"| {title} | `{code}` |" not in page]


def test_issuer_that_is_away_is_an_outage(
    service: Service, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering() as answers:
        away = LocalIssuer(answers)
        answers.statuses[DISCOVERY] = 500
        rule = {"issuer": away.url, "audience": AUDIENCE, "match": {"repository": "octo/*"}}
        app = create_app(Settings(oidc=json.dumps([rule])), service.database)
        with serving(app) as url:
            monkeypatch.setenv("CLIPTUNE_URL", url)
            monkeypatch.setenv("CLIPTUNE_API_KEY", "")
            monkeypatch.setenv("CLIPTUNE_ID_TOKEN", away.token(aud=AUDIENCE))
            ended = cliptune("check", *WORKLOAD, "--on-service-error", "fail")
    assert ended.code == 3 and "The service can't verify the identity token" in ended.out


# ---- pipelines without a key ----


@pytest.fixture
def runner(service: Service) -> Iterator[Answers]:
    with answering() as answers:
        # A token for whatever audience is asked for is what GitHub gives; the service's address has to be the rule's.
        answers.bodies["/token"] = {"value": service.issuer.token(aud=AUDIENCE)}
        yield answers


def github(monkeypatch: pytest.MonkeyPatch, runner: Answers) -> None:
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{runner.url}/token?api-version=2.0")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner secret")


def test_gitlab_token_is_enough(service: Service, cliptune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in issued(service).items():
        monkeypatch.setenv(name, value)
    ended = cliptune("check", *WORKLOAD, "--on-service-error", "fail")
    assert ended.code == 0 and "[no_recommendation]" in ended.out, "the service was asked and answered"


def test_github_token_is_fetched_for_the_address_of_the_service(
    service: Service, runner: Answers, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPTUNE_API_KEY", "")
    github(monkeypatch, runner)
    ended = cliptune("check", *WORKLOAD, "--on-service-error", "fail", "--url", f"{service.url}/")
    assert ended.code == 0 and "[no_recommendation]" in ended.out
    path, headers = runner.requests[0]
    assert path.endswith(f"&audience=http%3A%2F%2F{service.url.removeprefix('http://').replace(':', '%3A')}")
    assert headers["authorization"] == "Bearer runner secret"
    assert len(runner.requests) == 1, "one token is enough for a command"


@pytest.mark.parametrize("given", ["CLIPTUNE_API_KEY", "CLIPTUNE_ID_TOKEN"])
def test_what_is_given_goes_before_the_runner(
    service: Service, runner: Answers, cliptune: Any, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    github(monkeypatch, runner)
    if given == "CLIPTUNE_ID_TOKEN":
        for name, value in issued(service).items():
            monkeypatch.setenv(name, value)
    assert cliptune("studies").code == 0
    assert not runner.requests


def test_key_goes_before_a_token(service: Service, cliptune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPTUNE_ID_TOKEN", "eyJ")
    assert cliptune("studies").code == 0


def test_command_that_trains_sees_neither_key_nor_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIPTUNE_API_KEY", "CLIPTUNE_ID_TOKEN", "MY_OWN"):
        monkeypatch.setenv(name, "x")
    environment = _environment()
    assert environment["MY_OWN"] == "x" and not {"CLIPTUNE_API_KEY", "CLIPTUNE_ID_TOKEN"} & set(environment)


def test_service_from_home_takes_the_key_from_home(
    service: Service, runner: Answers, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = repository.root.parent / "home"
    home.mkdir()
    (home / "key").write_text(service.admin)
    (home / "service.json").write_text(json.dumps({"url": service.url}))
    github(monkeypatch, runner)
    monkeypatch.setenv("CLIPTUNE_API_KEY", "")
    monkeypatch.delenv("CLIPTUNE_URL")
    assert cliptune("studies").code == 0
    assert not runner.requests


@pytest.mark.parametrize(
    ("key", "address", "code"),
    [
        (b"\xff\xfe", b"{}", "key_malformed"),
        (b"", b"\xff", "key_missing"),
        (None, b"[]", "key_missing"),
    ],
)
def test_odd_files_in_home_are_no_failed_check(
    service: Service, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch,
    key: bytes | None, address: bytes, code: str,
) -> None:  # fmt: skip
    home = repository.root.parent / "home"
    home.mkdir()
    if key is not None:
        (home / "key").write_bytes(key)
    (home / "service.json").write_bytes(address)
    monkeypatch.setenv("CLIPTUNE_API_KEY", "")
    monkeypatch.setenv("CLIPTUNE_PORT", service.url.rpartition(":")[2])
    monkeypatch.delenv("CLIPTUNE_URL")
    ended = cliptune("check", *WORKLOAD, "--on-service-error", "fail")
    assert ended.code == 3 and f"[{code}]" in ended.out
