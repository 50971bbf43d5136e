"""Figures for Prometheus, in a registry of the application's own."""

from __future__ import annotations

from http import HTTPMethod

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import Scope

from service.api.scrape import Scrape
from service.db.session import Database

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_METHODS = frozenset(HTTPMethod)


class Metrics:
    """Counts requests, and reads the rest from the database when it is asked.

    Args:
        database: where queue, workers and studies are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
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

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request.

        Args:
            scope: its ASGI scope after routing. A method that is none of HTTP's is counted as ``other``: anybody may
                send any word, and each would be a series for ever.
            status: of the answer, 0 if it never began.
            seconds: how long it took.
        """
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, tenant_id: str) -> bytes:
        """The figures in Prometheus's text format; reads the database.

        Args:
            tenant_id: whose studies and keys have series of their own.
        """
        scraped = CollectorRegistry()
        scraped.register(Scrape(self._database, tenant_id))
        return generate_latest(self._registry) + generate_latest(scraped)
