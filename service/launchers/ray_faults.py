"""What a failure of Ray means for a training: whose fault it is, and a sentence. Decisions, no Ray.

Errors are told apart by the names of their classes and, where one class stands for several things, by Ray's text. A
node, a preemption or a process that the system killed take a device away, which costs a training nothing but a
relaunch; only what this program's own code on the node raises is a bug.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from service.launchers.protocol import Broken

#: Words of Ray for a process that its memory monitor killed, and for a node that is gone.
_OUT_OF_MEMORY = ("NODE_OUT_OF_MEMORY", "running low on memory")
_NODE_DIED = ("its node has died", "its node was terminated", "NodeDiedError")
_LONGEST = 2_000
#: Ray colours its texts for a terminal.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def broken_by(error: BaseException, node: str | None) -> Broken:
    """What to tell of a request that Ray ended.

    Args:
        error: what Ray raised.
        node: address of the node that the training was on; None if it was on none yet.

    Returns:
        The message; its traceback is Ray's own text.
    """
    kinds = {each.__name__ for each in type(error).__mro__}
    text = _COLOUR.sub("", str(error))
    cause: Literal["bug", "oom", "device_lost"]
    where = "a node that it had not reached" if node is None else f"node {node}"
    if "RuntimeEnvSetupError" in kinds:
        cause, detail = "bug", "a node could not set up the runtime environment of CLIPTUNE_RAY_RUNTIME_ENV"
    elif "RayTaskError" in kinds or getattr(error, "actor_init_failed", False):
        cause, detail = "bug", f"cliptune's own code failed on {where}; is this version installed there?"
    elif "OutOfMemoryError" in kinds or any(words in text for words in _OUT_OF_MEMORY):
        cause, detail = "oom", f"Ray's memory monitor killed the training: {where} ran out of memory"
    elif getattr(error, "preempted", False):
        cause, detail = "device_lost", f"{where} was preempted"
    elif "ActorUnavailableError" in kinds:
        # The connection broke, seconds before the cluster has a verdict; that is not waited for.
        cause, detail = "device_lost", f"{where} died, or can't be reached any more"
    elif any(words in text for words in _NODE_DIED):
        cause, detail = "device_lost", f"{where} died"
    elif "ActorDiedError" in kinds:
        cause, detail = "device_lost", f"the system killed the training's process on {where}"
    else:
        cause, detail = "device_lost", f"Ray lost the training on {where}"
    first = text.strip().partition("\n")[0]
    return Broken(
        cause=cause,
        detail=f"{detail} ({type(error).__name__}: {first})"[:_LONGEST],
        traceback=text[-8_000:],
    )


def waiting_for(
    demand: Mapping[str, float], nodes: Sequence[Mapping[str, float]], free: Mapping[str, float]
) -> str:
    """Why a request is not running yet.

    Args:
        demand: what it asks for, as ``{"CPU": 1, "GPU": 0.5}``.
        nodes: what each node of the cluster has.
        free: what is free, over all nodes.

    Returns:
        A sentence.

    Example:
        >>> waiting_for({"CPU": 1.0, "GPU": 1.0}, [{"CPU": 8.0}], {"CPU": 8.0})
        'no node of the cluster has 1 CPU and 1 GPU: it waits for one to join'
        >>> waiting_for({"CPU": 1.0}, [{"CPU": 2.0}], {})
        'every node with 1 CPU is busy'
        >>> waiting_for({"CPU": 1.0}, [{"CPU": 2.0}], {"CPU": 2.0})
        'a node prepares a process for it, or what is free lies on several nodes'
    """
    wanted = {name: amount for name, amount in demand.items() if amount}
    words = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())

    def has(resources: Mapping[str, float]) -> bool:
        return all(resources.get(name, 0.0) >= amount for name, amount in wanted.items())

    if not any(map(has, nodes)):
        return f"no node of the cluster has {words or 'room'}: it waits for one to join"
    if not has(free):
        return f"every node with {words} is busy"
    return "a node prepares a process for it, or what is free lies on several nodes"
