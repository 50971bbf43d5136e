"""How a command finds the service: the address and the access key, from the environment or from ``home``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import UnauthorizedError
from service.settings import KEY_FILE, Settings, load_settings

if TYPE_CHECKING:
    from service.client import Client

ADDRESS_FILE = "service.json"


def connect(url: str = "") -> Client:
    """A client for the service that the settings point at.

    Args:
        url: wins over CLIPTUNE_URL, which wins over the service that runs from ``home``.

    Returns:
        The client; no request was made yet.

    Raises:
        SettingsError: if a CLIPTUNE_ variable is wrong.
        UnauthorizedError: if there is no access key.
    """
    from service.client import Client

    settings = load_settings()
    return Client(url or settings.url or served_url(settings), access_key(settings))


def access_key(settings: Settings) -> str:
    """CLIPTUNE_API_KEY, or the key kept in ``home``.

    Args:
        settings: of this process.

    Returns:
        The key in clear.

    Raises:
        UnauthorizedError: if there is neither.
    """
    key = settings.api_key.get_secret_value()
    if key:
        return key
    file = settings.home_path / KEY_FILE
    try:
        return file.read_text().strip()
    except OSError:
        raise UnauthorizedError(
            f"no access key: set CLIPTUNE_API_KEY, or run `cliptune serve` once, which keeps one in {file}",
            code="key_missing",
        ) from None


def served_url(settings: Settings) -> str:
    """Address of the service that runs from ``home``, else the default address."""
    try:
        return str(json.loads((settings.home_path / ADDRESS_FILE).read_text())["url"])
    except (OSError, ValueError, KeyError):
        return f"http://127.0.0.1:{settings.port}"


def write_address(home: Path, url: str) -> Path:
    """Leave the running service's address where `served_url` finds it.

    Args:
        home: an existing folder.
        url: where the service listens.

    Returns:
        The file, for the caller to remove.
    """
    file = home / ADDRESS_FILE
    # Whole or not at all: others read it while it is written.
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps({"url": url}) + "\n")
    beside.replace(file)
    return file
