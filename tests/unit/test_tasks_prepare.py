import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from medray.config import override
from medray.datasets.loading import load_sample
from medray.datasets.record import ImageSource, Record, Sample
from medray.errors import ConfigError, DataError
from medray.phantoms.instance import SOP_CLASSES, new_dataset, set_pixels, write_instance
from medray.tasks import TASKS, get_recipe
from medray.volume import Image2D, Volume
from tests.unit.fake_trees import fake_tree, parts, write
from tests.unit.source_trees import LocalIO, tree_of

EXPLICIT = "1.2.840.10008.1.2.1"


def prepared(task, record, *settings):
    recipe = get_recipe(task)
    sample = load_sample(record, LocalIO())
    return recipe.prepare(sample, override(recipe.tiny_hparams, settings)), sample


def same(first, second):
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.dtype == second.arrays[name].dtype
        np.testing.assert_array_equal(array, second.arrays[name])
    assert json.dumps(first.meta, sort_keys=True) == json.dumps(second.meta, sort_keys=True)


@pytest.mark.parametrize("name", TASKS)
def test_recipes_are_small_and_complete(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    # Numbers and names of functions: a function that went by value would bring its module along.
    assert len(pickle.dumps(recipe)) < 4096
    assert type(recipe.tiny_hparams) is type(recipe.hparams)
    names = {field.name for field in fields(recipe.hparams)}
    assert {"compat", *recipe.prepare_fields} <= names
    assert recipe.hparams.compat == recipe.tiny_hparams.compat == "none"


def test_unknown_tasks_are_explained():
    with pytest.raises(
        ConfigError, match=r"unknown task 'lung_detektion': did you mean 'lung_detection'\?"
    ):
        get_recipe("lung_detektion")


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        ("lung_detection", "size=100", "size must be a positive multiple of 32, got 100"),
        ("lung_detection", "background_per_series=-1", "must be >= 0"),
        ("lung_classification", "size=9", "size must be a multiple of 8"),
        ("lung_classification", "box_mm=0", "box_mm must be > 0, got 0.0"),
        ("pancreas_segmentation", "size=20", "size must be a positive multiple of 16, got 20"),
        ("pancreas_segmentation", "spacing_mm=0", "spacing_mm must be > 0"),
        ("pancreas_classification", "size=1", "size must be a multiple of 8"),
        ("pancreas_classification", "margin=-1", "margin and mask_value must be >= 0"),
        ("pneumonia_detection", "size=5", "size must be a positive multiple of 32"),
        ("breast_roi", "size=5", "size must be a positive multiple of 32"),
        ("breast_classification", "width=5", "height and width must be multiples of 32"),
        ("breast_classification", "compat=half", "compat must be one of none, original"),
    ],
)
def test_wrong_hyperparameters_are_refused(task, setting, message):
    with pytest.raises(ConfigError, match=message):
        override(get_recipe(task).hparams, [setting])


@pytest.mark.parametrize(
    "task", ["lung_detection", "pneumonia_detection", "breast_roi", "breast_classification"]
)
def test_two_dimensional_tasks_refuse_volumes(task):
    sample = Sample(image=Volume(array=np.zeros((3, 3, 3)), affine_lps=np.eye(4)))
    with pytest.raises(DataError, match="wrong_modality"):
        get_recipe(task).prepare(sample, get_recipe(task).tiny_hparams)


@pytest.mark.parametrize(
    "task", ["lung_classification", "pancreas_segmentation", "pancreas_classification"]
)
def test_volume_tasks_refuse_images(task):
    with pytest.raises(DataError, match="wrong_modality"):
        get_recipe(task).prepare(
            Sample(image=Image2D(array=np.zeros((3, 3)))), get_recipe(task).tiny_hparams
        )


# Lung -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lung(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lung")
    get_recipe("lung_detection").phantom(root, num_patients=3, seed=3, defects=False, size="tiny")
    return root


def lung_records(root, task="lung_detection", *settings):
    recipe = get_recipe(task)
    return parts(recipe.records(tree_of(root), override(recipe.tiny_hparams, settings)))


def test_lung_slices_are_those_of_the_truth(lung):
    truth = json.loads((lung / "truth.json").read_text())["cases"]
    records, rejected, _ = lung_records(
        lung, "lung_detection", "stream=both", "background_per_series=0"
    )
    assert not rejected
    expected = {case["path"]: [tuple(box) for box in case["boxes_xyxy_px"]] for case in truth}
    assert {record.name: list(record.boxes_xyxy_px) for record in records} == expected


def test_lung_boxes_lie_on_the_tumour(lung):
    records, _, _ = lung_records(lung)
    marked = [record for record in records if not record.meta["background"]]
    assert 0 < len(marked) < len(records)
    for record in marked:
        example, sample = prepared("lung_detection", record, "size=128")
        image, (x0, y0, x1, y1) = example.arrays["image"], example.arrays["boxes"][0]
        assert (image.shape, image.dtype) == ((1, 128, 128), np.int16)
        assert image[0, int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].max() > -350
        # Back to the original: scale and offset are all that postprocessing gets.
        (top, left), (sy, sx) = example.meta["offset_yx_px"], example.meta["scale_yx"]
        restored = (example.arrays["boxes"][0] - [left, top, left, top]) / [sx, sy, sx, sy]
        np.testing.assert_allclose(restored, sample.boxes_xyxy_px[0], atol=1e-3)
        assert example.meta["original_shape"] == list(sample.image.array.shape)


def test_lung_slices_in_all_forms(lung):
    both, _, _ = lung_records(lung, "lung_detection", "stream=both", "background_per_series=0")
    grey, _, _ = lung_records(lung, "lung_detection", "background_per_series=0")
    colour = next(record for record in both if record.name not in {r.name for r in grey})
    for record in (grey[0], colour):
        example, _ = prepared("lung_detection", record, "stream=both", "size=128")
        assert (example.arrays["image"].shape, example.arrays["image"].dtype) == (
            (3, 128, 128),
            np.uint8,
        )
        same(example, prepared("lung_detection", record, "stream=both", "size=128")[0])
    windows, _ = prepared("lung_detection", grey[0], "pixels=windows")
    hu, _ = prepared("lung_detection", grey[0])
    inside = hu.arrays["image"][0]
    assert (windows.arrays["image"][0][inside > 0] >= 254).all()
    assert (windows.arrays["image"][1][inside < -150] == 0).all()
    original, _ = prepared("lung_detection", grey[0], "compat=original")
    assert original.arrays["image"].min() == 0
    assert original.arrays["image"].max() >= 250


def test_lung_compat_keeps_three_slices_a_patient(lung):
    records, _, _ = lung_records(lung, "lung_detection", "compat=original", "stream=both")
    assert not any(record.meta["background"] for record in records)
    patients = [record.patient_id for record in records]
    assert max(patients.count(patient) for patient in patients) == 3


def test_lung_series_and_their_classes(lung):
    truth = json.loads((lung / "truth.json").read_text())["cases"]
    records, rejected, _ = lung_records(lung, "lung_classification")
    assert not rejected
    assert sorted("ABG"[record.label] for record in records) == sorted(
        {case["patient_id"][8] for case in truth}
    )
    for record in records:
        center = next(c["lesion_center_mm"] for c in truth if c["patient_id"] == record.patient_id)
        # Slices are 12 mm apart, so the middle of those marked is that far off at most.
        assert np.abs(np.subtract(record.meta["tumour_centre_lps_mm"], center)).max() < 12


def test_lung_volumes_whole_and_round_the_tumour(lung):
    records, _, _ = lung_records(lung, "lung_classification", "pet_channel=true")
    whole, sample = prepared("lung_classification", records[0])
    assert (whole.arrays["image"].shape, whole.arrays["image"].dtype) == ((32, 32, 32), np.int16)
    assert whole.label == records[0].label
    assert abs(int(whole.arrays["image"].max()) - int(sample.image.array.max())) < 600
    cube, _ = prepared("lung_classification", records[0], "view=box", "pet_channel=true")
    np.testing.assert_allclose(cube.spacing_mm, (3.0, 3.0, 3.0))
    middle = cube.affine_lps @ [15.5, 15.5, 15.5, 1]
    np.testing.assert_allclose(middle[:3], records[0].meta["tumour_centre_lps_mm"], atol=1e-6)
    # Squamous tumours are hollow, so the wall is looked for, not the middle.
    assert (cube.arrays["image"][10:22, 10:22, 10:22] > -350).mean() > 0.1
    assert cube.arrays["pet"].dtype == np.uint16
    # The tumour takes up more than the body around it.
    assert cube.arrays["pet"][14:18, 14:18, 14:18].mean() > 1.5 * np.median(cube.arrays["pet"])
    same(cube, prepared("lung_classification", records[0], "view=box", "pet_channel=true")[0])
    original, _ = prepared("lung_classification", records[0], "compat=original")
    assert (original.arrays["image"].min(), original.spacing_mm[0]) == (-1000, pytest.approx(1.0))


def test_lung_cube_and_pet_need_what_they_are_made_of():
    sample = Sample(image=Volume(array=np.zeros((9, 9, 9), np.int16), affine_lps=np.eye(4)))
    recipe = get_recipe("lung_classification")
    with pytest.raises(DataError, match="no_label: a cube round the tumour needs a marked tumour"):
        recipe.prepare(sample, replace(recipe.tiny_hparams, view="box"))
    with pytest.raises(DataError, match="suv_not_computable: the sample has no PET"):
        recipe.prepare(sample, replace(recipe.tiny_hparams, pet_channel=True))


# Pancreas -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pancreas(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pancreas")
    get_recipe("pancreas_segmentation").phantom(
        root, num_patients=2, seed=5, defects=False, size="tiny"
    )
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    get_recipe("pancreas_classification").phantom(
        root, num_patients=4, seed=5, defects=False, size="tiny"
    )
    return root


def test_pancreas_masks_lie_on_the_organ(pancreas):
    recipe = get_recipe("pancreas_segmentation")
    records, rejected, _ = parts(recipe.records(tree_of(pancreas), recipe.tiny_hparams))
    assert (len(records), len(rejected)) == (2, 0)
    for record in records:
        example, sample = prepared("pancreas_segmentation", record)
        image, mask = example.arrays["image"], example.arrays["mask"]
        assert (image.shape, image.dtype, mask.dtype) == ((48, 48, 48), np.int16, np.uint8)
        assert sample.meta["mask_alignment"] == "index"
        values = image[mask == 1]
        assert ((values > -50) & (values < 250)).mean() > 0.9
        native = np.count_nonzero(sample.mask.array) * abs(
            np.linalg.det(sample.image.affine_lps[:3, :3])
        )
        kept = np.count_nonzero(mask) * abs(np.linalg.det(example.affine_lps[:3, :3]))
        assert kept == pytest.approx(native, rel=0.15)
        same(example, prepared("pancreas_segmentation", record)[0])


def test_pancreas_grids(pancreas):
    recipe = get_recipe("pancreas_segmentation")
    record = parts(recipe.records(tree_of(pancreas), recipe.tiny_hparams))[0][0]
    even, sample = prepared("pancreas_segmentation", record, "grid=isotropic", "spacing_mm=6")
    np.testing.assert_allclose(even.spacing_mm, (6, 6, 6))
    assert even.arrays["mask"].shape == even.arrays["image"].shape
    original, _ = prepared("pancreas_segmentation", record, "compat=original", "size=32")
    assert original.arrays["image"].shape == (35, 35, 35)
    slope, intercept = sample.meta["rescale_slope"], sample.meta["rescale_intercept"]
    stored = set(np.unique((sample.image.array - intercept) / slope).tolist())
    assert set(np.unique(original.arrays["image"]).tolist()) <= stored
    alone = recipe.prepare(replace(sample, mask=None), recipe.tiny_hparams)
    assert set(alone.arrays) == {"image"}


def test_pancreas_crops_follow_the_organ(folders):
    recipe = get_recipe("pancreas_classification")
    records, rejected, _ = parts(recipe.records(tree_of(folders), recipe.tiny_hparams))
    assert (len(records), len(rejected)) == (4, 0)
    truth = {
        c["patient_id"]: c["label"]
        for c in json.loads((folders / "truth.json").read_text())["cases"]
    }
    assert {r.patient_id: r.label for r in records} == {p: int(label) for p, label in truth.items()}
    example, sample = prepared("pancreas_classification", records[0], "margin=0")
    mask = example.arrays["mask"]
    assert mask.shape == example.arrays["image"].shape == (32, 32, 32)
    touched = [mask.any(axis=(1, 2)), mask.any(axis=(0, 2)), mask.any(axis=(0, 1))]
    assert all(side[[0, -1]].all() for side in touched)
    lit, _ = prepared("pancreas_classification", records[0], "outside_zero=true")
    edge = lit.arrays["image"][lit.arrays["mask"] == 0]
    assert np.median(edge) == 0
    original, _ = prepared("pancreas_classification", records[0], "compat=original")
    assert original.arrays["image"].shape == (38, 38, 38)
    whole = recipe.prepare(replace(sample, mask=None), recipe.tiny_hparams)
    assert set(whole.arrays) == {"image"}
    empty = replace(sample, mask=sample.mask.with_array(np.zeros_like(sample.mask.array)))
    with pytest.raises(DataError, match="mask_empty: the organ mask is empty"):
        recipe.prepare(empty, recipe.tiny_hparams)


def test_real_mask_with_flipped_rows_lies_on_the_pancreas(real_data, tmp_path):
    source = real_data / "masks" / "totalsegmentator_dicom"
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".md":
            write(tmp_path / path.relative_to(source), path.read_bytes())
    rows = [{"image": "dicom", "label": "seg.nii.gz", "patient_id": "p1"}]
    write(tmp_path / "datalist.json", json.dumps({"training": rows}))
    recipe = get_recipe("pancreas_segmentation")
    records, rejected, _ = parts(recipe.records(tree_of(tmp_path), recipe.hparams))
    assert not rejected
    sample = load_sample(records[0], LocalIO())
    with pytest.raises(DataError, match="label_unknown: the mask has several labels"):
        recipe.prepare(sample, recipe.tiny_hparams)
    for value, low, high in ((7, -50, 250), (5, 0, 200)):
        example = recipe.prepare(sample, replace(recipe.tiny_hparams, mask_value=value))
        organ = sample.image.array[sample.mask.array == value]
        assert ((organ > low) & (organ < high)).mean() > 0.9
        assert example.arrays["mask"].any()
    assert np.count_nonzero(sample.mask.array == 7) == 1327


# Radiographs and mammograms --------------------------------------------------------------------


def breast_pixels(*, right=False, shape=(96, 72)):
    """Half an ellipse of tissue at the left edge, bright = dense, with one dense spot and a tag."""
    y, x = np.indices(shape)
    tissue = ((y - shape[0] / 2) / 36) ** 2 + (x / 44) ** 2 < 1
    values = np.where(tissue, 900 + 3 * x + y, 20)
    values[40:46, 20:26] = 2500
    values[2:6, 64:70] = 3000  # burned-in tag, apart from the breast
    return np.ascontiguousarray(values[:, ::-1] if right else values).astype(np.uint16)


def write_image(path, pixels, **tags):
    known = {
        "SOPClassUID": SOP_CLASSES["MG"], "SOPInstanceUID": f"1.2.3.{crc32(str(path).encode())}",
        "StudyInstanceUID": "1.2.3.8", "SeriesInstanceUID": f"1.2.3.9.{crc32(str(path).encode())}",
        "PatientID": path.parent.name, "Modality": "MG", "PhotometricInterpretation": "MONOCHROME2",
        "InstanceNumber": 1, "PixelSpacing": [0.2, 0.2],
    }  # fmt: skip
    dataset = new_dataset({**known, **tags})
    set_pixels(dataset, pixels[None], syntax=EXPLICIT, bits_stored=8 * pixels.dtype.itemsize)
    return write_instance(path, dataset)


def record_of(path) -> Record:
    (series,) = tree_of(path.parent).series
    file = series.instances[0].file
    return Record(
        name="x", patient_id="p", image=ImageSource(form="instance", files=(file,)), label=1
    )


def breast_example(folder, pixels, *settings, task="breast_classification", **tags):
    path = write_image(folder / "x" / "1.dcm", pixels, **tags)
    return prepared(task, record_of(path), *settings)[0]


def test_breast_is_cropped_cleaned_and_turned(tmp_path):
    left = breast_example(tmp_path / "a", breast_pixels())
    image = left.arrays["image"]
    assert (image.shape, image.dtype, left.label) == ((1, 128, 64), np.uint16, 1)
    assert image.max() == 65535
    assert (image[0, :, 0] > 0).sum() > 100  # the chest wall is at the left
    assert (image[0, :4, -6:] == 0).all()  # the tag is gone
    right = breast_example(tmp_path / "b", breast_pixels(right=True))
    np.testing.assert_array_equal(right.arrays["image"], image)
    assert (left.meta["flipped"], right.meta["flipped"]) == (False, True)


def test_another_body_part_keeps_its_background_and_its_side(tmp_path):
    pixels = breast_pixels(right=True)
    whole = breast_example(tmp_path, pixels, "foreground=whole")
    assert whole.meta["flipped"] is False
    assert whole.meta["crop_xyxy_px"] == [0, 0, pixels.shape[1], pixels.shape[0]]
    height, width = (np.array(pixels.shape) * whole.meta["scale_yx"]).round().astype(int)
    top, left = whole.meta["offset_yx_px"]
    image = whole.arrays["image"][0, top : top + height, left : left + width]
    assert (image[:, -1] > 0).sum() > 0.7 * height  # the chest wall stays at the right
    assert image[:7, 1:9].max() == 65535  # and the tag is kept


def test_monochrome1_gives_the_same_example(tmp_path):
    plain = breast_pixels()
    turned = (4095 - plain.astype(np.int32)).astype(np.uint16)
    first = breast_example(tmp_path / "a", plain, WindowCenter=1500, WindowWidth=2000)
    second = breast_example(
        tmp_path / "b", turned, PhotometricInterpretation="MONOCHROME1",
        WindowCenter=2595, WindowWidth=2000,
    )  # fmt: skip
    difference = first.arrays["image"].astype(int) - second.arrays["image"].astype(int)
    assert np.abs(difference).max() <= 1


def test_sigmoid_is_applied_and_linear_windows_are_not(tmp_path):
    window = {"WindowCenter": 1200, "WindowWidth": 600}
    plain = breast_example(tmp_path / "a", breast_pixels())
    linear = breast_example(tmp_path / "b", breast_pixels(), **window)
    curved = breast_example(tmp_path / "c", breast_pixels(), **window, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(plain.arrays["image"], linear.arrays["image"])
    assert np.abs(plain.arrays["image"].astype(int) - curved.arrays["image"]).max() > 5000


def test_breast_compat_pads_away_from_the_breast(tmp_path):
    wide = np.pad(breast_pixels(), ((0, 160), (0, 0)), constant_values=20)
    example = breast_example(tmp_path, wide, "compat=original")
    assert example.arrays["image"].dtype == np.uint8
    assert example.meta["offset_yx_px"] == [0, 0]
    assert example.meta["flipped"] is False
    turned = breast_example(tmp_path / "r", np.ascontiguousarray(wide[:, ::-1]), "compat=original")
    assert turned.meta["offset_yx_px"][1] > 0


def test_roi_without_labels_is_found_by_shape(tmp_path):
    example = breast_example(tmp_path, breast_pixels(), task="breast_roi")
    (x0, y0, x1, y1) = example.arrays["boxes"][0]
    # 96 x 72 pixels become 128 x 96 in the middle of 128 x 128.
    assert example.arrays["image"].shape == (1, 128, 128)
    np.testing.assert_allclose([x0, y0, x1, y1], [16, 16, 16 + 44 * 4 / 3, 112], atol=3)
    assert example.meta["boxes_found"]
    stretched = breast_example(
        tmp_path / "o", breast_pixels(), "compat=original", task="breast_roi"
    )
    np.testing.assert_allclose(stretched.arrays["boxes"][0][[0, 2]], [0, 44 * 128 / 72], atol=3)


def chest(shape=(64, 48)):
    return np.random.default_rng([3, 1]).integers(10, 240, shape).astype(np.uint8)


def test_pneumonia_keeps_eight_bits_and_scales_boxes(tmp_path):
    path = write_image(
        tmp_path / "x" / "1.dcm", chest((128, 128)), Modality="CR", SOPClassUID=SOP_CLASSES["CR"]
    )
    record = replace(record_of(path), boxes_xyxy_px=((10.0, 20.0, 30.0, 60.0),), box_labels=(0,))
    example, _ = prepared("pneumonia_detection", record)
    np.testing.assert_array_equal(example.arrays["image"][0], chest((128, 128)))
    np.testing.assert_array_equal(example.arrays["boxes"], [[10, 20, 30, 60]])
    half, _ = prepared("pneumonia_detection", record, "size=64")
    np.testing.assert_array_equal(half.arrays["boxes"], [[5, 10, 15, 30]])
    assert half.spacing_mm == (0.4, 0.4)


@pytest.mark.parametrize(
    ("compat", "boxes", "labels"),
    [("none", 0, []), ("whole_image", 1, [1]), ("original", 1, [0])],
)
def test_pneumonia_healthy_images(tmp_path, compat, boxes, labels):
    path = write_image(tmp_path / "x" / "1.dcm", chest((128, 128)), Modality="CR")
    record = replace(record_of(path), boxes_xyxy_px=(), box_labels=(), label=0)
    example, _ = prepared("pneumonia_detection", record, f"compat={compat}")
    assert example.arrays["boxes"].shape == (boxes, 4)
    assert example.arrays["box_labels"].tolist() == labels
    if boxes:
        np.testing.assert_array_equal(example.arrays["boxes"], [[0, 0, 127, 127]])


def test_boxes_beyond_the_decoded_image_are_refused(tmp_path):
    path = write_image(tmp_path / "x" / "1.dcm", chest(), Modality="CR")
    record = replace(record_of(path), boxes_xyxy_px=((10.0, 20.0, 49.0, 60.0),), box_labels=(0,))
    with pytest.raises(DataError, match="box_out_of_image"):
        load_sample(record, LocalIO())
    masked = replace(record_of(path), mask=ImageSource(form="volume_file", files=()))
    with pytest.raises(DataError, match="label_geometry_mismatch: a mask needs a volume"):
        load_sample(masked, LocalIO())


def test_shares_become_pixels_when_the_image_is_read(tmp_path):
    path = write_image(tmp_path / "x" / "1.dcm", chest(), Modality="CR")
    record = replace(
        record_of(path),
        boxes_xyxy_px=((0.25, 0.5, 0.5, 1.0),),
        box_labels=(0,),
        meta={"boxes_unit": "share"},
    )
    np.testing.assert_array_equal(load_sample(record, LocalIO()).boxes_xyxy_px, [[12, 32, 24, 64]])


def test_yolo_images_of_a_folder_are_prepared(tmp_path):
    from medray.formats.images import write_png

    write(tmp_path / "data.yaml", "names: [tumour]")
    write(tmp_path / "images" / "train" / "a_1.png", write_png(chest()))
    write(tmp_path / "labels" / "train" / "a_1.txt", "0 0.5 0.5 0.5 0.5\n")
    recipe = get_recipe("lung_detection")
    records, _, _ = parts(recipe.records(fake_tree(tmp_path, []), recipe.tiny_hparams))
    with pytest.raises(DataError, match="wrong_modality: the network takes CT in HU"):
        prepared("lung_detection", records[0])
    example, _ = prepared("lung_detection", records[0], "pixels=windows", "size=128")
    assert (example.arrays["image"].shape, example.arrays["image"].dtype) == (
        (3, 128, 128),
        np.uint8,
    )
    np.testing.assert_allclose(example.arrays["boxes"], [[40, 32, 88, 96]])


@pytest.mark.parametrize("folder", ["mammo/nema_mg1", "cxr/dx_dicom"])
def test_real_projections_are_prepared(real_data, folder):
    for series in tree_of(real_data / folder).series:
        if series.instances[0].file.uri.endswith("/966.dcm"):
            continue  # known to be broken
        image = ImageSource(form="instance", files=(series.instances[0].file,))
        record = Record(name="x", patient_id="p", image=image, label=0)
        sample = load_sample(record, LocalIO())
        assert sample.image.photometric in {"MONOCHROME1", "MONOCHROME2"}
        for task in ("breast_roi", "breast_classification", "pneumonia_detection"):
            recipe = get_recipe(task)
            assert recipe.prepare(sample, recipe.tiny_hparams).arrays["image"].std() > 0
