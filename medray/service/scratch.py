"""Temporary files of one process, which the next one removes where it was killed."""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

_PREFIX = "medray-scratch-"
_NAME = re.compile(_PREFIX + r"(\d+)-")


def scratch_folder() -> str:
    """Return a new folder of this process; folders of processes that are gone are removed."""
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        found = _NAME.match(folder.name)
        if found and not _is_alive(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        return True
    return False
