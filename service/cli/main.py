"""The `cliptune` command: what it offers, and how an error ends it.

Exit codes: 0 done; 1 nothing found, or something to fix; 2 usage or configuration; 3 the service or its database
can't be reached, or refuses the key; 4 not done in time; 5 the study failed or was cancelled; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from service.cli import (
    apply,
    badge,
    check,
    drift,
    keys,
    operate,
    probe,
    recommend,
    report,
    run,
    study,
    tune,
    webhooks,
    workload,
)
from service.cli.texts import harmless
from service.errors import ServiceError
from tuner.errors import TunerError

app = typer.Typer(
    name="cliptune",
    help="Which gradient-clipping setting should this training run use, how sure are we, does clipping matter here?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for operator_command in (
    operate.serve,
    operate.api,
    operate.worker,
    operate.deliver,
    operate.settings,
    operate.demo,
):
    app.command()(operator_command)
for user_command in (
    study.submit,
    study.watch,
    study.show,
    study.studies,
    study.extend,
    study.cancel,
    recommend.recommend,
    check.check,
    apply.apply,
    tune.tune,
    badge.badge,
    report.report,
    study.workloads,
    study.workers,
    probe.probe,
    drift.drift,
):
    app.command()(user_command)
# What follows the first argument is the user's own command.
app.command(context_settings={"allow_interspersed_args": False})(run.run)
app.add_typer(workload.app, name="workload")
app.add_typer(keys.app, name="keys")
app.add_typer(webhooks.app, name="webhooks")

#: Which extra brings a package that the base install leaves out.
_PACKAGES_OF_EXTRAS = {
    "oidc": "joserfc",
    "report": "plotly",
    "server": "alembic fastapi prometheus_client sqlalchemy stamina starlette uvicorn",
    "tune": "numpy optuna scipy sklearn torch",
}


@app.command()
def version() -> None:
    """Print the version of this installation."""
    from importlib.metadata import version as installed

    typer.echo(installed("cliptune"))


def main() -> None:
    """Run a command; an error of ours becomes one line on standard error and an exit code."""  # noqa: DOC501
    try:
        app()
    except (ServiceError, TunerError) as error:
        for line in f"cliptune: {error} [{error.code}]".splitlines():
            typer.echo(harmless(line), err=True)
        sys.exit(error.exit_code if isinstance(error, ServiceError) else 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        for extra, packages in _PACKAGES_OF_EXTRAS.items():
            if package in packages.split():
                remedy = f"pip install 'cliptune[{extra}]'"
                typer.echo(f"cliptune: this command needs {package}: {remedy} [missing_extra]", err=True)
                sys.exit(2)
        raise
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
