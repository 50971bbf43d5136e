"""Which addresses of the internet belong to everybody: what a server may connect to on a stranger's word.

An IPv6 address may carry an IPv4 one; then that one is judged. What is not known to be global is not.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Global by the standard library (some only in older versions), and yet nobody's server.
_NOBODYS: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments
            "192.88.99.0/24",  # relays of 6to4, deprecated
            "2001::/23",  # protocol assignments; Teredo inside is unwrapped before
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)
#: All of the global unicast space that was ever given out.
_UNICAST = IPv6Network("2000::/3")
#: NAT64 as everybody knows it; other prefixes (RFC 8215) lie outside the unicast space.
_NAT64 = IPv6Network("64:ff9b::/96")


def parse_address(text: str) -> Address | None:
    """An address from its usual spelling.

    Args:
        text: four decimal numbers or IPv6, without brackets; a zone (``%eth0``) makes it none.

    Returns:
        The address; None for anything else, octal and hexadecimal spellings included.
    """
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def unwrapped(address: Address) -> tuple[Address, ...]:
    """The addresses that traffic to this one may reach.

    Args:
        address: any.

    Returns:
        What is inside ``::ffff:``, NAT64, 6to4 and Teredo (server and client); the address itself otherwise.

    Example:
        >>> unwrapped(IPv6Address("::ffff:127.0.0.1"))
        (IPv4Address('127.0.0.1'),)
        >>> unwrapped(IPv6Address("2002:a00:1::1"))
        (IPv4Address('10.0.0.1'),)
    """
    if isinstance(address, IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    return (address,)


def is_public(address: Address) -> bool:
    """Whether an address, and everything inside it, is a server on the internet.

    Args:
        address: any.

    Returns:
        False for loopback, private, link-local (metadata services), shared, multicast, reserved, documentation and
        unspecified addresses, also inside another one.

    Source:
        IANA, special-purpose address registries for IPv4 and IPv6 (RFC 6890), through the standard library, and the
        exceptions above.

    Example:
        >>> is_public(IPv4Address("93.184.216.34")), is_public(IPv4Address("169.254.169.254"))
        (True, False)
    """
    return all(map(_is_global, unwrapped(address)))


def _is_global(address: Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return not any(address in network for network in _NOBODYS if network.version == address.version)
