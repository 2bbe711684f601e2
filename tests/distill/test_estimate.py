"""What a plan says before anything is sent: it costs nothing, leaves nothing behind, and its numbers come true."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, Call, Reply, ScriptedServer, Status, json_answer

from edgestill.distill.estimate import Estimate, _money, estimate
from edgestill.distill.pipeline import run_annotate
from edgestill.distill.plan import make_plan

PRICE = "price_usd_per_mtok: {input: 0.15, output: 0.60}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, server: ScriptedServer) -> Path:
    """A recipe that asks the server about 48 rows and three more that are taken out."""
    words = ["tomato", "grass", "sky", "coal", "lemon", "snow", "plum", "rust"]
    texts = [f"{a} beside {b}" for a in words for b in words if a != b][:40]
    pool = [*texts, texts[0], texts[1], "a test row of its own"]
    tests = ["a test row of its own", *(f"{number * 7919} {word}s in a row" for number, word in enumerate(words[1:]))]
    for name, lines in (("pool", pool), ("test", tests)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    return write(tmp_path, tiny_base, server.url)


def write(folder: Path, base: Path, url: str, teacher: str = PRICE, more: str = "", task: str = "") -> Path:
    (folder / "recipe.yaml").write_text(
        f"""
name: planned
task: {{instruction: "Which colour?", labels: [red, green]{task}}}
data: {{pool: pool.jsonl, test: test.jsonl, dev_fraction: 0.2, seed: 1}}
teacher: {{kind: openai, model: scripted, base_url: "{url}", smoke_rows: 0, concurrency: 1, {teacher}}}
student: {{base: {base}}}
{more}
"""
    )
    return folder / "recipe.yaml"


def planned(recipe: Path) -> Estimate:
    return estimate(make_plan(recipe))


def annotated(recipe: Path) -> Any:
    (ledger, _), _ = run_annotate(make_plan(recipe), recipe.parent / "run" / "annotations", lambda *_: None)
    return ledger


def files(folder: Path) -> dict[str, bytes]:
    """All files below."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_plan_sends_nothing_and_leaves_nothing_behind(recipe: Path, server: ScriptedServer) -> None:
    before = files(recipe.parent)
    planned(recipe)
    assert (files(recipe.parent), server.calls) == (before, [])
    assert not (recipe.parent / "cache").exists()
    assert not (recipe.parent / "runs").exists()


def test_its_numbers_come_true(recipe: Path, server: ScriptedServer, tiny_base: Path) -> None:
    plan = planned(recipe)
    assert sum(plan.rows.values()) == 48 - plan.removed.get("near_dev", 0)
    assert set(plan.rows) == {"train", "dev", "test"}
    assert plan.removed["duplicate"] == 2
    assert plan.removed["in_test"] == 1
    assert (plan.requests, plan.known, plan.too_long, plan.corrected) == (sum(plan.rows.values()), 0, 0, 0)
    ledger = annotated(recipe)
    assert ledger.requests == plan.requests == len(server.calls)
    assert plan.prompt == server.calls[0].body["messages"]
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tiny_base / "tokenizer.json")).encode
    sent = [m["content"] for call in server.calls for m in call.body["messages"]]
    assert plan.prompt_tokens == sum(len(encode(text).ids) + 4 for text in sent)
    assert plan.completion_tokens == 48 * plan.requests
    usd = (plan.prompt_tokens * Decimal("0.15") + plan.completion_tokens * Decimal("0.60")) / 1_000_000
    assert plan.usd is not None
    assert plan.usd_at_most is not None
    assert Decimal(plan.usd) == usd
    assert Decimal(plan.usd_at_most) > usd
    assert Decimal(ledger.spent_usd) <= Decimal(plan.usd_at_most)
    assert f"about {_money(plan.usd)} USD" in plan.text
    known = planned(recipe)
    assert (known.requests, known.known, known.usd) == (0, plan.requests, "0")
    assert known.prompt == plan.prompt
    assert f"requests   none to send: {known.known} rows are known and cost nothing\ncaps" in known.text


def test_after_a_part_of_the_rows_the_rest_is_planned_with_what_is_known(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    whole = planned(recipe)
    answer = json_answer("red")
    answer.completion_tokens = 7
    server.script = lambda call: answer
    write(recipe.parent, tiny_base, server.url, more="budget: {requests: 25}")
    assert annotated(recipe).stopped is not None
    before = files(recipe.parent)
    rest = planned(recipe)
    assert files(recipe.parent) == before
    assert len(server.calls) == 25
    assert (rest.known, rest.requests) == (25, whole.requests - 25)
    assert rest.completion_tokens == 7 * rest.requests
    assert "out: 7 an answer, as in 25 known answers" in rest.basis
    assert any("budget.requests 25 is below" in note for note in rest.notes) is (rest.requests > 25)


def test_votes_and_second_askings_are_requests(recipe: Path, server: ScriptedServer, tiny_base: Path) -> None:
    extra = "logprobs: false, votes: 3, self_agreement_rows: 5"
    write(recipe.parent, tiny_base, server.url, extra)
    plan = planned(recipe)
    rows = sum(plan.rows.values())
    assert plan.requests == rows * (1 + 3) + 5
    assert annotated(recipe).requests == plan.requests == len(server.calls)
    assert planned(recipe).requests == 0


def test_votes_that_only_may_be_needed_are_noted_and_then_counted(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    write(recipe.parent, tiny_base, server.url, f"votes: 2, {PRICE}", "budget: {requests: 9}")
    first = planned(recipe)
    rows = sum(first.rows.values())
    assert first.requests == rows
    write(recipe.parent, tiny_base, server.url)
    assert Decimal(str(first.usd_at_most)) == 3 * Decimal(str(planned(recipe).usd_at_most)) > 0
    write(recipe.parent, tiny_base, server.url, f"votes: 2, {PRICE}", "budget: {requests: 9}")
    assert any(f"up to {2 * rows} votes more" in note for note in first.notes)
    annotated(recipe)  # the scripted server gives no log-probabilities: three requests a row
    second = planned(recipe)
    assert (second.known, second.requests) == (3, 3 * (rows - 3))
    assert not any("votes more" in note for note in second.notes)


def test_votes_wanted_after_a_run_without_them_are_counted(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    write(recipe.parent, tiny_base, server.url, more="budget: {requests: 5}")
    annotated(recipe)
    write(recipe.parent, tiny_base, server.url, "votes: 2")
    plan = planned(recipe)
    assert (plan.known, plan.requests) == (0, 5 * 2 + (sum(plan.rows.values()) - 5) * 3)


def test_what_the_endpoint_refused_before_is_not_planned_again(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    def picky(call: Call) -> Reply:
        refused = {"message": "logprobs is not supported"}
        return Status(400, refused) if "logprobs" in call.body else json_answer("red")

    server.script = picky
    write(recipe.parent, tiny_base, server.url, "votes: 2", "budget: {requests: 5}")
    annotated(recipe)
    rows = sum(planned(recipe).rows.values())
    assert planned(recipe).requests == 3 * rows - 4


def test_an_unknown_price_is_null_and_the_word_unknown(recipe: Path, tiny_base: Path, server: ScriptedServer) -> None:
    plan = planned(write(recipe.parent, tiny_base, server.url, "timeout_s: 5"))
    assert (plan.usd, plan.usd_at_most) == (None, None)
    assert "money      unknown" in plan.text
    assert "USD" not in plan.text


def test_rows_that_are_too_long_or_corrected_are_not_asked(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    plan = planned(recipe)
    pool = recipe.parent / "pool.jsonl"
    pool.write_text(pool.read_text() + json.dumps({"text": "green " * 600}) + "\n")
    texts = [json.loads(line)["text"] for line in pool.read_text().splitlines()]
    (recipe.parent / "mended.csv").write_text(f"text,label\n{texts[3]},green\n{texts[5]},red\n")
    text = write(recipe.parent, tiny_base, server.url).read_text()
    recipe.write_text(text.replace("seed: 1", "seed: 1, corrections: mended.csv"))
    less = planned(recipe)
    assert (less.too_long, less.corrected, less.requests) == (1, 2, plan.requests - 2)
    assert "1 too long, 2 corrected by hand" in less.text
    assert annotated(recipe).requests == less.requests == len(server.calls)


def test_a_label_only_teacher_is_assumed_to_say_less(recipe: Path, server: ScriptedServer, tiny_base: Path) -> None:
    plan = planned(write(recipe.parent, tiny_base, server.url, task=", rationale: false"))
    assert plan.completion_tokens == 12 * plan.requests


def test_notes_name_the_missing_licence_cap_and_what_was_hidden(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    assert [note.split(":")[0] for note in planned(recipe).notes] == [
        "teacher.license_note is missing",
        "no cap in budget",
    ]
    teacher = f"license_note: allowed, redact: ['tomato'], {PRICE}"
    capped = planned(write(recipe.parent, tiny_base, server.url, teacher, "budget: {usd: 0.0001, tokens: 10}"))
    hid, *caps = capped.notes
    assert hid.startswith("teacher.redact hid ")
    assert [note.split(" is below")[0] for note in caps] == ["budget.usd 0.0001", "budget.tokens 10"]
    assert "caps       0.0001 USD, 10 tokens" in capped.text
    assert "tomato" not in capped.text


def test_a_review_is_said_to_be_longer_than_what_is_counted(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    for revision, counted in (("review", False), ("teacher", True)):
        select = f"select: {{strategy: elad, rows: 8, revision: {revision}}}\n"
        recipe.write_text(text + select, encoding="utf-8")
        notes = " ".join(planned(recipe).notes)
        assert ("a review takes more" not in notes) == counted


def test_recorded_answers_are_looked_through_and_nothing_is_sent(tiny_recipe: Path) -> None:
    plan = planned(tiny_recipe)
    rows = sum(plan.rows.values())
    assert (plan.known, plan.requests, plan.usd, plan.prompt) == (rows, 0, "0", [])
    assert "nothing is sent" in plan.text
    assert "unknown" not in plan.text
    answers = tiny_recipe.parent / "teacher.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    first = json.loads((tiny_recipe.parent / "test.jsonl").read_text().splitlines()[0])["text"]
    kept = [line for line in lines if json.loads(line)["text"] != first]
    answers.write_text("".join(kept).replace('"label": "red"', '"label": "blue"', 1))
    worse = planned(tiny_recipe)
    assert worse.known == rows - 1
    assert "1 rows have no recorded answer and will be rejected" in worse.notes


def test_the_text_is_laid_out_for_people(recipe: Path, server: ScriptedServer) -> None:
    plan = planned(recipe)
    top, _, prompt = plan.text.partition("\n\n")
    keys = [line[:11].strip() for line in top.splitlines()]
    assert keys == [
        "rows",
        "not asked",
        "teacher",
        "requests",
        "tokens",
        "money",
        "caps",
        "student",
        "builds",
        "note",
        "note",
    ]
    assert f"scripted at 127.0.0.1:{server.port}" in top
    assert prompt.startswith("The first request:\n  [system]\n  Which colour?\n\n  Labels:\n  - red\n  - green\n")
    assert prompt.splitlines()[-2] == "  [user]"
    assert all(line == line.rstrip() for line in plan.text.splitlines())


@pytest.mark.parametrize(
    ("usd", "words"),
    [("0", "0.00"), ("12.341", "12.35"), ("1234.5", "1,234.50"), ("0.001234", "0.0013"), ("0.5", "0.50")],
)
def test_money_is_rounded_up_so_that_it_never_promises_too_little(usd: str, words: str) -> None:
    assert _money(usd) == words


def test_an_answer_without_usage_does_not_stand_in_the_mean(
    recipe: Path, server: ScriptedServer, tiny_base: Path
) -> None:
    server.script = lambda call: Answer('{"label": "red"}', usage=False)
    write(recipe.parent, tiny_base, server.url, more="budget: {requests: 25}")
    annotated(recipe)
    rest = planned(recipe)
    assert (rest.known, rest.completion_tokens) == (25, 48 * rest.requests)
