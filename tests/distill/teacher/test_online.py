"""Asking online: every fault has its row in the ledger and its line in the bill, and nothing is asked for twice."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from scripted_server import Answer, Call, Drip, Half, Hang, Raw, Reset, ScriptedServer, Status, json_answer

from edgestill.distill.teacher.protocol import Annotation, Rejection
from edgestill.runtime.errors import BudgetReached, EdgestillError, GateFailed

Serve = Callable[..., ScriptedServer]
TEXTS = [f"text {i}" for i in range(24)]


def first_then(first: Any, times: int = 1, then: Any = None) -> Callable[[Call], Any]:
    """A script: each text gets `first` so many times, and a good answer after."""
    seen: Counter[str] = Counter()

    def script(call: Call) -> Any:
        seen[call.body["messages"][1]["content"]] += 1
        reply = then or json_answer("red")
        return first if seen[call.body["messages"][1]["content"]] <= times else reply

    return script


def test_every_row_is_asked_once_and_the_second_time_never(asking: Any, serve: Serve) -> None:
    server = serve()
    first = asking.ask(TEXTS)
    assert (first.accepted, first.requests, first.cached, len(server.calls)) == (24, 24, 0, 24)
    assert asking.ask(TEXTS).requests == 24
    assert len(server.calls) == 24
    found = asking.answers()["text 3"]
    assert (found.label, found.rationale, found.raw) == ("red", "because", '{"rationale": "because", "label": "red"}')
    assert found.latency_ms is not None


def test_one_added_row_costs_one_call_a_changed_temperature_all_and_a_changed_price_none(
    asking: Any, serve: Serve
) -> None:
    server = serve()
    asking.ask(TEXTS)
    asking.ask([*TEXTS, "one more"])
    assert len(server.calls) == 25
    asking.teacher["price_usd_per_mtok"] = {"input": "3", "output": "9"}
    cheap, dear = Decimal(asking.ask(TEXTS).spent_usd or 0), 24
    assert len(server.calls) == 25
    assert cheap > 0
    asking.teacher["temperature"] = 0.5
    assert asking.ask(TEXTS).requests == 25 + dear
    assert len(server.calls) == 25 + 24


def test_another_run_takes_the_answers_from_the_cache_and_pays_nothing(asking: Any, serve: Serve) -> None:
    server = serve()
    asking.ask(TEXTS)
    asking.folder = asking.folder.parent / "another"
    ledger = asking.ask(TEXTS)
    assert (ledger.accepted, ledger.requests, ledger.cached, ledger.spent_usd) == (24, 0, 24, "0")
    assert ledger.recorded_usd is not None
    assert Decimal(ledger.recorded_usd) > 0
    assert len(server.calls) == 24


def test_the_bill_is_exact_to_the_token(asking: Any, serve: Serve) -> None:
    serve(lambda call: Answer('{"rationale": "r", "label": "red"}', prompt_tokens=101, completion_tokens=7))
    ledger = asking.ask(TEXTS)
    each = (101 * Decimal("0.15") + 7 * Decimal("0.60")) / 1_000_000
    assert ledger.spent_usd is not None
    assert Decimal(ledger.spent_usd) == 24 * each
    assert {k: Decimal(v) for k, v in (ledger.spent_usd_by_split or {}).items()} == dict.fromkeys(
        ("train", "dev", "test"), 8 * each
    )
    assert (ledger.prompt_tokens, ledger.completion_tokens, ledger.worst_case) == (24 * 101, 24 * 7, 0)
    asking.teacher["price_usd_per_mtok"] = None
    assert asking.ask(TEXTS).spent_usd is None


TRANSIENT = {
    "429 without Retry-After": (Status(429), "free"),
    "429 with Retry-After": (Status(429, headers={"retry-after": "0.05"}), "free"),
    "500": (Status(500), "free"),
    "503": (Status(503), "free"),
    "504 of a gateway": (Status(504), "worst"),
    "a reset": (Reset(), "worst"),
    "half a body": (Half('{"rationale": "r", "label": "red"}'), "worst"),
    "a body that is no JSON": (Raw(200, b"<html>busy</html>"), "worst"),
    "JSON that is no completion": (Raw(200, b'{"choices": []}'), "worst"),
    "content that is no text": (Raw(200, b'{"choices": [{"message": {"content": [1]}}]}'), "worst"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_transient_fault_is_tried_again_and_billed_for_what_it_may_have_cost(
    asking: Any, serve: Serve, name: str
) -> None:
    fault, state = TRANSIENT[name]
    server = serve(first_then(fault, 2))
    ledger = asking.ask(TEXTS[:6])
    assert (ledger.accepted, ledger.requests, len(server.calls)) == (6, 18, 18)
    assert ledger.worst_case == (12 if state == "worst" else 0)
    assert ledger.spent_usd is not None
    assert ledger.recorded_usd is not None
    assert (Decimal(ledger.spent_usd) > Decimal(ledger.recorded_usd)) == (state == "worst")


@pytest.mark.parametrize("reply", [Hang(), Drip('{"rationale": "r", "label": "red"}', 0.05)], ids=["silence", "drip"])
def test_a_slow_answer_ends_at_the_time_limit_and_counts_at_its_worst_case(
    asking: Any, serve: Serve, reply: Any
) -> None:
    serve(first_then(reply))
    asking.teacher["timeout_s"] = 0.5
    start = time.monotonic()
    ledger = asking.ask(TEXTS[:3])
    assert (ledger.accepted, ledger.worst_case) == (3, 3)
    assert time.monotonic() - start < 4


def test_retry_after_holds_all_requests_back(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Status(429, headers={"retry-after": "0.6"}) if call.number == 3 else json_answer("red"))
    asking.teacher["concurrency"] = 2
    assert asking.ask(TEXTS).accepted == 24
    gaps = [b.at - a.at for a, b in zip(server.calls, server.calls[1:], strict=False)]
    assert max(gaps) >= 0.55
    assert sorted(gaps)[-2] < 0.3


def test_a_fault_that_stays_rejects_the_row_and_the_next_run_asks_only_it_again(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Status(500) if call.text == "text 5" else json_answer("green"))
    asking.teacher["max_attempts"] = 3
    ledger = asking.ask(TEXTS)
    assert (ledger.accepted, ledger.rejected, ledger.pending) == (23, {"endpoint_error": 1}, 0)
    assert Counter(call.text for call in server.calls)["text 5"] == 3
    assert "HTTP 500" in asking.answers()["text 5"].detail
    assert ledger.unfinished == 1
    asked = len(server.calls)
    server.script = lambda call: json_answer("green")
    assert asking.ask(TEXTS).accepted == 24
    assert len(server.calls) == asked + 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_an_error_that_no_retry_mends_stops_at_once_and_leaves_the_rest_pending(
    asking: Any, serve: Serve, status: int
) -> None:
    server = serve(lambda call: Status(status) if call.number >= 4 else json_answer("red"))
    asking.teacher["concurrency"] = 2
    ledger = asking.ask(TEXTS)
    assert isinstance(asking.stopped, EdgestillError)
    assert f"HTTP {status}" in str(asking.stopped)
    assert len(server.calls) <= 7
    assert ledger.pending == 24 - ledger.accepted == 20
    assert ledger.worst_case == 0


def test_an_empty_account_stops_although_it_is_said_with_429(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Status(429, {"message": "no credit", "code": "insufficient_quota"}))
    asking.ask(TEXTS)
    assert len(server.calls) == 1
    assert "no credit" in str(asking.stopped)


def test_an_endpoint_that_is_down_stops_after_some_rows_and_the_same_call_goes_on(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Status(503))
    asking.teacher["max_attempts"] = 2
    ledger = asking.ask([f"text {i}" for i in range(200)])
    assert "failed 20 requests in a row" in str(asking.stopped)
    assert ledger.pending >= 150
    server.script = lambda call: json_answer("red")
    assert asking.ask([f"text {i}" for i in range(200)]).accepted == 200


REJECTED = {
    "truncated": Answer('{"rationale": "it goes on and', finish_reason="length"),
    "refused": Answer(None, refusal="I will not"),
    "empty": Answer(""),
    "reasoning_used_budget": Answer("", finish_reason="length", reasoning_tokens=500),
    "unparsable": Answer("well, it depends"),
    "label_not_allowed": Answer('{"rationale": "r", "label": "purple"}'),
    "content_filter": Answer("", finish_reason="content_filter"),
}
CALLS_UNTIL_REJECTED = {"truncated": 2, "reasoning_used_budget": 2, "unparsable": 2, "label_not_allowed": 2}


@pytest.mark.parametrize("reason", REJECTED)
def test_an_unusable_answer_is_rejected_with_its_reason_after_at_most_one_more_try(
    asking: Any, serve: Serve, reason: str
) -> None:
    server = serve(lambda call: REJECTED[reason] if "text 0" in str(call.body["messages"]) else json_answer("red"))
    ledger = asking.ask(TEXTS[:3])
    assert (ledger.accepted, ledger.rejected) == (2, {reason: 1})
    calls = [call for call in server.calls if call.body["messages"][1]["content"] == "text 0"]
    assert len(calls) == CALLS_UNTIL_REJECTED.get(reason, 1)
    assert isinstance(asking.answers()["text 0"], Rejection)
    assert asking.answers()["text 0"].prompt_tokens > 0
    asking.ask(TEXTS[:3])
    assert len(server.calls) == 2 + len(calls)


def test_a_filtered_prompt_is_rejected_and_never_asked_again(asking: Any, serve: Serve) -> None:
    refusal = Status(400, {"message": "the prompt triggered the filter", "code": "content_filter"})
    server = serve(lambda call: refusal if call.text == "text 1" else json_answer("red"))
    assert asking.ask(TEXTS[:4]).rejected == {"content_filter": 1}
    assert asking.ask(TEXTS[:4]).worst_case == 1  # some endpoints bill a prompt that they filtered
    assert len(server.calls) == 4


def test_a_prompt_too_long_for_the_teacher_is_rejected_as_too_long(asking: Any, serve: Serve) -> None:
    refusal = Status(400, {"message": "maximum context length is 10", "code": "context_length_exceeded"})
    serve(lambda call: refusal if call.text == "text 1" else json_answer("red"))
    assert asking.ask(TEXTS[:4]).rejected == {"too_long": 1}


def test_a_cut_off_answer_gets_room_once_and_an_unreadable_one_a_repair(asking: Any, serve: Serve) -> None:
    server = serve(first_then(REJECTED["truncated"]))
    assert asking.ask(["one"]).accepted == 1
    assert [call.body["max_tokens"] for call in server.calls] == [512, 2048]
    server = serve(first_then(REJECTED["label_not_allowed"]))
    assert asking.ask(["two"]).accepted == 1
    roles = [message["role"] for message in server.calls[1].body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert "'purple'" in server.calls[1].text
    found = asking.answers()["two"]
    assert found.requests == 2
    assert found.prompt_tokens == sum(sum(len(m["content"]) for m in c.body["messages"]) // 4 + 4 for c in server.calls)


def refusing(*words: str) -> Callable[[Call], Any]:
    """An endpoint that answers 400 as long as its request holds one of some fields."""

    def script(call: Call) -> Any:
        for word in words:
            field, _, value = word.partition("=")
            if field in call.body and (not value or value in json.dumps(call.body[field])):
                return Status(400, {"message": f"unsupported: {field} {value}", "code": None})
        return json_answer("deep blue")

    return script


@pytest.mark.parametrize(
    ("words", "left", "tried"),
    [
        (("response_format=json_schema",), {"response_format", "logprobs", "max_tokens", "temperature"}, 1),
        (("response_format",), {"logprobs", "max_tokens", "temperature"}, 2),
        (("logprobs",), {"response_format", "max_tokens", "temperature"}, 1),
        (("temperature", "response_format"), {"logprobs", "max_tokens"}, 3),
    ],
)
def test_what_an_endpoint_does_not_know_is_left_out_and_remembered(
    asking: Any, serve: Serve, words: tuple[str, ...], left: set[str], tried: int
) -> None:
    server = serve(refusing(*words))
    ledger = asking.ask(TEXTS[:5])
    assert (ledger.accepted, len(server.calls)) == (5, 5 + tried)
    assert set(server.calls[-1].body) - {"model", "messages", "top_logprobs"} == left
    asking.ask(TEXTS[:7])
    assert len(server.calls) == 7 + tried


def test_a_reasoning_model_is_asked_with_its_name_for_the_limit(asking: Any, serve: Serve) -> None:
    words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server = serve(lambda c: Status(400, {"message": words}) if "max_tokens" in c.body else json_answer("red"))
    assert asking.ask(TEXTS[:3]).accepted == 3
    assert server.calls[-1].body["max_completion_tokens"] == 512


def test_a_format_that_the_recipe_names_is_not_dropped(asking: Any, serve: Serve) -> None:
    serve(refusing("response_format"))
    asking.teacher |= {"answer_format": "json_schema"}
    ledger = asking.ask(TEXTS[:3])
    assert ledger.rejected == {"endpoint_error": 3}
    assert "response_format" in asking.answers()["text 0"].detail


def test_the_schema_allows_the_labels_only_and_keeps_the_order_of_the_recipe(asking: Any, serve: Serve) -> None:
    server = serve()
    asking.ask(["one"])
    schema = server.calls[0].body["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["rationale", "label"]
    assert schema["properties"]["label"]["enum"] == ["red", "green", "deep blue"]
    asking.teacher["rationale_order"] = "after"
    asking.ask(["one"])
    assert list(server.calls[1].body["response_format"]["json_schema"]["schema"]["properties"]) == [
        "label",
        "rationale",
    ]
    asking.task["rationale"] = False
    asking.ask(["one"])
    assert list(server.calls[2].body["response_format"]["json_schema"]["schema"]["properties"]) == ["label"]


def test_the_key_is_sent_and_is_nowhere_on_disk_or_in_a_message(
    asking: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", secret)
    asking.teacher["key_env"] = "MY_KEY"
    asking.teacher["max_attempts"] = 2

    def script(call: Call) -> Any:
        if call.number < 3:
            return Status(500, {"message": f"the key {call.headers['authorization']} confused me"})
        return Status(401, {"message": f"wrong key {secret}"}) if call.number > 5 else json_answer("red")

    server = serve(script)
    asking.ask(TEXTS)
    assert server.calls[0].headers["authorization"] == f"Bearer {secret}"
    assert secret not in str(asking.stopped)
    for root in (asking.folder, asking.folder.parent / "cache"):
        for path in root.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def test_the_smoke_gate_stops_before_the_rest_is_paid_for(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Answer("no idea"))
    asking.teacher["smoke_rows"] = 4
    ledger = asking.ask(TEXTS)
    assert isinstance(asking.stopped, GateFailed)
    assert "0 of the first 4 rows" in str(asking.stopped)
    assert (ledger.pending, ledger.rejected, len(server.calls)) == (20, {"unparsable": 4}, 8)
    server = serve(lambda call: Answer("no idea") if "text 0" in str(call.body) else json_answer("red"))
    asking.folder = asking.folder.parent / "another"
    assert asking.ask(TEXTS).accepted == 23


def test_votes_give_probabilities_where_there_are_no_log_probabilities(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: json_answer("green" if call.body["temperature"] == 0.7 and call.number % 4 else "red"))
    asking.teacher |= {"votes": 4, "concurrency": 1}
    ledger = asking.ask(["one", "two"])
    assert len(server.calls) == 10
    assert ledger.requests == 10
    found = asking.answers()["one"]
    assert found.label == "red"
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probabilities["green"] == 0.75
    assert found.extra_prompt_tokens > found.prompt_tokens
    asking.ask(["one", "two"])
    assert len(server.calls) == 10


def test_log_probabilities_are_taken_instead_of_votes(asking: Any, serve: Serve) -> None:
    def token(text: str, p: float, others: dict[str, float]) -> dict[str, Any]:
        top = [{"token": t, "logprob": -q} for t, q in {text: p, **others}.items()]
        return {"token": text, "logprob": -p, "top_logprobs": top}

    tokens = [token('{"label": "', 0.0, {}), token("red", 0.2231, {"green": 1.6094}), token('"}', 0.0, {})]
    server = serve(lambda call: Answer('{"label": "red"}', logprobs={"content": tokens}))
    asking.teacher["votes"] = 3
    asking.ask(["one"])
    assert len(server.calls) == 1
    found = asking.answers()["one"]
    assert found.probabilities["red"] == pytest.approx(0.8, abs=1e-3)
    assert found.probabilities["green"] == pytest.approx(0.2, abs=1e-3)


def test_a_teacher_that_contradicts_itself_has_a_measured_ceiling(asking: Any, serve: Serve) -> None:
    seen: Counter[str] = Counter()

    def script(call: Call) -> Answer:
        seen[call.text] += 1
        changes = int(call.text.split()[1]) % 2 == 0
        return json_answer("green" if changes and seen[call.text] == 2 else "red")

    server = serve(script)
    asking.teacher["self_agreement_rows"] = 12
    ledger = asking.ask(TEXTS)
    assert len(server.calls) == 36
    twice = {text: n for text, n in seen.items() if n == 2}
    agree = sum(int(text.split()[1]) % 2 for text in twice)
    assert ledger.self_agreement is not None
    assert ledger.self_agreement["rows"] == 12
    assert ledger.self_agreement["share"] == pytest.approx(agree / 12)
    assert ledger.self_agreement["low"] < agree / 12 < ledger.self_agreement["high"]
    asking.ask(TEXTS)
    assert len(server.calls) == 36


@pytest.mark.parametrize(("cap", "words"), [({"requests": 10}, "budget.requests 10"), ({"tokens": 2200}, "tokens"),
                                            ({"usd": "0.0006"}, "usd")])  # fmt: skip
def test_a_cap_stops_with_code_4_and_a_higher_one_goes_on(
    asking: Any, serve: Serve, cap: dict[str, Any], words: str
) -> None:
    server = serve(latency_s=0.01)
    asking.budget = cap
    ledger = asking.ask(TEXTS)
    assert isinstance(asking.stopped, BudgetReached)
    assert asking.stopped.exit_code == 4
    assert words in str(asking.stopped)
    assert 0 < ledger.accepted < 24
    assert ledger.pending == 24 - ledger.accepted
    assert len(server.calls) == ledger.requests
    asking.budget = dict.fromkeys(cap, 100) | {"requests": 24}
    if "tokens" in cap:
        asking.budget["tokens"] = 10**6
    assert asking.ask(TEXTS).accepted == 24
    assert len(server.calls) == 24


def test_an_endpoint_that_bills_more_than_it_may_is_left(asking: Any, serve: Serve) -> None:
    serve(lambda call: Answer('{"label": "red"}', completion_tokens=5000))
    asking.budget = {"usd": 10}
    ledger = asking.ask(TEXTS)
    assert "so no cap can be promised" in str(asking.stopped)
    assert ledger.requests <= 9


def test_an_answer_without_usage_counts_at_its_worst_case_under_the_cap(asking: Any, serve: Serve) -> None:
    serve(lambda call: Answer('{"rationale": "r", "label": "red"}', usage=False))
    ledger = asking.ask(TEXTS[:5])
    assert (ledger.accepted, ledger.worst_case) == (5, 5)
    assert ledger.prompt_tokens is None
    assert ledger.recorded_usd is None
    assert ledger.spent_usd is not None


def test_no_more_requests_are_in_flight_than_allowed(asking: Any, serve: Serve) -> None:
    server = serve(latency_s=0.05)
    asking.teacher["concurrency"] = 5
    asking.ask(TEXTS)
    assert server.in_flight_max == 5


def test_requests_per_minute_are_kept(asking: Any, serve: Serve) -> None:
    serve()
    asking.teacher["requests_per_minute"] = 1200
    start = time.monotonic()
    asking.ask([f"text {i}" for i in range(40)])
    assert 0.9 <= time.monotonic() - start < 3  # 20 at once, 20 a second after


def test_limits_are_learnt_from_the_headers(asking: Any, serve: Serve) -> None:
    headers = {"x-ratelimit-limit-requests": "1200", "x-ratelimit-remaining-requests": "5"}
    serve(lambda call: Answer('{"rationale": "r", "label": "red"}', headers=headers))
    start = time.monotonic()
    asking.ask([f"text {i}" for i in range(45)])
    assert time.monotonic() - start >= 0.8


def test_two_processes_do_not_work_on_one_folder(asking: Any, serve: Serve) -> None:
    serve()
    asking.ask(["one"])
    from edgestill.distill.teacher.store import Store, cache_path

    held = Store(asking.folder, cache_path())
    with pytest.raises(EdgestillError, match="another edgestill annotate works on"):
        asking.ask(["one"])
    held.close()
    asking.ask(["one"])


def test_a_connection_that_is_refused_costs_nothing(asking: Any, serve: Serve) -> None:
    serve()
    asking.url = "http://127.0.0.1:9/v1"
    asking.teacher["max_attempts"] = 2
    ledger = asking.ask(["one"])
    assert (ledger.rejected, ledger.worst_case, ledger.spent_usd) == ({"endpoint_error": 1}, 0, "0")
    assert os.environ.get("OPENAI_API_KEY") is None


def test_an_annotation_says_what_it_took(asking: Any, serve: Serve) -> None:
    serve(lambda call: Answer('{"rationale": "r", "label": "red"}', prompt_tokens=50, completion_tokens=5))
    asking.ask(["one"])
    found = asking.answers()["one"]
    assert isinstance(found, Annotation)
    assert (found.prompt_tokens, found.completion_tokens, found.requests, found.bought_here) == (50, 5, 1, 1)
