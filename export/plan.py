"""What can be built from a base model; refuses the impossible before any work is done or paid for."""

from typing import Any

from edgestill.export.architecture import SUPPORTED
from edgestill.export.grid import BLOCK
from edgestill.runtime.errors import UsageError

MAX_FILE_BYTES = 2_000_000_000  # a protobuf must stay under 2 GB; weights are embedded


def check_base(config: dict[str, Any]) -> None:
    """Refuse a base that no back end can write.

    Args:
        config: the base's config.json.

    Raises:
        UsageError: an unsupported family, a rope or bias that the back ends do not write, widths that do not divide
            into blocks of 32, or a model too large for one file.
    """
    found = config.get("architectures") or [config.get("model_type")]
    if found[0] not in SUPPORTED:
        raise UsageError(
            f"student.base is a {found[0]}, supported: {', '.join(SUPPORTED)}", "choose a base of a supported family"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UsageError(f"student.base has rope {rope.get('rope_type')!r}, supported: default", "choose another base")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UsageError(f"student.base has {key}, which is not supported", "choose another base")
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
