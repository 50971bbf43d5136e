"""A receiver of webhooks over real TLS, with an authority of its own."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.settings import Settings
from service.webhooks.post import Poster, trusting
from service.webhooks.target import Allowance

#: The receiver's name, which its certificate carries; it resolves to this machine where the test says so.
HOST = "hooks.test"


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and the server's certificate made by it."""

    ca_file: str
    chain_file: str


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    start = datetime.now(UTC) - timedelta(hours=1)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        started = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name)
        return (
            started.public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=2))
        )

    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = x509.KeyUsage(
        **dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        ),
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
    )
    ca = (
        builder(ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [
        x509.DNSName(HOST),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    server = (
        builder(server_name, server_key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(by, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "chain.pem").write_bytes(private + server.public_bytes(pem))
    return Authority(str(folder / "ca.pem"), str(folder / "chain.pem"))


@dataclass
class Request:
    """What came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A server that answers as the test says, one answer after the other, then 204.

    An answer is a status, or a function that gets the connection.
    """

    chain_file: str | None
    answers: list[int | Callable[[socket.socket], None]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._context = None
        if self.chain_file is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(self.chain_file)
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        scheme = "http" if self.chain_file is None else "https"
        return f"{scheme}://{HOST}:{self.port}/hook?a=b"

    def wait(self, seconds: float = 60) -> Request:
        """The next request that came."""
        assert self.came.acquire(timeout=seconds), "no request came"
        return self.requests[-1]

    def close(self) -> None:
        self.over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._threads:
            each.join(60)

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        with suppress(OSError), connection:
            if self._context is None:
                self._answer(connection)
                return
            with self._context.wrap_socket(connection, server_side=True) as encrypted:
                self._answer(encrypted)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(65536)
            if not received:
                return
            head += received
        top, _, body = head.partition(b"\r\n\r\n")
        line, *fields = top.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
        self.requests.append(Request(line, headers, body))
        answer = self.answers.pop(0) if self.answers else 204
        if callable(answer):
            self.came.release()
            answer(connection)
        else:
            connection.sendall(f"HTTP/1.1 {answer} Whatever\r\nContent-Length: 0\r\n\r\n".encode())
            self.came.release()


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    opened = Receiver(authority.chain_file)
    yield opened
    opened.close()


@pytest.fixture
def plain_receiver() -> Iterator[Receiver]:
    opened = Receiver(None)
    yield opened
    opened.close()


def here(host: str, port: int) -> list[str]:
    """A resolver for which every name is this machine."""
    del host, port
    return ["127.0.0.1"]


@pytest.fixture
def make_poster(authority: Authority) -> Callable[..., Poster]:
    """A poster that may reach the receiver and trusts its authority."""

    def make(receiver: Receiver, resolve: Any = here, **options: Any) -> Poster:
        # A busy machine may be slow.
        given = {"total_seconds": 60.0} | options
        return Poster(allowing(receiver), trusting(authority.ca_file), resolve=resolve, **given)

    return make


def allowing(receiver: Receiver) -> Allowance:
    return Allowance(hosts=frozenset({HOST}), ports=frozenset({receiver.port}))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """What the receivers of these tests need of the operator."""
    return Settings(home=tmp_path, webhook_allow=HOST)
