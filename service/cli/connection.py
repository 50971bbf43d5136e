"""How a command finds the service: the address and the access key, from the environment or from ``home``.

Who calls is, in this order: the key in CLIPTUNE_API_KEY; the identity token in CLIPTUNE_ID_TOKEN, which GitLab fills
in; an identity token of GitHub's runner, for a service whose address was given; the key kept in ``home``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import SettingsError, UnauthorizedError
from service.settings import KEY_FILE, Settings, load_settings

if TYPE_CHECKING:
    from service.client import Client
    from service.client.identity import GitHubIdentity

ADDRESS_FILE = "service.json"
#: What a job on GitHub finds in its environment if it may have identity tokens.
_GITHUB_URL = "ACTIONS_ID_TOKEN_REQUEST_URL"
_GITHUB_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"


def connect(url: str = "") -> Client:
    """A client for the service that the settings point at.

    Args:
        url: wins over CLIPTUNE_URL, which wins over the service that runs from ``home``.

    Returns:
        The client; no request was made yet.

    Raises:
        SettingsError: if a CLIPTUNE_ variable is wrong, or the address begins with neither http:// nor https://.
        UnauthorizedError: if there is no access key.
        UnavailableError: ``id_token_unavailable`` if GitHub's runner offers an identity token at an odd address.
    """
    from service.client import Client

    settings = load_settings()
    address = (url or settings.url).strip()
    if address and not address.lower().startswith(("http://", "https://")):
        # Not shown: it may be a key that was pasted into the wrong place.
        raise SettingsError(
            f"{'--url' if url else 'CLIPTUNE_URL'} is no address of a service: write all of it, as "
            "https://cliptune.example.org"
        )
    # A service that runs from home has its key there, and a pipeline that starts one for itself means that.
    if address and not _given(settings):
        identity = github_identity(os.environ, address)
        if identity is not None:
            return Client(address, "", identity=identity)
    return Client(address or served_url(settings), access_key(settings))


def github_identity(environment: Mapping[str, str], address: str) -> GitHubIdentity | None:
    """Identity tokens of the GitHub job that this process belongs to.

    Args:
        environment: of the process.
        address: of the service, which is the audience of the tokens.

    Returns:
        Their source; None outside of such a job, or where it lacks the permission ``id-token: write``.

    Raises:
        UnavailableError: ``id_token_unavailable`` if the runner's address is none.
    """
    if not environment.get(_GITHUB_URL) or not environment.get(_GITHUB_TOKEN):
        return None
    from service.client.identity import GitHubIdentity

    return GitHubIdentity(environment[_GITHUB_URL], environment[_GITHUB_TOKEN], address.rstrip("/"))


def _given(settings: Settings) -> str:
    """The key, or else the identity token, that the settings hold; empty if they hold none."""
    # A secret that was pasted into a pipeline often ends with a line end.
    return settings.api_key.get_secret_value().strip() or settings.id_token.get_secret_value().strip()


def access_key(settings: Settings) -> str:
    """CLIPTUNE_API_KEY, else CLIPTUNE_ID_TOKEN, else the key kept in ``home``.

    Args:
        settings: of this process.

    Returns:
        The key in clear.

    Raises:
        UnauthorizedError: if there is none.
    """
    key = _given(settings)
    if key:
        return key
    file = settings.home_path / KEY_FILE
    try:
        # What is no ASCII is refused as no key, not as a file that can't be read.
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        raise UnauthorizedError(
            f"no access key: set CLIPTUNE_API_KEY, or run `cliptune serve` once, which keeps one in {file}",
            code="key_missing",
        ) from None


def served_url(settings: Settings) -> str:
    """Address of the service that runs from ``home``, else the default address."""
    try:
        return str(json.loads((settings.home_path / ADDRESS_FILE).read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
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
