"""Index and convert from and to an S3 server whose calls break."""

import gzip
import io

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from medray import storage
from medray.engine.convert import ConvertOptions, convert
from medray.engine.index import index
from medray.phantoms.series import SeriesSpec, known_volume, write_ct_series
from tests import faults

pytestmark = pytest.mark.ray
BUCKET = "medray-engine"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket with three series behind a proxy that breaks 30 % of the calls; then a local Ray."""
    patch = pytest.MonkeyPatch()
    with faults.s3_server() as (host, port):
        faults.set_s3_environment(patch, f"http://{host}:{port}")
        folder = tmp_path_factory.mktemp("source")
        volumes = {}
        for seed in range(3):
            volumes[seed] = known_volume((6 + seed, 24, 20))
            write_ct_series(folder / str(seed), volumes[seed], SeriesSpec(seed=seed))
        files = {f"in/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*.dcm")}
        faults.fill_bucket(BUCKET, files)
        proxy = faults.FaultProxy(host, port, rate=0.3, seed=5)
        with proxy:
            faults.set_s3_environment(patch, proxy.url)
            yield volumes, proxy
    patch.undo()


@pytest.fixture(scope="module")
def ray_on_s3(bucket):
    import ray

    ray.init(
        address="local", num_cpus=2, object_store_memory=256 << 20, include_dashboard=False,
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.mark.usefixtures("ray_on_s3")
def test_volumes_come_out_right_through_broken_calls(bucket):
    volumes, proxy = bucket
    source, out = f"s3://{BUCKET}/in", f"s3://{BUCKET}/out"
    summary = convert([source], out, ConvertOptions(), quiet=True)
    assert summary["counts"]["num_done"] == 3
    assert summary["counts"]["num_rejected"] == 0
    assert sum(proxy.fault_counts().values()) > 20
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{out}/results.parquet"))).to_pylist()
    found = {}
    for row in table:
        data = storage.read_bytes(f"{out}/{row['outputs'][0]}")
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        found[image.shape[2]] = np.asarray(image.dataobj).T
    for volume in volumes.values():
        assert np.array_equal(found[volume.array.shape[0]], volume.array)
    again = convert([source], out, ConvertOptions(), quiet=True)
    assert again["counts"]["skipped_by_reason"] == {"already_done": 3}


@pytest.mark.usefixtures("ray_on_s3")
def test_an_index_of_a_bucket_is_incremental(bucket):
    source, out = f"s3://{BUCKET}/in", f"s3://{BUCKET}/index"
    first = index([source], out, quiet=True)
    assert first["series"] == {"ok": 3}
    second = index([source], out, quiet=True)
    assert second["counts"]["skipped_by_reason"] == {"already_done": 21}
