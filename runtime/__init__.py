"""What runs on the device: `load` a bundle, `predict`. Never imports torch, transformers, peft, datasets or openai."""

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.pipelines import pipeline
from edgestill.runtime.prediction import Prediction
from edgestill.runtime.student import SelfCheck, Student, load

__all__ = ["EdgestillError", "Prediction", "SelfCheck", "Student", "load", "pipeline"]
