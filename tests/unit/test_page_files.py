"""The page's files: what is handed out, and that nothing in them leaves the page's own server."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medray.errors import REASONS
from medray.service.page_files import PAGE_HEADERS, PAGE_POLICY, page_file

FOLDER = Path(__file__).parents[2] / "medray" / "service" / "page"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")


def test_the_page_itself_lies_at_the_root():
    found = page_file("/")
    assert found is not None
    assert found.content_type == "text/html; charset=utf-8"
    assert found.content == (FOLDER / "index.html").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_handed_out_with_its_type(name):
    found = page_file(f"/page/{name}")
    assert found is not None
    assert found.content == (FOLDER / name).read_bytes()
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
    assert found.content_type == kinds[name.rpartition(".")[2]]
    assert re.fullmatch(r'"[0-9a-f]{32}"', found.etag)


def test_tags_differ_where_bytes_do():
    tags = {page_file(f"/page/{name}").etag for name in FILES}
    assert len(tags) == len(FILES)


@pytest.mark.parametrize(
    "path",
    ["", "/page", "/page/", "/page/index.html", "/page/../page_files.py", "/page/..%2f__init__.py",
     "/page//etc/passwd", "page/page.js", "/page/page.js/", "/page/nothing.js"],
)  # fmt: skip
def test_nothing_else_is(path):
    assert page_file(path) is None


def test_reasons_are_those_of_the_closed_list():
    found = json.loads(page_file("/page/reasons.json").content)
    assert set(found) == set(REASONS)
    assert found["too_few_slices"]["mend"] == REASONS["too_few_slices"].mend


def test_the_policy_needs_no_exception():
    """Neither script nor style in the markup, no handler, and no address of another server."""
    html = (FOLDER / "index.html").read_text()
    assert not re.findall(r"\s(?:style|on\w+)\s*=", html)
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)", html)
    assert "unsafe" not in PAGE_POLICY
    assert PAGE_HEADERS["Content-Security-Policy"] == PAGE_POLICY
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert not re.search(r"https?://|//[a-z]+\.[a-z]+/", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_modules_import_only_what_is_there():
    for name in FILES:
        for imported in re.findall(r'from "\./([\w.]+)"', (FOLDER / name).read_text()):
            assert imported in FILES, (name, imported)


def test_every_element_that_the_script_looks_for_is_there():
    html = (FOLDER / "index.html").read_text()
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'byId\("([\w-]+)"\)', (FOLDER / "page.js").read_text())
    assert wanted
    assert set(wanted) <= set(ids)
    assert set(re.findall(r'<label for="([\w-]+)"', html)) <= set(ids)


def test_sources_stay_short():
    for path in FOLDER.iterdir():
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_a_wheel_holds_the_page(tmp_path):
    pytest.importorskip("hatchling")
    root = FOLDER.parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"medray/service/page/{path.name}" for path in FOLDER.iterdir()} <= names
