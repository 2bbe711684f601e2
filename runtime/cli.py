"""The front door: `edgestill VERB`. Parses, opens the verb's room only when asked, prints; decides nothing else.

stdout carries the answer, stderr the talk. Exit codes: 0 done, 1 error, 2 gate failed, 3 bad recipe or usage,
4 budget reached (the same command with a higher cap goes on).
"""

import dataclasses
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from edgestill.runtime.errors import EdgestillError, UsageError, missing_package
from edgestill.runtime.stages import Stages
from edgestill.runtime.terminal import BundleFolder, Json, Out, RecipeFile, Strict, answer
from edgestill.runtime.verbs_experiment import EXPERIMENT_VERBS
from edgestill.runtime.verbs_export import EXPORT_VERBS, BaseModel, Calibrate, Schemes, export_model
from edgestill.runtime.verbs_prompts import PROMPT_VERBS
from edgestill.runtime.verbs_report import REPORT_VERBS
from edgestill.runtime.verbs_serve import SERVE_VERBS
from edgestill.runtime.verbs_teacher import TEACHER_VERBS

# typer brings click along under a private name; its base class for usage errors is reached through a public one
ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BUILD_INSTALL = "pip install torch==2.13.0 'edgestill[build]'"


@app.callback(invoke_without_command=True)
def _front(context: typer.Context) -> None:
    """Distil a large model into a small one that runs on the device, and prove it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")] = Path("example"), as_json: Json = False
) -> None:
    """Copy the bundled example into a new folder. Recipe, rows and recorded answers, to look at and change."""
    import importlib.util
    import shutil

    if folder.exists():
        raise UsageError(f"{folder} exists already", "name a new folder")
    room = importlib.util.find_spec("edgestill.distill")
    assert room is not None
    assert room.submodule_search_locations
    shutil.copytree(Path(next(iter(room.submodule_search_locations))) / "example", folder)
    answer(as_json, {"folder": str(folder)}, f"Wrote {folder}", f"edgestill build {folder}/recipe.yaml")


for verb in (*TEACHER_VERBS, *PROMPT_VERBS):
    app.command()(verb)


@app.command()
def build(recipe: RecipeFile, out: Out = None, as_json: Json = False, strict: Strict = False) -> None:
    """The whole way: annotate, train, export, bench. Run again, it goes on where it stopped."""
    stages = Stages(recipe, out, strict)
    _, stopped = stages.annotate()
    if stopped is not None:
        raise stopped
    stages.train()
    stages.export()
    _answer_report(as_json, stages.bench(stages.bundles), stages.bundles[0])


@app.command()
def train(recipe: RecipeFile, out: Out = None, as_json: Json = False) -> None:
    """Train the student on the teacher's answers. Then run it, the base and the floor on the test rows."""
    stages = Stages(recipe, out)
    runs = stages.train()
    text = "\n".join(
        f"{r.name}: agrees with the teacher on {r.training['dev_agreement']:.1%} of {r.rows['dev']} dev rows"
        for r in runs
    )
    answer(as_json, _one_or("students", runs), text, f"edgestill export {recipe}{stages.out_flag}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, or a folder: MODEL_DIR.")],
    out: Out = None,
    schemes: Schemes = None,
    calibrate: Calibrate = None,
    base: BaseModel = None,
    as_json: Json = False,
) -> None:
    """Write ONNX and GGUF from one grid. Of a recipe's student, or of a folder with a model or a LoRA adapter."""
    if source.is_dir():
        export_model(source, out, schemes or [], calibrate, base, as_json)
        return
    if schemes or calibrate or base:
        raise UsageError(f"{source} is no folder; --scheme, --calibrate and --base want one", "name a MODEL_DIR")
    stages = Stages(source, out)
    found = stages.export()
    paths = " ".join(str(path) for path in stages.bundles)
    artifacts = [(place, a) for place, bundle in zip(stages.bundles, found, strict=True) for a in bundle.artifacts]
    lines = [f"{_from_run(stages, place, a.path)}  {a.bytes / 1e6:.1f} MB  {a.quantization}" for place, a in artifacts]
    answer(as_json, _one_or("bundles", found), "\n".join(lines), f"edgestill bench {paths}")


@app.command()
def bench(
    targets: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders of bundles, or the recipe they came from.")
    ],
    device: Annotated[
        str, typer.Option(metavar="NAME", help="local, constrained:1core,512MB, ssh:HOST or emulated:cortex-a72.")
    ] = "local",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure bundles on this machine or another. Compare them with the teacher, the base and the floor."""
    if targets[0].suffix in (".yaml", ".yml"):
        if len(targets) > 1:
            raise UsageError(f"a recipe and {len(targets) - 1} more", "name one recipe, or bundles")
        stages = Stages(targets[0], out)
        bundles = stages.bundles
    else:
        stages, bundles = Stages(None, out or _run_of(targets)), targets
    _answer_report(as_json, stages.bench(bundles, device), bundles[0])


def _run_of(bundles: list[Path]) -> Path:
    """The run that bundles lie in: the folder around one, the folder around the students' folders of several."""
    around = [bundle.resolve().parent for bundle in bundles]
    return around[0] if len(around) == 1 else around[0].parent


def _one_or(name: str, manifests: list[Any]) -> dict[str, Any]:
    """The manifest of a recipe with one student; a list under `name` when there are several."""
    found = [dataclasses.asdict(one) for one in manifests]
    return found[0] if len(found) == 1 else {name: found}


def _from_run(stages: Stages, bundle: Path, path: str) -> str:
    """An artifact's path in its bundle, after the student's folder when there are several."""
    student = bundle.parent.relative_to(stages.folder).as_posix()
    return path if student == "." else f"{student}/bundle/{path}"


@app.command()
def run(
    bundle: BundleFolder,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to label.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="ROWS", help="JSON lines of fields.")] = None,
    engine: Annotated[str | None, typer.Option(help="onnx, gguf or onnx-labels.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: the cores this process may use.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Add the student's reason.")] = False,
    abstain_below: Annotated[
        float | None, typer.Option("--abstain-below", min=0, max=1, metavar="P", help="Mark answers less sure than P.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer one text, or every row of a file. One JSON object a line."""
    from edgestill.runtime import load, manifest

    if (text is None) == (file is None):
        raise UsageError("wanted a TEXT or --file ROWS, one of them", f'type: edgestill run {bundle} "some text"')
    student = load(bundle, engine, threads)
    rows: list[Any] = [text] if file is None else list(manifest.read_jsonl(file))
    answers = []
    for row in rows:
        said = dataclasses.asdict(student.predict(row, abstain_below=abstain_below))
        if explain:
            said["reason"] = student.explain(row)
        if file is not None and not as_json:
            typer.echo(json.dumps(said, ensure_ascii=False))
        answers.append(said)
    if as_json:
        typer.echo(json.dumps(answers[0] if file is None else {"answers": answers}, ensure_ascii=False))
    elif file is None:
        _print_answer(answers[0])


@app.command()
def verify(bundle: BundleFolder, as_json: Json = False) -> None:
    """Check every hash and gate of a bundle. All that needs no torch, on this machine."""
    from edgestill.runtime.verify import verify_bundle

    facts = _same_numbers(bundle, verify_bundle(bundle))
    lines = [f"{facts.files} files have their hashes"]
    lines += [f"{name}: {c.labels_changed} of {c.rows} golden answers differ" for name, c in facts.engines.items()]
    if facts.same_numbers is not None:
        lines.append(f"ONNX and GGUF hold the same numbers in {facts.same_numbers} tensors")
    lines += [f"not checked: {line}" for line in facts.skipped]
    answer(as_json, dataclasses.asdict(facts), "\n".join(lines), f'edgestill run {bundle} "..."')


def _same_numbers(folder: Path, facts: Any) -> Any:
    """`facts` with the gate that reads both files with the packages that wrote them, where these are installed."""
    from edgestill.runtime.bundle import load_bundle

    paths = {artifact.engine: folder / artifact.path for artifact in load_bundle(folder).artifacts}
    if not {"onnx", "gguf"} <= set(paths):
        return facts
    try:
        from edgestill.export.parity import check_files_agree

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return dataclasses.replace(facts, same_numbers=check_files_agree(paths["onnx"], paths["gguf"], config))
    except ModuleNotFoundError as error:
        skipped = f"equal numbers in both files: the package {error.name} is not installed"
        return dataclasses.replace(facts, skipped=(*facts.skipped, skipped))


def _print_answer(answer: dict[str, Any]) -> None:
    chances, name = answer["probabilities"], answer["label"] or "(no answer)"
    if answer["text"] is not None:  # written: the whole text, then the answer that it holds
        typer.echo(answer["text"])
        sure = f"{answer['confidence']:.1%}"
    else:
        sure = ", ".join(f"{chances[n]:.1%}" for n in answer["labels"]) or f"none above {max(chances.values()):.1%}"
    if answer["choice"] is not None:
        name = f"{name}) {answer['choice']}"
    unsure = "  (abstained: too unsure)" if answer["abstained"] else ""
    typer.echo(f"{name}  {sure}  {answer['latency_ms']:.1f} ms{unsure}")
    if "reason" in answer:
        typer.echo(answer["reason"])


def _answer_report(as_json: bool, report: Any, bundle: Path) -> None:
    from edgestill.benchmarks.render import terminal_table
    from edgestill.runtime import manifest

    text = shlex.quote(str(next(manifest.read_jsonl(bundle / "golden.jsonl"))["text"]))
    answer(as_json, dataclasses.asdict(report), terminal_table(report), f"edgestill run {bundle} {text}")


for verb in (*REPORT_VERBS, *SERVE_VERBS, *EXPERIMENT_VERBS, *EXPORT_VERBS):
    app.command()(verb)


def main() -> None:
    """Run the command line and exit; every user's mistake is one line on stderr."""
    sys.exit(_main())


def _main() -> int:
    warnings.simplefilter("ignore", FutureWarning)  # other packages' renamings are not the user's business
    try:
        app(standalone_mode=False)
    except EdgestillError as error:
        _complain(str(error))
        return error.exit_code
    except ClickException as error:
        _complain(f"{error.format_message()} - type: edgestill --help")
        return UsageError.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgestill"):
            raise
        _complain(str(missing_package(str(error.name), BUILD_INSTALL)))
        return 1
    except OSError as error:
        _complain(f"{error.filename or 'a file'}: {error.strerror or error} - check the path and its permissions")
        return 1
    except (typer.Abort, KeyboardInterrupt):
        _complain("stopped; the same command goes on from here")
        return 130
    return 0


def _complain(message: str) -> None:
    typer.echo(f"edgestill: {' '.join(message.split())}", err=True)
