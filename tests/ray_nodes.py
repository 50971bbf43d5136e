"""A Ray cluster of several nodes on this machine: its head has no CPU unless it is alone, its nodes have one each.

It is held by a process of its own (this file, run as a program), so that nothing of Ray is loaded into the tests'.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: Nothing is put into the object store but what Ray itself wants: its smallest size.
STORE_BYTES = 80_000_000


class RayNodes:
    """A cluster for the time of a ``with`` block.

    Args:
        folder: for its token.
        is_secure: whether it has token authentication.
        head_cpus: CPUs of the head.
        port: of the head; 0 is a free one.

    Attributes:
        address: of its head.
        environment: what a process needs to attach.
    """

    def __init__(self, folder: Path, *, is_secure: bool = True, head_cpus: int = 0, port: int = 0) -> None:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            "RAY_AUTH_MODE": "token" if is_secure else "disabled",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._head = (str(head_cpus), str(port))
        self._names: list[str] = []

    def __enter__(self) -> RayNodes:
        # Paths of sockets are short ones.
        self._folder = tempfile.mkdtemp(prefix="ray-")
        self._host = subprocess.Popen(
            [sys.executable, __file__, self._folder, *self._head],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | self.environment,
        )
        self.address = self._hear()["address"]
        return self

    def __exit__(self, *error: object) -> None:
        assert self._host.stdin is not None and self._host.stdout is not None
        self._host.stdin.close()
        self._host.stdout.close()
        self._host.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def have(self, number: int) -> None:
        """Let nodes with one CPU, and a GPU that is none, join until there are as many."""
        while len(self._names) < number:
            self._names.append(self._ask("add")["name"])

    def kill(self, name: str) -> None:
        """Kill a node, with everything on it, by SIGKILL."""
        self._names.remove(name)
        self._ask("kill", name=name)

    def kill_all(self) -> None:
        """Kill every node but the head."""
        for name in list(self._names):
            self.kill(name)

    def kill_head(self) -> None:
        """Kill the head and the control store on it."""
        self._ask("kill_head")

    def preempt(self, name: str) -> None:
        """Tell the cluster that a node is taken away, and kill it."""
        self._names.remove(name)
        self._ask("preempt", name=name)

    def node_of(self, pid: int) -> str:
        """The node on which a training process runs: a relay started it, and the node's raylet the relay."""
        raylet = _parent(_parent(pid))
        return next(name for name, found in self._ask("raylets")["raylets"].items() if found == raylet)

    def demand(self) -> list[dict[str, float]]:
        """What the cluster's autoscaler is told that somebody waits for."""
        return self._ask("demand")["demand"]

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        assert self._host.stdin is not None
        self._host.stdin.write(json.dumps({"what": what} | more).encode() + b"\n")
        self._host.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._host.stdout is not None
        # Ray writes to standard output too.
        while not (line := self._host.stdout.readline()).startswith(b'{"answer"'):
            assert line, "the cluster ended"
        return json.loads(line)["answer"]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main(folder: str, head_cpus: str, port: str) -> None:
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.cluster_utils import Cluster
    from ray.core.generated import autoscaler_pb2

    head = {"num_cpus": int(head_cpus), "include_dashboard": False, "temp_dir": folder}
    if int(port):
        head["gcs_server_port"] = int(port)
    cluster = Cluster(
        initialize_head=True,
        head_node_args=head | {"object_store_memory": STORE_BYTES, "include_log_monitor": False},
    )
    nodes: dict[str, Any] = {}
    control = GcsClient(address=cluster.address)

    def answer(**document: Any) -> None:
        print(json.dumps({"answer": document}), flush=True)

    answer(address=cluster.address)
    for line in sys.stdin:
        request = json.loads(line)
        found = nodes.get(request.get("name", ""))
        match request["what"]:
            case "add":
                # Ray takes the GPU's existence from who starts the node.
                node = cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES)
                nodes[node.node_id] = node
                answer(name=node.node_id)
            case "kill":
                cluster.remove_node(nodes.pop(request["name"]), allow_graceful=False)
                answer()
            case "kill_head":
                cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
                answer()
                # Nothing is left that it could take leave of.
                os._exit(0)
            case "preempt":
                reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                deadline = int((time.time() + 60) * 1000)
                is_accepted, why_not = control.drain_node(found.node_id, reason, "spot", deadline)
                assert is_accepted, why_not
                cluster.remove_node(nodes.pop(request["name"]), allow_graceful=False)
                answer()
            case "raylets":
                answer(
                    raylets={
                        name: each.all_processes["raylet"][0].process.pid for name, each in nodes.items()
                    }
                )
            case "demand":
                demands = get_cluster_status(cluster.address).resource_demands
                asked = [each.bundles_by_count for each in demands.ray_task_actor_demand]
                answer(
                    demand=[
                        dict(one.bundle) for bundles in asked for one in bundles for _ in range(one.count)
                    ]
                )
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
