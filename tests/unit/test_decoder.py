import collections
import contextlib
import gc
import hashlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest

from medray.dicom.decoder import DecodedInstance, DecodeLimits, PixelDecoder, process_decoder
from medray.errors import DataError
from tests.unit.decode_fixtures import DEFLATED, RLE, like, make_dicom
from tests.unit.poison_codec import POISON_SYNTAX

PLUGINS = ("tests.unit.poison_codec",)
MIB = 1 << 20
QUICK = DecodeLimits(
    max_memory_bytes=512 * MIB, seconds=5, seconds_per_mib=1, max_frame_bytes=64 * MIB,
    max_pixels_bytes=256 * MIB,
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder():
    with PixelDecoder(QUICK, plugins=PLUGINS) as made:
        yield made


@pytest.fixture(scope="module")
def hasty_decoder():
    with PixelDecoder(replace(QUICK, seconds=0.5), plugins=PLUGINS) as made:
        yield made


@pytest.fixture(scope="module")
def patient_decoder():
    with PixelDecoder() as made:
        yield made


def poison(deed: str, diary: Path | None = None) -> bytes:
    frame = f"{deed}:{diary or ''}".encode()
    return make_dicom([frame], syntax=POISON_SYNTAX, **like(np.zeros((4, 4), np.uint8)))


def good(value: int = 5) -> bytes:
    return make_dicom(np.full((6, 8), value, np.int16))


def verdict(decoder: PixelDecoder, data: bytes) -> str:
    try:
        decoder.decode(data)
    except DataError as error:
        return error.reason
    return "ok"


def children(decoder: PixelDecoder) -> list[psutil.Process]:
    supervisor = psutil.Process(decoder._link._process.pid)
    return [supervisor, *supervisor.children()]


def worker(decoder: PixelDecoder) -> psutil.Process:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        found = children(decoder)[1:]
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError("no worker")


def test_pixels_header_and_hash_of_a_file(decoder) -> None:
    pixels = np.arange(48, dtype=np.int16).reshape(6, 8) - 20
    data = make_dicom(pixels)
    found = decoder.decode(data)
    np.testing.assert_array_equal(found.frames, pixels[None])
    assert found.frames.flags.writeable
    assert found.frames.dtype == np.int16
    assert found.header.rows == 6
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    big = decoder.decode(make_dicom(pixels, syntax="1.2.840.10008.1.2.2"))
    assert big.frames.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(big.frames, pixels[None])


def test_results_stay_when_later_files_are_decoded(decoder) -> None:
    pixels = [np.full((40, 50), n, np.uint16) for n in range(6)]
    frames = [imagecodecs.jpegls_encode(image) for image in pixels]
    files = [
        make_dicom([frame], syntax="1.2.840.10008.1.2.4.80", **like(pixels[0])) for frame in frames
    ]
    found = list(decoder.decode_many(files))
    for number, each in enumerate(found):
        np.testing.assert_array_equal(each.frames[0], pixels[number])


def test_many_files_come_back_in_order_with_errors_in_their_place(decoder) -> None:
    read_error = DataError("source_unavailable", "gone")
    items = [good(1), b"", good(2), b"junk" * 50, read_error, good(3)]
    found = list(decoder.decode_many(items))
    shown = [
        each.reason if isinstance(each, DataError) else int(each.frames[0, 0, 0]) for each in found
    ]
    assert shown == [1, "empty_file", 2, "not_dicom", "source_unavailable", 3]


def test_lookup_tables_cross_the_pipe(decoder) -> None:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = list(range(0, 65536, 256))
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    found = decoder.decode(make_dicom(np.zeros((4, 4), np.uint8), ModalityLUTSequence=[item]))
    assert found.tables.voi == ()
    assert found.tables.modality.look_up(np.array([0, 255, 999])).tolist() == [0, 65280, 65280]


@pytest.mark.parametrize(
    ("deed", "reason", "tries"),
    [("abort", "decoder_crashed", 2), ("segfault", "decoder_crashed", 2),
     ("exit", "decoder_crashed", 2), ("hang", "decode_timeout", 1), ("eat", "decode_memory", 1),
     ("once", "ok", 2)],
)  # fmt: skip
def test_a_codec_that_dies_hangs_or_eats_costs_one_file(
    decoder, hasty_decoder, tmp_path, deed: str, reason: str, tries: int
) -> None:
    decoder = hasty_decoder if deed == "hang" else decoder
    diary = tmp_path / "tries"
    started = time.monotonic()
    assert verdict(decoder, poison(deed, diary)) == reason
    assert time.monotonic() - started < 4
    assert len(diary.read_text()) == tries
    assert verdict(decoder, good()) == "ok"


@pytest.mark.slow
def test_a_hundred_poison_files_among_a_thousand(decoder, tmp_path) -> None:
    deeds = ("abort", "segfault", "exit", "abort", "claim")
    files, diaries = [], {}
    for number in range(1000):
        if number % 10 == 3:
            diaries[number] = tmp_path / str(number)
            files.append(poison(deeds[number // 10 % 5], diaries[number]))
        else:
            files.append(good(number))
    found = list(decoder.decode_many(files))
    wrong = {n: each.reason for n, each in enumerate(found) if isinstance(each, DataError)}
    assert set(wrong) == set(diaries)
    assert collections.Counter(wrong.values()) == {"decoder_crashed": 80, "decode_memory": 20}
    assert all(len(diary.read_text()) <= 2 for diary in diaries.values())
    for number, each in enumerate(found):
        if isinstance(each, DecodedInstance):
            assert each.frames[0, 0, 0] == number


def test_a_worker_or_supervisor_killed_between_files_is_replaced(decoder) -> None:
    assert verdict(decoder, good()) == "ok"
    worker(decoder).kill()
    assert verdict(decoder, good()) == "ok"
    children(decoder)[0].kill()
    assert verdict(decoder, good()) == "ok"
    children(decoder)[0].kill()
    assert [each.frames[0, 0, 0] for each in decoder.decode_many([good(1), good(2)])] == [1, 2]


def test_several_threads_share_one_decoder(decoder) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        items = [good(seed * 100 + n) for n in range(25)]
        items[7] = poison("abort")
        for number, each in enumerate(decoder.decode_many(items)):
            if number == 7:
                ok = isinstance(each, DataError) and each.reason == "decoder_crashed"
            else:
                ok = not isinstance(each, DataError) and each.frames[0, 0, 0] == seed * 100 + number
            inner = decoder.decode(good(number))  # while this thread's own pipeline is full
            if not ok or inner.frames[0, 0, 0] != number:
                wrong.append((seed, number, each))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(children(decoder)) == 2


def test_an_abandoned_pipeline_does_not_disturb_the_next(decoder) -> None:
    stream = decoder.decode_many(good(n) for n in range(10))
    assert next(stream).frames[0, 0, 0] == 0
    del stream
    assert decoder.decode(good(77)).frames[0, 0, 0] == 77


def test_a_fork_gets_its_own_child(decoder) -> None:
    assert verdict(decoder, good()) == "ok"
    before = [process.pid for process in children(decoder)]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = b"%d" % int(decoder.decode(good(9)).frames[0, 0, 0])
            decoder.close()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = repr(error).encode()
        os.write(write, answer)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1000) == b"9"
    assert decoder.decode(good(3)).frames[0, 0, 0] == 3
    assert [process.pid for process in children(decoder)] == before


def test_the_process_has_one_decoder_and_the_child_ends_with_its_owner() -> None:
    assert process_decoder(QUICK) is process_decoder(QUICK)
    made = PixelDecoder(QUICK)
    made.decode(good())
    pids = [process.pid for process in children(made)]
    del made
    gc.collect()
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)", "sys.exit(0)"])
def test_the_child_dies_with_its_parent_even_while_it_hangs(tmp_path, end: str) -> None:
    poisoned = tmp_path / "poison.dcm"
    poisoned.write_bytes(poison("hang"))
    script = textwrap.dedent(f"""
        import os, psutil, sys, threading, time
        from medray.dicom.decoder import PixelDecoder
        decoder = PixelDecoder(plugins={PLUGINS!r})
        data = open({str(poisoned)!r}, "rb").read()
        decoder._submit(data)
        time.sleep(0.2)
        pids = [p.pid for p in psutil.Process().children(recursive=True)]
        print(*pids, flush=True)
        {end}
    """)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    pids = [int(word) for word in ran.stdout.split()]
    assert len(pids) == 2, ran.stderr
    until = time.monotonic() + 3
    while any(_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_child_has_no_secrets_no_core_and_few_libraries(decoder, monkeypatch) -> None:
    monkeypatch.setenv("MEDRAY_API_KEYS", "canary-secret")
    with PixelDecoder(QUICK) as made:
        made.decode(good())
        process = worker(made)
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"canary" not in environment
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        for library in ("gdcm", "_imaging", "torch", "libssl", "openjpeg.cpython", "pyarrow"):
            assert library not in maps
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.num_threads() == 1


def test_the_child_starts_fast() -> None:
    with PixelDecoder(QUICK) as made:
        made.decode(good())
        supervisor = children(made)[0].cpu_times()
        assert supervisor.user + supervisor.system < 2.0  # 0.4 s on an idle machine


class _Peak:
    """Largest resident memory of the child while something runs, above what it has at rest."""

    def __init__(self, decoder: PixelDecoder) -> None:
        self.decoder, self.most, self.stop = decoder, 0, threading.Event()
        self.rest = sum(_rss(process) for process in children(decoder))

    def __enter__(self) -> "_Peak":
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        self.started = time.monotonic()
        return self

    def _watch(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(psutil.Error, AttributeError):
                self.most = max(self.most, sum(_rss(p) for p in children(self.decoder)))
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.started
        self.stop.set()
        self.thread.join()

    @property
    def grown_mib(self) -> float:
        return (self.most - self.rest) / MIB


def _rss(process: psutil.Process) -> int:
    return process.memory_info().rss


def _deflated_bomb(inflated_bytes: int) -> bytes:
    plain = make_dicom(np.zeros((2, 2), np.uint8))
    start = plain.index(b"\x08\x00\x16\x00")
    engine = zlib.compressobj(9, wbits=-15)
    body = engine.compress(plain[start:])
    body += engine.flush(zlib.Z_FULL_FLUSH)
    block = engine.compress(bytes(MIB)) + engine.flush(zlib.Z_FULL_FLUSH)
    body += block * (inflated_bytes // MIB) + engine.flush()
    syntax = make_dicom(np.zeros((2, 2), np.uint8), syntax=DEFLATED)
    head = syntax[: 132 + 12 + struct.unpack_from("<I", syntax, 140)[0]]
    return head + body


@pytest.mark.slow
def test_bombs_are_refused_quickly_and_within_the_cap(patient_decoder) -> None:
    decoder = patient_decoder
    decoder.decode(good())
    one = like(np.zeros((1, 1), np.uint8), Rows=65535, Columns=65535)
    segment = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * 300
    j2k = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), codecformat="j2k"))
    struct.pack_into(">II", j2k, 8, 65535, 65535)
    tile = bytearray(j2k)
    struct.pack_into(">II", tile, 24, 65535, 65535)
    syntax = "1.2.840.10008.1.2.4.90"
    long_meta = _deflated_bomb(2 << 30).replace(
        b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\x00\x01",
        b"\x02\x00\x01\x00OB\0\0\x88\x13\0\0" + bytes(5000),
    )
    assert long_meta.index(DEFLATED.encode()) > 5000
    bombs = {
        "behind a long meta group": (long_meta, "bomb_suspected"),
        "deflated": (_deflated_bomb(2 << 30), "bomb_suspected"),
        "rle": (make_dicom([segment], syntax=RLE, **one), "bomb_suspected"),
        "frames": (
            make_dicom([segment], syntax=RLE, **{**one, "NumberOfFrames": 90000}),
            "bomb_suspected",
        ),
        "native": (make_dicom(b"\0" * 100, **one), "pixel_length_mismatch"),
        "codestream": (
            make_dicom([bytes(j2k)], syntax=syntax, **like(np.zeros((64, 64), np.uint8))),
            "bomb_suspected",
        ),
        "both": (make_dicom([bytes(tile)], syntax=syntax, **one), "too_large"),
    }
    assert len(bombs["deflated"][0]) < 3 * MIB
    for name, (data, reason) in bombs.items():
        with _Peak(decoder) as peak:
            assert verdict(decoder, data) == reason, name
        assert peak.seconds <= 3, name
        assert peak.grown_mib <= decoder.limits.max_memory_bytes / MIB + 256, name
        assert peak.grown_mib <= (
            1024 if name in {"deflated", "behind a long meta group"} else 100
        ), name


@pytest.mark.slow
def test_memory_is_capped_and_given_back(decoder) -> None:
    decoder.decode(good())
    with _Peak(decoder) as peak:
        assert verdict(decoder, poison("eat")) == "decode_memory"
    cap_mib = QUICK.max_memory_bytes / MIB
    assert cap_mib / 4 <= peak.grown_mib <= cap_mib + 256
    assert verdict(decoder, good()) == "ok"
    # Shared memory of a large image is released after it: 96 MiB through the output memory file.
    pixels = np.zeros((4096, 4096), np.uint16)
    frame = imagecodecs.jpegls_encode(pixels)
    tags = like(pixels, NumberOfFrames=3)
    assert decoder.decode(
        make_dicom([frame] * 3, syntax="1.2.840.10008.1.2.4.80", **tags)
    ).frames.shape == (3, 4096, 4096)
    held = [os.fstat(file).st_blocks * 512 for file in decoder._link.outputs]
    assert max(held) <= 65 * MIB


def test_a_file_larger_than_the_memory_is_refused_by_the_parent(decoder) -> None:
    assert verdict(decoder, bytes(257 * MIB)) == "too_large"


@pytest.mark.parametrize(
    "changes", [{"seconds": 0}, {"seconds": float("nan")}, {"max_memory_bytes": 10}]
)
def test_limits_that_make_no_sense_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="decode"):
        DecodeLimits(**changes)


def test_every_broken_file_ends_in_arrays_or_a_reason(real_data, patient_decoder) -> None:
    paths = [
        path for path in sorted((real_data / "broken").rglob("*"))
        if path.is_file() and path.name not in {"SOURCE.md", "expected.csv"}
    ]  # fmt: skip
    assert len(paths) >= 300
    counts: collections.Counter[str] = collections.Counter()
    patient_decoder.decode(good())
    pids = [process.pid for process in children(patient_decoder)]
    slowest = 0.0
    for path in paths:
        started = time.monotonic()
        counts[verdict(patient_decoder, path.read_bytes())] += 1
        slowest = max(slowest, time.monotonic() - started)
    assert counts["ok"] >= 150
    assert counts["decoder_crashed"] == counts["decode_timeout"] == 0
    assert slowest <= 3
    assert [process.pid for process in children(patient_decoder)] == pids


def test_mutated_files_never_kill_the_parent(real_data, patient_decoder) -> None:
    seeds = sorted((real_data / "transfer_syntaxes").rglob("*.dcm*"))[::3]
    rng = np.random.default_rng([2024, 1])
    files = [path.read_bytes() for path in seeds if path.stat().st_size < 400_000]
    mutants = []
    for number in range(300):
        raw = bytearray(files[number % len(files)])
        low = 128 if number % 2 else max(128, len(raw) // 3)
        for at in rng.integers(low, len(raw), int(rng.integers(1, 12))):
            raw[at] = int(rng.integers(0, 256))
        mutants.append(bytes(raw))
    started = time.monotonic()
    results = list(patient_decoder.decode_many(mutants))
    assert len(results) == 300
    assert time.monotonic() - started < 120
    assert verdict(patient_decoder, good()) == "ok"


def test_a_stopped_worker_is_a_timeout(hasty_decoder) -> None:
    decoder = hasty_decoder
    decoder.decode(good())
    supervisor = children(decoder)[0]
    worker(decoder).send_signal(signal.SIGSTOP)
    assert verdict(decoder, good()) == "decode_timeout"
    assert verdict(decoder, good()) == "ok"
    assert decoder._link._process.pid == supervisor.pid
