"""The routes of docs/DESIGN section 6 over a backend; what runs behind it is the engine's."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import medray
from medray.service import documents
from medray.service.allow import UriPolicy
from medray.service.negotiate import MEDIA_TYPES, negotiate
from medray.service.page_files import page_file
from medray.service.problems import ProblemError, problem_of, reason_of_status, render
from medray.service.scratch import scratch_folder
from medray.service.uploads import Body, Upload, read_body

_SUFFIX_OF = {
    "dicom": ".dcm",
    "zip": ".zip",
    "png": ".png",
    "jpeg": ".jpg",
    "nrrd": ".nrrd",
    "mha": ".mha",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for results.

    Attributes:
        model: its name.
        kind: of `negotiate`.
        upload: the file, or None.
        uri: checked, where no file came.
        request_id: of the request.
    """

    model: str
    kind: str
    upload: Upload | None
    uri: str
    request_id: str

    @property
    def suffix(self) -> str:
        """What the file's name must end with for our readers; told from its bytes."""
        if self.upload is None:
            return ""
        if self.upload.kind == "nifti":
            return ".nii.gz" if next(self.upload.pieces())[:2] == b"\x1f\x8b" else ".nii"
        return _SUFFIX_OF[self.upload.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back: JSON-able content, or one file."""

    document: Mapping[str, Any] | None = None
    data: bytes = b""


class Backend(Protocol):
    """What runs behind the routes. All methods may raise ProblemError or DataError."""

    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is to be said of each model that can be used."""

    async def ready(self) -> Mapping[str, str]:
        """Return for each model why it is not ready, empty where it is."""

    async def predict(self, ask: Ask) -> Reply:
        """Answer one request."""

    async def submit(self, ask: Ask) -> Mapping[str, Any]:
        """Accept a job, or find the one of the same request."""

    async def job(self, job_id: str) -> Mapping[str, Any]:
        """Return a job's state."""

    async def job_result(self, job_id: str, kind: str) -> Reply:
        """Return a finished job's result."""


def build_app(backend: Backend, policy: UriPolicy) -> FastAPI:
    """Return the application; it expects the guard around it.

    Args:
        backend: answers.
        policy: which URIs a request may name.
    """
    app = FastAPI(
        title="medray", version=medray.__version__, description=documents.DESCRIPTION,
        docs_url=None, redoc_url=None, openapi_tags=documents.TAGS,
    )  # fmt: skip
    app.openapi = lambda: documents.openapi(app)  # type: ignore[method-assign]
    routes = _Routes(backend, policy)
    for method, path, handler, facts in routes.table():
        app.add_api_route(path, handler, methods=[method], **facts)
    for error in (ProblemError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _as_problem)
    return app


Handler = Callable[..., Awaitable[Response]]


class _Routes:
    """The handlers."""

    def __init__(self, backend: Backend, policy: UriPolicy) -> None:
        self._backend = backend
        self._scratch = scratch_folder()
        self._policy = policy

    def table(self) -> list[tuple[str, str, Handler, dict[str, Any]]]:
        """Return method, path, handler and what the documentation says of each."""
        facts = documents.ROUTES
        return [
            ("GET", "/", self.page, facts["page"]),
            ("GET", "/page/{name}", self.page_part, facts["page"]),
            ("GET", "/docs", self.docs, facts["page"]),
            ("GET", "/health/live", self.live, facts["live"]),
            ("GET", "/health/ready", self.ready, facts["ready"]),
            ("GET", "/v1/models", self.models, facts["models"]),
            ("GET", "/v1/models/{name}", self.model, facts["model"]),
            ("POST", "/v1/models/{name}/predict", self.predict, facts["predict"]),
            ("POST", "/predict", self.predict_png, facts["predict_png"]),
            ("POST", "/v1/jobs", self.submit, facts["submit"]),
            ("GET", "/v1/jobs/{job_id}", self.job, facts["job"]),
            ("GET", "/v1/jobs/{job_id}/result", self.job_result, facts["job_result"]),
        ]

    async def page(self, request: Request) -> Response:
        return _static("/", request)

    async def page_part(self, name: str, request: Request) -> Response:
        return _static(f"/page/{name}", request)

    async def docs(self, request: Request) -> Response:
        return Response(documents.page(request.app.openapi()), media_type="text/html")

    async def live(self) -> Response:
        return _json({"status": "live"})

    async def ready(self) -> Response:
        reasons = await self._backend.ready()
        waiting = {name: reason for name, reason in reasons.items() if reason}
        state = {"status": "waiting" if waiting else "ready", "models": dict(reasons)}
        return _json(state, status=503 if waiting else 200)

    async def models(self) -> Response:
        return _json({"models": list(self._backend.cards().values())})

    async def model(self, name: str) -> Response:
        cards = self._backend.cards()
        if name not in cards:
            raise ProblemError("model_unknown")
        return _json(cards[name])

    async def predict(self, name: str, request: Request) -> Response:
        kind = negotiate(request.headers.get("accept", ""))
        body = await self._body(request)
        try:
            return _answer(await self._backend.predict(self._ask(name, kind, body, request)), kind)
        finally:
            body.close()

    async def predict_png(self, request: Request) -> Response:
        """Answer as the original service did: a PNG in, the annotated PNG out."""
        detectors = [n for n, card in self._backend.cards().items() if card["kind"] == "box2d"]
        if not detectors:
            raise ProblemError("model_unknown", "no model that finds boxes in images is served")
        body = await self._body(request)
        try:
            if body.upload is None or body.upload.kind != "png":
                raise ProblemError("unsupported_type", "this route takes one PNG file")
            ask = self._ask(detectors[0], "png", body, request)
            return _answer(await self._backend.predict(ask), "png")
        finally:
            body.close()

    async def submit(self, request: Request) -> Response:
        body = await self._body(request)
        try:
            name = body.fields.get("model", "")
            if not name:
                raise ProblemError("request_invalid", "the field model is missing")
            state = await self._backend.submit(self._ask(name, "json", body, request))
        finally:
            body.close()
        return _json(state, status=202, headers={"Location": f"/v1/jobs/{state['id']}"})

    async def job(self, job_id: str) -> Response:
        return _json(await self._backend.job(job_id))

    async def job_result(self, job_id: str, request: Request) -> Response:
        kind = negotiate(request.headers.get("accept", ""))
        return _answer(await self._backend.job_result(job_id, kind), kind)

    async def _body(self, request: Request) -> Body:
        content_type = request.headers.get("content-type", "")
        return await read_body(content_type, request.receive, folder=self._scratch)

    def _ask(self, model: str, kind: str, body: Body, request: Request) -> Ask:
        uri = body.fields.get("uri", "")
        if (body.upload is None) == (not uri):
            raise ProblemError("file_missing", "send either a file or a uri")
        return Ask(
            model=model,
            kind=kind,
            upload=body.upload,
            uri=self._policy.check(uri) if uri else "",
            request_id=str(getattr(request.state, "request_id", "")),
        )


def _answer(reply: Reply, kind: str) -> Response:
    if reply.document is not None:
        return _json(reply.document)
    return Response(reply.data, media_type=MEDIA_TYPES[kind])


def _json(
    content: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    text = json.dumps(content, allow_nan=False)
    return Response(
        text, status_code=status, media_type="application/json", headers=dict(headers or {})
    )


def _static(path: str, request: Request) -> Response:
    found = page_file(path)
    if found is None:
        raise ProblemError("route_unknown")
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers={"ETag": found.etag})
    return Response(found.content, media_type=found.content_type, headers={"ETag": found.etag})


async def _as_problem(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        problem = ProblemError(reason_of_status(error.status_code))
    elif isinstance(error, RequestValidationError):
        problem = ProblemError("request_invalid")
    else:
        problem = problem_of(error) or ProblemError("internal_error")
    status, headers, data = render(problem, str(getattr(request.state, "request_id", "")))
    plain = {name.decode(): value.decode() for name, value in headers}
    return Response(data, status_code=status, headers=plain)
