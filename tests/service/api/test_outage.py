"""A PostgreSQL that goes away and comes back: problems in between, and the same answers afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres import private_cluster
from starlette.testclient import TestClient

from service.api.app import create_app
from service.db.migrate import upgrade
from service.db.session import Database
from service.keys import create_key
from service.settings import Settings


@pytest.mark.postgres
def test_requests_are_refused_while_postgresql_is_down(postgres_programs: Path, tmp_path: Path) -> None:
    with private_cluster(postgres_programs) as cluster:
        database = Database(cluster.url)
        upgrade(database)
        with database.write() as session:
            key = create_key(session, label="test")
        app = create_app(Settings(home=tmp_path), database)
        http = TestClient(
            app, base_url="http://127.0.0.1", headers={"X-API-Key": key}, raise_server_exceptions=False
        )
        paths = ("/v1/studies", "/v1/recommendations?workload=w", "/v1/workers")
        assert [http.get(path).status_code for path in paths] == [200] * 3
        cluster.stop("immediate")
        for path in (*paths, "/readyz"):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert answer.headers["retry-after"] == "5" and "psycopg" not in answer.text
        assert http.get("/healthz").status_code == 200
        cluster.start()
        assert [http.get(path).status_code for path in paths] == [200] * 3
        database.close()
