"""A replica that turns uploads into results: unpack, decode, prepare, ask networks, write."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medray import storage
from medray.config import unknown_name
from medray.dicom.decoder import process_decoder
from medray.engine.case import Answers, Finished, Question, advance
from medray.engine.case_answer import POLICIES, Policy, answer_steps
from medray.engine.case_listing import case_refusal, cases_at
from medray.engine.predict_output import NO_SEG, Answer, answer_file, case_document, case_result
from medray.engine.predict_sources import Case
from medray.engine.prepare_task import CountingReader
from medray.engine.serve_model import NetworkAsk
from medray.engine.serve_retry import repeated
from medray.engine.serve_spec import RecipeOf, Served, network_name, read_models
from medray.errors import ConfigError, DataError

_NETWORK_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRequest:
    """One request for results.

    Attributes:
        model: its name in the service.
        kind: `json`, `png`, `nifti` or `seg`; `all` for every file of every case.
        suffix: of the uploaded file, such as `.zip`.
        uri: of the input, where nothing was uploaded.
        request_id: of the HTTP request or job.
    """

    model: str
    kind: str = "json"
    suffix: str = ""
    uri: str = ""
    request_id: str = ""


@dataclass(slots=True, kw_only=True)
class CaseReply:
    """What a request gets.

    Attributes:
        document: the result object; None where the request is refused as a whole.
        files: name to bytes, below each case's key.
        refused: reason and sentence.
    """

    document: dict[str, Any] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseLimits:
    """What one request may cost.

    Attributes:
        max_unpacked_bytes: declared sizes of an archive's members, and decoded pixels of all cases.
        max_members: files in an archive.
        policy: what becomes of images that are unlike the training's: `flag` or `refuse`.
    """

    max_unpacked_bytes: int = 8 << 30
    max_members: int = 5_000
    policy: Policy = "flag"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(unknown_name("policy", self.policy, POLICIES))


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The request as a whole is refused."""


class CaseReplica:
    """Serve's replica for all models; the volumes never leave it."""

    def __init__(
        self, recipe_of: RecipeOf, networks: Mapping[str, Any], limits: CaseLimits
    ) -> None:
        """Take handles.

        Args:
            recipe_of: task name to recipe.
            networks: `network_name` to the handle of the deployment that holds it.
            limits: of a request.
        """
        self.recipe_of = recipe_of
        self.handles = dict(networks)
        self.limits = limits
        self.models: dict[str, Served | DataError] = {}
        # Decoding and resampling hold the one CPU of a replica; waiting for a network does not.
        self._cpu = ThreadPoolExecutor(1, thread_name_prefix="medray-case")

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take other thresholds or packages; cases that have begun end with what they began."""
        self.models = read_models(config, self.recipe_of)

    async def answer(self, request: CaseRequest, body: Any) -> CaseReply:
        """Answer an upload or a URI.

        Args:
            request: what is asked.
            body: the upload's bytes, or a list of one Ray reference to them; empty for a URI.
        """
        model = self.models.get(request.model)
        if model is None:
            return CaseReply(refused=("model_unknown", "no model of this name is served"))
        if isinstance(model, DataError):
            return CaseReply(refused=(model.reason, model.detail))
        data = body if isinstance(body, bytes) else (await body[0] if body else b"")
        with contextlib.ExitStack() as stack:
            uri = request.uri or stack.enter_context(_kept(data, request.suffix))
            del data
            try:
                return await self._answer_at(uri, model, request)
            except _Refused as error:
                return CaseReply(refused=(str(error.args[0]), str(error.args[1])))
            except DataError as error:
                return CaseReply(refused=(error.reason, error.detail))
            except MemoryError:
                return CaseReply(refused=("decode_memory", "the worker ran out of memory"))

    async def _answer_at(self, uri: str, model: Served, request: CaseRequest) -> CaseReply:
        began = time.monotonic()
        cases = await self._on_cpu(self._cases, uri, model)
        usable = [case for case in cases if case_refusal(case, model.interpreter.facts) is None]
        if request.kind not in {"json", "all"} and len(usable) > 1:
            raise _Refused("several_series", "the upload holds several series; ask for JSON")
        results, reply = [], CaseReply()
        for case in cases:
            result, files = await self._one(case, model, request.kind)
            results.append(result)
            reply.files.update(files)
        if all(result["status"] == "refused" for result in results):
            raise _Refused(results[0]["reason"], results[0]["detail"])
        reply.document = case_document(results, model.interpreter.facts, model=model.name)
        reply.document["request_id"] = request.request_id
        reply.document["timing_ms"] = {"total": round(1000 * (time.monotonic() - began), 1)}
        return reply

    def _cases(self, uri: str, model: Served) -> list[Case]:
        limits = storage.ArchiveLimits(
            max_members=self.limits.max_members, max_total_bytes=self.limits.max_unpacked_bytes
        )
        cases = cases_at(uri, planar=model.interpreter.recipe.is_planar, limits=limits)
        if not cases:
            raise DataError("no_pixels", "the upload holds no image that the model takes")
        if sum(case.native_bytes for case in cases) > self.limits.max_unpacked_bytes:
            raise DataError("too_large", "the images unpack to more than the limit")
        return cases

    async def _one(
        self, case: Case, model: Served, kind: str
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Answer one case: its result, and its files where some are asked for."""
        facts = model.interpreter.facts
        refusal = case_refusal(case, facts)
        if refusal is not None:
            return _refused_result(case, *refusal), {}
        reader = CountingReader(process_decoder(), keeps_headers=kind in {"seg", "all"})
        try:
            answer = await self._answered(case, model, reader)
        except DataError as error:
            return _refused_result(case, error.reason, error.detail), {}
        except ConfigError as error:
            raise _Refused("model_missing", str(error)) from error
        result = case_result(answer, facts, model.interpreter.inference)
        files = await self._on_cpu(_files_of, answer, result, facts, kind)
        return result, files

    async def _answered(self, case: Case, model: Served, reader: CountingReader) -> Answer:
        steps = answer_steps(
            model.interpreter, model.upstream, case.payload(), reader, policy=self.limits.policy
        )
        said: Answers | DataError | None = None
        while True:
            step = await self._on_cpu(advance, steps, said)
            if isinstance(step, Finished):
                result: Answer = step.result
                return result
            said = await self._ask(model, step)

    async def _ask(self, model: Served, question: Question) -> Answers | DataError:
        """Ask a network; it may be asked again where its replica died."""
        task, uri, sha256 = model.networks[question.model]
        handle = self.handles.get(network_name(model.name, question.model))
        if handle is None:
            return DataError("model_missing", "the model was added; start the service anew")
        ask = NetworkAsk(task=task, uri=uri, weights_sha256=sha256, examples=question.examples)
        answers, refusal = await repeated(
            lambda: handle.answer.remote(ask), within_s=_NETWORK_WITHIN_S
        )
        return answers if refusal is None else DataError(*refusal)

    async def _on_cpu(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._cpu, work, *arguments)


def _files_of(
    answer: Answer, result: dict[str, Any], facts: Mapping[str, Any], kind: str
) -> dict[str, bytes]:
    """Return the files that were asked for, below the case's key; say what could not be made."""
    if kind == "json":
        return {}
    found = {}
    for one in ("png", "nifti", "seg") if kind == "all" else (kind,):
        try:
            named = answer_file(answer, result, facts, one)
        except DataError as error:
            if kind != "all" or error.reason != "no_geometry":
                raise
            named = None
            result["flags"] = sorted({*result["flags"], NO_SEG})
        if named is None and kind != "all":
            raise _Refused("not_acceptable", "the model gives no such file of this input")
        if named is not None:
            found[f"{answer.key}/{named[0]}"] = named[1]
    return found


def _refused_result(case: Case, reason: str, detail: str) -> dict[str, Any]:
    """Return the result object of a case that was not looked at."""
    return {
        "key": case.name,
        "series_uid": case.source.series_uid,
        "sop_uid": None,
        "status": "refused",
        "reason": reason,
        "detail": detail,
        "label": None,
        "score": None,
        "class_scores": {},
        "boxes": [],
        "volume_ml": None,
        "threshold": None,
        "conformity": None,
    }


@contextlib.contextmanager
def _kept(data: Any, suffix: str) -> Iterator[str]:
    """Keep an upload as a file as long as it is looked at."""
    with tempfile.TemporaryDirectory(prefix="medray-") as folder:
        path = Path(folder) / f"upload{suffix}"
        path.write_bytes(data)
        yield str(path)


__all__ = ["CaseLimits", "CaseReplica", "CaseReply", "CaseRequest"]
