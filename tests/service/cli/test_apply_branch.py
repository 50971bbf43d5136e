"""`cliptune apply --branch`: the change as a commit beside the work tree, with real git, and the text for a request."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.evidence import Verdict

NAME = "cliptune/threshold"
APPLY = ("apply", "conf/train.yaml", "--offline", "--branch", NAME)


@pytest.fixture
def git(repository: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A repository with one commit, a lock that recommends 0.42, and 1.0 in the config."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=repository.root, capture_output=True, text=True, check=True
        )
        return done.stdout.removesuffix("\n")

    (repository.root / ".git").rmdir()
    run("init", "--quiet", "--initial-branch=main")
    run("config", "user.name", "Ada")
    run("config", "user.email", "ada@example.org")
    repository.config("1.0  # by hand", "conf/train.yaml")
    repository.keep("conf/train.yaml")
    run("add", ".")
    run("commit", "--quiet", "--message", "Train")
    return run


def state(git: Callable[..., str], root: Path) -> tuple[Any, ...]:
    """All that must stay: branches, the index byte by byte, and the work tree."""
    index = root / ".git" / "index"
    files = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }
    return git("for-each-ref"), git("status", "--porcelain"), index.read_bytes(), files


def test_change_is_committed_beside_the_work_tree(git: Any, repository: Any, cliptune: Any) -> None:
    (repository.root / "other.txt").write_text("mine\n")
    git("add", "other.txt")
    (repository.root / "more.txt").write_text("untracked\n")
    refs, *rest = state(git, repository.root)
    ended = cliptune(*APPLY)
    assert ended.code == 0, ended.err
    commit = git("rev-parse", NAME)
    assert ended.err == f"cliptune: branch {NAME} at {commit[:12]}; push it with: git push origin {NAME}\n"
    new_refs, *new_rest = state(git, repository.root)
    assert new_rest == rest, "index and work tree are as they were"
    assert new_refs != refs and git("rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert git("rev-parse", f"{NAME}^") == git("rev-parse", "HEAD")
    assert git("diff", "--numstat", "main", NAME) == "1\t1\tconf/train.yaml"
    assert git("show", f"{NAME}:conf/train.yaml").endswith("max_grad_norm: 0.42  # by hand")
    message = git("log", "-1", "--format=%an <%ae>%n%B", NAME)
    assert message.startswith("Ada <ada@example.org>\nSet max_grad_norm to 0.42 in conf/train.yaml\n\n")
    assert "is outside the recommended 0.25 to 0.71" in " ".join(message.split())
    assert max(map(len, message.splitlines())) <= 100
    # The branch checks out as any other, and its config is as it should be.
    git("stash", "--quiet")
    git("checkout", "--quiet", NAME)
    assert cliptune("check", "--offline").code == 0


def test_body_has_diff_verdict_range_evidence_and_study(git: Any, repository: Any, cliptune: Any) -> None:
    repository.config("2.0", "conf/train.yaml")
    git("commit", "--quiet", "--all", "--message", "Two")
    out = cliptune(*APPLY).out
    assert out.startswith(
        "### Clip threshold worse than recommended\n\nmax&#95;grad&#95;norm 2.0 is outside "
    )
    for words in (
        "| value now | <code>2.0</code> (regression) |",
        "| recommended | <code>0.42</code> |",
        "| as good | 0.25 to 0.71 |",
        "+0.3 (95 % interval +0.2 to +0.4, 6 paired fresh seeds; above 0 is worse)",
        "| study | <code>0f5a1b2c</code> of charlm-rnn, 6 seeds |",
        "```diff\n--- a/conf/train.yaml\n+++ b/conf/train.yaml\n",
        "\n-max_grad_norm: 2.0\n+max_grad_norm: 0.42\n```\n",
    ):
        assert words in out, words


def test_body_goes_to_a_file(git: Any, repository: Any, cliptune: Any) -> None:
    ended = cliptune(*APPLY, "--body", "out/body.md")
    assert (ended.code, ended.out) == (0, "")
    assert (repository.root / "out" / "body.md").read_text().startswith("### Clip threshold ")
    refused = cliptune("apply", "conf/train.yaml", "--offline", "--branch", "other", "--body", "conf")
    assert refused.code == 2 and "can't be written" in " ".join(refused.err.split())
    assert "other" not in git("for-each-ref"), "no branch without its text"
    alone = cliptune("apply", "conf/train.yaml", "--offline", "--body", "body.md")
    assert alone.code == 2 and "give --branch NAME too" in " ".join(alone.err.split())


def test_second_run_finds_the_branch_of_the_first(git: Any, repository: Any, cliptune: Any) -> None:
    first = cliptune(*APPLY)
    tip = git("rev-parse", NAME)
    again = cliptune(*APPLY)
    assert (again.code, again.out) == (0, first.out)
    assert again.err == f"cliptune: already applied: the branch {NAME} holds this change\n"
    # Work on main goes on, and so does what the branch proposes.
    (repository.root / "more.txt").write_text("more\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "More")
    assert "already applied" in cliptune(*APPLY).err
    assert git("rev-parse", NAME) == tip


def test_dry_run_makes_nothing(git: Any, repository: Any, cliptune: Any) -> None:
    before = state(git, repository.root)
    objects = git("count-objects", "-v")
    ended = cliptune(*APPLY, "--dry-run")
    assert ended.code == 0 and "```diff\n" in ended.out
    assert f"the branch {NAME} would be made, with the commit:\n\nSet max_grad_norm to 0.42" in ended.err
    assert state(git, repository.root) == before and git("count-objects", "-v") == objects


def test_detached_head_and_a_subfolder_will_do(
    git: Any, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("checkout", "--quiet", "--detach")
    monkeypatch.chdir(repository.root / "conf")
    assert cliptune("apply", "train.yaml", "--offline", "--branch", NAME).code == 0
    assert git("diff", "--numstat", "HEAD", NAME) == "1\t1\tconf/train.yaml"


def test_line_ends_are_committed_as_the_repository_has_them(git: Any, repository: Any, cliptune: Any) -> None:
    (repository.root / ".gitattributes").write_text("*.yaml text eol=crlf\n")
    path = repository.root / "conf" / "train.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    git("add", ".")
    git("commit", "--quiet", "--message", "Windows")
    assert cliptune(*APPLY).code == 0
    assert git("diff", "--numstat", "HEAD", NAME) == "1\t1\tconf/train.yaml"
    assert "\r" not in git("cat-file", "blob", f"{NAME}:conf/train.yaml")


def test_mode_and_odd_names_stay(git: Any, repository: Any, cliptune: Any) -> None:
    name = "a [b]*/\u00e4 x/:(top)train.yaml"
    repository.config("1.0", name).chmod(0o755)
    (repository.root / "a [b]*" / "other").write_text("stays\n")
    repository.keep(name)
    git("add", ".")
    git("commit", "--quiet", "--message", "Odd")
    assert cliptune("apply", name, "--offline", "--branch", NAME).code == 0
    changed = git("diff-tree", "-r", "-z", "HEAD", NAME)
    assert changed.startswith(":100755 100755 ") and changed.endswith(f" M\0{name}\0")
    assert changed.count("\0") == 2


def test_hooks_stay_out_and_the_message_is_utf_8(git: Any, repository: Any, cliptune: Any) -> None:
    name = "\u00e4.yaml"
    repository.config("1.0", name)
    repository.keep(name)
    git("add", ".")
    git("commit", "--quiet", "--message", "More")
    git("config", "i18n.commitEncoding", "latin1")
    hook = repository.root / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    ended = cliptune("apply", name, "--offline", "--branch", NAME)
    assert ended.code == 0, ended.err
    commit = git("cat-file", "commit", NAME)
    assert f"in {name}\n" in commit and "\nencoding " not in commit


# ---- what is refused ----


def other_branch(git: Any, root: Path) -> None:
    git("branch", NAME)


def branch_in_the_way(git: Any, root: Path) -> None:
    git("branch", "cliptune")


def more_on_the_branch(git: Any, root: Path) -> None:
    git("checkout", "--quiet", "-b", NAME)
    path = root / "conf" / "train.yaml"
    path.write_text(path.read_text().replace("1.0", "0.42"))
    (root / "more.txt").write_text("more\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "Both")
    git("checkout", "--quiet", "main")


def changed_file(git: Any, root: Path) -> None:
    path = root / "conf" / "train.yaml"
    path.write_text(path.read_text() + "seed: 1\n")


def staged_change(git: Any, root: Path) -> None:
    path = root / "conf" / "train.yaml"
    before = path.read_bytes()
    changed_file(git, root)
    git("add", ".")
    path.write_bytes(before)


def hidden_change(git: Any, root: Path) -> None:
    git("update-index", "--assume-unchanged", "conf/train.yaml")
    changed_file(git, root)


def untracked_file(git: Any, root: Path) -> None:
    git("rm", "--quiet", "--cached", "conf/train.yaml")
    git("commit", "--quiet", "--message", "Out")


def link(git: Any, root: Path) -> None:
    path = root / "conf" / "train.yaml"
    path.rename(root / "conf" / "base.yaml")
    path.symlink_to("base.yaml")
    git("add", ".")
    git("commit", "--quiet", "--message", "Link")


def nobody(git: Any, root: Path) -> None:
    git("config", "--unset", "user.email")


def no_repository(git: Any, root: Path) -> None:
    (root / ".git").rename(root.parent / "away")
    (root / ".git").mkdir()


def no_commit(git: Any, root: Path) -> None:
    git("checkout", "--quiet", "--orphan", "new")


def no_git(git: Any, root: Path) -> None:
    os.environ["PATH"] = str(root)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (other_branch, "branch_exists"),
        (more_on_the_branch, "branch_exists"),
        (branch_in_the_way, "git_failed"),
        (changed_file, "file_not_committed"),
        (staged_change, "file_not_committed"),
        (hidden_change, "file_not_committed"),
        (untracked_file, "file_not_committed"),
        (link, "file_not_committed"),
        (nobody, "no_git_identity"),
        (no_repository, "no_repository"),
        (no_commit, "no_repository"),
        (no_git, "git_failed"),
    ],
)
def test_what_can_not_be_proposed_is_refused(
    git: Any, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch, spoil: Any, code: str
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    spoil(git, repository.root)
    has_repository = code != "no_repository" and spoil is not no_git
    before = state(git, repository.root) if has_repository else None
    ended = cliptune(*APPLY)
    assert (ended.code, ended.out) == (2, "") and ended.err.endswith(f"[{code}]\n"), ended.err
    if has_repository:
        assert state(git, repository.root) == before


@pytest.mark.parametrize("name", ["-x", "HEAD", "a..b", "a b", "@{-1}", "a.lock", "/a", "a\n"])
def test_name_that_git_refuses_is_refused(git: Any, repository: Any, cliptune: Any, name: str) -> None:
    before = state(git, repository.root)
    ended = cliptune("apply", "conf/train.yaml", "--offline", f"--branch={name}")
    assert (ended.code, ended.out) == (2, "") and ended.err.endswith("[invalid_branch]\n")
    assert state(git, repository.root) == before


def test_nothing_to_apply_makes_no_branch(git: Any, repository: Any, cliptune: Any) -> None:
    repository.keep("conf/train.yaml", verdict=Verdict.NO_DIFFERENCE, setting="none")
    ended = cliptune(*APPLY)
    assert ended.code == 0 and "nothing to apply" in ended.err
    assert NAME not in git("for-each-ref")


def test_hostile_text_is_text_in_message_and_body(git: Any, repository: Any, cliptune: Any) -> None:
    path = repository.root / "conf" / "train.yaml"
    path.write_text("# ``` <script>\n" + path.read_text().replace("by hand", "```` @everyone"))
    git("commit", "--quiet", "--all", "--message", "Fences")
    repository.keep(
        "conf/train.yaml", workload="w\n::error::x", study_url="https://x.example/`)](javascript:a"
    )
    out = cliptune(*APPLY).out
    assert out.count("`````") == 2, "the fence is longer than any in the diff"
    assert "\n::error::" not in out and "](javascript" not in out
    message = git("log", "-1", "--format=%B", NAME)
    assert "\n::error::" not in message
