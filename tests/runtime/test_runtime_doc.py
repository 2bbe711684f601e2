"""Every Python block of docs/runtime.md runs as it stands there, on a small bundle in the demo's place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOC = Path(__file__).resolve().parents[2] / "docs" / "runtime.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_and_prints(block: str, tiny_bundle: Path) -> None:
    code = block.replace("runs/demo/bundle", str(tiny_bundle))
    assert code != block
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
