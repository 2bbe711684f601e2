"""The Batch API over real HTTP: what is bought once is kept, what is not answered is asked again, no cap is broken."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, BatchResult, Call, Raw, Reset, ScriptedServer, Status, batch_result, json_answer

from edgestill.distill.annotate import annotate, read_annotations
from edgestill.distill.dataset import Dataset, Row, row_id
from edgestill.distill.ledger import Ledger
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher import batch
from edgestill.distill.teacher.live import LiveTeacher
from edgestill.distill.teacher.open import open_teacher
from edgestill.distill.teacher.protocol import Annotation
from edgestill.runtime.errors import BudgetReached, EdgestillError, GateFailed

Json = dict[str, Any]
PROMPT, COMPLETION = 300, 7  # what every answer here takes
EACH = PROMPT + COMPLETION
TEXTS = [f"text {number}" for number in range(8)]
UPLOAD, CREATE = "POST /v1/files", "POST /v1/batches"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))


def red(_: Call) -> Answer:
    return said("red")


def said(label: str, **how: Any) -> Answer:
    return Answer(json_answer(label).content, prompt_tokens=PROMPT, completion_tokens=COMPLETION, **how)


class Server(ScriptedServer):
    """`before` and `after` are told "METHOD /path" of all but chat requests; a reply of theirs is sent instead."""

    before: Callable[[str], Status | Raw | None] = staticmethod(lambda asked: None)
    after: Callable[[str], Status | Raw | None] = staticmethod(lambda asked: None)

    def _other(self, method: str, path: str, query: str, body: bytes) -> Status | Raw:
        asked = f"{method} {path}"
        instead = self.before(asked)
        if instead is not None:
            return instead
        reply = super()._other(method, path, query, body)
        return self.after(asked) or reply

    @property
    def lines(self) -> list[list[Json]]:
        """What the remote batches were asked, batch by batch."""
        return [[json.loads(s) for s in self.uploads[b["input_file_id"]].splitlines()] for b in self.batches]

    @property
    def sizes(self) -> list[int]:
        return [len(lines) for lines in self.lines]

    @property
    def times(self) -> Counter[str]:
        """How many remote batches every text was in."""
        return Counter(text_of(line) for lines in self.lines for line in lines)


def text_of(line: Json) -> str:
    return str(line["body"]["messages"][1]["content"])


def at_most(line: Json) -> int:
    """The most tokens that a line may cost: UTF-8 bytes, 32 a message, the schema, and the answer."""
    body = line["body"]
    prompt = sum(len(m["content"].encode()) + 32 for m in body["messages"]) + len(json.dumps(body["response_format"]))
    return int(prompt + body["max_tokens"])


def a_recipe(url: str, budget: Json | None = None, **teacher: Any) -> Recipe:
    section = {"kind": "openai", "model": "m", "base_url": url, "mode": "batch", "smoke_rows": 1, "logprobs": False}
    section |= {"batch_poll_s": 0.01, "backoff_s": 0.01, "max_tokens": 64, "max_attempts": 4}
    section |= {"price_usd_per_mtok": {"input": 1, "output": 1}}
    task = {"instruction": "Which?", "labels": ["red", "green"]}
    return Recipe.model_validate(
        {"name": "n", "task": task, "data": {"pool": "p.jsonl"}, "teacher": section | teacher, "budget": budget or {}}
    )


@contextmanager
def a_teacher(url: str, folder: Path, texts: list[str], **how: Any) -> Iterator[tuple[Recipe, LiveTeacher, Dataset]]:
    recipe = a_recipe(url, **how)
    data = Dataset(tuple(Row(row_id(text), text, None, "train") for text in texts))
    teacher = open_teacher(recipe, Path("recipe.yaml"), folder, data.rows)
    assert isinstance(teacher, LiveTeacher)
    try:
        yield recipe, teacher, data
    finally:
        teacher.close()


def ask(
    url: str, folder: Path, texts: list[str] = TEXTS, fails: bool = False, **how: Any
) -> tuple[Ledger, EdgestillError | None]:
    """One `edgestill annotate`; unless it `fails`, nothing may be left open."""
    with a_teacher(url, folder, texts, **how) as (recipe, teacher, data):
        ledger, stopped = annotate(recipe, data, teacher, lambda text: True, folder)
    assert fails or stopped is None, stopped
    if not fails:
        assert states(folder)["open"] == 0
        assert read(folder, "select distinct state from batches") in ([], [("done",)])
        assert list(folder.glob("batch-*")) == []
    return ledger, stopped


def read(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "spend.sqlite")) as connection:
        return connection.execute(query).fetchall()


def states(folder: Path) -> Counter[str]:
    return Counter(state for (state,) in read(folder, "select state from attempts"))


def spent(folder: Path) -> int:
    return sum(
        count
        for (count,) in read(folder, "select prompt_tokens + completion_tokens from attempts where state != 'open'")
    )


def became(folder: Path) -> dict[str, str]:
    """Label, reason or "pending" by text."""
    return {
        row.text: "pending" if a is None else a.label if isinstance(a, Annotation) else a.reason
        for row, a in read_annotations(folder)
    }


def done(line: Json, status: int, body: Any, error: Json | None = None) -> Json:
    return {
        "id": "r",
        "custom_id": line["custom_id"],
        "response": {"status_code": status, "body": body},
        "error": error,
    }


def good(line: Json) -> Json:
    return batch_result([line], red).output[0]


# the whole way


def test_the_first_rows_go_online_and_all_others_in_one_batch(tmp_path: Path) -> None:
    with Server(red) as server:
        ledger, _ = ask(server.url, tmp_path / "a", smoke_rows=3)
    assert (len(server.calls), server.sizes) == (3, [5])
    assert (ledger.accepted, ledger.requests, ledger.worst_case, ledger.cached) == (8, 8, 0, 0)
    assert (ledger.prompt_tokens, ledger.completion_tokens) == (8 * PROMPT, 8 * COMPLETION)
    assert ledger.spent_usd is not None and Decimal(ledger.spent_usd) == Decimal(8 * EACH) / 1_000_000
    assert spent(tmp_path / "a") == 8 * EACH
    assert {call.body["model"] for call in server.calls} == {line["body"]["model"] for line in server.lines[0]}


@pytest.mark.parametrize(("name", "limit"), [("MAX_REQUESTS", 3), ("MAX_BYTES", 2600)])
def test_many_rows_take_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> None:
    monkeypatch.setattr(batch, name, limit)
    with Server(red) as server:
        ledger, _ = ask(server.url, tmp_path / "a")
    assert ledger.accepted == 8
    assert server.sizes == [3, 3, 1]
    assert all(len(file) <= 2600 for file in server.uploads.values())


def test_a_bad_smoke_gate_uploads_nothing(tmp_path: Path) -> None:
    with Server(lambda call: Answer("no idea")) as server:
        _, stopped = ask(server.url, tmp_path / "a", fails=True)
    assert isinstance(stopped, GateFailed)
    assert not server.uploads


def test_repairs_and_longer_answers_go_into_the_next_batch(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.body["messages"][1]["content"] == "text 3" and len(call.body["messages"]) == 2:
            return said("blue")
        if call.text == "text 4" and call.body["max_tokens"] == 64:
            return said("red", finish_reason="length")
        return said("green" if len(call.body["messages"]) > 2 or call.body["max_tokens"] > 64 else "red")

    with Server(script) as server:
        ledger, _ = ask(server.url, tmp_path / "a")
    assert server.sizes == [7, 2]
    assert (len(server.calls), ledger.requests, spent(tmp_path / "a")) == (1, 10, 10 * EACH)
    assert became(tmp_path / "a") == dict.fromkeys(TEXTS, "red") | {"text 3": "green", "text 4": "green"}


def test_the_second_asking_of_equal_requests_has_ids_of_its_own(tmp_path: Path) -> None:
    with Server(red) as server:
        ledger, _ = ask(server.url, tmp_path / "a", self_agreement_rows=8)
    assert ledger.requests == 16
    ids = [line["custom_id"] for lines in server.lines for line in lines]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("modes", [("online", "batch"), ("batch", "online")])
def test_what_one_mode_bought_the_other_does_not_ask_again(tmp_path: Path, modes: tuple[str, str]) -> None:
    with Server(red) as server:
        first, _ = ask(server.url, tmp_path / "first", mode=modes[0])
        calls, uploads = len(server.calls), len(server.uploads)
        second, _ = ask(server.url, tmp_path / "second", mode=modes[1])
        assert (len(server.calls), len(server.uploads)) == (calls, uploads)
    assert (first.requests, first.accepted, first.cached) == (8, 8, 0)
    assert (second.requests, second.accepted, second.cached, second.spent_usd) == (0, 8, 8, "0")


# what comes back


def test_lines_are_matched_by_custom_id_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "WRITTEN_AT_ONCE", 3)

    def script(lines: list[Json]) -> BatchResult:
        colours = {"text 1": "green", "text 2": "red"}
        output = [batch_result([line], lambda call: said(colours.get(call.text, "red"))).output[0] for line in lines]
        wrong = batch_result(lines, lambda call: said("green")).output  # said later: the first counts
        wrong = batch_result(lines, lambda call: said("green")).output  # said later: the first counts
        strangers = [{**wrong[0], "custom_id": "somebody else's"}, {"no": "custom_id"}]
        return BatchResult([*strangers, *output[::-1], *wrong, *output], wrong)

    with Server(red, batch_script=script) as server:
        ledger, _ = ask(server.url, tmp_path / "a")
    assert server.sizes == [7]
    assert became(tmp_path / "a") == dict.fromkeys(TEXTS, "red") | {"text 1": "green"}
    assert (ledger.requests, ledger.worst_case, spent(tmp_path / "a")) == (8, 0, 8 * EACH)


@pytest.mark.parametrize(
    "torn", [b'{"id": "r", "custom_id": "ab', b"\xff\xfe", b"[]", b'{"custom_id": "KEY", "response": 3}']
)
def test_a_torn_line_is_paid_for_and_its_request_asked_again(tmp_path: Path, torn: bytes) -> None:
    def tear(asked: str) -> Raw | None:
        if not re.search("batch_0-output/content", asked):
            return None
        first, _, *rest = server.outputs["file-batch_0-output"].splitlines()
        broken = torn.replace(b"KEY", json.loads(first)["custom_id"].encode())
        return Raw(200, b"\n\n".join([*rest, broken]))

    texts = [text + " and more" * (text == "text 2") for text in TEXTS]
    with Server(red) as server:
        server.after = tear
        ledger, _ = ask(server.url, tmp_path / "a", texts)
    assert (ledger.accepted, ledger.worst_case, server.sizes) == (8, 1, [7, 2])  # the other one has no line at all
    assert spent(tmp_path / "a") == 8 * EACH + max(map(at_most, server.lines[1]))


def test_what_is_no_success_is_tried_in_three_batches_and_then_rejected(tmp_path: Path) -> None:
    bad: dict[str, Callable[[Json], Json]] = {
        "text 1": lambda line: done(line, 400, {"error": {"message": "bad"}}),  # `error` of the line is null
        "text 2": lambda line: done(line, 200, {"choices": []}),
        "text 3": lambda line: done(line, 200, None),
        "text 4": lambda line: done(line, 429, {"error": {"message": "slow down"}}),
        "text 5": lambda line: done(line, 500, "<html>"),
        "text 6": lambda line: done(line, 400, {"error": {"message": "no", "code": "content_filter"}}),
    }

    def script(lines: list[Json]) -> BatchResult:
        found = [bad.get(text_of(line), good)(line) for line in lines]
        in_errors = [one for one in found if one["response"]["status_code"] in (429, 500)]
        return BatchResult([one for one in found if one not in in_errors], in_errors)

    with Server(red, batch_script=script) as server:
        ledger, _ = ask(server.url, tmp_path / "a")
        given_up = {f"text {number}": "endpoint_error" for number in range(1, 6)}
        assert became(tmp_path / "a") == {"text 0": "red", "text 7": "red", "text 6": "content_filter"} | given_up
        assert server.times == dict.fromkeys(given_up, batch.MAX_ROUNDS) | {"text 6": 1, "text 7": 1}
        assert len(server.batches) == batch.MAX_ROUNDS
        assert ledger.worst_case == 2 * batch.MAX_ROUNDS + 1  # a body that says nothing was billed all the same
        assert ledger.requests == 1 + 7 + 5 + 5
        bad.clear()
        ledger, _ = ask(server.url, tmp_path / "a")  # what failed for good is tried again by the next run
    assert became(tmp_path / "a") == dict.fromkeys(TEXTS, "red") | {"text 6": "content_filter"}


def test_a_request_that_failed_once_is_bought_in_the_next_batch(tmp_path: Path) -> None:
    def script(lines: list[Json]) -> BatchResult:
        failing = lambda call: Status(503) if len(server.batches) == 0 and call.text in TEXTS[3:6] else red(call)  # noqa: E731
        return batch_result(lines, failing)

    with Server(red, batch_script=script) as server:
        ledger, _ = ask(server.url, tmp_path / "a")
    assert (server.sizes, ledger.accepted, spent(tmp_path / "a")) == ([7, 3], 8, 8 * EACH)


def test_an_expired_batch_keeps_its_answers_and_only_the_rest_is_asked_again(tmp_path: Path) -> None:
    def script(lines: list[Json]) -> BatchResult:
        if len(server.batches):
            return batch_result(lines, red)
        partial = batch_result(lines[:4], lambda call: red(call) if call.text in TEXTS[:4] else Reset())
        return BatchResult(partial.output, partial.errors, "expired")  # of some there is no line at all

    with Server(red, batch_script=script) as server:
        ledger, _ = ask(server.url, tmp_path / "a")
    assert server.times == {text: 1 if text in TEXTS[1:4] else 2 for text in TEXTS[1:]}
    assert (ledger.accepted, ledger.worst_case, spent(tmp_path / "a")) == (8, 0, 8 * EACH)


def test_a_line_that_says_no_credit_stops_the_run_after_all_lines_are_kept(tmp_path: Path) -> None:
    broke = Status(429, {"message": "no money", "code": "insufficient_quota"})

    def script(lines: list[Json]) -> BatchResult:
        return batch_result(
            lines, lambda call: broke if len(server.batches) == 0 and call.text in TEXTS[:4] else red(call)
        )

    with Server(red, batch_script=script) as server:
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True)
        assert "no money" in str(stopped)
        assert (ledger.accepted, ledger.pending, states(tmp_path / "a")["open"]) == (5, 3, 0)
        ledger, _ = ask(server.url, tmp_path / "a")
    assert (server.sizes, ledger.accepted, spent(tmp_path / "a")) == ([7, 3], 8, 8 * EACH)


def test_answers_that_the_endpoint_has_no_more_count_at_their_worst_case(tmp_path: Path) -> None:
    with Server(red) as server:
        server.before = lambda asked: Status(404) if "batch_0-output/content" in asked else None
        ledger, _ = ask(server.url, tmp_path / "a")
    assert (ledger.accepted, ledger.worst_case, server.sizes) == (8, 7, [7, 7])
    assert spent(tmp_path / "a") == 8 * EACH + sum(map(at_most, server.lines[0]))


# a batch that comes to nothing


def test_a_batch_that_fails_its_validation_stops_the_run_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    def script(lines: list[Json]) -> BatchResult:
        return BatchResult([], [], "failed") if len(server.batches) == 0 else batch_result(lines, red)

    def explain(_: str) -> None:
        for one in server.batches[:1]:
            one["errors"] = {"object": "list", "data": [{"code": "x", "message": "no\nmodel m for sk-secret"}]}

    with Server(red, batch_script=script) as server:
        server.before = explain  # type: ignore[assignment]
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True, budget={"requests": 8})
        assert "refused the batch: no model m for [key]" in str(stopped) and "\n" not in str(stopped)
        assert (ledger.pending, ledger.requests, spent(tmp_path / "a")) == (7, 1, EACH)
        ledger, _ = ask(server.url, tmp_path / "a", budget={"requests": 8})
    assert (ledger.accepted, ledger.requests, spent(tmp_path / "a")) == (8, 8, 8 * EACH)


def test_a_batch_that_somebody_cancelled_stops_the_run_with_what_there_is(tmp_path: Path) -> None:
    def script(lines: list[Json]) -> BatchResult:
        return batch_result(lines, red) if len(server.batches) else BatchResult([good(lines[0])], [], "cancelled")

    with Server(red, batch_script=script) as server:
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True)
        assert "cancelled" in str(stopped)
        assert (ledger.accepted, ledger.pending, len(server.batches)) == (2, 6, 1)
        ledger, _ = ask(server.url, tmp_path / "a")
    assert (ledger.accepted, server.sizes, spent(tmp_path / "a")) == (8, [7, 6], 8 * EACH)


@pytest.mark.parametrize(("asked", "code"), [(UPLOAD, 404), (UPLOAD, 500), (CREATE, 400), (CREATE, 401)])
def test_a_refused_call_leaves_nothing_reserved(tmp_path: Path, asked: str, code: int) -> None:
    with Server(red) as server:
        server.before = lambda path: Status(code, {"message": "not here"}) if path == asked else None
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True, budget={"requests": 8})
        assert "not here" in str(stopped) and ("goes on" if code == 500 else "mode: online") in str(stopped)
        assert (ledger.requests, states(tmp_path / "a")) == (1, {"settled": 1})
        ledger, _ = ask(server.url, tmp_path / "a", mode="online", budget={"requests": 8})
    assert ledger.accepted == 8


# faults of the calls


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/files/file-batch_0-output", "/v1/batches/batch_0"])
def test_faults_of_the_batch_api_are_ridden_out(tmp_path: Path, path: str) -> None:
    with Server(red, fail_paths={path: 3}) as server:
        ledger, _ = ask(server.url, tmp_path / "a", max_attempts=5)
        assert set(server.fail_paths.values()) == {0}
    assert (server.sizes, ledger.accepted, spent(tmp_path / "a")) == ([7], 8, 8 * EACH)


def test_a_create_that_worked_but_was_not_answered_is_found_again(tmp_path: Path) -> None:
    with Server(red) as server:
        server.after = lambda asked: Status(502) if asked == CREATE else None
        ledger, _ = ask(server.url, tmp_path / "a")
    assert (server.sizes, ledger.accepted, ledger.worst_case) == ([7], 8, 0)


@pytest.mark.parametrize("lookup", [Status(401), Raw(200, b'{"object": "list", "data": [], "has_more": false}')])
def test_a_create_of_unknown_outcome_stays_reserved(tmp_path: Path, lookup: Status | Raw) -> None:
    codes = {CREATE: [Status(502), Status(400)], "GET /v1/batches": [lookup]}
    with Server(red) as server:
        server.after = lambda asked: codes[asked].pop(0) if codes.get(asked) else None
        server.before = lambda asked: Status(400) if asked == CREATE and len(server.batches) else None
        _, stopped = ask(server.url, tmp_path / "a", fails=True)
        assert stopped is not None and states(tmp_path / "a")["open"] == 7
        ledger, _ = ask(server.url, tmp_path / "a")
    assert (server.sizes, ledger.accepted, ledger.requests) == ([7], 8, 8)


def test_a_batch_is_found_on_a_later_page(tmp_path: Path) -> None:
    with Server(red) as server:
        server.after = lambda asked: Status(500) if asked in (CREATE, "GET /v1/batches") else None
        _, stopped = ask(server.url, tmp_path / "a", fails=True)
        assert stopped is not None and len(server.batches) == 1
        server.after = lambda asked: None
        strange = {**server.batches[0], "metadata": None, "status": "completed"}
        server.batches += [{**strange, "id": f"other-{number}"} for number in range(150)]
        ledger, _ = ask(server.url, tmp_path / "a")
    assert len(server.batches) == 151
    assert (ledger.accepted, ledger.requests) == (8, 8)


# the cap


@pytest.mark.parametrize("kind", ["tokens", "usd"])
def test_a_batch_takes_as_many_lines_as_fit_at_their_worst_case(tmp_path: Path, kind: str) -> None:
    cap = 0
    expected: list[int] = []

    def script(lines: list[Json]) -> BatchResult:
        bound = at_most(lines[0])
        if not expected:  # all lines are as long: what is left decides how many go
            left, rows = cap - EACH, len(TEXTS) - 1
            while (count := min(left // bound, rows)) > 0:
                expected.append(count)
                left, rows = left - count * EACH, rows - count
        return batch_result(lines, red)

    def budget(tokens: int) -> Json:
        return {"tokens": tokens} if kind == "tokens" else {"usd": Decimal(tokens) / 1_000_000}

    with Server(red, batch_script=script) as server:
        cap = 2600
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True, budget=budget(cap))
        assert isinstance(stopped, BudgetReached) and stopped.exit_code == 4 and f"budget.{kind}" in str(stopped)
        assert server.sizes == expected and len(expected) > 1
        assert spent(tmp_path / "a") == EACH * (1 + sum(expected)) == ledger.accepted * EACH <= cap
        assert (ledger.pending, states(tmp_path / "a")["open"]) == (7 - sum(expected), 0)
        assert ledger.pending > 0
        ledger, _ = ask(server.url, tmp_path / "a", budget=budget(10_000))
    assert (ledger.accepted, set(server.times.values()), spent(tmp_path / "a")) == (8, {1}, 8 * EACH)


def test_a_cap_on_requests_counts_lines(tmp_path: Path) -> None:
    with Server(red) as server:
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True, budget={"requests": 5})
        assert isinstance(stopped, BudgetReached)
        assert (server.sizes, ledger.requests, ledger.accepted, ledger.pending) == ([4], 5, 5, 3)
        ledger, _ = ask(server.url, tmp_path / "a", budget={"requests": 8})
    assert (server.sizes, ledger.requests, ledger.accepted) == ([4, 3], 8, 8)


def test_lines_that_are_still_out_stay_reserved_after_a_restart(tmp_path: Path) -> None:
    with Server(red, fail_paths={"/v1/batches/": 99}) as server:
        _, stopped = ask(server.url, tmp_path / "a", fails=True, max_attempts=2)
        assert stopped is not None and "goes on" in str(stopped)
        with a_teacher(server.url, tmp_path / "a", TEXTS) as (_, teacher, _):
            reserved, spent_now = teacher.budget.reserved, teacher.budget.spent
            assert (teacher.budget.in_flight, teacher.budget.requests) == (7, 8)
            assert reserved.prompt + reserved.completion == sum(map(at_most, server.lines[0]))
            assert (spent_now.prompt, spent_now.completion) == (PROMPT, COMPLETION)
            assert teacher.spending().worst_case == 0
        server.fail_paths.clear()
        server.before = lambda asked: Status(400) if asked == "GET /v1/batches" else None  # its id is known
        ledger, _ = ask(server.url, tmp_path / "a", budget={"requests": 8})
    assert (server.sizes, ledger.accepted, spent(tmp_path / "a")) == ([7], 8, 8 * EACH)


def test_an_endpoint_that_bills_more_than_possible_is_asked_no_more(tmp_path: Path) -> None:
    def script(lines: list[Json]) -> BatchResult:
        result = batch_result(lines, red)
        result.output[0]["response"]["body"]["usage"]["completion_tokens"] = 65
        return BatchResult(result.output[:3], [], "expired")

    with Server(red, batch_script=script) as server:
        ledger, stopped = ask(server.url, tmp_path / "a", fails=True, budget={"tokens": 100_000})
    assert "no cap can be promised" in str(stopped)
    assert (server.sizes, ledger.accepted) == ([7], 4)


# a killed process

KILLED_AT = {
    "reserved, not uploaded": ("before", UPLOAD),
    "uploaded, no batch": ("before", CREATE),
    "batch made, not recorded": ("after", CREATE),
    "while polling": ("after", "GET /v1/batches/batch_0"),
    "before the answers": ("before", "GET /v1/files/file-batch_0-output/content"),
    "after the answers": ("before", "GET /v1/files/file-batch_0-error/content"),
}


@pytest.mark.parametrize(("when", "asked"), KILLED_AT.values(), ids=KILLED_AT)
def test_a_killed_run_goes_on_and_buys_nothing_twice(tmp_path: Path, when: str, asked: str) -> None:
    filtered = Status(400, {"message": "filtered", "code": "content_filter"})
    folder, budget = tmp_path / "a", {"requests": 8}
    with Server(lambda call: filtered if call.text == "text 5" else red(call)) as server:
        paths = [str(Path(sys.modules[ScriptedServer.__module__].__file__ or "").parent), *sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        child = subprocess.Popen([sys.executable, __file__, server.url, str(folder)], env=environment)

        def kill(path: str) -> Status | None:
            if path != asked or child.poll() is not None:
                return None
            child.kill()
            child.wait()
            return Status(500)

        setattr(server, when, kill)
        assert child.wait(60) == -signal.SIGKILL
        assert read(folder, "select count(*) from batches where state = 'open'") == [(1,)]
        ledger, _ = ask(server.url, folder, budget=budget)
    assert became(folder) == dict.fromkeys(TEXTS, "red") | {"text 5": "content_filter"}
    assert server.times == dict.fromkeys(TEXTS[1:], 1)
    assert (len(server.calls), len(server.batches)) == (1, 1)
    assert len(server.uploads) == (2 if (when, asked) == ("before", CREATE) else 1)
    assert (ledger.requests, ledger.worst_case) == (8, 1)  # a filtered prompt may be billed
    assert spent(folder) > 7 * EACH


def test_a_batch_whose_file_is_gone_before_it_was_sent_is_asked_anew(tmp_path: Path) -> None:
    with Server(red, fail_paths={"/v1/batches": 99}) as server:
        ask(server.url, tmp_path / "a", fails=True, max_attempts=2)
        server.fail_paths.clear()
        (file,) = (tmp_path / "a").glob("batch-*.jsonl")
        file.unlink()
        ledger, _ = ask(server.url, tmp_path / "a", budget={"requests": 8})
    assert (server.sizes, ledger.accepted, ledger.requests) == ([7], 8, 8)


def test_files_that_belong_to_no_batch_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    orphan, half, own = f"batch-{'a' * 32}.jsonl", f"batch-{'b' * 32}.jsonl.partial", "batch-notes.jsonl"
    for name in (orphan, half, own):
        (folder / name).write_text("{}\n", encoding="utf-8")
    with Server(red) as server, a_teacher(server.url, folder, TEXTS) as (recipe, teacher, data):
        assert annotate(recipe, data, teacher, lambda text: True, folder)[1] is None
    assert [path.name for path in folder.glob("batch-*")] == [own]


if __name__ == "__main__":
    ask(sys.argv[1], Path(sys.argv[2]), budget={"requests": 8})
