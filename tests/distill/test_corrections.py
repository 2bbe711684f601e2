"""Labels by hand: they win, they cost nothing, they are counted, and a slip in the file is named by its line."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer

from edgestill.distill.annotate import read_annotations
from edgestill.distill.corrections import Correction, read_corrections
from edgestill.distill.dataset import Row, row_id
from edgestill.distill.pipeline import run_annotate
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import Recipe, read_recipe
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime.errors import EdgestillError

TEXTS = {"a [redacted] lamp": "train", "two  Fans": "dev", "measured": "test"}
ROWS = tuple(Row(row_id(text), text, None, split) for text, split in TEXTS.items())


def a_recipe(corrections: str | None) -> Recipe:
    task = {"instruction": "Which?", "labels": ["red", "green"]}
    data = {"pool": "pool.jsonl", "corrections": corrections}
    teacher = {"kind": "replay", "path": "t.jsonl", "redact": [r"\d+-\d+"]}
    return Recipe.model_validate({"name": "x", "task": task, "data": data, "teacher": teacher})


def read(folder: Path, lines: list[Any], name: str = "mended.jsonl") -> dict[str, Correction]:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_corrections(a_recipe(name), folder / "recipe.yaml", ROWS)


def test_rows_are_named_by_id_or_by_text_as_it_was_before_redaction(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        [
            {"text": "  A 555-1234 lamp ", "label": "green", "rationale": "call 555-1234, it is green"},
            {"id": row_id("two fans"), "label": "red", "rationale": " "},
            {"text": "two fans", "label": "red"},
        ],
    )
    assert found == {
        row_id("a [redacted] lamp"): Correction("green", "call [redacted], it is green"),
        row_id("two fans"): Correction("red", None),
    }


def test_no_file_named_is_no_correction_and_csv_is_read_too(tmp_path: Path) -> None:
    assert read_corrections(a_recipe(None), tmp_path / "recipe.yaml", ROWS) == {}
    (tmp_path / "mended.csv").write_text(f"id,label,rationale\n{row_id('two fans')},green,\n")
    found = read_corrections(a_recipe("mended.csv"), tmp_path / "recipe.yaml", ROWS)
    assert found == {row_id("two fans"): Correction("green", None)}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"text": "two fans", "label": "blue"}, r":2: label 'blue' is not one of \['red', 'green'\]"),
        ({"text": "two fans"}, ":2: label None is not one of"),
        ({"text": "two fans", "label": ["red"]}, r":2: label \['red'\] is not one of"),
        ({"text": "measured", "label": "red"}, ":2: row .* is a test row, where the teacher itself is measured"),
        ({"text": "never seen", "label": "red"}, ":2: no row that is asked about has the id or text 'never seen'"),
        ({"id": "0123", "label": "red"}, ":2: no row .* '0123'"),
        ({"id": ["x"], "label": "red"}, r":2: no row .* \['x'\]"),
        ({"id": 7, "label": "red"}, ":2: no row .* 7"),
        ({"label": "red"}, ":2: no row .* None"),
        ({"text": "a 1-2 lamp", "label": "red"}, ":2: row .* is corrected twice, differently - keep one"),
        (["text"], ":2 holds list, wanted a JSON object"),
    ],
)
def test_a_slip_is_named_by_file_and_line(tmp_path: Path, line: Any, words: str) -> None:
    with pytest.raises(EdgestillError, match=r"mended\.jsonl" + words):
        read(tmp_path, [{"text": "a 0-0 lamp", "label": "green"}, line])


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.txt", "gone/there"])
def test_a_missing_file_is_named_as_the_corrections(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgestillError, match=r"data\.corrections: no file .*gone"):
        read_corrections(a_recipe(name), tmp_path / "recipe.yaml", ROWS)


def test_a_correction_after_a_run_overrides_and_buys_nothing(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run" / "annotations"
    with ScriptedServer() as server:
        live = f'teacher: {{kind: openai, model: scripted, base_url: "{server.url}"}}'
        text = tiny_recipe.read_text().replace("teacher: {kind: replay, path: teacher.jsonl}", live)
        tiny_recipe.write_text(text)
        (first, stopped), _ = run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
        assert (first.corrected, stopped) == (0, None)
        asked = len(server.calls)
        rows = [row for row, _ in read_annotations(folder) if row.split != "test"]
        tiny_recipe.write_text(text.replace("gold: gold,", "gold: gold, corrections: mended.jsonl,"))
        lines = [{"id": rows[0].id, "label": "green", "rationale": "seen"}, {"text": rows[1].text, "label": "green"}]
        (tmp_path / "mended.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (ledger, stopped), done_before = run_annotate(make_plan(tiny_recipe), folder, lambda *_: None)
        assert (stopped, done_before, len(server.calls)) == (None, False, asked)
    assert (ledger.corrected, ledger.accepted, ledger.requests) == (2, first.accepted, first.requests)
    answers = {row.id: answer for row, answer in read_annotations(folder)}
    for row in rows[:2]:
        answer = answers[row.id]
        assert isinstance(answer, Annotation)
        assert (answer.label, answer.corrected, answer.requests) == ("green", True, 0)
    assert getattr(answers[rows[0].id], "rationale", "") == "seen"
    assert sum(isinstance(a, Annotation) and a.label == "red" for a in answers.values()) == ledger.accepted - 2
    assert read_recipe(tiny_recipe).data.corrections == "mended.jsonl"
