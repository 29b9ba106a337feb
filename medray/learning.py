"""How a task learns: the second half of the task contract, in plain torch. No Ray here.

torch itself is imported inside the tasks' functions only, so that `medray info` and the gates
answer without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from medray.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Row: TypeAlias = dict[str, Any]
Batch: TypeAlias = "dict[str, Tensor]"
Inputs: TypeAlias = "Tensor | dict[str, Tensor]"
Outputs: TypeAlias = "Tensor | dict[str, Tensor]"
Case: TypeAlias = Mapping[str, Any]
HparamsT = TypeVar("HparamsT")


class TrainHparams(Protocol):
    """What the engine itself reads of any task's hyperparameters.

    Attributes:
        epochs: passes over the training split.
        batch_size: examples a worker takes at one step.
        seed: initial weights, order and augmentation.
    """

    epochs: int
    batch_size: int
    seed: int


@dataclass(frozen=True, slots=True)
class Objective:
    """The validation metric by which the best checkpoint is chosen."""

    metric: str
    mode: Literal["max", "min"] = "max"

    def is_better(self, value: float, than: float | None) -> bool:
        """Tell whether a finite value beats the best so far; a tie keeps the earlier one."""
        if not np.isfinite(value):
            return False
        if than is None:
            return True
        return value > than if self.mode == "max" else value < than


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the learning rate moves from what the optimiser was given.

    Attributes:
        kind: `constant`; `plateau` (times `factor` after `patience` epochs in which the objective
            did not improve); `cosine` (to `floor` over all steps); `one_cycle` (per step, up over
            `warmup_share` of all steps and down); `step` (times `factor` every `every` epochs).
        warmup_steps: linear start from a thousandth, before any kind.
    """

    kind: Literal["constant", "plateau", "cosine", "one_cycle", "step"] = "constant"
    factor: float = 0.1
    patience: int = 10
    cooldown: int = 0
    floor: float = 0.0
    every: int = 1
    warmup_share: float = 0.3
    warmup_steps: int = 0


@dataclass(frozen=True, slots=True)
class LogUniform:
    """A parameter of the search space, uniform in its logarithm."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Uniform:
    """A parameter of the search space, uniform."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A parameter of the search space, one of a few values."""

    values: tuple[Any, ...]


Domain: TypeAlias = LogUniform | Uniform | Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSweep:
    """What may be chosen on predictions that are made once, without training.

    Attributes:
        space: names of inference parameters to what may be tried.
        on_request: further ones, swept only where they are named; not every model has them.
        objective: by what they are chosen; None means the training's.
        raw: inference parameters under which predictions keep all that a sweep may remove later,
            e.g. boxes before their suppression. Of those that are hyperparameters too, a package's
            inference parameters win wherever its model is used.
        survey: (one example's probabilities, its arrays, its facts) to further columns of its row,
            which a sweep alone needs, e.g. counts on the original grid.
        refine: (rows of raw predictions, inference, hyperparameters) to the rows that predictions
            under these parameters would have given; None where `metrics` reads all of them.
        refined_by: the inference parameters that `refine` reads.
        settle: (one example's probabilities, inference) to the probabilities that are judged,
            decoded and measured; None where nothing is to be done.
        limits: lowest and highest value with a meaning, of parameters that are numbers.
        further_metrics: what may be swept for beside what `metrics` names of no rows at all.
    """

    space: Mapping[str, Domain] = field(default_factory=dict)
    on_request: Mapping[str, Domain] = field(default_factory=dict)
    objective: Objective | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    survey: (
        Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], Mapping[str, Any]], Row]
        | None
    ) = None
    refine: Callable[[Sequence[Row], Mapping[str, Any], Any], list[Row]] | None = None
    refined_by: tuple[str, ...] = ()
    settle: (
        Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, np.ndarray]] | None
    ) = None
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    further_metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says of one case, in the terms of the original image.

    Attributes:
        scores: probability per class; empty where the task has none.
        label: class index by the operating point, or -1.
        score: the score that the operating point judges (positive class, lesion, ...).
        mask: (depth, height, width) uint8 on the original grid, or None.
        affine_lps: (4, 4) of the mask's grid.
        volume_ml: of the mask, or None.
        boxes_xyxy_px: (n, 4) in pixels of the original image, best first, or None where the task
            finds no boxes.
        box_scores: one per box.
        box_labels: class index of each box.
    """

    scores: tuple[float, ...] = ()
    label: int = -1
    score: float | None = None
    mask: np.ndarray | None = None
    affine_lps: np.ndarray | None = None
    volume_ml: float | None = None
    boxes_xyxy_px: np.ndarray | None = None
    box_scores: tuple[float, ...] = ()
    box_labels: tuple[int, ...] = ()


def mask_threshold(inference: Mapping[str, Any]) -> float:
    """Return the threshold of a mask: its own where a task also has one for its classes."""
    return float(inference.get("mask_threshold", inference.get("threshold", 0.5)))


def stack_examples(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the examples' arrays stacked by name.

    Raises:
        ConfigError: arrays of one name have several shapes.
    """
    for name in examples[0]:
        shapes = {example[name].shape for example in examples}
        if len(shapes) > 1:
            raise ConfigError(
                f"examples of several shapes of {name} do not fit into one batch; "
                "train with --set batch_size=1, or prepare on a grid of one size"
            )
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning(Generic[HparamsT]):
    """A task's model, loss and measures; all are module-level functions.

    Shapes: B examples, C classes; a batch holds the stacked arrays of its examples in their compact
    types under their names, and `label` as int64 (B,).

    Attributes:
        model: a fresh network; its weights come from torch's global generator.
        collate: arrays of several examples to one batch of arrays, on the CPU.
        augment: (batch on the model's device, one seed per example) to a batch of the same kind.
        sampler: (training cases, epoch, hyperparameters) to the positions of the cases that the
            epoch visits, repeats included, as many in every epoch; None visits each case once. A
            case has `key`, `patient_id`, `label` and `num_boxes`.
        inputs: (batch) to what the network is called with: float32, or named tensors of which some
            may be targets where a network makes its own losses.
        loss_sums: (outputs, batch) to float32 (k,) sums that add over examples and workers.
        loss_value: (sums) to the loss (); the engine adds sums over all workers first.
        penalty: (network) to a term of the weights, or None.
        optimizer: (network) to its optimiser.
        schedule: how the learning rate moves.
        adopt: (network, content of a weights file of another library) takes the weights over and
            returns one line of what was left out; None where only our own are read.
        probabilities: (outputs) to named float32 tensors with B first: `class` (B, C) and
            `mask` (B, D, H, W), the foreground's; a detector's `boxes` (B, K, 4) in pixels of the
            frame, `scores` (B, K), 0 where there is no box, and `classes` (B, K).
        measure: (probabilities, batch) to one row per example; rows are gathered whole.
        metrics: (rows, inference) to named numbers, of any set of rows.
        choose: (validation rows) to the inference parameters, e.g. `{"threshold": 0.4}`.
        baseline: (rows, training labels) to what a trivial answer would score, same names.
        objective: names one of `metrics`.
        decode: (one example's probabilities, its facts, inference) to a Prediction.
        compare: (Prediction, the example's arrays and facts) to further columns of its row,
            measured on the original grid; None where the grid is of no matter.
        search_space: hyperparameter names to what may be tried by training.
        sweep: what may be chosen without training, and how it is judged.
    """

    model: "Callable[[HparamsT], nn.Module]"
    collate: Callable[[Sequence[Mapping[str, np.ndarray]]], dict[str, np.ndarray]] = stack_examples
    augment: "Callable[[Batch, Sequence[int], HparamsT], Batch]"
    sampler: Callable[[Sequence[Case], int, HparamsT], Sequence[int]] | None = None
    inputs: "Callable[[Batch, HparamsT], Inputs]"
    loss_sums: "Callable[[Outputs, Batch, HparamsT], Tensor]"
    loss_value: "Callable[[Tensor, HparamsT], Tensor]"
    penalty: "Callable[[nn.Module, HparamsT], Tensor] | None" = None
    optimizer: "Callable[[nn.Module, HparamsT], Optimizer]"
    schedule: Callable[[HparamsT], Schedule]
    adopt: "Callable[[nn.Module, bytes], str] | None" = None
    probabilities: "Callable[[Outputs, HparamsT], dict[str, Tensor]]"
    measure: "Callable[[dict[str, Tensor], Batch, HparamsT], list[Row]]"
    metrics: Callable[[Sequence[Row], Mapping[str, Any]], dict[str, float]]
    choose: Callable[[Sequence[Row]], dict[str, Any]]
    baseline: Callable[[Sequence[Row], Sequence[int]], dict[str, float]]
    objective: Objective
    decode: Callable[
        [Mapping[str, np.ndarray], Mapping[str, Any], HparamsT, Mapping[str, Any]], Prediction
    ]
    compare: (
        Callable[[Prediction, Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, float]] | None
    ) = None
    search_space: Mapping[str, Domain] = field(default_factory=dict)
    sweep: InferenceSweep = field(default_factory=InferenceSweep)
