"""Bundles of students that write, and of students that choose, made by hand: a tiny decoder that knows a few rows."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoder_runs import silent

from edgestill.distill.run import MANIFEST_NAME, StudentRun
from edgestill.export.pack import run_export
from edgestill.runtime import manifest
from edgestill.runtime.choices import with_choices
from edgestill.runtime.task import Label, Task, load_tokenizer
from edgestill.runtime.written import read_answer

MOST_STEPS, RATE, KNOWN_LOSS = 120, 0.01, 0.01
LEGS = {"cat": "4", "hen": "2", "spider": "8", "ant": "6", "crab": "10", "worm": "none at all"}
COLOURS = {"tomato": "red", "grass": "green", "snow": "white", "coal": "black", "sky": "blue"}
Known = tuple[str, str, str]  # filled text, what is written after the prompt, label


def a_task(**changes: Any) -> Task:
    """A task for tiny_base, whose end of sequence is token 2."""
    fields: dict[str, Any] = {
        "kind": "generate",
        "instruction": "How many legs?",
        "labels": (),
        "text": "legs of a {animal}?",
        "answer": "text",
        "answer_suffix": "\nAnswer:",
        "rationale_suffix": None,
        "max_text_tokens": 60,
        "too_long": "cut_tail",
        "bos_token_id": None,
        "eos_token_id": 2,
        "match": "number",
        "max_answer_tokens": 12,
    }
    return Task(**{**fields, **changes})


def legs(task: Task) -> list[Known]:
    """Every animal's row; of a chain with its reason."""
    rows = []
    for animal, answer in LEGS.items():
        written = f" I counted the {animal}\nAnswer: {answer} legs" if task.chain else f" {answer} legs"
        rows.append((task.fill(animal), written, read_answer(written, task)))
    return rows


def choosing_task(tokenizer: Any, most: int = 4) -> Task:
    """Letters for a row's own choices in the field `colours`."""
    labels = [Label(x, "", tokenizer.encode(" " + x, add_special_tokens=False).ids[0], " " + x) for x in "ABCDE"[:most]]
    changes = {"kind": "classify", "labels": tuple(labels), "answer": "path", "choices": "colours"}
    return a_task(**changes, text="{thing} is", instruction="Which colour?")


def colours() -> list[Known]:
    """Every thing's row, with two or three choices; the right one is now first, now last."""
    names, rows = list(COLOURS.values()), []
    for place, (thing, colour) in enumerate(COLOURS.items()):
        others = [name for name in names if name != colour][: 1 + place % 2]
        choices = [colour, *others] if place % 3 else [*others, colour]
        letter = "ABC"[choices.index(colour)]
        rows.append((with_choices(f"{thing} is", choices), f" {letter}", letter))
    return rows


def written_bundle(folder: Path, base: Path, task: Task, rows: Sequence[Known], *engines: str) -> Path:
    """A bundle of a student that was trained on `rows` until it knows them; they are its development and test rows."""
    run = written_run(folder / "student", base, task, rows)
    section = {"artifacts": engines or ("onnx",), "quantization": "q8_0"}
    run_export(run, section, folder / "bundle", silent)
    return folder / "bundle"


def written_run(folder: Path, base: Path, task: Task, rows: Sequence[Known]) -> Path:
    """The folder that training leaves: all weights are learnt, so that the adapter on top of them changes nothing."""
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(base)
    model = _trained(base, [_ids(task, tokenizer, text, written) for text, written, _ in rows])
    learnt = folder.with_name("learnt")
    model.save_pretrained(learnt)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base / name, learnt / name)
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(str(folder / "adapter"))
    for path in learnt.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    manifest.save(folder / "task.json", task)
    named = [{"id": str(i), "text": text, "label": label} for i, (text, _, label) in enumerate(rows)]
    manifest.write_jsonl(folder / "dev.jsonl", named)
    manifest.write_jsonl(folder / "test.jsonl", [{**row, "gold": row["label"]} for row in named])
    manifest.write_jsonl(folder / "teacher.jsonl", [{**row, "row_id": row["id"], "latency_ms": None} for row in named])
    manifest.write_jsonl(folder / "predictions.jsonl", _said_by_torch(named))
    weights = manifest.sha256_file(learnt / "model.safetensors")
    origin = {"tokenizer_origin": "copied", "weights_note": "as made", "license": "apache-2.0"}
    made = StudentRun(
        name="written",
        inputs_sha256="1" * 64,
        recipe_sha256="2" * 64,
        annotations_sha256="3" * 64,
        recipe={},
        base={"spec": "tiny", "folder": str(learnt), "weights_sha256": weights, **origin},
        teacher={"name": "recorded", "kind": "replay", "license_note": None},
        training={},
        rows={"train": len(rows), "dev": len(rows), "test": len(rows)},
        files={"task.json": manifest.sha256_file(folder / "task.json")},
    )
    manifest.save(folder / MANIFEST_NAME, made)
    return folder


def _ids(task: Task, tokenizer: Any, text: str, written: str) -> tuple[list[int], list[int]]:
    answer = tokenizer.encode(written, add_special_tokens=False).ids
    return task.encode(tokenizer, text), [*answer, task.eos_token_id]


def _trained(base: Path, rows: Sequence[tuple[list[int], list[int]]]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    padded = [[*prompt, *answer, *[0] * (longest - len(prompt) - len(answer))] for prompt, answer in rows]
    wanted = [[*[-100] * len(prompt), *answer, *[-100] * longest][:longest] for prompt, answer in rows]
    ids, labels = torch.tensor(padded), torch.tensor(wanted)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(MOST_STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < KNOWN_LOSS:
            return model.eval()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"loss {loss.item():.2g}: the tiny student does not know its rows")


def _said_by_torch(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a student's evaluation in torch leaves: it knows every row."""
    facts = {"system": "student", "note": "float32", "latency_ms": 5.0, "load_s": 0.1, "peak_rss_bytes": 10**8}
    said = {**facts, "bytes": 10**7, "probabilities": {}}
    return [{**said, "row_id": row["id"], "label": row["label"]} for row in rows]
