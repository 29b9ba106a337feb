"""What the tasks that use YOLOv5 share: network, frames, augmentation, detections.

Their hyperparameters have the names of `YoloHparams`; what differs between tasks is an argument.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from medray.nn.mosaic import Boxed, MosaicAugmentation, augment_boxed
from medray.nn.nms import Selection
from medray.nn.optimizers import adamw_decayed, sgd_decayed
from medray.nn.yolo import Yolo, YoloConfig
from medray.nn.yolo_decode import detect
from medray.nn.yolo_hparams import YoloHparams


def network(hp: YoloHparams, *, in_channels: int, num_classes: int = 1) -> Yolo:
    """Return a fresh network."""
    return Yolo(
        YoloConfig(num_classes=num_classes, in_channels=in_channels, depth=hp.depth, width=hp.width)
    )


def augmented(
    batch: Mapping[str, Tensor], seeds: Sequence[int], how: MosaicAugmentation
) -> dict[str, Tensor]:
    """Return the batch with other frames and boxes."""
    given = Boxed(batch["image"], batch["boxes"], batch["num_boxes"], batch["box_labels"])
    changed = augment_boxed(given, seeds, how)
    return {
        **batch,
        "image": changed.image,
        "boxes": changed.boxes,
        "num_boxes": changed.num_boxes,
        "box_labels": changed.labels,
    }


def detections(outputs: Mapping[str, Tensor], hp: YoloHparams) -> dict[str, Tensor]:
    """Return `boxes` (B, K, 4) in the frame's pixels, `scores` and `classes` (B, K)."""
    selection = Selection(least_score=hp.least_score, iou_threshold=hp.nms_iou, most=hp.most_boxes)
    return detect(outputs, selection)


def optimizer(module: nn.Module, hp: YoloHparams) -> Optimizer:
    """Return AdamW, or the published recipe's SGD; kernels alone decay."""
    if hp.optimizer == "sgd":
        return sgd_decayed(module, lr=hp.lr, weight_decay=hp.weight_decay)
    return adamw_decayed(module, lr=hp.lr, weight_decay=hp.weight_decay)
