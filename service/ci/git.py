"""Questions to git, and what it is told to make: arguments as a list, never through a shell, and never a push."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from service.errors import ServiceError

#: The user's index is not refreshed, a file's name is no pattern, no hook runs, and a message is what Python encodes.
_GIT = (
    *("git", "--no-optional-locks", "--literal-pathspecs"),
    *("-c", f"core.hooksPath={os.devnull}", "-c", "i18n.commitEncoding=UTF-8"),
)


class GitError(ServiceError):
    """Git is not there, or refuses."""

    code = "git_failed"


def git(folder: Path, *arguments: str, content: bytes = b"") -> str:
    """Run git.

    Args:
        folder: where.
        *arguments: of git.
        content: on its standard input.

    Returns:
        What it printed, without the last line end; undecodable bytes as Python's file names have them.

    Raises:
        GitError: if it fails, with its own words.
    """
    done = _run(folder, arguments, content)
    if done.returncode:
        words = os.fsdecode(done.stderr).strip() or f"exit code {done.returncode}"
        verb = next(each for each in arguments if each[:1] != "-" and "=" not in each)
        raise GitError(f"`git {verb}` failed in {folder}: {words}")
    return os.fsdecode(done.stdout).removesuffix("\n")


def ask_git(folder: Path, *arguments: str) -> str | None:
    """Run git where a failure is an answer.

    Args:
        folder: where.
        *arguments: of git.

    Returns:
        What it printed; None if it failed.

    Raises:
        GitError: if there is no git.
    """
    done = _run(folder, arguments, b"")
    return None if done.returncode else os.fsdecode(done.stdout).removesuffix("\n")


def refusal(folder: Path) -> str:
    """Why git takes a folder for no repository: for a checkout that belongs to somebody else it has its own remedy.

    Args:
        folder: any.

    Returns:
        Git's words in parentheses after a blank; empty if it takes it for one.

    Raises:
        GitError: if there is no git.
    """
    done = _run(folder, ("rev-parse", "--git-dir"), b"")
    return f" (git: {' '.join(os.fsdecode(done.stderr).split())})" if done.returncode else ""


def _run(folder: Path, arguments: tuple[str, ...], content: bytes) -> subprocess.CompletedProcess[bytes]:
    """Git with these arguments.

    Raises:
        GitError: if there is no git.
    """
    try:
        return subprocess.run(
            [*_GIT, *arguments], cwd=folder, input=content, capture_output=True, check=False
        )
    except OSError as error:
        raise GitError(f"git can't be run: {error.strerror}; install it, or add it to the PATH") from None
