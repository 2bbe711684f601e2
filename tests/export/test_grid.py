"""The grid against the gguf package, value by value."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgestill.export.gguf_writer import block_bytes
from edgestill.export.grid import GridTensor, quantize
from edgestill.export.onnx_graph import pack_codes
from edgestill.export.parity import _nbits
from edgestill.runtime.errors import EdgestillError

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
ORDINARY = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


def random_weights(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((64, 96)) * 10.0 ** rng.integers(-4, 2, (64, 1))).astype(np.float32)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_random_weights_become_the_same_bytes_as_in_the_gguf_package(kind: str) -> None:
    weights = random_weights()
    assert np.array_equal(block_bytes(quantize("w", weights, kind)), gguf.quants.quantize(weights, TYPES[kind]))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@settings(max_examples=200, deadline=None)
@given(weights=hnp.arrays(np.float32, (2, 32), elements=ORDINARY))
def test_any_block_becomes_the_same_bytes_as_in_the_gguf_package(kind: str, weights: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        wanted = gguf.quants.quantize(weights, TYPES[kind])
    assert np.array_equal(block_bytes(quantize("w", weights, kind)), wanted)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-8, 65504.0])
def test_zero_denormal_and_large_blocks_dequantize_as_in_the_gguf_package(kind: str, value: float) -> None:
    weights = np.full((1, 32), value, np.float32)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(gguf.quants.quantize(weights, TYPES[kind]), TYPES[kind])
    assert np.array_equal(quantize("w", weights, kind).dequantize(), wanted)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_rounding_what_is_on_the_grid_changes_nothing(kind: str) -> None:
    once = quantize("w", random_weights(), kind).dequantize()
    assert np.array_equal(quantize("w", once, kind).dequantize(), once)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_both_file_layouts_dequantize_to_the_grid(kind: str) -> None:
    tensor = quantize("w", random_weights(), kind)
    assert tensor.scales is not None
    assert np.array_equal(_nbits(pack_codes(tensor), tensor.scales), tensor.dequantize())
    assert np.array_equal(gguf.quants.dequantize(block_bytes(tensor), TYPES[kind]), tensor.dequantize())


def test_reordered_rows_keep_their_values() -> None:
    tensor: GridTensor = quantize("w", random_weights(), "q4_0")
    order = np.random.default_rng(1).permutation(64)
    assert np.array_equal(tensor.rows(order).dequantize(), tensor.dequantize()[order])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e7])
def test_weights_that_fit_no_float16_scale_are_refused(bad: float) -> None:
    weights = random_weights()
    weights[3, 5] = bad
    with pytest.raises(EdgestillError, match="tensor w"):
        quantize("w", weights, "q4_0")
