"""Prefix reuse: it saves work, changes no logit, and trusts no state that an engine left behind when it failed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Logits, Session

POISON = 7


class RunningSession(Session):
    """A recurrent model with a state after every token; token 7 breaks it half way through a call."""

    def __init__(self) -> None:
        super().__init__(max_tokens=16)
        self.states: list[np.ndarray] = []
        self.computed = 0

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        assert kept <= len(self.states)
        del self.states[kept:]
        state = self.states[-1] if self.states else np.arange(8, dtype=np.float32)
        for token in ids:
            if token == POISON:
                self.states = [np.full(8, np.nan, np.float32)] * 16
                raise RuntimeError("the engine is out of memory")
            state = np.tanh(np.roll(state, token + 1) * 0.5 + token).astype(np.float32)
            self.states.append(state)
            self.computed += 1
        return state


def fresh(ids: list[int]) -> Logits:
    return RunningSession().logits(ids)


IDS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@given(calls=st.lists(IDS, min_size=1, max_size=8))
def test_a_session_that_was_used_gives_the_logits_of_a_fresh_one(calls: list[list[int]]) -> None:
    session = RunningSession()
    for ids in calls:
        assert np.array_equal(session.logits(ids), fresh(ids))


def test_a_shared_prefix_is_computed_once() -> None:
    session = RunningSession()
    for ids in ([1, 2, 0, 1], [1, 2, 0, 2], [1, 2, 0, 2, 2], [1, 2]):
        session.logits(ids)
    assert session.computed == 4 + 1 + 1 + 1


@given(before=IDS, broken=IDS, after=IDS)
def test_a_failing_engine_does_not_poison_the_next_call(before: list[int], broken: list[int], after: list[int]) -> None:
    session = RunningSession()
    session.logits(before)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.logits([*broken, POISON])
    assert np.array_equal(session.logits(after), fresh(after))


def test_no_tokens_and_too_many_tokens_are_refused_and_cost_nothing() -> None:
    session = RunningSession()
    with pytest.raises(EdgestillError, match="the prompt has no tokens"):
        session.logits([])
    with pytest.raises(EdgestillError, match="17 tokens, but the session holds at most 16"):
        session.logits([1] * 17)
    assert session.computed == 0
    assert np.array_equal(session.logits([1] * 16), fresh([1] * 16))


class WholeSession(RunningSession):
    """A model whose tokens all see each other: it wants the whole text every time."""

    reuses_prefix = False


@given(calls=st.lists(IDS, min_size=1, max_size=8))
def test_a_session_that_reuses_no_prefix_is_given_the_whole_text_every_time(calls: list[list[int]]) -> None:
    session = WholeSession()
    for ids in calls:
        assert np.array_equal(session.logits(ids), fresh(ids))
    assert session.computed == sum(map(len, calls))
