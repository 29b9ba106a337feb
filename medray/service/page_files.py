"""The files of the web page, as the server hands them out; no build step and no other server's.

Wheels contain them: hatchling takes every file below the package, whatever its suffix.
"""

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from medray.errors import REASONS

# What the page may load: its own files, and pictures that it made itself.
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked again each time, and answered with 304: a page never runs parts of two versions.
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
}
_INDEX, _REASONS = "index.html", "reasons.json"


class PageFile(NamedTuple):
    """One file of the page.

    Attributes:
        content_type: for the header of this name.
        content: its bytes.
        etag: quoted, of the bytes; equal bytes give equal tags on every replica.
    """

    content_type: str
    content: bytes
    etag: str


def page_file(path: str) -> PageFile | None:
    """Return what a path of the page holds: `/` or `/page/<name>`; None where there is nothing."""
    files_by_path = _page_files()
    return files_by_path.get(path)


@cache
def _page_files() -> dict[str, PageFile]:
    """Read all files once; a request never names a file, so none outside can be reached."""
    found = {}
    for entry in files("medray.service").joinpath("page").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if entry.is_file() and suffix in _TYPES:
            path = "/" if entry.name == _INDEX else f"/page/{entry.name}"
            found[path] = _page_file(_TYPES[suffix], entry.read_bytes())
    reasons = {code: {"meaning": r.meaning, "mend": r.mend} for code, r in REASONS.items()}
    found[f"/page/{_REASONS}"] = _page_file(_TYPES[".json"], json.dumps(reasons).encode())
    return found


def _page_file(content_type: str, content: bytes) -> PageFile:
    digest = hashlib.sha256(content).hexdigest()[:32]
    return PageFile(content_type=content_type, content=content, etag=f'"{digest}"')
