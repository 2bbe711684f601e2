"""Prefix reuse: it saves work, changes no logit, and trusts no state that an engine left behind when it failed.

The ONNX engine on a tiny graph of its own and, for memory, on the demo's.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.onnx_session import (
    PREFILL_CHUNK_TOKENS,
    STATE_STEP_TOKENS,
    OnnxEncoderSession,
    OnnxSession,
)
from edgestill.runtime.session import Logits, Session

POISON = 7
# 334 MB measured with SmolLM2-135M on x86-64, 434 with keys and values that are copied from call to call
MAX_PEAK_RSS_BYTES = 365_000_000


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


@given(prefix=IDS, calls=st.lists(st.tuples(IDS, st.booleans()), min_size=1, max_size=8))
def test_a_pinned_prefix_changes_no_logit_and_is_one_piece_computed_once(
    prefix: list[int], calls: list[tuple[list[int], bool]]
) -> None:
    session = RunningSession()
    session.pin(prefix)
    for rest, begins_with_it in calls:
        ids = [*prefix, *rest] if begins_with_it else rest
        session.forget()
        assert np.array_equal(session.logits(ids), fresh(ids))


def test_forgetting_goes_back_to_the_pinned_prefix_and_no_further() -> None:
    session = RunningSession()
    session.pin([1, 2, 0])
    for rest in ([1, 1], [1, 1], [1, 2]):
        session.forget()
        session.logits([1, 2, 0, *rest])
    assert session.computed == 3 + 2 + 2 + 2
    with pytest.raises(RuntimeError, match="out of memory"):
        session.logits([1, 2, 0, POISON])
    session.forget()
    assert np.array_equal(session.logits([1, 2, 0, 1]), fresh([1, 2, 0, 1]))


class PiecesSession(Session):
    """Keeps in which pieces its tokens were computed: int8 kernels round by them."""

    def __init__(self) -> None:
        super().__init__(max_tokens=32)
        self.pieces: list[list[int]] = []

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        while sum(map(len, self.pieces)) > kept:
            last = self.pieces.pop()
            rest = kept - sum(map(len, self.pieces))
            if rest > 0:
                self.pieces.append(last[:rest])
        self.pieces.append(ids)
        return np.zeros(8, np.float32)


@given(calls=st.lists(st.tuples(IDS, st.booleans()), max_size=6), rest=IDS)
def test_a_text_behind_the_pinned_prefix_is_computed_in_the_same_pieces_every_time(
    calls: list[tuple[list[int], bool]], rest: list[int]
) -> None:
    session = PiecesSession()
    session.pin([0, 1])
    for ids, fresh_request in calls:
        if fresh_request:
            session.forget()
        session.logits(ids)
    session.forget()
    session.logits([0, 1, *rest])
    assert session.pieces == [[0, 1], rest]


@pytest.mark.parametrize("text", [[2, 2, 0, 1, 1, 2, 0, 0, 1, 2], [1, 2, 0, 1, 1, 2, 0, 0, 1, 2], [1, 2, 1, 0, 2, 0]])
def test_a_text_that_grows_beside_a_pinned_prefix_is_computed_once(text: list[int]) -> None:
    session = RunningSession()
    session.pin([1, 2, 0, 1, 1, 2])
    session.logits([1, 2, 0, 1, 1, 2, 0])
    session.forget()
    session.computed = 0
    for length in range(1, len(text) + 1):
        assert np.array_equal(session.logits(text[:length]), fresh(text[:length]))
    assert session.computed == len(text)


@given(rows=st.lists(IDS, min_size=1, max_size=4))
def test_many_rows_get_the_logits_of_one_at_a_time(rows: list[list[int]]) -> None:
    assert np.array_equal(list(RunningSession().logits_many(rows)), [fresh(ids) for ids in rows])


def test_many_rows_are_computed_as_they_are_taken() -> None:
    session = RunningSession()
    found = session.logits_many([[1, 2], [0], [2]])
    assert session.computed == 0
    assert np.array_equal(next(found), fresh([1, 2]))
    assert session.computed == 2
    assert len(list(found)) == 2


def test_many_rows_with_one_that_does_not_fit_cost_nothing() -> None:
    session = RunningSession()
    for rows, said in (([], "no rows"), ([[1], []], "no tokens"), ([[1], [1] * 17], "17 tokens")):
        with pytest.raises(EdgestillError, match=said):
            session.logits_many(rows)
    assert session.computed == 0


@pytest.fixture(scope="module")
def tiny_graph(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer decoder as `export` writes it, and labels.onnx; float32 products, so that pieces do not matter."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgestill.export.architecture import exact_norms
    from edgestill.export.onnx_labels import write_labels
    from edgestill.export.onnx_writer import write_onnx
    from edgestill.export.weights import to_grid

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    grid = exact_norms(to_grid(model, model.config.to_dict(), "q4_0"))
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_onnx(grid, path, accuracy_level=1)
    write_labels(grid, [11, 12, 13], 600, path.with_name("labels.onnx"), accuracy_level=1)
    return path


def drawn(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(count).integers(10, 49_000, count)]


def test_keys_and_values_grow_and_roll_back_in_place(tiny_graph: Path) -> None:
    def opened() -> OnnxSession:
        return OnnxSession(tiny_graph, threads=1, max_tokens=600)

    used, ids = opened(), drawn(STATE_STEP_TOKENS + 70)
    for length in (20, STATE_STEP_TOKENS - 1, STATE_STEP_TOKENS + 1, len(ids), 33, 600):
        asked = (ids + drawn(600))[:length]
        assert used.logits(asked) == pytest.approx(opened().logits(asked), abs=1e-4)
    other = [*ids[:25], 11, 12]
    assert used.logits(other) == pytest.approx(opened().logits(other), abs=1e-4)


@pytest.mark.parametrize(("engine", "name"), [(OnnxSession, "model.onnx"), (OnnxEncoderSession, "labels.onnx")])
def test_rows_that_go_together_are_answered_as_alone(tiny_graph: Path, engine: Any, name: str) -> None:
    session = engine(tiny_graph.with_name(name), threads=1, max_tokens=600)
    rows = [drawn(n) for n in (5, 40, 7, PREFILL_CHUNK_TOKENS + 9, 6, 1, 5, 31)]
    alone = []
    for ids in rows:
        session.forget()
        alone.append(session.logits(ids))
    assert np.stack(list(session.logits_many(rows))) == pytest.approx(np.stack(alone), abs=1e-4)


def test_memory_that_runs_out_half_way_leaves_no_buffers_of_mixed_sizes(tiny_graph: Path) -> None:
    session, ids = OnnxSession(tiny_graph, threads=1, max_tokens=600), drawn(STATE_STEP_TOKENS + 9)
    before = session.logits(ids[:9])
    inputs = dict(session._past)
    last = list(inputs)[-1]
    session._past = {**inputs, last: SimpleNamespace(shape=[1, 2**31, "past", 64])}  # more than any machine has
    with pytest.raises(MemoryError):
        session.logits(ids)
    session._past = inputs
    assert session.logits(ids) == pytest.approx(OnnxSession(tiny_graph, 1, 600).logits(ids), abs=1e-4)
    assert session.logits(ids[:9]) == pytest.approx(before, abs=1e-4)


MEASURE = """
import json, sys
from edgestill.runtime import load
from edgestill.runtime.device import peak_rss_bytes
student = load(sys.argv[1], engine="onnx", threads=1)
text = " ".join(["moss"] * 990)
list(student.stream(text, max_new_tokens=10))
print(json.dumps(peak_rss_bytes()))
"""


def test_a_prompt_of_1000_tokens_stays_small_in_memory(bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(bundle)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < MAX_PEAK_RSS_BYTES
