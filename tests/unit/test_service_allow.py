"""Only what the operator has allowed is read, whatever way a URI is spelled."""

import pytest

from medray.errors import ConfigError
from medray.service.allow import UriPolicy, parse_allowed
from medray.service.problems import ProblemError

REMOTE = ("s3://bucket/ct", "https://pacs.example:8443/wado", "http://169.254.1.2/x")


def allowed(policy, uri):
    try:
        return policy.check(uri)
    except ProblemError as error:
        assert error.reason == "uri_not_allowed"
        assert not uri.strip() or uri not in error.detail
        return None


@pytest.mark.parametrize(
    ("uri", "spelled"),
    [
        ("s3://bucket/ct", "s3://bucket/ct"),
        ("s3://bucket/ct/", "s3://bucket/ct"),
        ("s3://bucket/ct/1.dcm", "s3://bucket/ct/1.dcm"),
        ("s3a://bucket/ct/1.dcm", "s3://bucket/ct/1.dcm"),
        ("s3://bucket/ct/a b%20ä.dcm", "s3://bucket/ct/a b%20ä.dcm"),
        ("zip://a/b.dcm::s3://bucket/ct/x.zip", "zip://a/b.dcm::s3://bucket/ct/x.zip"),
        ("https://PACS.example:8443/wado/1", "https://pacs.example:8443/wado/1"),
        ("http://169.254.1.2/x/y", "http://169.254.1.2/x/y"),
    ],
)
def test_what_lies_below_a_prefix_is_taken(uri, spelled):
    assert parse_allowed(REMOTE).check(uri) == spelled


@pytest.mark.parametrize(
    "uri",
    [
        "", " ", "s3://bucket", "s3://bucket/", "s3://bucket/ct2", "s3://bucket/ct2/1.dcm",
        "s3://bucket2/ct", "s3://bucket/ct/../x", "s3://bucket/ct/..", "s3://bucket/ct/./a",
        "s3://bucket/ct//a", "s3://bucket//ct", "s3:///bucket/ct", "s3:/bucket/ct", "s3:bucket/ct",
        "S3://bucket/ct", "s3://user@bucket/ct", "s3://key:secret@bucket/ct", "s3://bucket:80/ct",
        "s3://bucket\\ct", "s3://bucket/ct\\..\\x", "s3://bucket/ct/\x00", "s3://bucket/ct/\n",
        "s3://bucket/ct/\u202e", "s3://bucket/ct/\ud800", " s3://bucket/ct", "s3://bucket/ct ",
        "s3://bucket/ct/" + "x" * 3000, "s3://[::1]/ct",
        "simplecache::s3://bucket/ct/a", "filecache::s3://bucket/ct", "s3://bucket/ct::s3://b2/x",
        "tar://a::s3://bucket/ct/x.tar", "zip://a", "zip://", "zip://::", "zip://a::",
        "zip://a::s3://other/x.zip", "zip://../a::s3://bucket/ct/x.zip",
        "zip://a/../../b::s3://bucket/ct/x.zip", "zip://a::zip://b::s3://bucket/ct/x.zip",
        "zip://a::s3://x/y::s3://bucket/ct/x.zip", "zip://http://h/a::s3://bucket/ct/x.zip",
        "ZIP://a::s3://bucket/ct/x.zip", "zip://a::simplecache::s3://bucket/ct/x.zip",
        "http://pacs.example:8443/wado", "https://pacs.example/wado", "https://pacs.example:443/wado",
        "https://pacs.example:8443", "https://pacs.example:8443/wado2",
        "https://pacs.example:8443.evil.example/wado", "https://pacs.example:8443@evil.example/wado",
        "https://a@pacs.example:8443/wado", "https://pacs.example:8443/wado?x=1",
        "https://pacs.example:8443/wado#x", "https://pacs.example:8443/wado/%2e%2e/x",
        "https://pacs.example:8443/wado/%2E./x", "https://pacs.example:8443/wado%2fx/y",
        "https://pacs.example:8443/wado/%252e", "https:/pacs.example:8443/wado",
        "https:\\\\pacs.example:8443/wado", "//pacs.example:8443/wado",
        "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/x", "http://localhost/x",
        "http://127.0.0.1/x", "http://0x7f000001/x", "http://2130706433/x",
        "file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "etc/passwd", "../x", "~/x",
        "file:etc", "local:///etc/passwd", "memory://ct", "github://o:r@main/x", "ftp://h/x",
        "data:text/plain,x", "javascript:alert(1)", "gs://bucket/ct", "reference://", "dir://a::/x",
    ],
)  # fmt: skip
def test_everything_else_is_refused(uri):
    assert allowed(parse_allowed(REMOTE), uri) is None
    assert allowed(UriPolicy(), uri) is None


def test_a_local_folder_and_the_links_in_it(tmp_path):
    root, other = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    other.mkdir()
    (root / "a.dcm").write_bytes(b"x")
    (other / "b.dcm").write_bytes(b"y")
    (root / "in").symlink_to(root / "a.dcm")
    (root / "file").symlink_to(other / "b.dcm")
    (root / "folder").symlink_to(other)
    (root / "loop").symlink_to(root / "loop")
    (tmp_path / "in2").mkdir()
    policy = parse_allowed([str(root)])
    here = str(root)
    for uri in (f"{here}/a.dcm", f"file://{here}/a.dcm", f"local://{here}/a.dcm", f"{here}/in"):
        assert policy.check(uri) == f"{here}/a.dcm"
    assert policy.check(here) == policy.check(f"{here}/") == here
    assert policy.check(f"{here}/none.dcm") == f"{here}/none.dcm"
    assert policy.check(f"zip://a.dcm::{here}/x.zip") == f"zip://a.dcm::{here}/x.zip"
    refused = [f"{here}/file", f"{here}/folder", f"{here}/folder/b.dcm", f"{here}/../out/b.dcm",
               f"{here}2/x", f"{here}//a.dcm", f"{here}/./a.dcm", f"/{here}/a.dcm", str(tmp_path),
               "/", f"FILE://{here}/a.dcm", f"file:/{here}", f"zip://a::{here}/folder/x.zip",
               f"{here}/a::b"]  # fmt: skip
    assert [uri for uri in refused if allowed(policy, uri) is not None] == []


def test_an_allowed_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    policy = parse_allowed([str(tmp_path / "link"), f"file://{tmp_path}/link/"])
    assert policy.check(f"{tmp_path}/link/a") == policy.check(f"{tmp_path}/real/a")
    assert policy.check(f"{tmp_path}/link/a") == f"{tmp_path}/real/a"


def test_a_relative_prefix_is_below_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_allowed(["data"]).check(f"{tmp_path}/data/a") == f"{tmp_path}/data/a"
    assert allowed(parse_allowed(["data"]), "data/a") is None


@pytest.mark.parametrize(
    "prefix",
    ["s3://", "https://", "http:///x", "https://u@h/x", "zip://a::/x", "s3://b/../c", "s3://*"],
)
def test_a_prefix_names_a_bucket_or_host(prefix):
    with pytest.raises(
        ConfigError, match="--allow-uri takes a folder, s3://bucket/prefix or https"
    ):
        parse_allowed([prefix])


@pytest.mark.parametrize("prefix", ["/", "file:///", "/tmp/.."])
def test_the_whole_disk_is_not_allowed(prefix):
    with pytest.raises(ConfigError, match="--allow-uri"):
        parse_allowed([prefix])
