"""The training process: reads requests, trains, tells events. It computes and has no other power.

Requests, one JSON line each on standard input:

- ``{"kind": "describe"}`` answers `Catalogue`;
- ``{"kind": "probe", "workload", "parameters", "seeds", "num_steps", "num_batches"}`` answers `ProbeMeasured`; the last
  two may be left out;
- ``{"kind": "check", "workload", "parameters", "num_steps"}`` answers `Checked`;
- ``{"kind": "cohort", "cohort": ..., "checkpoints": ..., "is_part": ...}`` (`Cohort.to_json`; an absolute folder or
  fsspec URL of the cohort's own, or null; true or left out) answers the cohort's events; it goes on from the newest
  checkpoint there by itself. A training function has no checkpoints, and is never a part.
- ``{"kind": "path", "path": ...}`` is no request but what a part waits for after `PathWanted`: how other parts train,
  ``lanes`` or ``solo``, or null to measure;
- ``{"kind": "decision", "index": ..., "pruned": [...]}`` likewise, at each rung but the last: which trials end there.

What may be named is what ``--workloads`` registers, as JSON; a request never names a module.

Each ends with `Done`, or with `Broken` if user code raised. Closing standard input ends the process at once,
in the middle of a step if need be: that is how a killed worker takes its trainings with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.training.rehearsals import Rehearsals
    from tuner.workloads.registry import Registry

_STARTED = time.monotonic()
#: Without a request for so long, a process makes itself ready for one; a study that is submitted at once is not held
#: up by that.
_IDLE_SECONDS = 1.0
#: Optimizer steps of a full run that a training function is told in a probe that does not say.
_PROBE_STEPS = 400


@dataclass(frozen=True)
class _State:
    """What requests share.

    Attributes:
        tell: writes a message, whoever is on the stack.
        registry: the code behind workloads' names.
        rehearsals: what was found out about a workload's lanes serves the next request too.
        requests: the lines that have arrived.
    """

    tell: Callable[[Any], None]
    registry: Registry
    rehearsals: Rehearsals
    requests: queue.Queue[bytes]


def main(arguments: list[str] | None = None) -> None:
    """Serve requests until standard input closes."""
    parser = argparse.ArgumentParser(prog="service.launchers.trainer")
    parser.add_argument("--events", type=int, required=True, help="file descriptor for the events")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for torch, 0 = its own choice")
    parser.add_argument("--workloads", default="", help="registrations as JSON; empty is what is built in")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.events, False)
    # Started before torch is imported, so that a worker that dies meanwhile is noticed too.
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_requests, args=(_own_input(), requests), daemon=True).start()
    with os.fdopen(options.events, "wb") as events:
        _serve(requests, events, options)


def _own_input() -> int:
    """Take standard input away from the code that is trained: what it reads there, or its children, is empty."""
    requests = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return requests


def _read_requests(source: int, requests: queue.Queue[bytes]) -> None:
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            requests.put(line)
    # The worker is gone, and with it whoever would remove this process's folder; only an empty one is removed.
    with contextlib.suppress(OSError):
        os.rmdir(os.getcwd())
    os._exit(3)


def _serve(requests: queue.Queue[bytes], events: Any, options: argparse.Namespace) -> None:
    import torch

    from service.launchers.protocol import Broken, Done, Ready, encode

    if options.threads:
        torch.set_num_threads(options.threads)

    own = os.getpid()

    def tell(message: Any) -> None:
        if os.getpid() != own:
            # A fork of the code that is trained came back here: what it would tell is its parent's to tell.
            os._exit(1)
        events.write(encode(message))
        events.flush()

    tell(
        Ready(
            pid=os.getpid(),
            torch=torch.__version__,
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=torch.get_num_threads(),
            seconds=time.monotonic() - _STARTED,
            num_devices=max(torch.cuda.device_count(), 1),
        )
    )
    # After `Ready`: a worker that starts need not wait for these imports.
    from tuner.training.memory import is_out_of_memory
    from tuner.training.rehearsals import Rehearsals
    from tuner.workloads.registrations import BUILT_IN, Registrations
    from tuner.workloads.registry import Registry

    registered = Registrations.from_json(json.loads(options.workloads)) if options.workloads else BUILT_IN
    state = _State(tell, Registry(registered), Rehearsals(), requests)
    while True:
        request = json.loads(_next_request(requests))
        try:
            for message in _answer(request, state):
                tell(message)
        except Exception as error:
            tell(
                Broken(
                    cause="oom" if any(map(is_out_of_memory, (error, error.__cause__))) else "bug",
                    detail=f"{type(error).__name__}: {error}"[:2000],
                    traceback=traceback.format_exc()[-8000:],
                    trial_id=getattr(error, "trial_id", None),
                )
            )
        else:
            tell(Done())


def _next_request(requests: queue.Queue[bytes]) -> bytes:
    """Wait for a request; while none comes, import what the batched training of some models needs.

    Not in a thread: a request that imports modules of its own meanwhile would find some of PyTorch's half imported.
    """
    try:
        return requests.get(timeout=_IDLE_SECONDS)
    except queue.Empty:
        import torch._dynamo  # noqa: F401
    return requests.get()


def _answer(request: Mapping[str, Any], state: _State) -> Iterator[Any]:
    """The messages of one request, without the closing `Done`.

    Raises:
        ValueError: for a decision that nobody waits for.
    """
    import torch

    from service.launchers.protocol import ANSWERS, Catalogue
    from tuner.training.cohort import Cohort

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if request["kind"] == "describe":
        yield Catalogue(**state.registry.describe()._asdict())
    elif request["kind"] == "probe":
        yield _probe(request, state, device)
    elif request["kind"] == "check":
        from tuner.user_loop.check import check

        found = state.registry.create(request["workload"], request["parameters"])
        yield check(request["workload"], found, num_steps=request["num_steps"], device=device)
    elif request["kind"] in ANSWERS:
        raise ValueError(f"no part waits for {_named(request)}")
    else:
        yield from _train(Cohort.from_json(request["cohort"]), request, state, device)


def _probe(request: Mapping[str, Any], state: _State, device: str) -> Any:
    """What the probe of a class, or of a function, measures."""
    from tuner.training.cohort import ProbeMeasured
    from tuner.training.probe import NUM_BATCHES, measure_reference
    from tuner.workloads.function import FunctionWorkload

    workload = state.registry.create(request["workload"], request["parameters"])
    seeds, num_batches = request["seeds"], request.get("num_batches", NUM_BATCHES)
    if not isinstance(workload, FunctionWorkload):
        reference = measure_reference(workload, seeds, num_batches=num_batches, device=device)
        return ProbeMeasured(reference=reference)
    from tuner.user_loop.probe import measure_function

    num_steps = request.get("num_steps", _PROBE_STEPS)
    reference = measure_function(
        workload, seeds, num_steps=num_steps, num_batches=num_batches, tell=state.tell
    )
    return ProbeMeasured(reference=reference)


def _train(cohort: Any, request: Mapping[str, Any], state: _State, device: str) -> Iterator[Any]:
    """Train a cohort. A function's events are told from within, because it trains on this thread's stack."""
    from tuner.search.halving import halving
    from tuner.training.checkpoint import Checkpoints
    from tuner.training.loop import never_prune, train_cohort
    from tuner.workloads.function import FunctionWorkload

    workload = state.registry.create(cohort.workload, cohort.parameters)
    if isinstance(workload, FunctionWorkload):
        from tuner.user_loop.cohort import train_function_cohort

        train_function_cohort(cohort, workload, tell=state.tell)
        return
    is_part, folder = request.get("is_part", False), request.get("checkpoints")
    yield from train_cohort(
        cohort,
        workload,
        prune=never_prune if is_part else halving(cohort.rung_steps, cohort.clips),
        decide=partial(_decision, state.requests) if is_part else None,
        ask_path=partial(_path, state) if is_part else None,
        checkpoints=None if folder is None else Checkpoints(folder),
        device=device,
        rehearsals=state.rehearsals,
    )


def _path(state: _State) -> Any:
    """Ask how the other parts of the cohort train.

    Raises:
        ValueError: if something else arrives.
    """
    from service.launchers.protocol import PathWanted

    state.tell(PathWanted())
    return _answer_to({"kind": "path"}, state.requests)["path"]


def _decision(requests: queue.Queue[bytes], index: int) -> list[str]:
    """Wait for the decision of a rung; the worker takes as long as the other parts do.

    Raises:
        ValueError: if something else arrives.
    """
    return list(_answer_to({"kind": "decision", "index": index}, requests)["pruned"])


def _answer_to(wanted: Mapping[str, Any], requests: queue.Queue[bytes]) -> Mapping[str, Any]:
    """The next line, which must be what a part waits for.

    Raises:
        ValueError: if it is not.
    """
    line: Mapping[str, Any] = json.loads(requests.get())
    if not wanted.items() <= line.items():
        raise ValueError(f"a part that waits for {_named(wanted)} was sent {_named(line)}")
    return line


def _named(line: Mapping[str, Any]) -> str:
    """A line of the worker in words."""
    match line["kind"]:
        case "decision":
            return f"the decision of rung {line.get('index')}"
        case "path":
            return "the path of its cohort"
    return f"the request {line['kind']!r}"


if __name__ == "__main__":
    main()
