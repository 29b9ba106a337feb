"""The four losses of Faster R-CNN as sums of each image, and the draw of what they judge.

Columns: objectness, boxes and number of the judged anchors; class, boxes and number of the judged
regions; the gate's cross-entropy and number. torchvision's losses are the first two over the third,
and the next two over the sixth, of a whole batch.
"""

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

NUM_SUMS = 8
_BETA = 1 / 9


class SeededSampler:
    """Stands in for torchvision's `BalancedPositiveNegativeSampler`; draws by each image's seed.

    Attributes:
        seeds: one per image of the batch to come.
    """

    def __init__(self, number: int, positive_share: float, *, stream: int) -> None:
        self.number = number
        self.positive_share = positive_share
        self.stream = stream
        self.seeds: list[int] = []

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks (n,) of the positives (label >= 1) and negatives (0) drawn of each image.

        At most `positive_share` of `number` are positive; negatives fill up.
        """
        positives, negatives = [], []
        for seed, own in zip(self.seeds, labels, strict=True):
            generator = torch.Generator().manual_seed((2 * seed + self.stream) % (1 << 63))
            positive, negative = torch.where(own >= 1)[0], torch.where(own == 0)[0]
            most = min(len(positive), int(self.number * self.positive_share))
            positives.append(_marked(own, positive, most, generator))
            rest = min(len(negative), self.number - most)
            negatives.append(_marked(own, negative, rest, generator))
        return positives, negatives


def _marked(own: Tensor, among: Tensor, number: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randperm(len(among), generator=generator)[:number].to(own.device)
    mask = torch.zeros_like(own, dtype=torch.uint8)
    mask[among[chosen]] = 1
    return mask


def rpn_sums(
    rpn: object,
    objectness: Tensor,
    deltas: Tensor,
    anchors: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> Float32[Tensor, "b 3"]:
    """Return each image's objectness and box loss and its number of judged anchors.

    Args:
        rpn: torchvision's RegionProposalNetwork, whose matching, coding and draw are taken.
        objectness: (B x anchors, 1) logits.
        deltas: (B x anchors, 4).
        anchors: (anchors, 4) of each image.
        targets: `boxes` and `labels` of each image.
    """
    labels, matched = rpn.assign_targets_to_anchors(anchors, targets)  # type: ignore[attr-defined]
    positives, negatives = rpn.fg_bg_sampler(labels)  # type: ignore[attr-defined]
    rows = []
    for index, logits in enumerate(objectness.view(len(anchors), -1)):
        own = deltas.view(len(anchors), -1, 4)[index]
        positive = torch.where(positives[index])[0]
        judged = torch.where(positives[index] | negatives[index])[0]
        wanted = rpn.box_coder.encode_single(matched[index][positive], anchors[index][positive])  # type: ignore[attr-defined]
        seen = functional.binary_cross_entropy_with_logits(
            logits[judged], labels[index][judged], reduction="sum"
        )
        rows.append(torch.stack([seen, _box_loss(own[positive], wanted), _count(seen, judged)]))
    return torch.stack(rows)


def region_sums(
    logits: Tensor, deltas: Tensor, labels: list[Tensor], wanted: tuple[Tensor, ...] | list[Tensor]
) -> Float32[Tensor, "b 3"]:
    """Return each image's class and box loss and its number of judged regions.

    Args:
        logits: (regions of all images, 1 + classes).
        deltas: (regions of all images, 4 x (1 + classes)).
        labels: true class of each image's regions, 0 is background.
        wanted: (regions, 4) deltas of each image's regions.
    """
    counts = [len(own) for own in labels]
    # A batch may leave no region at all: then the number of classes must be said.
    per_class = deltas.view(len(deltas), logits.shape[1], 4)
    told_of, placed_of = (torch.split(one, counts) for one in (logits, per_class))
    rows = []
    for own, part, boxes, aims in zip(labels, told_of, placed_of, wanted, strict=True):
        positive = torch.where(own > 0)[0]
        told = functional.cross_entropy(part, own, reduction="sum")
        placed = _box_loss(boxes[positive, own[positive]], aims[positive])
        rows.append(torch.stack([told, placed, _count(told, own)]))
    return torch.stack(rows)


def _box_loss(found: Tensor, wanted: Tensor) -> Tensor:
    return functional.smooth_l1_loss(found, wanted, beta=_BETA, reduction="sum")


def _count(like: Tensor, items: Tensor) -> Tensor:
    return like.new_tensor(float(len(items)))
