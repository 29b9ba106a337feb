"""The dirty zoo through index, convert and prepare: every defect is found, no good case is lost."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from medray.datasets.split import SplitOptions
from medray.engine.convert import ConvertOptions, convert
from medray.engine.examples import decode_example
from medray.engine.index import index
from medray.engine.prepare import PrepareOptions, prepare
from medray.errors import REASONS
from medray.tasks import get_recipe

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
TASKS = ("lung_detection", "pancreas_segmentation", "breast_classification", "breast_roi")
STAGES = ("index", "convert", "prepare")


@dataclass
class Outcome:
    """What three verbs made of one dirty data set."""

    root: Path
    truth: dict[str, Any]
    out: Path
    summaries: dict[str, dict[str, Any]]

    def rejected(self, stage: str) -> list[tuple[str, str]]:
        """(path, reason) of everything that a verb refused; index judges whole series too."""
        rows = pq.read_table(self.out / stage / "rejected.parquet").to_pylist()
        found = [(row["uri"], row["reason"]) for row in rows]
        if stage == "index":
            found += [(s["instances"][0]["uri"], s["verdict"]) for s in self.table("series")]
        return found

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of a table of the index."""
        return pyarrow.dataset.dataset(self.out / "index" / name).to_table().to_pylist()

    def lies_at(self, uri: str, path: str) -> bool:
        """Whether a URI is this file, lies in this folder, or is a member of this archive."""
        where = f"{self.root}/{path}"
        return uri == where or uri.startswith(f"{where}/") or uri.endswith(f"::{where}")

    def prepared(self) -> set[str]:
        """Sources of the examples that prepare finished."""
        ledger = (self.out / "prepare" / ".medray" / "ledger").rglob("*.json")
        records = [json.loads(path.read_text()) for path in ledger]
        return {record["uri"] for record in records if not record["reason"]}


@pytest.fixture(scope="module", params=TASKS)
def zoo(request, tmp_path_factory) -> Outcome:
    recipe = get_recipe(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    root, out = folder / "data", folder / "out"
    truth = recipe.phantom(root, num_patients=3, seed=5, defects=True, size="tiny")
    hparams = recipe.tiny_hparams
    if request.param == "lung_detection":
        hparams = replace(hparams, stream="both")
    index_out = str(out / "index")
    summaries = {
        "index": index([str(root)], index_out, quiet=True),
        "convert": convert([index_out], str(out / "convert"), ConvertOptions(), quiet=True),
        "prepare": prepare(
            recipe,
            hparams,
            SplitOptions(split="none"),
            str(out / "prepare"),
            PrepareOptions(data=index_out, gates="off"),
            quiet=True,
        ),
    }
    return Outcome(root, truth, out, summaries)


def test_every_defect_surfaces_with_its_reason(zoo):
    wanted = Counter((d["stage"], d["path"], d["reason"]) for d in hard(zoo) if "needs" not in d)
    assert wanted.total() >= 40
    missed = []
    for (stage, path, reason), number in wanted.items():
        refused = zoo.rejected(stage)
        found = [why for uri, why in refused if why == reason and zoo.lies_at(uri, path)]
        if len(found) < number:
            instead = sorted({why for uri, why in refused if zoo.lies_at(uri, path)})
            missed.append(f"{path}: {reason} in {stage}, found {instead}")
    assert not missed


def hard(zoo: Outcome) -> list[dict[str, Any]]:
    return [defect for defect in zoo.truth["defects"] if defect["scope"] != "skip"]


def test_what_is_no_loss_is_skipped(zoo):
    skipped = [defect for defect in zoo.truth["defects"] if defect["scope"] == "skip"]
    assert len(skipped) >= 4
    rows = [row for row in zoo.table("instances") if row["status"] == "skipped"]
    for defect in skipped:
        reasons = {row["reason"] for row in rows if zoo.lies_at(row["uri"], defect["path"])}
        assert reasons == {defect["reason"]}, defect["path"]
        for stage in STAGES:
            refused = [uri for uri, why in zoo.rejected(stage) if why not in {"localizer"}]
            if stage != "index":  # whose series table names skipped series too
                assert not [uri for uri in refused if zoo.lies_at(uri, defect["path"])], stage


def test_no_good_case_is_lost(zoo):
    prepared = zoo.prepared()
    lost = [c["path"] for c in zoo.truth["cases"] if not found_at(zoo, prepared, c["path"])]
    assert not lost
    refused = [uri for uri, _ in zoo.rejected("prepare")]
    assert not [c for c in zoo.truth["cases"] if found_at(zoo, refused, c["path"])]
    converted = set(pq.read_table(zoo.out / "convert" / "results.parquet")["key"].to_pylist())
    good = [series for series in zoo.table("series") if is_good_volume(zoo, series)]
    assert good
    assert {series["series_key"] for series in good} <= converted
    assert len(list((zoo.out / "convert").glob("*.nii.gz"))) == len(converted)


def found_at(zoo: Outcome, uris: set[str] | list[str], path: str) -> bool:
    return any(zoo.lies_at(uri, path) for uri in uris)


def is_good_volume(zoo: Outcome, series: dict[str, Any]) -> bool:
    """Whether a series is a grey volume without a planted defect of its own."""
    if series["kind"] != "volume" or series["pixel_layout"] != "mono":
        return False
    if series["verdict"] == "localizer":
        return False
    bad = [d["path"] for d in zoo.truth["defects"] if d["stage"] != "prepare"]
    return not any(zoo.lies_at(series["instances"][0]["uri"], path) for path in bad)


def test_oddities_become_volumes(zoo):
    expected = {"ok_shared_series_uid": 2, "ok_two_acquisitions": 2}
    converted = set(pq.read_table(zoo.out / "convert" / "results.parquet")["key"].to_pylist())
    odd = [o["path"] for o in zoo.truth["oddities"] if o["path"].startswith("zz-defects/")]
    assert len(odd) >= 10
    for path in odd:
        keys = {
            series["series_key"]
            for series in zoo.table("series")
            if zoo.lies_at(series["instances"][0]["uri"], path)
        }
        assert len(keys & converted) == expected.get(Path(path).name, 1), path


def test_counts_add_up_and_say_what_the_tables_say(zoo):
    for stage, summary in zoo.summaries.items():
        counts = summary["counts"]
        parts = counts["num_done"] + counts["num_skipped"] + counts["num_rejected"]
        assert counts["num_inputs"] == parts
        assert summary["status"] == "done_with_rejects"
        assert set(counts["rejected_by_reason"]) <= set(REASONS)
        rows = pq.read_table(zoo.out / stage / "rejected.parquet").to_pylist()
        assert Counter(row["reason"] for row in rows) == counts["rejected_by_reason"]
        assert all(row["key"] and row["uri"] and row["detail"] and row["stage"] for row in rows)
    assert zoo.summaries["index"]["counts"]["num_inputs"] == len(zoo.table("instances"))


def test_only_colour_and_projections_are_refused_among_the_good(zoo):
    """What nobody planted is refused only for being no grey volume."""
    planted = [entry["path"] for name in ("defects", "oddities") for entry in zoo.truth[name]]
    for uri, why in zoo.rejected("convert"):
        if not found_at(zoo, [uri], "zz-defects") and not any(zoo.lies_at(uri, p) for p in planted):
            assert why in {"unsupported_pixels", "wrong_modality"}, uri


def test_examples_do_not_name_their_patient(zoo):
    rows = pq.read_table(zoo.out / "prepare" / "examples.parquet").to_pylist()
    assert rows
    for row in rows:
        _, facts = decode_example((zoo.out / "prepare" / row["uri"]).read_bytes())
        text = json.dumps(facts["meta"])
        patient = row["patient_id"]
        assert json.dumps(patient) not in text
        assert patient.isdigit() or patient not in text
