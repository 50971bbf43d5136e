"""Where a webhook may go: the form of its URL, and the address that its host has at the moment of sending.

https on a port of the list, no user name, a host spelled as everybody spells it; then every address of the host must
be public. What the operator allows by name or network may be private and may be http. Nothing here opens a connection.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from service.errors import InvalidRequestError, SettingsError
from service.schemas.webhooks import MAX_WEBHOOK_URL
from service.webhooks.address import Address, Network, is_public, parse_address, unwrapped

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
#: Parts that some resolvers read as (part of) an IPv4 address: decimal, octal, hexadecimal.
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_MAX_HOST = 253


class WebhookRefusedError(InvalidRequestError):
    """A webhook may not go there; ``reason`` is the sentence without the URL."""

    code = "webhook_url_refused"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"url {reason}", errors=[{"detail": reason, "pointer": "/url"}])


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the operator allows beyond public https.

    Attributes:
        hosts: names that may have private addresses and be http.
        networks: addresses that may be used although they are private, and by http.
        ports: ports that any webhook may use.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset({443, 8443})

    @classmethod
    def parse(cls, allowed: str, ports: str) -> Allowance:
        """Read the settings CLIPTUNE_WEBHOOK_ALLOW and CLIPTUNE_WEBHOOK_PORTS.

        Args:
            allowed: names, addresses and networks (CIDR), separated by commas; may be empty.
            ports: numbers, separated by commas.

        Returns:
            The allowance.

        Raises:
            SettingsError: if an entry is none of these.

        Example:
            >>> Allowance.parse("hooks.internal, 10.1.0.0/16", "443").networks
            (IPv4Network('10.1.0.0/16'),)
        """
        hosts, networks = set(), []
        for entry in filter(None, (each.strip().lower() for each in allowed.split(","))):
            network = _read_network(entry)
            if network is not None:
                networks.append(network)
            elif _is_name(entry):
                hosts.add(entry)
            else:
                raise SettingsError(
                    f"CLIPTUNE_WEBHOOK_ALLOW has {entry!r}: write host names, addresses or networks such as "
                    "10.1.0.0/16, separated by commas, without a port"
                )
        return cls(frozenset(hosts), tuple(networks), _read_ports(ports))

    def has_host(self, host: str) -> bool:
        """Whether the operator named this host."""
        return host in self.hosts

    def has_address(self, address: Address) -> bool:
        """Whether the operator's networks hold an address, and all that is inside it."""
        return all(any(_holds(network, each) for network in self.networks) for each in unwrapped(address))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart, its form checked.

    Attributes:
        scheme: ``https``, or ``http`` where the operator may have allowed it.
        host: a name in lower case, or an address without brackets.
        port: the TCP port.
        path: what is asked for, with the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def address(self) -> Address | None:
        """The host, if it is an address."""
        return parse_address(self.host)

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target(url: str, allowance: Allowance) -> Target:
    """Check a URL's form; no name is looked up.

    Args:
        url: as a tenant gave it.
        allowance: the operator's.

    Returns:
        The target.

    Raises:
        WebhookRefusedError: if no webhook may go there, whatever its host's addresses are.

    Example:
        >>> parse_target("https://Example.org/hook?a=b", Allowance())
        Target(scheme='https', host='example.org', port=443, path='/hook?a=b')
        >>> parse_target("https://127.0.0.1/", Allowance())
        Traceback (most recent call last):
        ...
        service.webhooks.target.WebhookRefusedError: url has an address that is not public: ...
    """
    if len(url) > MAX_WEBHOOK_URL or not (url.isascii() and url.isprintable()) or " " in url or "\\" in url:
        raise WebhookRefusedError(
            f"must be at most {MAX_WEBHOOK_URL} printable ASCII characters without spaces and backslashes: write a "
            "host in another script as xn--..., other characters as %.."
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise WebhookRefusedError("is not a URL: write https://HOST/PATH") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise WebhookRefusedError(f"has the scheme {parts.scheme[:20]!r}: write https://HOST/PATH")
    if "@" in parts.netloc:
        raise WebhookRefusedError("carries a user name or password: take it out, the signature is the proof")
    if "#" in url:
        raise WebhookRefusedError("has a fragment, which is never sent: take out # and what follows")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    target = Target(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, path)
    _refuse_host(target, allowance, is_bracketed="[" in parts.netloc)
    if target.port not in allowance.ports and (target.scheme, target.port) != ("http", 80):
        listed = ", ".join(map(str, sorted(allowance.ports)))
        raise WebhookRefusedError(
            f"has the port {target.port}; this server allows {listed}: use one of them, or ask the operator to extend "
            "CLIPTUNE_WEBHOOK_PORTS"
        )
    return target


def _refuse_host(target: Target, allowance: Allowance, *, is_bracketed: bool) -> None:
    address = target.address
    if address is None and (is_bracketed or not _is_name(target.host)):
        raise WebhookRefusedError(
            f"has the host {target.host[:80]!r}: write a name, four decimal numbers, or IPv6 in brackets"
        )
    if address is None:
        is_local = target.host == "localhost" or target.host.endswith(".localhost")
        is_allowed = allowance.has_host(target.host)
        if is_local and not (is_allowed or allowance.networks):
            raise WebhookRefusedError(_not_public())
        # Whether a name lies in an allowed network is known when it is looked up.
        is_http_possible = is_allowed or bool(allowance.networks)
    else:
        is_allowed = allowance.has_address(address)
        if not (is_allowed or is_public(address)):
            raise WebhookRefusedError(_not_public())
        is_http_possible = is_allowed
    if target.scheme == "http" and not is_http_possible:
        raise WebhookRefusedError(_not_https())


def choose_address(target: Target, found: Sequence[str], allowance: Allowance) -> str:
    """The address to connect to, if all that the host has may be used.

    All, because whoever answers for the name chooses their order.

    Args:
        target: whose host was looked up.
        found: its addresses.
        allowance: the operator's.

    Returns:
        The first one.

    Raises:
        WebhookRefusedError: if there is none, or one may not be used. The sentence names no address: the tenant must
            not learn what the names of the operator's network stand for.
    """
    if not found:
        raise WebhookRefusedError("has a host without an address: correct the name")
    named = allowance.has_host(target.host)
    for text in found:
        address = parse_address(text)
        is_allowed = named or (address is not None and allowance.has_address(address))
        if not is_allowed and (address is None or not is_public(address)):
            raise WebhookRefusedError(_not_public())
        if not is_allowed and target.scheme != "https":
            raise WebhookRefusedError(_not_https())
    return found[0]


def _not_public() -> str:
    return (
        "has an address that is not public: use one that is, or ask the operator to add the host to "
        "CLIPTUNE_WEBHOOK_ALLOW"
    )


def _not_https() -> str:
    return "is not https: use https, or ask the operator to add the host to CLIPTUNE_WEBHOOK_ALLOW"


def _is_name(host: str) -> bool:
    labels = host.split(".")
    is_spelled = len(host) <= _MAX_HOST and all(map(_LABEL.fullmatch, labels))
    return is_spelled and not _NUMBER.fullmatch(labels[-1])


def _holds(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def _read_network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry)
    except ValueError:
        return None


def _read_ports(text: str) -> frozenset[int]:
    ports = set()
    for entry in filter(None, (each.strip() for each in text.split(","))):
        if not (entry.isascii() and entry.isdigit() and 1 <= int(entry) <= 65535):
            raise SettingsError(
                f"CLIPTUNE_WEBHOOK_PORTS has {entry!r}: write numbers from 1 to 65535, separated by commas"
            )
        ports.add(int(entry))
    return frozenset(ports)
