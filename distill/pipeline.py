"""The two verbs of this room, step by step: annotate and train. Each is skipped while its inputs stand."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgestill.distill.annotate import MANIFEST_NAME as LEDGER_NAME
from edgestill.distill.annotate import ROWS_NAME, accepted, annotate, annotations_inputs
from edgestill.distill.base import TOKENIZER_FILES
from edgestill.distill.corrections import read_corrections
from edgestill.distill.dataset import load_dataset
from edgestill.distill.evaluate import evaluate_system, predictions_path
from edgestill.distill.imports import read_asked
from edgestill.distill.ledger import Ledger
from edgestill.distill.plan import Plan, StudentPlan, strategy_base
from edgestill.distill.recipe import read_recipe, resolve
from edgestill.distill.run import GRID_FOLDER, StudentRun, clear_run
from edgestill.distill.run import MANIFEST_NAME as RUN_NAME
from edgestill.distill.select.open import fresh_student, open_for
from edgestill.distill.student_section import GRID_VERSION
from edgestill.distill.teacher.open import teacher_fingerprint
from edgestill.distill.teacher.prompt import teacher_prompt
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.serving.teacher_prompt import FILE_NAME as PROMPT_NAME
from edgestill.runtime.serving.teacher_prompt import TeacherPrompt

Progress = Callable[[str, int, int], None]
COPIED_FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json")
WEIGHTS_FOLDER = {"causal": "adapter", "encoder": "model"}


def run_annotate(plan: Plan, folder: Path, progress: Progress) -> tuple[tuple[Ledger, EdgestillError | None], bool]:
    """Annotate the rows into `folder`; ((ledger, why it stopped early), whether it was done already)."""
    data = load_dataset(plan.recipe, plan.recipe_path)
    corrections = read_corrections(plan.recipe, plan.recipe_path, data.rows)
    base = strategy_base(plan.recipe, plan.recipe_path, plan.students[0].base)
    known = _finished_ledger(folder)
    if known is not None and known.recipe_sha256 == plan.recipe.sha256() and not known.goes_on:
        fingerprint = teacher_fingerprint(plan.recipe, plan.recipe_path)
        if known.inputs_sha256 == annotations_inputs(plan.recipe, data, fingerprint, corrections, base):
            return (known, None), True  # with another price, say, the answers stand and are counted again
    teacher = open_for(plan, folder, data.rows)
    told = lambda done, total: progress(f"annotate, {teacher.spent_so_far()}", done, total)  # noqa: E731
    try:
        train = fresh_student(plan, progress, [row.text for row in data.split("train")])
        return annotate(plan.recipe, data, teacher, plan.fits, folder, told, corrections, train, base), False
    except OSError as error:
        raise manifest.disk_error(folder, error) from error
    finally:
        teacher.close()


def _finished_ledger(folder: Path) -> Ledger | None:
    """The ledger of an earlier run, None where there is none, another version wrote it, or its rows were changed."""
    try:
        ledger = manifest.load(Ledger, folder / LEDGER_NAME)
        return ledger if manifest.sha256_file(folder / ROWS_NAME) == ledger.rows_sha256 else None
    except (EdgestillError, OSError):
        return None


def run_train(plan: StudentPlan, annotations: Path, folder: Path, progress: Progress) -> tuple[StudentRun, bool]:
    """Train, evaluate, write the StudentRun into `folder`; (run, whether it was done already).

    Raises:
        EdgestillError: no finished annotations, or too few accepted rows.
    """
    ledger = _finished_annotations(plan, annotations)
    inputs = _run_inputs(plan, ledger)
    if (folder / RUN_NAME).exists():
        run = manifest.load(StudentRun, folder / RUN_NAME)
        if run.inputs_sha256 == inputs:
            return run, True
    (folder / RUN_NAME).unlink(missing_ok=True)
    try:
        plan, training = _weights(plan, annotations, folder, _weights_inputs(plan, ledger), progress)
        grid = _grid(plan, annotations, folder, _grid_inputs(plan, ledger), progress)
        _write_reference(plan, annotations, folder)
    except OSError as error:
        raise manifest.disk_error(folder, error) from error
    _evaluate_all(plan, annotations, folder, ledger, inputs, progress)
    run = _finish(plan, ledger, training, grid, folder, inputs)
    manifest.save(folder / RUN_NAME, run)
    return run, False


def assist_training(plan: StudentPlan, annotations: Path, folder: Path) -> None:
    """The part of `run_train` that a process beside the first one takes part in; it writes nothing."""
    ledger = _finished_annotations(plan, annotations)
    plan, _ = _weights(plan, annotations, folder, _weights_inputs(plan, ledger), lambda *_: None)
    _grid(plan, annotations, folder, _grid_inputs(plan, ledger), lambda *_: None)


def _finished_annotations(plan: StudentPlan, annotations: Path) -> Ledger:
    ledger = manifest.load(Ledger, annotations / LEDGER_NAME)
    data, again = load_dataset(plan.recipe, plan.recipe_path), f"type: edgestill annotate {plan.recipe_path}"
    corrections = read_corrections(plan.recipe, plan.recipe_path, data.rows)
    fingerprint = teacher_fingerprint(plan.recipe, plan.recipe_path)
    whole = read_recipe(plan.recipe_path)  # the annotations are of all its students
    base = strategy_base(whole, plan.recipe_path, plan.base)
    if ledger.inputs_sha256 != annotations_inputs(whole, data, fingerprint, corrections, base):
        raise EdgestillError(f"{annotations} was made from another recipe or other data", again)
    if ledger.pending:
        raise EdgestillError(f"{ledger.pending} of {ledger.rows} rows are pending", again)
    if ledger.not_selected and ledger.stopped is not None:
        raise EdgestillError(f"annotate stopped before all rows were chosen: {ledger.stopped}", again)
    return ledger


def check_student(plan: StudentPlan, annotations: Path, folder: Path) -> None:
    """Refuse a student that an earlier state of this recipe or of its annotations made.

    Raises:
        EdgestillError: also when one of the two is not there.
    """
    ledger = manifest.load(Ledger, annotations / LEDGER_NAME)
    run = manifest.load(StudentRun, folder / RUN_NAME)
    if run.inputs_sha256 != _run_inputs(plan, ledger):
        raise EdgestillError(f"{folder} was made from another recipe", f"type: edgestill train {plan.recipe_path}")


def _weights_inputs(plan: StudentPlan, ledger: Ledger) -> str:
    """Hash of everything the trained weights depend on."""
    train = plan.recipe.train.model_copy(update={"quantize_aware": "auto"})  # of what comes after
    sections = plan.recipe.model_copy(update={"train": train}).sha256("task", "select", "student", "train")
    base = [manifest.sha256_file(p) for name in COPIED_FILES if (p := Path(plan.base.folder) / name).exists()]
    weights, task = [*base, plan.base.weights_sha256], dataclasses.asdict(plan.task)
    own = [teacher_fingerprint(plan.recipe, plan.recipe_path)] if train.white_box else []  # learnt from, not only asked
    version = plan.recipe.the_student.training_version
    return manifest.sha256_json([version, sections, ledger.rows_sha256, weights, task, *own])


def _grid_inputs(plan: StudentPlan, ledger: Ledger) -> str | None:
    """Hash of everything the weights on the grid depend on; None where the recipe wants none."""
    return manifest.sha256_json([GRID_VERSION, _weights_inputs(plan, ledger)]) if plan.recipe.on_grid else None


def _run_inputs(plan: StudentPlan, ledger: Ledger) -> str:
    """Hash of everything the run depends on: its weights, what it is compared with, what its manifest says."""
    sections = plan.recipe.sha256("name", "teacher", "bench")
    weights = [_weights_inputs(plan, ledger), _grid_inputs(plan, ledger)]
    asked = dataclasses.asdict(_teacher_prompt(plan))
    return manifest.sha256_json([weights, sections, ledger.usd_per_1000_requests, asked])


def _teacher_prompt(plan: StudentPlan) -> TeacherPrompt:
    """How the teacher is asked; of imported answers also how they were."""
    path = plan.recipe.teacher.path if plan.recipe.teacher.kind == "replay" else None
    recorded = None if path is None else read_asked(Path(resolve(plan.recipe_path, path)))
    return teacher_prompt(plan.recipe, recorded)


def _weights(
    plan: StudentPlan, annotations: Path, folder: Path, inputs: str, progress: Progress
) -> tuple[StudentPlan, Any]:
    """The plan with the base that was trained, and the training: kept from an interrupted run, or done now."""
    from edgestill.distill.student.train import CHECKPOINT_NAME, FACTS_NAME, Training, train_student
    from edgestill.distill.white_box.teacher_logits import FOLDER_NAME as LOGITS_FOLDER

    pairs, dev = accepted(annotations, "train"), accepted(annotations, "dev")
    if not pairs or not dev:
        raise EdgestillError(
            f"{len(pairs)} training and {len(dev)} development rows have a usable answer, wanted at least 1 of each",
            "look at the rejections in annotations.json and mend the data or the teacher",
        )
    plan = plan.cut([row.text for row, _ in pairs])
    place = folder / WEIGHTS_FOLDER[plan.kind]
    if (place / FACTS_NAME).exists():
        training = manifest.load(Training, place / FACTS_NAME)
        if training.inputs_sha256 == inputs:
            return plan, training
    if not (place / CHECKPOINT_NAME).exists():
        (place / FACTS_NAME).unlink(missing_ok=True)  # first: a folder that is half deleted must not look whole
        clear_run(folder, LOGITS_FOLDER if plan.recipe.train.white_box else None)  # they know what they were made from
    place.mkdir(parents=True, exist_ok=True)
    told = lambda done, total: progress("train", done, total)  # noqa: E731
    training = train_student(plan.recipe, plan.base, plan.task, plan.tokenizer, pairs, dev, place, inputs, told)
    return plan, training


def _grid(
    plan: StudentPlan, annotations: Path, folder: Path, inputs: str | None, progress: Progress
) -> dict[str, Any] | None:
    """What putting the weights on the grid measured: kept from an interrupted run, or done now; None: not wanted."""
    from edgestill.distill.student.onto_grid import FACTS_NAME, OnGrid, put_on_grid

    place = folder / GRID_FOLDER
    if inputs is None:
        shutil.rmtree(place, ignore_errors=True)
        return None
    if (place / FACTS_NAME).exists():
        facts = manifest.load(OnGrid, place / FACTS_NAME)
        if facts.inputs_sha256 == inputs:
            return dataclasses.asdict(facts)
        (place / FACTS_NAME).unlink(missing_ok=True)
    place.mkdir(exist_ok=True)
    pairs, dev = accepted(annotations, "train"), [row for row, _ in accepted(annotations, "dev")]
    told = lambda done, total: progress("onto the grid", done, total)  # noqa: E731
    weights = folder / WEIGHTS_FOLDER[plan.kind]
    return dataclasses.asdict(put_on_grid(plan, pairs, dev, weights, place, inputs, told))


def _write_reference(plan: StudentPlan, annotations: Path, folder: Path) -> None:
    """Task, tokenizer and config files, and the rows that the report needs."""
    for name in COPIED_FILES:
        source = Path(plan.base.folder) / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    manifest.save(folder / "task.json", plan.task)
    manifest.save(folder / PROMPT_NAME, _teacher_prompt(plan))
    manifest.save(folder / "base.json", plan.base)
    test = accepted(annotations, "test")
    if not test:
        raise EdgestillError("no test row has a usable answer of the teacher", "look at the rejections")
    dev = accepted(annotations, "dev")
    rows = [{"id": row.id, "text": row.text, "label": answer.label} for row, answer in dev]
    manifest.write_jsonl(folder / "dev.jsonl", rows)
    learnt = ({"id": row.id, "text": row.text} for row, _ in accepted(annotations, "train"))
    manifest.write_jsonl(folder / "train.jsonl", learnt)
    manifest.write_jsonl(folder / "test.jsonl", [{"id": r.id, "text": r.text, "gold": r.gold} for r, _ in test])
    manifest.write_jsonl(folder / "teacher.jsonl", [dataclasses.asdict(answer) for _, answer in test])


def _evaluate_all(
    plan: StudentPlan, annotations: Path, folder: Path, ledger: Ledger, inputs: str, progress: Progress
) -> None:
    """predictions.jsonl, from one process a system; a system that an interrupted run has finished is not run again."""
    names = _systems(plan)
    stamp = folder / "evaluated.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != inputs:
        for name in names:
            predictions_path(folder, name).unlink(missing_ok=True)
        manifest.write_text_atomic(stamp, inputs)
    for number, name in enumerate(names):
        progress("evaluate", number, len(names))
        if name == "floor" and plan.place:
            _shared_floor(plan, annotations, folder, ledger)
        elif not predictions_path(folder, name).exists():
            evaluate_system(name, folder, annotations)
    progress("evaluate", len(names), len(names))
    records = [record for name in names for record in manifest.read_jsonl(predictions_path(folder, name))]
    manifest.write_jsonl(folder / "predictions.jsonl", records)
    for path in (stamp, *(predictions_path(folder, name) for name in names)):
        path.unlink()


def _systems(plan: StudentPlan) -> list[str]:
    """What runs on the test rows in torch or scikit-learn: an untrained head, a base with a hole or words cannot."""
    section, against = plan.recipe.the_student, plan.recipe.bench.against
    can_answer = {"base": section.kind == "causal" and section.layers is None, "floor": not plan.task.is_written}
    return ["student", *(name for name in ("base", "floor") if name in against and can_answer[name])]


def _shared_floor(plan: StudentPlan, annotations: Path, folder: Path, ledger: Ledger) -> None:
    """The floor does not know the student: it is run once for all students of a recipe."""
    key = manifest.sha256_json([ledger.rows_sha256, plan.recipe.sha256("task")])[:16]
    shared, own = annotations.parent / f"floor-{key}.jsonl", predictions_path(folder, "floor")
    if not shared.exists():
        evaluate_system("floor", folder, annotations)
        shutil.copyfile(own, shared.with_suffix(".partial"))
        shared.with_suffix(".partial").rename(shared)
    shutil.copyfile(shared, own)


def _finish(
    plan: StudentPlan, ledger: Ledger, training: Any, grid: dict[str, Any] | None, folder: Path, inputs: str
) -> StudentRun:
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    teacher = plan.recipe.teacher
    return StudentRun(
        name=f"{plan.recipe.name}-{plan.place}".rstrip("-"),
        student=plan.name,
        inputs_sha256=inputs,
        recipe_sha256=plan.recipe_sha256,
        annotations_sha256=ledger.rows_sha256,
        recipe=plan.recipe.model_dump(mode="json"),
        base=dataclasses.asdict(plan.base),
        teacher={
            "name": ledger.teacher,
            "kind": teacher.kind,
            "license_note": teacher.license_note,
            "price_usd_per_mtok": None
            if teacher.price_usd_per_mtok is None
            else {key: str(value) for key, value in teacher.price_usd_per_mtok.model_dump().items()},
            "usd_per_1000_requests": ledger.usd_per_1000_requests,
            "recorded_usd": ledger.recorded_usd,
            "spent_usd": ledger.spent_usd,
        },
        training=dataclasses.asdict(training),
        grid=grid,
        rows={"train": ledger.splits.get("train", 0), "dev": ledger.splits.get("dev", 0)}
        | {"test": ledger.splits.get("test", 0)},
        files={name: manifest.sha256_file(folder / name) for name in files},
    )
