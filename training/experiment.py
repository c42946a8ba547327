"""An experiment: an estimator and its hyper-parameters. What a model is, but for the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ciml.settings import Name, Settings

#: Names under which an estimator is known as well. TensorFlow no longer has the classes that these name.
ALIASES = {"tf.estimator.DNNClassifier": "dnn", "DNNClassifier": "dnn", "tf.contrib.learn.SVM": "svm"}


class Experiment(Settings):
    """An estimator and its hyper-parameters.

    Attributes:
      name: the experiment's name.
      estimator: a name of `training.estimators.ESTIMATORS`; ``tf.estimator.DNNClassifier`` means ``dnn``.
      hidden_layers: units (or filters) of each hidden layer. Two suffice for some hundred runs.
      activation: of the hidden layers.
      dropout: share of the units that are left out before each hidden layer but the first.
      l2: weight of the squared weights in the loss. Some hundred runs of a hundred numbers need a strong one.
      batch_norm: whether each hidden layer normalises what it takes in over the batch.
      kernel_size: windows that a convolution sees at once.
      steps: at most so many batches; None for no limit.
      epochs: at most so many passes over the training runs. Training stops at whichever comes first.
      batch_size: runs a step.
      optimizer: a Keras optimizer of that name.
      learning_rate: at the start.
      schedule: ``cosine`` lets the learning rate fall to zero over the steps; ``constant`` does not.
      early_stopping: ends training when the loss on the dev runs has not fallen for so many epochs, and goes back to
        the best one. None for not at all: then the runs that would be held out are trained on too.
      class_weights: ``balanced`` weighs a class by the inverse of its share, ``none`` does not.
      seed: of weights, order and dropout. The same seed and snapshot give the same model.
      parameters: of an estimator of scikit-learn, by their names there.
    """

    what: ClassVar[str] = "experiment"

    name: Name = "dnn"
    estimator: str = "dnn"
    hidden_layers: tuple[int, ...] = (128, 64)
    activation: Literal["relu", "gelu", "tanh", "elu"] = "relu"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    l2: float = Field(2e-3, ge=0.0)
    batch_norm: bool = False
    kernel_size: int = Field(5, ge=1)
    steps: int | None = Field(None, ge=1)
    epochs: int = Field(150, ge=1)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["adam", "adamw", "adagrad", "ftrl", "rmsprop", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0.0)
    schedule: Literal["constant", "cosine"] = "constant"
    early_stopping: int | None = Field(None, ge=1)
    class_weights: Literal["none", "balanced"] = "none"
    seed: int = Field(0, ge=0, lt=2**31)
    parameters: dict[str, bool | int | float | str | None] = Field(default_factory=dict)

    @field_validator("estimator")
    @classmethod
    def _known_estimator(cls, name: str) -> str:
        return ALIASES.get(name, name)

    @field_validator("hidden_layers", mode="before")
    @classmethod
    def _layers_of_text(cls, value: Any) -> Any:
        """``100/100/100``, as the original writes it."""
        if isinstance(value, str):
            return tuple(part for part in value.split("/") if part)
        return value

    @field_validator("hidden_layers")
    @classmethod
    def _check_layers(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(units < 1 for units in layers):
            raise ValueError("each hidden layer needs at least one unit")
        return layers


def load_experiment(path: str | Path, **overrides: Any) -> Experiment:
    """An experiment from a TOML file, with keys that take precedence over the file's.

    Raises:
      CimlError: one line that names the file and the key.
    """
    return Experiment.load(path, **overrides)
