"""What a device needs beside its python3, as zips that are unpacked into folders: wheels, and our own two rooms.

Wheels are those of this machine's versions, fetched by its own pip for the device's platform. Only what a stage imports
is fetched: onnxruntime and tokenizers declare more packages than they import.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edgestill.benchmarks
import edgestill.runtime
from edgestill.benchmarks.devices import remote
from edgestill.runtime.errors import EdgestillError

WHEELS = ("numpy", "onnxruntime", "tokenizers")
ROOMS = {"runtime": edgestill.runtime, "benchmarks": edgestill.benchmarks}
OLDEST_MANYLINUX = 17  # manylinux2014, which is glibc 2.17 (PEP 600)
NO_CONNECTION = ("connection broken", "Failed to establish", "Retrying")  # pip's wording
RETRIES = 3  # more than none, whatever pip's settings say: only of a retry does pip say that there was no connection
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same files are the same zip


@dataclass(frozen=True)
class Platform:
    """What decides which wheels run: CPython's version, the processor, the version of glibc (None: another libc)."""

    python: tuple[int, int]
    machine: str
    glibc: tuple[int, int] | None
    libc: str = "glibc"

    @property
    def name(self) -> str:
        """Such as "cp311, aarch64, glibc 2.36"."""
        libc = f"glibc {self.glibc[0]}.{self.glibc[1]}" if self.glibc else (self.libc or "an unknown libc")
        return f"cp{self.python[0]}{self.python[1]}, {self.machine}, {libc}"

    @property
    def tags(self) -> tuple[str, ...]:
        """Platform tags of wheels that run there, newest first (PEP 600); none without glibc."""
        if self.glibc is None or self.glibc[0] != 2:
            return ()
        numbered = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc[1], OLDEST_MANYLINUX - 1, -1)]
        return (*numbered, f"manylinux2014_{self.machine}")


def read_platform(facts: Mapping[str, Any]) -> Platform:
    """The platform of a device by what `remote.probe` said there."""
    parts = re.match(r"(\d+)\.(\d+)", facts["libc_version"]) if facts["libc"] == "glibc" else None
    glibc = (int(parts[1]), int(parts[2])) if parts else None
    return Platform((facts["python"][0], facts["python"][1]), facts["machine"], glibc, facts["libc"])


def lacks(platform: Platform, modules: Sequence[str]) -> dict[str, str]:
    """Engines that cannot run on a device where `modules` are installed, each with the reason."""
    if "llama_cpp" in modules:
        return {}
    return {"gguf": f"llama-cpp-python has no wheel for {platform.name} and is not installed there"}


def parcels(platform: Platform, modules: Sequence[str], cache: Path) -> dict[str, Path]:
    """Zips by their SHA-256, in the order of PYTHONPATH.

    Args:
        platform: of the device.
        modules: those of `remote.MODULES` that are installed there; they serve only where there is no wheel.
        cache: folder of this machine where zips wait.

    Raises:
        EdgestillError: a package that has no wheel for the platform and is not installed there, or no pip here.
    """
    wheels = [_wheel(name, platform, cache) if platform.tags else None for name in WHEELS]
    lacking = [name for name, wheel in zip(WHEELS, wheels, strict=True) if wheel is None and name not in modules]
    if lacking:
        raise EdgestillError(
            f"there is no wheel of {', '.join(lacking)} for {platform.name}",
            "install it there yourself so that python3 imports it (docs/devices.md), then run the same command",
        )
    found = [_rooms(cache), *(wheel for wheel in wheels if wheel is not None)]
    return {remote.file_sha256(path): path for path in found}


def _wheel(name: str, platform: Platform, cache: Path) -> Path | None:
    """The wheel of this machine's version of a package; None where its index has none for the platform."""
    wanted = f"{name}=={version(name)}"
    folder = cache / "wheels" / re.sub(r"[^A-Za-z0-9.]+", "-", platform.name)
    standing = next(iter(folder.glob(f"{name}-{version(name)}-*.whl")), None)
    if standing is not None:
        return standing
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as arriving:
        done = subprocess.run(_pip(wanted, platform, arriving), capture_output=True, text=True, check=False)
        arrived = next(iter(Path(arriving).glob("*.whl")), None)
        if done.returncode == 0 and arrived is not None:
            return arrived.rename(folder / arrived.name)
    offline = any(words in done.stderr for words in NO_CONNECTION)
    if "No matching distribution" in done.stderr and not offline:
        return None
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
    said = "it does not reach its index" if offline else last
    raise EdgestillError(f"pip did not fetch {wanted} for {platform.name}: {said}", "see that pip works here")


def _pip(wanted: str, platform: Platform, folder: str) -> list[str]:
    python = f"{platform.python[0]}{platform.python[1]}"
    tags = [word for tag in platform.tags for word in ("--platform", tag)]
    abis = [word for abi in (f"cp{python}", "abi3", "none") for word in ("--abi", abi)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--retries", str(RETRIES)]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    return [*command, *target, *abis, *tags, "--dest", folder, wanted]


def _rooms(cache: Path) -> Path:
    """Our rooms runtime and benchmarks as a zip, with the metadata by which they know their version."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        archive = Path(folder) / "rooms.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for room, package in ROOMS.items():
                root = Path(next(iter(package.__path__)))
                for path in sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts):
                    name = f"edgestill/{room}/{path.relative_to(root).as_posix()}"
                    packed.writestr(zipfile.ZipInfo(name, ZIP_DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
            name = f"edgestill-{version('edgestill')}.dist-info/METADATA"
            text = f"Metadata-Version: 2.1\nName: edgestill\nVersion: {version('edgestill')}\n"
            packed.writestr(zipfile.ZipInfo(name, ZIP_DATE), text)
        return Path(shutil.move(archive, cache / f"edgestill-{remote.file_sha256(archive)[:16]}.zip"))
