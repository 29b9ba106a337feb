"""How well a pancreas was outlined: on the example's grid while training, on the CT's own after."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.learning import (
    Batch,
    Choice,
    InferenceSweep,
    Objective,
    Outputs,
    Prediction,
    Row,
)
from medray.metrics import mask_rows, overlap, surface
from medray.preprocess.components import largest_component
from medray.preprocess.native_mask import levels_on_grid, mask_on_grid, unpack_mask

if TYPE_CHECKING:
    from torch import Tensor

    from medray.tasks.pancreas_segmentation.recipe import Hparams

DEFAULT_THRESHOLD = 0.5
# Nikolov et al. (2021) take the disagreement of two experts; for a pancreas 2 mm is usual.
_TOLERANCE_MM = 2.0


def probabilities(outputs: Outputs, hp: "Hparams") -> "dict[str, Tensor]":
    """Return the pancreas' probability, (B, D, H, W)."""
    del hp
    assert not isinstance(outputs, dict)
    return {"mask": outputs.float().softmax(dim=1)[:, 1]}


def measure(probs: "Mapping[str, Tensor]", batch: Batch, hp: "Hparams") -> list[Row]:
    """Return for each case how many voxels reach each threshold, inside and outside the mask."""
    del hp
    mask = batch["mask"]
    depth, height, width = mask.shape[-3:]
    return list(mask_rows.voxel_counts(probs["mask"][:, :depth, :height, :width], mask))


def metrics(rows: Sequence[Row], inference: Mapping[str, Any]) -> dict[str, float]:
    """Return mean Dice over cases, pooled scores as the original, native means if measured.

    Cases without an answer (no distance to an empty mask) are left out of a mean and counted as
    `native_hd95_missing`.
    """
    threshold = float(inference.get("threshold", DEFAULT_THRESHOLD))
    numbers = mask_rows.mask_numbers(mask_rows.counts_at(rows, threshold))
    if not rows or "native_dice" not in rows[0]:
        return numbers
    native = {
        name: np.array([row[name] for row in rows])
        for name in ("native_dice", "native_nsd", "native_hd95_mm", "native_volume_error_ml")
        if name in rows[0]
    }
    numbers.update({name: _mean(values) for name, values in native.items()})
    numbers["native_dice_sd"] = float(native["native_dice"].std())
    numbers["native_absolute_volume_error_ml"] = _mean(np.abs(native["native_volume_error_ml"]))
    if "native_hd95_mm" in native:
        numbers["native_hd95_missing"] = float(np.isnan(native["native_hd95_mm"]).sum())
    return numbers


def choose(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the threshold of the best mean Dice."""
    return {"threshold": mask_rows.best_mask_threshold(rows)}


def baseline(rows: Sequence[Row], training_labels: Sequence[int]) -> dict[str, float]:
    """Return what calling every voxel pancreas would score."""
    del training_labels
    return mask_rows.mask_numbers(mask_rows.all_foreground(rows))


def decode(
    probs: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    hp: "Hparams",
    inference: Mapping[str, Any],
) -> Prediction:
    """Return the mask on the CT's own grid."""
    del hp
    meta = facts["meta"]
    affine = np.reshape(meta["original_affine_lps"], (4, 4))
    mask = mask_on_grid(
        probs["mask"],
        np.reshape(facts["affine_lps"], (4, 4)),
        grid=(meta["original_shape"], affine),
        threshold=float(inference.get("threshold", DEFAULT_THRESHOLD)),
    )
    if inference.get("parts") == "largest":
        mask = largest_component(mask)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume_ml = overlap.volume_ml(int(np.count_nonzero(mask)), spacing.tolist())
    return Prediction(mask=mask, affine_lps=affine, volume_ml=volume_ml)


def compare(
    prediction: Prediction, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> dict[str, float]:
    """Return Dice, surface agreement and volume error on the CT's own grid."""
    assert prediction.mask is not None
    assert prediction.affine_lps is not None
    assert prediction.volume_ml is not None
    truth = unpack_mask(
        arrays["native_mask_bits"], facts["meta"]["native_mask_box_kji"], prediction.mask.shape
    )
    spacing = np.linalg.norm(prediction.affine_lps[:3, :3], axis=0).tolist()
    distances = surface.surface_distances(prediction.mask, truth, spacing_mm=spacing)
    truth_ml = overlap.volume_ml(int(np.count_nonzero(truth)), spacing)
    return {
        "native_dice": float(overlap.dice(overlap.count_overlap(prediction.mask, truth))),
        "native_nsd": surface.normalised_surface_distance(distances, tolerance_mm=_TOLERANCE_MM),
        "native_hd95_mm": surface.hd95_mm(distances),
        "native_volume_error_ml": prediction.volume_ml - truth_ml,
    }


def survey(
    probs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> Row:
    """Return how many voxels of the CT's own grid reach each threshold, `voxel_ml` the size of one.

    The grid of training is coarser: its best threshold makes volumes too small on the CT's own.
    """
    meta = facts["meta"]
    affine = np.reshape(meta["original_affine_lps"], (4, 4))
    levels = levels_on_grid(
        probs["mask"],
        np.reshape(facts["affine_lps"], (4, 4)),
        grid=(meta["original_shape"], affine),
        num_levels=mask_rows.NUM_THRESHOLDS,
    )
    truth = unpack_mask(arrays["native_mask_bits"], meta["native_mask_box_kji"], levels.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    counts = mask_rows.level_counts(levels, truth, largest_component)
    return {**counts, "voxel_ml": overlap.volume_ml(1, spacing)}


def refine(rows: Sequence[Row], inference: Mapping[str, Any], hp: "Hparams") -> list[Row]:
    """Return the rows with Dice and volume error on the CT's own grid under these parameters."""
    del hp
    threshold = float(inference.get("threshold", DEFAULT_THRESHOLD))
    alone = inference.get("parts") == "largest"
    made = []
    for row in rows:
        found, wrong, missed = mask_rows.native_counts(row, threshold, largest_alone=alone)
        score = float(overlap.dice(np.array([found, wrong, missed])))
        error_ml = float(wrong - missed) * row["voxel_ml"]
        made.append({**row, "native_dice": score, "native_volume_error_ml": error_ml})
    return made


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


SWEEP = InferenceSweep(
    space={
        "threshold": Choice(tuple(k / 32 for k in range(1, 32))),
        "parts": Choice(("all", "largest")),
    },
    objective=Objective("native_dice", "max"),
    survey=survey,
    refine=refine,
    refined_by=("threshold", "parts"),
    limits={"threshold": mask_rows.THRESHOLD_LIMITS},
    further_metrics=("native_dice_sd", "native_absolute_volume_error_ml"),
)
