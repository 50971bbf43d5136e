"""The action's main step: `cliptune check`, `tune` or `apply` with the step's inputs, and what comes of it.

Every input comes as an environment variable ``INPUT_NAME`` and goes on as one argument of a command; no shell reads it.
The report goes to the job's summary and to a file, the values to ``GITHUB_OUTPUT``; a command that ends before it has a
report still leaves both.
"""

from __future__ import annotations

import html
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

#: Exit code of `cliptune tune` when its time is over, and what to wait if nothing is waited for.
TIMED_OUT, NO_TIME = 4, "0.01"
REFUSED, OUTAGE = 2, 3
#: What an `apply` that ends so makes of the output `status`.
STATUSES = {REFUSED: "refused", OUTAGE: "unavailable"}
#: Values that an input may have, the default first; others may be any text.
CHOICES = {
    "mode": ("check", "tune", "apply"),
    "fail-on": ("outside", "regression", "never"),
    "on-service-error": ("warn", "fail"),
    "offline": ("false", "true"),
    "write-lock": ("false", "true"),
    "wait": ("true", "false"),
    "comment": ("false", "true"),
}
#: Bytes of a report with what was applied, below the 65,536 characters of a comment; characters of a line of it.
REPORT_BYTES, LINE_CHARACTERS = 65_000, 500
#: First line of the report: by it the comment is found again.
MARKER = "<!-- cliptune-check -->"


class InputError(ValueError):
    """An input that can't be used."""


@dataclass(frozen=True)
class Inputs:
    """The step's inputs as they were given; `action.yml` says what each is."""

    mode: str
    config_file: str
    framework: str
    key: str
    workload: str
    spec: str
    fail_on: str
    tolerance: str
    on_service_error: str
    offline: str
    write_lock: str
    wait: str
    timeout_minutes: str
    comment: str
    server_url: str
    token: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Inputs:
        """The inputs of a step; an empty one, as a variable that nobody set, is the default.

        Raises:
            InputError: if one has none of its values or is no address, or if two contradict.
        """
        values = {
            each.name: environment.get(f"INPUT_{each.name.upper()}", "").strip() for each in fields(cls)
        }
        for name, choices in CHOICES.items():
            variable = name.replace("-", "_")
            values[variable] = value = values[variable] or choices[0]
            if value not in choices:
                raise InputError(f"{name} is {value!r}: use {' or '.join(choices)}")
        found = cls(**values)
        if found.server_url and not found.server_url.startswith(("https://", "http://")):
            raise InputError(
                f"server-url is {found.server_url!r}: write all of it, as https://cliptune.example.org"
            )
        if found.mode == "apply" and not found.files:
            raise InputError("mode apply needs config-file: name the files that may be changed, one a line")
        if found.mode == "tune" and found.offline == "true":
            raise InputError("mode tune asks the service: leave out offline")
        if found.mode == "tune" and not found.spec and not found.workload:
            raise InputError("mode tune needs spec, a JSON file with the study, or workload")
        return found

    @property
    def files(self) -> list[str]:
        """Configs and folders."""
        return [line.strip() for line in self.config_file.splitlines() if line.strip()]

    @property
    def subject(self) -> list[str]:
        """Options by which each command knows what it is about, and whom to ask."""
        options = {
            "--workload": self.workload,
            "--framework": "" if self.framework == "auto" else self.framework,
            "--key": self.key,
        }
        flags = ["--offline"] if self.offline == "true" else []
        return [*(f"{name}={value}" for name, value in options.items() if value), *flags]

    def arguments(self, folder: Path, environment: Mapping[str, str]) -> list[str]:
        """Arguments of the command that judges; the files come last, where none is taken for an option."""
        options = {
            "--tolerance": self.tolerance,
            # What is about to be corrected fails nothing.
            "--fail-on": "never" if self.mode == "apply" else self.fail_on,
            "--on-service-error": self.on_service_error,
        }
        reports = {
            "markdown": str(folder / "report.md"),
            "json": str(folder / "report.json"),
            "summary": environment.get("GITHUB_STEP_SUMMARY", ""),
            "github-output": environment.get("GITHUB_OUTPUT", ""),
        }
        if self.mode == "tune":
            options |= {
                "--spec": self.spec,
                "--timeout-minutes": self.timeout_minutes if self.wait == "true" else NO_TIME,
            }
        flags = ["--write-lock"] if self.write_lock == "true" and self.mode != "apply" else []
        return [
            "tune" if self.mode == "tune" else "check",
            *self.subject,
            *(f"{name}={value}" for name, value in options.items() if value),
            "--format=github",
            *(f"--report={name}={path}" for name, path in reports.items() if path),
            *flags,
            "--",
            *self.files,
        ]

    def applying(self, file: str) -> list[str]:
        """Arguments of the command that changes one file."""
        return ["apply", *self.subject, "--", file]

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment of the commands: what an input gives wins over what the job has."""
        given = {"CLIPTUNE_URL": self.server_url, "CLIPTUNE_API_KEY": self.token, "PYTHONUTF8": "1"}
        # A key that somebody keeps on the runner is not this job's.
        home = {"CLIPTUNE_HOME": str(Path(environment["RUNNER_TEMP"]) / "cliptune-home")}
        # A PYTHONPATH is for the job's own modules, one of which may be called as one of cliptune's.
        kept = {
            name: value for name, value in environment.items() if not name.startswith(("INPUT_", "PYTHON"))
        }
        return home | kept | {name: value for name, value in given.items() if value}


def run(
    arguments: list[str], variables: Mapping[str, str], *, captured: bool = False
) -> tuple[int, str, str]:
    """Run `cliptune`; its exit code, its captured output, and the last of the lines that it wrote to standard error."""
    command = Path(sys.executable).with_name("cliptune")
    last = ""
    # A file, not a second pipe: one that nobody reads meanwhile holds 64 KB, and then the command would wait for ever.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as out:
        with subprocess.Popen(
            [str(command), *arguments],
            env=dict(variables),
            stdout=out if captured else None,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                last = line.strip() or last
                sys.stderr.write(harmless(line))
                sys.stderr.flush()
        out.seek(0)
        # One that a signal ended, -9, is told as a shell does, 137: no failure is less than success.
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        return code, out.read(), last


def apply_all(inputs: Inputs, folder: Path, variables: Mapping[str, str]) -> int:
    """Write the recommended value into each file, and add to the report what was and what could not be applied."""
    if json.loads((folder / "report.json").read_text(encoding="utf-8"))["outage"] is not None:
        return 0
    worst, shown, missed = 0, "", []
    for file in inputs.files:
        code, diff, last = run(inputs.applying(file), variables, captured=True)
        sys.stdout.writelines(map(harmless, diff.splitlines(keepends=True)))
        shown += diff
        if code:
            is_softened = code == OUTAGE and inputs.on_service_error == "warn"
            worst = max(worst, 0 if is_softened else code)
            annotate(last, "warning" if is_softened else "error")
            missed.append(last)
    if missed:
        append(os.environ.get("GITHUB_OUTPUT", ""), f"status={STATUSES.get(worst or OUTAGE, 'error')}\n")
    for title, lines in (("Not applied", missed), ("Applied", shown.splitlines())):
        body = block(title, lines, REPORT_BYTES - (folder / "report.md").stat().st_size)
        append(folder / "report.md", body)
        append(os.environ.get("GITHUB_STEP_SUMMARY", ""), body)
    return worst


def block(title: str, lines: Sequence[str], room: int) -> str:
    """Lines as they are, in Markdown, as far as there is room for their bytes; nothing without lines.

    They are marked up by indentation: no line of a diff can end it, as it could end a fence.
    """
    body = f"\n{title}:\n\n" if lines else ""
    for number, line in enumerate(lines):
        cut = line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]} ..."
        if len(f"{body}    {cut}\n".encode()) > room:
            return f"{body}\nThe log has {len(lines) - number} lines more.\n"
        body += f"    {cut}\n"
    return body


def leave_a_report(folder: Path, last: str) -> None:
    """Say in every place why nothing was judged, where the command ended before it could."""
    annotate(last)
    text = f"### Gradient clipping: nothing was checked\n\n<code>{html.escape(last)}</code>\n"
    append(folder / "report.md", f"{MARKER}\n{text}")
    append(os.environ.get("GITHUB_STEP_SUMMARY", ""), text)
    append(os.environ.get("GITHUB_OUTPUT", ""), "status=error\n")


def harmless(line: str) -> str:
    """A line of which the runner takes nothing for one of its commands, but for groups."""
    bare = line.lstrip()
    if bare.startswith("::") and not bare.startswith(("::group::", "::endgroup::")):
        line = f"cliptune: {line}"
    return line.replace("##[", "## [")


def annotate(text: str, kind: str = "error") -> None:
    """An annotation about no file."""
    data = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    print(f"::{kind} title=cliptune::{data}", flush=True)


def append(path: str | Path, text: str) -> None:
    """Add to a file of the runner; one that it does not have is passed over."""
    if str(path):
        with Path(path).open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def output(name: str, value: str) -> None:
    """Set an output of the step to any text: its end is a line that nobody could have guessed."""
    end = f"end-{secrets.token_hex(16)}"
    append(os.environ.get("GITHUB_OUTPUT", ""), f"{name}<<{end}\n{value}\n{end}\n")


def main() -> int:
    """The step."""
    folder = Path(tempfile.mkdtemp(prefix="cliptune-report-", dir=os.environ["RUNNER_TEMP"]))
    output("report-path", str(folder / "report.md"))
    try:
        inputs = Inputs.read(os.environ)
    except InputError as error:
        leave_a_report(folder, f"cliptune: {error}")
        return REFUSED
    variables = inputs.variables(os.environ)
    code, _, last = run(inputs.arguments(folder, os.environ), variables)
    if not (folder / "report.md").exists():
        leave_a_report(folder, last or f"cliptune ended with exit code {code}")
        return code
    if code == TIMED_OUT and inputs.wait == "false":
        return 0
    if inputs.mode == "apply" and code == 0:
        return apply_all(inputs, folder, variables)
    return code


if __name__ == "__main__":
    sys.exit(main())
