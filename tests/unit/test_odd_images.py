"""Images that hold nothing: an example or a reason, never another exception."""

import numpy as np
import pytest

from medray.datasets.record import Sample
from medray.errors import DataError
from medray.tasks import TASKS, get_recipe
from medray.volume import Image2D

PLANAR = [name for name in TASKS if get_recipe(name).is_planar]
ODD = {
    "one pixel": np.full((1, 1), 700, np.int16),
    "one row": np.arange(90, dtype=np.int16)[None],
    "one column": np.arange(90, dtype=np.int16)[:, None],
    "black": np.zeros((80, 60), np.int16),
    "one value": np.full((80, 60), 1234, np.int16),
    "two values": np.repeat(np.array([[0, 4095]], np.int16), 60, axis=0),
    "eight bit black": np.zeros((80, 60), np.uint8),
    "colour": np.zeros((80, 60, 3), np.uint8),
    "needle": np.pad(np.ones((1, 1), np.int16), ((0, 2000), (0, 1))),
}


@pytest.mark.parametrize("task", PLANAR)
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("modality", ["CT", "MG"])
def test_an_image_without_content_is_an_example_or_a_reason(
    task: str, kind: str, modality: str
) -> None:
    recipe = get_recipe(task)
    image = Image2D(array=ODD[kind], meta={"modality": modality, "laterality": "L"})
    sample = Sample(
        image=image,
        label=0,
        boxes_xyxy_px=np.zeros((0, 4)),
        box_labels=np.zeros(0, np.int64),
        meta={"modality": modality},
    )
    try:
        prepared = recipe.prepare(sample, recipe.tiny_hparams)
    except DataError as error:
        assert error.detail
        return
    found = prepared.arrays["image"]
    assert found.ndim == 3
    assert np.isfinite(found.astype(np.float64)).all()
