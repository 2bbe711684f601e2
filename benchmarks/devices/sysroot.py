"""Make what emulation needs, without root: `python -m edgestill.benchmarks.devices.sysroot [FOLDER]`.

An arm64 Python and its libraries come from the mirrors that this machine's own apt is set up with, their signatures
checked by apt; qemu comes from there too unless it is installed. Debian has arm64 on its usual mirrors; where apt knows
only mirrors without it, as Ubuntu's, apt says so.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgestill.benchmarks.devices.remote import cache_folder
from edgestill.runtime.errors import EdgestillError

ARCHITECTURE = "arm64"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
EMULATOR_PACKAGE = "qemu-user-static"
COMMAND = "python -m edgestill.benchmarks.devices.sysroot"


def default_folder() -> Path:
    """Where `--device emulated:CORE` looks."""
    return cache_folder() / "emulated"


def find_emulator(folder: Path) -> Path | None:
    """The emulator (qemu's user mode for aarch64): the installed one, else the one in `folder`."""
    installed = (shutil.which(name) for name in EMULATORS)
    fetched = folder / "tools" / "usr" / "bin" / EMULATORS[0]
    return next((Path(path) for path in installed if path), fetched if fetched.is_file() else None)


def find_python(folder: Path) -> Path | None:
    """The arm64 interpreter by its versioned name, None before `make_sysroot`."""
    binaries = folder / "root" / "usr" / "bin"
    link = binaries / "python3"
    return binaries / link.readlink().name if link.is_symlink() else None


def make_sysroot(folder: Path) -> None:
    """Fetch and unpack into `folder`: `root/` for arm64 and, unless qemu is installed, `tools/`.

    Raises:
        EdgestillError: no apt or dpkg-deb here, or a mirror that does not answer or has no arm64.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise EdgestillError(f"no {program} on this machine", "make the folder on a Debian and copy it here")
    folder.mkdir(parents=True, exist_ok=True)
    if find_emulator(folder) is None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _run(["apt-get", "download", "-o", "APT::Sandbox::User=", EMULATOR_PACKAGE], Path(place))
            _unpack(Path(place), folder / "tools")
        if find_emulator(folder) is None:  # Debian 13 moved it
            raise EdgestillError(
                f"{EMULATOR_PACKAGE} of this system holds no emulator", "type: apt-get install qemu-user"
            )
    if find_python(folder) is None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _fetch(Path(place))
            _unpack(Path(place) / "cache" / "archives", folder / "root")


def _fetch(place: Path) -> None:
    """The packages with all that they need, by an apt that believes it is on an empty arm64 machine."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (place / part).mkdir(parents=True)
    (place / "status").touch()
    settings = {
        "Dir::State": place / "state",
        "Dir::State::status": place / "status",
        "Dir::Cache": place / "cache",
        "APT::Architecture": ARCHITECTURE,
        "APT::Architectures": ARCHITECTURE,
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "--error-on=any", "update"], place)
    _run(["apt-get", *options, "--yes", "--download-only", "install", *PACKAGES], place)


def _unpack(archives: Path, folder: Path) -> None:
    """Every package's files, under the folder's name only when all are there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for package in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(partial)], archives)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _run(command: Sequence[str], folder: Path) -> None:
    language = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=language, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if line.startswith("E:")), done.stderr[-200:].strip())
        raise EdgestillError(f"{command[0]} failed: {said}", "see that apt's mirrors answer and have arm64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder and say where it is."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Fetch what --device emulated:CORE needs.")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    folder = parser.parse_args(arguments).folder
    try:
        make_sysroot(folder)
    except EdgestillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
