"""A process that has imported what takes seconds, and forks for each program instead of importing it again.

A program runs in a process of its own, with its own arguments, environment, folder and output, and ends as every
program does; only modules are there already. One program runs at a time: a program that starts others of these has a
warm process of its own. What is about the import itself, or about signals, starts a real one.

As a program, ``python warm.py --serve SOCKET`` is that process, and ``python warm.py SOCKET MODULES FILE ...`` runs a
file in a fork of it, for those who start their programs by a command line.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MAX_REQUEST_BYTES = 1 << 17
_STREAMS = (1, 2)


@dataclass(frozen=True)
class Warm:
    """A warm process, reached through a socket in a folder of its own."""

    address: str

    def run(
        self,
        file: Path,
        *arguments: str,
        modules: Sequence[str] = ("torch",),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a file of Python as ``python FILE ARGUMENTS`` would; ``modules`` are imported before the fork."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = _ask(
                self.address,
                [str(file), *arguments],
                modules,
                dict(os.environ if env is None else env),
                str(cwd or Path.cwd()),
                (out.fileno(), err.fileno()),
                timeout,
            )
            for stream in (out, err):
                stream.seek(0)
            return subprocess.CompletedProcess([str(file), *arguments], status, out.read(), err.read())

    def command(self, file: Path, *, modules: Sequence[str]) -> tuple[str, ...]:
        """What stands for ``python FILE`` on a command line."""
        return (sys.executable, __file__, self.address, ",".join(modules), str(file))


@contextmanager
def warm_process(*options: str) -> Iterator[Warm]:
    """Start one; ``options`` are the interpreter's own, such as ``-W error``."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address = str(Path(folder) / "s")
        command = [sys.executable, *options, __file__, "--serve", address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield Warm(address)
            finally:
                process.stdin.close()


def _ask(
    address: str,
    command: Sequence[str],
    modules: Sequence[str],
    environment: Mapping[str, str],
    folder: str,
    streams: tuple[int, int],
    timeout: float | None,
) -> int:
    request = json.dumps({"command": command, "modules": modules, "env": environment, "cwd": folder}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(timeout)
        asking.connect(address)
        socket.send_fds(asking, [request], streams)
        return int(asking.recv(100) or b"-1")


def _serve(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        # Standard input closes with whoever started this, however they ended.
        while select.select([listener, sys.stdin], [], [])[0] == [listener]:
            asking = listener.accept()[0]
            request, streams, _, _ = socket.recv_fds(asking, _MAX_REQUEST_BYTES, len(_STREAMS))
            asked = json.loads(request)
            for name in asked["modules"]:
                importlib.import_module(name)
            child = os.fork()
            if child == 0:
                listener.close()
                asking.close()
                _become(asked, streams)
                return
            for stream in streams:
                os.close(stream)
            ended = os.pidfd_open(child)
            # Who asked says no more: if it can be read first, it has gone, and nobody waits for the program.
            if ended not in select.select([ended, asking], [], [])[0]:
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            with suppress(OSError):
                asking.send(str(os.waitstatus_to_exitcode(status)).encode())
            os.close(ended)
            asking.close()


def _become(asked: Mapping[str, object], streams: Sequence[int]) -> None:
    """The program itself; an exception ends the process with its trace and 1, as it does everywhere."""
    command, environment = asked["command"], asked["env"]
    assert isinstance(command, list) and isinstance(environment, dict)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    for given, standard in zip(streams, _STREAMS, strict=True):
        os.dup2(given, standard)
        os.close(given)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(str(asked["cwd"]))
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(sys.argv[2])
    else:
        address, names, *program = sys.argv[1:]
        sys.exit(_ask(address, program, names.split(","), dict(os.environ), str(Path.cwd()), _STREAMS, None))
