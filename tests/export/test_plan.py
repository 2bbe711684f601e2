"""What is refused before any work, in one line, and what passes."""

from typing import Any

import pytest

from edgestill.distill.base import ENCODER_TYPES
from edgestill.export import bert
from edgestill.export.plan import check_base
from edgestill.runtime.errors import UsageError

WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
LLAMA = {**WIDTHS, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
BERT = {**WIDTHS, "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu"}
ROBERTA = {**BERT, "architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "pad_token_id": 1}


@pytest.mark.parametrize("config", [BERT, ROBERTA, {**ROBERTA, "model_type": "xlm-roberta"}])
def test_the_bert_types_pass_as_encoders(config: dict[str, Any]) -> None:
    check_base(config, "encoder")


def test_a_decoder_passes_with_any_artifact() -> None:
    check_base(LLAMA, "causal")


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (BERT, "causal", "is a BertModel, an encoder, and student.kind is causal - set student.kind: encoder"),
        (LLAMA, "encoder", "is a LlamaForCausalLM, a decoder, and student.kind is encoder - set student.kind: causal"),
        ({**BERT, "architectures": ["T5Model"], "model_type": "t5"}, "encoder", "is a T5Model, supported as encoders"),
        ({**LLAMA, "architectures": ["MambaModel"]}, "causal", "is a MambaModel, supported: LlamaForCausalLM"),
        ({**BERT, "hidden_act": "gelu_new"}, "encoder", "hidden_act 'gelu_new', supported: gelu"),
        (
            {**BERT, "position_embedding_type": "relative_key"},
            "encoder",
            "position_embedding_type 'relative_key', supported: absolute",
        ),
        ({**BERT, "is_decoder": True}, "encoder", "is a decoder"),
        ({**ROBERTA, "pad_token_id": None}, "encoder", "no pad_token_id"),
        ({**BERT, "hidden_size": 50}, "encoder", "hidden_size 50, wanted a multiple of 32"),
        ({**BERT, "intermediate_size": 100}, "encoder", "intermediate_size 100, wanted a multiple of 32"),
        ({**BERT, "hidden_size": 8192, "vocab_size": 300_000}, "encoder", "billion weights"),
        ({**LLAMA, "mlp_bias": True}, "causal", "mlp_bias"),
    ],
)
def test_what_no_back_end_can_write_is_refused(config: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=r"student\.base") as caught:
        check_base(config, kind)
    assert message in str(caught.value)


def test_export_writes_the_families_that_are_trained() -> None:
    assert bert.FAMILIES == ENCODER_TYPES
