"""Recipe: everything a distillation depends on, in one YAML file; unknown keys are errors. Reads it, runs nothing.

The shape is a public contract: it grows, it is not renamed.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from edgestill.distill.section import Section
from edgestill.distill.student_section import StudentSection, TrainSection
from edgestill.distill.teacher.section import BudgetSection, TeacherSection
from edgestill.runtime.errors import UsageError
from edgestill.runtime.manifest import sha256_json
from edgestill.runtime.task import template_fields

FILE_SUFFIXES = (".jsonl", ".csv", ".parquet")
NOT_YET = {
    "generate": "free text and per-row choices are planned",
    "extract": "JSON extraction is planned",
}


class TaskSection(Section):
    """What is asked. `labels` maps names to descriptions, or is a plain list of names.

    `none` names the label that means "none of these", which the report then treats as one of its own.
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
        if kind != "classify":
            planned = f" ({NOT_YET[kind]})" if kind in NOT_YET else ""
            raise ValueError(f"kind {kind!r} is not supported by this version{planned}; supported: classify")
        return kind

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_mapping(cls, labels: Any) -> Any:
        if not isinstance(labels, list | dict):
            raise ValueError("wanted names with descriptions, or a list of names")
        for name in labels:
            if not isinstance(name, str):
                raise ValueError(f"the label {name!r} is not text for YAML; put it in quotes")
            if name != name.strip() or not name:
                raise ValueError(f"the label {name!r} is empty or has blanks around it")
        if len(set(labels)) != len(labels):
            raise ValueError("a label is listed twice")
        if len(labels) < 2:
            raise ValueError(f"found {len(labels)} labels, wanted at least 2")
        if isinstance(labels, list):
            return dict.fromkeys(labels, "")
        return {name: "" if text is None else text for name, text in labels.items()}

    @model_validator(mode="after")
    def _none_is_a_label(self) -> "TaskSection":
        if self.none is not None and self.none not in self.labels:
            raise ValueError(f"none: {self.none!r} is not one of the labels {list(self.labels)}")
        return self


class DataSection(Section):
    """Where the rows come from and how they are split.

    `pool` and `test` are a .jsonl, .csv or .parquet file, or an id for `datasets.load_dataset`. Without `test`, the
    share `test_fraction` of the pool is held out. `corrections` holds labels by hand that override the teacher's.
    """

    pool: str
    text: str = "{text}"
    test: str | None = None
    gold: str | None = None
    dev_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    corrections: str | None = None
    max_text_tokens: Annotated[int, Field(ge=4)] = 512
    too_long: Literal["cut_tail", "cut_head", "refuse"] = "refuse"
    seed: int = 7

    @field_validator("text")
    @classmethod
    def _has_a_field(cls, text: str) -> str:
        if not template_fields(text):
            raise ValueError(f"the template {text!r} names no field; write it like {{text}}")
        return text


class SelectSection(Section):
    """Which annotated rows are learnt from."""

    strategy: Literal["all"] = "all"


class ExportSection(Section):
    """What is built."""

    artifacts: Annotated[tuple[Literal["onnx", "gguf"], ...], Field(strict=False)] = ("onnx", "gguf")
    quantization: Literal["q4_0", "q8_0"] = "q4_0"

    @field_validator("artifacts")
    @classmethod
    def _some(cls, artifacts: tuple[str, ...]) -> tuple[str, ...]:
        if not artifacts or len(set(artifacts)) != len(artifacts):
            raise ValueError("name at least one of onnx, gguf, each once")
        return artifacts


Several = Annotated[tuple[StudentSection, ...], Field(strict=False, min_length=1)]
Students = Annotated[
    Annotated[StudentSection, Tag("one")] | Annotated[Several, Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]
TAGS = ("one", "several")  # they stand in pydantic's places and in nobody's recipe
Opponent = Literal["teacher", "base", "floor"]


class BenchSection(Section):
    """What the student is compared with."""

    against: Annotated[tuple[Opponent, ...], Field(strict=False)] = ("teacher", "base", "floor")

    @field_validator("against")
    @classmethod
    def _with_the_teacher(cls, against: tuple[str, ...]) -> tuple[str, ...]:
        if "teacher" not in against:
            raise ValueError("the teacher is always compared with; add teacher")
        return against


class Recipe(Section):
    """A whole recipe. Paths in it are relative to the file it came from; see `path`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: TaskSection
    data: DataSection
    teacher: TeacherSection
    budget: BudgetSection = BudgetSection()
    select: SelectSection = SelectSection()
    student: Students = StudentSection()
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()

    @model_validator(mode="after")
    def _price_for_a_cap(self) -> "Recipe":
        if self.budget.usd is not None and self.teacher.price_usd_per_mtok is None:
            raise ValueError("budget.usd is a cap in USD, but the price is unknown; add teacher.price_usd_per_mtok")
        return self

    @model_validator(mode="after")
    def _students_told_apart(self) -> "Recipe":
        names = [student.called for student in self.students]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two students are called {twice!r}; give each a name of its own")
        for student in self.students:
            student.settings(self.train)
        return self

    @property
    def students(self) -> tuple[StudentSection, ...]:
        """All students, also when the recipe names one."""
        return (self.student,) if isinstance(self.student, StudentSection) else self.student

    @property
    def the_student(self) -> StudentSection:
        """The student of a recipe that has one; see `alone`."""
        (student,) = self.students
        return student

    def alone(self, student: StudentSection) -> "Recipe":
        """The recipe with `student` as its only one and with the settings that it trains with."""
        return self.model_copy(update={"student": student, "train": student.settings(self.train)})

    @property
    def learns_rationale(self) -> bool:
        """Whether the student is trained to give reasons."""
        writes = self.the_student.kind == "causal"
        return writes and self.task.rationale and self.train.objective == "label+rationale"

    def sha256(self, *sections: str) -> str:
        """Hash of the whole recipe, or of the named sections: what a stage depends on."""
        data = self.model_dump(mode="json")
        return sha256_json({key: data[key] for key in sections or data})


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        UsageError: one line that names the first problem: missing file, not YAML, unknown key, bad value.
    """
    import yaml

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"no recipe file {path}", "name a .yaml file; `edgestill example` writes one") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UsageError(
            f"{path} holds {type(data).__name__}, wanted the sections of a recipe", "type: edgestill example"
        )
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {_first_problem(error)}") from None


def _loader() -> Any:
    """YAML's safe loader, but a key that stands twice is an error: the first would be lost without a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"the key {twice!r} stands twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    return Loader


def resolve(recipe_path: Path, value: str) -> str:
    """A path of the recipe as seen from the working directory; an id that is no file there is returned unchanged."""
    name, colon, split = value.partition(":")  # a folder of data may name its split, as an id does
    candidate = recipe_path.parent / name
    return f"{candidate}{colon}{split}" if candidate.exists() or candidate.suffix in FILE_SUFFIXES else value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [part for part in problem["loc"] if part not in TAGS]
    place = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys([part for part in location[:-1] if isinstance(part, str)])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"unknown key {place}; nearest known key: {close[0] if close else known[0]} (known: {', '.join(known)})"
    if problem["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r:.80})"


def _known_keys(location: list[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        model = next(_models(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections inside an annotation, from the outside in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
