"""What runs on the device: `load` a bundle, `predict`. Never imports torch, transformers, peft, datasets or openai."""

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.student import Prediction, Student, load

__all__ = ["EdgestillError", "Prediction", "Student", "load"]
