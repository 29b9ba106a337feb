"""Bright or dark photographs by logistic regression of their mean: a task in one folder."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from medray.datasets import datalist
from medray.datasets.layouts import read_layout
from medray.learning import Learning, Objective, Prediction, Schedule
from medray.losses.classification import binary_sums
from medray.metrics.class_rows import two_class_numbers, youden_threshold
from medray.nn.optimizers import adam
from medray.preprocess.planar import resize_image
from medray.recipe import Prepared, Recipe

CLASS_NAMES = ("dark", "bright")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hparams:
    lr: float = 0.3
    epochs: int = 12
    batch_size: int = 4
    seed: int = 0


def recipe():
    return Recipe(
        name="toy_brightness", kind="score2d", transform_version=1, hparams=Hparams(),
        tiny_hparams=Hparams(), prepare_fields=(), records=records, prepare=prepare,
        class_names=CLASS_NAMES, phantom=dict, phantom_baseline=dict,
        learning=Learning(
            model=lambda hp: nn.Linear(1, 1), augment=lambda batch, seeds, hp: batch,
            inputs=lambda batch, hp: batch["image"].float().mean(dim=(1, 2, 3))[:, None] / 255,
            loss_sums=lambda outputs, batch, hp: binary_sums(outputs, batch["label"]),
            loss_value=lambda sums, hp: sums[0] / sums[1],
            optimizer=lambda network, hp: adam(network, lr=hp.lr), schedule=lambda hp: Schedule(),
            probabilities=lambda outputs, hp: {"class": outputs.sigmoid()},
            measure=measure, metrics=metrics, choose=choose,
            baseline=lambda rows, labels: metrics([{**r, "score_1": 0.5} for r in rows], {}),
            objective=Objective("auroc"), decode=decode,
        ),
    )  # fmt: skip


def records(tree, hp):
    wanted = datalist.Wanted(image="image", label="class", class_names=CLASS_NAMES)
    return read_layout(tree, {datalist.NAME: lambda found: datalist.records(found, wanted)})


def prepare(sample, hp):
    small = resize_image(sample.image.array.astype(np.float32), (8, 8))
    return Prepared(arrays={"image": small.astype(np.uint8)[None]}, label=sample.label)


def measure(probs, batch, hp):
    return [{"score_1": score} for (score,) in probs["class"].tolist()]


def columns(rows):
    return (np.array([row[name] for row in rows]) for name in ("score_1", "label"))


def choose(rows):
    return {"threshold": youden_threshold(*columns(rows))}


def metrics(rows, inference):
    scores, labels = columns(rows)
    return two_class_numbers(scores, labels, threshold=inference.get("threshold", 0.5))


def decode(probs, facts, hp, inference):
    score = float(probs["class"][0])
    label = int(score >= inference["threshold"])
    return Prediction(scores=(1 - score, score), label=label, score=score)
