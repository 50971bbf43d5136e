"""Badges over HTTP: who sees one, what a token opens and when it ends, and how an image is answered."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit
from xml.etree import ElementTree

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.badge_token import owner, sign
from service.db.session import Database
from service.errors import ForbiddenError
from service.keys import Principal, revoke_key

BADGE = "/v1/recommendations/badge"
QUESTION = {"workload": "charlm-rnn"}


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: a badge is read as every recommendation is."""
    return sqlite_database


@pytest.fixture
def recommended(api: Any) -> Any:
    api.recommend(api.study()["id"])
    return api


def made(api: Any, key: str | None = None, **question: str) -> dict[str, Any]:
    http = api.http if key is None else api.with_key(key)
    response = http.get(BADGE, params=QUESTION | question)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return dict(response.json())


def local(url: str) -> str:
    """An address as a client of the test application asks for it."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def message(api: Any, url: str) -> str:
    """What somebody without a key reads."""
    response = api.with_key(None).get(local(url))
    assert response.status_code == 200, response.text
    return str(response.json()["message"])


def test_badge_of_a_readme_needs_no_key(recommended: Any) -> None:
    found = made(recommended)
    assert recommended.key not in str(found), "a key never stands in an address"
    assert found["markdown"] == f"![gradient clipping]({found['svg_url']})"
    anybody = recommended.with_key(None)
    document = anybody.get(local(found["json_url"]))
    assert document.json() == {
        "schemaVersion": 1,
        "label": "gradient clipping",
        "message": "max_norm 0.42",
        "color": "#1a7f37",
        "labelColor": "#424a53",
        "cacheSeconds": 300,
    }
    image = anybody.get(local(found["svg_url"]))
    assert image.headers["content-type"] == "image/svg+xml"
    assert ElementTree.fromstring(image.text).get("aria-label") == "gradient clipping: max_norm 0.42"
    assert image.headers["content-security-policy"].startswith("default-src 'none'")
    for response in (document, image):
        assert response.headers["cache-control"] == "public, max-age=300"


def test_key_alone_is_enough(recommended: Any) -> None:
    response = recommended.http.get(f"{BADGE}.json", params=QUESTION)
    assert response.json()["message"] == "max_norm 0.42"
    assert response.headers["cache-control"] == "private, max-age=300"


def test_unchanged_badge_is_not_sent_again(recommended: Any) -> None:
    url = local(made(recommended)["svg_url"])
    anybody = recommended.with_key(None)
    tag = anybody.get(url).headers["etag"]
    again = anybody.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    recommended.recommend(recommended.study()["id"], interval=None, verdict="no_difference")
    assert anybody.get(url, headers={"If-None-Match": tag}).status_code == 200


def test_badge_may_be_made_before_there_is_an_answer(api: Any) -> None:
    found = made(api)
    assert message(api, found["json_url"]) == "unknown"
    api.recommend(api.study()["id"])
    assert message(api, found["json_url"]) == "max_norm 0.42"


def test_answer_for_other_parameters_is_not_shown(recommended: Any) -> None:
    found = made(recommended, fingerprint="0" * 16)
    assert message(recommended, found["json_url"]) == "unknown"


def test_label_is_signed_and_is_no_markup(recommended: Any) -> None:
    found = made(recommended, label="clip](x) <b>&")
    assert found["markdown"].startswith(r"![clip\](x) \<b\>\&](")
    assert recommended.with_key(None).get(local(found["json_url"])).json()["label"] == "clip](x) <b>&"
    other = found["json_url"].replace(urlencode({"label": "clip](x) <b>&"}), "label=safe")
    assert other != found["json_url"] and message(recommended, other) == "no access"


def test_same_question_in_other_words_is_the_same_badge(recommended: Any) -> None:
    found = made(recommended, learning_rate="0.10", optimizer="sgd")
    pairs = parse_qsl(urlsplit(found["json_url"]).query)
    changed = [(name, "1e-1" if name == "learning_rate" else value) for name, value in reversed(pairs)]
    assert message(recommended, f"{BADGE}.json?{urlencode(changed)}") != "no access"


# ---- what a token does not open ----


def test_token_opens_its_own_badge_alone(recommended: Any) -> None:
    token = made(recommended)["token"]
    for question in ({"workload": "other"}, {"fingerprint": "0" * 16}, QUESTION | {"label": "else"}):
        url = f"{BADGE}.json?{urlencode({**question, 'token': token})}"
        assert message(recommended, url) == "no access", question
    for path in ("/v1/recommendations", "/v1/studies", BADGE):
        response = recommended.with_key(None).get(path, params={**QUESTION, "token": token})
        assert response.status_code == 401, path
        assert recommended.with_key(token).get(path, params=QUESTION).json()["code"] == "key_malformed"


def test_every_wrong_token_gets_the_same_answer(recommended: Any) -> None:
    good = made(recommended)["token"]
    revoked, expired = (made(recommended, recommended.new_key())["token"] for _ in range(2))
    with recommended.database.write() as session:
        assert revoke_key(session, revoked.partition(".")[0])
        session.connection().exec_driver_sql(
            f"UPDATE cliptune_keys SET expires_at = 1 WHERE id = '{expired.partition('.')[0]}'"
        )
    key_id, _, signature = good.partition(".")
    flipped = signature[:-2] + ("A" if signature[-2] != "A" else "B") + signature[-1]
    tokens = [
        revoked, expired, f"{key_id}.{flipped}", f"00000000.{signature}", f"{key_id}.", "x", "", "a" * 5000,
        "\u00e9.\U0001f600", f"{good}\n", f" {good}", f"--------.{'A' * 43}", f"{key_id}.{'A' * 43}",
    ]  # fmt: skip
    answers = set()
    for token in tokens:
        response = recommended.with_key(None).get(f"{BADGE}.svg", params={**QUESTION, "token": token})
        assert response.status_code == 200, token
        answers.add((response.text, response.headers["cache-control"], response.headers["etag"]))
    ((text, cached, _),) = answers
    assert "no access" in text and cached == "public, max-age=60"
    refused = recommended.with_key(None).get(f"{BADGE}.json", params={**QUESTION, "token": "x"}).json()
    assert (refused["message"], refused["isError"]) == ("no access", True)
    nothing = recommended.with_key(None).get(f"{BADGE}.svg", params={"workload": "gone", "token": "x"})
    assert nothing.text == text, "whether there is a recommendation is not told either"


def test_token_shows_what_its_key_may_see(recommended: Any) -> None:
    elsewhere = made(recommended, recommended.new_key(tenant_id="other"))
    assert message(recommended, elsewhere["json_url"]) == "unknown"
    blind = recommended.new_key(scopes=["worker"])
    assert recommended.with_key(blind).get(BADGE, params=QUESTION).json()["code"] == "forbidden"
    reader = recommended.new_key(scopes=["read"])
    found = made(recommended, reader)
    with recommended.database.write() as session:
        session.connection().exec_driver_sql(
            f"UPDATE cliptune_keys SET scopes = '[\"worker\"]' WHERE id = '{reader.split('_')[2]}'"
        )
    assert message(recommended, found["json_url"]) == "no access"


def test_caller_without_a_stored_key_makes_no_badge(api: Any) -> None:
    guest = Principal("oidc:0123abcd", "default", frozenset({"read"}), b"x" * 32)
    with pytest.raises(ForbiddenError, match="no stored key: ask with an access key") as caught:
        sign(guest, QUESTION)
    assert caught.value.code == "badge_needs_key"
    with api.database.read() as session:
        assert owner(session, "oidc:012.x", QUESTION) is None


def test_question_that_says_nothing_is_refused(api: Any) -> None:
    assert api.http.get(BADGE).json()["code"] == "query_incomplete"
    for label in ("", "x" * 61, "a\nb"):
        response = api.http.get(BADGE, params={**QUESTION, "label": label})
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


# ---- where it is, and who may show it ----


def test_address_is_the_public_one(recommended: Any) -> None:
    assert made(recommended)["svg_url"].startswith(f"http://127.0.0.1{BADGE}.svg?workload=charlm-rnn&token=")
    settings = recommended.settings.model_copy(update={"url": "https://clip.example.org/"})
    app = create_app(settings, recommended.database)
    with TestClient(app, base_url="http://127.0.0.1") as http:
        headers = {"Authorization": f"Bearer {recommended.key}"}
        found = http.get(BADGE, params=QUESTION, headers=headers).json()
    assert found["svg_url"].startswith(f"https://clip.example.org{BADGE}.svg?")
    assert parse_qs(urlsplit(found["json_url"]).query)["token"] == [found["token"]]


def test_other_sites_show_the_image_and_call_nothing(recommended: Any) -> None:
    found = made(recommended)
    anybody = recommended.with_key(None)
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image", "Sec-Fetch-Mode": "no-cors"}
    script = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors"}
    shown = anybody.get(local(found["svg_url"]), headers=image)
    assert shown.status_code == 200 and shown.headers["cross-origin-resource-policy"] == "cross-origin"
    for url, headers in (
        (found["svg_url"], script),
        (found["json_url"], image),
        (f"{BADGE}?workload=w", image),
    ):
        response = anybody.get(local(url), headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "cross_site_request")
