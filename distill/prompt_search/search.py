"""The search for a better instruction, round by round, through the teacher's own engine: cache, limits and cap hold.

Deterministic but for the teacher: the same command asks the same questions, so after a stop it goes on from the cache
and pays nothing twice. Chooses on one half of the gold rows and tells the truth on the other.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from edgestill.distill.dataset import Dataset, Row, load_dataset
from edgestill.distill.prompt_search.few_shot import with_examples
from edgestill.distill.prompt_search.gold import GoldRow, GoldRows, read_gold
from edgestill.distill.prompt_search.propose import NewInstruction, plain, questions, refusal, writer
from edgestill.distill.prompt_search.result import FILE_NAME, PromptSearch
from edgestill.distill.prompt_search.trial import Said, Trial, best, make_trial, projected_usd
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.teacher.budget import Tokens, usd_text
from edgestill.distill.teacher.form import Form
from edgestill.distill.teacher.open import open_teacher
from edgestill.distill.teacher.protocol import Annotation, Spending
from edgestill.runtime import manifest
from edgestill.runtime.errors import BudgetReached, EdgestillError, UsageError
from edgestill.runtime.metrics import paired_test

Progress = Callable[[str, int, int], None]


def search_prompts(
    recipe_path: Path, gold_path: Path, folder: Path, progress: Progress = lambda *_: None
) -> tuple[PromptSearch, EdgestillError | None]:
    """Look for a better `task.instruction`; writes `search.json` into `folder`, also when it is stopped.

    Args:
        recipe_path: the recipe, with its section `prompt_search`.
        gold_path: rows with text and gold; those that are test rows of the recipe are left out.
        folder: created; holds the spend record, on which the cap rests.
        progress: told (part and money, candidates done, candidates wanted).

    Returns:
        What was found, and why the search stopped before the end, if it did.

    Raises:
        EdgestillError: nothing could be tried: a bad recipe or file, a teacher that cannot be searched with.
    """
    recipe = read_recipe(recipe_path)
    check(recipe)
    data = load_dataset(recipe, recipe_path)
    gold = read_gold(recipe, gold_path, data)
    search, stopped = _Search(recipe, recipe_path, folder, gold, progress), None
    try:
        search.run()
    except EdgestillError as error:
        if not search.trials:
            raise
        stopped = error
    found = search.result(data, manifest.sha256_file(gold_path), stopped)
    manifest.save(folder / FILE_NAME, found)
    return found, stopped


def check(recipe: Recipe) -> None:
    """Refuse what cannot be searched with, before anything is asked.

    Raises:
        UsageError: recorded answers, a batch, a model here that only labels, or a cap in USD without a price.
    """
    search, teacher = recipe.prompt_search, recipe.teacher
    if teacher.kind == "replay":
        raise UsageError(
            "teacher.kind is replay: recorded answers tell nothing about another prompt", "name a live one"
        )
    if teacher.mode == "batch":
        raise UsageError("teacher.mode is batch, but each round waits for the one before", "write mode: online")
    if teacher.kind != "openai" and search.rounds:
        raise UsageError(
            f"teacher.kind {teacher.kind} only answers its task, so it writes no instructions",
            "write prompt_search.rounds: 0 and your own in prompt_search.instructions, or kind: openai",
        )
    capped = search.max_usd_per_label is not None or (search.budget is not None and search.budget.usd is not None)
    if capped and teacher.price_usd_per_mtok is None:
        raise UsageError("prompt_search names a limit in USD, but no price is known", "add teacher.price_usd_per_mtok")


class _Search:
    """One search and what it has found so far."""

    def __init__(self, recipe: Recipe, recipe_path: Path, folder: Path, gold: GoldRows, progress: Progress) -> None:
        plain_asking = {"votes": 0, "self_agreement_rows": 0, "smoke_rows": 0}
        teacher = recipe.teacher.model_copy(update=plain_asking)
        budget = recipe.prompt_search.budget or recipe.budget
        self.recipe = recipe.model_copy(update={"teacher": teacher, "budget": budget})
        self.settings, self.original = recipe.prompt_search, recipe
        self.recipe_path, self.folder, self.gold, self.progress = recipe_path, folder, gold, progress
        self.scored = gold.search[: self.settings.rows]
        self.trials, self.held_out = list[Trial](), dict[str, Trial]()
        self.refused, self.rounds = Counter[str](), 0
        self.spending: Spending | None = None
        self.wrote: Tokens | None = Tokens()
        self.requests = 0

    def run(self) -> None:
        """Score what the recipe gives, then round by round what the teacher proposes, then the held-out half."""
        given = dict.fromkeys(" ".join(text.split()) for text in self.settings.instructions)
        self.trials.append(self.trial("start", 0, self.recipe.task.instruction, self.scored))
        for place, instruction in enumerate(given, 1):
            if plain(instruction) not in self.known:
                self.trials.append(self.trial(f"given-{place}", 0, instruction, self.scored))
        for number in range(1, self.settings.rounds + 1):
            for place, instruction in enumerate(self.proposals(number), 1):
                self.trials.append(self.trial(f"round-{number}-{place}", number, instruction, self.scored))
            self.rounds = number
        self.compare()

    @property
    def known(self) -> set[str]:
        """What was tried, as `plain` writes it."""
        return {plain(trial.instruction) for trial in self.trials}

    def proposals(self, number: int) -> list[str]:
        """The new instructions of a round that are to be tried."""
        worked, settings = self.gold.worked(self.settings.seed, number), self.settings
        rows = questions(self.trials, worked, settings.candidates, number, settings.seed)
        recipe = writer(self.recipe, settings)
        found = dict[str, str]()
        for _, answer in self.ask(recipe, rows, NewInstruction(recipe.task)):
            self._count(answer)
            if not isinstance(answer, Annotation):
                self.refused[answer.reason] += 1
                continue
            reason = refusal(answer.label, {*self.known, *found}, worked)
            if reason is not None:
                self.refused[reason] += 1
            else:
                found[plain(answer.label)] = answer.label
        return list(found.values())

    def _count(self, answer: Said) -> None:
        """Add what a proposal took."""
        self.requests += answer.requests
        if self.wrote is None or answer.prompt_tokens is None or answer.completion_tokens is None:
            self.wrote = None
            return
        self.wrote += Tokens(answer.prompt_tokens, answer.cached_tokens or 0, answer.completion_tokens)

    def compare(self) -> None:
        """Score the start, the chosen and a few-shot prompt on rows that nothing was chosen by."""
        start, chosen, settings = self.trials[0], best(self.trials), self.settings
        self.held_out["start"] = self.trial("start", 0, start.instruction, self.gold.held_out)
        if chosen is not None and chosen is not start:
            self.held_out["chosen"] = self.trial(chosen.name, chosen.round, chosen.instruction, self.gold.held_out)
        if settings.examples:
            prompt = with_examples(self.recipe, self.gold.examples(settings.examples))
            self.held_out["few_shot"] = self.trial("few-shot", 0, prompt, self.gold.held_out)

    def trial(self, name: str, number: int, instruction: str, gold: Sequence[GoldRow]) -> Trial:
        """Ask about all `gold` rows with an instruction."""
        wanted = 1 + len(self.settings.instructions) + self.settings.rounds * self.settings.candidates
        self.progress(f"search, {name}", min(len(self.trials), wanted), wanted)
        task = self.recipe.task.model_copy(update={"instruction": instruction})
        answers = self.ask(self.recipe.model_copy(update={"task": task}), [each.row for each in gold])
        price, wants = self.recipe.teacher.price_usd_per_mtok, self.recipe.task.rationale
        return make_trial(name, number, instruction, answers, self.settings, price, wants)

    def ask(self, recipe: Recipe, rows: Sequence[Row], form: Form | None = None) -> list[tuple[Row, Said]]:
        """Every row with its answer.

        Raises:
            EdgestillError: why asking stopped before the end.
        """
        teacher = open_teacher(recipe, self.recipe_path, self.folder, rows, form)
        try:
            stopped = teacher.ask(rows, lambda done: None)
            self.spending = teacher.spending()
            if isinstance(stopped, BudgetReached) and self.settings.budget is not None:
                again = "raise that cap in prompt_search.budget and run the same command: it goes on"
                raise BudgetReached(f"prompt_search.{stopped.message}", again)
            if stopped is not None:
                raise stopped
            answers = [(row, teacher.answer(row)) for row in rows]
            found = [(row, answer) for row, answer in answers if isinstance(answer, Said)]
            if len(found) < len(rows):
                raise EdgestillError(
                    f"{len(rows) - len(found)} of {len(rows)} rows are pending", "run the same command"
                )
            return found
        finally:
            teacher.close()

    def result(self, data: Dataset, gold_sha256: str, stopped: EdgestillError | None) -> PromptSearch:
        """All of it."""
        chosen, settings, spending = best(self.trials), self.settings, self.spending
        usd = self._search_usd()
        winner = self.held_out.get("chosen") or (self.held_out.get("start") if chosen is not None else None)
        start, few_shot = self.held_out.get("start"), self.held_out.get("few_shot")
        return PromptSearch(
            recipe_sha256=self.original.sha256(),
            gold_sha256=gold_sha256,
            teacher=self.recipe.teacher.model or str(self.recipe.teacher.path),
            objective=settings.model_dump(mode="json", include={"min_explanation_rate", "max_usd_per_label"}),
            rows={"scored": len(self.scored), "held_out": len(self.gold.held_out), "recipe": len(data.rows)},
            dropped=self.gold.dropped,
            rounds=self.rounds,
            trials=tuple(self.trials),
            refused=dict(sorted(self.refused.items())),
            chosen=None if chosen is None else chosen.name,
            held_out=self.held_out,
            against_start=None if winner is start else _paired(winner, start),
            against_few_shot=_paired(winner, few_shot),
            requests=self.requests + sum(trial.requests for trial in self.trials),
            search_usd=None if usd is None else usd_text(usd),
            spent_usd=None if spending is None else spending.usd,
            projected_usd={
                name: projected_usd(trial, len(data.rows), usd if name == "chosen" else Decimal(0))
                for name, trial in self.held_out.items()
            },
            stopped=None if stopped is None else str(stopped),
        )

    def _search_usd(self) -> Decimal | None:
        """What trials and proposals cost when they were made."""
        wrote = None if self.wrote is None else self.wrote.usd(self.recipe.teacher.price_usd_per_mtok)
        costs = [trial.usd for trial in self.trials]
        known = [Decimal(usd) for usd in costs if usd is not None]
        return None if wrote is None or len(known) < len(costs) else sum(known, wrote)


def _paired(a: Trial | None, b: Trial | None) -> dict[str, object] | None:
    return None if a is None or b is None else dataclasses.asdict(paired_test(a.correct, b.correct))
