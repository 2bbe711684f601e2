"""The pipeline's alias beside transformers' own pipeline, which is given the student's probabilities to return."""

from pathlib import Path
from typing import Any

import pytest

from edgestill.runtime import load, pipeline
from edgestill.runtime.errors import UsageError

TEXTS = ["is it raining", "music please", "the lights in the hall"]


@pytest.fixture(scope="module")
def ours(encoder_bundle: Path) -> Any:
    return pipeline("text-classification", encoder_bundle, threads=1)


@pytest.fixture(scope="module")
def theirs(ours: Any) -> Any:
    """transformers' pipeline around a model that knows one thing: which text gets which logits."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, TextClassificationPipeline
    from transformers.modeling_outputs import SequenceClassifierOutput

    tokenizer = AutoTokenizer.from_pretrained(ours.student.folder)
    known = {}
    for text in TEXTS:
        chances = list(ours.student.predict(text).probabilities.values())
        known[tuple(tokenizer(text)["input_ids"])] = torch.tensor([chances]).log()

    names = dict(enumerate(ours.student.task.label_names))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(id2label=names, label2id={v: k for k, v in names.items()}, **sizes)
    model = BertForSequenceClassification(config)
    model.forward = lambda input_ids, **_: SequenceClassifierOutput(logits=known[tuple(input_ids[0].tolist())])
    return lambda **options: TextClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu", **options)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return (
        list(ours) == list(theirs) == ["label", "score"]
        and ours["label"] == theirs["label"]
        and type(ours["score"]) is type(theirs["score"]) is float
        and abs(ours["score"] - theirs["score"]) < 1e-5
    )


CALLS = [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": 9}, {"top_k": None}]
INPUTS = [TEXTS[0], TEXTS, TEXTS[:1], {"text": TEXTS[1]}, [{"text": text} for text in TEXTS]]


@pytest.mark.parametrize("options", CALLS)
@pytest.mark.parametrize("call", CALLS)
def test_every_input_gets_the_shape_and_the_values_that_transformers_gives(
    ours: Any, theirs: Any, options: dict[str, Any], call: dict[str, Any]
) -> None:
    here, there = pipeline("text-classification", ours.student, **options), theirs(**options)
    for inputs in INPUTS:
        assert same(here(inputs, **call), there(inputs, **call)), inputs


def test_a_generator_is_answered_lazily_as_transformers_does(ours: Any, theirs: Any) -> None:
    for call in ({}, {"top_k": 2}):
        here, there = ours((t for t in TEXTS), **call), theirs()((t for t in TEXTS), **call)
        assert not isinstance(here, list)
        assert same(list(here), list(there))


def test_no_text_gets_no_answer_where_transformers_breaks(ours: Any, theirs: Any) -> None:
    assert ours([]) == []
    with pytest.raises(IndexError):
        theirs()([])


def test_the_score_is_the_plain_probability_of_the_bundle(ours: Any, encoder_bundle: Path) -> None:
    found = load(encoder_bundle, threads=1).predict(TEXTS[0])
    assert ours(TEXTS[0]) == [{"label": found.label, "score": found.probabilities[found.label]}]


def test_another_task_is_refused(encoder_bundle: Path) -> None:
    with pytest.raises(UsageError, match="task 'text-generation', wanted 'text-classification'"):
        pipeline("text-generation", encoder_bundle)


def test_options_of_loading_beside_a_loaded_student_are_refused(ours: Any) -> None:
    with pytest.raises(UsageError, match=r"options \['engine', 'threads'\] beside a loaded student - give them"):
        pipeline("text-classification", ours.student, threads=4, engine="gguf")


def test_options_of_transformers_without_effect_are_taken_and_others_refused(ours: Any, encoder_bundle: Path) -> None:
    passed = {"device": -1, "batch_size": 8, "truncation": True}
    given = pipeline("text-classification", encoder_bundle, threads=1, torch_dtype="auto", **passed)
    assert given(TEXTS, **passed) == ours(TEXTS)
    for options in ({"max_length": 8}, {"device": 0}, {"device": "cuda:0"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            pipeline("text-classification", encoder_bundle, **options)
    with pytest.raises(UsageError, match="function_to_apply"):
        ours(TEXTS, function_to_apply="sigmoid")
