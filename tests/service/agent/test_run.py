"""`cliptune run` as a user types it, against a real service: lanes trained, given back, told apart by their end."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from liveness import is_running

from service.db.models import LaneRow
from service.lanes import LaneStatus

GIVEN = ("--", sys.executable, "-c")


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def program(text: str) -> tuple[str, ...]:
    """A Python program that takes the threshold and the seed, so that nothing is to be warned of."""
    return (*GIVEN, textwrap.dedent(text).replace("{", "{{").replace("}", "}}"), "{threshold}", "{seed}")


#: Begins a lane, writes its process id, and trains for a minute.
SLOW = """
    import json, os, sys, time
    print(json.dumps(dict(step=1, val_loss=2.0)), flush=True)
    with open({pid_file!r}, "w") as file:
        file.write(str(os.getpid()) + chr(10))
    time.sleep(60)
"""


def slow(pid_file: Path) -> tuple[str, ...]:
    return program(SLOW.replace("{pid_file!r}", repr(str(pid_file))))


def written_pid(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "no command was started")
    return int(file.read_text())


def test_lanes_are_trained_until_enough(external: Any, train_command: list[str]) -> None:
    ids = external.put_up("none", "global_norm:0.35", seeds=(0, 1))
    done = external.run("--trials", "4", "--", *train_command)
    assert done.returncode == 0, done.stderr
    lanes = external.lanes(ids)
    assert [lane.state for lane in lanes] == [LaneStatus.COMPLETE] * 4
    for lane in lanes:
        assert lane.value == pytest.approx(2.0 + lane.seed / 10)
        assert len(lane.norms) == 101
        assert set(lane.reports) >= {100}
    said = done.stderr.splitlines()
    assert said[0] == "trial 0   seed 0   none"
    assert re.fullmatch(r"trial 0   seed 0   val_loss 2   \d+\.\d s", said[1])
    assert said[2] == "trial 1   seed 0   global_norm:0.35"
    assert said[-1] == (
        f"4 lanes: 4 trained, 0 stopped early, 0 failed; the study: cliptune show {external.study_id[:8]}"
    )
    assert done.stdout.count('"val_loss"') == 44


def test_study_may_be_named_by_its_beginning_and_output_kept_quiet(
    external: Any, train_command: list[str]
) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    done = external.run("--quiet", "--trials", "1", "--", *train_command, study=external.study_id[:6])
    assert (done.returncode, done.stdout) == (0, "")
    assert external.lane(trial_id).state is LaneStatus.COMPLETE


def test_double_dash_may_be_left_out(external: Any, train_command: list[str]) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    done = external.run("--trials", "1", *train_command)
    assert done.returncode == 0, done.stderr
    assert external.lane(trial_id).state is LaneStatus.COMPLETE


def test_hostile_parameters_arrive_as_they_are(external: Any, tmp_path: Path) -> None:
    external.put_up("global_norm:0.1234567890123")
    text = """
        import json, os, sys
        seen = {"arguments": sys.argv[1:], "key": os.environ.get("CLIPTUNE_API_KEY"), "folder": os.getcwd(),
                "empty": os.listdir(sys.argv[6])}
        print("SEEN " + json.dumps(seen))
        print('{"step": 100, "val_loss": 1}')
    """
    command = [
        *program(text)[:-2],
        "{threshold}",
        "{seed}",
        "{method}",
        "--text={text}",
        "{width}",
        "{output}",
    ]
    done = external.run("--trials", "1", *command, "{trial} {study} {learning_rate_scale} {{}} {num_steps}")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.partition("SEEN ")[2].splitlines()[0])
    output = seen["arguments"].pop(5)
    assert seen["arguments"] == [
        "0.1234567890123",
        "0",
        "global_norm",
        "--text=$(id); 'x' {seed}",
        "8",
        f"0 {external.study_id} 1.0 {{}} 100",
    ]
    assert (seen["key"], seen["folder"], seen["empty"]) == (None, os.getcwd(), [])
    assert not Path(output).exists()


def test_output_folders_are_kept_where_they_were_asked_for(external: Any, tmp_path: Path) -> None:
    external.put_up("global_norm:1", seeds=(0, 1))
    text = """
        import pathlib, sys
        pathlib.Path(sys.argv[3], "model").write_text(sys.argv[2])
        print('{"step": 100, "val_loss": 1}')
    """
    folder = tmp_path / "kept"
    done = external.run("--trials", "2", "--output", str(folder), *program(text), "{output}")
    assert done.returncode == 0, done.stderr
    assert (folder / "trial-0-seed-0" / "model").read_text() == "0"
    assert (folder / "trial-0-seed-1" / "model").read_text() == "1"


@pytest.mark.parametrize(("option", "threshold"), [((), "0"), (("--off", "inf"), "inf")])
def test_off_is_spelled_as_the_program_takes_it(
    external: Any, option: tuple[str, ...], threshold: str
) -> None:
    external.put_up("none")
    text = "import sys; print('threshold', sys.argv[1]); print('{\"step\": 100, \"val_loss\": 1}')"
    done = external.run("--trials", "1", *option, *program(text))
    assert f"threshold {threshold}" in done.stdout.splitlines()


def test_metrics_come_from_a_file_under_other_names(external: Any) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    text = """
        import json, sys
        with open(sys.argv[3] + "/metrics.jsonl", "w") as file:
            for step in (50, 100):
                file.write(json.dumps({"at": step, "eval/loss": 2 - step / 100, "norm": 0.5}) + "\\n")
        print('{"step": 100, "val_loss": 9}')
    """
    names = ("--objective-key", "eval/loss", "--norm-key", "norm", "--step-key", "at")
    place = ("--metrics", "{output}/metrics.jsonl")
    done = external.run("--trials", "1", *names, *place, *program(text), "{output}")
    assert done.returncode == 0, done.stderr
    lane = external.lane(trial_id)
    assert (lane.value, lane.norms) == (1.0, (0.5, 0.5))


def test_metrics_come_from_tensorboard(external: Any) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    text = """
        import sys
        from tensorboardX import SummaryWriter
        with SummaryWriter(sys.argv[3] + "/runs") as writer:
            for step in (50, 100):
                writer.add_scalar("train/grad_norm", 0.5, step)
                writer.add_scalar("eval/loss", 2 - step / 100, step)
    """
    names = ("--objective-key", "eval/loss", "--norm-key", "train/grad_norm")
    done = external.run(
        "--trials", "1", *names, "--metrics", "tensorboard:{output}", *program(text), "{output}"
    )
    assert done.returncode == 0, done.stderr
    lane = external.lane(trial_id)
    assert (lane.value, lane.norms) == (1.0, (0.5, 0.5))


@pytest.mark.parametrize(
    ("text", "options", "cause", "says"),
    [
        (
            "raise ValueError('my own mistake')",
            (),
            "bug",
            "exit code 1: ValueError: my own mistake\nTraceback",
        ),
        ("raise SystemExit(7)", (), "bug", "exit code 7"),
        ("import os; os.abort()", (), "bug", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", (), "device_lost", "killed by SIGKILL, which was not ours"),
        ("raise SystemExit(137)", (), "device_lost", "killed by SIGKILL, which was not ours"),
        ("raise MemoryError", (), "oom", "MemoryError"),
        ("print('fine')", (), "bad_output", "never logged the objective 'val_loss'; it logged no number"),
        (
            'print(\'{"step": 1, "loss": 2.0}\')',
            (),
            "bad_output",
            "never logged the objective 'val_loss'; it logged loss: name the right key with --objective-key",
        ),
        (
            'print(\'{"step": 1000, "val_loss": 2.0}\')',
            (),
            "bad_output",
            "logged 'val_loss' only beyond the study's 100 steps",
        ),
        (
            "import time; time.sleep(60)",
            ("--stall", "0.5"),
            "stall",
            "neither objective nor gradient norm for 0.5 s",
        ),
    ],
)
def test_failure_is_told_with_its_cause(
    external: Any, text: str, options: tuple[str, ...], cause: str, says: str
) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    done = external.run("--trials", "1", *options, *program(text))
    assert done.returncode == 5
    lane = external.lane(trial_id)
    assert lane.last_cause == cause
    assert re.search(says, lane.last_error or "", re.DOTALL)
    assert "1 failed" in done.stderr.splitlines()[-1]
    (line,) = (each for each in done.stderr.splitlines() if each.startswith("trial 0   seed 0   failed: "))
    assert f"[{cause}]" in line


def test_error_is_the_end_of_the_output(external: Any) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    text = """
        import sys
        for number in range(100_000):
            print("line", number, "x" * 100)
        sys.exit("the reason")
    """
    done = external.run("--quiet", "--trials", "1", *program(text))
    assert "line 99999" in done.stderr
    error = external.lane(trial_id).last_error
    assert error is not None and "the reason" in error and "line 99999" in error
    assert len(error) < 8000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_diverged_training_is_ended_and_is_a_result(external: Any, value: str, tmp_path: Path) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    pid_file = tmp_path / "pid"
    text = SLOW.replace("{pid_file!r}", repr(str(pid_file))).replace(
        "val_loss=2.0", f"val_loss=float({value!r})"
    )
    done = external.run("--trials", "1", *program(text))
    assert done.returncode == 0, done.stderr
    assert external.lane(trial_id).state is LaneStatus.DIVERGED
    assert "diverged: val_loss is not finite" in done.stderr
    assert not pid_file.exists() or not is_running(written_pid(pid_file))


def test_cancelled_study_ends_a_silent_command_soon(external: Any, tmp_path: Path) -> None:
    external.put_up("global_norm:0.35")
    pid_file = tmp_path / "pid"
    with external.start(*slow(pid_file)) as running:
        pid = written_pid(pid_file)
        external.cancel()
        _, said = running.communicate(timeout=60)
    assert not is_running(pid)
    assert running.returncode == 5
    assert "the study was cancelled" in said
    assert "1 stopped early" in said


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupted_lane_is_given_back_at_once(
    external: Any, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    pid_file = tmp_path / "pid"
    with external.start(*slow(pid_file)) as running:
        pid = written_pid(pid_file)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert running.returncode == status
    assert not is_running(pid)
    assert "interrupted, and given back" in said
    assert "Traceback" not in said
    lane = external.lane(trial_id)
    assert (lane.state, lane.last_cause, lane.lost_count) == (LaneStatus.WAITING, "preempted", 0)


def test_killed_agent_takes_its_command_along_and_the_lane_goes_to_another(
    external: Any, tmp_path: Path, train_command: list[str]
) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    pid_file = tmp_path / "pid"
    with external.start("--grace", "0.1", *slow(pid_file)) as running:
        pid = written_pid(pid_file)
        running.kill()
    wait_until(lambda: not is_running(pid), "the command lives on")
    done = external.run("--trials", "1", "--", *train_command)
    assert done.returncode == 0, done.stderr
    lane = external.lane(trial_id)
    assert (lane.state, lane.fence, lane.lost_count) == (LaneStatus.COMPLETE, 2, 1)


def test_two_agents_never_hold_the_same_lane(external: Any, tmp_path: Path) -> None:
    ids = external.put_up("none", "global_norm:0.1", "global_norm:1", seeds=(0, 1))
    # Whoever finds the file of its lane was given a lane that another has.
    text = """
        import os, sys, time
        os.mkdir(sys.argv[3])
        time.sleep(0.2)
        print('{"step": 100, "val_loss": 1}')
    """
    command = (*program(text), f"{tmp_path}/{{trial}}-{{seed}}")
    agents = [external.start("--no-wait", *command) for _ in range(2)]
    said = [agent.communicate(timeout=120)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert all(lane.state is LaneStatus.COMPLETE and lane.fence == 1 for lane in external.lanes(ids))
    assert sum(int(each.splitlines()[-1].partition(" ")[0]) for each in said) == 6


def test_agent_that_need_not_wait_ends(external: Any, train_command: list[str]) -> None:
    done = external.run("--no-wait", "--", *train_command)
    assert done.returncode == 0
    assert f"no lane of study {external.study_id} was free" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("0 lanes: ")


def test_agent_waits_for_lanes_until_the_study_has_ended(external: Any, train_command: list[str]) -> None:
    with external.start("--", *train_command) as running:
        time.sleep(1)
        (trial_id,) = external.put_up("global_norm:0.35")
        wait_until(lambda: external.lane(trial_id).state is LaneStatus.COMPLETE, "the lane was not trained")
        external.cancel()
        _, said = running.communicate(timeout=60)
    # The study was cancelled, which is no success.
    assert running.returncode == 5
    assert "cancelled" in said


def test_reader_that_goes_away_does_not_end_the_training(external: Any, train_command: list[str]) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    with external.start("--trials", "1", "--", *train_command) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.wait(60) == 0
    assert external.lane(trial_id).state is LaneStatus.COMPLETE


def test_value_told_twice_or_late_is_left_out(external: Any) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    text = """
        for step in (10, 10, 5, 100, 101):
            print('{"step": %d, "val_loss": %d, "grad_norm": -1}' % (step, step))
    """
    done = external.run("--trials", "1", *program(text))
    assert done.returncode == 0, done.stderr
    assert external.lane(trial_id).value == 100
    assert set(external.reported_steps(trial_id)) <= {10, 100}


def test_refused_report_costs_itself(external: Any, train_command: list[str]) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    with external.api.database.write() as session:
        session.get_one(LaneRow, (trial_id, 0)).num_reports = 10_000
    done = external.run("--trials", "1", "--", *train_command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a report was refused") == 1
    assert "[too_many_reports]" in done.stderr
    lane = external.lane(trial_id)
    assert (lane.state, lane.value) == (LaneStatus.COMPLETE, pytest.approx(2.0))


def test_training_goes_on_while_the_service_is_away(external: Any, tmp_path: Path) -> None:
    """The service goes when the lane has begun, and comes back when the command is over; nothing is lost."""
    (trial_id,) = external.put_up("global_norm:0.35")
    pid_file, may_go_on = tmp_path / "pid", tmp_path / "go"
    text = SLOW.replace("{pid_file!r}", repr(str(pid_file))).replace(
        "time.sleep(60)",
        f"""
    while not os.path.exists({str(may_go_on)!r}):
        time.sleep(0.01)
    for step in (50, 75, 100):
        print(json.dumps(dict(step=step, val_loss=step / 100, grad_norm=0.5)), flush=True)
        time.sleep(0.6)
    """,
    )
    with external.start("--trials", "1", *program(text)) as running:
        pid = written_pid(pid_file)
        with external.without_service():
            may_go_on.touch()
            wait_until(lambda: not is_running(pid), "the command did not end")
        _, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    lane = external.lane(trial_id)
    assert (lane.state, lane.value, len(lane.norms)) == (LaneStatus.COMPLETE, 1.0, 3)
    assert {50, 100} <= set(lane.reports)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (
            ("--", "true", "{nope}", "{threshold}"),
            2,
            "{nope} is no placeholder; the placeholders of this study are",
        ),
        (("--", "true", "{seed}"), 2, "the command takes no threshold"),
        (("--", "no-such-program", "{threshold}"), 2, "no program is called 'no-such-program' here"),
        (("--metrics", "", "--", "true", "{threshold}"), 2, "--metrics must be stdout, a file"),
        (("--metrics", "{nope}", "--", "true", "{threshold}"), 2, "{nope} is no placeholder"),
        (
            ("--output", "/dev/null/x", "--", "true", "{threshold}"),
            2,
            "--output /dev/null/x can't be made: Not a dir",
        ),
        ((), 2, "COMMAND"),
        (("--trials", "0", "--", "true"), 2, "'--trials'"),
    ],
)
def test_what_can_not_work_is_refused_before_a_lane_is_leased(
    external: Any, arguments: tuple[str, ...], status: int, says: str
) -> None:
    (trial_id,) = external.put_up("global_norm:0.35")
    done = external.run(*arguments)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert external.lane(trial_id).fence == 0


def test_study_that_workers_train_is_refused(external: Any, train_command: list[str]) -> None:
    other = external.api.study()["id"]
    done = external.run("--", *train_command, study=other)
    assert done.returncode == 2
    assert "are trained by workers" in done.stderr
    assert "[not_external]" in done.stderr


def test_service_that_is_away_at_the_start_ends_with_3(external: Any, train_command: list[str]) -> None:
    done = external.run("--url", "http://127.0.0.1:9", "--", *train_command)
    assert done.returncode == 3
    assert "[service_unreachable]" in done.stderr


def test_doubtful_command_is_warned_of_once(external: Any) -> None:
    external.put_up("global_norm:0.35", "global_norm:1")
    text = program('print(\'{"step": 100, "val_loss": 1}\')')[:-1]
    done = external.run("--trials", "2", *text)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: the command takes no {seed}") == 1


def test_study_may_be_submitted_on_the_way_and_taken_up_again(external: Any, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(
        json.dumps({"num_seeds": 4, "num_steps": 9, "parameters": {"width": 8}})
    )
    new = (
        "--workload",
        "mine",
        "--steps",
        "50",
        "--objective",
        "distance",
        "--name",
        "my study",
        "--no-wait",
    )
    more = ("--spec", str(tmp_path / "study.json"))
    said = [
        external.run(*new, *more, "--", "true", "{threshold}", "{seed}", "{width}", study="")
        for _ in range(2)
    ]
    assert [done.returncode for done in said] == [0, 0], said
    first, second = (re.match(r"study ([0-9a-f-]{36})   queued", done.stderr) for done in said)
    assert first is not None and second is not None
    assert first[1] == second[1]
    with external.client() as client:
        found = client.get_study(first[1])
    assert (found.name, found.workload, found.spec["external"]) == ("my study", "mine", True)
    assert [found.spec[key] for key in ("num_steps", "num_seeds", "objective")] == [50, 4, "distance"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--", "true", "{threshold}"), "--study ID is missing, or --workload NAME"),
        (("--steps", "3", "--", "true", "{threshold}"), "--study ID is missing, or --workload NAME"),
        (
            ("--study", "abc", "--workload", "mine", "--", "true", "{threshold}"),
            "--study names a study that exists",
        ),
        (("--study", "abc", "--name", "x", "--", "true", "{threshold}"), "--study names a study that exists"),
        (("--workload", "mine", "--", "true", "{seed}"), "the command takes no threshold"),
        (("--workload", "mine", "--", "no-such-program", "{threshold}"), "no program is called"),
        (("--workload", "mine", "--steps", "0", "--", "true", "{threshold}"), "num_steps"),
    ],
)
def test_study_that_can_not_be_is_not_submitted(external: Any, arguments: tuple[str, ...], says: str) -> None:
    done = external.run(*arguments, study="")
    assert done.returncode == 2
    assert says in done.stderr
    with external.client() as client:
        assert [study.id for study in client.iter_studies()] == [external.study_id]
