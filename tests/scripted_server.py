"""An OpenAI-compatible server (chat, files, batches) that answers what a test scripts and keeps what it was asked."""

import argparse
import asyncio
import json
import socket
import struct
import threading
import time
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]


@dataclass
class Call:  # one chat request: number counts arrivals from 0, header names are in lower case
    number: int
    body: Json
    headers: dict[str, str]
    at: float

    @property
    def text(self) -> str:
        return next(str(m["content"]) for m in reversed(self.body["messages"]) if m["role"] == "user")

    @property
    def key(self) -> str:
        return json.dumps(self.body, sort_keys=True)


@dataclass
class Answer:  # a chat completion; token counts follow from the lengths, usage=False leaves them out
    content: str | None
    finish_reason: str = "stop"
    refusal: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int = 0
    usage: bool = True
    logprobs: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    code = 200

    def as_json(self, call: Call) -> Json:
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": self.logprobs}
        body: Json = {"id": f"chatcmpl-{call.number}", "object": "chat.completion", "created": int(time.time())}
        body |= {"model": call.body.get("model"), "choices": [choice]}
        if self.usage:
            asked, said = self.prompt_tokens, self.completion_tokens
            asked = sum(len(m["content"] or "") for m in call.body["messages"]) // 4 + 4 if asked is None else asked
            said = len(self.content or "") // 4 + 1 if said is None else said
            body["usage"] = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
            body["usage"]["prompt_tokens_details"] = {"cached_tokens": 0}
            body["usage"]["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return body


class Half(Answer):
    """An answer that breaks off after half of the body."""


class Drip(Answer):  # a whole answer: the head at once, the body one byte at a time
    def __init__(self, content: str, seconds_per_byte: float) -> None:
        super().__init__(content)
        self.seconds_per_byte = seconds_per_byte


@dataclass
class Status:  # an error in the API's form; error is the object under that name
    code: int
    error: Json | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0

    def as_json(self, _: Call | None) -> Json:
        return {"error": self.error or {"message": f"status {self.code}", "type": "scripted", "code": "scripted"}}


@dataclass
class Raw:  # exactly these bytes as the body; they pass for JSON unless the headers say otherwise
    code: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Reset:
    """The connection is reset, without an answer."""


class Hang:
    """No answer for as long as the client waits."""


@dataclass
class BatchResult:  # the lines of a batch's two files; the first polls looks at the batch find it in progress
    output: list[Json]
    errors: list[Json]
    status: str = "completed"
    polls: int = 1


Reply = Answer | Status | Raw | Reset | Hang
Script = Callable[[Call], Reply]


def json_answer(label: str, rationale: str = "because") -> Answer:
    return Answer(json.dumps({"rationale": rationale, "label": label}))


def batch_result(lines: list[Json], script: Script) -> BatchResult:
    """Every line of a batch's input answered by `script`: an `Answer` is output, all else goes to the errors."""
    result = BatchResult([], [])
    for number, line in enumerate(lines):
        call = Call(number, line["body"], {}, time.monotonic())
        reply = script(call)
        done: Json = {"id": f"batch_req_{number}", "custom_id": line["custom_id"], "response": None, "error": None}
        if isinstance(reply, Answer | Status):
            done["response"] = {"status_code": reply.code, "request_id": f"req_{number}", "body": reply.as_json(call)}
        else:
            done["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
        (result.output if isinstance(reply, Answer) else result.errors).append(done)
    return result


async def patience(reader: Reader, seconds: float | None) -> None:
    """Waits (None: for ever), unless the client leaves first."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await reader.read(1)
        raise ConnectionResetError


@dataclass(eq=False)
class ScriptedServer:
    """Serves inside `with`, from a thread of its own; what the scripts raise there is raised at the end of `with`."""

    script: Script = lambda call: json_answer("red")
    latency_s: float = 0.0
    port: int = 0  # 0: any, and the same one when entered again
    batch_script: Callable[[list[Json]], BatchResult] | None = None
    fail_paths: dict[str, int] = field(default_factory=dict)  # start of a path -> how many 500s it still gets
    calls: list[Call] = field(init=False, default_factory=list)
    answered: list[Call] = field(init=False, default_factory=list)
    in_flight: int = field(init=False, default=0)
    in_flight_max: int = field(init=False, default=0)
    uploads: dict[str, bytes] = field(init=False, default_factory=dict)
    outputs: dict[str, bytes] = field(init=False, default_factory=dict)  # the files that batches made
    batches: list[Json] = field(init=False, default_factory=list)
    results: dict[str, BatchResult] = field(init=False, default_factory=dict)  # by the batch's id
    errors: list[Exception] = field(init=False, default_factory=list)

    def __enter__(self) -> "ScriptedServer":
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)  # clients may connect from here on
        self.port, self._end = listener.getsockname()[1], Future[None]()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(listener),), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set_result(None)
        self._thread.join()
        if self.errors and kind is None:
            raise self.errors[0]

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._client, sock=listener, limit=2**20)
        await asyncio.wrap_future(self._end)
        asyncio.get_running_loop().remove_reader(listener)  # takes no more connections
        await asyncio.sleep(0.01)  # those just taken get their `_client`; the end of the loop cancels every one
        server.close()

    async def _client(self, reader: Reader, writer: Writer) -> None:
        try:
            with suppress(EOFError, ConnectionError, asyncio.CancelledError):  # one of the two has left
                while True:
                    first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
                    headers = {name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                    await self._request(reader, writer, first, headers, body)
        finally:
            writer.transport.abort()

    async def _request(self, reader: Reader, writer: Writer, first: str, headers: dict[str, str], body: bytes) -> None:
        method, target, _ = first.split(" ")
        path, _, query = target.partition("?")
        failing = next((start for start, left in self.fail_paths.items() if left > 0 and path.startswith(start)), "")
        call: Call | None = None
        reply: Reply = Status(500)
        try:
            if (method, path) == ("POST", "/v1/chat/completions"):
                call = Call(len(self.calls), json.loads(body), headers, time.monotonic())
                self.calls.append(call)
            if failing:
                self.fail_paths[failing] -= 1
            else:
                reply = self.script(call) if call else self._other(method, path, query, body)
        except Exception as error:
            self.errors.append(error)
            reply = Status(400, {"message": f"the script failed: {error!r}"})
        self.in_flight += call is not None
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        try:
            await self._play(reader, writer, call, reply)
        finally:
            self.in_flight -= call is not None

    async def _play(self, reader: Reader, writer: Writer, call: Call | None, reply: Reply) -> None:
        delay_s = getattr(reply, "delay_s", 0.0) + (self.latency_s if call else 0.0)
        if delay_s or isinstance(reply, Hang):
            await patience(reader, None if isinstance(reply, Hang) else delay_s)
        if isinstance(reply, Reset | Hang):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionAbortedError  # `_client` closes, which sends a reset where there is no time to linger
        body = reply.body if isinstance(reply, Raw) else json.dumps(reply.as_json(call)).encode()  # type: ignore[arg-type]
        fields = {"content-type": "application/json", "content-length": str(len(body))} | reply.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"HTTP/1.1 {reply.code} \r\n{lines}\r\n".encode("latin-1")
        if isinstance(reply, Half):
            writer.write(head + body[: len(body) // 2])
            raise ConnectionAbortedError
        while isinstance(reply, Drip) and len(body) > 1:
            writer.write(head + body[:1])
            head, body = b"", body[1:]
            await patience(reader, reply.seconds_per_byte)
        if call and reply.code == 200:
            self.answered.append(call)
        writer.write(head + body)

    def _other(self, method: str, path: str, query: str, body: bytes) -> Status | Raw:
        found: Any
        files = self.uploads | self.outputs
        match [method, *path.split("/")[1:]]:
            case ["GET", "stats"]:
                found = {"calls": len(self.calls), "answered": len(self.answered), "in_flight_max": self.in_flight_max}
            case ["GET", "v1", "models"]:
                found = {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
            case ["POST", "v1", "files"]:
                parts = [part.partition(b"\r\n\r\n") for part in body.split(b"\r\n" + body.partition(b"\r\n")[0])]
                name = f"file-{len(self.uploads)}"
                self.uploads[name] = next(data for about, _, data in parts if b' name="file"' in about)
                return self._other("GET", f"{path}/{name}", "", b"")
            case ["GET", "v1", "files", name, "content"] if name in files:
                found = files[name]
            case ["GET", "v1", "files", name] if name in files:
                found = {"id": name, "object": "file", "filename": name, "bytes": len(files[name]), "purpose": "batch"}
            case ["POST", "v1", "batches"]:
                asked = json.loads(body)
                lines = [json.loads(line) for line in self.uploads[asked["input_file_id"]].splitlines()]
                result = self.batch_script(lines) if self.batch_script else batch_result(lines, self.script)
                found = {"id": f"batch_{len(self.batches)}", "object": "batch", "created_at": int(time.time())}
                found |= {"status": "validating", "output_file_id": None, "error_file_id": None, "metadata": None}
                found |= asked | {"request_counts": {"total": len(lines), "completed": 0, "failed": 0}}
                self.results[found["id"]] = replace(result)
                self.batches.append(found)
            case ["GET", "v1", "batches"]:
                page = dict(pair.split("=") for pair in query.split("&") if pair)
                start = ["", *(batch["id"] for batch in self.batches[::-1])].index(page.get("after", ""))
                end = start + int(page.get("limit", 20))
                found = {"object": "list", "data": self.batches[::-1][start:end], "has_more": end < len(self.batches)}
            case [_, "v1", "batches", name, *part] if name in self.results:
                found = self._look(next(b for b in self.batches if b["id"] == name), cancel=part == ["cancel"])
            case _:
                return Status(404, {"message": f"no {method} {path} here", "type": "invalid_request_error"})
        return Raw(200, found if isinstance(found, bytes) else json.dumps(found).encode())

    def _look(self, batch: Json, cancel: bool) -> Json:  # looking at a batch is what moves it on
        result = self.results[batch["id"]]
        if cancel and batch["status"] != result.status:
            self.results[batch["id"]] = BatchResult([], [], "cancelled", polls=0)
            batch["status"] = "cancelling"
        elif result.polls > 0:
            result.polls -= 1
            batch["status"] = "in_progress"
        elif batch["status"] != result.status:
            batch["status"] = result.status
            batch["request_counts"] |= {"completed": len(result.output), "failed": len(result.errors)}
            for kind, lines in (("output", result.output), ("error", result.errors)):
                batch[f"{kind}_file_id"] = f"file-{batch['id']}-{kind}" if lines else None
                self.outputs[f"file-{batch['id']}-{kind}"] = "".join(json.dumps(s) + "\n" for s in lines).encode()
        return batch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in {"--port": 0, "--latency": 0.0, "--rationale-words": 1}.items():
        parser.add_argument(option, type=type(default), default=default)
    options = parser.parse_args()
    answer = json_answer("red", " ".join(["because"] * options.rationale_words))
    with ScriptedServer(lambda call: answer, options.latency, options.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()
