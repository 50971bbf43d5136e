"""Identity tokens: whom the service believes, and every way in which a token is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from identity_issuer import AUDIENCE, DISCOVERY, KEY_SET, Answers, LocalIssuer, answering
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry
from starlette.testclient import TestClient

from service.api.app import create_app
from service.cli.main import _PACKAGES_OF_EXTRAS
from service.client.identity import GitHubIdentity
from service.db.session import Database
from service.errors import ProblemError, SettingsError, UnauthorizedError, UnavailableError
from service.identity import issuer as issuer_module
from service.identity.identities import Identities
from service.identity.issuer import (
    FRESH_SECONDS,
    LOOK_AGAIN_SECONDS,
    RETRY_SECONDS,
    STALE_SECONDS,
    Issuer,
)
from service.logs import without_secrets
from service.settings import Settings, load_settings
from service.trust import TrustRule, parse_trust

MATCH = (("repository", "octo/*"), ("ref", "refs/heads/main"))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Answers]:
    """A server that no token may make the service ask."""
    with answering() as answers:
        yield answers


@pytest.fixture(scope="module")
def module_issuer() -> Iterator[LocalIssuer]:
    with answering() as answers:
        yield LocalIssuer(answers)


@pytest.fixture
def issuer(module_issuer: LocalIssuer) -> LocalIssuer:
    module_issuer.restore()
    module_issuer.answers.asked.clear()
    return module_issuer


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Database]:
    """SQLite alone: only its clock is read here."""
    file = shutil.copyfile(migrated_file, tmp_path_factory.mktemp("oidc") / "cliptune.db")
    opened = Database(f"sqlite:///{file}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def identities(module_issuer: LocalIssuer, database: Database) -> Identities:
    """What the tests of refusals share; none of them changes what it knows."""
    return Identities(database, [TrustRule(module_issuer.url, AUDIENCE, MATCH)])


def refusal(identities: Identities, token: str) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        identities.look_up(token)
    assert identities.recall(token) is None
    return caught.value


def part(content: bytes | dict[str, Any]) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(issuer: LocalIssuer, header: bytes | dict[str, Any], claims: bytes | dict[str, Any]) -> str:
    """A token of these very bytes with a right signature, for what no library would write."""
    text = f"{part(header)}.{part(claims)}"
    signature = JWSRegistry.algorithms["RS256"].sign(text.encode(), issuer.keys["rsa"])
    return f"{text}.{part(signature)}"


HEADER = {"alg": "RS256", "kid": "rsa", "typ": "JWT"}


# ---- tokens that are taken ----


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("rsa", {}),
        ("ec", {}),
        ("rsa", {"aud": ["https://other.example", AUDIENCE]}),
        ("rsa", {"nbf": None, "iat": None, "sub": None}),
        ("rsa", {"repository": "octo/a/b"}),
    ],
)
def test_good_token_has_the_tenant_and_scopes_of_its_rule(
    issuer: LocalIssuer, database: Database, key: str, changes: dict[str, Any]
) -> None:
    rule = TrustRule(issuer.url, AUDIENCE, MATCH, tenant="team", scopes=frozenset({"write"}))
    principal = Identities(database, [rule]).look_up(issuer.token(key, **changes))
    assert (principal.tenant_id, principal.scopes) == ("team", {"write"})
    assert principal.key_id.startswith("oidc:") and len(principal.key_id) == len("oidc:") + 12


def test_clocks_may_differ_by_a_minute(issuer: LocalIssuer, identities: Identities) -> None:
    now = time.time()
    for changes in ({"exp": int(now) - 20}, {"nbf": int(now) + 50, "iat": now + 50.5}):
        assert identities.look_up(issuer.token(**changes)).tenant_id == "default"


def test_first_rule_that_matches_decides(issuer: LocalIssuer, database: Database) -> None:
    rules = [
        TrustRule(issuer.url, "https://other.example", MATCH, tenant="other audience"),
        TrustRule(issuer.url, AUDIENCE, (("repository", "cat/*"),), tenant="other owner"),
        TrustRule(issuer.url, AUDIENCE, MATCH, tenant="main"),
        TrustRule(issuer.url, AUDIENCE, (("repository", "octo/*"),), tenant="any branch"),
    ]
    identities = Identities(database, rules)
    assert identities.look_up(issuer.token()).tenant_id == "main"
    assert identities.look_up(issuer.token(ref="refs/heads/x")).tenant_id == "any branch"


def test_jobs_of_one_subject_have_one_id_and_their_own_cursors(
    issuer: LocalIssuer, identities: Identities
) -> None:
    first, second = (identities.look_up(issuer.token(jti=number)) for number in "12")
    stranger = identities.look_up(issuer.token(sub="repo:octo/other:ref:refs/heads/main"))
    assert first.key_id == second.key_id != stranger.key_id
    assert first.signing_key != second.signing_key
    assert "signing_key" not in repr(first)


def test_token_is_remembered_for_half_a_minute_and_not_beyond_its_end(
    issuer: LocalIssuer, identities: Identities
) -> None:
    long, short = issuer.token(), issuer.token(exp=int(time.time()) + 25)
    now = time.monotonic()
    for token in (long, short):
        assert identities.recall(token) is None
        assert identities.look_up(token) == identities.recall(token)
    until = {name: identities._known[hashlib.sha256(name.encode()).digest()][0] for name in (long, short)}
    spent = time.monotonic() - now
    assert until[long] - now <= 30 + spent
    assert until[short] - now <= 25 + spent
    over = issuer.token(exp=int(time.time()) - 10)
    assert identities.look_up(over).tenant_id == "default" and identities.recall(over) is None


# ---- tokens that are refused ----

Build = Callable[[LocalIssuer], str]

MALFORMED: dict[str, tuple[Build, str]] = {
    "beginning alone": (lambda issuer: "eyJhbGciOiJSUzI1NiJ9", "three parts"),
    "five parts": (lambda issuer: f"{issuer.token()}.a.b", "three parts"),
    "another alphabet": (lambda issuer: f"{issuer.token()}+/=", "three parts"),
    "a line end behind": (lambda issuer: f"{issuer.token()}\n", "three parts"),
    "no claims": (lambda issuer: f"{part(HEADER)}..{part(b'x')}", "three parts"),
    "over 8 KB": (lambda issuer: issuer.token(x="y" * 8192), "at most 8192"),
    "header no base64": (lambda issuer: f"A.{part(issuer.claims())}.x", "header is no JSON"),
    "header no JSON": (lambda issuer: signed(issuer, b"{", issuer.claims()), "header is no JSON"),
    "header a list": (lambda issuer: signed(issuer, b"[]", issuer.claims()), "header must be a JSON object"),
    "kid twice": (
        lambda issuer: signed(issuer, b'{"alg":"RS256","kid":"rsa","kid":"ec"}', issuer.claims()),
        "the name 'kid' comes twice",
    ),
    "iss twice": (
        lambda issuer: signed(issuer, HEADER, json.dumps(issuer.claims())[:-1].encode() + b',"iss":"x"}'),
        "the name 'iss' comes twice",
    ),
    "nested claims": (lambda issuer: signed(issuer, HEADER, b"[" * 5000), "claims is no JSON"),
    "nested in a claim": (
        lambda issuer: signed(issuer, HEADER, b'{"a":' + b"[" * 2500 + b"]" * 2500 + b"}"),
        "claims is no JSON",
    ),
    "NaN": (lambda issuer: signed(issuer, HEADER, b'{"exp": NaN}'), "claims is no JSON"),
    "a number of 5000 digits": (
        lambda issuer: signed(issuer, HEADER, b'{"exp": ' + b"1" * 5000 + b"}"),
        "claims is no JSON",
    ),
    "UTF-16": (
        lambda issuer: signed(issuer, HEADER, json.dumps(issuer.claims()).encode("utf-16")),
        "claims is no JSON",
    ),
    "critical extension": (
        lambda issuer: signed(issuer, HEADER | {"crit": ["b64"], "b64": False}, issuer.claims()),
        "extensions (crit)",
    ),
    "another type": (lambda issuer: issuer.token(header={"typ": "logout+jwt"}), "typ is 'logout+jwt'"),
    "no kid": (
        lambda issuer: signed(issuer, {"alg": "RS256"}, issuer.claims()),
        "name the key in kid, 1 to 200 characters, got nothing",
    ),
    "kid a number": (lambda issuer: signed(issuer, HEADER | {"kid": 5}, issuer.claims()), "in kid"),
    "kid too long": (lambda issuer: signed(issuer, HEADER | {"kid": "k" * 201}, issuer.claims()), "in kid"),
    "no issuer": (lambda issuer: issuer.token(iss=None), "iss must be a text, got nothing"),
    "issuer a list": (lambda issuer: issuer.token(iss=["a"]), "iss must be a text"),
    "no expiry": (lambda issuer: issuer.token(exp=None), "no expiry"),
    "expiry a text": (lambda issuer: issuer.token(exp="2030"), "exp must be a time in seconds"),
    "expiry true": (lambda issuer: issuer.token(exp=True), "exp must be a time in seconds"),
    "expiry endless": (
        lambda issuer: signed(
            issuer,
            HEADER,
            json.dumps(issuer.claims(exp=None))[:-1].encode() + b',"exp":1e400}',
        ),
        "exp must be a time in seconds since 1970, got inf",
    ),
    "expiry after the year 9999": (lambda issuer: issuer.token(exp=10**400), "exp must be a time"),
    "nbf negative": (lambda issuer: issuer.token(nbf=-1), "nbf must be a time"),
}

UNTRUSTED: dict[str, tuple[Build, str]] = {
    "alg none": (
        lambda issuer: f"{part({'alg': 'none', 'kid': 'rsa'})}.{part(issuer.claims())}.",
        "alg 'none': only RS256 and ES256",
    ),
    "public key as a secret": (lambda issuer: signed_with_secret(issuer), "alg 'HS256'"),
    "RS512": (lambda issuer: issuer.token(header={"alg": "RS512"}, signer=stranger()), "alg 'RS512'"),
    "PS256": (lambda issuer: issuer.token(header={"alg": "PS256"}, signer=stranger()), "alg 'PS256'"),
    "no alg": (lambda issuer: signed(issuer, {"kid": "rsa"}, issuer.claims()), "alg nothing"),
    "a stranger's key": (lambda issuer: issuer.token(signer=stranger()), "not signed by the key 'rsa'"),
    "changed claims": (lambda issuer: with_claims(issuer, ref="refs/heads/evil"), "not signed by"),
    "cut signature": (lambda issuer: issuer.token()[:-8], "not signed by"),
    "no signature": (lambda issuer: issuer.token().rpartition(".")[0] + ".", "not signed by"),
    "signature of zeros": (
        lambda issuer: f"{issuer.token('ec').rpartition('.')[0]}.{'A' * 86}",
        "not signed by",
    ),
    "unknown key": (lambda issuer: issuer.token(header={"kid": "other"}), "names the key 'other'"),
    "key of another algorithm": (
        lambda issuer: issuer.token(header={"kid": "ec"}),
        "names the key 'ec', which",
    ),
    "another issuer": (
        lambda issuer: issuer.token(iss="https://evil.example"),
        "issuer 'https://evil.example', which no rule",
    ),
    "a slash behind the issuer": (lambda issuer: issuer.token(iss=f"{issuer.url}/"), "which no rule"),
    "another audience": (
        lambda issuer: issuer.token(aud="https://other.example"),
        f"audience 'https://other.example', and the rule wants '{AUDIENCE}'",
    ),
    "no audience": (lambda issuer: issuer.token(aud=None), "audience nothing"),
    "audience in an object": (lambda issuer: issuer.token(aud={"a": AUDIENCE}), "the rule wants"),
    "another repository": (
        lambda issuer: issuer.token(repository="octopus/models"),
        "claim repository 'octopus/models', and the rule wants 'octo/*'",
    ),
    "another case": (lambda issuer: issuer.token(repository="Octo/models"), "claim repository"),
    "another branch": (
        lambda issuer: issuer.token(ref="refs/pull/1/merge"),
        "claim ref 'refs/pull/1/merge', and the rule wants 'refs/heads/main'",
    ),
    "no branch": (lambda issuer: issuer.token(ref=None), "claim ref nothing"),
    "a list of branches": (lambda issuer: issuer.token(ref=["refs/heads/main"]), "claim ref ["),
    "not yet": (lambda issuer: issuer.token(nbf=int(time.time()) + 900), "more than 60 s ahead"),
    "made in the future": (lambda issuer: issuer.token(iat=int(time.time()) + 900), "has iat"),
}


def stranger() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "rsa"})


def with_claims(issuer: LocalIssuer, **changes: Any) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{part(issuer.claims(**changes))}.{signature}"


def signed_with_secret(issuer: LocalIssuer) -> str:
    text = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{part(issuer.claims())}"
    secret = issuer.keys["rsa"].as_pem(private=False)
    return f"{text}.{part(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


@pytest.mark.parametrize("what", MALFORMED)
def test_token_that_is_none_says_why(issuer: LocalIssuer, identities: Identities, what: str) -> None:
    build, words = MALFORMED[what]
    error = refusal(identities, build(issuer))
    assert (error.status, error.code) == (401, "token_malformed")
    assert words in error.detail and error.detail.isprintable()


@pytest.mark.parametrize("what", UNTRUSTED)
def test_token_that_nobody_vouches_for_says_why(
    issuer: LocalIssuer, identities: Identities, what: str
) -> None:
    build, words = UNTRUSTED[what]
    error = refusal(identities, build(issuer))
    assert (error.status, error.code) == (401, "token_untrusted")
    assert words in error.detail and error.detail.isprintable()


def test_expired_token_says_when(issuer: LocalIssuer, identities: Identities) -> None:
    error = refusal(identities, issuer.token(exp=int(time.time()) - 90))
    assert (error.status, error.code) == (401, "token_expired")
    assert "expired at 2" in error.detail and "get a new one" in error.detail


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk"])
def test_token_does_not_say_where_its_keys_are(
    issuer: LocalIssuer, identities: Identities, elsewhere: Answers, name: str
) -> None:
    theirs = stranger()
    elsewhere.bodies["/keys"] = {"keys": [theirs.as_dict(private=False)]}
    place = theirs.as_dict(private=False) if name == "jwk" else f"{elsewhere.url}/keys"
    # Written by hand, because the library refuses to write an odd header.
    text = f"{part(HEADER | {name: place})}.{part(issuer.claims())}"
    token = f"{text}.{part(JWSRegistry.algorithms['RS256'].sign(text.encode(), theirs))}"
    assert "not signed by" in refusal(identities, token).detail
    assert elsewhere.asked.total() == 0


def test_without_rules_every_token_is_refused(issuer: LocalIssuer, database: Database) -> None:
    error = refusal(Identities(database, ()), issuer.token())
    assert error.code == "token_untrusted" and "CLIPTUNE_OIDC" in error.detail
    assert issuer.answers.asked.total() == 0


def test_nearest_rule_is_the_one_that_is_told(issuer: LocalIssuer, database: Database) -> None:
    rules = [
        TrustRule(issuer.url, AUDIENCE, (("repository", "cat/*"),)),
        TrustRule(issuer.url, AUDIENCE, MATCH),
    ]
    error = refusal(Identities(database, rules), issuer.token(ref="refs/heads/x"))
    assert "claim ref" in error.detail


# ---- the issuer's keys ----


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(ProblemError) as caught:
        action()
    return caught.value.code


def test_keys_are_fetched_once_and_again_after_an_hour(issuer: LocalIssuer, clock: Clock) -> None:
    asked = Issuer(issuer.url, clock)
    for _ in range(3):
        asked.find_key("rsa", "RS256")
    assert issuer.answers.asked == {DISCOVERY: 1, KEY_SET: 1}
    clock.now += FRESH_SECONDS
    del issuer.answers.bodies[KEY_SET]["keys"][0]
    # The key that the issuer took back is known no more.
    assert code_of(lambda: asked.find_key("rsa", "RS256")) == "token_untrusted"
    assert issuer.answers.asked[KEY_SET] == 2


def test_unknown_key_is_looked_for_at_most_once_a_minute(issuer: LocalIssuer, clock: Clock) -> None:
    asked = Issuer(issuer.url, clock)
    asked.find_key("rsa", "RS256")
    for _ in range(3):
        assert code_of(lambda: asked.find_key("new", "RS256")) == "token_untrusted"
    assert issuer.answers.asked[KEY_SET] == 1
    issuer.answers.bodies[KEY_SET] = issuer.key_set(new=RSAKey.generate_key(2048, {"kid": "new"}))
    clock.now += LOOK_AGAIN_SECONDS
    assert asked.find_key("new", "RS256").kid is None, "only its numbers are taken over"
    for _ in range(3):
        assert code_of(lambda: asked.find_key("newer", "RS256")) == "token_untrusted"
    assert issuer.answers.asked[KEY_SET] == 2


def test_issuer_that_is_away_at_first_is_asked_again_soon(issuer: LocalIssuer, clock: Clock) -> None:
    asked = Issuer(issuer.url, clock)
    issuer.answers.statuses[DISCOVERY] = 500
    for _ in range(3):
        with pytest.raises(UnavailableError, match="answered 500") as caught:
            asked.find_key("rsa", "RS256")
    assert (caught.value.status, caught.value.code) == (503, "token_unverifiable")
    assert caught.value.headers["Retry-After"] == "5"
    assert issuer.answers.asked[DISCOVERY] == 1
    issuer.restore()
    clock.now += RETRY_SECONDS
    assert asked.find_key("rsa", "RS256")


def test_last_keys_count_for_a_day_while_the_issuer_is_away(issuer: LocalIssuer, clock: Clock) -> None:
    asked = Issuer(issuer.url, clock)
    asked.find_key("rsa", "RS256")
    issuer.answers.statuses[KEY_SET] = 503
    clock.now = STALE_SECONDS - 1
    assert asked.find_key("rsa", "RS256")
    clock.now = STALE_SECONDS + 1
    assert code_of(lambda: asked.find_key("rsa", "RS256")) == "token_unverifiable"


def far_key(url: str) -> dict[str, Any]:
    return {"issuer": url, "jwks_uri": "http://127.0.0.2:1/keys"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (DISCOVERY, b"<html>", "no JSON"),
        (DISCOVERY, b"[" * 100_000, ""),
        (DISCOVERY, b"[]", "does not name it as the issuer"),
        (DISCOVERY, {"issuer": "https://evil.example"}, "does not name it as the issuer"),
        (DISCOVERY, "far", "jwks_uri must be at"),
        (DISCOVERY, "none", "jwks_uri must be at"),
        (KEY_SET, b"[]", "object with up to 100 keys"),
        (KEY_SET, {"keys": [{}] * 101}, "object with up to 100 keys"),
        (KEY_SET, b" " * 300_000, "more than 262144 bytes"),
    ],
)
def test_odd_answer_of_an_issuer_is_no_key(issuer: LocalIssuer, path: str, body: Any, words: str) -> None:
    if body == "far":
        body = far_key(issuer.url)
    if body == "none":
        body = {"issuer": issuer.url}
    issuer.answers.bodies[path] = body
    with pytest.raises(UnavailableError) as caught:
        Issuer(issuer.url).find_key("rsa", "RS256")
    assert caught.value.code == "token_unverifiable" and words in caught.value.detail


def test_redirect_is_not_followed(issuer: LocalIssuer, elsewhere: Answers) -> None:
    before = elsewhere.asked.total()
    issuer.answers.statuses[KEY_SET] = 302
    issuer.answers.headers[KEY_SET] = {"Location": f"{elsewhere.url}/keys"}
    with pytest.raises(UnavailableError, match="answered 302"):
        Issuer(issuer.url).find_key("rsa", "RS256")
    assert elsewhere.asked.total() == before


def test_key_that_came_while_the_issuer_was_away_is_unverifiable(issuer: LocalIssuer, clock: Clock) -> None:
    asked = Issuer(issuer.url, clock)
    asked.find_key("rsa", "RS256")
    issuer.answers.statuses[KEY_SET] = 503
    clock.now += LOOK_AGAIN_SECONDS
    for _ in range(2):
        assert code_of(lambda: asked.find_key("new", "RS256")) == "token_unverifiable"
        assert asked.find_key("rsa", "RS256"), "the others count"
    issuer.restore()
    clock.now += LOOK_AGAIN_SECONDS
    assert code_of(lambda: asked.find_key("new", "RS256")) == "token_untrusted"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("HTTP_PROXY", "odd://127.0.0.1:1"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ],
)
def test_environment_that_can_send_nothing_asks_no_issuer_and_no_runner(
    issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert code_of(lambda: Issuer(issuer.url).find_key("rsa", "RS256")) == "token_unverifiable"
    source = GitHubIdentity(f"{issuer.url}/token", "secret", AUDIENCE)
    assert code_of(source) == "id_token_unavailable"


def test_issuer_that_nobody_reaches_is_unverifiable() -> None:
    with pytest.raises(UnavailableError, match=r"keys of http://127\.0\.0\.1:1 can't be had"):
        Issuer("http://127.0.0.1:1").find_key("rsa", "RS256")


def test_slow_issuer_is_given_up(issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0.0, 2.6)  # each look at the clock is that much later
    monkeypatch.setattr(issuer_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    issuer.answers.bodies[DISCOVERY] = b" " * 200_000
    with pytest.raises(UnavailableError, match="took more than 5 s") as caught:
        Issuer(issuer.url).find_key("rsa", "RS256")
    assert caught.value.code == "token_unverifiable"


def test_two_keys_under_one_id_are_none(issuer: LocalIssuer) -> None:
    issuer.answers.bodies[KEY_SET] = issuer.key_set(again=stranger())
    with pytest.raises(UnavailableError, match="2 keys under the id 'rsa'"):
        Issuer(issuer.url).find_key("rsa", "RS256")
    assert Issuer(issuer.url).find_key("ec", "ES256")


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"alg": "RS512"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": ["RSA"]},
        {"kid": 5},
        {"n": "AQAB"},
        {"n": "A" * 3000 + "AQ"},
        {"n": 5},
        {"n": "?"},
        {"e": ""},
    ],
)
def test_key_that_may_not_verify_is_not_listed(issuer: LocalIssuer, changes: dict[str, Any]) -> None:
    given = issuer.key_set()
    given["keys"][0] |= changes
    issuer.answers.bodies[KEY_SET] = given
    asked = Issuer(issuer.url)
    assert code_of(lambda: asked.find_key("rsa", "RS256")) == "token_untrusted"
    assert asked.find_key("ec", "ES256"), "the others are"


@pytest.mark.parametrize("curve", ["P-384", "P-521"])
def test_other_curves_are_not_listed(issuer: LocalIssuer, curve: Any) -> None:
    other = ECKey.generate_key(curve, {"kid": "other"})
    issuer.answers.bodies[KEY_SET] = issuer.key_set(other=other)
    assert code_of(lambda: Issuer(issuer.url).find_key("other", "ES256")) == "token_untrusted"


def test_threads_that_come_together_fetch_once(issuer: LocalIssuer) -> None:
    asked = Issuer(issuer.url)
    ready = threading.Barrier(4)

    def find() -> None:
        ready.wait()
        asked.find_key("rsa", "RS256")

    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert issuer.answers.asked == {DISCOVERY: 1, KEY_SET: 1}


# ---- over HTTP ----


def rules(issuer: LocalIssuer, **changes: Any) -> str:
    rule = {"issuer": issuer.url, "audience": AUDIENCE, "match": dict(MATCH), "scopes": ["read"]}
    return json.dumps([rule | changes])


@pytest.fixture(scope="module")
def http(module_issuer: LocalIssuer, database: Database) -> TestClient:
    app = create_app(Settings(oidc=rules(module_issuer)), database)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_pipeline_calls_the_api_without_a_key(issuer: LocalIssuer, http: TestClient) -> None:
    token = {"Authorization": f"Bearer {issuer.token()}"}
    for _ in range(2):
        assert http.get("/v1/studies", headers=token).status_code == 200
    refused = http.post("/v1/studies", headers=token | {"Idempotency-Key": "k"}, json={"workload": "w"})
    problem = refused.json()
    assert (problem["status"], problem["code"]) == (403, "forbidden")
    assert problem["detail"].startswith("the identity token oidc:") and "needs write" in problem["detail"]
    assert http.get("/v1/keys", headers=token).status_code == 403


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        (lambda issuer: "eyJ", 401, "token_malformed"),
        (lambda issuer: issuer.token(ref="x"), 401, "token_untrusted"),
        (lambda issuer: issuer.token(exp=1), 401, "token_expired"),
    ],
)
def test_refused_token_is_a_problem_without_the_token(
    issuer: LocalIssuer, http: TestClient, token: Build, status: int, code: str
) -> None:
    text = token(issuer)
    answer = http.get("/v1/studies", headers={"Authorization": f"Bearer {text}"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert text.rpartition(".")[2] not in answer.text or len(text) < 10


def test_issuer_that_is_away_is_no_fault_of_the_caller(issuer: LocalIssuer, database: Database) -> None:
    issuer.answers.statuses[DISCOVERY] = 500
    app = create_app(Settings(oidc=rules(issuer)), database)
    answer = TestClient(app, base_url="http://127.0.0.1").get(
        "/v1/studies", headers={"Authorization": f"Bearer {issuer.token()}"}
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "token_unverifiable")
    assert answer.headers["retry-after"] == "5"


def test_logs_hold_no_token(issuer: LocalIssuer) -> None:
    token = issuer.token()
    assert without_secrets(f"Bearer {token} was refused") == "Bearer [redacted] was refused"


# ---- the operator's rules ----

RULE = {"issuer": "https://ci.example", "audience": "a", "match": {"repository": "octo/*"}}


def test_rules_are_read_in_their_order() -> None:
    second = RULE | {"match": {"project_path": "group/*"}, "tenant": "t", "scopes": ["write", "worker"]}
    first, other = parse_trust(json.dumps([RULE, second]))
    assert (first.match, first.tenant, first.scopes) == ((("repository", "octo/*"),), "default", {"read"})
    assert (other.tenant, other.scopes) == ("t", {"write", "worker"})
    assert parse_trust("") == parse_trust(" \n") == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": {}}, "match must name at least one claim"),
        ({"match": None}, "match must name at least one claim"),
        ({"match": {"ref": "refs/heads/main"}}, "repository or project_path or sub"),
        ({"match": {"repository": "*"}}, "owner written out"),
        ({"match": {"repository": "octo*"}}, "owner written out"),
        ({"match": {"repository": "*/models"}}, "owner written out"),
        ({"match": {"repository": "[a-z]cto/*"}}, "owner written out"),
        ({"match": {"project_path": "?/models"}}, "owner written out"),
        ({"match": {"sub": "repo:*"}}, "owner written out"),
        ({"match": {"sub": "project_path:*:ref_type:branch"}}, "owner written out"),
        ({"match": {"sub": "environment:production:*"}}, "owner written out"),
        ({"match": {"sub": "workflow:ci:ref:*"}}, "owner written out"),
        ({"match": {"repository": ""}}, "match.repository must be a glob"),
        ({"match": {"repository": ["octo/a"]}}, "match.repository must be a glob"),
        ({"issuer": "http://ci.example"}, "must be an https URL"),
        ({"issuer": "https://me:pw@ci.example"}, "must be an https URL"),
        ({"issuer": "https://ci.example?a=b"}, "must be an https URL"),
        ({"issuer": "https://ci.example:port"}, "must be an https URL"),
        ({"issuer": "file:///etc/keys"}, "must be an https URL"),
        ({"issuer": ""}, "issuer must be a text"),
        ({"audience": ""}, "audience must be a text"),
        ({"audience": None}, "audience must be a text"),
        ({"tenant": 5}, "tenant must be a text"),
        ({"scopes": []}, "scopes must be a list"),
        ({"scopes": ["admin"]}, "admin takes an access key"),
        ({"scopes": "read"}, "scopes must be a list"),
        ({"scopes": [["read"]]}, "scopes must be a list"),
        ({"claims": {}}, "unknown field 'claims'"),
    ],
)
def test_rule_that_is_wrong_or_trusts_strangers_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="rule 2") as caught:
        parse_trust(json.dumps([RULE, RULE | changes]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "[1]", "x", "[" * 5000, '[{"issuer": "a", "issuer": "b"}]', json.dumps([RULE] * 101)]
)
def test_text_that_is_no_list_of_rules_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a JSON"):
        parse_trust(text)


@pytest.mark.parametrize(
    "sub",
    ["repo:octo/models:*", "organization:octo:pipeline:*", "repository_owner:octo:*", "a subject as it is"],
)
def test_subject_with_its_owner_is_enough(sub: str) -> None:
    assert parse_trust(json.dumps([RULE | {"match": {"sub": sub}}]))


def test_wrong_rule_ends_a_process_at_its_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPTUNE_HOME", str(tmp_path))
    monkeypatch.setenv("CLIPTUNE_OIDC", json.dumps([RULE | {"match": {"repository": "*"}}]))
    with pytest.raises(SettingsError, match=r"CLIPTUNE_OIDC.*owner written out"):
        load_settings()


def test_rules_of_the_documentation_take_their_pipelines_and_no_others() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "keys.md").read_text()
    shown = re.search(r"export CLIPTUNE_OIDC='(.*?)'", page, re.DOTALL)
    assert shown is not None
    main, any_branch, gitlab = parse_trust(shown[1])
    push = {"repository": "octo/models", "ref": "refs/heads/main"}
    pull = {"repository": "octo/models", "ref": "refs/pull/1/merge"}
    assert main.first_mismatch(push) is None and main.scopes == {"write"}
    assert main.first_mismatch(pull) == ("ref", "refs/heads/main")
    assert any_branch.first_mismatch(pull) is None and any_branch.scopes == {"read"}
    assert any_branch.first_mismatch(pull | {"repository": "octopus/models"}) is not None
    # GitLab writes truth values as text.
    assert gitlab.first_mismatch({"project_path": "group/sub/models", "ref_protected": "true"}) is None
    assert gitlab.first_mismatch({"project_path": "group/models", "ref_protected": "false"}) is not None


def test_rules_without_the_extra_name_the_missing_package(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("service.identity.issuer", "service.identity.key_set"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "joserfc.errors", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        Identities(database, parse_trust(json.dumps([RULE])))
    assert (caught.value.name or "").partition(".")[0] in _PACKAGES_OF_EXTRAS["oidc"].split()
    assert Identities(database, ()).recall("eyJ") is None, "without rules nothing is missing"


# ---- GitHub's runner ----


@pytest.fixture
def runner(issuer: LocalIssuer) -> Iterator[Answers]:
    """The address on a runner that gives tokens, for a job that may have them."""
    with answering() as answers:
        answers.bodies["/token"] = {"value": issuer.token()}
        yield answers


def test_runner_is_asked_for_the_audience_with_its_secret(
    issuer: LocalIssuer, runner: Answers, identities: Identities
) -> None:
    source = GitHubIdentity(f"{runner.url}/token?api-version=2.0", "runner secret", AUDIENCE)
    assert identities.look_up(source()).tenant_id == "default"
    path, headers = runner.requests[0]
    assert path == "/token?api-version=2.0&audience=https%3A%2F%2Fcliptune.example"
    assert headers["authorization"] == "Bearer runner secret"


def test_token_of_the_runner_is_used_until_a_minute_before_its_end(
    issuer: LocalIssuer, runner: Answers, clock: Clock
) -> None:
    source = GitHubIdentity(f"{runner.url}/token", "secret", AUDIENCE, clock)
    first = source()
    # Made to live for 310 s: `LocalIssuer.claims`.
    clock.now += 249
    assert source() == first and runner.asked["/token"] == 1
    runner.bodies["/token"] = {"value": issuer.token(jti="second")}
    clock.now += 2
    assert source() != first and runner.asked["/token"] == 2


def test_token_that_does_not_say_when_it_ends_is_asked_for_each_time(runner: Answers) -> None:
    odd_claims = (b"[]", {"exp": "x", "iat": 1}, {"exp": 10**400, "iat": 1}, b"[" * 20_000)
    for odd in ("opaque", "a.b.c", *(f"a.{part(claims)}.c" for claims in odd_claims)):
        runner.bodies["/token"] = {"value": odd}
        runner.asked.clear()
        source = GitHubIdentity(f"{runner.url}/token", "secret", AUDIENCE)
        assert source() == source() == odd
        assert runner.asked["/token"] == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"value": "x"}, 403, "the runner answered 403"),
        ({"value": ""}, 200, "something else"),
        ({"value": 5}, 200, "something else"),
        ({"value": "\u00e9"}, 200, "something else"),
        ({"value": "a\nb"}, 200, "something else"),
        ({"value": "a "}, 200, "something else"),
        ({}, 200, "something else"),
        (b"[]", 200, "something else"),
        (b"<html>", 200, "something else"),
    ],
)
def test_runner_that_gives_no_token_says_what_to_do(
    runner: Answers, body: Any, status: int, words: str
) -> None:
    runner.bodies["/token"], runner.statuses["/token"] = body, status
    with pytest.raises(UnavailableError, match="permission id-token: write") as caught:
        GitHubIdentity(f"{runner.url}/token", "secret", AUDIENCE)()
    assert caught.value.code == "id_token_unavailable" and words in caught.value.detail
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize("address", ["http://runner.example/token", "file:///token", "https://", "token"])
def test_runner_secret_goes_to_no_odd_address(address: str) -> None:
    with pytest.raises(UnavailableError, match="no https address"):
        GitHubIdentity(address, "secret", AUDIENCE)


@pytest.mark.parametrize("secret", ["my-secret ", "my-secret\n", "my-secr\u00e9t"])
def test_runner_secret_that_no_header_can_carry_is_not_told(secret: str) -> None:
    with pytest.raises(UnavailableError, match="TOKEN_REQUEST_TOKEN has") as caught:
        GitHubIdentity("https://runner.example/token", secret, AUDIENCE)
    assert "my-secr" not in caught.value.detail


def test_runner_whose_host_is_no_name_says_so() -> None:
    source = GitHubIdentity(f"https://{'a' * 64}.example/token", "secret", AUDIENCE)
    assert code_of(source) == "id_token_unavailable"


def test_runner_that_nobody_reaches_says_so() -> None:
    source = GitHubIdentity("http://127.0.0.1:1/token", "secret", AUDIENCE)
    with pytest.raises(UnavailableError) as caught:
        source()
    assert caught.value.code == "id_token_unavailable"


def test_look_up_raises_what_the_api_answers(identities: Identities) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        identities.look_up("eyJ")
    assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")
