"""What runs on the device: `load` a bundle, `predict`. Never imports torch, transformers, peft, datasets or openai.

The names below are imported when they are first used: `edgestill --help` needs neither numpy nor an engine.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgestill.runtime.errors import EdgestillError
    from edgestill.runtime.pipelines import pipeline
    from edgestill.runtime.prediction import Prediction
    from edgestill.runtime.selfcheck import SelfCheck
    from edgestill.runtime.student import Student, load

__all__ = ["EdgestillError", "Prediction", "SelfCheck", "Student", "load", "pipeline"]

_ROOM_OF = {
    "EdgestillError": "errors",
    "Prediction": "prediction",
    "SelfCheck": "selfcheck",
    "Student": "student",
    "load": "student",
    "pipeline": "pipelines",
}


def __getattr__(name: str) -> Any:
    """The public name out of the module that holds it."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
