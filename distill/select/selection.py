"""What a strategy is: a section of the recipe that asks the teacher about rows and may gate what is learnt from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edgestill.distill.section import Section

if TYPE_CHECKING:
    from edgestill.distill.dataset import Row
    from edgestill.distill.recipe import Recipe
    from edgestill.distill.student.gate import Gate
    from edgestill.distill.task_section import TaskSection
    from edgestill.distill.teacher.form import Form
    from edgestill.distill.teacher.protocol import Annotation, Rejection

    Answers = Mapping[str, Annotation | Rejection | None]
    Pair = tuple[Row, Annotation]

    class Ask(Protocol):
        """See `Work`."""

        def __call__(self, rows: Sequence[Row], form: Form | None = None) -> Answers:
            """The answers by row id."""


@dataclass(frozen=True)
class Choice:
    """Rows that a strategy chose at once: their ids in the order of asking, and what it measured on the way.

    `notes` are what it wants to know of single rows, by id, when they are asked about; they are kept, not reported.
    """

    ids: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What a strategy may use while it chooses rows.

    Args:
        pool: training rows that the teacher may be asked about, in reading order.
        known: training rows with a label by hand, which are learnt from without asking.
        ask: asks the teacher about rows and gives all their answers by row id; those asked before cost nothing.
            None stands for a row that a cap or a failure left unanswered. With a form rows are asked in its way: a row
            of the pool may then have another text under its id.
        train: a fresh student of the recipe, trained on (row, answer) pairs: see `student.train.train_learner`; it has
            `answers(texts)`, `probabilities(texts)` (R, L) and `embeddings(texts)` (R, H).
        task: the recipe's section.
        dev: development rows with their answers, to measure on and not to learn from.
        choose: the next choice: the one that an interrupted run of the same inputs made at this place, or what the
            function gives, written down before anyone is asked about it.
        kept: the choice that `choose` will give because an earlier run made it, None where there is none.
        tell: says in a few words what is being worked on.
        amend: puts an answer in the place of the teacher's own, for a row that was asked about.
    """

    pool: "Sequence[Row]"
    known: "Sequence[Pair]"
    ask: "Ask"
    train: "Callable[[Sequence[Pair]], Any]"
    task: "TaskSection"
    dev: "Sequence[Pair]" = ()
    choose: Callable[[Callable[[], Choice]], Choice] = lambda make: make()
    kept: Callable[[], Choice | None] = lambda: None
    tell: Callable[[str], None] = lambda words: None
    amend: "Callable[[Annotation], None]" = lambda answer: None


class Selection(Section):
    """A strategy and its settings, frozen. A new one is a file here and a line in `table`."""

    strategy: str

    @property
    def is_active(self) -> bool:
        """Whether it chooses, so that an experiment puts a random control beside it."""
        return False

    @property
    def asks_all(self) -> bool:
        """Whether it leaves `acquire` as it is: then all rows are asked in one go, together with dev and test."""
        return type(self).acquire is Selection.acquire

    @property
    def trains(self) -> bool:
        """Whether what it asks about depends on students, and so on the recipe's sections student and train."""
        return not self.asks_all

    def check(self, recipe: "Recipe") -> None:
        """Refuse a recipe whose other sections it cannot work with.

        Raises:
            ValueError: one line: what was found and what to write instead.
        """

    def likely(self, pool: "Sequence[Row]", labels: int) -> "Sequence[Row]":
        """As many rows of the pool as it will ask about at most, for an estimate; the same ones where it can tell."""
        del labels
        return pool

    def acquire(self, work: Work) -> None:
        """Ask the teacher about the rows that are to be learnt from; here: all of them."""
        work.ask(work.pool)

    def gate(self, labels: Sequence[str]) -> "Gate | None":
        """What decides, at every step of training, which rows of the batch count; None: all do."""
        del labels
        return None
