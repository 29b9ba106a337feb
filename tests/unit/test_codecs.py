import struct

import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate_extended

from medray.dicom.codecs import FRAME_CODECS, extend_bits, read_j2k_header
from medray.dicom.pixels import PixelLimits
from medray.dicom.syntaxes import SUPPORTED_TRANSFER_SYNTAXES
from medray.errors import DataError
from tests.unit.decode_fixtures import DEFLATED, LIMITS, RLE, decode_here, like, make_dicom
from tests.unit.poison_codec import POISON_SYNTAX

BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG, LOSSLESS, SV1 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 57, 70))
JPEG_12, JPEG_LS, J2K = (f"1.2.840.10008.1.2.4.{n}" for n in (51, 80, 90))


def grey(dtype: str, bits: int = 16, shape: tuple[int, int] = (24, 30)) -> np.ndarray:
    rng = np.random.default_rng([7, bits])
    low = -(1 << (bits - 1)) if dtype.startswith("i") else 0
    return rng.integers(low, low + (1 << bits), shape).astype(dtype)


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    ramp = np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1]) * 2) % 200
    if len(shape) == 2:
        return ramp.astype(np.uint8)
    return np.stack([ramp, 200 - ramp, ramp // 2], axis=-1).astype(np.uint8)


def refusal(data: bytes, limits: PixelLimits = LIMITS) -> str:
    with pytest.raises(DataError) as caught:
        decode_here(data, limits)
    return caught.value.reason


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED]
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32"])
def test_native_pixels_come_back_exactly(syntax: str, dtype: str) -> None:
    pixels = grey(dtype, bits=8 * np.dtype(dtype).itemsize)
    frames = decode_here(make_dicom(pixels, syntax=syntax)).frames
    assert frames.dtype.newbyteorder("=") == pixels.dtype
    np.testing.assert_array_equal(frames, pixels[None])


@pytest.mark.parametrize("syntax", [LOSSLESS, SV1, JPEG_LS, J2K])
@pytest.mark.parametrize(
    ("dtype", "bits"), [("uint8", 8), ("uint16", 12), ("uint16", 16), ("int16", 16), ("int16", 12)]
)
def test_lossless_codecs_come_back_exactly_whatever_their_signedness(
    syntax: str, dtype: str, bits: int
) -> None:
    pixels = grey(dtype, bits)
    coded = pixels.astype(pixels.dtype.str.replace("i", "u")) & ((1 << bits) - 1)
    if syntax == JPEG_LS:
        frame = imagecodecs.jpegls_encode(coded)
    elif syntax == J2K:
        frame = imagecodecs.jpeg2k_encode(
            coded, codecformat="j2k", reversible=True, level=0, bitspersample=bits
        )
    else:
        frame = imagecodecs.jpeg8_encode(coded, lossless=True, predictor=1, bitspersample=bits)
    tags = like(pixels, BitsStored=bits, HighBit=bits - 1)
    frames = decode_here(make_dicom([frame], syntax=syntax, **tags)).frames
    assert frames.dtype == pixels.dtype
    np.testing.assert_array_equal(frames, pixels[None])


def test_signed_codestream_of_unsigned_pixels_is_read_as_the_header_says() -> None:
    pixels = grey("uint16", 16)
    frame = imagecodecs.jpeg2k_encode(
        pixels.view(np.int16), codecformat="j2k", reversible=True, level=0
    )
    assert read_j2k_header(frame).signed
    frames = decode_here(make_dicom([frame], syntax=J2K, **like(pixels))).frames
    np.testing.assert_array_equal(frames[0], pixels)


def test_rle_of_grey_colour_and_many_frames() -> None:
    from pydicom.pixels.encoders.native import _encode_frame

    class Runner:
        def __init__(self, image: np.ndarray) -> None:
            self.rows, self.columns = image.shape[:2]
            self.samples_per_pixel = 1 if image.ndim == 2 else 3
            self.bits_allocated = 8 * image.dtype.itemsize
            self.planar_configuration = 0

        def get_option(self, name: str, default: object = None) -> object:
            return {"byteorder": "<"}.get(name, default)

        def set_option(self, name: str, value: object) -> None: ...

    for image in (grey("int16"), smooth((10, 12, 3))):
        frame = bytes(_encode_frame(image.tobytes(), Runner(image)))
        data = make_dicom([frame] * 3, syntax=RLE, **like(image, NumberOfFrames=3))
        np.testing.assert_array_equal(decode_here(data).frames, np.stack([image] * 3))


def test_rle_cannot_hold_more_than_its_bytes_allow() -> None:
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 300
    tags = like(np.zeros((1, 1), np.uint8))
    big = {**tags, "Rows": 65535, "Columns": 65535}
    assert refusal(make_dicom([frame], syntax=RLE, **big)) == "bomb_suspected"
    small = {**tags, "Rows": 300, "Columns": 300}
    assert refusal(make_dicom([frame], syntax=RLE, **small)) == "pixel_length_mismatch"


def test_twelve_bit_jpeg_is_close_and_eight_bit_colour_is_rgb() -> None:
    pixels = np.add.outer(np.arange(32) * 60, np.arange(40) * 40).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12)
    data = make_dicom([frame], syntax=JPEG_12, **like(pixels, BitsStored=12, HighBit=11))
    assert np.abs(decode_here(data).frames[0].astype(int) - pixels).max() <= 40

    colour = smooth((32, 40, 3))
    frame = imagecodecs.jpeg8_encode(colour, level=98, subsampling="444")
    data = make_dicom(
        [frame], syntax=JPEG, **like(colour, PhotometricInterpretation="YBR_FULL_422")
    )
    found = decode_here(data).frames
    assert found.shape == (1, 32, 40, 3)
    assert np.abs(found[0].astype(int) - colour).max() <= 12


def test_jpeg_colour_follows_component_ids_then_adobe_then_jfif_then_header() -> None:
    colour = smooth((16, 16, 3))
    plain = imagecodecs.jpeg8_encode(colour, level=99, colorspace="RGB", outcolorspace="RGB")
    # libjpeg marks RGB streams by Adobe's marker with transform 0.
    data = make_dicom([plain], syntax=JPEG, **like(colour, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(decode_here(data).frames[0].astype(int) - colour).max() <= 8


def test_ybr_full_and_planar_rgb_are_interleaved_rgb() -> None:
    colour = smooth((6, 8, 3))
    planar = np.ascontiguousarray(np.moveaxis(colour, -1, 0)).tobytes()
    tags = like(colour, PlanarConfiguration=1)
    np.testing.assert_array_equal(decode_here(make_dicom(planar, **tags)).frames[0], colour)

    from pydicom.pixels import convert_color_space

    ybr = convert_color_space(colour, "RGB", "YBR_FULL")
    data = make_dicom(ybr.tobytes(), **like(colour, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(decode_here(data).frames[0].astype(int) - colour).max() <= 2


@pytest.mark.parametrize(("depth", "first"), [(8, 0), (16, 0), (16, 10)])
def test_palette_becomes_eight_bit_rgb(depth: int, first: int) -> None:
    pixels = smooth((9, 11))
    step = np.arange(256)
    tables = [step, 255 - step, step // 2]
    words = [(t * (257 if depth == 16 else 1)).astype(f"<u{depth // 8}") for t in tables]
    tags = like(pixels, PhotometricInterpretation="PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), words, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, first, depth]
        tags[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    found = decode_here(make_dicom(pixels.tobytes(), **tags)).frames
    index = np.clip(pixels.astype(int) - first, 0, 255)
    expected = np.stack([t[index] for t in tables], axis=-1).astype(np.uint8)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], expected)


def test_overlay_bits_above_the_stored_ones_are_cut_off() -> None:
    values = np.array([[-2000, 5], [2047, -1]], np.int16)
    dirty = (values.view(np.uint16) & 0x0FFF) | 0x5000
    tags = like(values, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(
        decode_here(make_dicom(dirty.tobytes(), **tags)).frames[0], values
    )
    unsigned = {**tags, "PixelRepresentation": 0}
    found = decode_here(make_dicom(dirty.tobytes(), **unsigned)).frames[0]
    np.testing.assert_array_equal(found, dirty & 0x0FFF)


def test_values_that_need_no_extension_are_not_copied() -> None:
    values = np.array([[-2048, 2047]], np.int16)
    assert extend_bits(values, 12, np.dtype("i2")) is values
    assert extend_bits(values, 11, np.dtype("i2")) is not values


def test_one_bit_frames_follow_each_other_without_padding() -> None:
    bits = np.random.default_rng(3).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    tags = like(bits[0], BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=3)
    np.testing.assert_array_equal(decode_here(make_dicom(packed, **tags)).frames, bits)


def test_float_pixels_are_read_and_refused_when_not_finite() -> None:
    values = np.linspace(-3, 9, 12, dtype=np.float32).reshape(3, 4)
    tags = {"Rows": 3, "Columns": 4, "SamplesPerPixel": 1, "BitsAllocated": 32,
            "PhotometricInterpretation": "MONOCHROME2"}  # fmt: skip
    data = make_dicom(None, FloatPixelData=values.tobytes(), **tags)
    np.testing.assert_array_equal(decode_here(data).frames[0], values)
    values[1, 1] = np.nan
    assert refusal(make_dicom(None, FloatPixelData=values.tobytes(), **tags)) == "non_finite_pixels"


def test_odd_length_has_one_byte_of_padding_and_zeros_may_follow() -> None:
    pixels = smooth((3, 5))
    np.testing.assert_array_equal(decode_here(make_dicom(pixels)).frames[0], pixels)
    padded = make_dicom(pixels.tobytes() + bytes(7), **like(pixels))
    np.testing.assert_array_equal(decode_here(padded).frames[0], pixels)
    assert (
        refusal(make_dicom(pixels.tobytes() + b"\1" * 7, **like(pixels))) == "pixel_length_mismatch"
    )
    assert refusal(make_dicom(pixels.tobytes() * 2, **like(pixels))) == "pixel_length_mismatch"
    assert refusal(make_dicom(pixels.tobytes()[:-4], **like(pixels))) == "pixel_length_mismatch"
    assert refusal(make_dicom(pixels, cut=4)) == "truncated"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"BitsAllocated": 24, "BitsStored": 24}, "unsupported_pixels"),
        ({"BitsStored": 17}, "bad_tag_value"),
        ({"BitsStored": 12, "HighBit": 15}, "unsupported_pixels"),
        ({"PhotometricInterpretation": "RGB"}, "unsupported_pixels"),
        ({"PhotometricInterpretation": "CMYK", "SamplesPerPixel": 4}, "unsupported_pixels"),
        ({"PhotometricInterpretation": None}, "missing_tag"),
        ({"Rows": None}, "missing_tag"),
        ({"BitsStored": None}, "missing_tag"),
        ({"NumberOfFrames": 50000}, "pixel_length_mismatch"),
        ({"Rows": 65535, "Columns": 65535}, "pixel_length_mismatch"),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(changes: dict, reason: str) -> None:
    assert refusal(make_dicom(grey("uint16"), **changes)) == reason


def test_limits_are_checked_from_the_header() -> None:
    pixels = np.zeros((512, 1024), np.uint16)
    small = PixelLimits(max_frame_bytes=1 << 19, max_pixels_bytes=1 << 21)
    assert refusal(make_dicom(pixels), small) == "too_large"
    frame = imagecodecs.jpegls_encode(pixels)
    many = make_dicom([frame] * 3, syntax=JPEG_LS, **like(pixels, NumberOfFrames=3))
    total = PixelLimits(max_frame_bytes=1 << 22, max_pixels_bytes=1 << 21)
    assert refusal(many, total) == "too_large"


@pytest.mark.parametrize("syntax", [SV1, JPEG_LS, J2K])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(syntax: str) -> None:
    pixels = np.zeros((40, 50), np.uint8)
    frame = {
        SV1: lambda: imagecodecs.jpeg8_encode(pixels, lossless=True),
        JPEG_LS: lambda: imagecodecs.jpegls_encode(pixels),
        J2K: lambda: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"),
    }[syntax]()
    assert refusal(make_dicom([frame], syntax=syntax, **like(pixels[:-1]))) == "decode_error"
    bomb = bytearray(frame)
    if syntax == J2K:
        struct.pack_into(">II", bomb, 8, 60000, 60000)
    else:
        marker = b"\xff\xf7" if syntax == JPEG_LS else b"\xff\xc3"
        struct.pack_into(">HH", bomb, bomb.index(marker) + 5, 60000, 60000)
    assert refusal(make_dicom([bytes(bomb)], syntax=syntax, **like(pixels))) == "bomb_suspected"
    assert refusal(make_dicom([frame[:-20]], syntax=syntax, **like(pixels))) == "decode_error"
    assert refusal(make_dicom([b"\0" * 64], syntax=syntax, **like(pixels))) == "decode_error"


def test_subsampled_jpeg2000_components_are_refused() -> None:
    frame = bytearray(imagecodecs.jpeg2k_encode(smooth((16, 16, 3)), codecformat="j2k"))
    frame[43 + 3] = 2
    data = make_dicom([bytes(frame)], syntax=J2K, **like(smooth((16, 16, 3))))
    assert refusal(data) == "unsupported_pixels"


def test_frames_are_counted_and_extended_offsets_are_used() -> None:
    pixels = grey("uint16")
    frame = imagecodecs.jpegls_encode(pixels)
    tags = like(pixels, NumberOfFrames=2)
    assert refusal(make_dicom([frame], syntax=JPEG_LS, **tags)) == "pixel_length_mismatch"
    assert refusal(make_dicom([frame] * 3, syntax=JPEG_LS, **tags)) == "pixel_length_mismatch"
    assert refusal(make_dicom([frame] * 2, syntax=JPEG_LS, cut=100, **tags)) == "truncated"
    _, table, lengths = encapsulate_extended([frame] * 2)
    data = make_dicom([frame] * 2, syntax=JPEG_LS, ExtendedOffsetTable=table,
                      ExtendedOffsetTableLengths=lengths, **tags)  # fmt: skip
    np.testing.assert_array_equal(decode_here(data).frames, np.stack([pixels] * 2))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.100", "1.2.3"])
def test_other_transfer_syntaxes_are_refused(syntax: str) -> None:
    data = make_dicom([b"\xff\xd8\xff\xd9"], syntax=syntax, **like(grey("uint16")))
    assert refusal(data) == "unsupported_transfer_syntax"


def test_the_published_list_of_syntaxes_is_what_is_decoded() -> None:
    native = {"", *(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))}
    assert native | set(FRAME_CODECS) - {POISON_SYNTAX} == SUPPORTED_TRANSFER_SYNTAXES


def test_objects_without_pixels_are_told_apart() -> None:
    assert refusal(make_dicom(None)) == "no_pixels"
    assert refusal(b"") == "empty_file"
    assert refusal(b"not an image at all, " * 20) == "not_dicom"


def test_lookup_tables_travel_with_the_pixels() -> None:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [4, 0xFFFE, 12]
    item.LUTData = [0, 100, 1000, 4095]
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "US"
    data = make_dicom(np.array([[-3, -2], [-1, 9]], np.int16), VOILUTSequence=[item])
    table = decode_here(data).tables.voi[0]
    assert (table.first, table.bits, table.data.tolist()) == (-2, 12, [0, 100, 1000, 4095])
    assert table.look_up(np.array([-3, -2, -1, 9])).tolist() == [0, 0, 100, 4095]


def test_deflated_frames_are_bounded() -> None:
    import zlib

    pixels = grey("uint16")
    engine = zlib.compressobj(wbits=-15)
    frame = engine.compress(pixels.tobytes()) + engine.flush()
    syntax = "1.2.840.10008.1.2.8.1"
    found = decode_here(make_dicom([frame], syntax=syntax, **like(pixels))).frames
    np.testing.assert_array_equal(found[0], pixels)
    engine = zlib.compressobj(wbits=-15)
    bomb = engine.compress(bytes(10 << 20)) + engine.flush()
    assert refusal(make_dicom([bomb], syntax=syntax, **like(pixels))) == "bomb_suspected"


def test_every_encoding_of_one_slice_agrees(real_data) -> None:
    folder = real_data / "transfer_syntaxes" / "ge_chest_all_syntaxes"
    found = {}
    for path in sorted(folder.glob("CTImage.dcm*")):
        code = path.name.removesuffix(".dcm").rpartition("_")[2].removeprefix("1.2.840.10008.1.2")
        try:
            found[code] = decode_here(path.read_bytes()).frames.astype(np.int32)
        except DataError as error:
            found[code] = error.reason
    assert len(found) == 16
    assert found.pop(".4.53") == found.pop(".4.55") == "unsupported_transfer_syntax"
    truth = found.pop("CTImage")
    assert (
        found.pop(".4.50").shape == found.pop(".4.51").shape == truth.shape
    )  # scaled anew by their maker
    error = {code: int(np.abs(frames - truth).max()) for code, frames in found.items()}
    assert error.pop(".4.81") <= 1
    assert error.pop(".4.91") <= 5
    assert set(error.values()) == {0}
    assert len(error) == 9


def test_real_files_agree_with_pydicom(real_data) -> None:
    import pydicom

    compared = 0
    for path in sorted((real_data / "transfer_syntaxes").rglob("*.dcm*")):
        dataset = pydicom.dcmread(path)
        try:
            theirs = pydicom.pixels.pixel_array(dataset)
        except (RuntimeError, NotImplementedError):
            continue  # it has no plug-in for this one
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            theirs = pydicom.pixels.apply_color_lut(theirs, dataset)
            theirs = (theirs >> 8).astype(np.uint8) if theirs.itemsize == 2 else theirs
        ours = decode_here(path.read_bytes()).frames
        np.testing.assert_array_equal(ours, theirs.reshape(ours.shape), err_msg=path.name)
        compared += 1
    assert compared >= 48
