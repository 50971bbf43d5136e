"""Which repository and commit a pipeline runs for: told by options, by the platform's variables, or by git.

On pull requests it is the head commit that counts. `GITHUB_SHA` is a merge commit there, another one each time the
target branch moves: under it nothing would ever be found again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.ci.git import GitError, ask_git, refusal
from service.errors import ServiceError

#: User and password before the host of an address, up to the last @ there; without a scheme only a user can be there.
_CREDENTIALS = re.compile(r"^(?:([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@|[^/@]*@)")


class OriginUnknownError(ServiceError):
    """Nothing tells which repository or commit this is."""

    code = "origin_unknown"


@dataclass(frozen=True)
class Origin:
    """What a submission belongs to.

    Attributes:
        repository: its name on the platform, or its address.
        commit: of the code.
        is_dirty: whether the work tree has changes that no commit has.
    """

    repository: str
    commit: str
    is_dirty: bool = False


def find_origin(
    environment: Mapping[str, str], folder: Path, *, repository: str = "", commit: str = ""
) -> Origin:
    """Find out which repository and commit this is.

    Args:
        environment: of the process.
        folder: in the repository.
        repository: what the caller says; wins.
        commit: likewise.

    Returns:
        The origin.

    Raises:
        OriginUnknownError: if one of the two is not known, with the option that tells it.
    """
    found = repository or _platform_repository(environment) or without_credentials(_remote(folder))
    if not found:
        raise OriginUnknownError(
            f"which repository this is is not known: {folder} has no git remote called origin{refusal(folder)}; give "
            "--repository NAME"
        )
    known = commit or _platform_commit(environment)
    if known:
        return Origin(found, known)
    head = _ask(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if not head:
        raise OriginUnknownError(
            f"which commit this is is not known: {folder} is in no git repository with a commit{refusal(folder)}; "
            "give --commit SHA"
        )
    changes = _ask(folder, "status", "--porcelain", "--untracked-files=no")
    return Origin(found, head, is_dirty=bool(changes))


def without_credentials(address: str) -> str:
    """A remote's address without user and password.

    Args:
        address: as git has it.

    Returns:
        The rest.

    Example:
        >>> without_credentials("https://ci:secret@git.example.org/team/model.git")
        'https://git.example.org/team/model.git'
        >>> without_credentials("git@git.example.org:team/model.git")
        'git.example.org:team/model.git'
    """
    return _CREDENTIALS.sub(lambda found: found[1] or "", address)


def _platform_repository(environment: Mapping[str, str]) -> str:
    """The repository as the platform's variables have it; empty where it has none."""
    return environment.get("GITHUB_REPOSITORY") or environment.get("CI_PROJECT_PATH", "")


def _platform_commit(environment: Mapping[str, str]) -> str:
    """The commit, likewise."""
    if environment.get("GITHUB_REPOSITORY"):
        return _github_commit(environment)
    merged = environment.get("CI_MERGE_REQUEST_SOURCE_BRANCH_SHA", "")
    return merged or environment.get("CI_COMMIT_SHA", "")


def _github_commit(environment: Mapping[str, str]) -> str:
    """The head of a pull request, else the commit that the workflow runs for.

    Raises:
        OriginUnknownError: if the event of a pull request can't be read.
    """
    if not environment.get("GITHUB_EVENT_NAME", "").startswith("pull_request"):
        return environment.get("GITHUB_SHA", "")
    path = environment.get("GITHUB_EVENT_PATH", "")
    try:
        head = json.loads(Path(path).read_bytes())["pull_request"]["head"]["sha"]
    except (OSError, ValueError, KeyError, TypeError):
        head = None
    if not isinstance(head, str) or not head:
        raise OriginUnknownError(
            f"which commit the pull request is at is not known: GITHUB_EVENT_PATH {path!r} names no file with "
            "pull_request.head.sha; give --commit SHA"
        )
    return head


def _remote(folder: Path) -> str:
    return _ask(folder, "config", "--get", "remote.origin.url") or ""


def _ask(folder: Path, *arguments: str) -> str | None:
    """`ask_git`.

    Raises:
        OriginUnknownError: if there is no git, which a pipeline can do without.
    """
    try:
        return ask_git(folder, *arguments)
    except GitError as error:
        raise OriginUnknownError(
            f"which repository and commit this is is not known: {error}, or give --repository NAME and --commit SHA"
        ) from None
