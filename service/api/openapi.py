"""The interface's description: FastAPI's, with problems and access keys as they really are.

``python -m service.api.openapi`` writes ``docs/reference/openapi.json``; a test compares the two.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.problems import MEDIA_TYPE
from service.schemas import Problem


def describe(app: FastAPI) -> None:
    """Make ``app.openapi`` tell the truth about errors and keys.

    Args:
        app: with all its routes.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            app.openapi_schema = _complete(schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema["components"]
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    components["schemas"]["Problem"] = Problem.model_json_schema(
        ref_template="#/components/schemas/{model}", mode="serialization"
    )
    components["schemas"] |= components["schemas"]["Problem"].pop("$defs")
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            # The section on exceptions is for readers of the code; callers have the problems below.
            operation["description"] = operation.get("description", "").partition("\n\nRaises:")[0]
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {
                "description": "A problem (RFC 9457); `code` is stable, `detail` says what to do.",
                "content": {MEDIA_TYPE: problem},
            }
            if path.startswith("/v1/") or path == "/metrics":
                operation["security"] = [{"bearer": []}, {"header": []}]
    return schema


def render() -> str:
    """The description of this version, as the text of ``docs/reference/openapi.json``."""
    from service.api.app import create_app
    from service.db.session import Database
    from service.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(), Database(f"sqlite:///{folder}/unused.db"))
        return json.dumps(app.openapi(), indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write the description beside the documentation."""
    target = Path(__file__).parents[2] / "docs" / "reference" / "openapi.json"
    target.write_text(render())
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
