"""A training program that misbehaves in the way its first argument names; a real process, speaking the protocol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time


def main() -> None:
    behaviour = sys.argv[1]
    events = os.fdopen(int(sys.argv[sys.argv.index("--events") + 1]), "wb")

    def tell(document: object) -> None:
        events.write(json.dumps(document).encode() + b"\n")
        events.flush()

    tell({"kind": "ready", "pid": os.getpid(), "torch": "0", "device": "cpu", "threads": 1, "seconds": 0.0})
    if behaviour == "exit":
        print("the reason is here")
        sys.exit(7)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "bad_json":
        events.write(b"Segmentation fault\n")
        events.flush()
    if behaviour == "wrong_type":
        tell({"kind": "progress", "lane_steps": "many", "total_lane_steps": 2, "step": 1})
    if behaviour == "nan":
        tell(
            {
                "kind": "rung",
                "index": 0,
                "step": 1,
                "pruned": [],
                "values": [{"trial_id": "a", "seed": 0, "value": float("nan")}],
            }
        )
    if behaviour == "long_line":
        tell({"kind": "done", "noise": "x" * 5_000_000})
    if behaviour == "noise":
        for _ in range(20_000):
            print("noise " * 20)
        tell({"kind": "done"})
    if behaviour == "environment":
        print(" ".join(os.environ))
        sys.exit(1)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell({"kind": "done"})
    if behaviour == "grandchild":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        tell({"kind": "progress", "lane_steps": child.pid, "total_lane_steps": child.pid, "step": 0})
    if behaviour == "litters":
        # Leaves the process group, and goes on writing into the folder that is removed.
        code = (
            "import os, sys, time\n"
            "for name in range(3000):\n"
            "    os.makedirs(os.path.join(sys.argv[1], str(name)))\n"
            "    time.sleep(0.001)"
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, "-c", code, os.getcwd()], start_new_session=True, **quiet)
        while not os.path.exists("100"):
            time.sleep(0.01)
        tell({"kind": "done"})
    if behaviour == "orphaned_pipe":
        # A forked helper keeps the pipe open after its parent was killed.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "exception":
        sys.stdin.readline()
        tell(
            {
                "kind": "broken",
                "cause": "bug",
                "detail": "ValueError: no",
                "traceback": "line 1",
                "trial_id": None,
            }
        )
    time.sleep(600)


main()
