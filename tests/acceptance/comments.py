"""A code host's interface for comments, as far as the action uses it, on a real socket."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: A status by which the server answers with what is no HTTP.
NO_HTTP = 0


class Comments(ThreadingHTTPServer):
    """Comments of one pull request, those of others first; ``status`` is what every request is answered with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, str]] = []
        self.status = 200
        self.location = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def write(self, body: str, *, kind: str = "Bot", association: str = "NONE") -> int:
        self.kept.append(
            {
                "id": len(self.kept) + 1,
                "body": body,
                "user": {"type": kind},
                "author_association": association,
            }
        )
        return len(self.kept)


class _Handler(BaseHTTPRequestHandler):
    server: Comments

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        size, page = int(query["per_page"][0]), int(query["page"][0])
        self._answer(200, self.server.kept[size * (page - 1) : size * page])

    def do_POST(self) -> None:
        assert self.path == "/repos/octo/nets/issues/7/comments"
        if self._may(201):
            self.server.write(self._body())
            self._answer(201, self.server.kept[-1])

    def do_PATCH(self) -> None:
        found = re.fullmatch(r"/repos/octo/nets/issues/comments/(\d+)", self.path)
        assert found is not None, self.path
        if self._may(200):
            comment = self.server.kept[int(found[1]) - 1]
            comment["body"] = self._body()
            self._answer(200, comment)

    def _may(self, status: int) -> bool:
        if self.server.status < 300:
            return True
        self._answer(status, {})
        return False

    def _body(self) -> str:
        return str(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"])

    def _answer(self, status: int, document: Any) -> None:
        self.server.calls.append((self.command, self.path, self.headers["Authorization"]))
        if self.server.status == NO_HTTP:
            self.wfile.write(b"good morning\r\n\r\n")
            return
        content = json.dumps(document).encode()
        self.send_response(status if self.server.status < 300 else self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        del arguments


@contextmanager
def comments_served() -> Iterator[Comments]:
    with Comments() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
