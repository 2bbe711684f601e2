"""LLKD (our reading): at every step, learn from the rows where the teacher is sure and the student is not.

Li et al., "Learning with Less" (arXiv 2411.08028): teacher confidence and student uncertainty against two moving
thresholds with a part for each class, and a loss weighted by both. As published it saves training and no call to the
teacher; `lazy` is our extension that lets the student gate first and asks about the rows that it wants.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgestill.distill.select.gated import GatedSelection, check_teacher
from edgestill.distill.select.selection import Choice, Work

if TYPE_CHECKING:
    from edgestill.distill.dataset import Row
    from edgestill.distill.recipe import Recipe
    from edgestill.distill.select.moving_gate import TwoSignalGate


class LLKD(GatedSelection):
    """Both signals; the keys of `GatedSelection` and those below.

    `teacher_class` is what lowers the teacher's threshold for a class: `share`, its mean probability, as in FreeMatch,
    or `confidence`, the mean confidence of its own rows. `lazy` asks about rows when the student wants them, at most
    `rows` of them, in `lazy_epochs` passes over the pool; the student that ships then learns from all of them alike, or
    with `gate_training` through the gate again.
    """

    strategy: Literal["llkd"] = "llkd"
    teacher_class: Literal["share", "confidence"] = "share"
    lazy: bool = False
    rows: Annotated[int, Field(ge=1)] | None = None
    lazy_epochs: Annotated[float, Field(gt=0)] = 1
    gate_training: bool = False

    @model_validator(mode="after")
    def _rows_are_asked_lazily(self) -> "LLKD":
        if self.rows is not None and not self.lazy:
            raise ValueError(
                "rows caps what a lazy strategy asks, but lazy is false: all rows are asked; add lazy: true"
            )
        if self.lazy_epochs != 1 and not self.lazy:
            raise ValueError("lazy_epochs is of the lazy pass, but lazy is false; add lazy: true")
        if self.gate_training and not self.lazy:
            raise ValueError("gate_training is of the lazy pass: plain LLKD gates the training anyway; add lazy: true")
        return self

    @property
    def asks_all(self) -> bool:
        """See `Selection`."""
        return not self.lazy

    def check(self, recipe: "Recipe") -> None:
        """See `GatedSelection`; an endpoint that is asked for labels alone tells no confidence."""
        super().check(recipe)
        check_teacher(self.strategy, recipe)
        if self.lazy and recipe.teacher.mode == "batch":
            raise ValueError("select.lazy asks a few rows a step, but teacher.mode is batch; write mode: online")

    def likely(self, pool: "Sequence[Row]", labels: int) -> "Sequence[Row]":
        """See `Selection`: which ones nobody knows before."""
        del labels
        return pool[: self.rows]

    def acquire(self, work: Work) -> None:
        """Ask about all rows; lazily: about those that a student in training is unsure of.

        That student has learnt from the rows labelled by hand, where there are any.
        """
        if not self.lazy:
            work.ask(work.pool)
            return
        kept = work.kept()
        if kept is not None:  # rows that had failed would lead another student to other rows
            rows = {row.id: row for row in work.pool}
            work.ask([rows[name] for name in work.choose(lambda: kept).ids])
            return
        from edgestill.distill.student.lazy import learn_while_asking

        gate = self._gate(list(work.task.labels))
        gate.check([answer for _, answer in work.dev])  # before a training row is paid for
        work.tell("learning while asking")
        student = work.train(work.known)
        done = learn_while_asking(student, work.pool, gate, work.ask, self.lazy_epochs, self.rows)
        if done.is_whole:
            work.choose(lambda: Choice(done.row_ids, done.facts))

    def gate(self, labels: Sequence[str]) -> "TwoSignalGate | None":
        """See `Selection`."""
        return self._gate(labels) if self.gate_training or not self.lazy else None

    def _gate(self, labels: Sequence[str]) -> "TwoSignalGate":
        from edgestill.distill.select.moving_gate import TwoSignalGate

        return TwoSignalGate(labels, self, self.teacher_class)
