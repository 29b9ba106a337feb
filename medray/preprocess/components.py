"""Connected parts of a mask."""

import numpy as np
from jaxtyping import UInt8

from medray.preprocess.crop import mask_box


def largest_component(
    mask: UInt8[np.ndarray, "depth height width"],
) -> UInt8[np.ndarray, "depth height width"]:
    """Return the part with the most voxels, of parts that share no face; of equals the first."""
    from scipy.ndimage import label

    box = mask_box(mask)
    if box is None:
        return mask
    inside = tuple(slice(*ends) for ends in box)
    parts, number = label(mask[inside])
    if number < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = np.zeros_like(mask)
    kept[inside] = parts == int(sizes.argmax())
    return kept
