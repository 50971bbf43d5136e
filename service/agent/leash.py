"""Keep a command on a leash: start it, tell how it ended, and end it when whoever holds the leash is gone.

Run as a file of its own, with the standard library alone, so that nothing in the folder it is started in can stand in
for one of its modules:

    python -I leash.py HOLD TELL GRACE COMMAND...

It leads a session of its own, and the command runs in its process group. HOLD is the end of a pipe that nobody writes
to: when its other end closes, which the kernel does even for a holder that was killed with SIGKILL, the group gets
SIGTERM and, GRACE seconds later, SIGKILL. TELL takes one line: ``exit STATUS`` (negative for a signal), or
``error NUMBER`` if the command can't be started. Then it waits to be killed with its group: as long as it lives, no
other group can have the same number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType


def main() -> None:
    """Run the command of the arguments."""
    hold, tell, grace = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler and not SIG_IGN, which the command would inherit.
        signal.signal(number, _leave_it_to_the_command)
    threading.Thread(target=_end_with_holder, args=(hold, grace), daemon=True).start()
    running: subprocess.Popen[bytes] | OSError
    try:
        running = subprocess.Popen(sys.argv[4:], stdin=subprocess.DEVNULL)
    except OSError as error:
        running = error
    # So that the output ends when the command's does.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    _tell(tell, f"error {running.errno}\n" if isinstance(running, OSError) else f"exit {running.wait()}\n")
    while True:
        signal.pause()


def _tell(descriptor: int, line: str) -> None:
    # The holder may be gone.
    with contextlib.suppress(OSError):
        os.write(descriptor, line.encode())
        os.close(descriptor)


def _end_with_holder(hold: int, grace: float) -> None:
    while os.read(hold, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(grace)
    os.killpg(0, signal.SIGKILL)


def _leave_it_to_the_command(number: int, frame: FrameType | None) -> None:
    del number, frame


if __name__ == "__main__":
    main()
