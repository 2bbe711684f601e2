"""The stages of one run, composed: each opens its room when it is asked, and tells its seconds on stderr.

Part of the front door, because rooms do not import each other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgestill.runtime.errors import EdgestillError


class Stages:
    """The stages of one run, in order, each telling its seconds; composed here because rooms do not meet."""

    def __init__(self, recipe: Path | None, out: Path | None, strict: bool = False) -> None:
        """Plan the recipe, if there is one; `out` is where the run lives.

        Raises:
            UsageError: with `strict`, a teacher whose licence note is missing.
        """
        self.out_flag = f" --out {out}" if out is not None else ""
        self._plan: Any = None
        if recipe is not None:
            self._plan = _make_plan(recipe, strict)
        self.folder = out if out is not None else Path("runs") / self._plan.recipe.name

    @property
    def plan(self) -> Any:
        """The recipe with what can be known before any work."""
        return self._plan

    @property
    def annotations(self) -> Path:
        """Where the rows and their answers lie."""
        return self.folder / "annotations"

    def annotate(self) -> tuple[Any, EdgestillError | None]:
        """The ledger, and why the teacher stopped before the end, if it did."""
        from edgestill.distill.pipeline import run_annotate

        words = lambda result: _tokens_asked(result[0])  # noqa: E731
        result: tuple[Any, EdgestillError | None] = self._timed(
            "annotate", lambda tell: run_annotate(self._plan, self.annotations, tell), words
        )
        return result

    def train(self) -> Any:
        """The StudentRun's manifest."""
        from edgestill.distill.pipeline import run_train

        student = self.folder / "student"
        return self._timed(
            "train", lambda tell: run_train(self._plan, self.annotations, student, tell), _tokens_trained
        )

    def export(self) -> Any:
        """The bundle's manifest."""
        from edgestill.distill.pipeline import check_student
        from edgestill.export.pack import run_export

        section = self._plan.recipe.export.model_dump(mode="json")
        student, bundle = self.folder / "student", self.folder / "bundle"
        check_student(self._plan, self.annotations, student)
        return self._timed("export", lambda tell: run_export(student, section, bundle, tell), _bytes_written)

    def bench(self, bundle: Path) -> Any:
        """The report."""
        from edgestill.benchmarks.bench import run_bench

        return self._timed("bench", lambda tell: run_bench(bundle, self.folder / "report", tell), _requests_timed)

    def _timed(self, name: str, work: Callable[[Any], tuple[Any, bool]], tokens: Callable[[Any], str]) -> Any:
        from edgestill.runtime.progress import stage

        with stage(name) as (tell, finish):
            result, done_before = work(tell)
            finish("done before" if done_before else tokens(result))
        return result


def _make_plan(recipe: Path, strict: bool) -> Any:
    from edgestill.distill.pipeline import check_permission, make_plan
    from edgestill.export.plan import check_base

    plan = make_plan(recipe)
    check_permission(plan.recipe, strict)
    check_base(plan.base_config)
    return plan


def _tokens_asked(ledger: Any) -> str:
    counts = (ledger.prompt_tokens, ledger.completion_tokens)
    return "teacher tokens unknown" if None in counts else f"{sum(counts):,} teacher tokens"


def _tokens_trained(run: Any) -> str:
    facts = run.training
    return f"{facts['computed_tokens']:,} tokens trained in {facts['seconds']:.0f} s ({facts['tokens_per_s']:.0f}/s)"


def _bytes_written(bundle: Any) -> str:
    return ", ".join(f"{a.engine} {a.bytes / 1e6:.1f} MB" for a in bundle.artifacts)


def _requests_timed(report: Any) -> str:
    return ", ".join(f"{name}: {count:,} requests" for name, count in report.conditions.requests.items())
