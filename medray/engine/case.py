"""Samples to predictions: the one way, whoever computes the networks. No Ray, no torch here.

A case is a generator of questions to networks: it holds the image, and only what a network needs
leaves it. `predict` and `evaluate` answer on the spot, `serve` asks its replicas.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from medray.datasets.record import Sample
from medray.engine.examples import batch_arrays, example_facts
from medray.engine.interpreter import Interpreter
from medray.errors import DataError
from medray.learning import Prediction
from medray.recipe import Prepared

Answers: TypeAlias = Sequence[Mapping[str, np.ndarray]]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a case asks of a network.

    Attributes:
        model: the part that an upstream model makes, such as `mask`; empty for the task's own.
        examples: arrays of one or several examples of one size.
    """

    model: str
    examples: tuple[Mapping[str, np.ndarray], ...]


Steps: TypeAlias = Generator[Question, Answers, ResultT]


@dataclass(frozen=True, slots=True)
class Finished(Generic[ResultT]):
    """The end of a case."""

    result: ResultT


def advance(
    steps: Steps[ResultT], said: Answers | DataError | None
) -> Question | Finished[ResultT]:
    """Go on to a case's next question, or to its end.

    Args:
        steps: of the case.
        said: to the last question: answers, or why there are none; None at the start.

    Raises:
        DataError, ConfigError: as the case; what a network refuses is its to judge.
    """
    try:
        if said is None:
            return next(steps)
        return steps.throw(said) if isinstance(said, DataError) else steps.send(said)
    except StopIteration as end:
        return Finished(end.value)


def answered(steps: Steps[ResultT], network: Callable[[Question], Answers]) -> ResultT:
    """Run a case to its end with networks that answer on the spot.

    Raises:
        DataError, ConfigError: as `advance`.
    """
    said: Answers | DataError | None = None
    while not isinstance(step := advance(steps, said), Finished):
        try:
            said = network(step)
        except DataError as error:
            said = error
    return step.result


def ask_of(model: str, found: Sequence[Prepared]) -> Question:
    """Return the question that prepared examples are."""
    return Question(model=model, examples=tuple(batch_arrays(one.arrays) for one in found))


def judged(
    interpreter: Interpreter, found: Sequence[Prepared], answers: Answers
) -> list[Prediction]:
    """Return what a network's answers mean, each in the terms of its image."""
    return [
        interpreter.decode(interpreter.settle(one), example_facts(prepared, key=""))
        for one, prepared in zip(answers, found, strict=True)
    ]


def bare_sample(sample: Sample) -> Sample:
    """Return a sample without what prediction must not see: its label, boxes and mask."""
    return replace(sample, label=-1, boxes_xyxy_px=None, box_labels=None, mask=None)
