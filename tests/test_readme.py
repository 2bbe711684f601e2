"""Every command of the README runs as it stands there; `make test` is what runs this."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_HERE = {"make test", "source .venv/bin/activate"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [c for block in blocks("sh") for line in block.splitlines() if (c := line.split("  #")[0].strip())]


def test_the_readme_shows_both_make_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in NOT_HERE])
def test_a_command_of_the_readme_runs(command: str, demo: Path, tmp_path: Path) -> None:
    assert demo.exists()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = command.replace(" my-example", f" {tmp_path}/my-example")
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_python_of_the_readme_runs(demo: Path) -> None:
    assert demo.exists()
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
