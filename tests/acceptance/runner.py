"""A small runner of composite actions: reads `action.yml`, evaluates what it says, and runs its steps in bash.

As GitHub's runner does it (https://docs.github.com/en/actions/reference/workflows-and-actions/metadata-syntax): each
step's script is a file that ``bash --noprofile --norc -e -o pipefail`` runs, each has its own ``GITHUB_OUTPUT`` and
``GITHUB_STEP_SUMMARY``, a step after a failed one runs only if its condition says so, and the action's outputs are
evaluated at the end whatever happened. Of the expressions it knows those that are used; any other one is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass
class Finished:
    """What became of a job that uses the action."""

    code: int = 0
    log: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    steps: dict[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def report(self) -> str:
        return Path(self.outputs["report-path"]).read_text()


@dataclass
class Runner:
    """A machine with a checkout on it; ``environment`` is the job's."""

    action: Path
    workspace: Path
    temp: Path
    environment: Mapping[str, str]
    event: Mapping[str, Any] = field(default_factory=dict)
    token: str = ""

    def use(
        self, *, only: str = "", known: Mapping[str, Mapping[str, str]] | None = None, **given: str
    ) -> Finished:
        """Run the action with inputs; ``only`` one step of it, with what earlier ones gave in ``known``."""
        document = yaml.safe_load((self.action / "action.yml").read_text())
        inputs = {name: str(each.get("default", "")) for name, each in document["inputs"].items()}
        named = {name.replace("_", "-"): value for name, value in given.items()}
        assert named.keys() <= inputs.keys(), "a real runner only warns of an unknown input"
        steps: dict[str, Mapping[str, str]] = dict(known or {})
        contexts = _Contexts(inputs | named, steps, self.token)
        finished = Finished(steps=steps)
        for step in document["runs"]["steps"]:
            name = step.get("id", step["name"])
            if (only and name != only) or (name in steps and not only):
                continue
            if not contexts.holds(step.get("if", "success()"), has_failed=finished.code != 0):
                continue
            code, steps[name] = self._run(step, contexts, finished)
            finished.code = finished.code or code
        finished.outputs = {
            name: contexts.text(each["value"]) for name, each in document.get("outputs", {}).items()
        }
        return finished

    def _run(
        self, step: Mapping[str, Any], contexts: _Contexts, finished: Finished
    ) -> tuple[int, dict[str, str]]:
        number = len(list(self.temp.glob("step-*")))
        folder = self.temp / f"step-{number}"
        folder.mkdir(parents=True)
        paths = {
            name: folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH")
        }
        for path in paths.values():
            path.touch()
        paths["GITHUB_EVENT_PATH"].write_text(json.dumps(self.event))
        script = folder / "script.sh"
        assert step["shell"] == "bash", "each step says its shell"
        script.write_text(contexts.text(step["run"]))
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=self.workspace / contexts.text(step.get("working-directory", ".")),
            env={
                **self.environment,
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(self.action),
                "GITHUB_WORKSPACE": str(self.workspace),
                "RUNNER_OS": "Linux",
                "RUNNER_TEMP": str(self.temp),
                **{name: str(path) for name, path in paths.items()},
                **{name: contexts.text(str(value)) for name, value in step.get("env", {}).items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
        )
        finished.log += done.stdout
        finished.summary += paths["GITHUB_STEP_SUMMARY"].read_text()
        return done.returncode, outputs_of(paths["GITHUB_OUTPUT"].read_text())


def installing(folder: Path, **environment: str) -> Runner:
    """A runner for the install step; what is not asked for is installed in the versions that the tests have."""
    job = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
    }
    return Runner(ROOT, folder, folder, job | environment)


def outputs_of(text: str) -> dict[str, str]:
    """What a step wrote to ``GITHUB_OUTPUT``: ``name=value``, or ``name<<END`` with lines until END."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if re.match(r"[\w-]+<<", line):
            name, _, end = line.partition("<<")
            value = []
            for each in lines:
                if each == end:
                    break
                value.append(each)
            else:
                raise AssertionError(f"{name} has no end {end}")
            found[name] = "\n".join(value)
        else:
            name, equals, value_of = line.partition("=")
            assert equals and re.fullmatch(r"[\w-]+", name), f"no output: {line!r}"
            found[name] = value_of
    return found


class _Contexts:
    """What expressions read: inputs, earlier steps' outputs, and the job's token."""

    def __init__(self, inputs: Mapping[str, str], steps: Mapping[str, Mapping[str, str]], token: str) -> None:
        self._inputs, self._steps, self._token = inputs, steps, token

    def text(self, template: str) -> str:
        return _EXPRESSION.sub(lambda found: self._value(found[1]), template)

    def holds(self, condition: str, *, has_failed: bool) -> bool:
        """An ``if``; without a function of its own it means success too."""
        whole = _EXPRESSION.fullmatch(condition)
        parts = (whole[1] if whole else condition).split(" && ")
        if not any(part in ("success()", "always()", "!cancelled()") for part in parts):
            parts.append("success()")
        return all(self._part(part.strip(), has_failed) for part in parts)

    def _part(self, part: str, has_failed: bool) -> bool:
        if part == "success()":
            return not has_failed
        if part in ("always()", "!cancelled()"):
            return True
        left, operator, right = re.fullmatch(r"(\S+) (==|!=) (\S+)", part).groups()  # type: ignore[union-attr]
        return (self._value(left) == self._value(right)) == (operator == "==")

    def _value(self, expression: str) -> str:
        if literal := re.fullmatch(r"'([^']*)'", expression):
            return literal[1]
        if expression == "github.token":
            return self._token
        if found := re.fullmatch(r"inputs\.([\w-]+)", expression):
            return self._inputs[found[1]]
        if found := re.fullmatch(r"steps\.([\w-]+)\.outputs\.([\w-]+)", expression):
            return self._steps.get(found[1], {}).get(found[2], "")
        raise AssertionError(f"this runner does not know the expression {expression!r}")
