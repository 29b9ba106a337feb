"""`medray.load_model`: a package as one call, from arrays, DICOM and volume files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medray
from medray.errors import ConfigError, DataError
from medray.formats.nifti import write_nifti
from medray.phantoms.series import SeriesSpec, known_volume, write_ct_series
from tests.prepared_data import mask_examples
from tests.tiny_models import fresh_package, tiny


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe, hparams = tiny("pancreas_segmentation", filters=(4, 8))
    examples = {"train": mask_examples(1, size=16, seed=0)}
    out = tmp_path_factory.mktemp("package")
    return fresh_package(out, recipe, hparams, examples, {"threshold": 0.5})


def test_a_volume_its_series_and_its_file_give_one_answer(package: str, tmp_path: Path) -> None:
    model = medray.load_model(package)
    volume = known_volume((9, 30, 24))
    write_ct_series(tmp_path / "ct", volume)
    with (tmp_path / "ct.nii.gz").open("wb") as file:
        write_nifti(file, volume, gz=True)
    expected = model.predict(volume)
    assert expected.mask.shape == volume.array.shape
    assert expected.mask.dtype == np.uint8
    assert 0 < expected.mask.mean() < 1
    assert np.allclose(expected.affine_lps, volume.affine_lps)
    for place in (tmp_path / "ct", str(tmp_path / "ct.nii.gz")):
        found = model.predict(place)
        assert (found.mask == expected.mask).mean() > 0.999
        assert np.allclose(found.affine_lps, expected.affine_lps, atol=1e-3)


def test_what_is_no_single_volume_is_refused(package: str, tmp_path: Path) -> None:
    model = medray.load_model(package)
    for seed in (1, 2):
        write_ct_series(
            tmp_path / "two" / str(seed), known_volume((5, 10, 8)), SeriesSpec(seed=seed)
        )
    with pytest.raises(ConfigError, match="2 volumes lie there"):
        model.predict(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="0 volumes lie there"):
        model.predict(tmp_path / "none")
    write_ct_series(tmp_path / "gap", known_volume(), SeriesSpec(leave_out=(5,)))
    with pytest.raises(DataError, match="missing_slices"):
        model.predict(tmp_path / "gap")
    with pytest.raises(DataError, match="model_missing"):
        medray.load_model(tmp_path)


def test_the_import_alone_loads_neither_torch_nor_ray() -> None:
    probe = (
        "import sys, medray; medray.load_model; print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
