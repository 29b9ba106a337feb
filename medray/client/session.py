"""The client: models, predictions, jobs, and files of what came back."""

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from medray.client.upload import Body, Source, upload_of
from medray.client.wire import ClientError, Reply, Wire
from medray.errors import ConfigError

JSON, NIFTI, SEG, PNG = "application/json", "application/gzip", "application/dicom", "image/png"
# The names of `medray predict`, so that a folder looks the same wherever it was made.
FORMS = {
    "json": (JSON, "prediction.json"),
    "nifti": (NIFTI, "prediction.nii.gz"),
    "seg": (SEG, "prediction.seg.dcm"),
    "png": (PNG, "preview.png"),
}
_LOG = logging.getLogger(__name__)
# A model that has no result of this form, or an upload of several series: the form is left out.
_NO_SUCH_FORM = frozenset({406, 409})
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.2, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a request is tried whose connection broke, or that got 429, 502, 503 or 504.

    Attributes:
        attempts: tries in all, the first included.
        base_s: longest wait before the second try; doubles with each further one.
        cap_s: longest wait of our own; a server's Retry-After may be longer.
        max_retry_after_s: a server that asks for more is not waited for.
    """

    attempts: int = 6
    base_s: float = 0.5
    cap_s: float = 15.0
    max_retry_after_s: float = 120.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts must be at least 1, got {self.attempts}")

    def wait_s(self, attempt: int, retry_after_s: float | None) -> float | None:
        """Return the wait after a failed attempt (1, 2, ...), None to give up.

        Half of it is by chance: clients that were refused together do not come back together.
        """
        if attempt >= self.attempts or (retry_after_s or 0) > self.max_retry_after_s:
            return None
        longest_s = min(self.cap_s, self.base_s * 2 ** (attempt - 1))
        chance_s = random.SystemRandom().uniform(longest_s / 2, longest_s)
        return chance_s if retry_after_s is None else retry_after_s + chance_s / 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said of one input.

    Attributes:
        content_type: media type of the content.
        content: the bytes as they came.
        model: name of the model that was asked.
        source: what was asked about; `Client.save` asks for further forms of it.
        job_id: of the job that made it, empty for a direct prediction.
    """

    content_type: str
    content: bytes = field(repr=False)
    model: str
    source: Source = field(repr=False)
    job_id: str = ""

    def json(self) -> dict[str, Any]:
        """Return the result object (docs/DESIGN section 6).

        Raises:
            ClientError: the answer is of another form.
        """
        return _document(self.content) if self.content_type == JSON else _not_json()

    @property
    def results(self) -> list[dict[str, Any]]:
        """One result for each series of the input."""
        return list(self.json()["results"])


@dataclass(frozen=True, slots=True)
class Job:
    """An input that was handed in; it goes on when this process ends.

    Attributes:
        client: that handed it in.
        id: what the server calls it; the same input and model give the same id.
        model: that it is for.
        source: the input.
    """

    client: "Client"
    id: str
    model: str
    source: Source = field(repr=False)

    def state(self) -> dict[str, Any]:
        """Return what the server says of the job now: `state`, `progress`, `reason`.

        Raises:
            ClientError: there is no such job, or no answer.
        """
        return _document(self.client.send("GET", f"/v1/jobs/{quote(self.id, safe='')}").content)

    def wait(
        self,
        timeout_s: float | None = None,
        on_progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> "Job":
        """Return when the job is done.

        Args:
            timeout_s: how long to wait; the job goes on after it. None: as long as it takes.
            on_progress: called with each state that was seen.

        Raises:
            ClientError: the job failed, with the server's reason; `timeout`; or no answer.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        look_s = _FIRST_LOOK_S
        while True:
            now = self.state()
            if on_progress is not None:
                on_progress(now)
            if now.get("state") == "done":
                return self
            if now.get("state") == "failed":
                reason = str(now.get("reason") or "")
                raise ClientError(422, reason, str(now.get("detail") or "the job failed"))
            if end_s is not None and time.monotonic() + look_s > end_s:
                raise ClientError(0, "timeout", f"the job is not done after {timeout_s:g} s")
            time.sleep(look_s)
            look_s = min(look_s * 1.5, _LONGEST_LOOK_S)

    def result(self, accept: str = JSON) -> Answer:
        """Return the answer of a job that is done.

        Raises:
            ClientError: it is not done, or has no result of this form.
        """
        path = f"/v1/jobs/{quote(self.id, safe='')}/result"
        reply = self.client.send("GET", path, accept=accept)
        return Answer(
            content_type=reply.content_type,
            content=reply.content,
            model=self.model,
            source=self.source,
            job_id=self.id,
        )


class Client:
    """A connection to one medray server; safe to use from several threads.

    Requests that may be repeated are: where the connection broke, and after 429, 502, 503 and 504,
    with growing waits (Retry-After is kept). Each upload carries an `Idempotency-Key`, so a server
    that had already begun does not begin again. No other status is ever tried again.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        timeout_s: float = 300.0,
        retries: Retries | None = None,
        ca_file: str | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: of the server, `http://` or `https://`, with the prefix it lies below, if any.
            key: API key; empty for a server without. It is sent to this server alone.
            timeout_s: without a byte from the server; an upload may take longer.
            retries: how often to try.
            ca_file: certificates to trust instead of the system's.

        Raises:
            ConfigError: the address or the key cannot be one.
        """
        self._wire = Wire(url, key, timeout_s=timeout_s, ca_file=ca_file)
        self._retries = retries or Retries()

    def __repr__(self) -> str:
        return f"Client({self._wire.url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client may be used again."""
        self._wire.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the models of the server: name, task, version, labels, inputs, outputs.

        Raises:
            ClientError: the key is wrong, or no answer.
        """
        found = _document(self.send("GET", "/v1/models").content)
        return [dict(model) for model in found.get("models", [])]

    def predict(self, source: Source, model: str | None = None, accept: str = JSON) -> Answer:
        """Return what a model says of an input.

        Args:
            source: a file, a folder of DICOM (zipped on the way, nothing is compressed), bytes of
                a file, or a URI that the server may read (`s3://...`).
            model: its name on the server; None: the only one there is.
            accept: `application/json`, `image/png`, `application/gzip` (NIfTI of the mask) or
                `application/dicom` (SEG).

        Raises:
            ConfigError: there is no such file, or several models and none was named.
            ClientError: the server refused, or gave no answer.
        """
        name = model or self._only_model()
        with upload_of(source, {}) as body:
            path = f"/v1/models/{quote(name, safe='')}/predict"
            reply = self.send(
                "POST", path, body=body, accept=accept, idempotency=_identity(name, body)
            )
        return Answer(
            content_type=reply.content_type, content=reply.content, model=name, source=source
        )

    def submit(self, source: Source, model: str | None = None) -> Job:
        """Hand an input in, to be predicted when there is time; the same input is the same job.

        Raises:
            ConfigError, ClientError: as of `predict`.
        """
        name = model or self._only_model()
        with upload_of(source, {"model": name}) as body:
            identity = _identity(name, body)
            reply = self.send("POST", "/v1/jobs", body=body, idempotency=identity)
        return Job(self, str(_document(reply.content)["id"]), name, source)

    def save(
        self, answer: Answer, folder: str | PathLike[str], forms: tuple[str, ...] = tuple(FORMS)
    ) -> dict[str, Path]:
        """Write an answer in its forms, under the names of `medray predict`.

        A form that the model does not have, or cannot have of several series, is left out.

        Args:
            answer: of `predict` or `Job.result`.
            folder: made where it is missing.
            forms: of `json`, `nifti`, `seg`, `png`.

        Returns:
            The files by form.

        Raises:
            ConfigError: a form is unknown.
            ClientError: the server refused for another reason.
            DataError: sink_full or sink_denied.
        """
        from medray import storage

        unknown = [form for form in forms if form not in FORMS]
        if unknown:
            raise ConfigError(f"forms are {', '.join(FORMS)}, got {', '.join(unknown)}")
        written = {}
        for form in forms:
            accept, name = FORMS[form]
            found = answer if answer.content_type == accept else self._further(answer, accept)
            if found is not None:
                path = Path(folder) / name
                storage.write_atomic(str(path), found.content)
                written[form] = path
        return written

    def _further(self, answer: Answer, accept: str) -> Answer | None:
        """Return another form of an answer; of a job without a further upload where possible."""
        try:
            if answer.job_id:
                found = Job(self, answer.job_id, answer.model, answer.source).result(accept)
                if found.content_type == accept:
                    return found
            return self.predict(answer.source, answer.model, accept)
        except ClientError as error:
            if error.status in _NO_SUCH_FORM:
                return None
            raise

    def _only_model(self) -> str:
        names = [str(model["name"]) for model in self.models()]
        if len(names) != 1:
            listed = ", ".join(sorted(names)) or "none"
            raise ConfigError(f"name the model; the server has: {listed}")
        return names[0]

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        accept: str = JSON,
        idempotency: str = "",
    ) -> Reply:
        """Send one request until there is an answer that stands; what the others are made of.

        Raises:
            ClientError: the server refused, or gave no answer.
        """
        headers = {"Accept": accept} | ({"Idempotency-Key": idempotency} if idempotency else {})
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._wire.exchange(method, path, headers, body)
            except ClientError as error:
                wait_s = self._retries.wait_s(attempt, error.retry_after_s)
                if wait_s is None or not error.may_pass:
                    raise
                _LOG.info("attempt %d failed (%s), again in %.1f s", attempt, error, wait_s)
            time.sleep(wait_s)


def _identity(model: str, body: Body) -> str:
    """Return the same key for the same model and content, whenever it is sent."""
    return hashlib.sha256(model.encode() + b"\0" + body.sha256.encode()).hexdigest()


def _document(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else _not_json()


def _not_json() -> dict[str, Any]:
    raise ClientError(0, "unreadable", "the answer is no JSON object")
