"""What the tasks that use YOLOv5 share of torch: their network and its augmentation.

Their hyperparameters have the names of `YoloHparams`; what differs between tasks is an argument.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from medray.nn.mosaic import Boxed, MosaicAugmentation, augment_boxed
from medray.nn.yolo import Yolo, YoloConfig
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
