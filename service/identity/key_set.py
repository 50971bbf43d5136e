"""An issuer's public keys (RFC 7517), and whether one of them signed a token.

Only keys that fit one of our algorithms are kept: RSA of 2048 to 8192 bits for RS256, P-256 for ES256, meant for
signatures. Which algorithm a key verifies is the key's property and never the token's wish, so that a public key is
not taken for a shared secret. An id that two fitting keys have in common names neither of them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry, extract_compact, validate_compact

from service.identity.token import ALGORITHMS, Token, untrusted

PublicKey = RSAKey | ECKey

_MAX_KEYS = 100
_RSA_BITS = range(2048, 8193)
#: Headers that are not known are left alone, as RFC 7515 wants it; critical ones were refused before.
_REGISTRY = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)


class KeySet:
    """The usable keys of one issuer.

    Args:
        document: what its ``jwks_uri`` answered.

    Raises:
        ValueError: if that is no key set.
    """

    def __init__(self, document: Any) -> None:
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
            raise ValueError(f"it must be a JSON object with up to {_MAX_KEYS} keys")
        self._keys: dict[tuple[str, str], list[PublicKey]] = {}
        for given in listed:
            found = _usable(given) if isinstance(given, dict) else None
            if found is not None:
                key_id, algorithm, key = found
                self._keys.setdefault((key_id, algorithm), []).append(key)

    def find(self, key_id: str, algorithm: str) -> list[PublicKey]:
        """The keys under an id that verify an algorithm: one, none if it is unknown, several if it is ambiguous."""
        return self._keys.get((key_id, algorithm), [])


def require_signature(token: Token, key: PublicKey) -> None:
    """Refuse a token that a key did not sign.

    Args:
        token: as it was read.
        key: of its issuer.

    Raises:
        UnauthorizedError: ``token_untrusted``.
    """
    try:
        is_signed = validate_compact(
            extract_compact(token.text.encode("ascii"), registry=_REGISTRY), key, registry=_REGISTRY
        )
    except (JoseError, ValueError, TypeError):
        is_signed = False
    if not is_signed:
        untrusted(
            f"was not signed by the key {token.key_id!a} of {token.issuer}, or was changed: get a new one"
        )


def _usable(given: Mapping[str, Any]) -> tuple[str, str, PublicKey] | None:
    """A key's id, its algorithm and the key; None for one that verifies no token."""
    key_id, kind = given.get("kid"), given.get("kty")
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(kind) if isinstance(kind, str) else None
    operations = given.get("key_ops", ["verify"])
    if (
        not isinstance(key_id, str)
        or algorithm is None
        or given.get("use", "sig") != "sig"
        or given.get("alg", algorithm) != algorithm
        or not isinstance(operations, list)
        or "verify" not in operations
    ):
        return None
    try:
        # Its public numbers alone, so that nothing else an issuer writes there has an effect.
        if algorithm == "RS256":
            if _num_bits(given["n"]) not in _RSA_BITS:
                return None
            return key_id, algorithm, RSAKey.import_key({"kty": "RSA", "n": given["n"], "e": given["e"]})
        if given["crv"] != "P-256":
            return None
        point = {"kty": "EC", "crv": "P-256", "x": given["x"], "y": given["y"]}
        return key_id, algorithm, ECKey.import_key(point)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _num_bits(number: str) -> int:
    raw = base64.urlsafe_b64decode(number + "=" * (-len(number) % 4))
    return int.from_bytes(raw, "big").bit_length()
