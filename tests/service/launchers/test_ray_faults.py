"""What Ray's errors mean for a training, with errors as Ray builds them; real deaths are in the contract suite.

In a process of their own, because Ray leaves files open that the tests' process would be blamed for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from service.errors import TrainingError
from service.launchers.protocol import Broken, Ready, encode
from service.launchers.ray_driver import no_gpu, other_version
from service.launchers.ray_relay import Order, Placed, _broken

BUILT = """
import json
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import *
from service.launchers.ray_faults import broken_by

def died(text, **more):
    return ActorDiedError(ActorDiedErrorContext(actor_id=b"0" * 16, error_message=text, **more))

preempted = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
errors = {
    "task": RayTaskError("events", "Traceback ...", ValueError("no")),
    "init": ActorDiedError(RayTaskError("__init__", "Traceback ...", ImportError("no cliptune"))),
    "preempted": died("its node has died", node_death_info=preempted),
    "node": died("The actor died because its node has died. Node Id: 4a"),
    "process": died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"),
    "actor_memory": died("Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: Task was killed"),
    "memory": OutOfMemoryError("Task was killed due to the node running low on memory."),
    "unavailable": ActorUnavailableError("Socket closed", None),
    "environment": RuntimeEnvSetupError("pip failed"),
    "system": RaySystemError("lost"),
    "silent": EOFError("the relay ended without a last word"),
}
found = {name: broken_by(error, "10.0.0.7") for name, error in errors.items()}
print(json.dumps({name: [each.cause, each.detail] for name, each in found.items()}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", BUILT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("error", "cause", "says"),
    [
        ("task", "bug", "cliptune's own code failed on node 10.0.0.7"),
        ("init", "bug", "is this version installed there?"),
        ("preempted", "device_lost", "node 10.0.0.7 was preempted"),
        ("node", "device_lost", "node 10.0.0.7 died"),
        ("process", "device_lost", "the system killed the training's process on node 10.0.0.7"),
        ("actor_memory", "oom", "node 10.0.0.7 ran out of memory"),
        ("memory", "oom", "node 10.0.0.7 ran out of memory"),
        ("unavailable", "device_lost", "node 10.0.0.7 died, or can't be reached any more"),
        ("environment", "bug", "CLIPTUNE_RAY_RUNTIME_ENV (RuntimeEnvSetupError: "),
        ("system", "device_lost", "Ray lost the training on node 10.0.0.7"),
        ("silent", "device_lost", "without a last word"),
    ],
)
def test_each_error_has_its_cause(told: dict[str, list[str]], error: str, cause: str, says: str) -> None:
    assert told[error][0] == cause
    assert says in told[error][1]
    # Ray colours its texts for a terminal.
    assert "\x1b" not in told[error][1]


def test_another_version_on_the_node_is_named() -> None:
    assert other_version(Placed(node="10.0.0.7", version="0.1.0"), "0.1.0") is None
    broken = other_version(Placed(node="10.0.0.7", version="0.0.9"), "0.1.0")
    assert broken is not None and broken.cause == "bug"
    assert broken.detail.startswith(
        "node 10.0.0.7 has cliptune 0.0.9 and this worker 0.1.0: install the same"
    )


@pytest.mark.parametrize(
    ("device", "demand", "is_refused"),
    [
        ("cpu", {"GPU": 0.5}, True),
        ("cpu", {"GPU": 0.0}, False),
        ("cpu", {}, False),
        ("cuda", {"GPU": 1.0}, False),
    ],
)
def test_node_whose_gpu_pytorch_does_not_see_trains_nothing(
    device: str, demand: dict[str, float], is_refused: bool
) -> None:
    ready = Ready(pid=1, torch="2.13.0+cpu", device=device, threads=1, seconds=1.0)
    broken = no_gpu(encode(ready), Placed(node="10.0.0.7", version="0.1.0"), demand)
    assert (broken is not None) is is_refused
    if broken is not None:
        assert (broken.cause, "PyTorch 2.13.0+cpu sees none there" in broken.detail) == ("device_lost", True)


@pytest.mark.parametrize("cause", ["bug", "device_lost", "bad_output"])
def test_death_of_a_nodes_training_process_keeps_its_cause(cause: Any) -> None:
    error = TrainingError("the training process ended with exit code 7\nthe reason", cause=cause)
    detail = "the training process ended with exit code 7"
    assert _broken(error) == Broken(cause=cause, detail=detail, traceback="the reason")


def test_order_arrives_as_it_was_given() -> None:
    order = Order(
        program=("-m", "x"), threads=2, kill_grace_seconds=1.5, import_from=("a b",), also=("AWS_",)
    )
    assert Order.from_json(order.to_json()) == order
