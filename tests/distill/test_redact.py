"""What `teacher.redact` matches reaches no endpoint and no file of the run, and the device hides it too."""

import json
from pathlib import Path

import pytest
from scripted_server import ScriptedServer

from edgestill.distill import pipeline
from edgestill.distill.annotate import read_annotations
from edgestill.distill.plan import make_plan
from edgestill.runtime.task import redacted

PATTERN = r"[\w.]+@[\w.]+\w"


def test_redacted_text_is_sent_and_kept_and_the_rest_never(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    pool = tiny_recipe.parent / "pool.jsonl"
    rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    rows[0]["text"] += " write to ann@example.org or bob.b@example.org"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with ScriptedServer() as server:
        teacher = f"{{kind: openai, model: m, base_url: '{server.url}', redact: ['{PATTERN}']}}"
        recipe = tiny_recipe.read_text(encoding="utf-8").replace("{kind: replay, path: teacher.jsonl}", teacher)
        tiny_recipe.write_text(recipe, encoding="utf-8")
        plan = make_plan(tiny_recipe)
        (ledger, _), _ = pipeline.run_annotate(plan, tmp_path / "run", lambda *_: None)
    assert ledger.redacted == 2
    hidden = rows[0]["text"].replace("ann@example.org", "[redacted]").replace("bob.b@example.org", "[redacted]")
    assert hidden in {call.text for call in server.calls}
    assert hidden in {row.text for row, _ in read_annotations(tmp_path / "run")}
    assert "example.org" not in str([call.body for call in server.calls])
    for folder in (tmp_path / "run", tmp_path / "cache"):
        assert all(b"example.org" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert plan.students[0].task.fill({"text": "mail joe@x.org now"}) == "mail [redacted] now"


def test_every_pattern_hides_every_match_and_counts_it() -> None:
    assert redacted("a1 b22 c", [r"\d+", "b"]) == ("a[redacted] [redacted][redacted] c", 3)
    assert redacted("nothing", []) == ("nothing", 0)
