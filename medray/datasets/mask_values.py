"""Which value of a mask is the organ."""

import numpy as np

from medray.errors import DataError


def organ_mask(mask: np.ndarray, value: int) -> np.ndarray:
    """Return uint8 0/1 of the organ.

    Args:
        mask: label values on the image's grid.
        value: the organ's value; 0 means the only one there is.

    Raises:
        DataError: `label_unknown` if there are several values and none was chosen: taking all of
            them, or the lowest, has put a spleen into a pancreas before (SEEDS_SPEC 4.7).
    """
    if value:
        return np.asarray(mask == value, dtype=np.uint8)
    values = np.unique(mask)
    if np.count_nonzero(values) > 1:
        raise DataError("label_unknown", "the mask has several labels; choose one with mask_value")
    return np.asarray(mask != 0, dtype=np.uint8)
