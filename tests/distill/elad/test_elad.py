"""ELAD's loop on a teacher behind real HTTP: whom it asks, what it learns from, and that nothing is paid twice."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli
from scripted_server import Answer, Call, ScriptedServer

from edgestill.distill.annotate import read_annotations
from edgestill.distill.elad.steps import revised, split_steps
from edgestill.distill.ledger import Ledger
from edgestill.distill.pipeline import run_annotate
from edgestill.distill.plan import make_plan
from edgestill.distill.recipe import read_recipe
from edgestill.distill.run import MANIFEST_NAME as RUN_NAME
from edgestill.distill.run import StudentRun
from edgestill.distill.select.elad import Elad
from edgestill.distill.select.rounds import Rounds
from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.runtime import manifest
from edgestill.runtime.errors import UsageError

COLOURS = {"red": ("tomato", "cherry", "blood", "ruby"), "green": ("grass", "frog", "lime", "moss")}
STEP = re.compile(r"^\d+\. (.*)$", re.MULTILINE)
DOCS = Path(__file__).resolve().parents[3] / "docs"
DEV, TEST, ROWS, FIRST = 8, 4, 16, 10
Write = Callable[..., Path]


def colour_of(text: str) -> str:
    """What is true: the colour of the first thing that is named."""
    things = {thing: colour for colour, all_of_it in COLOURS.items() for thing in all_of_it}
    return next(things[word] for word in re.findall(r"\w+", text) if word in things)


def is_review(call: Call) -> bool:
    return "check how a student" in str(call.body["messages"][0]["content"])


def reviewed(call: Call) -> tuple[str, list[str]]:
    """The row's text and the student's steps in a review's question."""
    question, steps = call.text.split("\n\nThe student's steps:\n")
    return question.removeprefix("Question:\n"), STEP.findall(steps.split("\n\nThe student's answer: ")[0])


def a_review(call: Call) -> dict[str, Any]:
    """A step that names a stone or the wrong colour is wrong; the teacher knows better from there on."""
    text, steps = reviewed(call)
    truth = colour_of(text)
    (other,) = COLOURS.keys() - {truth}
    first = next((number for number, step in enumerate(steps, 1) if "stone" in step or other in step), None)
    judged = ["CORRECT"] * (len(steps) if first is None else first - 1) + (["WRONG"] if first else [])
    new = [f"So it is {truth}."] if first else []
    return {"verdicts": judged, "first_error": first, "revised_steps": new, "answer": truth}


def says(call: Call) -> Answer:
    """The teacher's script: reviews where it is asked to review, else label and a reason that plants a wrong step."""
    if is_review(call):
        return Answer(json.dumps(a_review(call)))
    truth = colour_of(call.text)
    return Answer(json.dumps({"rationale": reason(truth), "label": truth}))


def reason(truth: str) -> str:
    """What the teacher says of its own, and the student learns in the first round."""
    return f"What is named first is {truth}. A stone is blue."


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    with ScriptedServer(says) as scripted:
        yield scripted


@pytest.fixture
def a_recipe(tmp_path: Path, tiny_base: Path, server: ScriptedServer) -> Write:
    """Write a recipe over 44 rows; sections get the keys that are told."""
    things = [thing for pair in zip(*COLOURS.values(), strict=True) for thing in pair]
    texts = [f"{first} by a {second}, number {i}" for i, first in enumerate(things) for second in things[:6]]
    records = [{"text": text, "gold": colour_of(text)} for text in texts]
    for name, some in (("pool.jsonl", records[:40]), ("test.jsonl", records[40 : 40 + TEST])):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in some), encoding="utf-8")
    recipe: dict[str, Any] = {
        "name": "explained",
        "task": {"instruction": "Which colour has what is named first?", "labels": list(COLOURS)},
        "data": {"pool": "pool.jsonl", "test": "test.jsonl", "gold": "gold", "dev_fraction": 0.2},
        "teacher": {"kind": "openai", "model": "scripted", "base_url": server.url, "smoke_rows": 0, "concurrency": 4},
        "select": {"strategy": "elad", "rows": ROWS, "first_rows": FIRST, "rounds": 2, "samples": 2}
        | {"candidates": 8, "explanation_tokens": 24},
        "student": {"base": str(tiny_base), "lora": {"r": 8, "alpha": 32}},
        "train": {"epochs": 8.0, "learning_rate": 0.01, "batch_rows": 4, "precision": "float32"}
        | {"quantize_aware": False},
        "bench": {"against": ["teacher"]},
    }

    def write(**sections: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.yaml"
        changed = {name: recipe.get(name, {}) | keys for name, keys in sections.items()}
        path.write_text(yaml.safe_dump(recipe | changed), encoding="utf-8")
        return path

    return write


def annotated(recipe: Path) -> tuple[Ledger, dict[str, Any]]:
    """The ledger, and what became of the training rows by their text."""
    folder = recipe.parent / "annotations"
    (ledger, _), _ = run_annotate(make_plan(recipe), folder, lambda *_: None)
    return ledger, {row.text: answer for row, answer in read_annotations(folder) if row.split == "train"}


def notes(recipe: Path) -> dict[str, Any]:
    """What was noted of the rows that were chosen by their explanations, by id."""
    records = list(manifest.read_jsonl(recipe.parent / "annotations" / "choices.jsonl"))
    return {name: note for record in records for name, note in record["notes"].items()}


def test_the_teacher_corrects_the_students_own_steps_and_each_row_is_one_request(
    a_recipe: Write, server: ScriptedServer
) -> None:
    recipe = a_recipe()
    ledger, answers = annotated(recipe)
    reviews = [call for call in server.calls if is_review(call)]
    asked = {text: answer for text, answer in answers.items() if isinstance(answer, Annotation)}
    written = notes(recipe)
    assert len(server.calls) == DEV + TEST + ROWS == ledger.requests
    assert len(asked) == ROWS == ledger.splits["train"]
    assert len(reviews) == len(written) == ROWS - FIRST
    found = dict(map(reviewed, reviews))
    wrong = kept = 0
    for call in reviews:
        text, steps = reviewed(call)
        answer, said = asked[text], a_review(call)
        note = written[answer.row_id]
        assert steps == list(split_steps(note["explanation"]))
        assert answer.label == colour_of(text)
        assert answer.rationale == revised(note["explanation"], said["first_error"], said["revised_steps"])
        assert json.loads(answer.raw) == said
        assert answer.requests == answer.bought_here == 1
        wrong += said["first_error"] is not None
        kept += (said["first_error"] or 1) - 1
    assert wrong > 0, "no student wrote the planted step"
    assert kept > 0, "nothing of the students' own was kept"
    assert all(answer.rationale.startswith("What is named") for text, answer in asked.items() if text not in found)
    first, second = ledger.selection["rounds"]  # type: ignore[index]
    assert (first["rows"], second["rows"], second["trained_rows"]) == (FIRST, ROWS - FIRST, FIRST)
    assert (second["candidates"], second["student_texts"]) == (8, 8 * (1 + 2))
    assert second["reviewed_rows"] == ROWS - FIRST
    assert second["prompt_tokens"] == sum(asked[text].prompt_tokens for text in found)
    scores = [note["score"] for note in written.values()]
    assert scores == sorted(scores, reverse=True)
    assert all(note["score"] == pytest.approx((note["intra"] + note["inter"]) / 2) for note in written.values())


def test_a_review_that_contradicts_itself_is_sent_back_once_and_then_the_row_is_rejected(
    a_recipe: Write, server: ScriptedServer
) -> None:
    stubborn = set[str]()

    def script(call: Call) -> Answer:
        if not is_review(call):
            return says(call)
        repaired = len(call.body["messages"]) > 2
        text = call.body["messages"][1]["content"]
        if not stubborn:
            stubborn.add(text)
        if text in stubborn or not repaired:
            return Answer(json.dumps({"verdicts": ["CORRECT"], "first_error": 99, "answer": "red"}))
        return Answer(json.dumps({"verdicts": [], "first_error": None, "revised_steps": [], "answer": "red"}))

    server.script = script
    ledger, answers = annotated(a_recipe())
    complaints = [call.text for call in server.calls if len(call.body["messages"]) > 2]
    assert len(complaints) == ROWS - FIRST
    assert all("first_error is 99, but the student wrote" in complaint for complaint in complaints)
    assert ledger.rejected == {"unparsable": 1}
    (refused,) = [answer for answer in answers.values() if isinstance(answer, Rejection)]
    assert refused.requests == 2


def test_a_cap_in_the_middle_of_the_reviews_holds_and_the_next_run_asks_about_the_same_rows(
    a_recipe: Write, server: ScriptedServer
) -> None:
    cap = DEV + TEST + FIRST + 3
    ledger, _ = annotated(a_recipe(budget={"requests": cap}))
    assert ledger.pending == ROWS - FIRST - 3
    assert "budget.requests" in str(ledger.stopped)
    assert len(server.calls) == cap
    chosen = notes(a_recipe())
    ledger, answers = annotated(a_recipe())
    assert (ledger.pending, ledger.stopped) == (0, None)
    assert notes(a_recipe()) == chosen
    assert max(Counter(call.key for call in server.calls).values()) == 1
    assert len(server.calls) == DEV + TEST + ROWS
    assert {answer.row_id for answer in answers.values() if isinstance(answer, Annotation)} >= chosen.keys()


def test_a_run_that_is_killed_among_the_reviews_goes_on_without_paying_twice(
    a_recipe: Write, server: ScriptedServer
) -> None:
    recipe = a_recipe(teacher={"concurrency": 1})
    command = [str(Path(sys.executable).parent / "edgestill"), "annotate", str(recipe)]
    command += ["--out", str(recipe.parent)]
    victims = list[subprocess.Popen[str]]()

    def script(call: Call) -> Answer:
        if is_review(call) and len(victims) == 1 and sum(map(is_review, server.calls)) == 3:
            victims[0].kill()
            victims.append(victims[0])
        return says(call)

    server.script = script
    victims.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    _, said = victims[0].communicate(timeout=600)
    assert victims[0].returncode == -9, said
    chosen = notes(recipe)
    ledger, _ = annotated(recipe)
    assert notes(recipe) == chosen
    assert ledger.pending == 0
    asked = Counter(call.key for call in server.calls)
    assert len(asked) == DEV + TEST + ROWS
    assert sorted(asked.values())[-2:] == [1, 2]  # one at a time: what was in flight at the kill, and nothing else


def test_where_there_is_no_gain_the_loop_ends_and_says_so(a_recipe: Write, server: ScriptedServer) -> None:
    select = {"min_gain": 0.99, "rounds": 4, "beta": 1.0, "explanation_tokens": 8}
    ledger, answers = annotated(a_recipe(select=select))
    rounds = ledger.selection["rounds"]  # type: ignore[index]
    assert [one["rows"] for one in rounds] == [FIRST, 2, 0]  # 10 at random, 2 by the first student
    assert rounds[-1]["ended"] == "no gain"
    assert rounds[1]["student_texts"] == 8  # with beta 1 nothing is sampled
    assert sum(isinstance(answer, Annotation) for answer in answers.values()) == FIRST + 2
    assert len(server.calls) == DEV + TEST + FIRST + 2
    before = len(server.calls)
    again, _ = annotated(a_recipe(select=select))
    assert again == ledger
    assert len(server.calls) == before


@pytest.mark.parametrize("revision", ["teacher", "replace"])
def test_without_reviews_the_reason_is_the_teachers_or_where_both_agree_the_students(
    a_recipe: Write, revision: str, server: ScriptedServer
) -> None:
    recipe = a_recipe(select={"revision": revision})
    _, answers = annotated(recipe)
    assert not any(map(is_review, server.calls))
    written, kept = notes(recipe), 0
    for answer in answers.values():
        if isinstance(answer, Annotation):
            note = written.get(answer.row_id)
            agree = revision == "replace" and note is not None and note["answer"] == answer.label
            assert answer.rationale == (note["explanation"] if agree and note else reason(answer.label))
            assert answer.requests == 1
            kept += agree
    assert (kept > 0) == (revision == "replace")


@pytest.mark.parametrize("revision", ["review", "replace"])
def test_from_the_command_line_to_a_trained_student(cli: Cli, a_recipe: Write, tmp_path: Path, revision: str) -> None:
    sections: dict[str, Any] = {"select": {"revision": revision, "samples": 2, "explanation_tokens": 8}}
    if revision == "replace":
        records = [*manifest.read_jsonl(tmp_path / "pool.jsonl"), *manifest.read_jsonl(tmp_path / "test.jsonl")]
        answers = [{"text": r["text"], "label": r["gold"], "rationale": f"It is {r['gold']}."} for r in records]
        (tmp_path / "said.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers), encoding="utf-8")
        recipe = a_recipe(**sections)
        data = yaml.safe_load(recipe.read_text())
        recipe.write_text(yaml.safe_dump(data | {"teacher": {"kind": "replay", "path": "said.jsonl"}}))
    else:
        recipe = a_recipe(**sections)
    for verb in ("annotate", "train"):
        done = cli(verb, recipe, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    (found,) = tmp_path.rglob(RUN_NAME)
    assert manifest.load(StudentRun, found).rows["train"] == ROWS


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"student": {"base": "x", "kind": "encoder", "lora": {}}}, "x is an encoder, which writes none"),
        ({"train": {"objective": "label"}}, "it learns none; write task.rationale: true and"),
        ({"task": {"rationale": False}}, "it learns none"),
        ({"teacher": {"kind": "replay", "path": "x.jsonl"}}, "write revision: replace"),
        ({"teacher": {"kind": "gguf", "path": "x.gguf"}}, "write revision: teacher"),
        ({"teacher": {"votes": 3}}, "teacher.votes is 3, but a review is asked for once; write votes: 0"),
        ({"task": {"kind": "generate", "labels": {}}, "select": {"intra": "soft"}}, "write intra: hard"),
        ({"select": {"samples": 1}}, "samples"),
        ({"select": {"first_rows": ROWS}}, "the first round is random, and there is no other"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_paid(
    a_recipe: Write, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_recipe(a_recipe(**sections))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_example_and_the_table_of_keys_say_what_the_strategy_does() -> None:
    recipe = read_recipe(DOCS / "examples" / "elad.yaml")
    assert isinstance(recipe.select, Elad)
    table = dict(
        re.findall(r"^\| `(\w+)` \| `?(\S+?)`? \| .* \|$", (DOCS / "elad.md").read_text(encoding="utf-8"), re.M)
    )
    own = {name: field.default for name, field in Elad.model_fields.items() if name not in Rounds.model_fields}
    assert table == {name: "none" if value is None else str(value) for name, value in own.items()}
