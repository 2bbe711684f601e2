"""A hostile or broken endpoint, disk or user: nothing hangs, nothing is hidden, no cap breaks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Answer, Call, Raw, ScriptedServer, Status, json_answer

from edgestill.distill.teacher.prompt import endpoint_host
from edgestill.distill.teacher.protocol import Annotation
from edgestill.distill.teacher.store import SPEND_NAME
from edgestill.runtime.errors import EdgestillError, UsageError

Serve = Callable[..., ScriptedServer]
TEXTS = [f"text {i}" for i in range(24)]
ASKER = Path(__file__).parent / "asker.py"
SURROGATE = b'{"choices": [{"message": {"content": "{\\"label\\": \\"red\\", \\"rationale\\": \\"x \\ud83d\\"}"}}]}'


def with_usage(usage: dict[str, Any]) -> Raw:
    body = {"choices": [{"message": {"content": '{"label": "red"}'}, "finish_reason": "stop"}], "usage": usage}
    return Raw(200, json.dumps(body).encode())


POISON = {
    "half a surrogate pair in the answer": (Raw(200, SURROGATE), 24, {}),
    "half a surrogate pair in an error": (
        Raw(400, b'{"error": {"message": "bad \\ud83d"}}'), 23, {"endpoint_error": 1},
    ),
    "a count that no integer column holds": (with_usage({"prompt_tokens": 10**20, "completion_tokens": 1}), 24, {}),
    "log-probabilities that are no numbers": (
        Answer('{"label": "red"}', logprobs={"content": [{"token": "x", "logprob": None}]}), 24, {},
    ),
    "usage that is a list": (Raw(200, b'{"choices": [{"message": {"content": "red"}}], "usage": [1]}'), 24, {}),
    "a moderation's 403": (
        Status(403, {"message": "flagged", "metadata": {"reasons": ["x"]}}), 23, {"content_filter": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POISON)
def test_one_poisoned_answer_harms_no_other_row(asking: Any, serve: Serve, name: str) -> None:
    reply, accepted, rejected = POISON[name]
    server = serve(lambda call: reply if call.text == "text 7" else json_answer("red"))
    ledger = asking.ask(TEXTS)
    assert (asking.stopped, ledger.accepted, ledger.rejected) == (None, accepted, rejected)
    assert Counter(call.text for call in server.calls)["text 7"] == 1
    asking.ask(TEXTS)
    assert Counter(call.text for call in server.calls)["text 7"] == 1 + ("endpoint_error" in rejected)


def test_a_body_of_brackets_is_a_fault_and_no_crash(asking: Any, serve: Serve) -> None:
    asking.teacher["max_attempts"] = 2
    serve(lambda call: Raw(200, b"[" * 200_000) if call.text == "text 7" else json_answer("red"))
    assert asking.ask(TEXTS).rejected == {"endpoint_error": 1}


def test_reasoning_that_is_billed_beside_the_answer_counts_under_the_cap(asking: Any, serve: Serve) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 414}
    server = serve(lambda call: with_usage(usage))
    asking.budget = {"tokens": 5000}
    asking.ask(TEXTS)
    assert 414 * len(server.calls) <= 5000


def test_cached_tokens_beside_the_prompt_never_make_the_bill_smaller(asking: Any, serve: Serve) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1000}}
    serve(lambda call: with_usage(usage))
    asking.teacher["price_usd_per_mtok"] = {"input": "1", "output": "1", "cached_input": "0.1"}
    spent = asking.ask(TEXTS[:4]).spent_usd
    assert Decimal(spent) == 4 * (10 * Decimal(1) + 1000 * Decimal("0.1") + 1) / 1_000_000


def test_a_dearer_teacher_before_a_cheap_one_still_counts_at_its_price(asking: Any, serve: Serve) -> None:
    serve(lambda call: Answer('{"label": "red"}', prompt_tokens=100, completion_tokens=10))
    asking.teacher |= {"price_usd_per_mtok": {"input": "10", "output": "30"}}
    dear = Decimal(asking.ask(TEXTS[:10]).spent_usd)
    assert dear == 10 * (100 * 10 + 10 * 30) / Decimal(1_000_000)
    asking.teacher |= {"model": "cheap", "price_usd_per_mtok": {"input": "1", "output": "3"}}
    assert Decimal(asking.ask(TEXTS[:10]).spent_usd) == dear + dear / 10
    asking.teacher["price_usd_per_mtok"] = {"input": "2", "output": "6"}  # a mended price of the same model
    assert Decimal(asking.ask(TEXTS[:10]).spent_usd) == dear + dear / 5
    asking.teacher |= {"model": "third", "price_usd_per_mtok": None}
    assert asking.ask(TEXTS[:1]).spent_usd is None
    asking.teacher |= {"model": "fourth", "price_usd_per_mtok": {"input": "1", "output": "1"}}
    asking.budget = {"usd": 1}
    with pytest.raises(EdgestillError, match="at an unknown price"):
        asking.ask(TEXTS[:1])


@pytest.mark.parametrize("budget", [{}, {"tokens": 6000}])
def test_a_full_disk_stops_the_run_and_does_not_hang_it(
    asking: Any, serve: Serve, tmp_path: Path, budget: dict[str, int]
) -> None:
    server = serve(latency_s=0.02)
    asking.budget = budget
    settings = {"recipe": asking.recipe().model_dump(mode="json"), "folder": str(asking.folder), "rows": 2_000}
    asker = [sys.executable, str(ASKER), json.dumps(settings | {"word": "text"})]
    # 300 blocks of 512 bytes a file: a write fails as on a full disk (EFBIG, its signal ignored)
    limited = ["bash", "-c", "trap '' XFSZ; ulimit -f 300; exec \"$@\"", "limited", *asker]
    environment = {**os.environ, "EDGESTILL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 1
    assert "cannot write" in done.stdout + done.stderr
    assert 0 < len(server.calls) < 1_900
    assert not (asking.folder / "annotations.json").exists() or json.loads(done.stdout)["pending"] > 0


@pytest.mark.parametrize("votes", [0, 3])
def test_a_stop_reaches_those_who_wait_for_minutes(asking: Any, serve: Serve, votes: int) -> None:
    def script(call: Call) -> Any:
        if call.number == 4:
            return Status(429, headers={"retry-after": "500"})
        return Status(401, delay_s=0.1) if call.number > 4 else json_answer("red")

    serve(script)
    asking.teacher |= {"votes": votes, "concurrency": 4}
    start = time.monotonic()
    asking.ask(TEXTS)
    assert time.monotonic() - start < 3
    assert "HTTP 401" in str(asking.stopped)


def test_an_endpoint_that_wants_an_hour_is_left_and_come_back_to(asking: Any, serve: Serve) -> None:
    server = serve(
        lambda call: Status(429, headers={"retry-after": "3600"}) if call.number == 5 else json_answer("red")
    )
    asking.ask(TEXTS)
    assert "asks to be left alone for 3600 s" in str(asking.stopped)
    assert asking.ask(TEXTS).accepted == 24
    assert len(server.calls) == 25


def test_a_stop_reaches_those_whom_the_limit_holds_back(asking: Any, serve: Serve) -> None:
    serve(lambda call: Status(401) if call.number else json_answer("red"))
    asking.teacher |= {"requests_per_minute": 30, "concurrency": 8}
    start = time.monotonic()
    asking.ask(TEXTS)
    assert time.monotonic() - start < 4.5


def test_a_refusal_in_mid_run_is_that_rows_own_trouble(asking: Any, serve: Serve) -> None:
    complaint = Status(400, {"message": "Invalid prompt: my temperature, logprobs, json_schema"})
    server = serve(lambda call: complaint if call.text == "text 9" else json_answer("red"))
    ledger = asking.ask(TEXTS)
    assert (ledger.accepted, ledger.rejected, ledger.pending) == (23, {"endpoint_error": 1}, 0)
    assert {"response_format", "logprobs", "temperature"} <= set(server.calls[-1].body)
    assert len(server.calls) == 24


def test_a_filtered_first_row_says_nothing_about_what_the_endpoint_takes(asking: Any, serve: Serve) -> None:
    def script(call: Call) -> Any:
        if call.text == "text 0":
            return Status(400, {"message": "filtered", "code": "content_filter"})
        return Status(400, {"message": "no logprobs here"}) if "logprobs" in call.body else json_answer("red")

    serve(script)
    ledger = asking.ask(TEXTS)
    assert (ledger.accepted, ledger.rejected) == (23, {"content_filter": 1})


def test_answers_in_a_dialect_that_was_left_are_still_known(asking: Any, serve: Serve) -> None:
    server = serve(lambda call: Status(400, {"message": "x", "param": "logprobs"}) if "logprobs" in call.body
                   and call.number < 1 else json_answer("red"))  # fmt: skip
    asking.ask(TEXTS[:8])
    asked = len(server.calls)
    assert "logprobs" not in server.calls[-1].body
    assert asking.ask(TEXTS[:8]).pending == 0
    assert len(server.calls) == asked


def test_rows_that_the_endpoint_refuses_do_not_keep_the_good_ones_from_it(asking: Any, serve: Serve) -> None:
    serve(lambda call: Status(400, {"message": "no"}) if "bad" in call.text else json_answer("red"))
    asking.teacher["concurrency"] = 4
    ledger = asking.ask([*(f"bad {i}" for i in range(60)), *TEXTS])
    assert (asking.stopped, ledger.accepted, ledger.rejected) == (None, 24, {"endpoint_error": 60})


def test_rows_with_the_same_request_share_one_call(asking: Any, serve: Serve) -> None:
    server = serve(latency_s=0.05)
    from edgestill.distill.dataset import Dataset, Row
    from edgestill.distill.teacher.open import open_teacher

    data = Dataset(tuple(Row(f"id-{i}", "same", None, "test") for i in range(9)))
    teacher = open_teacher(asking.recipe(), asking.folder / "recipe.yaml", asking.folder, data.rows)
    assert teacher.ask(data.rows, lambda done: None) is None
    assert all(isinstance(teacher.answer(row), Annotation) for row in data.rows)
    teacher.close()
    assert len(server.calls) == 1


def test_a_vote_that_fails_for_good_does_not_cost_the_row(asking: Any, serve: Serve) -> None:
    serve(lambda call: Status(500) if call.body["temperature"] == 0.7 and call.text == "text 2" else json_answer("red"))
    asking.teacher |= {"votes": 2, "max_attempts": 2}
    ledger = asking.ask(TEXTS[:4])
    assert (ledger.accepted, ledger.pending) == (4, 0)
    assert asking.answers()["text 2"].probabilities is None
    assert asking.answers()["text 1"].probabilities == {"red": 1.0, "green": 0.0, "deep blue": 0.0}


def test_gateways_that_gave_up_count_at_their_worst_case(asking: Any, serve: Serve) -> None:
    for number, status in enumerate((408, 502, 504, 520, 521, 599)):
        serve(lambda call, status=status: Status(status) if call.number == 0 else json_answer("red"))
        asking.folder = asking.folder.parent / str(number)
        assert (asking.ask(["one"]).worst_case, status) == (1, status)


@pytest.mark.parametrize(
    ("one", "other"),
    [("https://gw.example/openai/v1", "https://gw.example/azure/v1"), ("http://h:1/v1", "http://h:2/v1")],
)
def test_two_routes_of_a_gateway_share_no_answers(one: str, other: str) -> None:
    assert endpoint_host(one) != endpoint_host(other)
    assert endpoint_host(one) == endpoint_host(one + "/")


@pytest.mark.parametrize(
    "teacher",
    [
        {"base_url": "http://h:abc/v1"},
        {"base_url": "http://user:secret@h/v1"},
        {"base_url": "http://h/v1?key=secret"},
        {"extra_body": {"n": 10}},
        {"extra_body": {"max_completion_tokens": 4000}},
    ],
)
def test_a_recipe_that_would_hide_a_key_or_a_cost_is_refused(asking: Any, teacher: dict[str, Any]) -> None:
    asking.url = "http://h/v1"
    asking.teacher |= teacher
    with pytest.raises(ValueError, match=r"base_url|extra_body"):
        asking.recipe()


def test_a_key_that_a_body_repeats_is_hidden_also_where_it_is_cut(
    asking: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-" + "K" * 60
    monkeypatch.setenv("OPENAI_API_KEY", secret + "\n")
    asking.teacher["max_attempts"] = 1
    serve(lambda call: Raw(200, b"<html> you sent: Bearer " + secret.encode() + b" and no more"))
    asking.ask(["one"])
    assert "KKK" not in asking.answers()["one"].detail
    monkeypatch.setenv("OPENAI_API_KEY", "sk-“quoted”")
    with pytest.raises(UsageError, match="characters that no key has"):
        asking.ask(["two"])


def test_ctrl_c_keeps_what_is_in_flight_and_writes_the_ledger(asking: Any, serve: Serve, tmp_path: Path) -> None:
    server = serve(latency_s=0.4)
    settings = {"recipe": asking.recipe().model_dump(mode="json"), "folder": str(asking.folder), "rows": 400}
    asker = [sys.executable, str(ASKER), json.dumps(settings | {"word": "text"})]
    environment = {**os.environ, "EDGESTILL_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(asker, env=environment, stdout=subprocess.PIPE, text=True)
    while len(server.calls) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    ledger = json.loads(printed)
    assert process.returncode == 130
    assert ledger["accepted"] == len(server.calls) == len(server.answered) == ledger["requests"]
    assert ledger["pending"] == 400 - ledger["accepted"]
    assert ledger["worst_case"] == 0
    assert (asking.folder / SPEND_NAME).exists()
