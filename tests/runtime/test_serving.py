"""The server over real HTTP: an app that changes only its base_url, the shapes of answers, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from scripted_server import Answer, Call, Raw, ScriptedServer

from edgestill.distill.teacher.confidence import label_probabilities
from edgestill.runtime import Student, load
from edgestill.runtime.serving.chat import chat_pieces, read_chat
from edgestill.runtime.serving.teacher_prompt import FILE_NAME, load_teacher_prompt
from edgestill.runtime.serving.wire import Ask

TESTS = Path(__file__).resolve().parent.parent
TEXTS = ("tomato number 1 next to a ruby", "the frog I saw on day 9 was a moss", "the lime I saw on day 3 was a grass")
LABEL_KEYS = {"properties": {"label": {"type": "string"}}}


@pytest.fixture
def client(serve: Any) -> Iterator[httpx.Client]:
    with serve() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def asked(text: str = TEXTS[0], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_app_changes_only_its_base_url(serve: Any) -> None:
    def scripted(call: Call) -> Answer | Raw:
        label = "red" if any(word in call.text for word in ("tomato", "ruby")) else "green"
        parts = ['{"rationale": "because", "label": "', label, '"}']
        if call.body.get("stream"):
            deltas = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in parts]
            events = [f"data: {json.dumps(delta)}\n\n" for delta in deltas]
            return Raw(200, "".join([*events, "data: [DONE]\n\n"]).encode(), {"content-type": "text/event-stream"})
        top = [{"token": name, "logprob": -0.1 if name == label else -3.0, "bytes": None} for name in ("red", "green")]
        entries = [{"token": part, "logprob": -0.1, "bytes": None, "top_logprobs": top} for part in parts]
        return Answer("".join(parts), logprobs={"content": entries, "refusal": None})

    def run_app(base_url: str) -> Any:
        command = [sys.executable, str(TESTS / "teacher_app.py"), base_url, "big-teacher"]
        done = subprocess.run(command, input="\n".join(TEXTS), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    with ScriptedServer(scripted) as teacher:
        from_teacher = run_app(teacher.url)
    with serve(strict=True) as student:
        from_student = run_app(student.url)
    assert from_student == from_teacher
    assert [answer["label"] for answer in from_student] == ["red", "green", "green"]


def test_the_log_probabilities_are_the_students_to_who_reads_a_teachers(
    client: httpx.Client, tiny_student: Student
) -> None:
    for shape in ({}, {"response_format": {"type": "json_schema", "json_schema": {"schema": LABEL_KEYS}}}):
        answer = client.post("/chat/completions", json=asked(logprobs=True, top_logprobs=20, **shape)).json()
        entries = answer["choices"][0]["logprobs"]["content"]
        read = [[e["token"], e["logprob"], [[t["token"], t["logprob"]] for t in e["top_logprobs"]]] for e in entries]
        wanted = tiny_student.predict(TEXTS[0])
        found = label_probabilities(read, wanted.label, tiny_student.task.label_names)
        assert found == pytest.approx(wanted.probabilities, abs=1e-6)
        assert answer["edgestill"]["probabilities"] == pytest.approx(wanted.probabilities)
        assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)


def test_other_messages_are_labelled_by_their_last_user_turn_and_said_to_be_unmatched(
    serve: Any, client: httpx.Client
) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": TEXTS[1]},
        {"role": "assistant", "content": "green"},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[0][:9]}, {"type": "text", "text": TEXTS[0][9:]}]},
    ]
    answer = client.post("/chat/completions", json={"messages": messages})
    assert json.loads(content(answer))["label"] == "red"
    assert answer.headers["x-edgestill-prompt"] == "unmatched"
    assert answer.json()["model"] == "tiny"
    assert "edgestill_unmatched_total 1" in client.get("/../metrics").text
    with serve(strict=True) as strict:
        refused = httpx.post(f"{strict.url}/chat/completions", json={"messages": messages})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "prompt_unmatched"


def test_a_bundle_without_the_teachers_prompt_answers_with_the_bare_label(
    serve: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(tiny_bundle, tmp_path / "older"))
    (older / FILE_NAME).unlink()
    with serve(student=load(older)) as server:
        url = f"{server.url}/chat/completions"
        assert content(httpx.post(url, json=asked())) == "red"
        shape = {"type": "json_object"}
        assert content(httpx.post(url, json=asked(response_format=shape))) == '{"label": "red"}'


def test_what_changes_nothing_is_accepted_and_what_is_not_supported_is_named(client: httpx.Client) -> None:
    plain = client.post("/chat/completions", json=asked(temperature=0, top_p=1, seed=5, stop=None, user=None, n=1))
    assert "x-edgestill-ignored" not in plain.headers
    odd = {"temperature": 0.7, "tools": [], "top_k": 3, "evil\r\nx-injected: 1": 1}
    other = client.post("/chat/completions", json=asked(**odd))
    assert other.headers["x-edgestill-ignored"] == "?, temperature, tools, top_k"
    assert "x-injected" not in other.headers
    assert content(other) == content(plain)
    for properties in ({"colour": {}}, {"label": {"enum": ["red", "blue"]}}, {"label": {"enum": ["red"]}}):
        schema = {"type": "json_schema", "json_schema": {"schema": {"properties": properties}}}
        unknown = client.post("/chat/completions", json=asked(response_format=schema))
        assert unknown.headers["x-edgestill-ignored"] == "response_format"
        assert json.loads(content(unknown))["label"] == "red"


def test_copies_stops_and_limits_shape_the_answer(client: httpx.Client) -> None:
    whole = client.post("/chat/completions", json=asked(n=3, logprobs=True, stop=['", ', "zzz"])).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 1
    assert texts[0].startswith('{"rationale": "')
    assert "label" not in texts[0]
    short = client.post("/chat/completions", json=asked(max_tokens=3)).json()
    assert short["choices"][0]["finish_reason"] == "length"
    assert json.loads(short["choices"][0]["message"]["content"])["label"] == "red"
    assert short["usage"]["completion_tokens"] <= 3
    assert short["timings"]["predicted_n"] == short["usage"]["completion_tokens"]
    one = client.post("/chat/completions", json=asked(max_completion_tokens=1)).json()
    assert json.loads(one["choices"][0]["message"]["content"]) == {"rationale": "", "label": "red"}


def test_who_leaves_stops_a_reason_at_its_next_token(tiny_student: Student) -> None:
    prompt = load_teacher_prompt(tiny_student.folder)
    read = read_chat(Ask(json.dumps(asked()).encode()), tiny_student.task, prompt, "tiny", strict=False)
    steps = list(chat_pieces(tiny_student, read))
    tokens = steps[-1].totals.completion_tokens - 1
    assert tokens > 1
    assert steps[:tokens] == [None] * tokens
    assert all(piece is not None for piece in steps[tokens:])
    leaving = chat_pieces(tiny_student, read)
    assert next(leaving) is None
    leaving.close()
    assert tiny_student.predict(TEXTS[0]).label == "red"  # and the model is free again


def test_a_stream_says_the_same_in_pieces_and_ends_with_its_usage(serve: Any) -> None:
    with serve() as server:
        client = openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)
        wish: Any = {**asked(n=2), "logprobs": True, "top_logprobs": 1}
        whole = client.chat.completions.create(**wish)
        chunks = list(client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}))
        with httpx.stream("POST", f"{server.url}/chat/completions", json={**wish, "stream": True}) as raw:
            lines = [line for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].choices == []
    for index in (0, 1):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == whole.choices[index].message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
        entries = [entry for part in parts for entry in part.logprobs.content]
        assert len(entries) == len(whole.choices[index].logprobs.content)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": NaN}', None),
        ([1], None),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        (asked(n=0), "n"),
        (asked(n="2"), "n"),
        (asked(n=True), "n"),
        (asked(stream="yes"), "stream"),
        (asked(stop=["a", 1]), "stop"),
        (asked(stop=""), "stop"),
        (asked(max_tokens=1.5), "max_tokens"),
        (asked(top_logprobs=3), "top_logprobs"),
        (asked(logprobs=True, top_logprobs=21), "top_logprobs"),
        (asked(response_format="json"), "response_format"),
        (asked(model=7), "model"),
        (asked("  "), None),
        (asked("half \ud800 a pair"), None),
        (asked("tomato " * 200), None),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_shape(
    client: httpx.Client, body: Any, param: str | None
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    for stream in (False, True):
        if stream and isinstance(body, dict) and "stream" not in body:
            data = json.dumps({**body, "stream": True}).encode()
        refused = client.post("/chat/completions", content=data)
        assert refused.status_code == 400, refused.text
        error = refused.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"]
    assert client.get("/models").status_code == 200


def test_unicode_goes_through_whole(client: httpx.Client) -> None:
    text = "tomate número 1 ☕ 🍅 次は ruby"
    assert json.loads(content(client.post("/chat/completions", json=asked(text))))["label"] in ("red", "green")
    echoed = client.post("/completions", json={"prompt": text, "echo": True, "max_tokens": 0}).json()
    assert echoed["choices"][0]["text"] == text


def test_the_lists_health_and_metrics_tell_who_serves(client: httpx.Client) -> None:
    models = client.get("/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny", "big-teacher"]
    assert client.get("/models/big-teacher").json()["alias_of"] == "tiny"
    assert client.get("/models/other").status_code == 404
    assert client.get("/../health").json() == {"status": "ok", "model": "tiny", "engine": "onnx", "queue": 0}
    assert client.get("/chat/completions").status_code == 405
    assert client.post("/embeddings", json={}).status_code == 404
    assert client.put("/models").json()["error"]["message"]
    client.post("/chat/completions", json=asked(response_format={"type": "json_object"}))
    lines = client.get("/../metrics").text.splitlines()
    assert 'edgestill_requests_total{route="/v1/chat/completions",status="200"} 1' in lines
    assert 'edgestill_request_seconds_bucket{route="/v1/chat/completions",le="+Inf"} 2' in lines
    assert 'edgestill_requests_total{route="other",status="404"} 1' in lines
    counted = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    assert counted["edgestill_prompt_tokens_total"] > 5
    assert counted["edgestill_queue"] == 0


def test_a_key_is_asked_for_everywhere_but_at_health(serve: Any) -> None:
    with serve(api_key="geheim-ü") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/../health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}):
            refused = client.post("/chat/completions", json=asked(), headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert client.get("/../metrics", headers=headers).status_code == 401
        key = {"authorization": "Bearer geheim-ü".encode()}
        assert client.post("/chat/completions", json=asked(), headers=key).status_code == 200


def test_an_answer_less_sure_than_wanted_is_marked(serve: Any) -> None:
    for threshold, marked in ((1.0, True), (0.0, False)):
        with serve(abstain_below=threshold) as server, httpx.Client(base_url=server.url) as client:
            answer = client.post("/chat/completions", json=asked()).json()
            assert answer["edgestill"]["abstained"] is marked
            assert json.loads(answer["choices"][0]["message"]["content"])["label"] == "red"
            assert f"edgestill_abstained_total {int(marked)}" in client.get("/../metrics").text


def test_the_command_serves_until_it_is_told_to_stop(tiny_bundle: Path, cli: Any) -> None:
    command = [str(Path(sys.executable).parent / "edgestill"), "serve", str(tiny_bundle), "--port", "0", "--json"]
    env = {**os.environ, "SERVE_KEY": "k"}
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen([*command, "--api-key-env", "SERVE_KEY"], stdout=subprocess.PIPE, env=env) as running:
            try:
                assert running.stdout is not None
                facts = json.loads(running.stdout.readline())
                client = openai.OpenAI(base_url=facts["url"], api_key="k", max_retries=0)
                assert client.models.list().data[0].id == facts["model"] == "tiny"
                port = facts["url"].split(":")[2].split("/")[0]
                taken = cli("serve", tiny_bundle, "--port", port)
                assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)
                assert f"port {port}: Address already in use - name another with --port" in taken.stderr
                running.send_signal(number)
                assert running.wait(20) == 0
            finally:
                running.kill()
    missing = cli("serve", tiny_bundle, "--api-key-env", "NO_SUCH_KEY")
    assert missing.returncode == 3
    assert "NO_SUCH_KEY" in missing.stderr
