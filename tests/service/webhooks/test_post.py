"""One POST over real TLS, to receivers that behave in every bad way: over in the time given, nothing of it shown."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from service.errors import SettingsError
from service.webhooks.post import MAX_ANSWER_BYTES, Answer, Poster, PostError, trusting
from service.webhooks.target import Allowance, parse_target

#: For receivers that never end: short, so that the test is.
SHORT = 0.5


def post(poster: Poster, receiver: Any, url: str | None = None) -> Answer:
    allowance = Allowance(hosts=frozenset({"hooks.test"}), ports=frozenset({receiver.port}))
    target = parse_target(url or receiver.url, allowance)
    return poster.post(target, {"webhook-id": "i"}, b'{"a":1}')


def test_the_request_is_what_was_asked_for(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    assert post(make_poster(receiver), receiver) == Answer(204)
    (request,) = receiver.requests
    assert request.line == "POST /hook?a=b HTTP/1.1"
    assert request.body == b'{"a":1}'
    assert request.headers == {
        "host": f"hooks.test:{receiver.port}",
        "content-type": "application/json",
        "content-length": "7",
        "user-agent": "cliptune",
        "connection": "close",
        "webhook-id": "i",
    }


def test_it_connects_to_the_address_it_was_given_and_asks_once(
    receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        # The second one would refuse the connection.
        return ["127.0.0.1", "127.0.0.9"]

    assert post(make_poster(receiver, resolve), receiver).status == 204
    assert asked == [("hooks.test", receiver.port)]


def test_no_proxy_of_the_environment_is_used(
    receiver: Any, make_poster: Callable[..., Poster], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(make_poster(receiver), receiver).status == 204


def test_plain_http_to_an_allowed_host(plain_receiver: Any, make_poster: Callable[..., Poster]) -> None:
    assert post(make_poster(plain_receiver), plain_receiver).status == 204


def test_a_redirect_is_an_answer_and_is_not_followed(
    receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    def redirect(connection: socket.socket) -> None:
        connection.sendall(
            f"HTTP/1.1 307 There\r\nLocation: {receiver.url}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    receiver.answers = [redirect]
    assert post(make_poster(receiver), receiver).status == 307
    assert receiver.connections == 1


def test_retry_after_is_kept(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    receiver.answers = [lambda connection: connection.sendall(b"HTTP/1.1 429 Busy\r\nRetry-After: 7\r\n\r\n")]
    assert post(make_poster(receiver), receiver) == Answer(429, "7")


def test_64_megabytes_are_not_read(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
        for _ in range(1024):
            connection.sendall(b"x" * 65536)
            sent += 65536

    receiver.answers = [flood]
    assert post(make_poster(receiver), receiver).status == 200
    receiver.close()
    # What lay in the buffers of both sides was sent, not 64 MB.
    assert MAX_ANSWER_BYTES <= sent + 65536 < 32 * 2**20


def test_a_head_without_end_is_no_answer(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        with suppress(OSError):
            while not receiver.over.is_set():
                connection.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")

    receiver.answers = [endless]
    # At the limit of what is read; the sender's time would have been over long after.
    with pytest.raises(PostError, match="its head was cut off"):
        post(make_poster(receiver), receiver)


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
def test_a_head_that_is_cut_off_is_no_answer(
    sent: bytes, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    """A proxy that dies while it answers has not told that the event arrived."""
    receiver.answers = [lambda connection: connection.sendall(sent)]
    with pytest.raises(PostError, match="its head was cut off"):
        post(make_poster(receiver), receiver)


def hang(connection: socket.socket, over: Any) -> None:
    del connection
    over.wait(60)


def drip(connection: socket.socket, over: Any) -> None:
    """A byte of the head now and then: no single read takes long."""
    with suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000:
            connection.sendall(bytes([byte]))
            if over.wait(0.02):
                return


@pytest.mark.parametrize("behaviour", [hang, drip])
def test_the_time_is_one_for_everything(
    behaviour: Any, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    receiver.answers = [lambda connection: behaviour(connection, receiver.over)]
    started = time.monotonic()
    with pytest.raises(PostError, match=r"no answer within 0\.5 s"):
        post(make_poster(receiver, total_seconds=SHORT), receiver)
    assert SHORT <= time.monotonic() - started < 30


def test_an_answer_whose_body_drips_counts(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    def drip_body(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        receiver.over.wait(60)

    receiver.answers = [drip_body]
    assert post(make_poster(receiver, total_seconds=2), receiver).status == 200


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\nxxxxx",
        b"Transfer-Encoding: chunked\r\n\r\nspam\r\n",
        b"Content-Length: -5\r\n\r\nxxxxx",
        b"Content-Length: 99\r\n\r\nxxxxx",
        b"Content-Encoding: gzip\r\n\r\nxxxxx",
        b"no colon\r\n\r\n",
        b"\x00: \xff\r\n\r\n",
    ],
)
def test_what_comes_after_the_status_does_not_matter(
    rest: bytes, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    receiver.answers = [lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + rest)]
    assert post(make_poster(receiver), receiver).status == 200


def test_a_lookup_that_hangs_ends_too(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    def slow(host: str, port: int) -> list[str]:
        del host, port
        receiver.over.wait(60)
        return ["127.0.0.1"]

    with pytest.raises(PostError, match="no answer within"):
        post(make_poster(receiver, slow, total_seconds=0.2), receiver)
    assert receiver.connections == 0


def test_a_server_that_never_greets_ends_too(make_poster: Callable[..., Poster]) -> None:
    """TCP answers, TLS does not."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        class Silent:
            port = int(silent.getsockname()[1])
            url = f"https://hooks.test:{port}/"

        with pytest.raises(PostError, match="no answer within"):
            post(make_poster(Silent(), total_seconds=0.3), Silent())


@pytest.mark.parametrize("answer", [b"", b"\x00\x01\x02\x03\n", b"HTTP/1.1 spam\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_what_is_not_http_is_said_and_not_shown(
    answer: bytes, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    receiver.answers = [lambda connection: connection.sendall(answer)]
    with pytest.raises(PostError) as caught:
        post(make_poster(receiver), receiver)
    assert "spam" not in str(caught.value) and "SSH" not in str(caught.value)
    assert caught.value.code == "webhook_not_answered"


# ---- TLS ----


def test_a_certificate_of_an_unknown_authority_is_refused(receiver: Any) -> None:
    allowance = Allowance(hosts=frozenset({"hooks.test"}), ports=frozenset({receiver.port}))
    poster = Poster(allowance, trusting(), resolve=lambda host, port: ["127.0.0.1"], total_seconds=60)
    with pytest.raises(PostError, match="certificate does not verify"):
        post(poster, receiver)
    assert not receiver.requests


def test_a_certificate_of_another_name_is_refused(receiver: Any, authority: Any) -> None:
    allowance = Allowance(hosts=frozenset({"other.test"}), ports=frozenset({receiver.port}))
    poster = Poster(allowance, trusting(authority.ca_file), resolve=lambda host, port: ["127.0.0.1"])
    target = parse_target(f"https://other.test:{receiver.port}/", allowance)
    with pytest.raises(PostError, match="certificate does not verify"):
        poster.post(target, {}, b"{}")
    assert not receiver.requests


def test_an_address_in_the_url_is_checked_against_the_certificate(receiver: Any, authority: Any) -> None:
    allowance = Allowance.parse("127.0.0.0/8", str(receiver.port))
    poster = Poster(allowance, trusting(authority.ca_file))
    good = parse_target(f"https://127.0.0.1:{receiver.port}/", allowance)
    assert poster.post(good, {}, b"{}").status == 204


def test_plain_http_behind_https_is_told(plain_receiver: Any, make_poster: Callable[..., Poster]) -> None:
    url = plain_receiver.url.replace("http:", "https:")
    with pytest.raises(PostError):
        post(make_poster(plain_receiver, total_seconds=1), plain_receiver, url)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_authorities_must_be_one(content: str | None, tmp_path: Any) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match="CLIPTUNE_WEBHOOK_CA_FILE"):
        trusting(str(file))


# ---- names and connections that fail ----


def test_a_name_that_is_none_is_told(make_poster: Callable[..., Poster], receiver: Any) -> None:
    def unknown(host: str, port: int) -> list[str]:
        del host, port
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(PostError, match="can't be looked up"):
        post(make_poster(receiver, unknown), receiver)


def test_a_closed_port_is_told(receiver: Any, make_poster: Callable[..., Poster]) -> None:
    poster, url = make_poster(receiver), receiver.url
    receiver.close()
    with pytest.raises(PostError, match="the connection failed: Connection refused"):
        post(poster, receiver, url)
