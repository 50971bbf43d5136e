"""Asking once for a setting: whatever the other side does, training begins, in time, with a sensible setting."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tuner import Clipper
from tuner.errors import SpecError
from tuner.inline import CliptuneWarning
from tuner.inline.asking import MAX_BYTES

Handler = Callable[[socket.socket, bytes], None]
TIMEOUT = 0.5


class Server:
    """A real socket that does with a connection what a test wants; keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.handler: Handler = answering(found())
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        # Closing does not wake a thread that waits in accept; shutting down does.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for each in self._open:
            each.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(connection)
            request = b""
            while b"\r\n\r\n" not in request and (more := connection.recv(65536)):
                request += more
            self.requests.append(request)
            threading.Thread(target=self._handle, args=(connection, request), daemon=True).start()

    def _handle(self, connection: socket.socket, request: bytes) -> None:
        try:
            self.handler(connection, request)
        except OSError:
            return  # the client has gone, or the test has ended


def found(threshold: float = 0.35, **changes: Any) -> dict[str, Any]:
    recommendation: dict[str, Any] = {
        "verdict": "clip",
        "setting": {"method": "global_norm", "threshold": threshold, "learning_rate_scale": 1.0},
        "parameters": {"hidden": 64, "learning_rate": 4.0},
        "reason": "clipping lowers the objective",
    }
    return {
        "match": "exact",
        "recommendation": recommendation | changes,
        "reason": "the newest recommendation for this workload",
        "neighbours": [],
    }


def reply(status: str, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def answering(document: Any, *, etag: str = '"one"') -> Handler:
    """What the service does: 200 with a version, 304 for who has it."""

    def handle(connection: socket.socket, request: bytes) -> None:
        if f"If-None-Match: {etag}".encode() in request:
            connection.sendall(reply("304 Not Modified", b"", f"ETag: {etag}"))
        else:
            connection.sendall(reply("200 OK", json.dumps(document).encode(), f"ETag: {etag}"))
        connection.close()

    return handle


def sending(content: bytes) -> Handler:
    def handle(connection: socket.socket, request: bytes) -> None:
        connection.sendall(content)
        connection.close()

    return handle


def hanging(connection: socket.socket, request: bytes) -> None:
    """Nothing, and the connection stays open."""


def dripping(connection: socket.socket, request: bytes) -> None:
    """A header byte now and then: each one begins a socket's own timeout anew."""
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(TIMEOUT / 10)


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
    while True:
        connection.sendall(b"1," * 32768)


def patience(handler: Handler) -> float:
    """Short for a server that never ends, which is waited for in vain; for others no busy machine is too slow."""
    return TIMEOUT if handler in (hanging, dripping, endless) else 30


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A service, and an environment in which nothing else is found."""
    for name in ("CLIPTUNE_URL", "CLIPTUNE_API_KEY", "CLIPTUNE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLIPTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    yield running
    running.close()


def setting_of(server: Server, **options: Any) -> str:
    asked: dict[str, Any] = {
        "workload": "w", "fallback": "global_norm:1.0", "url": server.url, "api_key": "key", "timeout": 30,
    }  # fmt: skip
    return str(Clipper.recommended(**asked | options).setting)


def cache_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "cliptune").iterdir()
    return file


def test_recommended_setting_is_used_without_a_word(server: Server) -> None:
    assert setting_of(server, workload="my model/2") == "global_norm:0.35"
    (request,) = server.requests
    line, *headers = request.decode().split("\r\n")
    assert line == "GET /v1/recommendations?workload=my+model%2F2 HTTP/1.1"
    assert "Authorization: Bearer key" in headers
    assert not any(each.startswith("If-None-Match") for each in headers)


@pytest.mark.parametrize("verdict", ["no_difference", "do_not_clip"])
def test_other_verdicts_bring_their_own_setting(server: Server, verdict: str) -> None:
    off = {"method": "none", "threshold": None, "learning_rate_scale": 1.0}
    server.handler = answering(found(verdict=verdict, setting=off))
    assert setting_of(server) == "none"


def test_answer_is_kept_and_asked_for_again_only_if_it_changed(server: Server, tmp_path: Path) -> None:
    assert setting_of(server) == "global_norm:0.35"
    kept = cache_file(tmp_path).read_bytes()
    assert setting_of(server) == "global_norm:0.35"
    assert b'If-None-Match: "one"' in server.requests[1]
    assert cache_file(tmp_path).read_bytes() == kept
    server.handler = answering(found(0.5), etag='"two"')
    assert setting_of(server) == "global_norm:0.5"
    assert json.loads(cache_file(tmp_path).read_text())["etag"] == '"two"'


def test_reference_norm_comes_along(server: Server) -> None:
    quantile = {"method": "quantile", "threshold": 0.5}
    server.handler = answering(found(setting=quantile, reference_norm=3.0))
    clipper = Clipper.recommended(workload="w", fallback="none", url=server.url, api_key="key", timeout=30)
    assert clipper.reference_norm == 3.0


BROKEN: list[tuple[str, Handler, str]] = [
    ("hangs", hanging, "gave no answer within 0.5 s"),
    ("drips", dripping, "gave no answer within 0.5 s"),
    ("says nothing", sending(b""), "could not be asked .RemoteDisconnected"),
    ("breaks off in the headers", sending(b"HTTP/1.1 200 OK\r\nContent-"), "is not JSON|could not be asked"),
    (
        "breaks off in the body",
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"),
        "the answer is not JSON .JSONDecodeError",
    ),
    ("speaks something else", sending(b"SSH-2.0-OpenSSH_9.6\r\n"), "could not be asked .BadStatusLine"),
    ("answers garbage", sending(reply("200 OK", b"\xff\xfe{{{")), "the answer is not JSON"),
    ("answers nothing", sending(reply("200 OK", b"")), "the answer is not JSON"),
    ("nests deeply", sending(reply("200 OK", b"[" * 200_000)), "the answer is not JSON .RecursionError"),
    ("answers a page", sending(reply("200 OK", b"[1, 2]")), "the answer is not one of Cliptune's"),
    ("is endless", endless, f"has more than {MAX_BYTES} bytes|gave no answer"),
    ("is too large", sending(reply("200 OK", b"[" + b"1," * MAX_BYTES)), f"has more than {MAX_BYTES} bytes"),
    (
        "redirects",
        sending(reply("302 Found", b"", "Location: http://127.0.0.1:1/steal")),
        "answered 302, elsewhere: give the address",
    ),
    (
        "refuses the key",
        sending(reply("401 Unauthorized", b'{"detail": "the access key is not known"}')),
        "answered 401: the access key is not known",
    ),
    ("refuses", sending(reply("422 No", b"<html>")), "answered 422: No"),
    ("is broken", sending(reply("500 Internal Server Error", b"")), "answered 500: Internal Server Error"),
    ("is starting", sending(reply("503 Service Unavailable", b"[]")), "answered 503: Service Unavailable"),
    ("says 304 unasked", sending(reply("304 Not Modified", b"")), "answered 304"),
    (
        "knows nothing",
        answering(
            {"match": "none", "recommendation": None, "reason": "no study of workload 'w' has ended"}, etag='"none"'
        ),
        r"there is no recommendation for it \(no study of workload 'w' has ended\)",
    ),
    (
        "is inconclusive",
        answering(found(verdict="inconclusive", reason="4 more seeds would tell"), etag='"new"'),
        r"the study of 'w' is inconclusive \(4 more seeds would tell\)",
    ),
]  # fmt: skip
UNREADABLE: list[Any] = [
    None,
    "global_norm:1",
    {},
    {"method": "global_norm"},
    {"method": "global_norm", "threshold": "0.5"},
    {"method": "global_norm", "threshold": True},
    {"method": "global_norm", "threshold": -1.0},
    {"method": "global_norm", "threshold": 10**400},
    {"method": "clip_everything", "threshold": 1.0},
    {"method": ["global_norm"], "threshold": 1.0},
    {"method": "none", "threshold": None, "learning_rate_scale": "1"},
]


@pytest.mark.parametrize(
    ("handler", "words"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN]
)
def test_without_a_usable_answer_the_fallback_trains(server: Server, handler: Handler, words: str) -> None:
    server.handler = handler
    with pytest.warns(CliptuneWarning, match=words) as told:
        assert setting_of(server, timeout=patience(handler)) == "global_norm:1"
    assert [str(each.message).endswith("; training with the fallback global_norm:1") for each in told] == [
        True
    ]
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    "handler",
    [each for name, each, _ in BROKEN if "304" not in name],
    ids=[name for name, *_ in BROKEN if "304" not in name],
)
def test_without_a_usable_answer_the_last_one_trains(
    server: Server, handler: Handler, tmp_path: Path
) -> None:
    assert setting_of(server) == "global_norm:0.35"
    kept = cache_file(tmp_path).read_bytes()
    server.handler = handler
    with pytest.warns(CliptuneWarning, match=r"; training with global_norm:0\.35, the answer kept at 20"):
        assert setting_of(server, timeout=patience(handler)) == "global_norm:0.35"
    assert cache_file(tmp_path).read_bytes() == kept


@pytest.mark.parametrize("setting", UNREADABLE, ids=repr)
def test_setting_that_cannot_be_read_is_no_answer(server: Server, setting: Any, tmp_path: Path) -> None:
    server.handler = answering(found(setting=setting))
    with pytest.warns(CliptuneWarning, match="the recommended setting can't be read"):
        assert setting_of(server) == "global_norm:1"
    assert not (tmp_path / "cache" / "cliptune").exists()


@pytest.mark.parametrize("norm", [True, "3", -1.0, 0, 1e999, None])
def test_reference_norm_that_is_none_is_left_out(server: Server, norm: Any) -> None:
    server.handler = answering(found(setting={"method": "quantile", "threshold": 0.5}, reference_norm=norm))
    clipper = Clipper.recommended(workload="w", fallback="none", url=server.url, api_key="key", timeout=30)
    assert clipper.reference_norm is None


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_without_time_nothing_is_asked(server: Server, timeout: float) -> None:
    with pytest.warns(CliptuneWarning, match="was not asked, because the timeout is"):
        assert setting_of(server, timeout=timeout) == "global_norm:1"
    assert server.requests == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", "could not be asked .ConnectionRefusedError"),
        ("http://no-such-host.invalid", "could not be asked .gaierror|no answer within"),
        ("file:///etc/hostname", "is no address of a service: it begins with http:// or https://"),
        ("127.0.0.1:8765", "is no address of a service"),
        ("http://", "is no address of a service"),
        ("http://[::1", "could not be asked .ValueError"),
        ("http://127.0.0.1:port", "could not be asked .InvalidURL"),
        ("http://a b", "could not be asked|no answer within"),
    ],
)
def test_bad_address_is_only_warned_of(server: Server, url: str, words: str) -> None:
    with pytest.warns(CliptuneWarning, match=words):
        assert setting_of(server, url=url, timeout=5) == "global_norm:1"


@pytest.mark.parametrize("key", ["two\nlines", "\ud800", "\u20ac"])
def test_bad_key_is_only_warned_of(server: Server, key: str) -> None:
    with pytest.warns(CliptuneWarning, match="could not be asked") as told:
        assert setting_of(server, api_key=key, timeout=5) == "global_norm:1"
    assert not any("lines" in str(each.message) for each in told), "a warning shows no part of a key"


def test_line_end_of_a_secret_is_no_part_of_the_key(server: Server) -> None:
    assert setting_of(server, api_key="key\n") == "global_norm:0.35"
    assert b"Bearer key\r\n" in server.requests[0]


def test_password_in_an_address_is_not_shown() -> None:
    with pytest.warns(CliptuneWarning, match="http://127.0.0.1:1/v1") as told:
        Clipper.recommended(workload="w", fallback="none", url="http://me:secret@127.0.0.1:1", timeout=5)
    assert not any("secret" in str(each.message) for each in told)


def test_wrong_fallback_is_the_callers_mistake(server: Server) -> None:
    with pytest.raises(SpecError, match="threshold"):
        setting_of(server, fallback="global_norm:-1")
    assert server.requests == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"url": 1}', b"\xff\xfe", b"[" * 100_000, None],
    ids=["empty", "cut off", "list", "null", "number", "bytes", "deep", "no number"],
)
def test_corrupt_cache_is_ignored_and_replaced(server: Server, tmp_path: Path, content: bytes | None) -> None:
    assert setting_of(server) == "global_norm:0.35"
    file = cache_file(tmp_path)
    if content is None:
        document = json.loads(file.read_text())
        document["answer"]["recommendation"]["setting"]["threshold"] = "NaN"
        content = json.dumps(document).encode()
    file.write_bytes(content)
    assert setting_of(server) == "global_norm:0.35"
    assert b"If-None-Match" not in server.requests[1]
    assert json.loads(file.read_text())["answer"] == found()


def test_cache_of_another_question_is_not_taken(server: Server) -> None:
    assert setting_of(server, workload="one") == "global_norm:0.35"
    server.handler = hanging
    with pytest.warns(CliptuneWarning, match="training with the fallback"):
        assert setting_of(server, workload="two", timeout=TIMEOUT) == "global_norm:1"


@pytest.mark.parametrize("place", ["a file", "a file above", "unwritable"])
def test_cache_folder_that_cannot_be_used_is_done_without(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / "elsewhere"
    if place == "unwritable":
        # Nobody may make folders here, root included.
        folder = Path("/proc/self/fdinfo")
    elif place == "a file":
        folder.mkdir()
        (folder / "cliptune").write_text("")
    else:
        folder.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    for _ in range(2):
        assert setting_of(server) == "global_norm:0.35"
    assert b"If-None-Match" not in server.requests[1]


def test_relative_cache_folder_is_none_and_home_is_taken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert setting_of(server) == "global_norm:0.35"
    assert list((tmp_path / ".cache" / "cliptune").glob("recommendation-*.json"))
    assert not list((tmp_path / ".cache" / "cliptune").glob("*.new"))


def test_address_and_key_come_from_the_environment_or_from_home(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "service.json").write_text(json.dumps({"url": server.url}))
    (home / "key").write_text("from-home\n")
    assert setting_of(server, url=None, api_key=None) == "global_norm:0.35"
    monkeypatch.setenv("CLIPTUNE_URL", server.url + "/")
    monkeypatch.setenv("CLIPTUNE_API_KEY", "from-environment")
    (home / "service.json").write_text("{")
    assert setting_of(server, url=None, api_key=None) == "global_norm:0.35"
    assert [request.count(b"Bearer from-home\r\n") for request in server.requests] == [1, 0]
    assert b"Bearer from-environment\r\n" in server.requests[1]


@pytest.mark.parametrize("left", ["", "[]", '"url"', "null", "\x00"])
def test_home_with_nothing_useful_leads_to_the_default_port(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "service.json").write_text(left)
    monkeypatch.setenv("CLIPTUNE_PORT", server.url.rpartition(":")[2])
    assert setting_of(server, url=None, api_key=None) == "global_norm:0.35"
    assert b"Authorization" not in server.requests[0]


def test_loopback_is_never_asked_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would be told the access key."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert setting_of(server) == "global_norm:0.35"


def test_answer_for_other_parameters_is_not_used(server: Server) -> None:
    assert setting_of(server, parameters={"learning_rate": 4}) == "global_norm:0.35"
    with pytest.warns(CliptuneWarning, match=r"was found with learning_rate=4\.0, and here it is 2\.0"):
        assert setting_of(server, parameters={"learning_rate": 2.0}) == "global_norm:1"
    with pytest.warns(CliptuneWarning, match="was found with layers=None, and here it is 2"):
        assert setting_of(server, parameters={"layers": 2}) == "global_norm:1"


def test_tuned_learning_rate_is_said_because_a_clipper_cannot_apply_it(server: Server) -> None:
    setting = {"method": "global_norm", "threshold": 0.35, "learning_rate_scale": 0.5}
    server.handler = answering(found(setting=setting))
    for _ in range(2):
        with pytest.warns(
            CliptuneWarning, match=r"global_norm:0\.35@0\.5 was found with 0\.5 times the workload's"
        ):
            assert setting_of(server) == "global_norm:0.35@0.5"


def test_many_askers_may_ask_at_once(server: Server, tmp_path: Path) -> None:
    """As the ranks of one training do: every one of them gets a setting, and the file is whole."""
    settings: list[str] = []
    threads = [
        threading.Thread(target=lambda: settings.append(setting_of(server, timeout=30))) for _ in range(16)
    ]
    with warnings.catch_warnings():
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert settings == ["global_norm:0.35"] * 16
    assert json.loads(cache_file(tmp_path).read_text())["answer"] == found()


def test_training_goes_on_from_a_checkpoint_with_another_setting(server: Server) -> None:
    """The service is away when a training is resumed: that is no reason for it to end."""
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    options: dict[str, Any] = {"workload": "w", "fallback": "zclip:2.5", "timeout": 10}
    before = Clipper.recommended(url=server.url, api_key="key", **options)
    before([weight])
    with pytest.warns(CliptuneWarning, match="training with the fallback"):
        after = Clipper.recommended(url="http://127.0.0.1:1", **options)
    with pytest.warns(CliptuneWarning, match="was trained with global_norm:0.35; going on with zclip:2.5"):
        after.load_state_dict(before.state_dict())
    after([weight])
    assert (after.num_steps, after.record().num_steps) == (2, 1)
