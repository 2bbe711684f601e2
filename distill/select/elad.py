"""ELAD (our reading of arXiv 2402.13098): rows that the student explains least surely, its own steps reviewed.

The loop is the paper's: the student answers and explains, rows are chosen by the uncertainty within and between its
explanations, the teacher corrects the student's own steps, the student is trained again. Formulas, weights, prompt,
batches and the rule that ends the loop are ours; see `docs/elad.md`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgestill.distill.select.rounds import Need, Round, Rounds, luck
from edgestill.distill.select.selection import Choice, Work

if TYPE_CHECKING:
    from edgestill.distill.dataset import Row
    from edgestill.distill.recipe import Recipe
    from edgestill.distill.select.selection import Answers

EXPLANATION_TOKENS = 64
Note = dict[str, Any]


class Elad(Rounds):
    """Rows by beta * U_intra + (1 - beta) * U_inter of what the round's student writes, highest first.

    U_intra is how much each step moves the answer: as Jensen-Shannon divergence of the labels' probabilities (soft) or
    as a changed answer (hard, the only one where answers are generated). U_inter is the entropy of the answers of
    `samples` explanations drawn at `temperature`, from the start (`full_only`) or from every step (`each_step`).

    `revision` review: the teacher corrects the student's own steps. teacher: it is asked for the answer and a reason
    of its own, an ablation. replace: the same, but where it agrees with the student's answer the student's reason
    stays; an ablation that recorded answers allow. Each round explains `candidates` random rows of the pool, None for
    all, at `explanation_tokens` at most: by default what a chain's answer may have, else `EXPLANATION_TOKENS`. Ends
    early when the agreement of the student with the teacher on the development rows has not risen by more than
    `min_gain` since the round before; None: never.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"explanations"})

    strategy: Literal["elad"] = "elad"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    intra: Literal["auto", "soft", "hard"] = "auto"
    inter: Literal["full_only", "each_step"] = "full_only"
    samples: Annotated[int, Field(ge=2)] = 4
    temperature: Annotated[float, Field(gt=0)] = 0.7
    revision: Literal["review", "teacher", "replace"] = "review"
    min_gain: Annotated[float, Field(ge=0, lt=1)] | None = None
    candidates: Annotated[int, Field(ge=1)] | None = 200
    explanation_tokens: Annotated[int, Field(ge=4)] | None = None

    def check(self, recipe: "Recipe") -> None:
        """See `Selection`: students must write reasons, and the teacher must be able to review them."""
        for student in recipe.students:
            if student.kind != "causal":
                raise ValueError(
                    f"select.strategy elad reads the student's reasons, and {student.base} is an encoder, which writes "
                    "none; write kind: causal"
                )
            alone = recipe.alone(student)
            writes = alone.learns_rationale or (alone.train.objective == "chain" and alone.train.teaches_rationales)
            if not (recipe.task.rationale and writes):
                raise ValueError(
                    "select.strategy elad reads the student's reasons, but it learns none; write task.rationale: true "
                    "and train.objective: label+rationale, or chain where answers are generated"
                )
        if self.intra == "soft" and recipe.task.kind == "generate":
            raise ValueError(
                "select.intra is soft, which needs label probabilities, and a task of kind generate has none; "
                "write intra: hard"
            )
        if self.revision == "review":
            self._can_review(recipe)

    def _can_review(self, recipe: "Recipe") -> None:
        kind = recipe.teacher.kind
        if kind == "replay":
            raise ValueError(
                "select.revision is review, but recorded answers cannot review what a new student writes; "
                "write revision: replace"
            )
        if kind != "openai":
            raise ValueError(
                f"select.revision is review, but teacher.kind {kind} fills in answers and reasons only; serve the "
                "model behind an OpenAI-compatible endpoint and write kind: openai, or write revision: teacher"
            )
        if recipe.teacher.votes:
            raise ValueError(f"teacher.votes is {recipe.teacher.votes}, but a review is asked for once; write votes: 0")

    def chosen(self, work: Work, this: Round, student: Any, gain: float | None) -> Choice:
        """See `Rounds`: the rows explained least surely, none without gain.

        Raises:
            EdgestillError: as the student's session, for a row that it cannot take.
        """
        del work
        if self.min_gain is not None and gain is not None and gain <= self.min_gain:
            return Choice((), {"ended": "no gain"})
        rows = sorted(this.rows, key=lambda row: luck(self.seed + this.number, row))
        rows = rows[: max(this.size, self.candidates or len(rows))]
        notes, counts = self._explained(student, rows)
        ranked = sorted(rows, key=lambda row: -notes[row.id]["score"])[: this.size]  # stable: equals stay by luck
        means = {
            f"mean_{name}": sum(notes[row.id][name] for row in rows) / len(rows) for name in ("intra", "inter", "score")
        }
        facts = {"candidates": len(rows), **counts, **means}
        if self.revision == "review":
            facts["reviewed_rows"] = sum(bool(notes[row.id]["explanation"]) for row in ranked)
        return Choice(tuple(row.id for row in ranked), facts, {row.id: notes[row.id] for row in ranked})

    def _explained(self, student: Any, rows: "Sequence[Row]") -> tuple[dict[str, Note], dict[str, int]]:
        """What the student writes of each row and how unsure it is, by row id; texts and answers that took."""
        from edgestill.distill.elad.doubt import doubts
        from edgestill.distill.elad.explainer import Explainer

        limit = student.task.max_answer_tokens if student.task.chain else EXPLANATION_TOKENS
        explainer = Explainer(student, self.explanation_tokens or limit, self.temperature)
        found = doubts(explainer, [row.text for row in rows], self)
        notes = {row.id: vars(doubt) for row, doubt in zip(rows, found, strict=True)}
        return notes, {"student_texts": explainer.texts, "student_answers": explainer.forced}

    def asked(self, work: Work, rows: "Sequence[Row]", choice: Choice) -> "Answers":
        """See `Rounds`: reviews of what the student wrote, or the teacher's own answers."""
        from edgestill.distill.elad.question import Question, ReviewForm

        written = {name: note for name, note in choice.notes.items() if note["explanation"]}
        if self.revision != "review":
            answers = work.ask(rows)
            return answers if self.revision == "teacher" else self._kept_where_right(work, answers, written)
        asked = [
            Question(row, written[row.id]["explanation"], written[row.id]["answer"])
            for row in rows
            if row.id in written
        ]
        plain = [row for row in rows if row.id not in written]  # nothing was written, so there is nothing to review
        answers = dict(work.ask(plain)) if plain else {}
        if asked:
            answers |= work.ask([each.rendered() for each in asked], ReviewForm(work.task, asked))
        return answers

    @staticmethod
    def _kept_where_right(work: Work, answers: "Answers", written: "Mapping[str, Note]") -> "Answers":
        """The student's own reason in place of the teacher's where their answers agree."""
        from dataclasses import replace

        from edgestill.distill.teacher.protocol import Annotation

        found = dict(answers)
        for name, answer in answers.items():
            if isinstance(answer, Annotation) and name in written and answer.label == written[name]["answer"]:
                found[name] = own = replace(answer, rationale=written[name]["explanation"])
                work.amend(own)
        return found
