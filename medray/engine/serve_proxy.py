"""The guard inside Serve's own proxy, which would else read a body before anybody is asked."""

import json
import os
from typing import Any

from starlette.middleware import Middleware

from medray.engine.serve_ingress import IngressSettings
from medray.service.guard import Guard


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its proxy; `prepare_environment` names this function."""
    raw: dict[str, Any] = json.loads(os.environ.get("MEDRAY_SERVE_GUARD", "{}"))
    if not raw:
        return []
    settings = IngressSettings(**raw)
    keys = None if settings.no_auth else settings.keys()
    return [Middleware(Guard, keys=keys, options=settings.guard_options(in_proxy=True))]
