"""Jobs survive their servers: each write is cut once; nothing accepted is lost or half there."""

import hashlib
import json
import logging
import threading

import pytest

from medray import storage
from medray.errors import DataError
from medray.service import job_store, job_sweep
from medray.service.job_records import JobRequest
from medray.service.job_store import MAX_ATTEMPTS, JobStore
from medray.storage import retry
from tests import faults

DATA = b"pixels" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
UPLOAD = JobRequest(
    model="lung", weights_sha256="w" * 64, content_sha256=SHA256, suffix=".dcm", kind="dicom"
)
BY_URI = JobRequest(model="lung", weights_sha256="w" * 64, uri="s3://b/Jane^Doe.zip", stamp="1")
FILES = {"result.json": b'{"a": 1}', "prediction.nii.gz": b"mask" * 500}
LEASE_S = 30.0


class Killed(BaseException):
    """The process is gone."""


class Clock:
    def __init__(self):
        self.now_s = 1_000_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def jobs(tmp_path, clock):
    return JobStore(str(tmp_path / "jobs"), clock=clock)


@pytest.fixture
def cut(monkeypatch):
    """Give a function that kills the process before its nth change to the storage."""
    left = [None]

    def guarded(real):
        def change(*args, **kwargs):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return real(*args, **kwargs)

        return change

    for name in ("write_atomic", "create_exclusive", "remove"):
        monkeypatch.setattr(storage, name, guarded(getattr(storage, name)))

    def after(number):
        left[0] = number

    return after


def cut_everywhere(cut, action):
    """Run an action again and again, cut before its first, second, ... change, until it ends."""
    for number in range(50):
        cut(number)
        try:
            result = action()
        except Killed:
            cut(None)
            yield None
        else:
            cut(None)
            assert number > 0
            yield result
            return
    raise AssertionError("the action does not end")


def run(jobs, job, owner="a"):
    claim = jobs.claim(job.id, owner, LEASE_S)
    assert claim is not None
    return jobs.finish(claim, FILES)


def check_result(jobs, job_id):
    job = jobs.get(job_id)
    assert (job.state, job.progress, job.files) == ("done", 1.0, tuple(sorted(FILES)))
    for name, data in FILES.items():
        assert storage.read_bytes(jobs.result_uri(job, name)) == data


def test_the_way_of_a_job(jobs, clock):
    job = jobs.submit(UPLOAD, DATA)
    assert (job.state, job.attempts, job.progress) == ("queued", 0, 0.0)
    assert storage.read_bytes(jobs.input_uri(job)) == DATA
    assert [j.id for j in jobs.list_open()] == [job.id]
    claim = jobs.claim(job.id, "a", LEASE_S)
    assert (claim.number, claim.job.state) == (1, "running")
    assert jobs.heartbeat(claim, LEASE_S, progress=0.5)
    assert (jobs.get(job.id).state, jobs.get(job.id).progress) == ("running", 0.5)
    with pytest.raises(KeyError):
        jobs.result_uri(jobs.get(job.id), "result.json")
    ended = jobs.finish(claim, FILES)
    assert ended == jobs.get(job.id)
    check_result(jobs, job.id)
    assert list(jobs.list_open()) == []
    assert jobs.claim(job.id, "b", LEASE_S) is None
    assert not jobs.heartbeat(claim, LEASE_S)
    assert ended.public() == {
        "id": job.id, "state": "done", "progress": 1.0, "reason": None, "model": "lung",
        "result_url": f"/v1/jobs/{job.id}/result", "attempts": 1,
    }  # fmt: skip


def test_the_same_request_is_the_same_job(jobs):
    first = jobs.submit(UPLOAD, DATA)
    assert jobs.submit(UPLOAD, DATA) == first
    run(jobs, first)
    assert jobs.submit(UPLOAD, DATA).state == "done"
    assert len(first.id) == 32
    others = [
        JobRequest(model="other", weights_sha256="w" * 64, content_sha256=SHA256),
        JobRequest(model="lung", weights_sha256="v" * 64, content_sha256=SHA256),
        JobRequest(model="lung", weights_sha256="w" * 64, content_sha256="0" * 64),
        BY_URI,
        JobRequest(model="lung", weights_sha256="w" * 64, uri=BY_URI.uri, stamp="2"),
    ]
    assert len({first.id, *(r.job_id for r in others)}) == 6
    renamed = JobRequest(model="lung", weights_sha256="w" * 64, content_sha256=SHA256, suffix=".x")
    assert renamed.job_id == first.id


@pytest.mark.parametrize("change", [{}, {"content_sha256": "a", "uri": "b"}])
def test_a_request_has_one_input(change):
    with pytest.raises(ValueError, match="a job's input is either an upload or a URI"):
        JobRequest(model="m", weights_sha256="w", **change)


@pytest.mark.parametrize("job_id", ["", "x", "../../etc", "A" * 32, "0" * 31, "0" * 32, "0" * 33])
def test_an_unknown_id_is_none(jobs, job_id):
    assert jobs.get(job_id) is None
    assert jobs.claim(job_id, "a", LEASE_S) is None


def test_no_uri_is_shown_or_logged(jobs, caplog):
    with caplog.at_level(logging.DEBUG):
        job = jobs.submit(BY_URI)
        claim = jobs.claim(job.id, "a", LEASE_S)
        jobs.fail(claim, "source_unavailable")
    assert jobs.get(job.id).request.uri == BY_URI.uri
    shown = repr(job) + repr(claim) + json.dumps(jobs.get(job.id).public()) + caplog.text
    assert "Jane" not in shown
    names = [entry.uri for entry in storage.list_files(jobs.uri)]
    assert names
    assert not [name for name in names if "Jane" in name]


# --- cuts between the writes


def test_a_cut_submission_is_accepted_whole_or_not_at_all(tmp_path, clock, cut):
    counter = iter(range(100))
    stores = []

    def submit():
        stores.append(JobStore(str(tmp_path / str(next(counter))), clock=clock))
        return stores[-1].submit(UPLOAD, DATA)

    outcomes = list(cut_everywhere(cut, submit))
    assert len(outcomes) == 4  # before the input, the marker, the record; and to the end
    for jobs, outcome in zip(stores, outcomes, strict=True):
        before = jobs.get(UPLOAD.job_id)
        assert (before is not None) == (outcome is not None)
        opened = list(jobs.list_open())  # a server starts
        assert jobs.get(UPLOAD.job_id) == (opened[0] if opened else None)
        for job in opened:
            assert storage.read_bytes(jobs.input_uri(job)) == DATA
        again = jobs.submit(UPLOAD, DATA)  # the client asks again
        assert again.state == "queued"
        assert [j.id for j in jobs.list_open()] == [again.id]
        run(jobs, again)
        check_result(jobs, again.id)
        assert list(jobs.list_open()) == []


def test_a_cut_finish_is_taken_over(tmp_path, clock, cut):
    counter = iter(range(100))
    stores = []

    def work():
        jobs = JobStore(str(tmp_path / str(next(counter))), clock=clock)
        stores.append(jobs)
        cutting = jobs.submit(UPLOAD, DATA)
        return run(jobs, cutting)

    for outcome in cut_everywhere(cut, work):
        jobs = stores[-1]
        visible = jobs.get(UPLOAD.job_id)
        if visible is None:
            assert outcome is None
            continue
        assert visible.state in {"queued", "running", "done"}
        if visible.state == "done":
            check_result(jobs, visible.id)
        clock.now_s += LEASE_S
        for job in list(jobs.list_open()):
            assert not job.is_over
            run(jobs, job, owner="b")
        check_result(jobs, UPLOAD.job_id)
        assert list(jobs.list_open()) == []
    # input, marker, record, claim, two files, end, marker away: cut before each, and none.
    assert len(stores) == 9


def test_a_cut_sweep_leaves_a_job_whole_or_unknown(tmp_path, clock, cut):
    counter = iter(range(100))
    stores = []

    def prepare_and_sweep():
        jobs = JobStore(str(tmp_path / str(next(counter))), clock=clock)
        stores.append(jobs)
        left = cut.__closure__[0].cell_contents
        number, left[0] = left[0], None
        run(jobs, jobs.submit(UPLOAD, DATA))
        clock.now_s += 10_000
        left[0] = number
        return jobs.sweep(9_000)

    for outcome in cut_everywhere(cut, prepare_and_sweep):
        jobs = stores[-1]
        if jobs.get(UPLOAD.job_id) is not None:
            check_result(jobs, UPLOAD.job_id)
        assert outcome in {None, 1}
        assert list(jobs.list_open()) == []
        # What is left does not show in a new job of the same request.
        again = jobs.submit(UPLOAD, DATA)
        if outcome is not None:
            assert again.state == "queued"
        if again.state == "queued":
            run(jobs, again)
        check_result(jobs, UPLOAD.job_id)
        clock.now_s += 20_000
        jobs.sweep(9_000)
        assert list(storage.list_files(jobs.uri)) == []
    assert len(stores) > 5


# --- several servers


def test_one_claim_at_a_time_until_the_lease_ends(jobs, clock):
    job = jobs.submit(UPLOAD, DATA)
    first = jobs.claim(job.id, "a", LEASE_S)
    assert jobs.claim(job.id, "b", LEASE_S) is None
    clock.now_s += LEASE_S - 1
    assert jobs.heartbeat(first, LEASE_S, progress=7.0)
    assert jobs.get(job.id).progress == 1.0
    clock.now_s += LEASE_S - 1
    assert jobs.claim(job.id, "b", LEASE_S) is None
    clock.now_s += 1
    second = jobs.claim(job.id, "b", LEASE_S)
    assert (second.number, jobs.get(job.id).attempts, jobs.get(job.id).progress) == (2, 2, 0.0)
    assert not jobs.heartbeat(first, LEASE_S)
    assert jobs.heartbeat(second, LEASE_S)


def test_of_many_servers_one_gets_the_job(jobs):
    job = jobs.submit(UPLOAD, DATA)
    start, won = threading.Barrier(8), []

    def take(number):
        start.wait()
        won.append(jobs.claim(job.id, str(number), LEASE_S))

    threads = [threading.Thread(target=take, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 8
    assert len([claim for claim in won if claim is not None]) == 1


def test_of_two_results_the_first_stands_and_none_is_mixed(jobs, clock):
    job = jobs.submit(UPLOAD, DATA)
    first = jobs.claim(job.id, "a", LEASE_S)
    clock.now_s += LEASE_S
    second = jobs.claim(job.id, "b", LEASE_S)
    jobs.finish(second, FILES)
    late = jobs.finish(first, {"result.json": b"other", "more.json": b"x"})
    assert late == jobs.get(job.id)
    check_result(jobs, job.id)
    assert jobs.fail(first, "internal_error").state == "done"
    check_result(jobs, job.id)


def test_a_job_that_kills_its_servers_fails_in_the_end(jobs, clock):
    job = jobs.submit(UPLOAD, DATA)
    for number in range(1, MAX_ATTEMPTS + 1):
        assert jobs.claim(job.id, str(number), LEASE_S).number == number
        clock.now_s += LEASE_S
        assert jobs.get(job.id).state == "running"
    assert jobs.claim(job.id, "last", LEASE_S) is None
    ended = jobs.get(job.id)
    assert (ended.state, ended.reason, ended.attempts) == ("failed", "job_attempts_exhausted", 3)
    assert list(jobs.list_open()) == []


def test_a_claim_that_is_given_back_does_not_count(jobs):
    job = jobs.submit(UPLOAD, DATA)
    for number in range(1, 3 * MAX_ATTEMPTS):
        claim = jobs.claim(job.id, str(number), LEASE_S)
        assert claim.number == number
        jobs.release(claim)
        assert jobs.get(job.id).state == "queued"
    run(jobs, job)
    check_result(jobs, job.id)


def test_what_failed_by_a_passing_reason_may_be_asked_again(jobs):
    for reason, anew in (("source_unavailable", True), ("sink_full", True), ("truncated", False)):
        request = JobRequest(model=reason, weights_sha256="w", uri="s3://b/k")
        job = jobs.submit(request)
        jobs.fail(jobs.claim(job.id, "a", LEASE_S), reason)
        assert jobs.get(job.id).public()["reason"] == reason
        again = jobs.submit(request)
        assert (again.state, again.id) == ("queued" if anew else "failed", job.id)
        assert [j.id for j in jobs.list_open() if j.id == job.id] == ([job.id] if anew else [])
        if anew:
            run(jobs, again)
            check_result(jobs, job.id)
            assert jobs.submit(request).state == "done"
    with pytest.raises(ValueError, match="reason must be one of STATUS"):
        jobs.fail(None, "Jane^Doe")


def test_a_late_end_of_an_old_run_does_not_touch_the_new_one(jobs, clock):
    job = jobs.submit(UPLOAD, DATA)
    late = jobs.claim(job.id, "a", LEASE_S)
    for _ in range(MAX_ATTEMPTS):
        clock.now_s += LEASE_S
        jobs.claim(job.id, "b", LEASE_S)
    assert jobs.get(job.id).state == "failed"
    again = jobs.submit(UPLOAD, DATA)
    jobs.finish(late, {"result.json": b"late"})
    assert not jobs.heartbeat(late, LEASE_S)
    assert [j.run for j in jobs.list_open()] == [again.run]
    assert jobs.get(job.id) == again
    assert again.state == "queued"


def test_two_submissions_at_once_are_one_job(tmp_path, clock, monkeypatch):
    jobs = JobStore(str(tmp_path), clock=clock)
    real, inner = storage.create_exclusive, []

    def meanwhile(uri, data):
        if uri.endswith("job.json") and not inner:
            inner.append(None)
            inner[0] = jobs.submit(UPLOAD, DATA)
        return real(uri, data)

    monkeypatch.setattr(storage, "create_exclusive", meanwhile)
    assert jobs.submit(UPLOAD, DATA) == inner[0]
    assert [j.run for j in jobs.list_open()] == [inner[0].run]
    assert len(list(storage.list_files(f"{tmp_path}/open"))) == 1


def test_another_server_may_complete_a_submission(tmp_path, clock, monkeypatch):
    jobs = JobStore(str(tmp_path), clock=clock)
    real, seen = storage.create_exclusive, []

    def meanwhile(uri, data):
        if uri.endswith("job.json") and not seen:
            seen.append(None)
            seen.extend(jobs.list_open())
        return real(uri, data)

    monkeypatch.setattr(storage, "create_exclusive", meanwhile)
    job = jobs.submit(UPLOAD, DATA)
    assert seen[1:] == [job]
    assert list(jobs.list_open()) == [job]


# --- odd storage


def test_an_upload_with_another_hash_is_not_accepted(jobs):
    with pytest.raises(DataError, match="checksum_mismatch"):
        jobs.submit(UPLOAD, [DATA, b"more"])
    assert jobs.get(UPLOAD.job_id) is None
    assert list(jobs.list_open()) == []


def test_a_full_disk_accepts_nothing(jobs, monkeypatch):
    def full(uri, data):
        raise DataError("sink_full", "the output takes no more bytes (ENOSPC)")

    monkeypatch.setattr(storage, "write_atomic", full)
    with pytest.raises(DataError, match="sink_full"):
        jobs.submit(UPLOAD, DATA)
    assert jobs.get(UPLOAD.job_id) is None


def test_one_damaged_record_does_not_stop_a_restart(jobs, caplog):
    bad, good = jobs.submit(UPLOAD, DATA), jobs.submit(BY_URI)
    record = storage.join(jobs.uri, "jobs", bad.id, "job.json")
    for damaged in (b"{", b"[]", b'{"id": 1}', b'{"request": {"uri": 5}, "id": "a"}'):
        storage.write_atomic(record, damaged)
        assert [j.id for j in jobs.list_open()] == [good.id]
        with pytest.raises(DataError, match="unreadable"):
            jobs.get(bad.id)
    assert "Jane" not in caplog.text
    assert len(caplog.records) == 4


def test_a_name_claimed_empty_is_no_end(jobs):
    """Without hard links a file is created empty first; a process may die in between."""
    job = jobs.submit(UPLOAD, DATA)
    folder = storage.join(jobs.uri, "jobs", job.id, job.run)
    storage.write_atomic(storage.join(folder, "claim-1.json"), b"")
    storage.write_atomic(storage.join(folder, "end.json"), b"")
    assert (jobs.get(job.id).state, jobs.get(job.id).attempts) == ("running", 1)
    claim = jobs.claim(job.id, "b", LEASE_S)
    assert claim.number == 2
    jobs.finish(claim, FILES)
    check_result(jobs, job.id)


@pytest.mark.parametrize("name", ["", "../a", "a/b", "A", ".a", "a" * 65, "claim 1"])
def test_names_of_results_are_plain(jobs, name):
    claim = jobs.claim(jobs.submit(UPLOAD, DATA).id, "a", LEASE_S)
    with pytest.raises(ValueError, match="a result has files with plain names"):
        jobs.finish(claim, {name: b"x"})
    with pytest.raises(ValueError, match="a result has files"):
        jobs.finish(claim, {})


def test_files_of_a_result_are_no_records(jobs, clock):
    claim = jobs.claim(jobs.submit(UPLOAD, DATA).id, "a", LEASE_S)
    jobs_files = {"end.json": b'{"state": "failed"}', "claim-9.json": b"{}", "beat-9.json": b"{}"}
    job = jobs.finish(claim, jobs_files)
    assert (job.state, job.attempts) == ("done", 1)


# --- listing and removal


def test_a_restart_does_not_read_what_is_done(jobs, monkeypatch):
    for number in range(5):
        run(jobs, jobs.submit(JobRequest(model=str(number), weights_sha256="w", uri="s3://b/k")))
    left = jobs.submit(BY_URI)
    read = []
    real = storage.read_bytes
    monkeypatch.setattr(
        job_store.storage, "read_bytes", lambda uri, **k: read.append(uri) or real(uri, **k)
    )
    assert [job.id for job in jobs.list_open()] == [left.id]
    assert read
    assert all(left.id in uri for uri in read)


def test_sweep_removes_what_ended_long_ago_and_nothing_else(jobs, clock, tmp_path):
    def request(name):
        return JobRequest(model=name, weights_sha256="w", content_sha256=SHA256)

    assert jobs.sweep(0) == 0
    old = run(jobs, jobs.submit(request("old"), DATA))
    still_open = jobs.submit(request("open"), DATA)
    clock.now_s += 50_000
    new = run(jobs, jobs.submit(request("new"), DATA))
    orphan = storage.join(jobs.uri, "jobs", "0" * 32, "00000000001-ab", "input.bin")
    storage.write_atomic(orphan, b"x")
    young = storage.join(jobs.uri, "jobs", "1" * 32, f"{int(clock.now_s):011d}-ab", "input.bin")
    storage.write_atomic(young, b"x")
    foreign = storage.join(jobs.uri, "jobs", "notes", "readme", "a.txt")
    storage.write_atomic(foreign, b"x")
    assert jobs.sweep(10_000) == 1
    assert jobs.get(old.id) is None
    check_result(jobs, new.id)
    assert jobs.get(still_open.id).state == "queued"
    assert storage.read_bytes(jobs.input_uri(still_open)) == DATA
    assert [storage.exists(uri) for uri in (orphan, young, foreign)] == [False, True, True]
    assert not (tmp_path / "jobs" / "jobs" / old.id).exists()
    assert jobs.sweep(10_000) == 0
    assert job_sweep.sweep_jobs(jobs, jobs.uri, clock.now_s + 1) == 1


def test_stale_markers_go_when_they_are_old(jobs, clock):
    job = jobs.submit(UPLOAD, DATA)
    record = storage.read_json(storage.join(jobs.uri, "jobs", job.id, "job.json"))
    stale = storage.join(jobs.uri, "open", f"{job.id}.00000000001-ab.json")
    storage.write_json(stale, {**record, "run": "00000000001-ab"})
    assert [j.run for j in jobs.list_open()] == [job.run]
    assert storage.exists(stale)
    clock.now_s += 4000
    assert [j.run for j in jobs.list_open()] == [job.run]
    assert not storage.exists(stale)


@pytest.mark.slow
def test_jobs_in_a_bucket_while_a_tenth_of_the_calls_break(monkeypatch, clock):
    with faults.s3_server() as address:
        faults.fill_bucket("jobs", {})
        monkeypatch.setattr(retry, "POLICY", retry.RetryPolicy(base_s=0.01, cap_s=0.05))
        with faults.FaultProxy(*address, seed=3, rate=0.1) as proxy:
            faults.set_s3_environment(monkeypatch, proxy.url)
            jobs = JobStore("s3://jobs/a/b", clock=clock)
            assert list(jobs.list_open()) == []
            job = jobs.submit(UPLOAD, DATA)
            assert jobs.submit(UPLOAD, DATA) == job
            first = jobs.claim(job.id, "a", LEASE_S)
            assert jobs.heartbeat(first, LEASE_S, progress=0.5)
            assert jobs.claim(job.id, "b", LEASE_S) is None
            clock.now_s += LEASE_S
            assert [j.id for j in jobs.list_open()] == [job.id]
            run(jobs, job, owner="b")
            jobs.finish(first, {"result.json": b"late"})
            check_result(jobs, job.id)
            assert list(jobs.list_open()) == []
            clock.now_s += 10_000
            assert jobs.sweep(9_000) == 1
            assert jobs.get(job.id) is None
            assert list(storage.list_files("s3://jobs")) == []
