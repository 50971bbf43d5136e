"""An issuer of identity tokens on a real socket: discovery document, key set, and tokens signed with its keys."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

DISCOVERY = "/.well-known/openid-configuration"
KEY_SET = "/keys"
AUDIENCE = "https://cliptune.example"


class Answers:
    """A local HTTP server whose answers a test sets by path, and which counts what it was asked.

    Attributes:
        url: its address.
        bodies: by path without the query: bytes, or what is sent as JSON.
        statuses: by path; 200 where there is none.
        headers: by path, further ones.
        asked: how often, by path.
        requests: path with query, and headers, of each.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, Any] = {}
        self.statuses: dict[str, int] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                answers.asked[path] += 1
                answers.requests.append(
                    (self.path, {name.lower(): text for name, text in self.headers.items()})
                )
                body = answers.bodies.get(path, b"")
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(answers.statuses.get(path, 200 if path in answers.bodies else 404))
                for name, text in answers.headers.get(path, {}).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


@contextmanager
def answering() -> Iterator[Answers]:
    """A server within the block."""
    answers = Answers()
    thread = threading.Thread(target=answers.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield answers
    finally:
        answers.server.shutdown()
        answers.server.server_close()
        thread.join()


class LocalIssuer:
    """An issuer over a local server, with an RSA key ``rsa`` and a P-256 key ``ec``.

    Args:
        answers: its server.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.url = answers.url
        self.keys: dict[str, Any] = {
            "rsa": RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig", "alg": "RS256"}),
            "ec": ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"}),
        }
        self.restore()

    def restore(self) -> None:
        """Answer as an issuer does."""
        self.answers.bodies = {
            DISCOVERY: {"issuer": self.url, "jwks_uri": self.url + KEY_SET},
            KEY_SET: self.key_set(),
        }
        self.answers.statuses, self.answers.headers = {}, {}

    def key_set(self, **more: Any) -> dict[str, Any]:
        """The public keys, with further ones by their id."""
        return {"keys": [key.as_dict(private=False) for key in (*self.keys.values(), *more.values())]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a job on the main branch of octo/models claims; None takes a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "repo:octo/models:ref:refs/heads/main",
            "repository": "octo/models",
            "ref": "refs/heads/main",
            "iat": now - 10,
            "nbf": now - 10,
            "exp": now + 300,
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, key: str = "rsa", *, header: dict[str, Any] | None = None, signer: Any = None, **changes: Any
    ) -> str:
        """A signed token.

        Args:
            key: which of the issuer's keys.
            header: changes of it.
            signer: another key that signs, in its place.
            **changes: of the claims.

        Returns:
            The token.
        """
        algorithm = {"rsa": "RS256", "ec": "ES256"}[key]
        full = {"alg": algorithm, "kid": key} | (header or {})
        return jwt.encode(full, self.claims(**changes), signer or self.keys[key], algorithms=[full["alg"]])
