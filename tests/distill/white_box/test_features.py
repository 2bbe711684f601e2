"""Which layers are compared, and what a projection learns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestill.distill.white_box.features import Features, layer_pairs


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((2, 2, None), [(1, 1), (2, 2)]),
        ((3, 6, None), [(1, 2), (2, 4), (3, 6)]),
        ((30, 30, 1), [(30, 30)]),
        ((6, 30, 3), [(2, 10), (4, 20), (6, 30)]),
        ((2, 8, 5), [(1, 4), (2, 8)]),
    ],
)
def test_layers_are_paired_evenly(sizes: tuple[int, int, int | None], wanted: list[tuple[int, int]]) -> None:
    assert layer_pairs(*sizes) == wanted


@given(st.integers(1, 40), st.integers(1, 80), st.one_of(st.none(), st.integers(1, 50)))
def test_pairs_exist_rise_and_end_with_the_last_layers(ours: int, theirs: int, count: int | None) -> None:
    found = layer_pairs(ours, theirs, count)
    assert found[-1] == (ours, theirs)
    assert all(1 <= a <= ours and 1 <= b <= theirs for a, b in found)
    assert found == sorted(found)
    assert len({a for a, _ in found}) == len(found)


def test_a_projection_learns_to_map_one_space_onto_the_other() -> None:
    torch.manual_seed(0)
    states, truth = torch.randn(200, 8), torch.randn(12, 8)
    features = Features([(1, 1)], 8, 12)
    optimizer = torch.optim.Adam(features.parameters(), lr=0.05)
    start = float(features.losses([states], [states @ truth.t()]).detach().mean())
    for _ in range(150):
        optimizer.zero_grad()
        features.losses([states], [states @ truth.t()]).mean().backward()
        optimizer.step()
    assert float(features.losses([states], [states @ truth.t()]).detach().mean()) < 0.01 * start


def test_the_distance_has_no_scale() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 8), torch.randn(6, 8)
    features = Features([(1, 1)], 8, 8)
    once, thousand = features.losses([ours], [theirs]), features.losses([1000 * ours], [1000 * theirs])
    torch.testing.assert_close(once, thousand)
    assert features.losses([ours], [ours]).abs().max() == 0
