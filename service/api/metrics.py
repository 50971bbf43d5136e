"""Figures for Prometheus, in a registry of the application's own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from starlette.types import Scope

from service.db.models import JobRow
from service.db.session import Database
from service.states import JobState

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class Metrics:
    """Counts requests, and reads the queue when it is asked.

    Args:
        database: where the queue is.
    """

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cliptune_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "cliptune_http_request_seconds",
            "Time from a request's headers to the end of its answer, in seconds.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_QueueDepth(database))

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request.

        Args:
            scope: its ASGI scope after routing.
            status: of the answer, 0 if it never began.
            seconds: how long it took.
        """
        route = getattr(scope.get("route"), "path", "unmatched")
        self._requests.labels(scope["method"], route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """The figures in Prometheus's text format; reads the database."""
        return generate_latest(self._registry)


class _QueueDepth(Collector):
    """Jobs by state, read at each scrape."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing is read when the collector is registered."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The jobs that are queued and running."""
        live = [str(state) for state in JobState if not state.is_done]
        statement = select(JobRow.state, func.count()).where(JobRow.state.in_(live)).group_by(JobRow.state)
        with self._database.read() as session:
            counts: dict[str, int] = {row[0]: row[1] for row in session.execute(statement)}
        gauge = GaugeMetricFamily("cliptune_jobs", "Jobs that have not ended, by state.", labels=["state"])
        for state in live:
            gauge.add_metric([state], counts.get(state, 0))
        yield gauge
