"""One case of a source to its answer: read, decode, transform, ask the networks. No Ray here."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from medray.datasets.conformity import Conformity, conformity, pooled
from medray.datasets.loading import load_sample
from medray.dicom.loading import joint_sha256
from medray.engine.case import Steps
from medray.engine.interpreter import Interpreter
from medray.engine.predict_output import Answer
from medray.engine.predict_planar import planar_steps
from medray.engine.predict_sources import source_record
from medray.engine.prepare_task import CountingReader
from medray.engine.upstream import Upstream, predict_steps
from medray.errors import DataError
from medray.volume import Volume

Policy: TypeAlias = Literal["flag", "refuse"]
POLICIES: tuple[Policy, ...] = ("flag", "refuse")


def answer_steps(
    interpreter: Interpreter,
    chain: Sequence[Upstream],
    payload: Mapping[str, Any],
    reader: CountingReader,
    *,
    policy: Policy = "flag",
) -> Steps[Answer]:
    """Answer one case.

    Args:
        interpreter: of the model.
        chain: models of the package that run first.
        payload: of the case (`Case.payload`).
        reader: knows afterwards what was read.
        policy: what becomes of a case that is unlike the training images: its result says so, or
            there is none.

    Raises:
        DataError: why the case cannot be answered.
        ConfigError: the network needs a part that no model makes.
    """
    if interpreter.recipe.is_planar:
        return (yield from _images_steps(interpreter, chain, payload, reader, policy))
    return (yield from _volume_steps(interpreter, chain, payload, reader, policy))


def _volume_steps(
    interpreter: Interpreter,
    chain: Sequence[Upstream],
    payload: Mapping[str, Any],
    reader: CountingReader,
    policy: Policy,
) -> Steps[Answer]:
    sample = load_sample(source_record(payload["source"]), reader)
    image = sample.image
    if not isinstance(image, Volume):
        raise DataError("wrong_modality", "the task takes volumes")
    likeness = _judged(conformity(sample, interpreter.facts["fingerprint"]), policy)
    (prediction,) = yield from predict_steps(interpreter, [sample], chain)
    return Answer(
        key=case_key(payload, reader),
        series_uid=payload["source"]["series_uid"],
        image=image,
        prediction=prediction,
        flags=tuple(sorted({*payload["flags"], *image.flags})),
        conformity=likeness,
        segment=interpreter.recipe.segment,
        headers=tuple(reader.headers),
        source_sha256=joint_sha256(reader.sha256s),
    )


def _images_steps(
    interpreter: Interpreter,
    chain: Sequence[Upstream],
    payload: Mapping[str, Any],
    reader: CountingReader,
    policy: Policy,
) -> Steps[Answer]:
    source = source_record(payload["source"]).image
    found = yield from planar_steps(interpreter, source, payload["sop_uids"], reader, chain)
    likeness = _judged(pooled(found.conformities), policy)
    assert found.best is not None
    assert found.image is not None
    return Answer(
        key=case_key(payload, reader),
        series_uid=payload["source"]["series_uid"],
        image=found.image,
        prediction=found.best,
        flags=tuple(sorted({*payload["flags"], *found.refused})),
        status="partial" if found.refused else "complete",
        sop_uid=found.sop_uid,
        conformity=likeness,
        boxes=tuple(found.boxes),
        images=tuple(found.images),
    )


def _judged(found: Conformity, policy: Policy) -> Conformity:
    """Refuse a case that is unlike the training images where that is wanted.

    Raises:
        DataError: out_of_distribution.
    """
    if policy == "refuse" and found.is_out_of_distribution:
        raise DataError(
            "out_of_distribution", "the image is unlike those that the model was trained on"
        )
    return found


def case_key(payload: Mapping[str, Any], reader: CountingReader) -> str:
    """Return the series_key; of another file 16 digits of its bytes' sha256, once it is read."""
    return str(payload["key"] or "".join(reader.sha256s[:1])[:16])
