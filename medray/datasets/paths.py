"""Paths inside a data set, from listed URIs: layouts match on these, never on a whole URI."""

import posixpath
from pathlib import Path

_ZIP = "zip://"


def relative_path(uri: str, root: str) -> str:
    """Return the path of a listed file below its root, with `/`; zip members count as files.

    A member of `zip://member::outer` is `<outer relative to root>/member`. A URI outside the root
    is returned without its scheme.
    """
    if uri.startswith(_ZIP) and "::" in uri:
        member, outer = uri[len(_ZIP) :].split("::", 1)
        folder = relative_path(outer, root)
        return f"{folder}/{member}" if folder else member
    plain, base = _plain(uri), _plain(root).rstrip("/")
    if plain == base:
        return ""
    if plain.startswith(base + "/"):
        return plain[len(base) + 1 :]
    return plain.split("://", 1)[-1].lstrip("/")


def _plain(uri: str) -> str:
    text = uri.removeprefix("file://")
    if text.startswith("/") or "://" in text:
        return text
    return Path(text).absolute().as_posix()


def folder_of(path: str) -> str:
    """Return the folder part of a relative path, empty at the top."""
    return posixpath.dirname(path)


def stem_of(path: str) -> str:
    """Return the file name without its suffix; `.nii.gz` counts as one suffix."""
    name = posixpath.basename(path)
    for suffix in (".nii.gz",):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name.rpartition(".")[0] or name


def suffix_of(path: str) -> str:
    """Return the lower-case suffix with its dot; `.nii.gz` counts as one."""
    name = posixpath.basename(path).lower()
    if name.endswith(".nii.gz"):
        return ".nii.gz"
    return posixpath.splitext(name)[1]


def inside(path: str, folder: str) -> bool:
    """Tell whether a relative path lies in a folder or below it."""
    return folder in {"", path} or path.startswith(folder + "/")
