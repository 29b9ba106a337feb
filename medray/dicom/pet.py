"""Standardised uptake values: what a PET header must say, and the body-weight formula."""

from typing import Any

from pydicom.dataset import Dataset

from medray.dicom.dataset import number, text
from medray.errors import DataError


def pet_facts(dataset: Dataset) -> dict[str, Any]:
    """Return units, weight, dose and times of one PET instance; absent values are None."""
    return {}
