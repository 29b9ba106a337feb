"""Samples through a model: the one way from an image to a prediction. No Ray here."""

from collections.abc import Sequence
from dataclasses import replace

from medray.datasets.record import Sample
from medray.engine.examples import example_facts
from medray.engine.predictor import Predictor
from medray.engine.upstream import Upstream, with_upstream
from medray.learning import Prediction


def predict_sample(
    predictor: Predictor, sample: Sample, chain: Sequence[Upstream] = ()
) -> Prediction:
    """Return what a model says of a sample; its label, boxes and mask are not looked at.

    Args:
        predictor: the loaded model.
        sample: a decoded image.
        chain: models of the package that make parts of the sample first.

    Raises:
        DataError: why the task cannot take this image.
        ConfigError: the network needs a part that no model makes.
    """
    return predict_samples(predictor, [sample], chain)[0]


def predict_samples(
    predictor: Predictor, samples: Sequence[Sample], chain: Sequence[Upstream] = ()
) -> list[Prediction]:
    """Return what a model says of each of a few samples of one size, in one pass.

    Raises:
        DataError, ConfigError: as `predict_sample`, of the first one that cannot be taken.
    """
    found = []
    for sample in samples:
        bare = replace(sample, label=-1, boxes_xyxy_px=None, box_labels=None, mask=None)
        found.append(predictor.recipe.prepare(with_upstream(bare, chain), predictor.hparams))
    probabilities = predictor.probabilities([prepared.arrays for prepared in found])
    return [
        predictor.decode(one, example_facts(prepared, key=""))
        for one, prepared in zip(probabilities, found, strict=True)
    ]
