"""Gate: a text has one sequence of token ids, whoever reads it: tokenizers, transformers, and llama.cpp.

The tokenizer.json that training read, with special tokens in a text read as text, says which. An encoder's device
reads tokenizer.json whatever the engine, so llama.cpp's own ids are gated for a student that writes only.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgestill.export.build import Build
from edgestill.export.gates.gate import Gate, at_most
from edgestill.export.tokenizer_writer import mismatches
from edgestill.runtime import manifest
from edgestill.runtime.errors import GateFailed
from edgestill.runtime.task import load_tokenizer


def probe_texts(student: Path, dev: Sequence[str]) -> list[str]:
    """Every row that a run has an answer to, and the tokenizer's own special tokens, alone and inside a text."""
    data = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    special = [added["content"] for added in data.get("added_tokens", [])][:64]
    files = [student / name for name in ("test.jsonl", "train.jsonl")]  # who brings a model has trained elsewhere
    others = [row["text"] for path in files if path.exists() for row in manifest.read_jsonl(path)]
    return [*dev, *others, *special, *(f"a{token}b {token} c" for token in special)]


def token_gates(build: Build, probes: Sequence[str]) -> list[Gate]:
    """Texts with other token ids than training's: by the bundle's tokenizer.json, by transformers, by the GGUF file."""
    reference = load_tokenizer(build.student)
    wanted = [reference.encode(text, add_special_tokens=False).ids for text in probes]
    unit = f"of {len(probes):,} texts"
    own = load_tokenizer(build.folder)
    wrong = sum(own.encode(text, add_special_tokens=False).ids != ids for text, ids in zip(probes, wanted, strict=True))
    gates = [at_most("token ids of tokenizer.json", wrong, 0, unit)]
    found = _by_transformers(build.folder)(list(probes), add_special_tokens=False, split_special_tokens=True)
    wrong = sum(a != b for a, b in zip(found["input_ids"], wanted, strict=True))
    gates.append(at_most("token ids in transformers", wrong, 0, unit))
    gguf = build.path("gguf")
    if gguf is not None and not build.task.is_head:
        gates.append(at_most("token ids in llama.cpp", len(mismatches(gguf, reference, probes)), 0, unit))
    return gates


def _by_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise GateFailed(f"transformers cannot read the bundle's tokenizer: {error}", "name another base") from None
