"""The HTTP replica: it lets requests in, hands them to workers and gives their results out."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.serve.exceptions import BackPressureError

from medray import storage
from medray.engine.predict_output import FILE_NAMES
from medray.engine.serve_cases import CaseReply, CaseRequest
from medray.engine.serve_retry import repeated
from medray.engine.serve_spec import RecipeOf, Served, model_card, network_name, read_models
from medray.errors import DataError
from medray.service.allow import parse_allowed
from medray.service.app import Ask, Reply, build_app
from medray.service.guard import Guard, GuardOptions
from medray.service.job_records import DONE, FAILED, Job, JobRequest
from medray.service.job_store import JobStore
from medray.service.keys import KeySource
from medray.service.problems import ProblemError

# Larger bodies travel as one object that the worker reads in place.
_INLINE_BYTES = 64 << 10
_CASES_WITHIN_S = 300.0
_STATE_TIMEOUT_S, _STATE_KEPT_S = 5.0, 1.0
_RETRY_AFTER_S = 2.0
# What a finished job keeps beside the files of its cases.
RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSettings:
    """What the HTTP side is given.

    Attributes:
        keys_file: lines of `medray key`; empty: `keys_text`.
        keys_text: the same lines, from the environment; they hold hashes, no keys.
        no_auth: nobody needs a key.
        query_key: `POST /predict` may bring its key in the query.
        allow_uris: prefixes below which a JSON request may name its input.
        max_body_bytes: of one request.
        jobs_uri: where jobs are kept; empty: no jobs.
    """

    keys_file: str = ""
    keys_text: str = ""
    no_auth: bool = False
    query_key: bool = False
    allow_uris: tuple[str, ...] = ()
    max_body_bytes: int = 1 << 30
    jobs_uri: str = ""

    def keys(self) -> KeySource:
        """Return the keys that are valid.

        Raises:
            ConfigError: there is none.
        """
        return KeySource(self.keys_file, environment=self.keys_text)

    def guard_options(self, *, in_proxy: bool = False) -> GuardOptions:
        """Return what the outer layer needs; the one in Serve's proxy has another behind it."""
        return GuardOptions(
            forwards_key=in_proxy,
            max_body_bytes=self.max_body_bytes,
            allow_query_key=self.query_key,
            no_auth=self.no_auth,
        )


class IngressReplica:
    """Serve's replica for HTTP; the backend of the routes."""

    def __init__(
        self,
        recipe_of: RecipeOf,
        cases: Any,
        networks: Mapping[str, Any],
        jobs: Any,
        settings: IngressSettings,
    ) -> None:
        self.recipe_of = recipe_of
        self.cases = cases
        self.networks = dict(networks)
        self.jobs = jobs
        self.settings = settings
        self.models: dict[str, Served | DataError] = {}
        self.store = JobStore(settings.jobs_uri) if settings.jobs_uri else None
        self._state: tuple[float, dict[str, str]] = (float("-inf"), {})

    def __serve_build_asgi_app__(self) -> Guard:
        """Return the whole application; Serve asks for it once."""
        app = build_app(self, parse_allowed(self.settings.allow_uris))
        keys = None if self.settings.no_auth else self.settings.keys()
        return Guard(app, keys=keys, options=self.settings.guard_options())

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take other models or thresholds."""
        self.models = read_models(config, self.recipe_of)
        self._state = (float("-inf"), {})

    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is to be said of each model that can be used."""
        usable = {n: m for n, m in self.models.items() if isinstance(m, Served)}
        return {name: model_card(model) for name, model in usable.items()}

    async def ready(self) -> Mapping[str, str]:
        """Ask each network whether it holds the weights that it should; kept for a second."""
        since, state = self._state
        if time.monotonic() - since > _STATE_KEPT_S:
            found = await asyncio.gather(*(self._reason(name) for name in self.models))
            state = dict(zip(self.models, found, strict=True))
            self._state = (time.monotonic(), state)
        return state

    async def _reason(self, name: str) -> str:
        model = self.models[name]
        if isinstance(model, DataError):
            return model.reason
        for part, (_, _, sha256) in model.networks.items():
            handle = self.networks.get(network_name(name, part))
            if handle is None:
                return "model_missing"
            try:
                state = await asyncio.wait_for(handle.state.remote(), _STATE_TIMEOUT_S)
            except Exception:  # noqa: BLE001 - whatever it is, the model does not answer
                return "unavailable"
            if sha256 not in state["versions"]:
                return "model_missing"
        return ""

    async def predict(self, ask: Ask) -> Reply:
        """Answer one request."""
        self._require(ask.model)
        request = CaseRequest(
            model=ask.model,
            kind=ask.kind,
            suffix=ask.suffix,
            uri=ask.uri,
            request_id=ask.request_id,
        )
        reply = await self._asked(request, ask)
        if reply.refused is not None:
            raise ProblemError(*reply.refused)
        if ask.kind == "json":
            return Reply(document=reply.document)
        (data,) = reply.files.values()
        return Reply(data=data)

    async def _asked(self, request: CaseRequest, ask: Ask) -> CaseReply:
        body: Any = b""
        if ask.upload is not None:
            body = ask.upload.read()
            if len(body) > _INLINE_BYTES:
                body = [ray.put(np.frombuffer(body, dtype=np.uint8))]
        try:
            reply: CaseReply = await repeated(
                lambda: self.cases.answer.remote(request, body), within_s=_CASES_WITHIN_S
            )
        except BackPressureError:
            raise ProblemError("queue_full", retry_after_s=_RETRY_AFTER_S) from None
        return reply

    def _require(self, name: str) -> Served:
        """Return a model that can be used.

        Raises:
            ProblemError: model_unknown, or why it cannot.
        """
        model = self.models.get(name)
        if model is None:
            raise ProblemError("model_unknown")
        if isinstance(model, DataError):
            raise ProblemError(model.reason, model.detail)
        return model

    async def submit(self, ask: Ask) -> Mapping[str, Any]:
        """Accept a job; it is durable when this returns."""
        store = self._store()
        model = self._require(ask.model)
        job = await asyncio.to_thread(_submit, store, ask, model)
        if not job.is_over:
            self.jobs.wake.remote()
        return job.public()

    async def job(self, job_id: str) -> Mapping[str, Any]:
        """Return a job's state."""
        return (await asyncio.to_thread(_job, self._store(), job_id)).public()

    async def job_result(self, job_id: str, kind: str) -> Reply:
        """Return a finished job's result."""
        return await asyncio.to_thread(_job_result, self._store(), job_id, kind)

    def _store(self) -> JobStore:
        if self.store is None:
            raise ProblemError("route_unknown", "the service was started without --jobs-dir")
        return self.store


def _submit(store: JobStore, ask: Ask, model: Served) -> Job:
    """Accept a request as a job."""
    sha256 = model.interpreter.facts["weights_sha256"]
    if ask.upload is None:
        request = JobRequest(
            model=ask.model, weights_sha256=sha256, uri=ask.uri, stamp=_stamp(ask.uri)
        )
        return store.submit(request)
    request = JobRequest(
        model=ask.model,
        weights_sha256=sha256,
        content_sha256=ask.upload.sha256,
        suffix=ask.suffix,
        kind=ask.upload.kind,
    )
    return store.submit(request, ask.upload.pieces())


def _stamp(uri: str) -> str:
    """Return what changes when the content of a file or folder does.

    Raises:
        DataError: source_unavailable.
    """
    digest = hashlib.sha256()
    for entry in storage.list_files(uri):
        digest.update(f"{entry.uri}\0{entry.bytes}\0{entry.stamp}\n".encode())
    return digest.hexdigest()


def _job(store: JobStore, job_id: str) -> Job:
    job = store.get(job_id)
    if job is None:
        raise ProblemError("job_unknown")
    return job


def _job_result(store: JobStore, job_id: str, kind: str) -> Reply:
    job = _job(store, job_id)
    if job.state == FAILED:
        raise ProblemError(job.reason)
    if job.state != DONE:
        raise ProblemError("job_unfinished")
    if kind == "json":
        return Reply(document=storage.read_json(store.result_uri(job, RESULT_FILE)))
    ending = FILE_NAMES[kind]
    names = [name for name in job.files if name.endswith(ending)]
    if not names:
        raise ProblemError("not_acceptable")
    if len(names) > 1:
        raise ProblemError("several_series")
    return Reply(data=storage.read_bytes(store.result_uri(job, names[0])))
