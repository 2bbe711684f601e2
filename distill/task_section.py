"""The recipe's section `task`: what is asked, and which answers there are."""

from typing import Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from edgestill.distill.section import Section
from edgestill.runtime import label_sets
from edgestill.runtime.errors import EdgestillError

FEWEST_LABELS = {"classify": 2, "multilabel": 1}
NOT_YET = {
    "generate": "free text and per-row choices are planned",
    "extract": "JSON extraction is planned",
}


class TaskSection(Section):
    """What is asked. `labels` maps names to descriptions, or is a plain list of names.

    With `kind: classify` a row has one label, with `kind: multilabel` any number of them, also none. `none` names the
    label that means "none of these", which the report then treats as one of its own.
    """

    kind: str = "classify"
    instruction: str
    labels: dict[str, str]
    none: str | None = None
    rationale: bool = True
    answer: Literal["auto", "path", "token"] = "auto"

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in FEWEST_LABELS:
            planned = f" ({NOT_YET[kind]})" if kind in NOT_YET else ""
            supported = ", ".join(FEWEST_LABELS)
            raise ValueError(f"kind {kind!r} is not supported by this version{planned}; supported: {supported}")
        return kind

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_mapping(cls, labels: Any, info: ValidationInfo) -> Any:
        if not isinstance(labels, list | dict):
            raise ValueError("wanted names with descriptions, or a list of names")
        kind = info.data.get("kind", "classify")
        for name in labels:
            if not isinstance(name, str):
                raise ValueError(f"the label {name!r} is not text for YAML; put it in quotes")
            if name != name.strip() or not name:
                raise ValueError(f"the label {name!r} is empty or has blanks around it")
            if kind == "multilabel" and label_sets.BAR in name:
                raise ValueError(f"the label {name!r} holds a bar, which parts the labels of a set; write it otherwise")
            if kind == "multilabel" and name == label_sets.EMPTY:
                raise ValueError(f"the label {name!r} stands for the empty set; write it otherwise")
        if len(set(labels)) != len(labels):
            raise ValueError("a label is listed twice")
        if len(labels) < FEWEST_LABELS[kind]:
            raise ValueError(f"found {len(labels)} labels, wanted at least {FEWEST_LABELS[kind]}")
        if isinstance(labels, list):
            return dict.fromkeys(labels, "")
        return {name: "" if text is None else text for name, text in labels.items()}

    @model_validator(mode="after")
    def _none_is_a_label(self) -> "TaskSection":
        if self.none is not None and self.is_multilabel:
            raise ValueError(f"none: {self.none!r} has no place in kind multilabel: there the empty set means that")
        if self.none is not None and self.none not in self.labels:
            raise ValueError(f"none: {self.none!r} is not one of the labels {list(self.labels)}")
        return self

    @property
    def is_multilabel(self) -> bool:
        """Whether a row has a set of the labels, which may be empty, and not one of them."""
        return self.kind == "multilabel"

    def read(self, value: object) -> str:
        """The answer that a field of a record holds: a label, or a set of them as `label_sets` writes it.

        Raises:
            EdgestillError: something else, or a label that the recipe does not know.
        """
        if self.is_multilabel:
            return label_sets.read(value, list(self.labels))
        if not isinstance(value, str) or value not in self.labels:
            raise EdgestillError(f"label {value!r:.80} is not one of {list(self.labels)}")
        return value
