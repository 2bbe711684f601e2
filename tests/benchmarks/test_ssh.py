"""The ssh machine against a real ssh server on the loopback, reached by the system's ssh client."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_bundle import small_bundle

from edgestill.benchmarks.devices import connection, remote, wheelhouse
from edgestill.benchmarks.devices.connection import Connection
from edgestill.benchmarks.devices.machine import DoesNotFit
from edgestill.benchmarks.devices.ssh import SshMachine, open_ssh
from edgestill.benchmarks.stage import events
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError

asyncssh = pytest.importorskip("asyncssh")
pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="this machine has no ssh client")

SERVER = Path(__file__).resolve().parent.parent / "ssh_device.py"
TOOLS = ("sh", "sleep")


@dataclass(frozen=True)
class Device:
    """A running server: its folder, and an ssh client that knows it as `device` and with a wrong key as `stranger`."""

    folder: Path
    client: tuple[str, ...]

    @property
    def base(self) -> Path:
        return self.folder / "home" / ".cache" / "edgestill" / "device"

    def connect(self) -> Connection:
        return Connection("device", self.client)


@contextlib.contextmanager
def serving(folder: Path, python: Path) -> Iterator[Device]:
    for name in ("home", "bin"):
        (folder / name).mkdir(parents=True)
    for name in TOOLS:
        (folder / "bin" / name).symlink_to(shutil.which(name))
    if python.exists():
        (folder / "bin" / "python3").symlink_to(python)
    for name in ("host_key", "user_key", "wrong_key"):
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(folder / name)
        (folder / name).chmod(0o600)
    user = asyncssh.read_private_key(folder / "user_key")
    user.write_public_key(folder / "authorized_keys")
    process = subprocess.Popen(
        [sys.executable, SERVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        port = int(process.stdout.readline())
        yield Device(folder, ("ssh", "-F", str(write_config(folder, port))))
        process.stdin.close()


def write_config(folder: Path, port: int) -> Path:
    host_key = asyncssh.read_private_key(folder / "host_key").export_public_key().decode()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    lines = [
        "Host device stranger",
        "HostName 127.0.0.1",
        f"Port {port}",
        "User anyone",
        f"UserKnownHostsFile {folder / 'known_hosts'}",
        "GlobalKnownHostsFile /dev/null",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        "Host device",
        f"IdentityFile {folder / 'user_key'}",
        "Host stranger",
        f"IdentityFile {folder / 'wrong_key'}",
        "Host nobody",
        "HostName no-such-host.invalid",
        "Host unheard",
        "HostName 127.0.0.1",
        "Port 1",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    return folder / "config"


def plain_python() -> Path:
    """This interpreter outside of the environment that holds our packages."""
    return Path(sys._base_executable).resolve()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with serving(tmp_path_factory.mktemp("device"), plain_python()) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    return small_bundle(tmp_path_factory.mktemp("small"), tiny_encoder)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder to push; it only looks like a bundle."""
    (tmp_path / "files" / "onnx").mkdir(parents=True)
    (tmp_path / "files" / "onnx" / "model.onnx").write_bytes(os.urandom(3_000_000))
    (tmp_path / "files" / "bundle.json").write_text(tmp_path.name)
    return tmp_path / "files"


def test_a_bundle_is_pushed_once_and_hashed_there_every_time(device: Device, files: Path) -> None:
    machine = SshMachine("ssh:device", device.connect())
    with contextlib.closing(machine):
        place = Path(machine.place(files))
        pushed = {p: (p.stat().st_ino, p.read_bytes()) for p in place.rglob("*") if p.is_file()}
        assert {p.relative_to(place): content for p, (_, content) in pushed.items()} == {
            p.relative_to(files): p.read_bytes() for p in files.rglob("*") if p.is_file()
        }
        assert machine.place(files) == str(place)
        assert all(path.stat().st_ino == inode for path, (inode, _) in pushed.items()), "nothing was pushed again"
        (place / "onnx" / "model.onnx").write_bytes(b"another model")
        machine.place(files)
        assert (place / "onnx" / "model.onnx").read_bytes() == (files / "onnx" / "model.onnx").read_bytes()


@pytest.mark.parametrize("whole_part", [True, False])
def test_a_push_goes_on_where_it_was_cut_off_even_when_what_arrived_is_rubbish(
    device: Device, files: Path, whole_part: bool
) -> None:
    path = files / "onnx" / "model.onnx"
    content, sha256 = path.read_bytes(), manifest.sha256_file(path)
    place = device.base / "bundles" / "cut" / "onnx" / "model.onnx"
    partial = place.with_name(f"{place.name}.{sha256[:16]}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content[:1_000_000] if whole_part else b"x" * 1_000_000)
    with contextlib.closing(device.connect()) as there:
        wanted = {"folder": "bundles/cut", "files": {"onnx/model.onnx": sha256}}
        assert there.ask("missing", wanted)["missing"] == {"onnx/model.onnx": 1_000_000}
        asked = {"folder": "bundles/cut", "path": "onnx/model.onnx", "sha256": sha256, "bytes": len(content)}
        assert there.send({**asked, "offset": 1_000_000}, path) is whole_part
        assert place.exists() is whole_part, "only a whole file gets its name"
        machine = SshMachine("ssh:device", there)
        place = Path(machine._push("bundles/cut", wanted["files"], {"onnx/model.onnx": path}))
        assert (place / "onnx" / "model.onnx").read_bytes() == content
    shutil.rmtree(device.base / "bundles" / "cut")


def test_two_benchmarks_never_share_a_device(device: Device) -> None:
    refused = pytest.raises(EdgestillError, match="device: another benchmark runs there - wait")
    with contextlib.closing(device.connect()), refused:
        device.connect()
    device.connect().close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nobody", "nobody is not reached: .*[Cc]ould not resolve hostname .* - check the name"),
        ("stranger", "stranger is not reached: .*Permission denied.* - type: ssh-copy-id stranger"),
        ("unheard", "unheard is not reached: .*Connection refused"),
    ],
)
def test_a_device_that_is_not_reached_is_one_line_that_says_what_to_type(device: Device, host: str, words: str) -> None:
    with pytest.raises(EdgestillError, match=words) as caught:
        Connection(host, device.client)
    assert "\n" not in str(caught.value)


def test_a_changed_host_key_is_not_trusted(device: Device, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text("")
    client = (*device.client, "-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}")
    with pytest.raises(EdgestillError, match=r"Host key verification failed.* - type: ssh device and see"):
        Connection("device", client)


def test_a_device_without_python3_is_named(tmp_path: Path) -> None:
    with serving(tmp_path, tmp_path / "none") as bare, pytest.raises(EdgestillError, match="device has no python3"):
        bare.connect()


def test_a_python_that_is_too_old_is_named(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "OLDEST_PYTHON", (9, 9))
    with pytest.raises(EdgestillError, match=r"device failed .*: its python3 is 3\.\d+, wanted 9\.9 or newer"):
        device.connect()


def test_a_file_that_does_not_fit_is_said(device: Device, files: Path) -> None:
    with contextlib.closing(SshMachine("ssh:device", device.connect())) as machine:
        free = machine._connection.facts["free_bytes"]
        with pytest.raises(EdgestillError, match=r"MB do not fit into the \d+ MB that are free there - make room"):
            machine._must_fit(free + 1, free)
        (device.folder / "blocks").write_text("64")  # a limit of 32 kB a file: the write fails as on a full disk
        try:
            with pytest.raises(EdgestillError, match=r"device: .*File too large there - see that .* can be written"):
                machine.place(files)
        finally:
            (device.folder / "blocks").unlink()


@pytest.fixture
def sleeper(device: Device, tmp_path: Path) -> str:
    """A parcel whose stage starts a child, says both process numbers and sleeps; its SHA-256."""
    text = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print('pids', os.getpid(), child.pid)\n"
        "if sys.argv[1] == 'fail': sys.exit('what went wrong')\n"
        "if sys.argv[1] == 'full': os.kill(os.getpid(), 9)\n"
        "time.sleep(600)\n"
    )
    archive = tmp_path / "sleeper.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("edgestill/benchmarks/stage.py", text)
    sha256 = remote.file_sha256(archive)
    remote.unpack_parcel(device.base, sha256, archive)
    return sha256


def gone(pids: list[int], within_s: float = 15) -> bool:
    """Whether all processes end in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def pids_of(lines: Iterator[str]) -> list[int]:
    """The numbers, behind the banner that does not end its line."""
    return [int(word) for word in next(line for line in lines if "pids" in line).split()[-2:]]


def test_leaving_a_stage_early_ends_its_whole_group(device: Device, sleeper: str) -> None:
    machine = SshMachine("ssh:device", device.connect())
    machine._parcels = [sleeper]
    with contextlib.closing(machine):
        with pytest.raises(KeyboardInterrupt), machine.stage(["sleep"]) as lines:
            pids = pids_of(lines)
            assert not gone(pids, 0.2)
            raise KeyboardInterrupt
        assert gone(pids)
        with pytest.raises(EdgestillError, match=r"device failed .*what went wrong"), machine.stage(["fail"]) as lines:
            pids = pids_of(lines)
        assert gone(pids), "what a failed stage left behind ends too"
        full = pytest.raises(
            DoesNotFit, match=r"^was ended by SIGKILL, most likely for memory \(the stage full on ssh:d"
        )
        with full, machine.stage(["full"]) as lines:
            pids = pids_of(lines)
        assert gone(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stage_that_is_asked_to_end_there_ends_and_gives_its_lock_back(
    device: Device, sleeper: str, number: signal.Signals
) -> None:
    environment = {**os.environ, "EDGESTILL_CACHE": str(device.base.parent)}

    def start(what: str) -> subprocess.Popen[str]:
        asked = json.dumps({"arguments": [what], "parcels": [sleeper]})
        command = [plain_python(), remote.__file__, "stage", asked]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

    with start("sleep") as first:
        try:
            pids = pids_of(iter(first.stdout))
            first.send_signal(number)
            assert first.wait(15) == connection.SIGNALLED + signal.SIGTERM
            assert gone(pids)
        finally:
            first.kill()
    with start("fail") as second:
        assert second.wait(15) == 1
        assert "what went wrong" in second.stderr.read()


def test_a_stage_that_is_refused_there_says_why(device: Device, sleeper: str) -> None:
    machine = SshMachine("ssh:device", device.connect())
    machine._parcels = [sleeper]
    with contextlib.closing(machine), (device.base / "stage.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = pytest.raises(EdgestillError, match=r"device failed .*: another benchmark runs there - wait until")
        with refused, machine.stage(["sleep"]) as lines:
            list(lines)


def test_what_a_user_sets_for_all_hosts_does_not_reach_a_connection(device: Device, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ["Host *", "ControlMaster auto", f"ControlPath {tmp_path}/%C", "ControlPersist 10m", "RemoteCommand sleep 9"]
    (tmp_path / "config").write_text(
        "\n".join([*own, f"LocalForward {port} 127.0.0.1:1", f"Include {device.client[2]}"])
    )
    with contextlib.closing(Connection("device", ("ssh", "-F", str(tmp_path / "config")))) as there:
        assert there.ask("probe", None)["machine"]
        with socket.socket() as asked:
            assert asked.connect_ex(("127.0.0.1", port)) != 0, "a port of ours was taken"
    assert gone([pid for pid in all_pids() if there._socket in command_of(pid)]), "the master outlived its connection"


def test_a_killed_host_leaves_nothing_running_and_no_lock(device: Device, sleeper: str) -> None:
    script = (
        "import sys\n"
        "from edgestill.benchmarks.devices.connection import Connection\n"
        "from edgestill.benchmarks.devices.ssh import SshMachine\n"
        f"machine = SshMachine('ssh:device', Connection('device', {device.client!r}))\n"
        f"machine._parcels = [{sleeper!r}]\n"
        "with machine.stage(['sleep']) as lines:\n"
        "    for line in lines: print(line, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as host:
        pids = pids_of(iter(host.stdout))
        host.send_signal(signal.SIGKILL)
    assert gone(pids)
    with contextlib.closing(device.connect()) as there:
        assert there.ask("probe", None)["machine"]


def test_a_lost_connection_is_said_and_ends_what_runs_there(device: Device, sleeper: str) -> None:
    machine = SshMachine("ssh:device", device.connect())
    machine._parcels = [sleeper]
    with contextlib.closing(machine):
        lost = pytest.raises(EdgestillError, match=r"device is not reached: .* - run the same command")
        with lost, machine.stage(["sleep"]) as lines:
            pids = pids_of(lines)
            machine._connection._held._process.kill()
            assert gone(pids)
        still_lost = pytest.raises(EdgestillError, match="the connection was lost - run the same command")
        with still_lost, machine.stage(["sleep"]):
            pass


def test_an_unpacked_parcel_that_was_changed_is_seen(device: Device, sleeper: str) -> None:
    with contextlib.closing(device.connect()) as there:
        assert there.ask("absent", {"parcels": [sleeper, "0" * 64]})["absent"] == ["0" * 64]
        (device.base / "parcels" / sleeper / "edgestill" / "benchmarks" / "stage.py").write_text("pass")
        assert there.ask("absent", {"parcels": [sleeper]})["absent"] == [sleeper]


def test_processes_that_unpack_the_same_parcel_at_once_do_not_break_each_other(tmp_path: Path) -> None:
    archive = tmp_path / "many.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number in range(400):
            packed.writestr(f"room/{number}.py", f"value = {number}")
    sha256 = remote.file_sha256(archive)
    code = (
        "import sys; from pathlib import Path; from edgestill.benchmarks.devices import remote; "
        "remote.unpack_parcel(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "root"), sha256, str(archive)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[1] for process in started] == [""] * 4
    assert remote.unpacked(tmp_path / "root", sha256)


def test_a_bundle_answers_on_a_device_that_has_nothing_but_python3(device: Device, small: Path) -> None:
    with contextlib.closing(open_ssh("device", device.client)) as machine:
        place = machine.place(small)
        with machine.stage(["probe"]) as lines:
            found = next(events(lines))["device"]
        with machine.stage(["selfcheck", place, "onnx"]) as lines:
            checked = next(events(lines))
    assert found["packages"]["onnxruntime"] == wheelhouse.version("onnxruntime")
    assert checked["rows"] > 0
    assert checked["labels_changed"] == 0


def test_a_platform_without_wheels_is_named_unless_the_device_has_its_own(tmp_path: Path) -> None:
    old = wheelhouse.Platform((3, 11), "armv7l", (2, 36))
    with pytest.raises(EdgestillError, match=r"no wheel of .*onnxruntime.* for cp311, armv7l, glibc 2\.36 - install"):
        wheelhouse.parcels(old, ("numpy",), tmp_path)
    phone = wheelhouse.Platform((3, 12), "aarch64", None, "bionic")
    assert len(wheelhouse.parcels(phone, ("numpy", "onnxruntime", "tokenizers"), tmp_path)) == 1, "only our rooms"
    with pytest.raises(EdgestillError, match="no wheel of tokenizers for cp312, aarch64, bionic"):
        wheelhouse.parcels(phone, ("numpy", "onnxruntime"), tmp_path)


def test_being_offline_is_not_taken_for_a_missing_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # where nobody listens
    pi = wheelhouse.Platform((3, 11), "aarch64", (2, 36))
    with pytest.raises(EdgestillError, match=r"pip did not fetch numpy.*reach its index - see that pip works here"):
        wheelhouse.parcels(pi, (), tmp_path)


def test_our_rooms_are_the_same_zip_every_time(tmp_path: Path) -> None:
    phone = wheelhouse.Platform((3, 12), "aarch64", None, "bionic")
    found = [wheelhouse.parcels(phone, wheelhouse.WHEELS, tmp_path / str(number)) for number in range(2)]
    assert list(found[0]) == list(found[1])
    names = zipfile.ZipFile(next(iter(found[0].values()))).namelist()
    assert {"edgestill/runtime/student.py", "edgestill/benchmarks/stage.py"} <= set(names)
    assert json.dumps(names).count("__init__") == 1, "the namespace stays open: only runtime has one of its own"
