"""The child of a worker that is a Ray driver: it takes requests as a training process does, and has nodes train them.

`service.launchers.ray` starts it, with an environment from an allow-list. It attaches to the cluster, says `Ready`, and
then serves requests one at a time, as `service.launchers.trainer` does: each gets an actor, which takes the CPU cores
and GPUs that are asked for. They are given back three seconds after a request that ended well: the next cohort of a
study comes at once, and finds its process warm. While no node has them, `Pending` is told every two seconds. What the
node's training process writes is passed on as it is; what Ray takes away is told as `Broken`.

When standard input closes, or at SIGTERM, the actor is ended and this process too. If it is killed, Ray ends the actor,
because its owner is gone. Ray ends this process if the node it is attached to, or the head, is lost; the worker sees a
training process that died.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import IO, NoReturn

from service.errors import TrainingError
from service.launchers.protocol import ANSWERS, Broken, Done, Message, Pending, Ready, decode, encode
from service.launchers.ray_attach import (
    AttachError,
    ray_version,
    read_runtime_env,
    require_token,
    require_version,
)
from service.launchers.ray_cluster import Cluster, ClusterTraining
from service.launchers.ray_faults import broken_by
from service.launchers.ray_relay import Order, Placed, installed_version

_STARTED = time.monotonic()
#: How long a cluster may take to accept this driver, in seconds.
_ATTACH_SECONDS = 60.0
#: How long a line is waited for at once, and how often a request that waits for a node says so, in seconds.
_SLICE_SECONDS, _PENDING_SECONDS = 0.5, 2.0
#: How often a request may be lost before it has reached a node until that is told: whatever it is, it stays so.
_MOST_LOST = 3
#: How long an actor whose request has ended well waits for the next one, in seconds.
_KEPT_SECONDS = 3.0
#: What the process exits with if it can't attach, and if its worker is gone or it broke.
_NOT_ATTACHED, _ENDED = 4, 3


def main(arguments: list[str] | None = None) -> None:
    """Attach, and serve requests until standard input closes."""
    options = _parser().parse_args(arguments)
    os.set_inheritable(options.events, False)
    # Before any thread starts, so that none of them, and none of Ray's, is interrupted by it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    driver = _Driver(options)
    for target in (driver.read_requests, driver.await_sigterm):
        threading.Thread(target=target, daemon=True).start()
    late = threading.Timer(_ATTACH_SECONDS, _refuse, [_too_late(options.address)])
    late.daemon = True
    late.start()
    try:
        require_version(ray_version(), allow_insecure=options.allow_insecure)
        require_token(os.environ, allow_insecure=options.allow_insecure)
        cluster = Cluster(options.address, read_runtime_env(options.runtime_env))
    except AttachError as error:
        _refuse(error)
    late.cancel()
    try:
        with os.fdopen(options.events, "wb") as events:
            driver.serve(cluster, events)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        # Ray would say good-bye to a cluster that may be gone; that this process ends is enough.
        os._exit(_ENDED)


class _Driver:
    """What the threads of the process share: lines of the worker, and the training that runs.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._current: ClusterTraining | None = None
        #: Where the current one runs, while it waits for another request.
        self._kept: Placed | None = None
        self._is_ending = threading.Event()
        self._demand = {"CPU": options.cpus, "GPU": options.gpus}
        # Shorter than the worker's own, which ends this process.
        self._grace = options.kill_grace_seconds / 2
        self._order = Order(
            program=tuple(json.loads(options.program)),
            threads=options.threads,
            kill_grace_seconds=self._grace / 2,
            has_gpu=options.gpus > 0,
            import_from=tuple(json.loads(options.import_from)),
            also=tuple(json.loads(options.also)),
        )

    def read_requests(self) -> None:
        """Take the worker's lines until it closes standard input: decisions at once, requests one after the other."""
        try:
            for line in sys.stdin.buffer:
                # A worker that was killed may leave half a line, which ends in no newline.
                if line.endswith(b"\n"):
                    self._take(line)
        finally:
            self._end()

    def _take(self, line: bytes) -> None:
        if json.loads(line)["kind"] not in ANSWERS:
            self._requests.put(line)
        elif (training := self._current) is not None:
            training.send(line)

    def await_sigterm(self) -> None:
        """End when the worker asks for it."""
        signal.sigwait({signal.SIGTERM})
        self._end()

    def serve(self, cluster: Cluster, events: IO[bytes]) -> None:
        """Say that requests may come, and serve them until the end."""
        _tell(events, _ready())
        while (line := self._next_request()) is not None:
            demand = {} if json.loads(line)["kind"] == "describe" else self._demand
            placed, is_well = None, False
            try:
                placed, first = self._ask_kept(demand, line)
                placed = placed or self._await_node(cluster, demand, line, events)
                is_well = placed is not None and self._pass_on(placed, first, demand, events)
            finally:
                if is_well and demand:
                    self._kept = placed
                else:
                    self._let_go()
        # What is kept ends before this process does; with it end what it started, and its folder.
        self._let_go()

    def _next_request(self) -> bytes | None:
        """The worker's next request; None at the end. The device of the last one is given back if none comes soon."""
        if self._current is not None:
            with contextlib.suppress(queue.Empty):
                return self._requests.get(timeout=_KEPT_SECONDS)
            self._let_go()
        return self._requests.get()

    def _ask_kept(self, demand: dict[str, float], line: bytes) -> tuple[Placed | None, bytes | None]:
        """Give a request to the actor of the last one.

        Returns:
            Where that runs, and the first line of its answer; nothing if it is not there any more, holds other
            devices or says first that it broke: it may have died while nobody asked. A new actor is asked then.
        """
        placed, training, self._kept = self._kept, self._current, None
        if placed is None or training is None:
            return None, None
        with contextlib.suppress(Exception):
            # Between two requests it has nothing to say but how it ended.
            if demand == self._demand and training.receive(0) is None:
                training.send(line)
                while not self._is_ending.is_set():
                    if (first := training.receive(_SLICE_SECONDS)) is not None:
                        if isinstance(_last_word(first), Broken):
                            break
                        return placed, first
        self._let_go()
        return None, None

    def _let_go(self) -> None:
        """End the current actor, if there is one."""
        if self._current is not None:
            self._current.end(self._grace)
        self._current = None

    def _await_node(
        self, cluster: Cluster, demand: dict[str, float], line: bytes, events: IO[bytes]
    ) -> Placed | None:
        """Ask for a node, and say that it is waited for; None if there can't be one, which is told."""
        asked = told = time.monotonic()
        num_lost = 0
        while not self._is_ending.is_set():
            if self._current is None:
                self._current = cluster.start(demand, self._order.to_json(), line)
            try:
                first = self._current.receive(_SLICE_SECONDS)
            except Exception as error:
                broken = broken_by(error, None)
                num_lost += 1
                if broken.cause != "device_lost" or num_lost == _MOST_LOST:
                    _tell(events, broken)
                    return None
                # A node that died while it made itself ready: nothing was trained, so nothing is lost but time.
                self._current.end(0)
                self._current, first = None, None
                self._is_ending.wait(_SLICE_SECONDS)
            if first is not None:
                return Placed(**json.loads(first))
            if (now := time.monotonic()) - told >= _PENDING_SECONDS:
                _tell(events, Pending(seconds=now - asked, detail=cluster.waiting_for(demand)))
                told = now
        return None

    def _pass_on(
        self, placed: Placed, line: bytes | None, demand: dict[str, float], events: IO[bytes]
    ) -> bool:
        """Tell what a training tells, from a line that is here already to its last word; whether that was `Done`."""
        problem = other_version(placed, installed_version())
        while problem is None and not self._is_ending.is_set() and self._current is not None:
            try:
                line = line or self._current.receive(_SLICE_SECONDS)
            except Exception as error:
                problem = broken_by(error, placed.node)
                break
            if line is not None:
                events.write(line)
                events.flush()
                if (last := _last_word(line)) is not None:
                    return isinstance(last, Done)
                problem, line = no_gpu(line, placed, demand), None
        if problem is not None:
            _tell(events, problem)
        return False

    def _end(self) -> None:
        """End the training and the process; a cluster that does not answer can't hold that up."""
        self._is_ending.set()
        # A worker that was killed can't remove this process's folder; only an empty one is removed.
        with contextlib.suppress(OSError):
            os.rmdir(os.getcwd())
        self._requests.put(None)
        threading.Timer(2 * self._grace, os._exit, [_ENDED]).start()
        if (training := self._current) is not None:
            training.end(self._grace)
        os._exit(_ENDED)


def other_version(placed: Placed, own: str) -> Broken | None:
    """Refuse a node that has another cliptune: what it tells might not be understood.

    Args:
        placed: where the request runs.
        own: the version of this process.

    Returns:
        What to tell instead of its events; None if the versions are the same.
    """
    if placed.version == own:
        return None
    return Broken(
        cause="bug",
        detail=f"node {placed.node} has cliptune {placed.version or 'from its sources'} and this worker "
        f"{own or 'from its sources'}: install the same version on both",
        traceback="",
    )


def no_gpu(line: bytes, placed: Placed, demand: dict[str, float]) -> Broken | None:
    """Refuse a node whose GPU PyTorch does not see, instead of training on its CPU.

    Args:
        line: that the node's training process told.
        placed: where it runs.
        demand: what was asked for.

    Returns:
        What to tell; None if it is all right, or the line is no `Ready`.
    """
    if not demand.get("GPU") or b'"ready"' not in line:
        return None
    message = decode(line)
    if not isinstance(message, Ready) or message.device != "cpu":
        return None
    return Broken(
        cause="device_lost",
        detail=f"node {placed.node} has a GPU for Ray, and PyTorch {message.torch} sees none there: install a build "
        "for its driver",
        traceback="",
    )


def _last_word(line: bytes) -> Done | Broken | None:
    """What ends a request; a line that is no event does, because the worker gives up at it. None for other events."""
    try:
        message = decode(line)
    except TrainingError as error:
        return Broken(cause="bad_output", detail=str(error), traceback="")
    return message if isinstance(message, Done | Broken) else None


def _tell(events: IO[bytes], message: Message) -> None:
    events.write(encode(message))
    events.flush()


def _ready() -> Ready:
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    return Ready(pid=os.getpid(), torch=torch, device="ray", threads=0, seconds=time.monotonic() - _STARTED)


def _too_late(address: str) -> AttachError:
    return AttachError(
        f"the Ray cluster at {address} did not accept this worker within {_ATTACH_SECONDS:g} s",
        code="ray_unreachable",
    )


def _refuse(error: AttachError) -> NoReturn:
    """Say why, as the last line of the process."""
    sys.stderr.write(f"cliptune: {error} [{error.code}]\n")
    sys.stderr.flush()
    os._exit(_NOT_ATTACHED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="service.launchers.ray_driver")
    parser.add_argument("--address", required=True, help="HOST:PORT of the head, or auto")
    parser.add_argument("--cpus", type=float, required=True, help="CPU cores of a request")
    parser.add_argument("--gpus", type=float, required=True, help="GPUs of a request")
    parser.add_argument("--runtime-env", default="", help="JSON file with Ray's runtime environment")
    parser.add_argument("--allow-insecure", action="store_true", help="attach without token authentication")
    parser.add_argument("--program", required=True, help="arguments of the nodes' Python, as a JSON list")
    parser.add_argument("--kill-grace-seconds", type=float, required=True, help="between SIGTERM and SIGKILL")
    parser.add_argument("--import-from", default="[]", help="folders of the nodes, as a JSON list")
    parser.add_argument("--also", default="[]", help="variables of the nodes, as a JSON list")
    parser.add_argument("--events", type=int, required=True, help="file descriptor for the events")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for torch, 0 = its own choice")
    return parser


if __name__ == "__main__":
    main()
