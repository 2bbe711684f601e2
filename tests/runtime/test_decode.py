"""From logits to answers, on a small true model: a seeded table from token sequences to logits."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.runtime import decode
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Logits, Session
from edgestill.runtime.task import Label, Task, load_tokenizer

VOCABULARY = 6
EOS = 5


class TableSession(Session):
    """Logits are a fixed function of the whole sequence; `passes` counts what was computed."""

    def __init__(self, seed: int, rows: dict[tuple[int, ...], list[float]] | None = None) -> None:
        super().__init__(max_tokens=32)
        self.seed, self.rows, self.passes, self.state = seed, rows or {}, 0, [-1]

    def _continue(self, kept: int, ids: list[int]) -> Logits:
        self.passes += 1
        self.state = [*self.state[:kept], *ids] if kept else list(ids)
        if tuple(self.state) in self.rows:
            return np.array(self.rows[tuple(self.state)], np.float32)
        return np.random.default_rng([self.seed, *self.state]).normal(0, 2, VOCABULARY).astype(np.float32)


def softmax(session: Session, ids: Sequence[int], allowed: Sequence[int]) -> dict[int, float]:
    weights = {token: math.exp(float(session.logits(ids)[token])) for token in allowed}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def brute_force(session: Session, prompt: list[int], answers: list[list[int]]) -> list[float]:
    """Every answer on its own: at each step the mass of its token among the tokens that any fitting answer takes."""
    chances = []
    for answer in answers:
        chance = 1.0
        for depth, token in enumerate(answer):
            allowed = sorted({a[depth] for a in answers if a[:depth] == answer[:depth] and len(a) > depth})
            chance *= softmax(session, prompt + answer[:depth], allowed)[token]
        chances.append(chance)
    return chances


ANSWERS = st.lists(
    st.lists(st.integers(0, EOS - 1), min_size=1, max_size=4).map(lambda ids: [*ids, EOS]),
    min_size=1,
    max_size=8,
    unique_by=tuple,
)
PROMPT = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4)


@settings(deadline=None)
@given(prompt=PROMPT, answers=ANSWERS, seed=st.integers(0, 99))
def test_trie_probabilities_sum_to_one_and_equal_the_enumeration(
    prompt: list[int], answers: list[list[int]], seed: int
) -> None:
    found = decode.trie_probabilities(TableSession(seed), prompt, answers)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert found == pytest.approx(brute_force(TableSession(seed), prompt, answers), rel=1e-9)


def test_no_and_no_idea_part_where_no_would_end() -> None:
    no, idea, yes = 0, 1, 2
    rows = {(4,): [math.log(3), 9, 0, 9, 9, 9], (4, no): [9, math.log(4), 9, 9, 9, 0.0]}
    found = decode.trie_probabilities(TableSession(0, rows), [4], [[no, EOS], [no, idea, EOS], [yes, EOS]])
    assert found == pytest.approx([3 / 4 * 1 / 5, 3 / 4 * 4 / 5, 1 / 4])


@pytest.mark.parametrize(
    ("answers", "passes"),
    [
        ([[0, 1, 2, EOS]], 0),
        ([[0, 1, 2, EOS], [3, 4, 4, EOS]], 1),
        ([[0, 1, 2, EOS], [0, 1, 3, EOS]], 1),
        ([[0, EOS], [0, 1, EOS], [2, EOS]], 2),
    ],
)
def test_only_branchings_cost_a_forward_pass(answers: list[list[int]], passes: int) -> None:
    session = TableSession(3)
    assert decode.trie_probabilities(session, [1], answers).sum() == pytest.approx(1)
    assert session.passes == passes


def test_equal_answers_share_their_probability() -> None:
    found = decode.trie_probabilities(TableSession(1), [2], [[0, EOS], [1, EOS], [0, EOS]])
    alone = decode.trie_probabilities(TableSession(1), [2], [[0, EOS], [1, EOS]])
    assert found == pytest.approx([alone[0] / 2, alone[1], alone[0] / 2])


@settings(deadline=None)
@given(prompt=PROMPT, answers=ANSWERS, seed=st.integers(0, 99))
def test_continuation_logprobs_equal_the_sum_by_hand_in_the_order_given(
    prompt: list[int], answers: list[list[int]], seed: int
) -> None:
    wanted = []
    for answer in answers:
        steps = [softmax(TableSession(seed), prompt + answer[:i], range(VOCABULARY)) for i in range(len(answer))]
        wanted.append(sum(math.log(step[token]) for step, token in zip(steps, answer, strict=True)))
    assert decode.continuation_logprobs(TableSession(seed), prompt, answers) == pytest.approx(wanted)


def test_an_empty_continuation_is_certain_and_free() -> None:
    session = TableSession(0)
    assert decode.continuation_logprobs(session, [1], [[]]) == [0.0]
    assert session.passes == 0


@given(logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=8))
def test_label_probabilities_are_a_softmax_over_the_asked_ids_also_for_huge_logits(logits: list[float]) -> None:
    found = decode.label_probabilities(np.array(logits, np.float32), range(1, len(logits)))
    assert found.shape == (len(logits) - 1,)
    assert found.sum() == pytest.approx(1)
    best = max(logits[1:])
    weights = [math.exp(x - best) for x in logits[1:]]
    assert found == pytest.approx([w / sum(weights) for w in weights], abs=1e-9)


def chain(*tokens: int) -> TableSession:
    """A model that says `tokens` one after the other after the prompt [0]."""
    rows = {(0, *tokens[:i]): np.eye(VOCABULARY)[t].tolist() for i, t in enumerate(tokens)}
    return TableSession(0, rows)


def test_greedy_takes_the_likeliest_token_until_a_stop_id_or_the_limit() -> None:
    assert list(decode.greedy(chain(3, 1, 4, EOS), [0], [EOS], 9)) == [3, 1, 4]
    assert list(decode.greedy(chain(3, 1, 4, EOS), [0], [EOS], 2)) == [3, 1]
    assert list(decode.greedy(chain(EOS), [0], [EOS], 2)) == []


def test_greedy_never_asks_for_more_than_the_session_holds() -> None:
    session = TableSession(0)
    assert len(list(decode.greedy(session, [1], [], 1000))) == session.max_tokens - 1


def test_greedy_says_that_a_prompt_is_too_long() -> None:
    with pytest.raises(EdgestillError, match="33 tokens, but the session holds at most 32"):
        list(decode.greedy(TableSession(0), [1] * 33, [], 4))


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    return load_tokenizer(Path(smollm2.folder))


def task_with(text: str, tokenizer: Any) -> Task:
    ids = [tokenizer.encode(f" {name}").ids[0] for name in ("red", "green")]
    labels = tuple(Label(name, "", i, f" {name}") for name, i in zip(("red", "green"), ids, strict=True))
    suffixes = {"answer_suffix": "\nAnswer:", "rationale_suffix": None, "too_long": "refuse"}
    return Task("classify", "Which?", labels, text, "path", **suffixes, max_text_tokens=99, bos_token_id=None,
                eos_token_id=2)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(said=st.text(min_size=1, max_size=12).filter(str.strip))
@pytest.mark.parametrize("template", ["What colour is it: {text}", "  Thing={text}.", "one\n\n{text}"])
def test_a_prompt_begins_with_the_constant_prefix_of_its_task(tokenizer: Any, template: str, said: str) -> None:
    task = task_with(template, tokenizer)
    prefix = decode.constant_prefix(task, tokenizer)
    assert prefix
    ids = task.encode(tokenizer, task.fill("apple" + said))
    assert ids[: len(prefix)] == prefix


def test_a_template_that_begins_with_a_field_has_no_constant_prefix(tokenizer: Any) -> None:
    assert decode.constant_prefix(task_with("{text} and more", tokenizer), tokenizer) == []


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab 1\n😀👩‍👧𝒳éß你नไ½\u200b\u00a0"), min_size=1, max_size=12))
def test_pieces_of_a_stream_are_whole_characters_and_make_up_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = list(decode.text_pieces(iter(ids), tokenizer))
    assert "".join(pieces) == text
    assert all(piece and "\ufffd" not in piece for piece in pieces)


def test_a_stream_that_stops_inside_a_character_ends_before_it(tokenizer: Any) -> None:
    ids = tokenizer.encode("ok 😀", add_special_tokens=False).ids
    assert "".join(decode.text_pieces(iter(ids[:-1]), tokenizer)).rstrip() == "ok"


def test_pieces_arrive_as_soon_as_they_are_whole(tokenizer: Any) -> None:
    ids = tokenizer.encode("one two three", add_special_tokens=False).ids
    assert list(decode.text_pieces(iter(ids), tokenizer)) == ["one", " two", " three"]
