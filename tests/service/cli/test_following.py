"""Waiting in a log: lines that a viewer shows and no runner obeys, through cut wires and restarted services."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from serving import serving

from service.cli import following
from service.cli.following import follow, log_section, say
from service.client import Client
from service.client import follow as client_follow
from service.schemas import EventOut, StudyOut
from service.states import JobState

STUDY = ("--workload", "charlm-rnn", "--trials", "4", "--seeds", "2", "--steps", "9")
PATIENCE = 60.0


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture(autouse=True)
def pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_EVENT_NAME", "GITLAB_CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GITHUB_REPOSITORY", "team/model")
    monkeypatch.setenv("GITHUB_SHA", "c" * 40)


# ---- over the wire ----


class Wire:
    """A TCP proxy before a service, whose connections can be cut at once."""

    def __init__(self, port: int) -> None:
        self._port, self._ends, self._threads = port, list[socket.socket](), list[threading.Thread]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = b""
        self.answered = b""
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                self._start(self._pump, near, far, True)
                self._start(self._pump, far, near, False)

    def _pump(self, source: socket.socket, target: socket.socket, is_asked: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                if is_asked:
                    self.asked += chunk
                else:
                    self.answered += chunk
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Every connection, in the middle of whatever it carries."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        # Wakes the thread that accepts, which closing does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for end in (*self._ends, self._listener):
            end.close()


@pytest.fixture
def wire(served: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    opened = Wire(int(os.environ["CLIPTUNE_URL"].rpartition(":")[2]))
    monkeypatch.setenv("CLIPTUNE_URL", opened.url)
    yield opened
    opened.close()


def queued(api: Any) -> Any:
    items = api.http.get("/v1/studies").json()["items"]
    return next((each for each in items if each["state"] == "queued"), None)


def test_cut_connection_is_made_again_where_it_was_cut(
    served: Any, repository: Any, cliptune: Any, wire: Wire
) -> None:
    del repository

    def work() -> None:
        study = wait_until(lambda: queued(served))
        lease = served.acquire()
        for number in range(3):
            with served.queue.held(lease) as session:
                served.queue.append_event(session, lease, "error", {"error": f"ValueError: number {number}"})
            wait_until(lambda number=number: f"number {number}".encode() in wire.answered)
            wire.cut()
        served.write_trials(study["id"])
        served.recommend(study["id"])
        served.queue.finish(lease, JobState.SUCCEEDED)

    worker = threading.Thread(target=work)
    worker.start()
    ended = cliptune("tune", *STUDY, "--report", "json=out.json")
    worker.join(PATIENCE)
    assert ended.code == 0, ended.err
    assert json.loads(Path("out.json").read_text())["study"]["ending"] == "succeeded"
    for number in range(3):
        assert ended.err.count(f"ValueError: number {number}") == 1, "no event is lost or told twice"
    resumed = re.findall(rb"last-event-id: (\d+)", wire.asked, re.IGNORECASE)
    assert len(resumed) >= 3 and resumed == sorted(resumed, key=int)


def test_service_that_is_restarted_is_waited_for(
    api: Any, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del repository
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("CLIPTUNE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("CLIPTUNE_API_KEY", api.key)
    started, refused = threading.Event(), threading.Event()
    waits: list[float] = []
    pause = client_follow._pause

    def counted(seconds: float) -> Iterator[None]:
        waits.append(seconds)
        if len(waits) >= 2:
            refused.set()
        return pause(0.05)

    monkeypatch.setattr(client_follow, "_pause", counted)
    monkeypatch.setattr(client_follow, "_MAX_FAILURES", 10_000)

    def work() -> None:
        with serving(api.app, port):
            started.set()
            study = wait_until(lambda: queued(api))
            lease = api.acquire()
            waits.clear()
        assert refused.wait(PATIENCE), "it tries again while nobody is there"
        api.write_trials(study["id"])
        api.recommend(study["id"])
        api.queue.finish(lease, JobState.SUCCEEDED)
        with serving(api.app, port):
            wait_until(lambda: done.is_set())

    done = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(PATIENCE)
    ended = cliptune("tune", *STUDY)
    done.set()
    worker.join(PATIENCE)
    assert ended.code == 0, ended.err + ended.out
    assert ended.out.startswith("ok: study ")


@pytest.mark.parametrize(("rule", "code"), [("fail", 3), ("warn", 0)])
def test_service_that_stays_away_is_given_up_with_the_way_back(
    api: Any,
    repository: Any,
    cliptune: Any,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    code: int,
) -> None:
    del repository
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("CLIPTUNE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("CLIPTUNE_API_KEY", api.key)
    monkeypatch.setattr("service.client.follow._WAITS", (0.01,))
    started = threading.Event()

    def work() -> None:
        with serving(api.app, port):
            started.set()
            wait_until(lambda: queued(api))

    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(PATIENCE)
    ended = cliptune("tune", *STUDY, "--on-service-error", rule, "--report", "github-output=out.txt")
    worker.join(PATIENCE)
    assert ended.code == code, ended.err
    study = queued(api)
    assert f"the study goes on; resume with: cliptune watch {study['id'][:8]}" in ended.err
    assert "The service can't be reached" in ended.out and "[unavailable]" in ended.out
    outputs = Path("out.txt").read_text()
    assert "status=unavailable\n" in outputs and f"study-id={study['id']}\n" in outputs


# ---- the lines ----


def event(number: int, kind: str, **payload: Any) -> EventOut:
    return EventOut(id=number, kind=kind, created_at="2026-01-01T00:00:00Z", payload=payload)  # type: ignore[arg-type]


def study(**changes: Any) -> StudyOut:
    values = {
        "id": "7f3c0000-0000-4000-8000-000000000000",
        "name": None,
        "state": JobState.RUNNING,
        "done": False,
        "workload": "charlm-rnn",
        "spec": {"workload": "charlm-rnn", "num_trials": 16, "num_seeds": 3, "num_steps": 400},
        "fingerprint": "0" * 16,
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "attempt": 1,
        "num_trials_ended": 0,
        "result": None,
        "error": None,
    }
    return StudyOut(**values | changes)


def test_log_has_a_line_where_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.05)
    printed: list[str] = []

    def lines() -> str:
        printed.append(capsys.readouterr().err)
        return "".join(printed)

    def seen() -> Iterator[EventOut | StudyOut | None]:
        yield event(1, "training_started", device="cpu")
        yield event(2, "cohort", cohort=0, trials=[{"id": "a"}], seeds=[0, 1, 2])
        yield event(3, "progress", lane_steps=30, total_lane_steps=100, step=90)
        rung = {"index": 1, "num_rungs": 3, "step": 120, "cohort": 0, "values": [], "pruned": []}
        yield event(4, "rung", **rung)
        wait_until(lambda: "still" in lines())
        yield study(num_trials_ended=5)
        wait_until(lambda: "5 of 16" in lines())
        yield event(5, "succeeded")

    follow(study(), seen())
    text = lines()
    assert re.search(
        r"^still running, rung 2/3, 120 of 400 steps, 0 of 16 settings done, \d s$", text, re.M
    ), text
    assert re.search(r"^still running, .*5 of 16 settings done", text, re.M)
    assert "\r" not in text and "\x1b" not in text


def test_limit_is_the_contracts() -> None:
    assert following.QUIET_SECONDS < 30


def test_time_limit_holds_on_a_silent_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, waits = 0.0, list[float]()

    def pings() -> Iterator[bytes]:
        nonlocal now
        while True:
            now += 15
            yield b": ping\n\n"

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    def answers(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/events"):
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=pings())
        waits.append(float(request.url.params["wait"]))
        if len(waits) == 1:
            return httpx2.Response(503, text="a proxy whose service restarts")
        pass_by(waits[-1])
        return httpx2.Response(200, content=study().model_dump_json())

    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: now, sleep=pass_by))
    monkeypatch.setattr("service.client.connection._RETRY_WAITS", ())
    with Client("http://x", "", transport=httpx2.MockTransport(answers)) as client:
        following.wait_for_study(client, study(), quiet=True, limit_minutes=1)
    # The fourth ping would come as the time is over, and one that is late would hold the command.
    assert (now, waits) == (60, [15.0, 14.0])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "::error::x",
        "  ::stop-commands::x",
        "a\n::error::x",
        "a\r::set-env name=PATH::x",
        "##[error]x",
        "\x1b[31mred",
        "a\u2028::error::x",
    ],
)
def test_text_of_the_service_is_no_command(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    follow(
        study(workload=text),
        [
            event(1, "training_started", device=text),
            event(2, "error", error=text),
            event(3, "trial_failed", trial_id="a", error=text),
            event(4, "failed", error=text),
        ],
    )
    say(text)
    printed = capsys.readouterr().err
    assert printed.count("\n") >= 5
    for line in printed.split("\n"):
        assert line.isprintable() and "##[" not in line and not line.strip().startswith("::")


def test_platforms_fold_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with log_section({"GITHUB_ACTIONS": "true"}, "study\n::error::x"):
        say("inside")
    assert capsys.readouterr().err == "::group::cliptune: study\\n::error::x\ninside\n::endgroup::\n"
    with log_section({"GITLAB_CI": "true"}, "study 7f3c"):
        say("inside")
    assert re.fullmatch(
        r"\x1b\[0Ksection_start:\d+:cliptune_study_7f3c\r\x1b\[0Kcliptune: study 7f3c\ninside\n"
        r"\x1b\[0Ksection_end:\d+:cliptune_study_7f3c\r\x1b\[0K\n",
        capsys.readouterr().err,
    )
    with log_section({}, "study"), log_section({"GITHUB_ACTIONS": "true"}, "study", is_shown=False):
        say("inside")
    assert capsys.readouterr().err == "inside\n"
