"""Recipe: everything a distillation depends on, in one YAML file; unknown keys are errors. Reads it, runs nothing.

The shape is a public contract: it grows, it is not renamed.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    Tag,
    field_validator,
    model_validator,
)

from edgestill.distill.possible import problems
from edgestill.distill.prompt_search.section import PromptSearchSection
from edgestill.distill.section import Section
from edgestill.distill.section_file import checked, read_mapping
from edgestill.distill.select.everything import Everything
from edgestill.distill.select.selection import Selection
from edgestill.distill.select.table import read_selection
from edgestill.distill.student_section import StudentSection, TrainSection
from edgestill.distill.task_section import TaskSection
from edgestill.distill.teacher.section import BudgetSection, TeacherSection
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
    prompt_search: PromptSearchSection = PromptSearchSection()
    _folder: Path = PrivateAttr(default=Path())

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
    def _possible_with_the_task(self) -> "Recipe":
        problem = next(problems(self), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _strategy_is_possible(self) -> "Recipe":
        self.select.check(self)
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
    def _a_teacher_to_look_into(self) -> "Recipe":
        for student in self.students:
            if student.settings(self.train).white_box is None:
                continue
            if self.teacher.kind != "huggingface":
                raise ValueError(
                    f"train.white_box wants the teacher's share of every token, but teacher.kind is "
                    f"{self.teacher.kind}; write kind: huggingface or remove train.white_box"
                )
            if student.kind != "causal":
                raise ValueError(
                    f"train.white_box compares words, but the student {student.base} is an {student.kind}; write kind: "
                    "causal, or white_box under the train of the student that is"
                )
        return self

    @model_validator(mode="after")
    def _something_to_specialise(self) -> "Recipe":
        if self.export.specialise and all(student.kind == "encoder" for student in self.students):
            raise ValueError("export.specialise is true, but an encoder's graph only labels anyway; remove the line")
        return self

    @property
    def folder(self) -> Path:
        """Where the file lies that it was read from; the working directory where it came from no file."""
        return self._folder

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
        writes = self.the_student.kind == "causal" and self.train.teaches_rationales
        return writes and self.task.rationale and self.train.objective == "label+rationale"

    @property
    def on_grid(self) -> bool:
        """Whether the trained student is put on the grid that export ships."""
        return self.train.quantize_aware is not False and self.export.quantization == "q4_0"

    def sha256(self, *sections: str) -> str:
        """Hash of the whole recipe, or of the named sections: what a stage depends on."""
        data = self.model_dump(mode="json")
        return sha256_json({key: data[key] for key in sections or data})


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        UsageError: one line that names the first problem: missing file, not YAML, unknown key, bad value.
    """
    recipe = check_recipe(read_mapping(path, "recipe", "`edgestill example` writes one"), str(path))
    recipe._folder = path.parent
    return recipe


def check_recipe(data: dict[str, Any], where: str) -> Recipe:
    """A recipe's sections as a recipe; `where` is said before the first problem, which is a `UsageError`."""
    return checked(Recipe, data, where, TAGS)


def resolve(recipe_path: Path, value: str) -> str:
    """A path of the recipe as seen from the working directory; an id that is no file there is returned unchanged."""
    name, colon, split = value.partition(":")  # a folder of data may name its split, as an id does
    candidate = recipe_path.parent / name
    return f"{candidate}{colon}{split}" if candidate.exists() or candidate.suffix in FILE_SUFFIXES else value
