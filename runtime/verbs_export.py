"""Export of models that are no students: folders without a recipe. Parses and prints; decides nothing else."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgestill.runtime.errors import UsageError
from edgestill.runtime.terminal import Json, answer

Schemes = Annotated[
    list[str] | None, typer.Option("--scheme", metavar="SCHEME", help="Of a MODEL_DIR, repeatable; such as q4_K_M.")
]
Calibrate = Annotated[
    Path | None, typer.Option("--calibrate", metavar="FILE", help="Texts (.txt, .jsonl) that weight K-quants.")
]
BaseModel = Annotated[str | None, typer.Option("--base", metavar="BASE", help="Base of an adapter: folder or hub id.")]


def export_model(
    folder: Path, out: Path | None, schemes: list[str], calibrate: Path | None, base: str | None, as_json: bool
) -> None:
    """Write a Hugging Face folder, or a LoRA adapter with its base, without a recipe.

    Raises:
        UsageError: no model there, no --out, or a --base that nothing needs.
    """
    from edgestill.runtime.progress import stage

    if out is None:
        raise UsageError(f"{folder} is a folder and no recipe, and --out is missing", "add --out DIR, a new folder")
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UsageError(
            f"{folder} holds neither config.json nor adapter_config.json", "name a recipe file or a model's folder"
        )
    from edgestill.export.schemes import export_schemes

    home = _base_folder(folder, base)
    with stage("export") as (tell, finish):
        found = export_schemes(folder, out, schemes, home, calibrate, tell)
        finish(f"{len(found.files)} files of {found.parameters:,} weights")
    lines = [f"{out / file.path}  {file.bytes / 1e6:.1f} MB  {file.label}" for file in found.files]
    opened = next((file for file in found.files if file.path.endswith(".gguf")), found.files[0])
    if opened.path.endswith(".gguf"):
        script = f"from llama_cpp import Llama; Llama({str(out / opened.path)!r})"
    else:
        script = f"from onnxruntime import InferenceSession as S; S({str(out / opened.path)!r})"
    answer(as_json, dataclasses.asdict(found), "\n".join(lines), f"python -c {shlex.quote(script)}")


def _base_folder(folder: Path, base: str | None) -> Path | None:
    """Where the base of an adapter lies; None for a model of its own."""
    from edgestill.distill.base import prepare_base
    from edgestill.export.model_folder import base_of

    named = base_of(folder)
    if named is None:
        if base is not None:
            raise UsageError(f"{folder} holds a model and no adapter", "leave --base out")
        return None
    try:
        return Path(prepare_base(base or named).folder)
    except UsageError as error:
        raise UsageError(error.message.replace("student.base: ", ""), "name the base with --base FOLDER") from None


def export_optimum(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder with config.json and weights.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder.")],
    as_json: Json = False,
) -> None:
    """Write a sequence-to-sequence model as ONNX, with optimum. For T5 and the like; in an environment of its own."""
    from edgestill.export.optimum_export import export_seq2seq

    facts = export_seq2seq(model, out)
    lines = [f"{out / name}  {size / 1e6:.1f} MB" for name, size in facts.files_bytes.items()]
    lines.append(f"logits differ from torch's by {facts.max_logit_difference:.1g} at most")
    opened = f"from optimum.onnxruntime import ORTModelForSeq2SeqLM as M; M.from_pretrained({str(out)!r})"
    answer(as_json, dataclasses.asdict(facts), "\n".join(lines), f"python -c {shlex.quote(opened)}")


EXPORT_VERBS = (export_optimum,)
