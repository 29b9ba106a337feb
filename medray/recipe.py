"""The task contract: what a task's folder provides and what engines may rely on. No Ray here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from medray.datasets.record import Record, Rejection, Sample, SourceTree
from medray.learning import HparamsT, Learning

if TYPE_CHECKING:
    from torch import nn

Example = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a task's `prepare` returns for one record.

    Attributes:
        arrays: named arrays in compact types (HU int16, masks uint8, boxes float32).
        affine_lps: (4, 4) of `arrays["image"]` where it is a volume, else None.
        spacing_mm: spacing of `arrays["image"]`, zyx or yx, in mm; empty if unknown.
        label: class index, or -1 where the task has none.
        meta: plain facts that postprocessing needs (crop offsets, scale, original shape).
    """

    arrays: Example
    affine_lps: np.ndarray | None = None
    spacing_mm: tuple[float, ...] = ()
    label: int = -1
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamPart:
    """A part of a sample that another task's model may make first.

    Attributes:
        setting: hyperparameter that holds the model's URI.
        kind: of the task whose model it is: `mask3d` makes a mask, `box2d` boxes.
        is_needed: nothing can be predicted without it; else the task has an answer of its own.
    """

    setting: str
    kind: str
    is_needed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Generic[HparamsT]):
    """Everything an engine needs to know of a task; callables are module-level functions.

    Attributes:
        name: the task's folder and registry name.
        kind: `box2d`, `class3d`, `score2d`, `mask3d` or `score3d`.
        transform_version: raised whenever `prepare` changes its output.
        hparams: the full-size hyperparameters.
        tiny_hparams: the same for two CPU cores and minutes; sizes only, never another path.
        prepare_fields: names of the hyperparameters that change `prepare`'s output.
        records_fields: names of those that change which examples there are.
        records: lays the files out as examples and rejections.
        prepare: one decoded sample to one example; the same object in prepare, predict, serve.
        class_names: names of the label indices, () where the task has none.
        classes: names where hyperparameters decide about them, else None.
        lesion_in_each: every case must hold a mask or box (the mask_empty gate).
        phantom: writes a synthetic data set in the task's true public layout.
        phantom_baseline: threshold-and-blob score on that data set, name and value.
        lesion_boxes: boxes mark lesions (the box_whole_image gate).
        prepare_peak_factor: peak memory of `prepare` over the bytes of the decoded sample.
        segment: what its masks mark, a word of `dicom.seg_terms`; empty where it makes none.
        upstream: parts of a sample, `mask` or `boxes`, that another task's model may make.
        learning: how the task learns.
        submission: (images with `patient_id`, `laterality`, `score`, `boxes_xyxy_px` and
            `box_scores`; inference) to the text of its challenge's submission.csv, or None.
        submission_needs: of these, what names a row; images without it are left out and counted.
    """

    name: str
    kind: str
    transform_version: int
    hparams: HparamsT
    tiny_hparams: HparamsT
    prepare_fields: tuple[str, ...]
    records_fields: tuple[str, ...] = ()
    records: Callable[[SourceTree, HparamsT], Iterator[Record | Rejection]]
    prepare: Callable[[Sample, HparamsT], Prepared]
    class_names: tuple[str, ...] = ()
    classes: Callable[[HparamsT], tuple[str, ...]] | None = None
    lesion_in_each: bool = False
    lesion_boxes: bool = False
    phantom: Callable[..., Mapping[str, Any]]
    phantom_baseline: Callable[[Path], Mapping[str, float]]
    learning: Learning[HparamsT]
    prepare_peak_factor: float = 4.0
    submission: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], str] | None = None
    submission_needs: tuple[str, ...] = ("patient_id",)
    segment: str = ""
    upstream: Mapping[str, UpstreamPart] = field(default_factory=dict)

    @property
    def data_fields(self) -> tuple[str, ...]:
        """Names of all hyperparameters that decide about the prepared data."""
        settings = (part.setting for part in self.upstream.values())
        return (*self.prepare_fields, *self.records_fields, *settings)

    @property
    def is_planar(self) -> bool:
        """Whether the task takes single images: projections, or slices one by one."""
        return self.kind.endswith("2d")

    def class_names_of(self, hparams: HparamsT) -> tuple[str, ...]:
        """Return the names of the label indices under these hyperparameters."""
        return self.classes(hparams) if self.classes else self.class_names

    def tiny(self) -> "Recipe[HparamsT]":
        """Return the recipe with its small preset."""
        return replace(self, hparams=self.tiny_hparams)

    def model(self, hparams: HparamsT) -> "nn.Module":
        """Return a fresh network of the task."""
        return self.learning.model(hparams)
