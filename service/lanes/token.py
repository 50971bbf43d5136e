"""Lease tokens: what proves that a process holds a lane. Shown once, kept as a SHA-256, dead with the lease."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Self

#: Seed, fence, and 32 random bytes in URL-safe Base64.
_FORM = re.compile(r"([0-9]{1,9})\.([0-9]{1,18})\.([0-9A-Za-z_-]{43})")
#: Compared with where no digest is kept, so that a dead lease costs what a wrong token costs.
_NOBODY = "0" * 64


@dataclass(frozen=True)
class LeaseToken:
    """One lease of one lane of the trial that the request names.

    Attributes:
        seed: training seed of the lane.
        fence: number of the lease, larger than that of every earlier lease of the lane.
        secret: 32 random bytes as text.
    """

    seed: int
    fence: int
    secret: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form that `str` writes.

        Args:
            text: what a caller sent.

        Returns:
            The token.

        Raises:
            ValueError: if it can't be one.

        Example:
            >>> LeaseToken.parse("2.7." + 43 * "A").fence
            7
            >>> LeaseToken.parse("hunter2")
            Traceback (most recent call last):
            ...
            ValueError: must be the lease_token that trials:ask answered, whole and without quotes
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("must be the lease_token that trials:ask answered, whole and without quotes")
        seed, fence, secret = match.groups()
        return cls(int(seed), int(fence), secret)

    def __str__(self) -> str:
        return f"{self.seed}.{self.fence}.{self.secret}"

    def proves(self, fence: int, digest: str | None) -> bool:
        """Whether this is the token of a lane's newest lease.

        Args:
            fence: of the lane's row.
            digest: its ``token_sha256``; None if that lease was reaped.
        """
        matches = hmac.compare_digest(digest_of(self.secret), digest or _NOBODY)
        return matches and fence == self.fence


def draw_secret() -> str:
    """A new secret; the database knows the fence that completes the token."""
    return secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """What is kept of a secret: its SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()
