"""Which bundles meet in one report, and whether they may: told apart by name, asked the same. Reads no answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgestill.runtime.bundle import Bundle, load_bundle, load_task
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.manifest import sha256_file
from edgestill.runtime.task import Task

# What every bundle of a report holds alike: rows with their gold, and the teacher's answers.
SHARED = {"test.jsonl": "other test rows", "teacher.jsonl": "other answers of the teacher"}


@dataclass(frozen=True)
class Entrant:
    """One student's bundle in a report. `alone` says that it has the report for itself: its systems need no name."""

    folder: Path
    bundle: Bundle
    alone: bool

    def call(self, engine: str) -> str:
        """What progress and errors call the artifact of an engine."""
        return engine if self.alone else f"{self.bundle.student} {engine}"


def read_entrants(folders: Sequence[Path]) -> tuple[Entrant, ...]:
    """The bundles of a report, in their order.

    Raises:
        UsageError: no bundle, or two with one student name.
        EdgestillError: a folder that is no whole bundle, or a bundle without an artifact.
    """
    if not folders:
        raise UsageError("found no bundle to measure, wanted one or more", "name a bundle, such as runs/NAME/bundle")
    entrants = tuple(Entrant(folder, load_bundle(folder), len(folders) == 1) for folder in folders)
    for number, entrant in enumerate(entrants):
        if not entrant.bundle.artifacts:
            raise EdgestillError(f"{entrant.folder} has no artifact to measure", "build the bundle again")
        twin = next((e for e in entrants[:number] if e.bundle.student == entrant.bundle.student), None)
        if twin is not None:
            raise UsageError(
                f"{twin.folder} and {entrant.folder} both hold a student named {entrant.bundle.student!r}",
                "name each bundle once, and give each student of the recipe a name of its own",
            )
    return entrants


def shared_task(entrants: Sequence[Entrant]) -> Task:
    """The task of the first bundle, after a look that all bundles are judged alike.

    Raises:
        EdgestillError: a bundle has other test rows, gold, teacher's answers or labels than the first.
    """
    first = entrants[0]
    wanted, task = {name: sha256_file(first.folder / "reference" / name) for name in SHARED}, load_task(first.folder)
    for entrant in entrants[1:]:
        theirs = load_task(entrant.folder)
        found = [
            why for name, why in SHARED.items() if sha256_file(entrant.folder / "reference" / name) != wanted[name]
        ]
        if (set(theirs.label_names), theirs.none) != (set(task.label_names), task.none):
            found.append("other labels")
        if (theirs.match, theirs.choices) != (task.match, task.choices):
            found.append("other answers")
        if theirs.kind != task.kind:
            found.append("another kind of task")
        if found:
            raise EdgestillError(
                f"{entrant.folder} ({entrant.bundle.student}) has {found[0]} than {first.folder}; one report wants the "
                "same in all",
                "build both from the same annotations, or bench them apart with --out",
            )
    return task
