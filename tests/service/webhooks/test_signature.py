"""Signatures: the specification's own vector, a second implementation, and everything that must not pass."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.webhooks.signature import (
    TOLERANCE_SECONDS,
    WebhookSignatureError,
    new_secret,
    sign,
    signed_headers,
    verify,
)

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "webhooks.md"

#: The test vector of the reference libraries of Standard Webhooks.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, TIME, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
HEADERS = {"webhook-id": ID, "webhook-timestamp": str(TIME), "webhook-signature": SIGNATURE}


def test_the_vector_of_the_specification_is_signed_and_verified() -> None:
    assert sign(SECRET, ID, TIME, BODY) == SIGNATURE
    assert sign(SECRET.removeprefix("whsec_"), ID, TIME, BODY) == SIGNATURE
    assert signed_headers([SECRET], ID, TIME, BODY) == HEADERS
    assert verify(HEADERS, BODY, [SECRET], now=TIME) == ID


@pytest.mark.skipif(
    shutil.which("openssl") is None and not os.environ.get("CI"), reason="openssl is not installed"
)
@pytest.mark.parametrize(("changed", "answer"), [(b"", "verified"), (b" ", "refused")])
def test_openssl_as_the_page_shows_it_computes_the_same(tmp_path: Path, changed: bytes, answer: str) -> None:
    (script,) = [
        each for each in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) if "openssl" in each
    ]
    secret = new_secret()
    headers = signed_headers([new_secret(), secret], ID, TIME, BODY)
    variables = {name.removeprefix("webhook-"): value for name, value in headers.items()}
    (tmp_path / "body.json").write_bytes(BODY + changed)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": os.environ["PATH"], "secret": secret} | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{answer}\n"


def test_header_names_may_be_spelled_in_any_case() -> None:
    assert verify({name.title(): value for name, value in HEADERS.items()}, BODY, [SECRET], now=TIME) == ID


def test_while_a_rotation_lasts_either_secret_is_enough() -> None:
    old, new = new_secret(), new_secret()
    headers = signed_headers([new, old], ID, TIME, BODY)
    assert headers["webhook-signature"].count("v1,") == 2
    for known in ([old], [new], [new_secret(), old]):
        assert verify(headers, BODY, known, now=TIME) == ID
    with pytest.raises(WebhookSignatureError):
        verify(headers, BODY, [new_secret()], now=TIME)


@pytest.mark.parametrize("seconds", [-TOLERANCE_SECONDS, 0.0, TOLERANCE_SECONDS])
def test_within_the_tolerance_it_passes(seconds: float) -> None:
    assert verify(HEADERS, BODY, [SECRET], now=TIME + seconds) == ID


@pytest.mark.parametrize(
    ("changes", "now", "words"),
    [
        ({"webhook-id": ""}, TIME, "webhook-id is missing"),
        ({"webhook-timestamp": ""}, TIME, "webhook-timestamp is missing"),
        ({"webhook-signature": ""}, TIME, "webhook-signature is missing"),
        ({}, TIME + TOLERANCE_SECONDS + 1, "301 s from this clock, allowed are 300 s"),
        ({}, TIME - TOLERANCE_SECONDS - 1, "-301 s from this clock"),
        ({"webhook-timestamp": "hello"}, TIME, "whole seconds since 1970, got 'hello'"),
        ({"webhook-timestamp": "1614265330.5"}, TIME, "whole seconds"),
        ({"webhook-timestamp": "-1"}, TIME, "whole seconds"),
        ({"webhook-timestamp": "9" * 5000}, TIME, "whole seconds"),
        ({"webhook-timestamp": "\u0661\u0666\u0661"}, TIME, "whole seconds"),
        ({"webhook-timestamp": str(TIME + 1)}, TIME, "no signature"),
        ({"webhook-id": "msg_other"}, TIME, "no signature"),
        ({"webhook-signature": SIGNATURE[:-2]}, TIME, "no signature"),
        ({"webhook-signature": "v1,"}, TIME, "no signature"),
        ({"webhook-signature": SIGNATURE.replace("v1", "v2")}, TIME, "no signature"),
        ({"webhook-signature": SIGNATURE.removeprefix("v1,")}, TIME, "no signature"),
        ({"webhook-signature": "v1,\ud800 \u20ac"}, TIME, "no signature"),
    ],
)
def test_what_must_not_pass_is_refused_with_the_reason(
    changes: dict[str, str], now: float, words: str
) -> None:
    with pytest.raises(WebhookSignatureError, match=words) as caught:
        verify(HEADERS | changes, BODY, [SECRET], now=now)
    assert caught.value.code == "webhook_not_verified"


def test_another_body_is_refused_even_if_it_means_the_same() -> None:
    with pytest.raises(WebhookSignatureError):
        verify(HEADERS, BODY.replace(b" ", b""), [SECRET], now=TIME)


def test_no_known_secret_is_no_pass() -> None:
    with pytest.raises(WebhookSignatureError):
        verify(HEADERS, BODY, [], now=TIME)


def test_a_secret_that_is_none_is_the_receivers_own_mistake() -> None:
    with pytest.raises(ValueError, match="copy it whole"):
        verify(HEADERS, BODY, ["whsec_%%%"], now=TIME)


def test_the_clock_is_read_where_none_is_given() -> None:
    with pytest.raises(WebhookSignatureError, match="from this clock"):
        verify(HEADERS, BODY, [SECRET])
