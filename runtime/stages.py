"""The stages of one run, composed: each opens its room when it is asked, and tells its seconds on stderr.

Part of the front door, because rooms do not import each other.
"""

import functools
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

    @property
    def bundles(self) -> list[Path]:
        """Where each student's bundle lies, in the order of the recipe."""
        return [self.folder / student.place / "bundle" for student in self._plan.students]

    def annotate(self) -> tuple[Any, EdgestillError | None]:
        """The ledger, and why the teacher stopped before the end, if it did."""
        from edgestill.distill.pipeline import run_annotate

        words = lambda result: _tokens_asked(result[0])  # noqa: E731
        result: tuple[Any, EdgestillError | None] = self._timed(
            "annotate", lambda tell: run_annotate(self._plan, self.annotations, tell), words
        )
        return result

    def train(self) -> list[Any]:
        """The manifest of each StudentRun, in the order of the recipe."""
        from edgestill.distill.pipeline import assist_training, run_train
        from edgestill.distill.student.processes import process_index

        runs = []
        for student in self._plan.students:
            folder = self.folder / student.place / "student"
            if process_index() > 0:
                assist_training(student, self.annotations, folder)
                continue
            work = functools.partial(run_train, student, self.annotations, folder)
            runs.append(self._timed(f"train {student.place}".strip(), work, _tokens_trained))
        if process_index() > 0:
            raise SystemExit(0)  # the first process writes and tells
        return runs

    def export(self) -> list[Any]:
        """The manifest of each bundle, in the order of the recipe."""
        from edgestill.distill.pipeline import check_student
        from edgestill.export.pack import run_export

        bundles = []
        for plan in self._plan.students:
            place = self.folder / plan.place
            check_student(plan, self.annotations, place / "student")
            section = plan.recipe.export.model_dump(mode="json")
            work = functools.partial(run_export, place / "student", section, place / "bundle")
            bundles.append(self._timed(f"export {plan.place}".strip(), work, _bytes_written))
        return bundles

    def bench(self, bundles: list[Path], device: str = "local") -> Any:
        """The report; of another device than this in a folder of its own."""
        from edgestill.benchmarks.bench import run_bench
        from edgestill.benchmarks.devices.machine import folder_name

        place = self.folder / folder_name(device)
        return self._timed("bench", lambda tell: run_bench(bundles, place, tell, device), _requests_timed)

    def _timed(self, name: str, work: Callable[[Any], tuple[Any, bool]], tokens: Callable[[Any], str]) -> Any:
        from edgestill.runtime.progress import stage

        with stage(name) as (tell, finish):
            result, done_before = work(tell)
            finish("done before" if done_before else tokens(result))
        return result


def _make_plan(recipe: Path, strict: bool) -> Any:
    from edgestill.distill.plan import check_permission, make_plan
    from edgestill.export.plan import check_base

    plan = make_plan(recipe)
    check_permission(plan.recipe, strict)
    for student in plan.students:
        check_base(student.base_config, student.kind)
    return plan


def _tokens_asked(ledger: Any) -> str:
    counts = (ledger.prompt_tokens, ledger.completion_tokens)
    return "teacher tokens unknown" if None in counts else f"{sum(counts):,} teacher tokens"


def _tokens_trained(run: Any) -> str:
    facts = run.training
    words = f"{facts['computed_tokens']:,} tokens trained in {facts['seconds']:.0f} s ({facts['tokens_per_s']:.0f}/s)"
    if run.grid is None:
        return words
    kept, nearest = (run.grid[name]["labels_kept"] for name in (run.grid["shipped"], "nearest"))
    return f"{words}; on the grid {kept:.1%} of dev labels kept, to nearest {nearest:.1%}, {run.grid['seconds']:.0f} s"


def _bytes_written(bundle: Any) -> str:
    """The files, and every gate that they passed on a line of its own."""
    from edgestill.export.gates.gate import gate_lines

    files = ", ".join(f"{a.engine} {a.bytes / 1e6:.1f} MB" for a in bundle.artifacts)
    return "\n  ".join([files, *gate_lines(bundle.parity)])


def _requests_timed(report: Any) -> str:
    return ", ".join(f"{name}: {count:,} requests" for name, count in report.conditions.requests.items())
