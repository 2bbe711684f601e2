"""Students cut from a deeper model: a base's folder with only some of its layers, renumbered, beside the other bases.

Tensors are moved as bytes and not computed with; torch runs only where layers are ranked. Trains nothing.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgestill.distill.base import PACKAGE_PREFIX, Base, cache_folder, read_config
from edgestill.distill.student.stored_tensors import WEIGHTS_NAME, Stored, stored_tensors, write_tensors
from edgestill.runtime import manifest
from edgestill.runtime.device import usable_cores
from edgestill.runtime.errors import EdgestillError, UsageError
from edgestill.runtime.task import load_tokenizer

LAYOUT_VERSION = 2  # part of the cache keys: raise it when the files or the ranking below change
KEEPS = ("even", "importance")
MAX_TEXT_TOKENS, BATCH_TEXTS = 512, 16
SPECIAL_POSITIONS = 2  # rows of RoBERTa's position table that no token may use

LAYER_NAME = re.compile(r"^((?:.*?\.)?layers?\.)(\d+)(\..+)$")  # stack, number, the layer's own tensor
COPIED = ("*", "[0-9]_*/*")  # the folder's own files and those of sentence-transformers' modules, as 1_Pooling
WRITTEN_NAMES = ("config.json", "base.json")
# Weights of all layers, in whatever format: a cut folder that held them would contradict itself.
WEIGHT_SUFFIXES = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".gguf")


@dataclasses.dataclass(frozen=True)
class Influence:
    """Block influence of each of a base's layers, as kept in the cache; `tokens` positions were counted."""

    values: tuple[float, ...]
    texts: int
    tokens: int
    schema: str = "edgestill-influence/1"


def cut_base(base: Base, layers: int, keep: str, texts: Sequence[str]) -> Base:
    """The base with `layers` of its layers as a folder of its own; done once, then read from the cache.

    Args:
        base: a decoder (`model.layers.N.`) or an encoder (`encoder.layer.N.`), in one weights file or in shards.
        layers: how many to keep; all of them gives `base` itself.
        keep: "even", see `even_layers`, or "importance", the ones with the largest `block_influence`, in their order;
            of two with the same influence the earlier one.
        texts: unlabeled texts, a few dozen; read only by "importance".

    Raises:
        UsageError: fewer layers than 1 or more than there are, another `keep`, importance without texts.
        EdgestillError: a base whose layers cannot be told apart, a file that cannot be read, or a full disk.
    """
    total = _layer_count(base)
    if not 1 <= layers <= total:
        raise UsageError(f"student.layers: found {layers}, wanted 1 to {total}", "write another number or remove it")
    if keep not in KEEPS:
        raise UsageError(f"student.keep: found {keep!r}, wanted one of {', '.join(KEEPS)}", "write keep: even")
    if layers == total:
        return base
    kept = even_layers(total, layers) if keep == "even" else _most_influential(base, layers, texts)
    folder = _cache_path(base, "cut", [layers, kept])
    spec = f"{base.spec} cut to {layers} of {total} layers ({', '.join(map(str, kept))})"
    student = dataclasses.replace(base, spec=spec, folder=str(folder))
    if not (folder / "base.json").exists():
        own = folder.with_name(f"{folder.name}.{os.getpid()}")  # others may cut the same at the same time
        shutil.rmtree(own, ignore_errors=True)
        manifest.save(own / "base.json", dataclasses.replace(student, weights_sha256=_build(base, kept, own)))
        _settle(own, folder)
    return dataclasses.replace(student, weights_sha256=manifest.load(Base, folder / "base.json").weights_sha256)


def _settle(own: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster; what a stopped one left gives way."""
    if not (folder / "base.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        own.rename(folder)
    except OSError as error:
        shutil.rmtree(own, ignore_errors=True)
        if not (folder / "base.json").exists():
            raise manifest.disk_error(folder, error) from error


def even_layers(total: int, layers: int) -> tuple[int, ...]:
    """`layers` of 0 .. total - 1, evenly spaced with the first and the last: number i is i (total - 1) / (layers - 1).

    Halves are rounded up. A single layer is the first.
    """
    gaps = max(layers - 1, 1)
    return tuple((2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(layers))


def block_influence(base: Base, texts: Sequence[str]) -> Influence:
    """How much each layer changes what flows through it: 1 - mean cosine similarity of its input and output.

    ShortGPT, arXiv 2403.03853, section 3.1. The mean is over every token position of every text, each text alone in
    its row and cut to MAX_TEXT_TOKENS. What the last layer leaves is taken before the final norm, which is not its
    work. In float32 on every processor, so that the same layers are kept wherever the student is built.

    Raises:
        UsageError: no text that holds more than white space.
        EdgestillError: no tokenizer.json, or a base without one list of its layers.
    """
    encoded = _encode(base, texts)
    if not encoded:
        raise UsageError("student.keep: importance ranks layers by texts, found none", "write keep: even")
    import torch
    from torch.nn.utils.rnn import pad_sequence

    torch.set_num_threads(usable_cores())
    trunk = _load_trunk(base)
    changes: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(_blocks(trunk, _layer_count(base))):
        block.register_forward_hook(_listener(changes, layer), with_kwargs=True)
    sums, tokens = torch.zeros(_layer_count(base), dtype=torch.float64), sum(map(len, encoded))
    with torch.inference_mode():
        for start in range(0, len(encoded), BATCH_TEXTS):
            rows = [torch.tensor(ids) for ids in encoded[start : start + BATCH_TEXTS]]
            visible = pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True)
            trunk(input_ids=pad_sequence(rows, batch_first=True), attention_mask=visible)
            sums += torch.stack([changes[layer][visible.bool()].sum() for layer in sorted(changes)])
    return Influence(tuple((sums / tokens).tolist()), len(encoded), tokens)


def _layer_count(base: Base) -> int:
    total = read_config(base).get("num_hidden_layers")
    if not isinstance(total, int):
        raise EdgestillError(
            f"student.layers: config.json of {base.spec} has num_hidden_layers {total!r}, wanted a number",
            "remove student.layers or name another base",
        )
    return total


def _most_influential(base: Base, layers: int, texts: Sequence[str]) -> tuple[int, ...]:
    path = _cache_path(base, "influence", [list(texts)], ".json")
    if not path.exists():
        manifest.save(path, block_influence(base, texts))
    values = manifest.load(Influence, path).values
    ranked = sorted(range(len(values)), key=lambda layer: (-values[layer], layer))
    return tuple(sorted(ranked[:layers]))


def _cache_path(base: Base, what: str, asked: list[Any], suffix: str = "") -> Path:
    """The place in the cache for what is made of the base's weights, its other files and `asked`."""
    source = Path(base.folder)
    others = {str(name): manifest.sha256_file(source / name) for name in (*_copied_files(source), Path("config.json"))}
    key = manifest.sha256_json([LAYOUT_VERSION, base.weights_sha256, others, *asked])[:16]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(base.spec.removeprefix(PACKAGE_PREFIX)).name).strip("-._")
    return cache_folder() / "bases" / f"{stem or 'base'}-{what}-{key}{suffix}"


def _copied_files(source: Path) -> list[Path]:
    """Relative paths of what a cut leaves as it is: tokenizer, licence, pooling and the rest, no layers' weights."""
    found = [path for pattern in COPIED for path in sorted(source.glob(pattern)) if path.is_file()]
    names = [path.relative_to(source) for path in found]
    own = {n for n in names if len(n.parts) == 1 and (n.name in WRITTEN_NAMES or n.name.endswith(WEIGHT_SUFFIXES))}
    return [name for name in names if name not in own]


def _build(base: Base, kept: tuple[int, ...], folder: Path) -> str:
    """Write all but base.json, give the weights' SHA-256; what can be refused is refused before the first byte."""
    source, config = Path(base.folder), read_config(base)
    tensors = _renumbered(stored_tensors(source), kept, config["num_hidden_layers"], base.spec)
    config = _cut_config(_with_layer_types(config), kept, base.spec)
    try:
        for name in _copied_files(source):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        write_tensors(tensors, folder / WEIGHTS_NAME)
        manifest.write_json(folder / "config.json", config)
        return manifest.sha256_file(folder / WEIGHTS_NAME)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise manifest.disk_error(folder, error) from error


def _with_layer_types(config: dict[str, Any]) -> dict[str, Any]:
    """Which layers see a window only, written out where a rule counts them: a cut layer stays what it was."""
    if config.get("sliding_window") is None or config.get("layer_types"):
        return config
    from transformers import AutoConfig

    kinds = getattr(AutoConfig.for_model(**config), "layer_types", None)
    return {**config, "layer_types": list(kinds)} if kinds else config


def _cut_config(config: dict[str, Any], kept: tuple[int, ...], spec: str) -> dict[str, Any]:
    """config.json with the new number of layers; lists with one entry a layer, as `layer_types`, are cut alike."""
    total, cut = config["num_hidden_layers"], dict(config)
    for key, value in config.items():
        if not isinstance(value, list) or "layer" not in key or not value:
            continue
        if len(value) != total:
            raise EdgestillError(
                f"student.layers: {key} in config.json of {spec} has {len(value)} entries, wanted one a layer, {total}",
                "remove student.layers or name another base",
            )
        cut[key] = [value[layer] for layer in kept]
    return {**cut, "num_hidden_layers": len(kept)}


def _renumbered(tensors: dict[str, Stored], kept: tuple[int, ...], total: int, spec: str) -> dict[str, Stored]:
    """Tensors by their new names: the kept layers counted from 0, and everything that belongs to no layer."""
    layered = {name: match for name in tensors if (match := LAYER_NAME.match(name))}
    stacks = sorted({match[1] for match in layered.values()})
    numbers = {int(match[2]) for match in layered.values()}
    if len(stacks) != 1 or numbers != set(range(total)):
        raise EdgestillError(
            f"student.layers: {spec} has {len(numbers)} numbered layers in {stacks}, wanted one stack of {total}",
            "remove student.layers or name another base",
        )
    places = {layer: place for place, layer in enumerate(kept)}
    outside = {name: stored for name, stored in tensors.items() if name not in layered}
    inside = {
        f"{match[1]}{places[int(match[2])]}{match[3]}": tensors[name]
        for name, match in layered.items()
        if int(match[2]) in places
    }
    return outside | inside


def _load_trunk(base: Base) -> Any:
    """The base without its head in evaluation mode: what stands on the last layer does not change any layer's work."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return AutoModel.from_pretrained(base.folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def _blocks(trunk: Any, total: int) -> Any:
    import torch

    for module in trunk.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == total:
            return module
    raise EdgestillError(f"student.keep: found no stack of {total} layers in the base", "write keep: even")


def _listener(changes: dict[int, Any], layer: int) -> Callable[..., None]:
    """A hook that leaves 1 - cosine similarity of a layer's input and output, (B, T) float64, in `changes[layer]`."""
    import torch

    def listen(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = inputs[0] if inputs else named["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        changes[layer] = 1 - torch.cosine_similarity(before.double(), after.double(), dim=-1)

    return listen


def _encode(base: Base, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text that is not blank, special tokens of the tokenizer included; the shortest first."""
    limit = min(MAX_TEXT_TOKENS, read_config(base).get("max_position_embeddings", MAX_TEXT_TOKENS) - SPECIAL_POSITIONS)
    tokenizer = load_tokenizer(Path(base.folder))
    return sorted((list(tokenizer.encode(text).ids)[:limit] for text in texts if text.strip()), key=len)
