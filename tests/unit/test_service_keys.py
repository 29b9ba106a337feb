"""API keys: what is valid, what is said, and what is never shown."""

import hashlib
import hmac
import json
import logging
import os
import re
from datetime import UTC, datetime, timedelta

import pytest

from medray import cli
from medray.errors import ConfigError
from medray.service import keys
from medray.service.keys import KeyRing, KeySource, file_warning, load_keys, make_key, parse_keys

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def ring(*lines):
    return parse_keys("\n".join(lines))


def reasons(found, key, now=NOW):
    verdict = found.check(key.encode(), now)
    return verdict.key_id or verdict.reason


def test_a_new_key_has_256_bits_and_its_line_lets_it_in():
    made = make_key(NOW, key_id="ward-3")
    prefix, name, secret = made.key.split("_", 2)
    assert (prefix, name, len(secret)) == ("medray", "ward-3", 43)
    assert made.line == f"ward-3:{hashlib.sha256(made.key.encode()).hexdigest()}"
    assert ring(made.line).check(made.key.encode(), NOW).key_id == "ward-3"
    assert make_key(NOW).key != make_key(NOW).key
    assert made.key not in repr(made)
    assert made.line not in repr(made)


def test_days_end_a_key_at_the_second():
    made = make_key(NOW, key_id="a", days=2)
    assert made.line.endswith(":2026-03-03T12:00:00Z")
    found = ring(made.line)
    end = NOW + timedelta(days=2)
    assert reasons(found, made.key, end - timedelta(seconds=1)) == "a"
    assert reasons(found, made.key, end) == "auth_expired"


@pytest.mark.parametrize(
    ("expiry", "valid_until"),
    [
        ("2026-03-01", "2026-03-01T00:00:00+00:00"),
        ("2026-03-01T10:00", "2026-03-01T10:00:00+00:00"),
        ("2026-03-01T10:00:00+02:00", "2026-03-01T08:00:00+00:00"),
    ],
)
def test_an_expiry_is_utc_and_the_first_moment_of_its_date(expiry, valid_until):
    made = make_key(NOW, key_id="a")
    found, end = ring(f"{made.line}:{expiry}"), datetime.fromisoformat(valid_until)
    assert reasons(found, made.key, end - timedelta(microseconds=1)) == "a"
    assert reasons(found, made.key, end) == "auth_expired"


def test_several_keys_are_valid_at_once_and_comments_are_left_out():
    one, two = make_key(NOW, key_id="one"), make_key(NOW, key_id="two")
    text = f"# keys\n\n  {one.line}  \n\n{two.line}\n"
    found = parse_keys(text)
    assert [reasons(found, k.key) for k in (one, two)] == ["one", "two"]
    assert reasons(found, one.key + "x") == "auth_wrong"
    assert found.check(b"", NOW).reason == found.check(None, NOW).reason == "auth_missing"
    assert found.check(b"\xff\x00", NOW).reason == "auth_wrong"
    # The same key in two lines: the one that is valid counts.
    assert reasons(ring(one.line + ":2020-01-01", one.line), one.key) == "one"
    assert reasons(ring(one.line, one.line + ":2020-01-01"), one.key) == "one"


def test_the_environment_divides_by_commas_too():
    one, two = make_key(NOW, key_id="one"), make_key(NOW, key_id="two")
    source = KeySource(environment=f"{one.line}, {two.line}\n")
    assert [line.id for line in source().lines] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("name-only", "line 3 of the key file is not of the form id:sha256hex"),
        ("bad id:" + "0" * 64, "line 3 .* not of the form"),
        ("a:" + "0" * 63, "line 3 .* not of the form"),
        ("a:" + "0" * 64 + ":soon", "the expiry in line 3 of the key file is no ISO date"),
        ("a:" + "0" * 64 + ":", "the expiry in line 3"),
    ],
)
def test_a_malformed_line_is_named_by_its_number_only(line, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_keys(f"# one\n\n{line}\n")
    assert line not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_line_is_compared_whatever_matches(monkeypatch):
    """Constant time by construction: one compare_digest a line, always over 32 bytes."""
    made = [make_key(NOW, key_id=f"k{i}") for i in range(5)]
    found = ring(*(m.line for m in made), made[0].line + ":2020-01-01")
    seen, real = [], hmac.compare_digest

    def compare(one, two):
        seen.append((len(one), len(two)))
        return real(one, two)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for key in (made[0].key, made[4].key, "medray_k0_x", "medray_none_x", "y" * 5000):
        seen.clear()
        found.check(key.encode(), NOW)
        assert seen == [(32, 32)] * 6


def write(path, *lines, mode=0o600):
    path.write_text("\n".join(lines) + "\n" if lines else "")
    path.chmod(mode)


def tick(path, seconds):
    """Give a file another time: two writes may fall into one step of the clock."""
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + int(seconds * 1e9)))


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path, caplog):
    one, two = make_key(NOW, key_id="one"), make_key(NOW, key_id="two")
    path, now = tmp_path / "keys", [0.0]
    write(path, one.line)
    source = KeySource(str(path), clock=lambda: now[0])

    def look(*lines, seconds=2):
        if lines is not None:
            write(path, *lines)
            tick(path, now[0] + 1)
        now[0] += seconds
        return [line.id for line in source().lines]

    assert look(one.line, two.line) == ["one", "two"]
    assert look(two.line, seconds=0.5) == ["one", "two"]  # not looked at yet
    now[0] += 1
    assert [line.id for line in source().lines] == ["two"]
    with caplog.at_level(logging.WARNING):
        assert look("broken:line") == ["two"]
        assert look() == ["two"]  # empty: it is being written
        now[0] += 2
        source()
    assert [r.message for r in caplog.records] == [
        (
            "the keys stay as they were: line 1 of the key file is not of the form "
            "id:sha256hex[:expiry]; see medray key"
        )
    ]
    path.unlink()
    now[0] += 2
    assert [line.id for line in source().lines] == ["two"]
    assert look("# nobody") == []
    assert look(one.line) == ["one"]
    write(path, two.line, mode=0o622)
    tick(path, 1000)
    now[0] += 2
    assert [line.id for line in source().lines] == ["one"]


def test_keys_sent_to_another_machine_are_still_read_again(tmp_path):
    one, two = make_key(NOW, key_id="one"), make_key(NOW, key_id="two")
    path, now = tmp_path / "keys", [1e6]
    write(path, one.line)
    source = KeySource(str(path), clock=lambda: now[0])
    write(path, two.line)
    tick(path, 1)
    now[0] = 5.0  # booted later
    assert [line.id for line in source().lines] == ["two"]


def test_who_may_read_and_write_the_file(tmp_path):
    path = tmp_path / "keys"
    write(path, make_key(NOW).line)
    assert file_warning(str(path)) == ""
    path.chmod(0o644)
    assert file_warning(str(path)) == "others may read the key file; chmod 600 it"
    assert KeySource(str(path)).warning == file_warning(str(path))
    path.chmod(0o660)
    with pytest.raises(ConfigError, match="others may write to the key file; chmod 600 it"):
        KeySource(str(path))


def test_a_service_does_not_begin_without_a_key(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"the key file cannot be read \(FileNotFoundError\)"):
        load_keys(str(path))
    write(path, "# none")
    with pytest.raises(ConfigError, match="the key file names no key; make one with medray key"):
        load_keys(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="the key file is no text"):
        load_keys(str(path))
    with pytest.raises(ConfigError, match="the key file is no regular file"):
        load_keys(str(tmp_path))
    monkeypatch.setenv("MEDRAY_API_KEYS", " ,\n")
    assert load_keys() is None
    monkeypatch.setenv("MEDRAY_API_KEYS", "#nobody")
    with pytest.raises(ConfigError, match="MEDRAY_API_KEYS names no key"):
        load_keys()
    made = make_key(NOW)
    monkeypatch.setenv("MEDRAY_API_KEYS", make_key(NOW).line)
    write(path, made.line)
    assert reasons(load_keys(str(path))(), made.key) == made.id  # the option wins


def test_a_ring_shows_no_hash(tmp_path):
    made = make_key(NOW, key_id="a")
    text = repr(ring(made.line))
    assert "id='a'" in text
    assert "digest" not in text
    assert isinstance(ring(made.line), KeyRing)


def test_the_verb_prints_key_and_line_once(capsys):
    assert cli.run(["key", "--id", "ward-3", "--days", "30"]) == 0
    out, err = capsys.readouterr()
    key, line = out.splitlines()
    assert reasons(parse_keys(line), key, datetime.now(UTC)) == "ward-3"
    assert re.search(r":20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ$", line)
    assert key not in err
    assert "X-API-Key" in err
    assert cli.run(["key", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert reasons(parse_keys(found["line"]), found["key"]) == found["id"]


@pytest.mark.parametrize("name", ["a_b", "a b", "a:b", "-a", "x" * 33, "ä"])
def test_the_verb_refuses_ids_that_a_line_cannot_hold(name, capsys):
    assert cli.run(["key", "--id", name]) == 2
    assert capsys.readouterr().out == ""
