"""A change to one file as a commit on a branch of its own, made beside the work tree: nothing that the user has moves.

`plan_branch` looks and refuses; `make_branch` writes objects and, as the last step, the branch, which must not be there
yet. Work tree, index and the current branch are only read. No hook runs, and nothing is pushed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.ci.git import ask_git, git, refusal
from service.ci.rewrite import Rewrite
from service.errors import ServiceError

_REGULAR = ("100644", "100755")
#: An identity that was configured, not one that git made up from the machine's names.
_OWN_NAME = ("-c", "user.useConfigOnly=true")


class BranchError(ServiceError):
    """Base: a branch with the change can't be made, and nothing was."""


class InvalidBranchError(BranchError, ValueError):
    """Git takes the name for no branch."""

    code = "invalid_branch"


class BranchExistsError(BranchError):
    """The name belongs to a branch that holds something else."""

    code = "branch_exists"


class FileNotCommittedError(BranchError):
    """The file is not in the newest commit as it is in the work tree."""

    code = "file_not_committed"


class NoRepositoryError(BranchError):
    """The file is in no git repository with a commit."""

    code = "no_repository"


class NoIdentityError(BranchError):
    """Git does not know whom to name as the author."""

    code = "no_git_identity"


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """A branch that can be made.

    Attributes:
        root: of the work tree.
        name: of the branch.
        base: the commit that it begins at.
        file: path in the repository.
        content: of the file on the branch, as it would be in the work tree.
        is_there: whether a branch of that name holds exactly this change.
    """

    root: Path
    name: str
    base: str
    file: str
    content: bytes
    is_there: bool


def plan_branch(rewrite: Rewrite, name: str) -> BranchPlan:
    """Look whether a change can go on a branch of its own.

    Args:
        rewrite: the change.
        name: of the branch.

    Returns:
        The plan.

    Raises:
        NoRepositoryError: if there is no repository, or no commit in it.
        InvalidBranchError: if the name is none.
        FileNotCommittedError: if the file is not in the newest commit as it was looked at.
        BranchExistsError: if there is such a branch, with anything else in it.
        NoIdentityError: if there is nobody to commit as.
        GitError: if git refuses.
    """
    folder = rewrite.path.absolute().parent
    top = ask_git(folder, "rev-parse", "--show-toplevel")
    base = ask_git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if not top or not base:
        raise NoRepositoryError(
            f"{rewrite.path} is in no git repository with a commit{refusal(folder)}: leave out --branch to change the "
            "file itself"
        )
    root = Path(top)
    if ask_git(root, "check-ref-format", "--branch", name) != name:
        raise InvalidBranchError(
            f"--branch {name!r} is no name that git takes: use letters, digits, -, _ and / as in cliptune/threshold"
        )
    file = (ask_git(folder, "rev-parse", "--show-prefix") or "") + rewrite.path.name
    _require_committed(root, base, file, rewrite)
    _require_identity(root)
    blob = git(root, "hash-object", f"--path={file}", "--stdin", content=rewrite.after)
    return BranchPlan(
        root=root,
        name=name,
        base=base,
        file=file,
        content=rewrite.after,
        is_there=_is_there(root, name, base, file, blob),
    )


def make_branch(plan: BranchPlan, message: str) -> str:
    """Commit the change on its branch.

    Args:
        plan: of a branch that is not there.
        message: of the commit.

    Returns:
        Id of the commit.

    Raises:
        GitError: if git refuses, or somebody made the branch in the meantime; then there is no branch of ours.
    """
    root = plan.root
    blob = git(root, "hash-object", "-w", f"--path={plan.file}", "--stdin", content=plan.content)
    tree = _tree_with(root, plan.base, plan.file, blob)
    commit = git(root, *_OWN_NAME, "commit-tree", tree, "-p", plan.base, "-F", "-", content=message.encode())
    # An empty old value: the branch must not be there, whoever else makes one now.
    git(root, "update-ref", "-m", "cliptune apply", f"refs/heads/{plan.name}", commit, "")
    return commit


def _tree_with(root: Path, base: str, file: str, blob: str) -> str:
    """Id of a commit's tree with other content in one file: made folder by folder from the inside, without an index."""
    path, replaced = PurePosixPath(file), blob
    while path.name:
        parent = "" if path.parent == PurePosixPath() else str(path.parent)
        entries = git(root, "ls-tree", "-z", f"{base}:{parent}").split("\0")
        changed = [_with_id(each, path.name, replaced) for each in entries]
        replaced = git(root, "mktree", "-z", content=os.fsencode("\0".join(changed)))
        path = path.parent
    return replaced


def _with_id(entry: str, name: str, replaced: str) -> str:
    """An entry of a tree's listing; the one of that name with another id."""
    words, tab, found = entry.partition("\t")
    if found != name:
        return entry
    mode, kind, _ = words.split(" ")
    return f"{mode} {kind} {replaced}{tab}{found}"


def _require_committed(root: Path, base: str, file: str, rewrite: Rewrite) -> None:
    """Refuse a file that a commit, or the index, has not as it was looked at.

    Raises:
        FileNotCommittedError: if it has not.
    """
    committed = _entry(ask_git(root, "ls-tree", "-z", base, "--", file))
    staged = ask_git(root, "ls-files", "--stage", "-z", "--", file) or ""
    if committed is None:
        raise FileNotCommittedError(f"{rewrite.path} is in no commit: commit it first")
    mode, blob = committed
    if mode not in _REGULAR:
        raise FileNotCommittedError(f"{rewrite.path} is a link: name the file that it leads to")
    # With the repository's own filters for line ends: what a commit of the work tree would hold.
    seen = git(root, "hash-object", f"--path={file}", "--stdin", content=rewrite.before)
    if seen != blob or not staged.startswith(f"{mode} {blob} 0\t"):
        raise FileNotCommittedError(
            f"{rewrite.path} was changed since the newest commit: commit or stash the change first"
        )


def _entry(listed: str | None) -> tuple[str, str] | None:
    """Mode and id of the one file of a listing of a tree."""
    words = (listed or "").partition("\t")[0].split()
    return (words[0], words[2]) if len(words) == 3 else None


def _require_identity(root: Path) -> None:
    """Find somebody to commit as.

    Raises:
        NoIdentityError: if there is nobody.
    """
    for role in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        if not ask_git(root, *_OWN_NAME, "var", role):
            raise NoIdentityError(
                "git has no name or e-mail address to commit as: set user.name and user.email with `git config`"
            )


def _is_there(root: Path, name: str, base: str, file: str, blob: str) -> bool:
    """Whether a branch holds exactly this change; False without such a branch.

    That is one commit on top of this one, or of an earlier one, that puts this content into this file and touches
    nothing else: a job that runs every night finds what it made the night before.

    Raises:
        BranchExistsError: if there is a branch with something else.
    """
    tip = ask_git(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{name}^{{commit}}")
    if tip is None:
        return False
    parents = git(root, "rev-list", "--parents", "--max-count=1", tip).split()[1:]
    is_based = (
        len(parents) == 1 and ask_git(root, "merge-base", "--is-ancestor", parents[0], base) is not None
    )
    there = _entry(ask_git(root, "ls-tree", "-z", tip, "--", file))
    if is_based and there is not None and there[1] == blob:
        touched = git(root, "diff-tree", "-r", "--no-commit-id", "--name-only", "-z", parents[0], tip)
        if touched == f"{file}\0":
            return True
    raise BranchExistsError(
        f"the branch {name} is there and holds something else: delete it, or give --branch another name"
    )
