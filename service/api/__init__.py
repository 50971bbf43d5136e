"""The HTTP interface, version 1. `service.api.app.create_app` builds it."""
