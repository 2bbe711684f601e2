"""A Hugging Face folder, or a LoRA adapter with its base, as a model to be written: no recipe, no student run.

Reads; writes nothing. Weights are read one tensor at a time, when they are asked for.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.export import bert
from edgestill.export.architecture import EMBEDDING, HEAD, read_shape, tensor_names
from edgestill.export.grid import Floats
from edgestill.export.plan import check_base
from edgestill.runtime import manifest
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import Label, Task, load_tokenizer

CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
# Names that a folder may hold and no file of ours needs: buffers, and an encoder's pooler that its head does not read.
_UNUSED = (".rotary_emb.inv_freq", ".position_ids", "pooler.dense.weight", "pooler.dense.bias")
_PROBES = ("The quick brown fox jumps over the lazy dog.", "1 + 1 = 2, isn't it?")


@dataclass(frozen=True)
class Model:
    """A model on disk that can be written.

    Attributes:
        name: of its folder.
        base: folder with config.json and weights.
        adapter: folder of a LoRA adapter on top of them.
        config: config.json.
        weights: (N, K) or (N,) float32 by the names of the back ends; merged where there is an adapter.
        weights_sha256: of the base's files.
        task: the special tokens of its tokenizer, and an encoder's labels.
    """

    name: str
    base: Path
    adapter: Path | None
    config: dict[str, Any]
    weights: Mapping[str, Floats]
    weights_sha256: str
    task: Task

    @property
    def is_encoder(self) -> bool:
        """Whether it labels and does not write."""
        return self.task.is_head

    def file(self, name: str) -> Path | None:
        """A file that goes with the weights, such as tokenizer.json: the adapter's own, else the base's."""
        folders = [self.base] if self.adapter is None or name == CONFIG else [self.adapter, self.base]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)


class LazyWeights(Mapping[str, Floats]):
    """Tensors of safetensors files as float32; each is read when asked for and its file closed again."""

    def __init__(self, places: dict[str, tuple[Path, str]]) -> None:
        """`places`: file and stored name by the name that it is asked by."""
        self._places = places

    def __getitem__(self, name: str) -> Floats:
        from safetensors import safe_open

        path, stored = self._places[name]
        with safe_open(path, framework="pt") as file:  # numpy has no bfloat16
            return np.asarray(file.get_tensor(stored).float().numpy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def base_of(folder: Path) -> str | None:
    """What an adapter's folder names as its base; None for a folder that is no adapter's."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    named = _read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        raise UsageError(f"{folder / ADAPTER_CONFIG} names no base model", "name it with --base BASE")
    return str(named)


def open_model(folder: Path, base: Path | None = None) -> Model:
    """Look at a model without reading its weights; an adapter is merged here, which reads its `base`.

    Raises:
        UsageError: a family, a head or a tokenizer that no back end writes, or weights that are no safetensors.
        EdgestillError: weights that are not what config.json says.
        GateFailed: merging changed the adapter's logits.
    """
    home, adapter = (folder, None) if base is None else (base, folder)
    config = _read_json(home / CONFIG)
    task = _task(folder if (folder / "tokenizer.json").is_file() else home, config, _check(home, config))
    files = _weight_files(home)
    sha256 = manifest.sha256_json([manifest.sha256_file(path) for path in files])
    weights = LazyWeights(_places(files, config)) if adapter is None else _merged(home, sha256, adapter, task)
    _check_names(home, config, weights)
    return Model(folder.resolve().name, home, adapter, config, weights, sha256, task)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "name a Hugging Face model folder") from None


def _check(folder: Path, config: dict[str, Any]) -> bool:
    """Refuse what cannot be written; whether it is an encoder."""
    encoder = config.get("model_type") in bert.FAMILIES
    if "quantization_config" in config:
        raise UsageError(f"{folder} holds weights that are quantized already", "name the folder they were made from")
    try:
        check_base(config, "encoder" if encoder else "causal")
    except UsageError as error:
        raise UsageError(error.message.replace("student.base", str(folder)), "name another model") from None
    architecture = str((config.get("architectures") or ["no named model"])[0])
    if encoder and not architecture.endswith("ForSequenceClassification"):
        raise UsageError(
            f"{folder} holds {architecture}, which has no head for labels", "name a ...ForSequenceClassification"
        )
    return encoder


def _task(folder: Path, config: dict[str, Any], encoder: bool) -> Task:
    """The special tokens around a text, by the tokenizer's own rule; nothing is asked, so nothing else is said."""
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder} has no tokenizer.json", "save it with a fast tokenizer of transformers first")
    tokenizer = load_tokenizer(folder)
    largest = max(tokenizer.get_vocab().values())
    if largest >= config["vocab_size"]:
        raise UsageError(
            f"the tokenizer in {folder} has ids up to {largest}, the model {config['vocab_size']} words",
            "resize the model's embedding, or name the tokenizer it was trained with",
        )
    around = tokenizer.encode("a").ids
    first, last = around[0], around[-1]
    if encoder:
        names = dict(config.get("id2label") or {}).items()
        labels = tuple(Label(name, "", int(i), "") for i, name in sorted(names, key=lambda pair: int(pair[0])))
        return Task("classify", "", labels, "{text}", "head", "", None, 512, "cut_tail", first, last)
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    bos = int(first) if len(around) > len(plain) and first != plain[0] else None
    return Task("classify", "", (), "{text}", "path", "", None, 512, "cut_tail", bos, _end(folder, config, tokenizer))


def _end(folder: Path, config: dict[str, Any], tokenizer: Any) -> int:
    """The tokenizer's end-of-sequence token; the model's own list decides when the tokenizer names none."""
    path = folder / "tokenizer_config.json"
    token = _read_json(path).get("eos_token") if path.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    listed = config.get("eos_token_id")
    first = listed[0] if isinstance(listed, list) and listed else listed
    found = tokenizer.token_to_id(content) if content else None
    if found is not None:
        return int(found)
    if not isinstance(first, int):
        raise UsageError(f"{folder} names no end-of-sequence token", "add eos_token to its tokenizer_config.json")
    return first


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in _read_json(index)["weight_map"].values()})
    else:
        files = sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS)
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise UsageError(f"{folder} has no {missing[0] if missing else '.safetensors file'}", "save it as safetensors")
    return files


def _places(files: list[Path], config: dict[str, Any]) -> dict[str, tuple[Path, str]]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[Path, str]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except SafetensorError as error:
            raise EdgestillError(f"{path} is not a whole safetensors file: {error}", "copy or save it again") from None
        found |= {_our_name(name, config): (path, name) for name in names}
    if config.get("tie_word_embeddings"):
        found.pop(HEAD, None)
    return {name: place for name, place in found.items() if not name.endswith(_UNUSED)}


def _our_name(name: str, config: dict[str, Any]) -> str:
    """An encoder's names without the trunk's prefix, its head's as training here calls them; a decoder's stay."""
    kind = config["model_type"]
    if kind not in bert.FAMILIES:
        return name
    heads = {"bert.pooler.dense": bert.HEAD_DENSE, "classifier": bert.HEAD_OUT}
    if kind != "bert":
        heads = {"classifier.dense": bert.HEAD_DENSE, "classifier.out_proj": bert.HEAD_OUT}
    stem, _, part = name.rpartition(".")
    return f"{heads[stem]}.{part}" if stem in heads else name.removeprefix("bert.").removeprefix("roberta.")


def _check_names(folder: Path, config: dict[str, Any], weights: Mapping[str, Floats]) -> None:
    encoder = config["model_type"] in bert.FAMILIES
    names = bert.tensor_names(bert.read_shape(config), dense=True) if encoder else tensor_names(read_shape(config))
    different = sorted(set(names) ^ set(weights))
    if different:
        raise EdgestillError(f"{folder} lacks or adds {different[:3]}", f"its weights are not what {CONFIG} says")
    table = bert.WORDS if encoder else EMBEDDING
    wanted = (config["vocab_size"], config["hidden_size"])
    if weights[table].shape != wanted:
        raise EdgestillError(f"{folder}: {table} is {weights[table].shape}, {CONFIG} says {wanted}", "save it again")


def _merged(base: Path, sha256: str, adapter: Path, task: Task) -> dict[str, Floats]:
    """The base with the adapter folded in, held in memory as float32."""
    from edgestill.distill.student.merge import merge

    if task.is_head:
        raise UsageError(f"{base} is an encoder, adapters are merged into decoders", "merge it with peft first")
    tokenizer = load_tokenizer(base)
    probes = [tokenizer.encode(text, add_special_tokens=False).ids for text in _PROBES]
    try:
        model, _ = merge(base, sha256, adapter, probes)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise EdgestillError(f"peft cannot load {adapter} onto {base}: {error}", "name its base with --base") from None
    weights = {name: np.asarray(tensor.float().numpy()) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop(HEAD, None)
    return weights
