"""The server before students that write and students that choose, asked by the real openai client."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from written_runs import LEGS

from edgestill.runtime import Student, load
from edgestill.runtime.choices import with_choices
from edgestill.runtime.serving.teacher_prompt import TeacherPrompt, Template, Turn, find

SYSTEM = "How many legs? Answer with one JSON object."
ORDERS = (("answer",), ("rationale", "answer"), ("answer", "rationale"))


@pytest.fixture(scope="module")
def students(writers: dict[str, Path]) -> dict[str, Student]:
    return {name: load(folder, "onnx", threads=1) for name, folder in writers.items()}


@pytest.fixture
def ask(serve: Any, students: dict[str, Student], request: pytest.FixtureRequest) -> Iterator[Any]:
    """`ask(name, text, system=None, **more)`: one completion by a student of that name."""
    open_clients: list[Any] = []

    def asking(name: str, text: str, system: str | None = None, **more: Any) -> Any:
        serving = serve(student=students[name])
        server = serving.__enter__()
        request.addfinalizer(lambda: serving.__exit__(None, None, None))
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        open_clients.append(client)
        turns = [{"role": "system", "content": system}] if system else []
        return client.chat.completions.create(model="m", messages=[*turns, {"role": "user", "content": text}], **more)

    yield asking
    for client in open_clients:
        client.close()


def test_a_bare_answer_is_what_the_student_writes(ask: Any, students: dict[str, Student]) -> None:
    for animal in ("cat", "worm"):
        wanted = students["plain"].predict(animal)
        answer = ask("plain", animal)
        assert answer.choices[0].message.content == wanted.text
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == (wanted.tokens_written or 0) + 1
        told = answer.model_extra["edgestill"]
        assert told["labels"] == [wanted.label]
        assert told["written"] == wanted.text
        assert told["confidence"] == pytest.approx(wanted.confidence, rel=1e-4)


def test_a_stream_holds_the_same_text_token_by_token(ask: Any) -> None:
    chunks = list(ask("chain", "spider", stream=True))
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(said) == "I counted the spider\nAnswer: 8 legs"
    assert len(said) > 5


def test_the_log_probabilities_are_those_of_the_written_tokens(ask: Any, students: dict[str, Student]) -> None:
    answer = ask("plain", "hen", logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == "2 legs"
    assert all(len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    total = math.exp(sum(entry.logprob for entry in entries))
    assert students["plain"].predict("hen").confidence <= total < 1


@pytest.mark.parametrize("keys", ORDERS)
def test_an_object_is_answered_as_the_teacher_would(ask: Any, keys: tuple[str, ...]) -> None:
    schema = {"properties": {key: {"type": "string"} for key in keys}}
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = ask("chain", "spider", response_format=shape, logprobs=True)
    said = json.loads(answer.choices[0].message.content)
    values = {"answer": "8 legs", "rationale": "I counted the spider"}
    assert list(said.items()) == [(key, values[key]) for key in keys]
    tokens = "".join(entry.token for entry in answer.choices[0].logprobs.content)
    assert '"answer": "8 legs"' in tokens


def test_a_reason_that_was_not_learnt_is_left_out(ask: Any) -> None:
    schema = {"properties": {"rationale": {}, "answer": {}}}
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert json.loads(ask("plain", "cat", response_format=shape).choices[0].message.content) == {"answer": "4 legs"}


def test_a_limit_and_a_stop_end_the_answer(ask: Any, students: dict[str, Student]) -> None:
    cut = ask("chain", "spider", max_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("I counted", "length")
    assert cut.model_extra["edgestill"]["labels"] == [""]
    stopped = ask("chain", "spider", stop="\nAnswer")
    assert stopped.choices[0].message.content == "I counted the spider"
    assert students["chain"].predict("cat").label == "4"  # nothing holds the student after that


def test_choices_stand_in_the_users_turn(ask: Any) -> None:
    for text in ("tomato is\nA) green\nB) red", "tomato\nA) green\nB) red"):
        answer = ask("choose", text)
        assert answer.choices[0].message.content == "B"
        assert answer.model_extra["edgestill"]["choice"] == "red"
    with pytest.raises(openai.BadRequestError, match="0 choices"):
        ask("choose", "tomato")


def test_the_teachers_question_is_known_with_its_choices(students: dict[str, Student]) -> None:
    template = Template((Turn("system", SYSTEM), Turn("user", "Say: ", "{thing} is", " Go.")), ("label",))
    prompt = TeacherPrompt("m", (template,), "no")
    text = with_choices("snow is", ["white", "red"])
    found = find(prompt, [("system", SYSTEM), ("user", f"Say: {text} Go.")], "colours")
    assert found is not None
    assert found.fields == {"thing": "snow", "colours": ["white", "red"]}
    assert students["choose"].predict(found.fields).choice == "white"
    assert find(prompt, [("system", SYSTEM), ("user", "Say: snow is Go.")], "colours") is None


def test_every_animal_is_answered_over_one_connection(serve: Any, students: dict[str, Student]) -> None:
    with serve(student=students["plain"]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for animal, legs in LEGS.items():
            body = {"model": "m", "messages": [{"role": "user", "content": animal}]}
            answer = client.post("/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == f"{legs} legs"
