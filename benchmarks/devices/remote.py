"""What the host runs on a device: this file's own text, sent as an argument of python3. Standard library only.

Each verb takes one JSON argument and says its answer as one line of stdout behind `MAGIC`, which no login banner starts
with. Everything lies below `base()`: `bundles/` and `parcels/` by their hashes; a file that is still arriving is named
`*.partial`.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

MAGIC = "@edgestill-device "
SILENCE_S = 60  # the host says something every few seconds; after this long without, it is gone
GRACE_S = 5
CHUNK_BYTES = 1 << 20
MODULES = ("numpy", "onnxruntime", "tokenizers", "llama_cpp")  # what a stage imports, where it is installed already


def cache_folder() -> Path:
    """Where a machine keeps what was fetched for it or for others: $EDGESTILL_CACHE, else ~/.cache/edgestill."""
    return Path(os.environ.get("EDGESTILL_CACHE") or Path.home() / ".cache" / "edgestill")


def base() -> Path:
    """Where a device keeps what a host sent."""
    return cache_folder() / "device"


def say(answer: dict[str, Any]) -> None:
    """One answer to the host."""
    print(MAGIC + json.dumps(answer), flush=True)


def probe() -> dict[str, Any]:
    """Which wheels would run here, and how many bytes are free below `base()`."""
    libc, libc_version = platform.libc_ver()
    place = next(p for p in (base(), *base().parents) if p.is_dir())
    return {
        "python": list(sys.version_info[:3]),
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "libc": "bionic" if hasattr(sys, "getandroidapilevel") else libc,
        "libc_version": libc_version,
        "free_bytes": shutil.disk_usage(place).free,
        "base": str(base()),
        "modules": [name for name in MODULES if importlib.util.find_spec(name)],
    }


def hold(_: Any) -> int:
    """Keep every other benchmark off this device until the host goes away."""
    _lock("lock")
    say(probe())
    _wait_for_the_end()
    return 0


def missing(wanted: dict[str, Any]) -> int:
    """Which files of {folder, files: {path: sha256}} are not there or not whole: {path: bytes of it that are there}."""
    folder, lacking = base() / wanted["folder"], {}
    for name, sha256 in wanted["files"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != sha256:
            partial = _partial(path, sha256)
            lacking[name] = partial.stat().st_size if partial.is_file() else 0
    say({"missing": lacking, "free_bytes": probe()["free_bytes"], "folder": str(folder)})
    return 0


def receive(wanted: dict[str, Any]) -> int:
    """Stdin as the rest of a file from `offset` on: {folder, path, sha256, bytes, offset}. Named at last when whole."""
    path = base() / wanted["folder"] / wanted["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path, wanted["sha256"])
    with partial.open("ab") as file:
        file.truncate(wanted["offset"])
        shutil.copyfileobj(sys.stdin.buffer, file, CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())
    whole = file_sha256(partial) == wanted["sha256"]
    if whole:
        partial.replace(path)
    elif partial.stat().st_size >= wanted["bytes"]:
        partial.unlink()
    say({"whole": whole})
    return 0


def absent(wanted: dict[str, Any]) -> int:
    """Which of {parcels: [sha256]} are not unpacked here, or not as they were packed."""
    say({"absent": [sha256 for sha256 in wanted["parcels"] if not unpacked(base(), sha256)]})
    return 0


def unpack(wanted: dict[str, Any]) -> int:
    """Make the folder of a parcel from the zip that arrived: {sha256}."""
    archive = base() / "parcels" / (wanted["sha256"] + ".zip")
    unpack_parcel(base(), wanted["sha256"], archive)
    archive.unlink()
    say({"unpacked": wanted["sha256"]})
    return 0


def stage(wanted: dict[str, Any]) -> int:
    """Run one stage in a process group of its own: {arguments, parcels: [sha256]}; it ends when the host goes away."""
    lock = _lock("stage.lock")
    heard, told = os.pipe()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # which come while `wait` below holds its lock
        signal.signal(number, lambda *_: os.write(told, b"\n"))
    command = [sys.executable, "-m", "edgestill.benchmarks.stage", *wanted["arguments"]]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ, PYTHONPATH=parcel_path(base(), wanted["parcels"]), PYTHONUNBUFFERED="1"),
        cwd=str(base()),
        start_new_session=True,
        pass_fds=[lock],  # whoever kills this process leaves the lock with the stage
    )
    threading.Thread(target=_end_alone, args=(child, heard), daemon=True).start()
    code = child.wait()
    end_group(child)  # what it may have left behind
    return code if code >= 0 else 128 - code


def unpack_parcel(root: Path, sha256: str, archive: Path) -> None:
    """Unzip `archive` into `root/parcels/SHA256`, named so when all of it is there, beside the hashes of its files.

    One process at a time: another that wants the same parcel waits, and finds it there.
    """
    folder = root / "parcels" / sha256
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(sha256 + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if unpacked(root, sha256):
            return
        partial = folder.with_name(sha256 + ".partial")
        shutil.rmtree(str(partial), ignore_errors=True)
        with zipfile.ZipFile(str(archive)) as packed:
            packed.extractall(str(partial))
        folder.with_name(sha256 + ".json").write_text(json.dumps(_tree(partial)), encoding="utf-8")
        shutil.rmtree(str(folder), ignore_errors=True)
        partial.replace(folder)


def unpacked(root: Path, sha256: str) -> bool:
    """Whether a parcel is there with every file as it was packed."""
    folder, listing = root / "parcels" / sha256, root / "parcels" / (sha256 + ".json")
    return folder.is_dir() and listing.is_file() and _tree(folder) == json.loads(listing.read_text(encoding="utf-8"))


def parcel_path(root: Path, parcels: list[str]) -> str:
    """PYTHONPATH of unpacked parcels."""
    return os.pathsep.join(str(root / "parcels" / sha256) for sha256 in parcels)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def end_group(child: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and all of its group: asked first, then killed."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, number)
            child.wait(wait_s)


def _tree(folder: Path) -> dict[str, str]:
    """Hash by path of all files but the caches of compiled modules, which Python itself adds."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


def _partial(path: Path, sha256: str) -> Path:
    return path.with_name(f"{path.name}.{sha256[:16]}.partial")


def _lock(name: str) -> int:
    base().mkdir(parents=True, exist_ok=True)
    handle = os.open(str(base() / name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "wait until it is done, then run the same command"
        raise SystemExit(_refuse("another benchmark runs there", hint)) from None
    return handle


def _wait_for_the_end(*signals: int) -> None:
    """Return when the host is gone, which is when stdin ends or is silent for long, or when one of `signals` speaks."""
    while select.select([0, *signals], [], [], SILENCE_S)[0] == [0] and os.read(0, CHUNK_BYTES):
        pass


def _end_alone(child: subprocess.Popen[Any], heard: int) -> None:
    _wait_for_the_end(heard)
    end_group(child)


def _refuse(message: str, hint: str) -> int:
    print(f"{message} - {hint}", file=sys.stderr, flush=True)  # for those who read no answer, as of a stage
    say({"error": message, "hint": hint})
    return 1


VERBS = {
    "hold": hold,
    "missing": missing,
    "receive": receive,
    "absent": absent,
    "unpack": unpack,
    "stage": stage,
    "probe": lambda _: say(probe()),
}


def main(verb: str, argument: str) -> int:
    """Do one verb; a full disk and its like are answers too."""
    try:
        return VERBS[verb](json.loads(argument)) or 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_mb = probe()["free_bytes"] // 1_000_000
            return _refuse(f"the disk there is full ({free_mb} MB free in {base()})", "make room there")
        return _refuse(f"{error} there", f"see that {base()} can be written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
