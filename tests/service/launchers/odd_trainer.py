"""A training program that does the odd thing its request names: a real process that speaks the protocol, no torch."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def main() -> None:
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=read, args=(lines,), daemon=True).start()
    events = os.fdopen(int(sys.argv[sys.argv.index("--events") + 1]), "wb")

    def tell(document: object) -> None:
        events.write(json.dumps(document).encode() + b"\n")
        events.flush()

    def tell_number(number: int) -> None:
        tell({"kind": "progress", "lane_steps": number, "total_lane_steps": number, "step": 0})

    tell({"kind": "ready", "pid": os.getpid(), "torch": "0", "device": "cpu", "threads": 1, "seconds": 0.0})
    while True:
        request = json.loads(lines.get())
        match request.get("behaviour", request["kind"]):
            case "describe":
                names = [each["name"] for each in json.loads(sys.argv[sys.argv.index("--workloads") + 1])]
                if "ends" in names:
                    os._exit(7)
                about = {"description": "-", "objective": "loss", "parameters": []}
                tell({"kind": "pending", "seconds": 2.0, "detail": "every node with 1 CPU is busy"})
                tell({"kind": "catalogue", "workloads": [{"name": name} | about for name in names]})
                tell({"kind": "done"})
            case "exit":
                print("the reason is here", flush=True)
                os._exit(7)
            case "last_words":
                own = os.getpid()
                closed, say_closed = os.pipe()
                if os.fork() == 0:
                    os.close(events.fileno())
                    os.write(say_closed, b".")
                    while os.getppid() == own:
                        time.sleep(0.01)
                    os.write(1, b"the reason is here\n")
                    os._exit(0)
                os.read(closed, 1)
                os._exit(7)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bad_json":
                events.write(b"Segmentation fault\n")
                events.flush()
            case "wrong_type":
                tell({"kind": "progress", "lane_steps": "many", "total_lane_steps": 2, "step": 1})
            case "nan":
                values = [{"trial_id": "a", "seed": 0, "value": float("nan")}]
                tell({"kind": "rung", "index": 0, "step": 1, "pruned": [], "values": values})
            case "long_line":
                tell({"kind": "done", "noise": "x" * 5_000_000})
            case "closes":
                events.close()
                time.sleep(600)
            case "noise":
                for _ in range(20_000):
                    print("noise " * 20)
                tell({"kind": "done"})
            case "counts":
                for number in range(request["up_to"]):
                    tell_number(number)
                tell({"kind": "done"})
            case "parts":
                for index in range(3):
                    tell({"kind": "part", "index": index, "step": index, "values": []})
                    decision = json.loads(lines.get())
                    tell(
                        {
                            "kind": "rung",
                            "index": index,
                            "step": 0,
                            "values": [],
                            "pruned": decision["pruned"],
                        }
                    )
                tell({"kind": "done"})
            case "environment":
                print(" ".join(f"{name}={value}" for name, value in os.environ.items()), flush=True)
                os._exit(1)
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                tell_number(subprocess.Popen(SLEEP).pid)
            case "grandchild":
                tell_number(subprocess.Popen(SLEEP).pid)
            case "leaves":
                tell_number(subprocess.Popen(SLEEP).pid)
                open("a file", "w").close()
                tell({"kind": "done"})
            case "litters":
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
            case "orphaned_pipe":
                # A forked helper keeps the pipe open after its parent was killed.
                subprocess.Popen(SLEEP, close_fds=False)
                os.kill(os.getpid(), signal.SIGKILL)
            case "exception":
                broken = {"cause": "bug", "detail": "ValueError: no", "traceback": "line 1", "trial_id": None}
                tell({"kind": "broken"} | broken)
            case "hangs":
                time.sleep(600)


def read(lines: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(3)


if __name__ == "__main__":
    main()
