from dataclasses import replace

import numpy as np
import pytest

from medray.dicom.header import InstanceHeader
from medray.dicom.series import split_series
from medray.phantoms.series import SeriesSpec, known_volume, write_ct_series
from tests.unit.dicom_fixtures import read_instances

SHAPE = (8, 10, 12)


def stacks_of(tmp_path, **changes):
    """Write one series, change headers of some slices, return its stacks."""
    paths = write_ct_series(tmp_path, known_volume(SHAPE))
    instances = read_instances(paths)
    for index, change in changes.pop("at", {}).items():
        instances[index] = replace(
            instances[index], header=replace(instances[index].header, **change)
        )
    return split_series(instances)


def test_header_survives_json(tmp_path):
    for item in read_instances(write_ct_series(tmp_path, known_volume(SHAPE))):
        assert InstanceHeader.from_json(item.header.to_json()) == item.header


def test_file_names_and_their_order_decide_nothing(tmp_path):
    paths = write_ct_series(tmp_path, known_volume(SHAPE))
    instances = read_instances(paths)
    (first,) = split_series(instances)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(instances))
        (again,) = split_series([instances[n] for n in order])
        assert again == replace(first, geometry=again.geometry)
        assert np.array_equal(again.geometry.affine_lps, first.geometry.affine_lps)
    assert [item.uri for item in first.instances] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rows": 20}, "mixed_size"),
        ({"columns": 20}, "mixed_size"),
    ],
)
def test_an_odd_slice_is_named_by_what_is_odd_and_its_absence_is_seen(tmp_path, change, reason):
    verdicts = sorted(stack.verdict for stack in stacks_of(tmp_path, at={3: change}))
    assert verdicts == sorted([reason, "missing_slices"])


def test_a_turned_slice_is_mixed_orientation(tmp_path):
    paths = write_ct_series(tmp_path, known_volume(SHAPE))
    instances = read_instances(paths)
    plane = replace(instances[0].header.planes[0], orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    instances[0] = replace(instances[0], header=replace(instances[0].header, planes=(plane,)))
    verdicts = {stack.verdict: stack.num_slices for stack in split_series(instances)}
    assert verdicts == {"mixed_orientation": 1, "ok": 7}


def test_two_acquisitions_at_the_same_positions_are_two_volumes(tmp_path):
    volume = known_volume(SHAPE)
    first = SeriesSpec(name="pass1", series_uid="1.2.3", study_uid="1.2")
    second = replace(first, name="pass2", tags={"AcquisitionNumber": 2})
    paths = write_ct_series(tmp_path / "a", volume, first) + write_ct_series(
        tmp_path / "b", volume, second
    )
    stacks = split_series(read_instances(paths))
    assert [(s.verdict, s.num_slices) for s in stacks] == [("ok", 8), ("ok", 8)]
    assert len({s.series_key for s in stacks}) == 2


def test_step_and_shoot_acquisitions_are_one_volume_but_interleaved_ones_are_not(tmp_path):
    def numbered(rule):
        def edit(dataset, k):
            dataset.AcquisitionNumber = rule(k)

        return edit

    one_each = SeriesSpec(edit=numbered(lambda k: k + 1))
    (stack,) = split_series(
        read_instances(write_ct_series(tmp_path / "a", known_volume(SHAPE), one_each))
    )
    assert (stack.verdict, stack.num_slices) == ("ok", 8)
    alternating = SeriesSpec(edit=numbered(lambda k: k % 2), name="b")
    stacks = split_series(
        read_instances(write_ct_series(tmp_path / "b", known_volume(SHAPE), alternating))
    )
    assert [s.num_slices for s in stacks] == [4, 4]


def test_series_uid_shared_by_two_patients_makes_two_series(tmp_path):
    volume = known_volume(SHAPE)
    paths = []
    for n in (1, 2):
        spec = SeriesSpec(seed=n, series_uid="1.2.3", study_uid="1.2", tags={"PatientID": f"P{n}"})
        paths += write_ct_series(tmp_path / str(n), volume, spec)
    stacks = split_series(read_instances(paths))
    assert [(s.verdict, s.num_slices) for s in stacks] == [("ok", 8), ("ok", 8)]
    assert len({s.series_key for s in stacks}) == 2


def test_empty_uids_are_grouped_by_folder(tmp_path):
    volume = known_volume(SHAPE)
    empty = {"SeriesInstanceUID": "", "StudyInstanceUID": "", "PatientID": ""}
    paths = []
    for n in (1, 2):
        paths += write_ct_series(tmp_path / str(n), volume, SeriesSpec(seed=n, tags=empty))
    stacks = split_series(read_instances(paths))
    assert [(s.verdict, s.num_slices) for s in stacks] == [("ok", 8), ("ok", 8)]
    assert len({s.series_key for s in stacks}) == 2


def test_localizers_and_objects_without_pixels_are_told_apart(tmp_path):
    scout = {"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    (stack,) = stacks_of(tmp_path, at=dict.fromkeys(range(8), scout))
    assert stack.verdict == "localizer"
    (report,) = stacks_of(tmp_path, at={n: {"has_pixels": False} for n in range(8)})
    assert (report.kind, report.verdict) == ("other", "no_pixels")


def test_two_slices_are_too_few(tmp_path):
    paths = write_ct_series(tmp_path, known_volume(SHAPE), SeriesSpec(leave_out=tuple(range(2, 8))))
    (stack,) = split_series(read_instances(paths))
    assert (stack.verdict, stack.detail) == ("too_few_slices", "2 slices where 3 are needed")


def test_completeness_is_told_where_the_header_counts(tmp_path):
    paths = write_ct_series(
        tmp_path, known_volume(SHAPE), SeriesSpec(leave_out=(7,), tags={"ImagesInAcquisition": 8})
    )
    (stack,) = split_series(read_instances(paths))
    assert stack.flags == ("completeness=partial",)


def test_real_series_get_the_verdicts_that_their_sources_lead_to(real_data):
    def verdicts(folder):
        paths = sorted(p for p in (real_data / folder).rglob("*") if p.suffix == ".dcm")
        return sorted((s.verdict, s.num_slices) for s in split_series(read_instances(paths)))

    assert verdicts("ct_series/lung_pet_ct_dx_A0001") == [("ok", 9), ("ok", 64)]
    assert verdicts("ct_series/missing_slice_ge") == [("missing_slices", 4)]
    assert verdicts("ct_series/same_position_siemens") == [("duplicate_positions", 4)]
    assert verdicts("ct_series/ge_tilt_variable_spacing") == [("ok", 14), ("ok", 14)]
    assert verdicts("ct_series/orientations_ny_sbu") == [("too_few_slices", 1)] * 12
    assert verdicts("ct_series/lungmask_pair") == [("too_few_slices", 2)]


def test_members_of_an_archive_share_the_folder_inside_it(tmp_path):
    """The archive's own path has slashes too; they must not part its members."""
    empty = {"SeriesInstanceUID": "", "StudyInstanceUID": "", "PatientID": ""}
    paths = write_ct_series(tmp_path, known_volume(SHAPE), SeriesSpec(tags=empty))
    members = [
        replace(item, uri=f"zip://a/b/{n}.dcm::/some/where/study.zip")
        for n, item in enumerate(read_instances(paths))
    ]
    (stack,) = split_series(members)
    assert (stack.verdict, stack.num_slices) == ("ok", 8)
