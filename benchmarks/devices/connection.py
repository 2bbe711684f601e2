"""One ssh connection to a device, through the system's ssh client; `remote` is what runs at its other end.

Hosts, ports, keys and jump hosts are what ~/.ssh/config says. The first process holds the device's lock and carries the
connection; all others go through it. Whatever runs there ends soon after this process does, however it does.
"""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from edgestill.benchmarks.devices import remote
from edgestill.benchmarks.devices.local import failure
from edgestill.runtime.errors import EdgestillError

CONNECT_TIMEOUT_S = 15
BEAT_S = 15.0  # far below remote.SILENCE_S
CHUNK_BYTES = 1 << 20
PATIENCE_S = 2 * remote.GRACE_S  # for the other end to stop what it runs
OLDEST_PYTHON = (3, 11)
SSH_FAILED = 255
NO_COMMAND = 127
SIGNALLED = 128  # and the signal's number
OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "LogLevel=ERROR",
    # what a user's own `Host *` may say and would outlive us, take ports, or replace our command
    "ControlPersist=no",
    "ClearAllForwardings=yes",
    "RemoteCommand=none",
)
LOST = "the connection was lost"
SAME_AGAIN = "run the same command; it goes on where it stopped"
# what the client says (OpenSSH's wording) -> what to type
ADVICE = (
    ("could not resolve hostname", "check the name, or add a Host of that name to ~/.ssh/config"),
    ("permission denied", "type: ssh-copy-id {host}"),
    ("host key verification failed", "type: ssh {host} and see whether its key is the right one"),
    ("no space left on device", "make room there"),
)


class Connection:
    """A device reached by ssh, with its lock held. Close it."""

    def __init__(self, host: str, client: Sequence[str] = ("ssh",)) -> None:
        """Connect and take the device's lock.

        Args:
            host: as one types after `ssh`.
            client: the ssh client and options that come first, such as ("ssh", "-F", "config").

        Raises:
            EdgestillError: no client, an unknown host, a refused key, no python3 there, another benchmark there.
        """
        if shutil.which(client[0]) is None:
            raise EdgestillError(f"no program {client[0]} on this machine", "type: apt-get install openssh-client")
        self.host = host
        self._folder = tempfile.TemporaryDirectory(prefix="edgestill-")
        self._socket = str(Path(self._folder.name) / "c")
        self._command = [*client, *(word for option in OPTIONS for word in ("-o", option)), "-S", self._socket, "-T"]
        self._held = self.start("hold", None, ("-M",))
        try:
            self.facts: dict[str, Any] = self._held.answer()
        except BaseException:
            self.close()
            raise

    def start(self, verb: str, argument: object, options: Sequence[str] = ("-o", "ControlMaster=no")) -> "Remote":
        """Start a verb of `remote` there; the caller leaves it by `with`, or closes it."""
        words = [*self._command, *options, "--", self.host, command_line(verb, argument)]
        return Remote(self.host, words)

    def ask(self, verb: str, argument: object) -> dict[str, Any]:
        """What a verb of `remote` answers.

        Raises:
            EdgestillError: the connection was lost, or the device refuses.
        """
        with self.start(verb, argument) as there:
            return there.answer()

    def send(self, argument: dict[str, Any], file: Path) -> bool:
        """Push a file from argument["offset"] on; whether it arrived whole (see `remote.receive`)."""
        with self.start("receive", argument) as there, file.open("rb") as source:
            source.seek(argument["offset"])
            with contextlib.suppress(BrokenPipeError):  # the answer tells why
                shutil.copyfileobj(source, there.stdin, CHUNK_BYTES)
            there.end_stdin()
            return bool(there.answer()["whole"])

    def must_stand(self) -> None:
        """Refuse to go on without the lock.

        Raises:
            EdgestillError: the connection was lost.
        """
        if self._held.ended():
            raise EdgestillError(f"{self.host} is not reached: {LOST}", SAME_AGAIN)

    def close(self) -> None:
        """Give the lock and the connection back."""
        self._held.close()
        self._folder.cleanup()


class Remote:
    """One process at the other end. Its stdin is what keeps it alive: beats, or a file's bytes."""

    def __init__(self, host: str, words: Sequence[str]) -> None:
        """Start it in a session of its own: Ctrl-C reaches this process, which then closes it."""
        self._host = host
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, start_new_session=True
        )
        self._stop = threading.Event()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stdin(self) -> IO[bytes]:
        """Where a file's bytes go."""
        return self._process.stdin  # type: ignore[return-value]

    def end_stdin(self) -> None:
        """Say that all is sent, or that nobody is here any more."""
        with contextlib.suppress(OSError, ValueError):
            self.stdin.close()

    def beat(self) -> None:
        """Say now and then that the host is alive, until the process is closed."""

        def run() -> None:
            with contextlib.suppress(OSError, ValueError):
                while not self._stop.wait(BEAT_S):
                    self.stdin.write(b"\n")
                    self.stdin.flush()

        threading.Thread(target=run, daemon=True).start()

    def lines(self) -> Iterator[str]:
        """Its lines of stdout as they come, without line ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.decode(errors="replace").rstrip("\r\n")

    def answer(self) -> dict[str, Any]:
        """Its one answer, whatever banners say before it; raises EdgestillError when there is none or it refuses."""
        for line in self.lines():
            _, said, text = line.partition(remote.MAGIC)  # a banner may end without a new line
            if said:
                found: dict[str, Any] = json.loads(text)
                if "error" in found:
                    raise EdgestillError(f"{self._host}: {found['error']}", found["hint"])
                self.beat()
                return found
        raise self.failure(self._process.wait())

    def ended(self) -> bool:
        """Whether the process at this end is gone."""
        return self._process.poll() is not None

    def wait(self) -> int:
        """Its exit code."""
        return self._process.wait()

    def failure(self, code: int) -> EdgestillError:
        """What its exit code and the last line of its stderr say, in one line."""
        self._stderr.seek(0)
        talk = self._stderr.read().decode(errors="replace").strip()
        said = (talk.splitlines() or [""])[-1].strip()
        if code == SSH_FAILED:
            return EdgestillError(
                f"{self._host} is not reached: {said or 'the connection was lost'}", self._advice(said)
            )
        if code == NO_COMMAND:
            return EdgestillError(f"{self._host} has no python3", "install it there, at least 3.11")
        return failure(self._host, code if code < SIGNALLED else SIGNALLED - code, talk)

    def _advice(self, said: str) -> str:
        found = (advice for words, advice in ADVICE if words in said.lower())
        return next(found, SAME_AGAIN).format(host=self._host)

    def close(self) -> None:
        """End it: close its stdin, wait for it to stop what it runs there, then end the client here."""
        self._stop.set()
        self.end_stdin()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()


def command_line(verb: str, argument: object) -> str:
    """`remote` as one line that every login shell passes on unchanged: base64 has no character that one would read."""
    program = base64.b64encode(zlib.compress(Path(remote.__file__).read_bytes(), 9)).decode()
    said = base64.b64encode(json.dumps(argument).encode()).decode()
    loader = (
        "import base64,sys,zlib;"
        f"sys.version_info<{OLDEST_PYTHON} and sys.exit("
        f'"its python3 is %d.%d, wanted %d.%d or newer"%(sys.version_info[:2]+{OLDEST_PYTHON}));'
        "sys.argv[2]=base64.b64decode(sys.argv[2]).decode();"
        f'exec(compile(zlib.decompress(base64.b64decode("{program}")),"remote.py","exec"))'
    )
    return f"exec python3 -c '{loader}' {verb} {said}"
