"""A Ray cluster as a driver sees it: attach, give a request an actor, hear from it, give its device back.

Ray is imported by what is called here, never by importing this file. Every wait has an end: a cluster that is gone
answers nothing at all, see https://github.com/ray-project/ray/issues/24969.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from service.launchers.ray_attach import AttachError
from service.launchers.ray_faults import waiting_for

#: How long the head may take to accept a connection, and to say what its nodes have, in seconds.
_CONNECT_SECONDS, _LOOK_SECONDS = 5.0, 1.0
#: Lines of a request that may wait in the relay's node to be taken.
_AHEAD = 1_000


class Cluster:
    """A cluster that this process is a driver of; what it starts there ends with this process.

    Args:
        address: HOST:PORT of its head, or ``auto``.
        runtime_env: of the processes on the nodes; see Ray.

    Raises:
        AttachError: if it does not answer, or refuses.
    """

    def __init__(self, address: str, runtime_env: Mapping[str, Any]) -> None:
        import ray

        if address != "auto":
            _require_listening(address)
        try:
            ray.init(
                address=address,
                # Of its own, so that nothing can be found by name.
                namespace=f"cliptune-{uuid.uuid4()}",
                runtime_env=dict(runtime_env) or None,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:
            raise _refusal(address, error) from error
        # A thread of its own, because a head that is gone holds up whoever asks it.
        self._looks = ThreadPoolExecutor(max_workers=1)
        self._look: Future[str] | None = None
        self._waits_for = "the cluster has not said yet what its nodes have"

    def start(self, demand: Mapping[str, float], order: str, request: bytes) -> ClusterTraining:
        """Ask for an actor that serves a request; it waits for a node by itself.

        Args:
            demand: ``CPU`` and ``GPU`` that it takes from a node.
            order: see `service.launchers.ray_relay.Relay`.
            request: one line.

        Returns:
            The training, which may not run yet.
        """
        import ray

        from service.launchers.ray_relay import Relay

        actor = (
            ray.remote(Relay)
            .options(
                num_cpus=demand.get("CPU", 0),
                num_gpus=demand.get("GPU", 0),
                # A training goes on from its checkpoint by a decision of the worker, which holds the lease.
                max_restarts=0,
                max_task_retries=0,
                # One for the events, one for what is sent meanwhile.
                max_concurrency=2,
            )
            .remote(order)
        )
        events = actor.events.options(
            num_returns="streaming", _generator_backpressure_num_objects=_AHEAD
        ).remote(request)
        return ClusterTraining(actor, events)

    def waiting_for(self, demand: Mapping[str, float]) -> str:
        """Why a request is not running yet, as far as the cluster has said.

        Args:
            demand: of the request.

        Returns:
            A sentence.
        """
        is_asked_anew = self._look is None
        if self._look is None:
            self._look = self._looks.submit(_looked, dict(demand))
        try:
            self._waits_for = self._look.result(_LOOK_SECONDS)
            self._look = None
        except FutureTimeoutError:
            if not is_asked_anew:
                self._waits_for = "the head of the cluster does not answer"
        except Exception as error:
            self._waits_for = f"the cluster can't say what it waits for ({type(error).__name__})"
            self._look = None
        return self._waits_for


class ClusterTraining:
    """One request on the cluster."""

    def __init__(self, actor: Any, events: Any) -> None:
        self._actor = actor
        self._events = events
        self._next: Any = None
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_placed = False

    def receive(self, timeout: float) -> bytes | None:
        """The next line; None if there was none in time.

        Args:
            timeout: how long to wait, in seconds.

        Raises:
            EOFError: if the relay has nothing more to say.
        """
        import ray

        if self._next is None:
            ready, _ = ray.wait([self._events], timeout=timeout)
            if not ready:
                return None
            try:
                self._next = next(self._events)
            except StopIteration:
                raise EOFError("the relay ended without a last word") from None
        try:
            line = bytes(ray.get(self._next, timeout=timeout))
        except ray.exceptions.GetTimeoutError:
            return None
        self._next = None
        self._is_placed = True
        return line

    def send(self, line: bytes) -> None:
        """Pass a later line on; it is lost if the training is."""
        self._actor.send.remote(line)

    def end(self, grace_seconds: float) -> None:
        """End it and give its device back; safe from any thread, twice too.

        Args:
            grace_seconds: how long its training process has to end before its actor is killed.
        """
        import ray

        with self._lock:
            if self._has_ended:
                return
            with contextlib.suppress(Exception):
                # One that waits for a node has nothing to stop, and would not answer.
                if self._is_placed:
                    ray.wait([self._actor.stop.remote()], timeout=grace_seconds)
            with contextlib.suppress(Exception):
                ray.kill(self._actor)
            self._has_ended = True


def _looked(demand: Mapping[str, float]) -> str:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return waiting_for(demand, nodes, ray.available_resources())


def _require_listening(address: str) -> None:
    """Refuse an address where nothing listens, for which Ray itself takes minutes.

    Raises:
        AttachError: if nothing does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise AttachError(
            f"no Ray cluster answers at {address} (CLIPTUNE_RAY_ADDRESS): {error}", code="ray_unreachable"
        ) from None


def _refusal(address: str, error: Exception) -> AttachError:
    """Why `ray.init` failed, with the remedy."""
    # Ray raises anew with the text of what it caught.
    texts = [f"{type(each).__name__}: {each}".strip() for each in _chain(error)]
    reason = texts[-1].splitlines()[-1]
    if any("AuthenticationError" in text for text in texts):
        return AttachError(
            f"the Ray cluster at {address} refuses the token in RAY_AUTH_TOKEN_PATH; copy the one that its head "
            "was started with",
            code="ray_token_refused",
        )
    if "Version mismatch" in str(error):
        return AttachError(
            f"the Ray cluster at {address} has other versions than this worker: {' '.join(str(error).split())}; "
            "install the same Ray and Python here",
            code="ray_version_refused",
        )
    if isinstance(error, TypeError | ValueError):
        return AttachError(
            f"Ray refuses CLIPTUNE_RAY_RUNTIME_ENV: {str(error).strip()}", code="ray_runtime_env_refused"
        )
    return AttachError(
        f"Ray can't attach to the cluster at {address}: {reason}; this machine has to be one of its nodes: ray start "
        "--address=HOST:PORT --num-cpus=0",
        code="ray_unreachable",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
