"""Server-side request forgery: wherever a webhook must not go, nothing is connected to. A listener proves it.

The listener accepts on the loopback address, IPv4 and IPv6, on a port that webhooks may use. A URL is given to the
whole way that a real one takes: form, lookup, choice of the address, connection.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import SettingsError
from service.webhooks.address import is_public, parse_address
from service.webhooks.post import Poster, PostError, resolve_host
from service.webhooks.target import Allowance, WebhookRefusedError, parse_target


@dataclass
class Listener:
    """Counts who connects."""

    connections: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = int(self._sockets[0].getsockname()[1])
        with suppress(OSError):
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self._threads = [threading.Thread(target=self._accept, args=(each,)) for each in self._sockets]
        for each in self._threads:
            each.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, address = listening.accept()
            except OSError:
                return
            self.connections.append(str(address))
            connection.close()

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    opened = Listener()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    return ssl.create_default_context()


#: Hosts as an attacker spells them; {} is the listener's port.
SPELLINGS = [
    "https://127.0.0.1:{}/",
    "https://127.0.0.2:{}/",
    "https://127.255.255.254:{}/",
    "https://127.1:{}/",  # short forms
    "https://127.0.1:{}/",
    "https://0:{}/",
    "https://0.0.0.0:{}/",
    "https://2130706433:{}/",  # decimal
    "https://017700000001:{}/",  # octal
    "https://0177.0.0.1:{}/",
    "https://0177.0.0.01:{}/",
    "https://127.0.0.01:{}/",
    "https://0x7f000001:{}/",  # hexadecimal
    "https://0x7f.0.0.1:{}/",
    "https://0x7f.1:{}/",
    "https://127.0.0.0x1:{}/",
    "https://0X7F000001:{}/",
    "https://127.0.0.1.:{}/",
    "https://127.0.0.1%00.example.org:{}/",
    "https://%31%32%37.0.0.1:{}/",
    "https://127%2e0%2e0%2e1:{}/",
    "https://[::1]:{}/",
    "https://[0:0:0:0:0:0:0:1]:{}/",
    "https://[::]:{}/",
    "https://[::ffff:127.0.0.1]:{}/",
    "https://[::ffff:7f00:1]:{}/",
    "https://[::ffff:0:127.0.0.1]:{}/",
    "https://[::127.0.0.1]:{}/",
    "https://[64:ff9b::127.0.0.1]:{}/",
    "https://[64:ff9b:1::127.0.0.1]:{}/",
    "https://[2002:7f00:1::1]:{}/",
    "https://[2001:0:7f00:1::]:{}/",
    "https://[2001:0:808:808:0:0:80ff:fffe]:{}/",  # Teredo: the client is 127.0.0.1
    "https://[fe80::1]:{}/",
    "https://[fe80::1%25lo]:{}/",
    "https://[::1%25lo]:{}/",
    "https://[127.0.0.1]:{}/",
    "https://[v1.127.0.0.1]:{}/",
    "https://[::1/:{}/",
    "https://::1:{}/",
    "https://localhost:{}/",
    "https://LOCALHOST:{}/",
    "https://localhost.:{}/",
    "https://x.localhost:{}/",
    "https://user@127.0.0.1:{}/",  # users
    "https://user:password@example.org:{}/",
    "https://example.org@127.0.0.1:{}/",
    "https://example.org:443@127.0.0.1:{}/",
    "https://example.org%40127.0.0.1:{}/",
    "https://@127.0.0.1:{}/",
    "https://127.0.0.1:{}#@example.org/",  # parsers that disagree
    "https://example.org:{}/#fragment",
    "https://127.0.0.1:{}\\@example.org/",
    "https://127.0.0.1:{}\\.example.org/",
    "https:\\\\127.0.0.1:{}/",
    "https:///127.0.0.1:{}/",
    "https:127.0.0.1:{}/",
    "//127.0.0.1:{}/",
    "127.0.0.1:{}",
    "https://127.0.0.1:{} .example.org/",
    "https://127.0.0.1:{}\t/",
    "https://127.0.0.1:{}/\r\nHost: example.org",
    "https://127.0.0.1:{}/\x00",
    " https://127.0.0.1:{}/",
    "https://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{}/",  # other scripts
    "https://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{}/",
    "https://127\u30020\u30020\u30021:{}/",
    "https://ex\u00e4mple.org:{}/",
    "http://127.0.0.1:{}/",  # schemes
    "http://example.org:{}/",
    "http://169.254.169.254/latest/meta-data/",
    "ftp://127.0.0.1:{}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{}/_",
    "unix:///run/docker.sock",
    "javascript:alert(1)",
    "HTTPS+unix://127.0.0.1:{}/",
    "https://169.254.169.254/latest/meta-data/",  # what clouds tell of themselves
    "https://[fd00:ec2::254]/",
    "https://[::ffff:169.254.169.254]/",
    "https://2852039166/",
    "https://example.org:22/",  # ports
    "https://example.org:25/",
    "https://example.org:80/",
    "https://example.org:0/",
    "https://example.org:65536/",
    "https://example.org:-1/",
    "https://example.org:4_43/",
    "https://example.org:443x/",
    "",
    "https://",
    "https://./",
    "https://-example.org/",
    f"https://{'a' * 64}.org/",
    f"https://{'a.' * 127}org/",
    f"https://example.org/{'a' * 2000}",
]

#: Addresses that a name may have and that belong to nobody on the internet.
_NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.8.8.8 169.254.0.1 169.254.169.254
172.16.0.1 172.31.255.254 192.0.0.1 192.0.0.8 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.254
198.18.0.1 198.19.255.254 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
:: ::1 ::2 ::7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:7f00:1 64:ff9b::a00:1 64:ff9b::a9fe:a9fe
64:ff9b:1::1 100::1 100:0:0:1::1 2001::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:a00:1::1 2002:c0a8:1::1
2002:a9fe:a9fe::1 2001:0:a00:1:0:0:f7f7:f7f7 2001:0:808:808:0:0:f5ff:fffe 3fff::1 4000::1 5f00::1 8000::1 fc00::1
fd00:ec2::254 fdff::1 fe00::1 fe80::1 febf::1 fec0::1 ff02::1 ff0e::1
"""
NOT_PUBLIC = _NOT_PUBLIC.split()

#: Public servers, some inside another address.
_PUBLIC = """
1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.167.255.255 192.169.0.1
223.255.255.1 2606:4700:4700::1111 2a00:1450:4001::1 2001:4860:4860::8888 2400:cb00::1 ::ffff:8.8.8.8 64:ff9b::808:808
2002:808:808::1 2001:0:808:808:0:0:f7f7:f7f7
"""
PUBLIC = _PUBLIC.split()


def try_to_post(
    url: str, listener: Listener, context: ssl.SSLContext, found: Sequence[str] | None = None
) -> None:
    """What the sender does with a webhook's URL."""
    allowance = Allowance(ports=frozenset({443, listener.port}))
    resolve = resolve_host if found is None else lambda host, port: list(found)
    target = parse_target(url, allowance)
    Poster(allowance, context, resolve=resolve).post(target, {}, b"{}")


def test_there_are_enough_cases() -> None:
    assert len(set(SPELLINGS)) >= 80 and len(set(NOT_PUBLIC)) >= 60


@pytest.mark.parametrize("url", SPELLINGS)
def test_a_spelling_is_refused_before_anything_is_looked_up(
    url: str, listener: Listener, context: ssl.SSLContext
) -> None:
    with pytest.raises(WebhookRefusedError) as caught:
        try_to_post(url.format(listener.port), listener, context, found=["127.0.0.1"])
    assert caught.value.code == "webhook_url_refused" and caught.value.errors[0]["pointer"] == "/url"
    assert not listener.connections


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_for_an_address_that_is_not_public_is_not_connected_to(
    address: str, listener: Listener, context: ssl.SSLContext
) -> None:
    """As a literal, as what a name resolves to, and hidden behind a public address."""
    parsed = parse_address(address)
    assert parsed is not None and not is_public(parsed)
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(WebhookRefusedError, match="not public"):
        parse_target(f"https://{literal}/", Allowance())
    for found in ([address], ["93.184.216.34", address], [address, "93.184.216.34"]):
        with pytest.raises(WebhookRefusedError, match="not public") as caught:
            try_to_post(f"https://example.org:{listener.port}/", listener, context, found)
        assert address not in str(caught.value)
    assert not listener.connections


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_one(address: str) -> None:
    parsed = parse_address(address)
    assert parsed is not None and is_public(parsed)


@pytest.mark.parametrize("found", [[], ["spam"], ["127.0.0.1 "], ["fe80::1%lo"], [""]])
def test_what_is_no_address_is_not_connected_to(
    found: list[str], listener: Listener, context: ssl.SSLContext
) -> None:
    with pytest.raises(WebhookRefusedError):
        try_to_post(f"https://example.org:{listener.port}/", listener, context, found)
    assert not listener.connections


def test_a_name_that_changes_its_address_is_asked_once(
    listener: Listener, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, every later one is this machine."""
    asked: list[str] = []
    connected: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> list[str]:
        del port
        asked.append(host)
        return ["93.184.216.34"] if len(asked) == 1 else ["127.0.0.1"]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        # Nothing leaves this machine; what counts is where it would have gone.
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    allowance = Allowance(ports=frozenset({listener.port}))
    target = parse_target(f"https://rebind.example.org:{listener.port}/", allowance)
    with pytest.raises(PostError):
        Poster(allowance, context, resolve=rebinding).post(target, {}, b"{}")
    assert asked == ["rebind.example.org"]
    assert connected == [("93.184.216.34", listener.port)]
    assert not listener.connections


def test_the_system_resolver_is_no_way_around(listener: Listener, context: ssl.SSLContext) -> None:
    """With an operator who allows some network, localhost is looked up, and still refused."""
    allowance = Allowance.parse("10.1.0.0/16", str(listener.port))
    target = parse_target(f"https://localhost:{listener.port}/", allowance)
    with pytest.raises(WebhookRefusedError, match="not public"):
        Poster(allowance, context).post(target, {}, b"{}")
    assert not listener.connections


def test_the_listener_counts(listener: Listener) -> None:
    """It would have noticed."""
    before = len(listener.connections)
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        assert connection.recv(1) == b""
    assert len(listener.connections) == before + 1
    listener.connections.clear()


@settings(max_examples=200)
@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="0123456789abcx.:[]%@/?#-_\\", max_size=40).map("https://".__add__),
        st.lists(
            st.sampled_from(["0x7f", "127", "0", "1", "[", "]", "::", "ffff", ".", ":443", "@", "/"])
        ).map(lambda parts: "https://" + "".join(parts)),
    )
)
def test_any_text_is_a_target_or_refused(url: str) -> None:
    """And what is a target leads to a name, or to an address that is public."""
    try:
        target = parse_target(url, Allowance())
    except WebhookRefusedError:
        return
    assert target.scheme == "https" and target.port in (443, 8443)
    assert target.address is None or is_public(target.address)
    assert not target.host.rpartition(".")[2].isdigit() or target.address is not None


# ---- what the operator allows ----


def test_the_operator_allows_hosts_and_networks() -> None:
    allowance = Allowance.parse("hooks.internal, 10.1.0.0/16,127.0.0.1 , fd00::/8", "443, 9000")
    assert allowance.ports == {443, 9000}
    for url in (
        "http://hooks.internal/x",
        "https://hooks.internal:9000/",
        "http://10.1.2.3/",
        "https://127.0.0.1:9000/",
        "https://[fd00::1]/",
        "https://[::ffff:10.1.2.3]/",
        "http://somewhere.internal/",  # decided when its address is known
    ):
        parse_target(url, allowance)
    for url in (
        "http://10.2.0.1/",
        "https://10.2.0.1/",
        "http://8.8.8.8/",
        "https://hooks.internal:22/",
        "http://hooks.internal:8080/",
        "https://[::ffff:10.2.2.3]/",
    ):
        with pytest.raises(WebhookRefusedError):
            parse_target(url, allowance)


def test_http_goes_to_allowed_addresses_alone(listener: Listener, context: ssl.SSLContext) -> None:
    allowance = Allowance.parse("10.1.0.0/16", str(listener.port))
    target = parse_target(f"http://somewhere.example.org:{listener.port}/", allowance)
    for found in (["93.184.216.34"], ["10.1.0.1", "93.184.216.34"], ["10.2.0.1"], ["127.0.0.1"]):
        poster = Poster(allowance, context, resolve=lambda host, port, found=found: found)
        with pytest.raises(WebhookRefusedError):
            poster.post(target, {}, b"{}")
    assert not listener.connections


@pytest.mark.parametrize(
    ("allowed", "ports", "words"),
    [
        ("https://x", "443", "CLIPTUNE_WEBHOOK_ALLOW has 'https://x'"),
        ("host:443", "443", "without a port"),
        ("10.0.0.1/8", "443", "networks such as"),
        ("0x7f.1", "443", "CLIPTUNE_WEBHOOK_ALLOW"),
        ("*.example.org", "443", "CLIPTUNE_WEBHOOK_ALLOW"),
        ("", "https", "CLIPTUNE_WEBHOOK_PORTS has 'https'"),
        ("", "0", "from 1 to 65535"),
        ("", "65536", "from 1 to 65535"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(allowed: str, ports: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Allowance.parse(allowed, ports)
