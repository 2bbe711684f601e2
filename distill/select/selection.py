"""What a strategy is: a section of the recipe that asks the teacher about rows and may gate what is learnt from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgestill.distill.section import Section

if TYPE_CHECKING:
    from edgestill.distill.dataset import Row
    from edgestill.distill.student.gate import Gate
    from edgestill.distill.teacher.protocol import Annotation, Rejection

    Answers = Mapping[str, Annotation | Rejection | None]
    Pair = tuple[Row, Annotation]


@dataclass(frozen=True)
class Work:
    """What a strategy may use while it chooses rows.

    Args:
        pool: training rows that the teacher may be asked about, in reading order.
        known: training rows with a label by hand, which are learnt from without asking.
        ask: asks the teacher about rows and gives all their answers by row id; those asked before cost nothing.
            None stands for a row that a cap or a failure left unanswered.
        train: a fresh student of the recipe, trained on (row, answer) pairs: see `student.train.train_learner`; it has
            `probabilities(texts)` (R, L) and `embeddings(texts)` (R, H).
        labels: names of the task's labels, L.
    """

    pool: "Sequence[Row]"
    known: "Sequence[Pair]"
    ask: "Callable[[Sequence[Row]], Answers]"
    train: "Callable[[Sequence[Pair]], Any]"
    labels: Sequence[str]


class Selection(Section):
    """A strategy and its settings, frozen. A new one is a file here and a line in `table`."""

    strategy: str

    @property
    def is_active(self) -> bool:
        """Whether it chooses, so that an experiment puts a random control beside it."""
        return False

    def acquire(self, work: Work) -> None:
        """Ask the teacher about the rows that are to be learnt from; here: all of them."""
        work.ask(work.pool)

    def gate(self, labels: Sequence[str]) -> "Gate | None":
        """What decides, at every step of training, which rows of the batch count; None: all do."""
        del labels
        return None
