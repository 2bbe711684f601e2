"""Cut students: what is kept is the base's own, what is dropped is what does the least, and nothing is done twice."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgestill.distill.base import Base, prepare_base
from edgestill.distill.student import cut as cut_module
from edgestill.distill.student.cut import block_influence, cut_base, even_layers
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError

TEXTS = ["turn on the lamp", "open the hall door now", "the hall light off please", "dark", "close a door quickly"]
WORDS = ["<s>", "</s>", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
LAYERS = 6
ROOT = Path(__file__).parents[2]
TINY = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(model: Any, folder: Path, **options: Any) -> Path:
    """A Hugging Face folder with a tokenizer of words and a licence."""
    model.save_pretrained(folder, **options)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "LICENSE").write_text("do as you like", encoding="utf-8")
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**TINY, num_key_value_heads=2, tie_word_embeddings=True)
    return save(transformers.LlamaForCausalLM(config), tmp_path / "deep-llama")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = save(transformers.BertModel(transformers.BertConfig(**TINY)), tmp_path / "deep-bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    (folder / "modules.json").write_text("[]", encoding="utf-8")
    return folder


def tensors_of(folder: str | Path) -> dict[str, torch.Tensor]:
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: value for path in files for name, value in load_file(path).items()}


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put `tensors` into the folder's weights, over what has their names."""
    save_file(tensors_of(folder) | tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rest(folder: Path, *layers: int) -> Path:
    """Make layers of a Llama the identity; its final norm then turns every direction."""
    idle = [f"model.layers.{n}.{part}.weight" for n in layers for part in ("self_attn.o_proj", "mlp.down_proj")]
    tensors = tensors_of(folder)
    rewrite(folder, {name: torch.zeros_like(tensors[name]) for name in idle} | {"model.norm.weight": torch.randn(32)})
    return folder


def cut(folder: Path, layers: int, keep: str = "even", texts: list[str] = TEXTS) -> Base:
    return cut_base(prepare_base(str(folder)), layers, keep, texts)


def kept_of(base: Base) -> list[int]:
    """The layers that a cut base's `spec` names."""
    return [int(layer) for layer in base.spec.rsplit("(", 1)[1].removesuffix(")").split(", ")]


def load_whole(folder: str | Path, kind: Any) -> Any:
    """The model, if its file holds exactly the tensors that its config wants."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("LlamaForCausalLM", "model.layers."),
        ("BertForMaskedLM", "bert.encoder.layer."),
        ("BertModel", "encoder.layer."),
        ("RobertaForMaskedLM", "roberta.encoder.layer."),
        ("RobertaModel", "encoder.layer."),
    ],
)
def test_a_cut_model_loads_whole_and_its_layers_are_the_bases_own(tmp_path: Path, name: str, stack: str) -> None:
    torch.manual_seed(1)
    kind = getattr(transformers, name)
    folder = save(kind(kind.config_class(**TINY)), tmp_path / "deep")
    student = cut(folder, 3)
    assert kept_of(student) == [0, 3, 5]
    assert load_whole(student.folder, kind).config.num_hidden_layers == 3
    before, after = tensors_of(folder), tensors_of(student.folder)
    for tensor, value in after.items():
        origin = tensor
        if tensor.startswith(stack):
            place, part = tensor.removeprefix(stack).split(".", 1)
            origin = f"{stack}{[0, 3, 5][int(place)]}.{part}"
        assert torch.equal(value, before[origin]), tensor
    per_layer = sum(tensor.startswith(f"{stack}0.") for tensor in before)
    assert per_layer > 8
    assert len(after) == len(before) - 3 * per_layer


def test_a_cut_base_keeps_its_facts_and_says_what_it_is(llama: Path) -> None:
    base = dataclasses.replace(prepare_base(str(llama)), license="apache-2.0", weights_note="as found")
    student = cut_base(base, 3, "even", [])
    assert student.spec == f"{llama} cut to 3 of 6 layers (0, 3, 5)"
    assert (student.license, student.weights_note, student.tokenizer_origin) == ("apache-2.0", "as found", "copied")
    assert student.weights_sha256 == manifest.sha256_file(Path(student.folder) / "model.safetensors")
    assert Path(student.folder).name.startswith("deep-llama-cut-")
    assert manifest.load(Base, Path(student.folder) / "base.json") == student


def test_everything_but_layers_weights_is_copied(bert: Path) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"all six layers")
    (bert / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    (bert / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, bert / "2_Dense" / "model.safetensors")
    student = Path(cut(bert, 2).folder)
    names = ["1_Pooling/config.json", "2_Dense/model.safetensors", "modules.json", "tokenizer.json"]
    for name in (*names, "LICENSE", "tokenizer_config.json"):
        assert (student / name).read_bytes() == (bert / name).read_bytes()
    assert not (student / "pytorch_model.bin").exists()


def test_lists_with_an_entry_a_layer_are_cut_alike(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text("utf-8"))
    config |= {"layer_types": list("abcdef"), "no_rope_layers": [1, 0, 1, 1, 1, 0], "eos_token_id": [1, 2, 3, 4, 5, 6]}
    (llama / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = json.loads((Path(cut(llama, 3).folder) / "config.json").read_text("utf-8"))
    assert found == config | {"layer_types": list("adf"), "no_rope_layers": [1, 1, 0], "num_hidden_layers": 3}


def test_a_layer_that_sees_everything_still_does_where_a_rule_counts_the_layers(llama: Path) -> None:
    path = llama / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"model_type": "gemma3_text", "sliding_window": 16}
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "layer_types"}), encoding="utf-8")
    found = json.loads((Path(cut(llama, 3).folder) / "config.json").read_text("utf-8"))
    assert found["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


def test_without_two_layers_that_do_nothing_the_logits_are_the_same(llama: Path) -> None:
    student = cut(rest(llama, 1, 4), 4, "importance")
    assert kept_of(student) == [0, 2, 3, 5]
    ids = torch.tensor([[0, 10, 11, 3, 5, 14, 1]])
    with torch.inference_mode():
        whole, less = (load_whole(f, transformers.LlamaForCausalLM)(ids).logits for f in (llama, student.folder))
    assert torch.equal(whole, less)


def test_the_last_layer_is_judged_by_its_own_work_and_not_by_the_final_norm(llama: Path) -> None:
    assert kept_of(cut(rest(llama, 5), 5, "importance")) == [0, 1, 2, 3, 4]


def test_important_layers_stay_in_the_order_of_the_base(llama: Path) -> None:
    """Of three that work the first does the least."""
    rest(llama, 0, 1, 2)
    weak = [f"model.layers.3.{part}.weight" for part in ("self_attn.o_proj", "mlp.down_proj")]
    rewrite(llama, {name: tensors_of(llama)[name] / 100 for name in weak})
    assert kept_of(cut(llama, 3, "importance")) == [3, 4, 5]


@pytest.mark.parametrize(("family", "compared"), [("llama", LAYERS - 1), ("bert", LAYERS)])
def test_influence_is_one_minus_the_mean_cosine_of_what_enters_and_what_leaves(
    request: pytest.FixtureRequest, family: str, compared: int
) -> None:
    """Against transformers' hidden states; of a decoder all but the last, which is taken after the final norm."""
    folder = request.getfixturevalue(family)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cosines = []
    with torch.inference_mode():
        for text in TEXTS * 4:
            states = model(torch.tensor([tokenizer.encode(text).ids]), output_hidden_states=True).hidden_states
            pairs = itertools.pairwise(states)
            cosines.append(torch.stack([torch.cosine_similarity(a[0], b[0], dim=-1) for a, b in pairs]))
    wanted = 1 - torch.cat(cosines, 1).mean(1).numpy()
    found = block_influence(prepare_base(str(folder)), TEXTS * 4)
    np.testing.assert_allclose(found.values[:compared], wanted[:compared], atol=1e-6)
    assert (found.texts, found.tokens) == (20, sum(len(text.split()) + 2 for text in TEXTS * 4))


def test_texts_longer_than_the_position_table_are_cut(bert: Path) -> None:
    assert block_influence(prepare_base(str(bert)), ["dark " * 500]).tokens == 38


@pytest.mark.parametrize(
    ("total", "layers", "kept"),
    [
        (30, 12, [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]),
        (6, 1, [0]),
        (6, 2, [0, 5]),
        (6, 3, [0, 3, 5]),
        (12, 4, [0, 4, 7, 11]),
        (1, 1, [0]),
    ],
)
def test_even_layers_follow_the_rule(total: int, layers: int, kept: list[int]) -> None:
    assert list(even_layers(total, layers)) == kept


def test_even_layers_ascend_from_first_to_last_with_gaps_that_differ_by_one() -> None:
    for layers, total in itertools.combinations_with_replacement(range(2, 40), 2):
        kept = even_layers(total, layers)
        gaps = np.diff(kept)
        assert (len(kept), kept[0], kept[-1]) == (layers, 0, total - 1)
        assert 1 <= gaps.min() <= gaps.max() <= gaps.min() + 1


def test_all_layers_are_the_base_itself(llama: Path, cache: Path) -> None:
    base = prepare_base(str(llama))
    assert cut_base(base, LAYERS, "even", []) is base
    assert cut_base(base, LAYERS, "importance", []) is base
    assert not cache.exists()


def test_a_second_call_builds_and_ranks_nothing(llama: Path, cache: Path) -> None:
    base = prepare_base(str(llama))
    first = cut_base(base, 3, "importance", TEXTS)
    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    (llama / "model.safetensors").unlink()  # neither weights nor ranks can be made again
    assert cut_base(base, 3, "importance", TEXTS) == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == times


def test_one_ranking_serves_every_number_of_layers_and_other_texts_have_their_own(llama: Path, cache: Path) -> None:
    for layers, texts, rankings in ((4, TEXTS, 1), (5, TEXTS, 1), (5, TEXTS[:3], 2)):
        cut(llama, layers, "importance", texts)
        assert len(list(cache.rglob("*-influence-*.json"))) == rankings


def test_other_layers_and_another_tokenizer_have_a_folder_of_their_own(llama: Path) -> None:
    folders = {cut(llama, 3).folder, cut(llama, 2).folder}
    tokenizer = llama / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8").replace("quickly", "slowly"), encoding="utf-8")
    assert len(folders | {cut(llama, 3).folder}) == 3


def test_a_folder_without_its_manifest_is_built_again(llama: Path) -> None:
    first = cut(llama, 3)
    folder = Path(first.folder)
    (folder / "base.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half a file")
    (folder / "left-over").write_bytes(b"")
    assert cut(llama, 3) == first
    assert not (folder / "left-over").exists()
    assert manifest.sha256_file(folder / "model.safetensors") == first.weights_sha256


def test_a_cut_can_be_cut_again(llama: Path) -> None:
    once = cut(llama, 4)
    twice = cut_base(once, 2, "even", [])
    assert twice.spec.endswith(" cut to 4 of 6 layers (0, 2, 3, 5) cut to 2 of 4 layers (0, 3)")
    name = "mlp.up_proj.weight"
    assert torch.equal(tensors_of(twice.folder)[f"model.layers.1.{name}"], tensors_of(llama)[f"model.layers.5.{name}"])
    with (Path(once.folder) / "base.json").open("a") as file:
        file.write("\n")
    assert cut_base(once, 2, "even", []) == twice  # the manifest is no part of what is copied


def test_shards_give_the_same_file_as_one_and_leave_no_index(llama: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    shards = save(model, tmp_path / "sharded", max_shard_size="60KB")
    base = prepare_base(str(shards))
    student = cut_base(base, 3, "even", [])
    assert [path.name for path in Path(student.folder).glob("*.safetensors*")] == ["model.safetensors"]
    assert student.weights_sha256 == cut(llama, 3).weights_sha256
    lost = sorted(shards.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(EdgestillError, match=rf"{lost.name} cannot be read"):
        cut_base(base, 4, "even", [])


def test_types_of_every_width_are_moved_bit_by_bit_and_lie_aligned(bert: Path) -> None:
    half = {name: value.bfloat16() for name, value in tensors_of(bert).items()}
    odd = {"flags": torch.tensor([True, False, True]), "position_ids": torch.arange(5), "none": torch.zeros(0, 4)}
    rewrite(bert, half | odd | {"scale": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn)})
    before, student = tensors_of(bert), Path(cut(bert, 2).folder)
    after = tensors_of(student)
    for name in (*odd, "scale", "embeddings.LayerNorm.weight"):
        assert after[name].dtype == before[name].dtype
        assert after[name].tolist() == before[name].tolist()
    content = (student / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for name, value in after.items():
        assert header[name]["data_offsets"][0] % value.element_size() == 0


@pytest.mark.parametrize(
    ("layers", "keep", "texts", "message"),
    [
        (0, "even", TEXTS, "student.layers: found 0, wanted 1 to 6"),
        (7, "even", TEXTS, "student.layers: found 7, wanted 1 to 6"),
        (3, "first", TEXTS, "student.keep: found 'first', wanted one of even, importance"),
        (3, "importance", [], "importance ranks layers by texts, found none"),
        (3, "importance", ["", " \n"], "importance ranks layers by texts, found none"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(
    llama: Path, cache: Path, layers: int, keep: str, texts: list[str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        cut(llama, layers, keep, texts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers None, wanted a number"),
        ({"num_hidden_layers": 8}, r"has 6 numbered layers in \['model.layers.'\], wanted one stack of 8"),
        ({"mlp_only_layers": [1, 4]}, "mlp_only_layers in config.json of .* has 2 entries, wanted one a layer, 6"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(
    llama: Path, cache: Path, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((llama / "config.json").read_text("utf-8")) | changes
    (llama / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(EdgestillError, match=message):
        cut(llama, 3)
    assert not cache.exists()


def test_weights_that_hold_too_much_or_too_little_are_refused(llama: Path, cache: Path) -> None:
    weights = llama / "model.safetensors"
    content = weights.read_bytes()
    rewrite(llama, {"decoder.layers.0.weight": torch.ones(1)})
    with pytest.raises(EdgestillError, match=r"in \['decoder.layers.', 'model.layers.'\], wanted one stack of 6"):
        cut(llama, 3)
    weights.write_bytes(content[:-1])
    with pytest.raises(EdgestillError, match=r"deep-llama/model\.safetensors cannot be read"):
        cut(llama, 3)
    assert not cache.exists()


def test_processes_that_cut_the_same_at_the_same_time_get_the_same_whole_folder(llama: Path, cache: Path) -> None:
    code = (
        "import sys; from tests.distill.test_cut import cut; from pathlib import Path; print(cut(Path(sys.argv[1]), 3))"
    )
    command = [sys.executable, "-c", code, str(llama)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(said)) == 1
    (folder,) = (cache / "bases").iterdir()
    assert manifest.load(Base, folder / "base.json").weights_sha256 == manifest.sha256_file(
        folder / "model.safetensors"
    )


def test_who_comes_second_takes_what_is_there_and_leaves_nothing(llama: Path, cache: Path, monkeypatch: Any) -> None:
    build = cut_module._build

    def slow(base: Base, kept: tuple[int, ...], folder: Path) -> str:
        monkeypatch.setattr(cut_module, "_build", build)
        other = folder.with_name(folder.name.rpartition(".")[0])
        with monkeypatch.context() as patch:
            patch.setattr(cut_module.os, "getpid", lambda: 1)
            faster.append(cut(llama, 3))
        assert other.is_dir()
        return build(base, kept, folder)

    faster: list[Base] = []
    monkeypatch.setattr(cut_module, "_build", slow)
    assert [cut(llama, 3)] == faster
    assert len(list((cache / "bases").iterdir())) == 1


def test_a_disk_that_cannot_be_written_is_an_error_with_its_reason(llama: Path, cache: Path) -> None:
    cache.write_text("a file where the cache should be", encoding="utf-8")
    with pytest.raises(EdgestillError, match=r"cannot write .*deep-llama-cut-"):
        cut(llama, 3)
