"""What all verbs share: their arguments and how an answer is printed. stdout carries the answer, stderr the talk."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the run lives; default runs/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a teacher without a licence note.")]


def answer(as_json: bool, facts: dict[str, Any], text: str, following: str) -> None:
    """The answer on stdout: one JSON object, or text whose last line says what to type next."""
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else f"{text}\nNext: {following}")
