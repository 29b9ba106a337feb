"""A trained model in one line of Python, without Ray: `medray.load_model(URI).predict(...)`."""

from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from medray.datasets.loading import load_sample
from medray.datasets.record import Sample
from medray.dicom.decoder import process_decoder
from medray.engine.case_listing import one_record
from medray.engine.predictor import Predictor
from medray.engine.prepare_task import CountingReader
from medray.engine.upstream import Upstream, packed_upstream, predict_sample
from medray.engine.weights import read_model_json
from medray.learning import Prediction
from medray.tasks import get_recipe
from medray.volume import Image2D, Volume


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model package; the same transforms and network as `medray predict`.

    Attributes:
        predictor: the network with its hyperparameters and inference parameters.
        upstream: models of the package that run first.
    """

    predictor: Predictor
    upstream: tuple[Upstream, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """Content of model.json: labels, metrics, inference, what it was trained on."""
        return self.predictor.interpreter.facts

    def predict(self, image: "Volume | Image2D | str | PathLike[str]") -> Prediction:
        """Return what the model says of one volume, or of one image where it takes these.

        Args:
            image: a volume, or the path or URI of one: a folder or zip with one DICOM series, or
                a NIfTI, NRRD or MHA file; or an image, or a DICOM, PNG or JPEG file of one.

        Raises:
            ConfigError: none or several lie there, or the network needs a mask that no model
                of the package makes.
            DataError: why this image cannot be read or taken.
        """
        if isinstance(image, Volume | Image2D):
            sample = Sample(image=image, meta={"modality": ""})
        else:
            sample = load_sample(
                one_record(fspath(image), planar=self.predictor.interpreter.recipe.is_planar),
                CountingReader(process_decoder()),
            )
        return predict_sample(self.predictor, sample, self.upstream)


def load_model(uri: "str | PathLike[str]", *, device: str = "cpu") -> Model:
    """Return a model package ready to predict.

    Args:
        uri: `model/` or the --out above it.
        device: where the network runs, such as `cuda`.

    Raises:
        ConfigError: a model of an unknown task or of another version.
        DataError: model_missing or model_hash_mismatch.
    """
    where = fspath(uri)
    facts = read_model_json(where)
    recipe = get_recipe(str(facts.get("task")))
    upstream = packed_upstream(where, facts, get_recipe)
    return Model(Predictor(recipe, where, device=device), upstream)
