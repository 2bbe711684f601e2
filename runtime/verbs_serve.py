"""`edgestill serve`: a bundle behind OpenAI's API. Parses, starts and stops; the server is runtime/serving."""

import os
import signal
import threading
from typing import Annotated, Any

import typer

from edgestill.runtime.errors import UsageError
from edgestill.runtime.terminal import BundleFolder, Json, answer

LOOPBACK = ("127.0.0.1", "::1", "localhost")
GRACE_S = 10.0


def serve(
    bundle: BundleFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8080,
    engine: Annotated[str | None, typer.Option(help="onnx, gguf or onnx-labels.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: the cores this process may use.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Variable with the key that clients must send.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse messages that the teacher was not asked with.")
    ] = False,
    abstain_below: Annotated[
        float | None, typer.Option("--abstain-below", min=0, max=1, metavar="P", help="Mark answers less sure than P.")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1024, metavar="BYTES", help="Largest request.")] = 2**20,
    max_waiting: Annotated[int, typer.Option(min=0, metavar="N", help="Requests that may wait; more get 429.")] = 32,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, metavar="S", help="Longest answer.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Serve a bundle behind OpenAI's API. An app that asked the teacher changes only its base_url."""
    from edgestill.runtime import load
    from edgestill.runtime.serving.server import Limits, Options, StudentServer

    limits = Limits(body_bytes=max_body_bytes, waiting=max_waiting, request_s=timeout_s)
    options = Options(host, port, _api_key(api_key_env), strict, abstain_below, limits)
    server = StudentServer(load(bundle, engine, threads), options)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    if host not in LOOPBACK and options.api_key is None:
        typer.echo(f"edgestill: whoever reaches {host} can ask - add --api-key-env NAME", err=True)
    facts: dict[str, Any] = {"url": server.url, "model": server.name, "engine": server.student.artifact.engine}
    facts |= {"teacher": server.prompt.model if server.prompt else None, "strict": strict}
    said = f"Serving {server.name} ({facts['engine']}) at {server.url}; Ctrl-C stops"
    answer(as_json, facts, said, f"OPENAI_BASE_URL={server.url} APP")
    stopped.wait()
    server.stop(GRACE_S)


def _api_key(name: str | None) -> str | None:
    """The key in the variable `name`.

    Raises:
        UsageError: the variable is not set or empty.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(f"--api-key-env {name}: that variable is not set", f"type: export {name}=...")
    return key


SERVE_VERBS = (serve,)
