"""One transform: prepare, predict and serve give a network the same bits, and the same results."""

import asyncio
import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.datasets.loading import load_sample
from medray.datasets.record import Record
from medray.dicom.decoder import process_decoder
from medray.engine.case import Question, answered
from medray.engine.case_answer import answer_steps
from medray.engine.case_listing import cases_at
from medray.engine.examples import batch_arrays, decode_example, encode_example
from medray.engine.predict_output import case_result
from medray.engine.predictor import Predictor
from medray.engine.prepare_task import CountingReader
from medray.engine.serve_cases import CaseLimits, CaseReplica, CaseRequest
from medray.engine.serve_model import Networks
from medray.engine.serve_spec import describe_model, network_name
from medray.engine.upstream import chosen_upstream, network_of, packed_upstream, with_upstream
from medray.recipe import Prepared, Recipe
from medray.tasks import TASKS, get_recipe
from tests.prepared_data import mask_examples
from tests.tiny_models import fresh_package, tiny
from tests.unit.source_trees import LocalIO, tree_of

SETTINGS = {"lung_classification": {"view": "thorax"}}
THRESHOLDS = {"box2d": 0.001}
# What only a label file says; no network sees it.
LABELS = {"mask", "boxes", "box_labels", "ignored_boxes", "site", "machine"}


@dataclasses.dataclass
class Made:
    """A task's phantom, one record of it as `prepare` turns it into an example, and a model."""

    recipe: Recipe[Any]
    record: Record
    prepared: Prepared
    model: str


def mask_model(out: Path) -> str:
    recipe, hparams = tiny("pancreas_segmentation", filters=(4, 8))
    return fresh_package(
        out, recipe, hparams, {"train": mask_examples(1, size=16, seed=0)}, {"threshold": 0.5}
    )


def roi_model(out: Path) -> str:
    recipe, hparams = tiny("breast_roi", size=64)
    example = Prepared(
        arrays={
            "image": np.zeros((1, 64, 64), np.uint8),
            "boxes": np.array([[8, 8, 30, 30]], np.float32),
            "box_labels": np.zeros(1, np.int64),
        },
        meta={"scale_yx": [1.0, 1.0], "offset_yx_px": [0, 0], "original_shape": [64, 64]},
    )
    return fresh_package(out, recipe, hparams, {"train": [example]}, {"threshold": 0.001})


UPSTREAM = {"pancreas_classification": ("mask_model", mask_model),
            "breast_classification": ("roi_model", roi_model)}  # fmt: skip


@pytest.fixture(scope="module", params=TASKS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    task = request.param
    root = tmp_path_factory.mktemp(task)
    recipe = get_recipe(task)
    recipe.phantom(root / "data", num_patients=2, seed=3, defects=False, size="tiny")
    changes = dict(SETTINGS.get(task, {}))
    if task in UPSTREAM:
        setting, make = UPSTREAM[task]
        changes[setting] = make(root / "upstream")
    hparams = dataclasses.replace(recipe.tiny_hparams, **changes)
    chain = chosen_upstream(recipe, hparams, get_recipe)
    records = recipe.records(tree_of(root / "data"), hparams)
    record = next(found for found in records if isinstance(found, Record))
    sample = load_sample(record, LocalIO())
    prepared = recipe.prepare(with_upstream(sample, chain), hparams)
    threshold = {"threshold": THRESHOLDS.get(recipe.kind, 0.5)}
    model = fresh_package(
        root / "model", recipe, hparams, {"train": [prepared]}, threshold,
        upstream=[one.facts() for one in chain],
    )  # fmt: skip
    card = Path(model) / "model" / "model.json"
    seen = {"fingerprint": {"modalities": {"unknown": 1}}}
    card.write_text(json.dumps({**json.loads(card.read_text()), **seen}))
    return Made(recipe, record, prepared, model)


def wanted(made: Made) -> dict[str, np.ndarray]:
    """Return what training reads of the example's file, without labels."""
    arrays, _ = decode_example(encode_example(made.prepared, key="k"))
    return {name: array for name, array in batch_arrays(arrays).items() if name not in LABELS}


def source_of(made: Made) -> tuple[Path, int]:
    """Return the file or folder that holds the record's image, and which of its images it is."""
    files = [Path(file.uri) for file in made.record.image.files]
    if len(files) > 1 or made.record.image.form in {"image_file", "volume_file"}:
        return (files[0].parent if len(files) > 1 else files[0]), 0
    (case,) = cases_at(str(files[0].parent), planar=True)[:1]
    uris = [file.uri for file in case.source.files]
    if str(files[0]) not in uris:  # each instance is a series of its own
        return files[0], 0
    return files[0].parent, uris.index(str(files[0]))


def require_same(asked: list[Any], made: Made, number: int) -> None:
    examples = [example for one in asked for example in one]
    found, expected = examples[number], wanted(made)
    assert expected.keys() <= found.keys()
    assert "image" in expected
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def predicted(made: Made, where: Path) -> tuple[list[Any], dict[str, Any]]:
    """Return the examples that `predict` gives its network, and the result."""
    predictor = Predictor(made.recipe, made.model)
    chain = packed_upstream(made.model, predictor.interpreter.facts, get_recipe)
    network, asked = network_of(predictor, chain), []

    def spied(question: Question) -> Any:
        if not question.model:
            asked.append(question.examples)
        return network(question)

    case = cases_at(str(where), planar=made.recipe.is_planar)[0]
    steps = answer_steps(
        predictor.interpreter, chain, case.payload(), CountingReader(process_decoder())
    )
    return asked, case_result(answered(steps, spied), predictor.interpreter.facts)


class Handle:
    """A deployment in this process: it answers and remembers."""

    def __init__(self) -> None:
        self.networks = Networks(get_recipe, "cpu")
        self.asked: list[Any] = []
        self.answer = self

    async def remote(self, ask: Any) -> Any:
        self.asked.append(ask.examples)
        return self.networks.answer([ask])[0]


def served(made: Made, where: Path) -> tuple[list[Any], dict[str, Any]]:
    """Return the examples that `serve` gives its network for an upload, and the result."""
    described = describe_model(made.model, {}, get_recipe)
    parts = ["", *(one["part"] for one in described["upstream"])]
    handles = {network_name("m", part): Handle() for part in parts}
    replica = CaseReplica(get_recipe, handles, CaseLimits())
    replica.reconfigure({"models": {"m": described}})
    suffix, data = upload(where)
    reply = asyncio.run(replica.answer(CaseRequest(model="m", suffix=suffix), data))
    assert reply.refused is None, reply.refused
    assert reply.document is not None
    return handles["model-m"].asked, reply.document["results"][0]


def upload(where: Path) -> tuple[str, bytes]:
    if where.is_file():
        return "".join(where.suffixes[-2:]) if where.suffix == ".gz" else where.suffix, (
            where.read_bytes()
        )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(where.iterdir()):
            archive.write(path, path.name)
    return ".zip", out.getvalue()


def test_all_three_give_the_network_the_same_bits_and_the_same_result(made: Made) -> None:
    where, number = source_of(made)
    asked, result = predicted(made, where)
    require_same(asked, made, number)
    asked_of_service, result_of_service = served(made, where)
    require_same(asked_of_service, made, number)
    close(json.loads(json.dumps(result)), json.loads(json.dumps(result_of_service)))


def close(first: Any, second: Any) -> None:
    """Compare JSON values; numbers within 1e-5."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            close(first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            close(one, other)
    elif isinstance(first, float):
        assert first == pytest.approx(second, abs=1e-5)
    else:
        assert first == second
