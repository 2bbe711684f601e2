"""Text completions: the numbers that lm-eval grades with are the student's own; encoders and sets are served too."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from encoder_runs import LABELS, encoder_task, export_section, finish_run, minilm_folder, shake, silent
from hypothesis import given
from hypothesis import strategies as st

from edgestill.export.pack import run_export
from edgestill.runtime import Student, load, manifest
from edgestill.runtime.serving.answers import Piece, until
from edgestill.runtime.serving.completions import Speller

PROMPT, ANSWER = "the lime I saw on day 3 was a grass\nAnswer:", " green"

ROUNDING = 0.02  # nats: int8 kernels round a text computed token by token a little differently


@pytest.fixture
def client(serve: Any) -> Iterator[httpx.Client]:
    with serve() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def ids_of(student: Student, text: str) -> list[int]:
    return list(student._tokenizer.encode(text, add_special_tokens=False).ids)


def local_completions(choice: Any, context_tokens: int) -> tuple[float, bool]:
    """What lm-eval's local-completions backend reads: all but the context's tokens and the one that was made."""
    logprobs = choice["logprobs"]["token_logprobs"][context_tokens:-1]
    top = choice["logprobs"]["top_logprobs"][context_tokens:-1]
    return sum(logprobs), all(one == max(others.values()) for one, others in zip(logprobs, top, strict=True))


def gguf_backend(choice: Any, context_length: int) -> tuple[float, bool]:
    """What lm-eval's gguf backend reads: from the first token that begins where the context ends."""
    found = choice["logprobs"]
    start = next(i for i, offset in enumerate(found["text_offset"]) if offset >= context_length)
    top = [max(others, key=others.get) for others in found["top_logprobs"][start:]]
    return sum(found["token_logprobs"][start:-1]), top == found["tokens"][start:]


@pytest.mark.parametrize("as_ids", [False, True])
def test_graders_read_the_students_own_scores(client: httpx.Client, tiny_student: Student, as_ids: bool) -> None:
    texts = [PROMPT + ANSWER, PROMPT + " red"]
    prompts = [ids_of(tiny_student, text) for text in texts] if as_ids else texts
    wish = {"model": "m", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 10, "seed": 1, "echo": True}
    answer = client.post("/completions", json=wish).json()
    wanted = tiny_student.score(PROMPT, [ANSWER, " red"])
    context = len(ids_of(tiny_student, PROMPT))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, score in zip(answer["choices"], wanted, strict=True):
        assert local_completions(choice, context)[0] == pytest.approx(score, abs=ROUNDING)
        assert gguf_backend(choice, len(PROMPT))[0] == pytest.approx(score, abs=ROUNDING)
    assert [local_completions(choice, context)[1] for choice in answer["choices"]] == [True, False]
    assert gguf_backend(answer["choices"][0], len(PROMPT))[1]
    assert answer["choices"][0]["text"].startswith(PROMPT + ANSWER)
    assert answer["choices"][0]["logprobs"]["token_logprobs"][0] is None


def test_the_token_that_ends_an_answer_counts_for_graders_and_is_not_written(serve: Any, tiny_bundle: Path) -> None:
    student = load(tiny_bundle, "onnx", threads=1)
    wish = {"prompt": PROMPT + ANSWER, "max_tokens": 1, "logprobs": 1, "echo": True}
    with serve(student=student) as server:
        going_on = httpx.post(f"{server.url}/completions", json=wish, timeout=60).json()["choices"][0]
        (end,) = ids_of(student, going_on["text"].removeprefix(PROMPT + ANSWER))
        student.task = replace(student.task, eos_token_id=end)  # now what it says next is its end
        ended = httpx.post(f"{server.url}/completions", json=wish, timeout=60).json()["choices"][0]
    assert (going_on["finish_reason"], ended["finish_reason"]) == ("length", "stop")
    assert ended["text"] == PROMPT + ANSWER
    assert ended["logprobs"]["tokens"] == going_on["logprobs"]["tokens"]
    assert ended["logprobs"]["token_logprobs"] == going_on["logprobs"]["token_logprobs"]


def test_the_greedy_text_is_the_students_also_in_a_stream(client: httpx.Client, tiny_student: Student) -> None:
    wish = {"prompt": "a cherry\nReason:", "max_tokens": 12, "n": 2, "logprobs": 0}
    whole = client.post("/completions", json=wish).json()
    assert [choice["text"] for choice in whole["choices"]] == [tiny_student.generate("a cherry\nReason:", 12)] * 2
    assert whole["usage"]["completion_tokens"] == whole["timings"]["predicted_n"]
    with client.stream("POST", "/completions", json={**wish, "stream": True}) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 1]
    assert "".join(part["text"] for part in parts) == whole["choices"][1]["text"]
    tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
    assert tokens == whole["choices"][1]["logprobs"]["tokens"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_a_text_ends_before_its_stop_and_at_its_limit(client: httpx.Client) -> None:
    plain = client.post("/completions", json={"prompt": "a cherry\nReason:", "max_tokens": 6}).json()["choices"][0]
    assert plain["finish_reason"] == "length"
    stop = plain["text"][3:6]
    cut = client.post("/completions", json={"prompt": "a cherry\nReason:", "max_tokens": 6, "stop": [stop]}).json()
    assert cut["choices"][0]["text"] == plain["text"].partition(stop)[0]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": 5},
        {"prompt": []},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
        {"prompt": [10**9]},
        {"prompt": [True]},
        {"prompt": ["a"] * 65},
        {"prompt": "a", "max_tokens": -1},
        {"prompt": "a", "logprobs": True},
        {"prompt": "half \ud800 a pair"},
        {"prompt": "tomato " * 2000},
    ],
)
def test_prompts_that_are_none_are_refused(client: httpx.Client, body: Any) -> None:
    refused = client.post("/completions", content=json.dumps({**body, "echo": True}))
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


def test_token_ids_are_echoed_as_the_text_they_are(client: httpx.Client, tiny_student: Student) -> None:
    text = " ☕🍅 naïve\n次は"
    wish = {"prompt": ids_of(tiny_student, text), "echo": True, "max_tokens": 0}
    plain = client.post("/completions", json=wish).json()["choices"][0]
    scored = client.post("/completions", json={**wish, "logprobs": 1}).json()["choices"][0]
    assert plain["text"] == scored["text"] == text
    offsets = scored["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(wish["prompt"])


@pytest.mark.parametrize("bad", ["", "tomato " * 2000, "half \ud800 a pair", [10**9]])
def test_all_prompts_are_checked_before_one_is_answered(client: httpx.Client, bad: Any) -> None:
    good = [1, 2] if isinstance(bad, list) else "a cherry"
    wish = json.dumps({"prompt": [good, bad], "max_tokens": 4, "stream": True})
    assert client.post("/completions", content=wish).status_code == 400


def test_each_of_several_prompts_gets_the_numbers_it_gets_alone(client: httpx.Client) -> None:
    prompts = [PROMPT, PROMPT + ANSWER, PROMPT + " red", "the lime I saw on day 3 was a moss"]
    wish = {"max_tokens": 3, "logprobs": 3}
    together = client.post("/completions", json={**wish, "prompt": prompts}).json()["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        alone = client.post("/completions", json={**wish, "prompt": prompt}).json()["choices"][0]
        assert choice["logprobs"] == alone["logprobs"]


def test_the_speller_gives_the_text_of_any_tokens_in_pieces(tiny_student: Student) -> None:
    tokenizer = tiny_student._tokenizer
    for text in (" ☕🍅 naïve\n", "plain words", "次は"):
        speller = Speller(tokenizer)
        pieces = [speller.next(token) for token in ids_of(tiny_student, text)]
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces)


@pytest.fixture(scope="module")
def sets_student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """An encoder that answers with sets, some of them empty; untrained, for who serves it does not care."""
    import torch

    from edgestill.distill.student.encoder import new_encoder

    torch.manual_seed(0)
    encoder = new_encoder(minilm_folder(), len(LABELS))
    shake(encoder, 0.3)
    folder, _ = finish_run(tmp_path_factory.mktemp("sets") / "student", encoder)
    manifest.save(folder / "task.json", encoder_task(kind="multilabel", threshold=0.5))
    run_export(folder, export_section("q8_0", "onnx"), folder.parent / "bundle", silent)
    return load(folder.parent / "bundle")


def test_encoders_and_sets_are_served_and_write_nothing(serve: Any, sets_student: Student) -> None:
    shape = {"type": "json_schema", "json_schema": {"schema": {"properties": {"rationale": {}, "labels": {}}}}}
    texts = [row["text"] for row in manifest.read_jsonl(Path(sets_student.folder) / "golden.jsonl")]
    with serve(student=sets_student) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        sizes = set()
        for threshold in (0.0, 0.5, 1.0):
            sets_student.task = replace(sets_student.task, threshold=threshold)
            for text in texts:
                wanted = sets_student.predict(text)
                wish: Any = {"messages": [{"role": "user", "content": text}], "logprobs": True, "top_logprobs": 3}
                bare = client.post("/chat/completions", json=wish).json()["choices"][0]
                assert bare["message"]["content"] == wanted.label
                answer = client.post("/chat/completions", json={**wish, "response_format": shape}).json()
                said = answer["choices"][0]
                assert json.loads(said["message"]["content"]) == {"labels": list(wanted.labels)}
                tokens = [entry["token"] for entry in said["logprobs"]["content"]]
                assert "".join(tokens) == said["message"]["content"]
                assert answer["edgestill"]["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
                sizes.add(len(wanted.labels))
        assert {0, 3} <= sizes
        refused = client.post("/completions", json={"prompt": "hello"})
    assert refused.status_code == 400
    assert "encoder" in refused.json()["error"]["message"]


@given(text=st.text("ab", max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4), stop=st.text("ab", min_size=1))
def test_a_text_in_pieces_ends_where_the_whole_text_would(text: str, cuts: list[int], stop: str) -> None:
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [Piece(text[a:b]) for a, b in pairwise(at)]
    assert "".join(piece.text for piece in until(pieces, (stop,))) == text.partition(stop)[0]
