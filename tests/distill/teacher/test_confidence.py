"""Label probabilities: what a known distribution over labels, spelled by a tokenizer, gives back."""

import json
import math
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgestill.distill.teacher.confidence import label_probabilities, vote_shares

CARDS = ["card", "card_lost", "card_stolen", "cash", 'a "card"', 'a "cash"', "no", "none"]
VOCABULARY = ['{"', "rationale", '":', ' "', "label", '", "', '"}', '"', "card", "_", "lost", "_l", "st", "olen", "no"]
MERGED = [' "car', ' "card', ' "n', 'lost"}', 't"}', 'd"', ': "', ' "no"}', '": "c', "card_", '\\"card', '\\"}']

Tokens = list[list[Any]]


def tokenize(text: str, vocabulary: list[str]) -> list[str]:
    """The longest word of the vocabulary that fits, a character where none does."""
    tokens: list[str] = []
    while text:
        tokens.append(max((word for word in vocabulary if text.startswith(word)), key=len, default=text[0]))
        text = text[len(tokens[-1]) :]
    return tokens


def answer(label: str, rationale: str = "r", first: bool = False) -> str:
    facts = {"label": label, "rationale": rationale} if first else {"rationale": rationale, "label": label}
    return json.dumps(facts, ensure_ascii=False)


def spoken(truth: dict[str, float], said: str, vocabulary: list[str], **shape: Any) -> tuple[Tokens, bool]:
    """Tokens of the answer `said` with all alternatives, from what each label's tokens would be with its probability.

    Also whether the probabilities can be told: no alternative could become two labels.
    """
    spelled = {label: tokenize(answer(label, **shape), vocabulary) for label in truth}
    tokens, told = Tokens(), True
    for position, token in enumerate(spelled[said]):
        still = [label for label in truth if spelled[label][:position] == spelled[said][:position]]
        mass = defaultdict[str, float](float)
        for label in still:
            mass[spelled[label][position]] += truth[label]
        whole = sum(mass.values())
        before = "".join(spelled[said][:position])
        leads = {other: sum(answer(label, **shape).startswith(before + other) for label in truth) for other in mass}
        told = told and all(count == 1 for other, count in leads.items() if other != token)
        alternatives = [[other, math.log(share / whole)] for other, share in mass.items()]
        tokens.append([token, math.log(mass[token] / whole), alternatives])
    return tokens, told


weights = st.dictionaries(st.sampled_from(CARDS), st.floats(0.001, 1), min_size=2)
vocabularies = st.lists(st.sampled_from([*VOCABULARY, *MERGED]), unique=True)


@given(weights, st.integers(0), vocabularies, st.booleans(), st.text(max_size=9))
@example(dict.fromkeys(CARDS, 1.0), CARDS.index("card"), [' "card', ' "', "_l", "_s"], False, "r")
@example({"card": 1.0, "card_lost": 2.0, "cash": 3.0, "no": 4.0}, 0, [' "car', "card", "lost"], False, "r")
@example({"none": 1.0, "no": 2.0, 'a "card"': 3.0}, 0, ["no", "none", ' "no"}'], True, "label")
def test_a_known_distribution_is_read_back(
    odds: dict[str, float], which: int, vocabulary: list[str], first: bool, rationale: str
) -> None:
    truth = {label: weight / sum(odds.values()) for label, weight in odds.items()}
    said = list(truth)[which % len(truth)]
    tokens, told = spoken(truth, said, vocabulary, rationale=rationale, first=first)
    read = label_probabilities(tokens, said, list(truth))
    assert read is not None
    assert list(read) == list(truth)
    assert sum(read.values()) == pytest.approx(1)
    assert read[said] == pytest.approx(truth[said])
    if told:
        assert read == pytest.approx(truth)


@given(weights, st.integers(0), vocabularies)
def test_other_texts_and_other_spellings_take_nothing_away(
    odds: dict[str, float], which: int, vocabulary: list[str]
) -> None:
    truth = {label: weight / sum(odds.values()) for label, weight in odds.items()}
    said, labels = list(truth)[which % len(truth)], list(truth)
    tokens, _ = spoken(truth, said, vocabulary)
    noisy = [[token, p, [*others, ["", -1], ["x", -1], ["\n", -2], [token, p]]] for token, p, others in tokens]
    assert label_probabilities(noisy, said, labels) == pytest.approx(label_probabilities(tokens, said, labels))


def step(token: str, share: float, others: dict[str, float] | None = None) -> list[Any]:
    odds = {token: share} | (others or {})
    return [token, math.log(share), [[text, math.log(value)] for text, value in odds.items()]]


KEY = [step('"', 1), step("label", 1), step('":', 1)]


def test_an_alternative_that_holds_the_quote_and_the_name_counts_from_its_own_place() -> None:
    tokens = [*KEY, step(' "', 0.5, {' "card_st': 0.3, ' "cas': 0.2}), step("card", 0.8, {"cash": 0.2})]
    tokens += [step('"}', 0.25, {"_": 0.75})]
    read = label_probabilities(tokens, "card", ["card", "card_lost", "card_stolen", "cash"])
    assert read == pytest.approx({"card": 0.1, "card_lost": 0.15, "card_stolen": 0.15 + 0.3, "cash": 0.1 + 0.2})


def test_the_longest_alternative_stands_for_a_label_as_in_a_tokenizer() -> None:
    tokens = [*KEY, step(' "', 1), step("none", 0.5, {"no": 0.4, "n": 0.1}), step('"}', 1)]
    assert label_probabilities(tokens, "none", ["no", "none", "nil"]) == pytest.approx(
        {"no": 0.4, "none": 0.5, "nil": 0.1}
    )


def test_labels_behind_one_alternative_share_its_mass() -> None:
    tokens = [*KEY, step(' "', 1), step("a", 0.4, {"b": 0.6}), step('"}', 1)]
    assert label_probabilities(tokens, "a", ["a", "b1", "b2"]) == pytest.approx({"a": 0.4, "b1": 0.3, "b2": 0.3})


def test_other_tokens_for_the_same_text_take_nothing_away() -> None:
    tokens = [*KEY[:2], step('":', 0.2, {'": "': 0.8}), step(' "', 0.5, {" ": 0.5})]
    tokens += [step("c", 0.5, {"card": 0.25, "no": 0.25}), step('ard"', 1)]
    assert label_probabilities(tokens, "card", ["card", "no"]) == pytest.approx({"card": 0.75, "no": 0.25})


def test_a_text_that_ends_with_the_longer_name_is_told() -> None:
    read = label_probabilities([step("card_lost", 0.75, {"card": 0.25})], "card_lost", ["card", "card_lost"])
    assert read == pytest.approx({"card": 0.25, "card_lost": 0.75})


LABELS = ["card", "card_lost", "card_", "cash"]
UNTOLD: list[tuple[str, Tokens, str]] = [
    ("no tokens", [], "card"),
    ("another spelling", [*KEY, step(' "', 1), step("Card", 1), step('"}', 1)], "card"),
    ("another spelling, and the name in the reason", [*KEY, step(' "Card", "rationale": "card"}', 1)], "card"),
    ("prose", [step("Cash", 0.5, {"Card": 0.5}), step(" is gone", 1)], "cash"),
    ("prose that begins with it", [step("cash", 0.5, {"card": 0.5}), step(" is gone", 1)], "cash"),
    ("prose that ends with it", [step("It is ", 1), step("cash", 0.5, {"card": 0.5}), step(".", 1)], "cash"),
    ("no end", [*KEY, step(' "', 1), step("card", 1)], "card"),
    ("no end without a key", [step("card", 0.5, {"card_lost": 0.5})], "card"),
    ("no alternatives", [[token, 0.0, []] for token in ('"label": "', "card", '"}')], "card"),
    ("no mass", [*KEY, step(' "', 1), ["card_", -9999.0, [["card_", -9999.0]]], step('"}', 1)], "card_"),
    ("nan", [*KEY, step(' "', 1), ["card_", math.nan, [["card_", math.nan]]], step('"}', 1)], "card_"),
    ("nan beside", [*KEY, step(' "', 1), ["cash", -1.0, [["cash", -1.0], ["card", math.nan]]], step('"}', 1)], "cash"),
]


@pytest.mark.parametrize(("tokens", "label"), [row[1:] for row in UNTOLD], ids=[row[0] for row in UNTOLD])
def test_what_the_tokens_do_not_tell_is_none(tokens: Tokens, label: str) -> None:
    assert label_probabilities(tokens, label, LABELS) is None


@pytest.mark.parametrize(
    "tokens",
    [
        [step("yes", 0.75, {"no": 0.25})],
        [step("Label", 1), step(":", 1), step(" yes", 0.75, {" no": 0.25}), step(".", 1)],
        [step("{'label'", 1), step(": '", 1), step("yes", 0.75, {"no": 0.25}), step("'}", 1)],
        [*KEY, step(' "', 1), step("yes", 0.75, {"no": 0.25}), step('", "rationale": "no"}', 1)],
        [step('"label": "no", ', 1), *KEY, step(' "', 1), step("yes", 0.75, {"no": 0.25}), step('"}', 1)],
        [*KEY, step(' "', 1), step("yes", 0.75, {"no": 0.25}), step('", "rationale": "', 1), *KEY[:2], step('"}', 1)],
        [*[["so ", -80.0, [["so ", -80.0]]]] * 20, *KEY, step(' "', 1), step("yes", 0.75, {"no": 0.25}), step('"}', 1)],
        [*KEY, step(' "', 1), ["yes", 1e4, [["no", math.log(1 / 3)]]], step('"}', 1)],
    ],
    ids=range(8),
)
def test_the_label_is_found_wherever_it_may_stand(tokens: Tokens) -> None:
    assert label_probabilities(tokens, "yes", ["yes", "no"]) == pytest.approx({"yes": 0.75, "no": 0.25})


def test_votes_are_shares_of_the_usable_ones() -> None:
    assert vote_shares(["b", "a", "b", "b"], ["a", "b", "c"]) == {"a": 0.25, "b": 0.75, "c": 0.0}
    assert vote_shares([], ["a", "b"]) is None
