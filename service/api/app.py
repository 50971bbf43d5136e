"""Builds the HTTP application from its settings and a database; no globals, nothing read from the environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from service.api import problems
from service.api.deps import Services
from service.api.edge import Edge
from service.api.metrics import Metrics
from service.api.news import News
from service.api.openapi import describe
from service.api.routes import (
    badges,
    catalog,
    events,
    keys,
    operations,
    recommendations,
    studies,
    trials,
    webhooks,
)
from service.db.session import Database
from service.identity.identities import Identities
from service.jobs.queue import Queue
from service.keys import Keyring
from service.lanes import LaneQueue
from service.settings import Settings
from service.studies import forget_idempotency_keys
from service.webhooks.target import Allowance

#: How often Idempotency-Keys past their time are deleted, in seconds.
_FORGET_SECONDS = 3600.0

#: Threads that answer cheap queries; see `service.api.deps.Services`.
FAST_READS = 2

#: Threads that verify identity tokens; see `service.api.deps.Services`.
TOKEN_CHECKS = 4

#: Threads that ask and tell of lanes; see `service.api.routes.trials.LaneCalls`.
LANE_THREADS = {"sqlite": 1, "postgresql": 8}

_log = structlog.get_logger()


def create_app(settings: Settings, database: Database) -> FastAPI:
    """The application.

    Args:
        settings: limits, hosts, intervals.
        database: migrated and reachable; the caller closes it.

    Returns:
        An ASGI application; its lifespan ends expired leases every ``settings.reap_seconds``.
    """
    metrics = Metrics(database)
    queue = Queue(database, lease_seconds=settings.lease_seconds, max_lost=settings.max_lost)
    lanes = LaneQueue(
        database,
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_attempts,
        max_lost=settings.max_lost,
    )
    services = Services(
        settings,
        database,
        queue,
        Keyring(database),
        Identities(database, settings.trust),
        metrics,
        News(database),
        fast_reads=CapacityLimiter(FAST_READS),
        token_checks=CapacityLimiter(TOKEN_CHECKS),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        tasks = [
            asyncio.create_task(_repeat(queue.reap, settings.reap_seconds)),
            asyncio.create_task(_repeat(lanes.reap, settings.reap_seconds)),
            asyncio.create_task(_repeat(services.keyring.record_use, settings.reap_seconds)),
            asyncio.create_task(_repeat(lambda: forget_idempotency_keys(database), _FORGET_SECONDS)),
        ]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(
        title="cliptune",
        version="1",
        summary="Which gradient-clipping setting should this training run use, and does it matter here?",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    app.state.lanes = trials.LaneCalls(lanes, LANE_THREADS[database.dialect])
    app.state.webhook_allowance = Allowance.parse(settings.webhook_allow, settings.webhook_ports)
    problems.install(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(Edge, settings=settings, metrics=metrics)
    # The router tries them in this order: the most frequent query comes first, but for the few names that the address
    # of one recommendation would take for its id.
    for module in (badges, recommendations, trials, studies, events, catalog, keys, webhooks, operations):
        app.include_router(module.router)
    describe(app)
    return app


def end_streams(app: FastAPI) -> None:
    """End event streams and waiting requests within half a second; call it when the server begins to stop.

    Readers come back with the last event's id. Without it, a server waits for them until its own time is over.

    Args:
        app: made by `create_app`.
    """
    services: Services = app.state.services
    services.stopping.set()


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _repeat(action: Callable[[], Any], seconds: float) -> None:
    """Do something in the thread pool every so often, through outages of the database and through bugs."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await run_in_threadpool(action)
        except SQLAlchemyError as error:
            _log.warning(
                "housekeeping failed", action="housekeeping_failed", error=str(getattr(error, "orig", error))
            )
        except Exception as error:
            # Nobody awaits this task before the shutdown: an error that ended it would end the reaping of lost
            # leases without a sign. It is logged with its traceback instead, and the next round comes.
            _log.error("housekeeping broke", action="housekeeping_failed", exc_info=error)
