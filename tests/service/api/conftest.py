"""An external study behind the application, its worker's part done by hand."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from service.lanes import load_lanes


class Lanes:
    """An external study with its worker's part done by hand."""

    def __init__(self, api: Any, *, num_lanes: int = 2, **changes: Any) -> None:
        self.api = api
        body = {"workload": "my model", "external": True, "parameters": {"depth": 3}, "num_steps": 90}
        self.study_id = api.study(**body | changes)["id"]
        self.lease = api.queue.acquire(str(uuid.uuid4()), ["external", "study"])
        assert self.lease is not None
        self.trial_id = api.put_up_lanes(self.study_id, num_lanes)

    def post(self, verb: str, body: Any, *, key: str | None = None, trial_id: str | None = None) -> Any:
        http = self.api.http if key is None else self.api.with_key(key)
        return http.post(f"/v1/trials/{trial_id or self.trial_id}/{verb}", json=body)

    def ask(self, client_id: str = "a", *, key: str | None = None, **body: Any) -> Any:
        http = self.api.http if key is None else self.api.with_key(key)
        return http.post(f"/v1/studies/{self.study_id}/trials:ask", json={"client_id": client_id, **body})

    def token(self, client_id: str = "a") -> str:
        response = self.ask(client_id)
        assert response.status_code == 200, response.text
        return str(response.json()["lease_token"])

    def states(self) -> list[str]:
        with self.api.database.read() as session:
            return [str(lane.state) for lane in load_lanes(session, self.study_id, [self.trial_id])]


@pytest.fixture
def make_lanes(api: Any) -> Callable[..., Lanes]:
    return lambda **changes: Lanes(api, **changes)


@pytest.fixture
def lanes(api: Any) -> Lanes:
    return Lanes(api)
