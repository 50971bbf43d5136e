"""Clients of the API in a process of their own: requests at a rate, and event streams that are read to their end.

Requests come at fixed moments whether or not the ones before were answered (an open loop): the time of each counts from
the moment at which it was due, so an API that falls behind shows as lateness. Of a stream the time from an event's
``created_at`` to its arrival counts; the database and the reader share one clock here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlalchemy import text

from service.db.session import Database

#: What people and pipelines ask, by share of the requests.
MIX = {"recommendation": 0.5, "study": 0.25, "list": 0.17, "submit": 0.08}
#: How long after the end of the measurement late answers are waited for, in seconds.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Load:
    """What the clients do.

    Attributes:
        url: of the database, to find out which studies run.
        address: of the API.
        key: an access key.
        connections: clients that send requests.
        per_second: requests per second, over all of them.
        mix: share of each kind of request.
        streams: further clients that follow a study each.
        spec: what is submitted.
        workloads: number of workloads that have recommendations.
        seconds: how long is measured.
    """

    url: str
    address: str
    key: str
    connections: int
    per_second: float
    mix: dict[str, float]
    streams: int
    spec: dict[str, Any]
    workloads: int
    seconds: float


def run(load: Load, ready: Barrier, answer: Connection) -> None:
    """The process: wait for the others, send, answer with what was measured."""
    clients = _Clients(load)
    ready.wait(timeout=300)
    asyncio.run(clients.run())
    answer.send({"taken": clients.taken, "errors": clients.errors, "overdue": clients.overdue})


class _Clients:
    def __init__(self, load: Load) -> None:
        self.taken: list[tuple[str, float]] = []
        self.errors: list[str] = []
        self.overdue = 0
        self._load = load
        self._host, _, port = load.address.removeprefix("http://").partition(":")
        self._port = int(port)
        self._studies: list[str] = []
        self._until = 0.0

    async def run(self) -> None:
        load = self._load
        self._find_studies()
        began = time.monotonic()
        self._until = began + load.seconds
        tasks = [asyncio.create_task(self._follow(number)) for number in range(load.streams)]
        queue: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        if load.per_second:
            tasks += [asyncio.create_task(self._send(queue)) for _ in range(load.connections)]
            await self._put_due(queue, began)
        else:
            await asyncio.sleep(load.seconds)
        self.overdue = queue.qsize()
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                self.errors.append(f"{type(ended).__name__}: {ended}")

    def _find_studies(self) -> None:
        database = Database(self._load.url, pool_size=1)
        with database.read() as session:
            found = session.execute(
                text(
                    "SELECT study_id FROM cliptune_jobs WHERE state = 'running' ORDER BY random() LIMIT 2000"
                )
            )
            self._studies = [row[0] for row in found]
        database.close()

    async def _put_due(self, queue: asyncio.Queue[tuple[float, str]], began: float) -> None:
        load = self._load
        kinds, weights = list(load.mix), list(load.mix.values())
        for number in itertools.count():
            at = began + number / load.per_second
            if at >= self._until:
                return
            if (wait := at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            queue.put_nowait((at, random.choices(kinds, weights)[0]))

    async def _send(self, queue: asyncio.Queue[tuple[float, str]]) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        while True:
            at, kind = await queue.get()
            writer.write(self._request(kind))
            status, length = await _read_head(reader)
            await reader.readexactly(length)
            if status >= 400:
                self.errors.append(f"{kind}: {status}")
            self.taken.append((kind, time.monotonic() - at))

    def _request(self, kind: str) -> bytes:
        target, body, more = "/v1/studies?limit=20", b"", ""
        if kind == "recommendation":
            target = f"/v1/recommendations?workload=workload-{random.randrange(self._load.workloads)}"
        elif kind == "study":
            target = f"/v1/studies/{random.choice(self._studies)}"
        elif kind == "submit":
            target = "/v1/studies"
            body = json.dumps(self._load.spec).encode()
            more = (
                f"Content-Type: application/json\r\nIdempotency-Key: {uuid.uuid4()}\r\n"
                f"Content-Length: {len(body)}\r\n"
            )
        return self._head("POST" if body else "GET", target, more) + body

    def _head(self, method: str, target: str, more: str = "") -> bytes:
        return (
            f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {self._load.key}\r\n"
            f"{more}\r\n"
        ).encode()

    async def _follow(self, number: int) -> None:
        """One stream after the other, each of a study that runs; what happened before it began is skipped."""
        await asyncio.sleep(random.uniform(0, 1.0))
        while time.monotonic() < self._until:
            study_id = self._studies[number % len(self._studies)]
            number += self._load.streams
            reader, writer = await asyncio.open_connection(self._host, self._port)
            began = time.time()
            writer.write(self._head("GET", f"/v1/studies/{study_id}/events"))
            status, _ = await _read_head(reader)
            if status != 200:
                self.errors.append(f"stream: {status}")
            await self._read_events(reader, began)
            writer.close()

    async def _read_events(self, reader: asyncio.StreamReader, began: float) -> None:
        while line := await reader.readline():
            if line.startswith(b"data:"):
                created = datetime.fromisoformat(json.loads(line[5:])["created_at"]).timestamp()
                if created > began:
                    self.taken.append(("stream", time.time() - created))
            elif line == b"0\r\n":
                return


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, int]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    _, _, after = head.partition(b"content-length: ")
    return status, int(after.split(b"\r\n")[0]) if after else 0
