"""Stored answers of every common shape become a pool and a replay teacher, whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgestill.distill import imports
from edgestill.distill.imports import Imported, import_answers
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

SAID = '{"rationale": "ripe", "label": "red"}'
CHOICES = [{"index": 0, "message": {"role": "assistant", "content": SAID}}]
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
ASKED = [{"role": "system", "content": "Which colour?"}, {"role": "user", "content": "a tomato"}]
BODY = {"choices": CHOICES, "usage": USAGE}
KEPT = {"text": "a tomato", "raw": SAID, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}
WITHOUT_USAGE = {"text": "a tomato", "raw": SAID}

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "completion with its messages": ({"messages": ASKED, **BODY}, KEPT),
    "request and response": ({"request": {"model": "m", "messages": ASKED}, "response": BODY}, KEPT),
    "usage beside the response": ({"request": {"messages": ASKED}, "response": {"choices": CHOICES}, **BODY}, KEPT),
    "fine-tuning messages": ({"messages": [*ASKED, CHOICES[0]["message"]]}, WITHOUT_USAGE),
    "parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a "}, {"text": "tomato"}]}], **BODY},
        KEPT,
    ),
    "several turns": ({"messages": [{"role": "user", "content": "hello"}, *ASKED], **BODY}, KEPT),
    "prompt and completion": ({"prompt": "a tomato", "completion": SAID}, WITHOUT_USAGE),
    "input and output": ({"input": "a tomato", "output": SAID, "body": "a column of that name"}, WITHOUT_USAGE),
    "question and answer object": ({"question": "a tomato", "answer": json.loads(SAID)}, WITHOUT_USAGE),
    "prompt and a whole response": ({"prompt": "a tomato", "response": BODY}, KEPT),
    "text and label": ({"text": "a tomato", "label": "red"}, {"text": "a tomato", "raw": "red"}),
    "text, label, rationale": ({"text": "a tomato", "label": "red", "rationale": "ripe"}, WITHOUT_USAGE),
    "batch line with its body": (
        {"custom_id": "r-1", "body": {"messages": ASKED}, "response": {"status_code": 200, "body": BODY}},
        KEPT,
    ),
}


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_a_row_and_its_answer(tmp_path: Path, shape: str) -> None:
    record, kept = SHAPES[shape]
    facts = import_answers(lines(tmp_path / "stored.jsonl", [record]), tmp_path / "new")
    assert facts == Imported(1, 1, {})
    assert list(manifest.read_jsonl(tmp_path / "new" / "teacher.jsonl")) in (
        [kept],
        [{**kept, "raw": json.dumps(json.loads(SAID), ensure_ascii=False)}],
    )
    assert list(manifest.read_jsonl(tmp_path / "new" / "pool.jsonl")) == [{"text": "a tomato"}]


def test_a_batchs_output_is_joined_with_its_input(tmp_path: Path) -> None:
    asked = [
        {"custom_id": f"r-{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [turn]}}
        for n, turn in enumerate([ASKED[1], {"role": "user", "content": "a lime"}, {"role": "user", "content": "sky"}])
    ]
    said = [
        {"id": "b1", "custom_id": "r-1", "response": {"status_code": 200, "body": BODY}, "error": None},
        {"id": "b0", "custom_id": "r-0", "response": {"status_code": 200, "body": BODY}, "error": None},
        {"id": "b2", "custom_id": "r-2", "response": {"status_code": 500, "body": {"error": {}}}, "error": None},
        {"id": "b3", "custom_id": "r-9", "response": {"status_code": 200, "body": BODY}, "error": None},
    ]
    output, source = lines(tmp_path / "output.jsonl", said), lines(tmp_path / "input.jsonl", asked)
    facts = import_answers(output, tmp_path / "new", requests=source)
    assert facts == Imported(4, 2, {imports.NO_PAIR: 2})
    assert [row["text"] for row in manifest.read_jsonl(tmp_path / "new" / "pool.jsonl")] == ["a lime", "a tomato"]
    with pytest.raises(EdgestillError, match=r"no file .*gone"):
        import_answers(output, tmp_path / "newer", requests=tmp_path / "gone.jsonl")


def test_a_template_takes_the_row_out_of_its_prompt(tmp_path: Path) -> None:
    prompts = [
        "Classify (one of [a|b]):\n a {tomato}\n\nand more \nAnswer:",
        "a lime",
        "Classify (one of [a|b]):  \nAnswer:",
    ]
    source = lines(tmp_path / "stored.jsonl", [{"prompt": prompt, "completion": SAID} for prompt in prompts])
    facts = import_answers(source, tmp_path / "new", " Classify (one of [a|b]):{text}\nAnswer: ")
    assert facts == Imported(3, 1, {imports.OTHER_PROMPT: 2})
    assert [r["text"] for r in manifest.read_jsonl(tmp_path / "new" / "pool.jsonl")] == ["a {tomato}\n\nand more"]


def test_what_cannot_be_used_is_left_out_and_counted_by_reason(tmp_path: Path) -> None:
    records = [
        {"text": "one", "label": "red"},
        {"text": " ONE ", "label": "green"},
        {"text": "two"},
        {"label": "red"},
        {"text": "", "label": "red"},
        {"text": "half \ud800", "label": "red"},
        {"text": "three", "label": "half \ud800"},
        {"messages": "no list", "choices": []},
        {"messages": [{"role": "user", "content": "four"}], "choices": [{"message": {"content": None}}]},
        {"messages": [7, {"role": "user"}], "choices": CHOICES},
        {"text": "five", "label": 7},
    ]
    facts = import_answers(lines(tmp_path / "stored.jsonl", records), tmp_path / "new")
    assert facts == Imported(11, 1, {imports.AGAIN: 1, imports.NO_PAIR: 7, imports.NO_TEXT: 2})
    assert list(manifest.read_jsonl(tmp_path / "new" / "teacher.jsonl")) == [{"text": "one", "raw": "red"}]


def test_csv_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "stored.csv").write_text('question,answer\n"a, b",red\nc,\n')
    assert import_answers(tmp_path / "stored.csv", tmp_path / "new") == Imported(2, 1, {imports.NO_PAIR: 1})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b'{"text": "a", "label": "red"}\n{broken\n', "stored.jsonl:2 is not JSON"),
        (b'{"text": "a", "label": "red"}\n[1]\n', "stored.jsonl:2 holds list"),
        (b'{"text": "a"}\n{"text": "b"}\n', r"none of 2 records can be used \(2: no prompt or no answer in it\)"),
        (None, "no file"),
    ],
)
def test_bad_input_leaves_no_folder(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "stored.jsonl").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EdgestillError, match=words):
        import_answers(tmp_path / "stored.jsonl", tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_leaves_no_folder(tmp_path: Path) -> None:
    source = lines(tmp_path / "stored.jsonl", [{"text": f"row {i}", "label": "red"} for i in range(200)])
    command = [str(Path(sys.executable).parent / "edgestill"), "import", str(source), str(tmp_path / "new")]
    # 4 blocks of 512 bytes a file: the write fails as on a full disk (EFBIG, its signal ignored)
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "limited", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot write" in done.stderr
    assert sorted(tmp_path.iterdir()) == [source]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_usage_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already - name a new folder"):
        import_answers(tmp_path / "gone.jsonl", tmp_path)
    for prompt in ("no place", "{text} and {text}"):
        with pytest.raises(UsageError, match=r"wants \{text\} once"):
            import_answers(tmp_path / "gone.jsonl", tmp_path / "new", prompt)
    with pytest.raises(EdgestillError, match=r"no file gone/there - name a \.jsonl"):  # and no hub is asked for it
        import_answers(Path("gone/there"), tmp_path / "new")
    (tmp_path / "stored.txt").write_text("x")
    with pytest.raises(UsageError, match=r"ends in '\.txt', wanted \.jsonl"):
        import_answers(tmp_path / "stored.txt", tmp_path / "new")
