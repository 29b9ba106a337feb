"""What the service says of itself: /openapi.json and the page at /docs, made from it."""

import html
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from medray.errors import REASONS
from medray.service import schemas
from medray.service.problems import HTTP_REASONS, MEDIA_TYPE, STATUS, meaning_of, mend_of

DESCRIPTION = (
    "Results of trained models for DICOM, NIfTI, PNG and JPEG. For research use only: not a "
    "medical device, not for clinical decisions. Every route but health, / and the documentation "
    "needs an API key in the header X-API-Key."
)
TAGS: list[dict[str, Any]] = [
    {"name": "models", "description": "What is served, and results at once."},
    {"name": "jobs", "description": "Results that take longer; an accepted job is kept."},
    {"name": "health", "description": "For load balancers and probes; no key."},
]
_FILE = {"type": "string", "format": "binary", "description": "DICOM, zip, PNG, JPEG or NIfTI."}
_URI = {"type": "string", "description": "Of the input, below an allowed prefix."}


def _json(name: str, example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def _says(description: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": dict(content)}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RESULTS = {
    **_json("Result", schemas.RESULT_EXAMPLE),
    "image/png": _BINARY,
    "application/gzip": _BINARY,
    "application/dicom": _BINARY,
}


def _problems(*statuses: int) -> dict[int | str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[int | str, Any] = {}
    for status in statuses:
        reasons = sorted(reason for reason, value in STATUS.items() if value == status)
        found[status] = _says(", ".join(reasons), content)
    return found


def _form(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "schema": {
            "type": "object",
            "required": list(required),
            "properties": properties,
        }
    }


_KEY_PROBLEMS = (401, 403, 429)
_BODY_PROBLEMS = (400, 404, 406, 408, 409, 413, 415, 422, 503)


def _facts(
    name: str, tag: str, summary: str, responses: Mapping[int | str, Any], body: Any = None
) -> dict[str, Any]:
    return {
        "operation_id": name,
        "tags": [tag],
        "summary": summary,
        "responses": dict(responses),
        "response_model": None,
        "response_class": Response,
        "openapi_extra": {"requestBody": {"required": True, "content": body}} if body else None,
    }


def _done(status: int, description: str, content: Mapping[str, Any], *problems: int) -> Any:
    return {status: _says(description, content), **_problems(*problems)}


# What FastAPI is told of each route, by the name that `app` uses.
ROUTES: dict[str, dict[str, Any]] = {
    "page": {"include_in_schema": False},
    "live": _facts("live", "health", "Is the process alive?", _done(200, "yes", _json("Live"))),
    "ready": _facts(
        "ready",
        "health",
        "Can every model answer?",
        {
            200: _says("all can", _json("Ready")),
            503: _says("some cannot, with a reason each", _json("Ready")),
        },
    ),
    "models": _facts(
        "models",
        "models",
        "List the models.",
        _done(200, "all that can be used", _json("Models"), *_KEY_PROBLEMS),
    ),
    "model": _facts(
        "model",
        "models",
        "Describe a model.",
        _done(200, "its card", _json("Model"), *_KEY_PROBLEMS, 404),
    ),
    "predict": _facts(
        "predict",
        "models",
        "Results of one file or URI; Accept chooses JSON, PNG, NIfTI or DICOM SEG.",
        _done(200, "the results", _RESULTS, *_KEY_PROBLEMS, *_BODY_PROBLEMS),
        {
            "multipart/form-data": _form("file", file=_FILE),
            "application/json": _form("uri", uri=_URI),
        },
    ),
    "predict_png": _facts(
        "predict_png",
        "models",
        "A PNG in, the PNG with its boxes out, by the first detector of images.",
        _done(200, "the picture", {"image/png": _BINARY}, *_KEY_PROBLEMS, *_BODY_PROBLEMS),
        {"multipart/form-data": _form("file", file=_FILE)},
    ),
    "submit": _facts(
        "submit",
        "jobs",
        "Accept a job; the same request gives the same job.",
        _done(202, "accepted", _json("Job", schemas.JOB_EXAMPLE), *_KEY_PROBLEMS, *_BODY_PROBLEMS),
        {
            "multipart/form-data": _form("file", "model", file=_FILE, model={"type": "string"}),
            "application/json": _form("uri", "model", uri=_URI, model={"type": "string"}),
        },
    ),
    "job": _facts(
        "job",
        "jobs",
        "State of a job.",
        _done(200, "its state", _json("Job", schemas.JOB_EXAMPLE), *_KEY_PROBLEMS, 404),
    ),
    "job_result": _facts(
        "job_result",
        "jobs",
        "Result of a finished job.",
        _done(200, "the results", _RESULTS, *_KEY_PROBLEMS, 404, 406, 409, 422),
    ),
}


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        components = document.setdefault("components", {})
        components["schemas"] = dict(schemas.COMPONENTS)
        components["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        }
        for path, methods in document["paths"].items():
            for facts in methods.values():
                facts["security"] = [] if path.startswith("/health") else [{"key": []}]
                # FastAPI documents a 422 of its own wherever a path has a parameter.
                if _is_fastapis(facts["responses"].get("422", {})):
                    del facts["responses"]["422"]
        app.openapi_schema = document
    return app.openapi_schema


def _is_fastapis(response: Mapping[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).endswith("HTTPValidationError")


def page(document: Mapping[str, Any]) -> str:
    """Return /docs: the routes and the reasons as one page without scripts."""
    rows = []
    for path, methods in document["paths"].items():
        for method, facts in methods.items():
            statuses = ", ".join(sorted(facts["responses"]))
            rows.append((f"{method.upper()} {path}", facts["summary"], statuses))
    reasons = [
        (reason, str(STATUS[reason]), meaning_of(reason), mend_of(reason))
        for reason in (*HTTP_REASONS, *REASONS)
    ]
    return _PAGE.format(
        notice=html.escape(DESCRIPTION),
        routes=_table(("route", "what it does", "answers"), rows),
        reasons=_table(("reason", "status", "meaning", "how to mend"), reasons, anchors=True),
    )


def _table(head: tuple[str, ...], rows: Any, *, anchors: bool = False) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        anchor = f' id="{html.escape(row[0])}"' if anchors else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        lines.append(f"<tr{anchor}><td><code>{html.escape(row[0])}</code></td>{cells}</tr>")
    return "<table>" + "".join(lines) + "</table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>medray: HTTP interface</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/page/docs.css"></head><body>
<h1>medray: HTTP interface</h1><p>{notice}</p>
<p>Machine-readable: <a href="/openapi.json">/openapi.json</a>. To try it: <a href="/">/</a>.</p>
<pre>curl -H "X-API-Key: $KEY" -F file=@series.zip http://HOST:8000/v1/models/NAME/predict</pre>
<h2>Routes</h2>{routes}
<h2>Reasons</h2><p>Errors are application/problem+json with one of these in <code>reason</code>.</p>
{reasons}</body></html>
"""
