"""Names, UIDs, dates and random streams that depend on a seed and on nothing else."""

import hashlib
import json

import numpy as np

# Text that must never leave a file's header; leak tests search outputs and logs for it.
CANARY = "CANARY"


def uid(*parts: object) -> str:
    """Return a UID under the 2.25 root (PS3.5 B.2), a hash of the parts."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def stream(seed: int, *parts: object) -> np.random.Generator:
    """Return a random stream of its own for these parts."""
    digest = hashlib.sha256(json.dumps([seed, *[str(part) for part in parts]]).encode()).digest()
    return np.random.default_rng(list(np.frombuffer(digest, dtype=np.uint32)))


def patient_name(number: int) -> str:
    """Return a patient name that no real person has and that a search finds."""
    return f"{CANARY}^NAME^{number:04d}"


def date(rng: np.random.Generator) -> str:
    """Return a date (DA) between 2002 and 2011."""
    year, month, day = rng.integers(2002, 2012), rng.integers(1, 13), rng.integers(1, 29)
    return f"{year:04d}{month:02d}{day:02d}"
