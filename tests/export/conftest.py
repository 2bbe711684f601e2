"""Runs and bundles of two encoder students: MiniLM, and a tiny RoBERTa."""

from pathlib import Path

import pytest
from encoder_runs import LABELS, Run, build_both, finish_run, minilm_folder, shake

from edgestill.distill.student.encoder import Encoder, HeadShape, new_encoder


@pytest.fixture(scope="session")
def minilm_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six layers, mean pooling, positions from 0."""
    import torch

    torch.manual_seed(0)
    encoder = new_encoder(minilm_folder(), len(LABELS))
    shake(encoder, 0.05)
    return finish_run(tmp_path_factory.mktemp("minilm") / "student", encoder)


@pytest.fixture(scope="session")
def roberta_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two layers, the first token through a dense layer, positions from the padding id on."""
    import torch
    from transformers import AutoModel, RobertaConfig

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    trunk = AutoModel.from_config(config, attn_implementation="sdpa", add_pooling_layer=False)
    encoder = Encoder(trunk, HeadShape("cls", len(LABELS)))
    shake(encoder, 0.2)
    return finish_run(tmp_path_factory.mktemp("roberta") / "student", encoder)


@pytest.fixture(params=["minilm", "roberta"])
def encoder_run(request: pytest.FixtureRequest, minilm_run: Run, roberta_run: Run) -> Run:
    """Each of both runs."""
    return minilm_run if request.param == "minilm" else roberta_run


@pytest.fixture(scope="session")
def minilm_bundles(minilm_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MiniLM's bundle in both quantizations."""
    return dict(build_both(minilm_run, tmp_path_factory.mktemp("minilm-bundles")))


@pytest.fixture(scope="session")
def roberta_bundles(roberta_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny RoBERTa's bundle in both quantizations."""
    return dict(build_both(roberta_run, tmp_path_factory.mktemp("roberta-bundles")))
