"""What hyperparameters the tasks that use YOLOv5 share; without torch, as recipes need it."""

from typing import Literal, Protocol


class YoloHparams(Protocol):
    """Hyperparameters with these names; what differs between tasks is an argument instead."""

    @property
    def size(self) -> int:
        """Side of the frame in pixels."""

    @property
    def compat(self) -> Literal["none", "original"]:
        """`original` for what the original did."""

    @property
    def box_gain(self) -> float:
        """Weight of the boxes' overlap in the loss."""

    @property
    def objectness_gain(self) -> float:
        """Weight of the objectness, at 640 pixels."""

    @property
    def depth(self) -> float:
        """What multiplies the network's repeats."""

    @property
    def width(self) -> float:
        """What multiplies its channels."""

    @property
    def mosaic(self) -> float:
        """Chance of a frame of four."""

    @property
    def scale(self) -> float:
        """Share by which sizes vary."""

    @property
    def translate(self) -> float:
        """Share of the side by which frames move."""

    @property
    def flip(self) -> float:
        """Chance of a flip left to right."""

    @property
    def optimizer(self) -> Literal["adamw", "sgd"]:
        """How weights are updated."""

    @property
    def lr(self) -> float:
        """Highest learning rate."""

    @property
    def warmup_steps(self) -> int:
        """Optimiser steps until it is reached."""

    @property
    def weight_decay(self) -> float:
        """Of kernels."""

    @property
    def least_score(self) -> float:
        """Boxes below it are not even judged."""

    @property
    def nms_iou(self) -> float:
        """Overlap of two boxes from which the worse one goes."""

    @property
    def most_boxes(self) -> int:
        """Boxes judged in an image."""

    @property
    def epochs(self) -> int:
        """Passes over the training split."""

    @property
    def batch_size(self) -> int:
        """Images a worker takes at one step."""


def check_yolo(hp: YoloHparams) -> None:
    """Refuse hyperparameters that no YOLO has.

    Raises:
        ValueError: naming the field.
    """
    if hp.size < 32 or hp.size % 32:
        raise ValueError(f"size must be a positive multiple of 32, got {hp.size}")
    if not (hp.depth > 0 and hp.width > 0 and hp.lr > 0):
        raise ValueError("depth, width and lr must be > 0")
    if min(hp.weight_decay, hp.warmup_steps) < 0 or min(hp.epochs, hp.batch_size) < 1:
        raise ValueError(
            "weight_decay and warmup_steps must be >= 0, epochs and batch_size at least 1"
        )
    if not (0 <= hp.mosaic <= 1 and 0 <= hp.flip <= 1):
        raise ValueError("mosaic and flip must lie in 0..1")
    if not (0 <= hp.scale < 1 and 0 <= hp.translate < 1):
        raise ValueError("scale and translate must lie in 0..1 (below 1)")
    if not (0 <= hp.least_score < 1 and 0 < hp.nms_iou <= 1) or hp.most_boxes < 1:
        raise ValueError("least_score and nms_iou must lie in 0..1, most_boxes be at least 1")
