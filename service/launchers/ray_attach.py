"""When it is safe to attach to a Ray cluster, and how a cluster that can't be used is named: decisions, no Ray.

Whoever reaches the ports of a Ray cluster runs code on it, so a worker attaches only with token authentication and a
version without known holes. `CLIPTUNE_RAY_ALLOW_INSECURE` overrides both. Each refusal has a sentence and a code.

Source:
    Token authentication, https://docs.ray.io/en/latest/ray-security/token-auth.html; CVE-2026-27482 and CVE-2025-62593
    for the version floor.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.errors import ServiceError

#: Below the first a cluster is refused, below the second it is warned of.
FLOOR, BETTER = (2, 54), (2, 59)
_MODE, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})")


class AttachError(ServiceError):
    """The cluster can't, or must not, be used.

    Attributes:
        code: ``ray_missing``, ``ray_address_refused``, ``ray_version_refused``, ``ray_authentication_off``,
            ``ray_token_refused``, ``ray_runtime_env_refused`` or ``ray_unreachable``.
    """

    code = "ray_unreachable"

    def __init__(self, detail: str, *, code: str) -> None:
        self.code = code
        super().__init__(detail)


def require_address(address: str) -> None:
    """Refuse an address that no worker can attach to.

    Args:
        address: CLIPTUNE_RAY_ADDRESS.

    Raises:
        AttachError: if it is neither ``auto`` nor HOST:PORT.

    Example:
        >>> require_address("ray-head:6379")
        >>> require_address("ray://ray-head:10001")
        Traceback (most recent call last):
        service.launchers.ray_attach.AttachError: CLIPTUNE_RAY_ADDRESS='ray://ray-head:10001' is one of Ray Client, ...
    """
    if address.startswith("ray://"):
        raise AttachError(
            f"CLIPTUNE_RAY_ADDRESS={address!r} is one of Ray Client, through which a lost connection is noticed too "
            "late; make the worker's machine a node of the cluster (ray start --address=HOST:6379 --num-cpus=0) and "
            "set it to HOST:6379 or auto",
            code="ray_address_refused",
        )
    match = _ADDRESS.fullmatch(address)
    if address != "auto" and (match is None or not 0 < int(match[1]) < 65536):
        raise AttachError(
            f"CLIPTUNE_RAY_ADDRESS={address!r} is no address of a cluster: write HOST:PORT of its head, as "
            "ray-head:6379, or auto",
            code="ray_address_refused",
        )


def ray_version() -> str:
    """The version of Ray that is installed; 0 if it was built from its sources."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return "0"


def require_version(version: str, *, allow_insecure: bool) -> str | None:
    """Refuse a version of Ray with known holes.

    Args:
        version: that is installed, as ``2.60.0``.
        allow_insecure: CLIPTUNE_RAY_ALLOW_INSECURE.

    Returns:
        What to warn of, or None.

    Raises:
        AttachError: if it is below 2.54.

    Example:
        >>> require_version("2.60.0", allow_insecure=False)
        >>> require_version("2.55.1", allow_insecure=False)
        'Ray 2.55.1 is installed; from 2.59 on clusters have token authentication unless it is turned off'
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < FLOOR and not allow_insecure:
        raise AttachError(
            f"Ray {version} is installed, and versions below {_dotted(FLOOR)} have known holes (CVE-2026-27482); "
            "install a newer one on every node of the cluster, or set CLIPTUNE_RAY_ALLOW_INSECURE=true",
            code="ray_version_refused",
        )
    if numbers < BETTER:
        return (
            f"Ray {version} is installed; from {_dotted(BETTER)} on clusters have token authentication unless it is "
            "turned off"
        )
    return None


def require_token(environ: Mapping[str, str], *, allow_insecure: bool) -> None:
    """Refuse to attach without a token that nobody else can read.

    Args:
        environ: variables of the process that attaches.
        allow_insecure: CLIPTUNE_RAY_ALLOW_INSECURE; a token that is named all the same is looked at.

    Raises:
        AttachError: if token authentication is off, or its file is not a private one.
    """
    if (mode := environ.get(_MODE, "")) != "token":
        if allow_insecure:
            return
        raise AttachError(
            f"{_MODE} is {mode!r}, so anybody who reaches the cluster could run code on it; set {_MODE}=token here and "
            "on every node of the cluster, or CLIPTUNE_RAY_ALLOW_INSECURE=true for a cluster that nobody else reaches",
            code="ray_authentication_off",
        )
    if not (path := environ.get(_TOKEN_PATH, "")):
        raise AttachError(
            f"{_TOKEN_PATH} is not set; set it to the file with the cluster's token",
            code="ray_token_refused",
        )
    if (reason := _why_not_private(Path(path))) is not None:
        raise AttachError(f"{_TOKEN_PATH}={path!r} {reason}", code="ray_token_refused")


def read_runtime_env(path: str) -> dict[str, Any]:
    """The runtime environment of the nodes' processes.

    Args:
        path: CLIPTUNE_RAY_RUNTIME_ENV; empty is none.

    Returns:
        What Ray is given.

    Raises:
        AttachError: if the file can't be read, or is not a JSON object.
    """
    if not path:
        return {}
    try:
        document = json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise AttachError(
            f"CLIPTUNE_RAY_RUNTIME_ENV={path!r} can't be read: {error}", code="ray_runtime_env_refused"
        ) from None
    if not isinstance(document, dict):
        raise AttachError(
            f'CLIPTUNE_RAY_RUNTIME_ENV={path!r} holds {document!r}: write a JSON object, as {{"pip": ["my-package"]}}',
            code="ray_runtime_env_refused",
        )
    return document


def _why_not_private(path: Path) -> str | None:
    """Why a token must not be read from a file, with the remedy; None if it may."""
    try:
        found = path.stat()
    except OSError as error:
        return f"can't be read: {error.strerror}; write the cluster's token there"
    if not stat.S_ISREG(found.st_mode):
        return "is no regular file; write the cluster's token into one"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid} and not to this one, {os.geteuid()}; copy it to a file of this user's"
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        return (
            f"has mode {stat.S_IMODE(found.st_mode):04o}, so that others may "
            f"{'read' if mode & 0o44 else 'use'} it; chmod 600 it"
        )
    if not found.st_size:
        return "is empty; write the cluster's token there"
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
