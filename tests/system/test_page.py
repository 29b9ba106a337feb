"""The web page in the system's Chromium, against a server that answers what the test says."""

import base64
import io
import json
import zipfile

import numpy as np
import pydicom
import pytest
from PIL import Image

from medray.phantoms.naming import uid
from medray.phantoms.series import (
    CORONAL,
    GE,
    SAGITTAL,
    SeriesSpec,
    affine_from_dicom,
    known_volume,
    reorient,
    sop_uid,
)
from medray.volume import Volume
from tests.stub_server import KEY, answer, result, stub_server
from tests.system.page_driver import (
    chromium,
    coloured,
    enter,
    nifti_bytes,
    pixels,
    says,
    series_zip,
)

SHAPE = (12, 40, 32)
SERIES = uid("series", 0, "series")


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def stub():
    with stub_server() as running:
        yield running


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on(
        "console",
        lambda line: (
            opened.complaints.append(line.text)
            if line.type == "error" and "status of" not in line.text
            else None
        ),
    )
    yield opened
    context.close()
    assert opened.complaints == []


def masked(volume: Volume, *, threshold_hu: float = 150) -> Volume:
    return volume.with_array((volume.array > threshold_hu).astype(np.uint8))


def run(page) -> None:
    page.click("#run")


def test_the_key_is_asked_for_and_kept_out_of_the_address(page, stub):
    page.goto(stub.url)
    page.wait_for_selector("#key-panel:not([hidden])")
    page.fill("#key", "wrong")
    page.click("text=Continue")
    page.wait_for_selector("#key-problem:has-text('The API key is not known.')")
    assert page.is_hidden("#work")
    page.fill("#key", KEY)
    page.click("text=Continue")
    says(page, "Ready.")
    assert page.locator("#model option").all_text_contents() == ["pancreas", "lung-boxes"]
    assert "Pancreas, mask on a CT volume" in page.inner_text("#model-facts")
    stored = page.evaluate("() => JSON.stringify([{...sessionStorage}, {...localStorage}])")
    assert KEY not in stored + page.url
    assert "Research use only" in page.inner_text(".notice")
    page.reload()
    page.wait_for_selector("#key-panel:not([hidden])")


def test_a_key_that_is_kept_ends_when_it_is_forgotten(page, stub):
    page.goto(stub.url)
    page.check("#keep")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    says(page, "Ready.")
    page.reload()
    says(page, "Ready.")
    page.click("#forget")
    page.wait_for_selector("#key-panel:not([hidden])")
    assert page.evaluate("() => sessionStorage.length") == 0


def test_a_server_without_keys_asks_for_none(page, stub):
    stub.needs_key = False
    page.goto(stub.url)
    says(page, "Ready.")
    assert page.is_hidden("#forget")


ORIENTATIONS = {
    "axial": affine_from_dicom(),
    "coronal": affine_from_dicom(orientation=CORONAL),
    "sagittal": affine_from_dicom(orientation=SAGITTAL),
    "oblique": affine_from_dicom(orientation=(0.96, 0.28, 0, -0.28 * 0.8, 0.96 * 0.8, 0.6)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_mask_lies_on_the_right_voxels_of_a_zip(page, stub, tmp_path, name):
    volume = known_volume(SHAPE, ORIENTATIONS[name])
    mask = masked(volume)
    stub.bodies["application/json"] = answer(result(series_uid=SERIES, volume_ml=12.5))
    # The answer's voxels may be in any order: only the place counts.
    stub.bodies["application/gzip"] = nifti_bytes(
        reorient(mask, axes=(2, 0, 1), flips=(True, False, True))
    )
    enter(page, stub.url)
    spec = SeriesSpec(vendor=GE)
    page.set_input_files("#files", str(series_zip(tmp_path, volume, spec)))
    says(page, "Ready to run.")
    before = pixels(page, 5, SHAPE[1:])
    assert not coloured(before).any()
    run(page)
    says(page, "Done.")
    page.wait_for_selector("#at-finding:has-text('mask')")
    for k in (0, 4, 5, 9, 11):
        found = coloured(pixels(page, k, SHAPE[1:]))
        assert np.array_equal(found, mask.array[k] > 0), k
    page.press("#canvas", "o")
    assert not coloured(pixels(page, 9, SHAPE[1:])).any()
    assert stub.count("predict", "gzip") == 1


def test_grey_values_are_the_windowed_hu(page, stub, tmp_path):
    volume = known_volume(SHAPE)
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, volume)))
    says(page, "Ready to run.")
    for key, (center, width) in {"1": (40, 400), "2": (-600, 1500), "3": (400, 1800)}.items():
        page.press("#canvas", key)
        grey = pixels(page, 3, SHAPE[1:])[..., 0]
        wanted = np.clip((volume.array[3] - (center - width / 2)) * 255 / width, 0, 255)
        assert np.abs(grey - wanted).max() <= 1.0, key


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_a_nifti_volume_is_shown_as_a_radiologist_holds_it(page, stub, tmp_path, axes, gz):
    volume = reorient(known_volume(SHAPE), axes=axes, flips=(False, True, False))
    mask = masked(volume)
    path = tmp_path / ("volume.nii.gz" if gz else "volume.nii")
    path.write_bytes(nifti_bytes(volume, gz=gz))
    stub.bodies["application/json"] = answer(result(volume_ml=12.5))
    stub.bodies["application/gzip"] = nifti_bytes(mask)
    enter(page, stub.url)
    page.set_input_files("#files", str(path))
    says(page, "Ready to run.")
    run(page)
    page.wait_for_selector("#at-finding:has-text('mask')")
    letters = [page.inner_text(f"#{side}") for side in ("west", "east", "north", "south")]
    upright = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
    word = page.inner_text("#at-place").split(",")[0].lower()
    assert "".join(letters) == upright[word]
    # The shown rows and columns, told apart by the letters, against the volume in LPS order.
    k = 3
    step = np.eye(3)
    columns = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[word]
    signs = (1, 1 if word == "axial" else -1)
    array, values = (
        volume.affine_lps[:3, :3] / np.linalg.norm(volume.affine_lps[:3, :3], axis=0),
        mask.array[k],
    )
    right, down = (s * step[c] for s, c in zip(signs, columns, strict=True))
    if abs(array[:, 2] @ right) < 0.5:
        values, array = values.T, array[:, [0, 2, 1]]
    values = values[:: int(np.sign(array[:, 1] @ down)), :: int(np.sign(array[:, 2] @ right))]
    assert np.array_equal(coloured(pixels(page, k, values.shape)), values > 0)


def test_a_mask_of_another_grid_is_not_drawn(page, stub, tmp_path):
    volume = known_volume(SHAPE)
    moved = volume.affine_lps.copy()
    moved[0, 3] += 0.6
    stub.bodies["application/json"] = answer(result(series_uid=SERIES, volume_ml=12.5))
    stub.bodies["application/gzip"] = nifti_bytes(
        Volume(array=masked(volume).array, affine_lps=moved)
    )
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, volume)))
    says(page, "Ready to run.")
    run(page)
    page.wait_for_selector("#viewer-note:has-text('its grid is not that of the images')")
    assert not any(coloured(pixels(page, k, SHAPE[1:])).any() for k in range(SHAPE[0]))


def test_boxes_lie_on_their_slice(page, stub, tmp_path):
    volume = known_volume(SHAPE)
    box = {
        "box_xyxy_px": [8, 10, 20, 24], "box_xyxy_mm": [10, 15, 25, 36], "label": "A",
        "score": 0.81, "sop_uid": sop_uid(SeriesSpec(), 7),
    }  # fmt: skip
    stub.bodies["application/json"] = answer(
        result(series_uid=SERIES, boxes=[box], label="A", score=0.81)
    )
    enter(page, stub.url)
    page.select_option("#model", "lung-boxes")
    page.set_input_files("#files", str(series_zip(tmp_path, volume)))
    says(page, "Ready to run.")
    run(page)
    page.wait_for_selector("#canvas[data-slice='7']")
    assert "15 \u00d7 21 mm" in page.inner_text("#results table")
    assert "8" in page.inner_text("#results table")
    # The line is white where the box is chosen, so its dark border is what tells.
    plain, drawn = pixels(page, 6, SHAPE[1:]), pixels(page, 7, SHAPE[1:])
    assert not coloured(plain).any()
    page.press("#canvas", "o")
    changed = (drawn != pixels(page, 7, SHAPE[1:])).any(axis=-1)
    assert not changed[12:23, 10:19].any()
    scale = page.evaluate("() => Number(document.getElementById('canvas').dataset.right)")
    assert scale > 5


def test_refused_and_nothing_found_look_different(page, stub, tmp_path):
    refused = result(
        status="refused",
        reason="wrong_modality",
        conformity={"score": 0.02, "flags": ["modality_differs"]},
    )
    stub.bodies["application/json"] = answer(refused)
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, known_volume(SHAPE))))
    says(page, "Ready to run.")
    run(page)
    says(page, "Refused: no answer was given.")
    card = page.locator(".result")
    words = card.inner_text()
    assert "No answer" in words
    assert "not a negative finding" in words
    assert "Nothing found" not in words
    assert "modality is none of the training images" in words
    assert card.locator("button").count() == 0
    look = card.evaluate("e => getComputedStyle(e).borderTopColor")
    stub.bodies["application/json"] = answer(result(volume_ml=0.0))
    run(page)
    says(page, "Done.")
    words = page.locator(".result").inner_text()
    assert "Nothing found: the mask is empty" in words
    assert "Complete" in words
    assert "No answer" not in words
    assert page.locator(".result").evaluate("e => getComputedStyle(e).borderTopColor") != look
    stub.bodies["application/json"] = answer(result(status="something new", label="A", score=0.9))
    run(page)
    says(page, "Refused")
    assert "No answer" in page.locator(".result").inner_text()


@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [
        (413, "too_large", "The upload is larger than the server takes."),
        (422, "too_few_slices", "2 slices where 3 are needed."),
        (429, "queue_full", "Too many requests are waiting. Try again in 7 s."),
        (503, "model_missing", "The model's files are not there."),
    ],
)
def test_a_problem_is_one_sentence(page, stub, tmp_path, status, reason, sentence):
    detail = sentence.partition(" Try")[0].rstrip(".")
    headers = {"Retry_After": "7"} if status == 429 else {}
    stub.failures.append((status, headers, {"reason": reason, "detail": detail}))
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, known_volume(SHAPE))))
    says(page, "Ready to run.")
    run(page)
    says(page, sentence)
    words = page.locator(".result").inner_text()
    assert reason in words
    assert "not a negative finding" in words
    assert page.is_enabled("#run")


def test_cancel_stops_and_leaves_the_page_usable(page, stub, tmp_path):
    stub.delay_s = 30
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, known_volume(SHAPE))))
    says(page, "Ready to run.")
    run(page)
    says(page, "The model is working")
    page.click("#cancel")
    says(page, "Cancelled.")
    assert "there is no result" in page.inner_text("#results")
    stub.delay_s = 0
    stub.bodies["application/json"] = answer(result(label="pancreas", score=0.7))
    run(page)
    says(page, "Done.")


@pytest.mark.parametrize("job_forms", [True, False])
def test_a_large_upload_becomes_a_job(page, stub, tmp_path, job_forms):
    stub.job_forms = job_forms
    rng = np.random.default_rng(0)
    noise = rng.integers(-1000, 1000, (40, 512, 512), dtype=np.int16)
    volume = Volume(array=noise, affine_lps=affine_from_dicom())
    path = tmp_path / "volume.nii"
    path.write_bytes(nifti_bytes(volume, gz=False))
    mask = volume.with_array((noise > 990).astype(np.uint8))
    stub.bodies["application/json"] = answer(result(volume_ml=1.0))
    stub.bodies["application/gzip"] = nifti_bytes(mask)
    enter(page, stub.url)
    page.set_input_files("#files", str(path))
    says(page, "Ready to run.")
    run(page)
    says(page, "Done.")
    page.wait_for_selector("#at-finding:has-text('mask')")
    assert stub.count("/v1/jobs") == 1
    assert stub.count("/result", "gzip") == 1
    assert stub.count("/predict") == (0 if job_forms else 1)
    assert stub.files[0] == path.read_bytes()


def test_a_job_that_fails_says_why(page, stub, tmp_path):
    stub.job_failure = "too_few_slices"
    page.route("**/page/page.js", lambda route: route.fulfill(
        content_type="text/javascript",
        body=(route.fetch().text()).replace("16 * 1024 * 1024", "1"),
    ))  # fmt: skip
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, known_volume(SHAPE))))
    says(page, "Ready to run.")
    run(page)
    page.wait_for_selector(".result.is-refused:has-text('too_few_slices')")
    assert "Fetch the whole series." in page.inner_text("#results")


def test_a_folder_of_files_is_zipped_and_each_series_can_be_had_alone(page, stub, tmp_path):
    from medray.phantoms.series import write_ct_series

    first, second = known_volume(SHAPE), known_volume((9, 24, 24))
    specs = [SeriesSpec(name="one"), SeriesSpec(name="two", file_pattern="2-{number:03d}.dcm")]
    files = [
        path
        for volume, spec in zip((first, second), specs, strict=True)
        for path in write_ct_series(tmp_path / spec.name, volume, spec)
    ]
    (tmp_path / "notes.txt").write_text("no image")
    uids = [uid("series", 0, spec.name) for spec in specs]
    stub.bodies["application/json"] = answer(
        result(key="a" * 16, series_uid=uids[0], volume_ml=3.0),
        result(key="b" * 16, series_uid=uids[1], volume_ml=4.0),
    )
    stub.bodies["application/gzip"] = nifti_bytes(masked(first))
    enter(page, stub.url)
    page.set_input_files("#files", [str(p) for p in [*files, tmp_path / "notes.txt"]])
    says(page, "Ready to run.")
    assert "21 DICOM files; 1 other file left out" in page.inner_text("#chosen")
    run(page)
    page.wait_for_selector("#at-finding:has-text('mask')")
    with zipfile.ZipFile(io.BytesIO(stub.files[0])) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{n + 1:05d}.dcm" for n in range(21)]
        content = sorted(archive.read(name) for name in archive.namelist())
    assert content == sorted(path.read_bytes() for path in files)
    with zipfile.ZipFile(io.BytesIO(stub.files[1])) as archive:
        assert len(archive.namelist()) == SHAPE[0]
    stub.bodies["application/gzip"] = nifti_bytes(masked(second))
    page.click(".result[data-key='bbbbbbbbbbbbbbbb'] >> text=Show this series")
    page.wait_for_function("() => document.getElementById('slider').max === '8'")
    page.wait_for_selector("#at-finding:has-text('mask')")
    with zipfile.ZipFile(io.BytesIO(stub.files[2])) as archive:
        assert len(archive.namelist()) == 9


def test_downloads_are_the_servers_bytes_or_a_sentence(page, stub, tmp_path):
    document = answer(result(key="k" * 16, label="A", score=0.7))
    stub.bodies |= {"application/json": document, "application/dicom": b"SEG bytes"}
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, known_volume(SHAPE))))
    says(page, "Ready to run.")
    run(page)
    says(page, "Done.")
    with page.expect_download() as kept:
        page.click("[aria-label='Download SEG']")
    assert kept.value.suggested_filename == "k" * 16 + ".seg.dcm"
    assert kept.value.path().read_bytes() == b"SEG bytes"
    with page.expect_download() as kept:
        page.click("[aria-label='Download JSON']")
    assert json.loads(kept.value.path().read_bytes()) == json.loads(document)
    page.click("[aria-label='Download NIfTI']")
    says(page, "No NIfTI: This model has no result of that form.")


def test_a_png_is_shown_with_its_boxes(page, stub, tmp_path):
    grey = np.add.outer(np.arange(60), 2 * np.arange(80)).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(grey).save(path)
    box = {
        "box_xyxy_px": [10, 5, 30, 25], "box_xyxy_mm": None, "label": "opacity", "score": 0.5,
        "sop_uid": "",
    }  # fmt: skip
    stub.bodies["application/json"] = answer(result(boxes=[box]))
    enter(page, stub.url)
    page.set_input_files("#files", str(path))
    says(page, "Ready to run.")
    shown = pixels(page, 0, grey.shape)[..., 0]
    assert np.abs(shown - grey).max() <= 1
    run(page)
    says(page, "Done.")
    assert "1 finding marked" in page.inner_text(".headline")
    changed = (pixels(page, 0, grey.shape)[..., 0] != shown).reshape(grey.shape)
    assert not changed[8:22, 14:26].any()


def test_a_jpeg_is_shown_in_its_stored_pixels(page, stub, tmp_path):
    grey = np.zeros((40, 80), np.uint8)
    grey[:20, :40] = 255
    path = tmp_path / "image.jpg"
    image = Image.fromarray(grey)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, quality=95, exif=exif)
    enter(page, stub.url)
    page.set_input_files("#files", str(path))
    says(page, "Ready to run.")
    shown = pixels(page, 0, grey.shape)[..., 0]
    assert np.abs(shown - grey).mean() < 3


def test_compressed_pixels_fall_back_to_the_servers_picture(page, stub, real_data):
    folder = real_data / "masks" / "totalsegmentator_dicom" / "dicom"
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 20, 20)).save(picture, format="PNG")
    stub.bodies["application/json"] = answer(result(label="pancreas", score=0.9))
    stub.bodies["image/png"] = picture.getvalue()
    enter(page, stub.url)
    page.set_input_files("#files", [str(p) for p in sorted(folder.iterdir())])
    says(page, "nothing to show yet")
    assert "compressed (JPEG 2000)" in page.inner_text("#viewer-note")
    run(page)
    page.wait_for_selector("#viewer-note:has-text('preview picture')")
    assert (pixels(page, 0, (48, 64)) == [200, 20, 20]).all()


def test_everything_works_by_keyboard_alone(page, stub, tmp_path):
    volume = known_volume(SHAPE)
    stub.bodies["application/json"] = answer(result(series_uid=SERIES, volume_ml=12.5))
    stub.bodies["application/gzip"] = nifti_bytes(masked(volume))
    # A listener from the start: one that comes with the key press may come too late for it.
    page.on("filechooser", lambda _: None)
    page.goto(stub.url)
    page.wait_for_selector("#key:focus")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    says(page, "Ready.")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                outline = page.evaluate(
                    "() => getComputedStyle(document.activeElement).outlineStyle"
                )
                assert outline != "none", selector
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{selector} is not reached by Tab")

    tab_to("#choose-files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(series_zip(tmp_path, volume)))
    says(page, "Ready to run.")
    tab_to("#run")
    page.keyboard.press("Enter")
    page.wait_for_selector("#at-finding:has-text('mask')")
    tab_to("#canvas")
    reached = {"Home": 0, "ArrowDown": 1, "PageDown": 11, "ArrowUp": 10, "PageUp": 0, "End": 11}
    for key, wanted in reached.items():
        page.keyboard.press(key)
        page.wait_for_selector(f"#canvas[data-slice='{wanted}']")
    page.keyboard.press("2")
    page.wait_for_selector("#at-window:has-text('W 1500')")
    page.keyboard.press("o")
    page.wait_for_selector("#overlay[aria-pressed=false]")
    tab_to("[aria-label='Download JSON']")


def test_the_mouse_scrolls_windows_and_reads_values(page, stub, tmp_path):
    volume = known_volume(SHAPE)
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, volume)))
    says(page, "Ready to run.")
    box = page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, 120)
    page.wait_for_selector("#canvas[data-slice='7']")
    page.mouse.move(x + 1, y + 1)
    names = ("left", "top", "right", "down")
    place = {name: float(page.get_attribute("#canvas", f"data-{name}")) for name in names}
    i = int((x + 1 - box["x"] - place["left"]) // place["right"])
    j = int((y + 1 - box["y"] - place["top"]) // place["down"])
    assert page.inner_text("#at-value") == f"{i}, {j}: {volume.array[7, j, i]} HU"
    page.mouse.down()
    page.mouse.move(x + 101, y - 49)
    page.mouse.up()
    assert page.inner_text("#at-window") == "W 560  L 120 HU"
    page.mouse.dblclick(x, y)
    page.wait_for_selector("#at-window:has-text('W 400  L 40 HU')")


def test_a_narrow_screen_shows_everything_below_one_another(page, stub, tmp_path):
    page.set_viewport_size({"width": 390, "height": 800})
    stub.bodies["application/json"] = answer(result(label="A", score=0.8))
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, known_volume(SHAPE))))
    says(page, "Ready to run.")
    run(page)
    says(page, "Done.")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    tops = [page.locator(s).bounding_box()["y"] for s in (".input", ".viewer", ".answer")]
    assert tops == sorted(tops)


# Takes each file in as the page does and looks at each slice; says what was not a plain sentence.
_TAKE_ALL = """async (coded) => {
  const { takeFiles } = await import('/page/files.js');
  const { readMask } = await import('/page/nifti.js');
  const { Unreadable } = await import('/page/unreadable.js');
  const wrong = [], counts = { shown: 0, said: 0, refused: 0 };
  for (const [n, text] of coded.entries()) {
    const blob = new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]);
    try {
      const { stacks, note } = await takeFiles([blob], () => {});
      for (const { slices } of stacks) for (const slice of slices.slice(0, 3)) {
        const { values, rgba } = await slice.read();
        const area = slice.width * slice.height;
        if ((values ? values.length : rgba.length / 4) !== area) wrong.push(`${n}: size`);
      }
      if (stacks.length) counts.shown += 1;
      else if (/^[A-Z0-9].*\\.$/.test(note)) counts.said += 1;
      else wrong.push(`${n}: ${note}`);
    } catch (error) {
      if (error instanceof Unreadable) counts.refused += 1;
      else wrong.push(`${n}: ${error.stack}`);
    }
    await readMask(blob, 1 << 24).catch((error) => {
      const known = error instanceof Unreadable || error instanceof RangeError;
      if (!known) wrong.push(`${n}: mask ${error.stack}`);
    });
  }
  return { wrong, counts };
}"""


def _mutants(data: bytes, rng: np.random.Generator, count: int) -> list[bytes]:
    """Return damaged copies: bytes changed, the more of them early in the file, or the end lost."""
    made = []
    for number in range(count):
        copy = bytearray(data)
        if number % 4 == 0:
            del copy[int(rng.integers(0, len(copy))) :]
        for _ in range(int(rng.integers(1, 6))):
            if copy:
                at = int(rng.integers(0, min(len(copy), 2000)))
                copy[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        made.append(bytes(copy))
    return made


def _take_all(page, stub, files: list[bytes]) -> dict[str, int]:
    enter(page, stub.url)
    total = {"shown": 0, "said": 0, "refused": 0}
    for start in range(0, len(files), 50):
        coded = [base64.b64encode(data).decode() for data in files[start : start + 50]]
        found = page.evaluate(_TAKE_ALL, coded)
        assert found["wrong"] == []
        total = {name: total[name] + found["counts"][name] for name in total}
    return total


def test_damaged_files_are_a_sentence_each(page, stub, tmp_path):
    volume = known_volume((3, 12, 10))
    path = series_zip(tmp_path, volume)
    slice_file = next((tmp_path / "series").iterdir())
    picture = io.BytesIO()
    Image.fromarray(volume.array[1].astype(np.uint8)).save(picture, format="PNG")
    rng = np.random.default_rng(7)
    seeds = [slice_file.read_bytes(), path.read_bytes(), nifti_bytes(volume, gz=False),
             nifti_bytes(volume), picture.getvalue()]  # fmt: skip
    files = [mutant for seed in seeds for mutant in _mutants(seed, rng, 120)]
    counts = _take_all(page, stub, files)
    assert sum(counts.values()) == len(files)
    assert min(counts.values()) > 10


def test_broken_files_of_others_are_a_sentence_each(page, stub, real_data):
    files = [p.read_bytes() for p in sorted((real_data / "broken").rglob("*")) if p.is_file()]
    counts = _take_all(page, stub, files)
    assert sum(counts.values()) == len(files) > 300


_READ_ALL = """async (input) => {
  const { takeFiles } = await import('/page/files.js');
  const { stacks, note } = await takeFiles([...input.files], () => {});
  const read = stacks.map(({ slices }) => Promise.all(slices.map(async (slice) => {
    const { values } = await slice.read();
    let sum = 0;
    values.forEach((value, n) => { sum += value * (1 + (n % 7)); });
    return [slice.sopUid, sum, values[0], values[values.length - 1]];
  })));
  return { note, stacks: await Promise.all(read) };
}"""


@pytest.mark.parametrize(
    ("name", "sizes"), [("ge_tilt_variable_spacing", [14, 14]), ("lung_pet_ct_dx_A0001", [30])]
)
def test_real_series_have_the_values_and_order_of_an_independent_reader(
    page, stub, real_data, name, sizes
):
    found = [pydicom.dcmread(p) for p in sorted((real_data / "ct_series" / name).rglob("*.dcm"))]
    series = found[0].SeriesInstanceUID
    known = [d for d in found if d.SeriesInstanceUID == series][:30]
    stub.needs_key = False
    page.goto(stub.url)
    says(page, "Ready.")
    page.evaluate(
        "() => document.body.append(Object.assign(document.createElement('input'), "
        "{ type: 'file', multiple: true, id: 'own' }))"
    )
    page.set_input_files("#own", [str(d.filename) for d in known])
    got = page.locator("#own").evaluate(_READ_ALL)
    assert got["note"] == ""
    assert [len(stack) for stack in got["stacks"]] == sizes
    by_uid = {d.SOPInstanceUID: d for d in known}
    for stack in got["stacks"]:
        heights = [by_uid[row[0]].ImagePositionPatient[2] for row in stack]
        assert heights == sorted(heights)
    rows = [row for stack in got["stacks"] for row in stack]
    assert {row[0] for row in rows} == set(by_uid)
    for sop, total, first, last in rows:
        dataset = by_uid[sop]
        values = dataset.pixel_array.ravel() * float(dataset.RescaleSlope)
        values = values + float(dataset.RescaleIntercept)
        weights = 1 + np.arange(values.size) % 7
        assert (total, first, last) == (float(values @ weights), values[0], values[-1])


@pytest.mark.parametrize("kept", [range(12), range(2, 9), range(0, 12, 2)])
def test_a_mask_of_some_slices_is_drawn_on_these_alone(page, stub, tmp_path, kept):
    volume = known_volume(SHAPE)
    mask = masked(volume)
    affine = mask.affine_lps.copy()
    affine[:3, 3] += affine[:3, 0] * kept[0]
    affine[:3, 0] *= kept.step
    part = Volume(array=mask.array[list(kept)], affine_lps=affine)
    stub.bodies["application/json"] = answer(result(series_uid=SERIES, volume_ml=12.5))
    stub.bodies["application/gzip"] = nifti_bytes(part)
    enter(page, stub.url)
    page.set_input_files("#files", str(series_zip(tmp_path, volume)))
    says(page, "Ready to run.")
    run(page)
    says(page, "Done.")
    page.wait_for_selector("#at-finding:has-text('mask')")
    for k in (1, 4, 5, 9):
        wanted = mask.array[k] > 0 if k in kept else np.zeros(SHAPE[1:], bool)
        assert np.array_equal(coloured(pixels(page, k, SHAPE[1:])), wanted), k
    note = page.inner_text("#viewer-note")
    assert note == ("" if len(kept) == 12 else f"The mask covers {len(kept)} of the 12 slices.")


def test_a_real_chest_ct_is_shown_with_mask_and_box(page, stub, real_data):
    """Place and values come from the headers by hand, not from medray's own reader."""
    folder = real_data / "ct_series" / "lung_pet_ct_dx_A0001"
    slices = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    slices = [d for d in slices if d.SeriesInstanceUID == slices[0].SeriesInstanceUID]
    slices.sort(key=lambda d: d.ImagePositionPatient[2])
    hu = np.stack([d.pixel_array * d.RescaleSlope + d.RescaleIntercept for d in slices])
    positions = np.array([d.ImagePositionPatient for d in slices], float)
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(slices) - 1)
    affine[:3, 1] = np.array(slices[0].ImageOrientationPatient[3:]) * slices[0].PixelSpacing[0]
    affine[:3, 2] = np.array(slices[0].ImageOrientationPatient[:3]) * slices[0].PixelSpacing[1]
    affine[:3, 3] = positions[0]
    mask = Volume(array=(hu > 200).astype(np.uint8), affine_lps=affine)
    telling = int(mask.array.sum(axis=(1, 2)).argmax())
    box = {"box_xyxy_px": [60.5, 70, 200, 220], "box_xyxy_mm": [1, 2, 3, 4], "label": "A",
           "score": 0.9, "sop_uid": slices[20].SOPInstanceUID}  # fmt: skip
    stub.bodies["application/json"] = answer(
        result(series_uid=slices[0].SeriesInstanceUID, volume_ml=900.0, boxes=[box])
    )
    stub.bodies["application/gzip"] = nifti_bytes(mask)
    enter(page, stub.url)
    page.set_input_files("#files", [str(d.filename) for d in slices])
    says(page, "Ready to run.")
    run(page)
    says(page, "Done.")
    page.wait_for_selector(f"#canvas[data-slice='{telling}']")
    for k in (telling, 3, 50):
        found = coloured(pixels(page, k, hu.shape[1:]))
        assert np.array_equal(found, mask.array[k] > 0), k
    page.click("#results table button")
    page.wait_for_selector("#canvas[data-slice='20']")
    assert "1 box here" in page.inner_text("#at-finding")
