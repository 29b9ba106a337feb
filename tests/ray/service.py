"""A real service on a local Ray for tests: two untrained models, keys, jobs."""

import io
import os
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import requests

from medray.engine import serve
from medray.engine.serve_ingress import IngressSettings
from medray.engine.serve_options import APP, ServeOptions, described_models, logical_cpus
from medray.recipe import Prepared
from medray.service.keys import make_key
from medray.tasks import get_recipe
from tests.local_ray import local_ray_of
from tests.prepared_data import mask_examples
from tests.tiny_models import fresh_package, tiny

SIZE = 64


def masker(out: Path, *, threshold: float = 0.5, **changes: Any) -> str:
    """Return a network of masks that learned nothing."""
    recipe, hparams = tiny("pancreas_segmentation", filters=(4, 8), **changes)
    examples = {"train": mask_examples(1, size=16, seed=0)}
    return fresh_package(out, recipe, hparams, examples, {"threshold": threshold})


def detector(out: Path) -> str:
    """Return a network of boxes that learned nothing, at a threshold where it finds some."""
    recipe, hparams = tiny("breast_roi", size=SIZE)
    example = Prepared(
        arrays={
            "image": np.zeros((1, SIZE, SIZE), np.uint8),
            "boxes": np.array([[8, 8, 30, 30]], np.float32),
            "box_labels": np.zeros(1, np.int64),
        },
        meta={"scale_yx": [1.0, 1.0], "offset_yx_px": [0, 0], "original_shape": [SIZE, SIZE]},
    )
    return fresh_package(out, recipe, hparams, {"train": [example]}, {"threshold": 0.001})


def zipped(*folders: Path) -> bytes:
    """Return the DICOM files of folders as one zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, folder in enumerate(folders):
            for path in sorted(folder.rglob("*.dcm")):
                archive.write(path, f"{number}/{path.name}")
    return out.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A running service with its key."""

    url: str
    key: str
    root: Path
    options: ServeOptions

    def get(self, path: str, **more: Any) -> requests.Response:
        return self._ask("GET", path, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        return self._ask("POST", path, **more)

    def predict(self, model: str, data: bytes, accept: str = "", **more: Any) -> requests.Response:
        headers = {"Accept": accept} if accept else {}
        files = {"file": ("upload", data)}
        return self.post(f"/v1/models/{model}/predict", files=files, headers=headers, **more)

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"X-API-Key": self.key, **more.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=120, **more)


@contextmanager
def running_service(root: Path, models: dict[str, str], **changes: Any) -> Iterator[Service]:
    """Start Ray with its state API and the service on it; both end with the block."""
    made = make_key(datetime.now(UTC), key_id="test")
    (root / "keys").write_text(made.line + "\n")
    (root / "keys").chmod(0o600)
    http = IngressSettings(
        keys_file=str(root / "keys"),
        jobs_uri=str(root / "jobs"),
        allow_uris=(str(root),),
        max_body_bytes=64 << 20,
        **changes.pop("http", {}),
    )
    options = ServeOptions(models=models, http=http, num_threads=1, **changes)
    described = described_models(options, get_recipe)
    serve.prepare_environment(options, haproxy=False)
    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    with (
        local_ray_of(num_cpus=logical_cpus(described, options), dashboard=True),
        serve.running(described, options, get_recipe, port=free_port()) as url,
    ):
        yield Service(url, made.key, root, options)


def replica_pids(name: str) -> list[int]:
    """Return the processes of a deployment's replicas, from Ray's state API."""
    import ray
    from ray.util.state import list_actors

    here = ray.get_runtime_context().gcs_address
    actors = list_actors(here, detail=True, limit=1000, filters=[("state", "=", "ALIVE")])
    return [a.pid for a in actors if f"{APP}#{name}#" in str(a.name) and a.pid]
