"""The actor of a request: on its node it runs an ordinary training process and passes lines on, both ways.

It is imported on the nodes of the cluster, where cliptune is installed. It reads nothing of what it passes on: events
leave as the bytes that the training process wrote, and are checked by whoever receives them. Before the first event it
says where it runs, as `Placed`. How the training process ends is told as a `Broken` with the cause that
`TrainingProcess` gives it, so a crash on a node is named as one on the worker's own machine would be.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

from service.devices import VISIBLE
from service.errors import TrainingError
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, encode

#: How long a line is waited for before it is looked whether the request was ended, in seconds.
_SLICE_SECONDS = 1.0
_Cause = Literal["bug", "oom", "device_lost", "bad_output"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """How a relay is to start the training process.

    Attributes:
        program: arguments of the node's Python, as ``-m service.launchers.trainer``.
        threads: CPU threads for torch, 0 = torch's choice.
        kill_grace_seconds: time between SIGTERM and SIGKILL.
        has_gpu: whether Ray gives it one; it sees none otherwise.
        import_from: folders, on the node, from which modules may be imported.
        also: further variables of the node that it may see; see `training_environment`.
    """

    program: tuple[str, ...]
    threads: int
    kill_grace_seconds: float
    has_gpu: bool = False
    import_from: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what `to_json` wrote."""
        document = json.loads(text)
        lists = {name: tuple(document[name]) for name in ("program", "import_from", "also")}
        return cls(**(document | lists))


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a relay runs.

    Attributes:
        node: address of the node.
        version: of cliptune there.
    """

    node: str
    version: str


class Relay:
    """Serves a request, and those that `send` brings when it has been answered.

    Args:
        order: an `Order` as JSON: what travels is plain text.
    """

    def __init__(self, order: str) -> None:
        self._order = Order.from_json(order)
        self._process: TrainingProcess | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def events(self, request: bytes) -> Iterator[bytes]:
        """Start the training process, give it the request and pass on what it tells, to later requests too.

        Args:
            request: the first, one line as `encode` wrote it.

        Yields:
            `Placed` as JSON, then lines of the process; a last `Broken` if it ends.
        """
        yield json.dumps(dataclasses.asdict(_here())).encode()
        try:
            process = self._started()
            process.send_line(request)
            while True:
                if (line := process.receive_line(_SLICE_SECONDS)) is not None:
                    yield line
        except TrainingError as error:
            yield encode(_broken(error))
        finally:
            self.stop()

    def send(self, line: bytes) -> None:
        """Pass a later line on to the training process; one that is gone says so by its events.

        Args:
            line: as `encode` wrote it.
        """
        if self._process is not None:
            try:
                self._process.send_line(line)
            except TrainingError:
                return

    def stop(self) -> None:
        """End the training process and all that it started."""
        with self._lock:
            self._is_stopped = True
        if self._process is not None:
            self._process.stop()

    def _started(self) -> TrainingProcess:
        """The process, unless the request was ended meanwhile.

        Raises:
            TrainingError: if it was, or the node can't start a process.
        """
        with self._lock:
            if self._is_stopped:
                raise TrainingError("the request was ended before its training began", cause="device_lost")
            try:
                self._process = TrainingProcess(
                    (sys.executable, *self._order.program),
                    threads=self._order.threads,
                    kill_grace_seconds=self._order.kill_grace_seconds,
                    import_from=(*self._order.import_from, *_added_folders()),
                    also=self._order.also,
                    # Ray hides a node's GPUs only from who was given some of them.
                    environment={} if self._order.has_gpu else {VISIBLE: ""},
                )
            except OSError as error:
                raise TrainingError(
                    f"the node can't start a training process: {error}", cause="device_lost"
                ) from None
        return self._process


def installed_version() -> str:
    """The version of cliptune that is installed here; empty if it runs from its sources."""
    try:
        return version("cliptune")
    except PackageNotFoundError:
        return ""


def _here() -> Placed:
    import ray.util

    return Placed(node=ray.util.get_node_ip_address(), version=installed_version())


def _added_folders() -> list[str]:
    """What Ray and its runtime environment added to this process's path; what every Python here has is left out."""
    return [folder for folder in sys.path if folder and not folder.startswith((sys.prefix, sys.base_prefix))]


def _broken(error: TrainingError) -> Broken:
    first, _, rest = str(error).partition("\n")
    known: dict[str, _Cause] = {cause: cause for cause in get_args(_Cause)}
    return Broken(cause=known.get(error.cause, "bug"), detail=first[:2_000], traceback=rest[-8_000:])
