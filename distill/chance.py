"""Chance that is the same in every run: by a hash of the row and not by its place. Keeps no state."""

import hashlib


def chance(row_id: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on the row, the seed and the purpose only."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
