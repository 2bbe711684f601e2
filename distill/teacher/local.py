"""A teacher in this process: a GGUF file run by llama.cpp or a Hugging Face model run by transformers.

Writes the reason token by token, then reads all labels' probabilities off one walk over their tokens, so that its
answer always has the right shape. Answers one request at a time.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgestill.distill.base import PACKAGE_PREFIX, package_file, prepare_base
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.endpoint import Reply
from edgestill.distill.teacher.prompt import TOP_LOGPROBS
from edgestill.runtime import decode, manifest
from edgestill.runtime.device import usable_cores
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Session

CONTEXT_TOKENS = 8192


class Model(Protocol):
    """What a local engine must give: a session, its tokenizer, and its chat template."""

    session: Session
    stop_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens of the template included."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation, up to where the answer begins."""
        ...


def model_hash(recipe: Recipe, recipe_path: Path) -> str:
    """16 hex digits of the model's weights: what stands for the endpoint in the cache.

    Raises:
        EdgestillError: no such file, package or folder.
    """
    if recipe.teacher.kind == "gguf":
        return manifest.sha256_file(_gguf_path(recipe, recipe_path))[:16]
    return prepare_base(str(recipe.teacher.path), recipe_path.parent).weights_sha256[:16]


class LocalEndpoint:
    """Answers request bodies as an endpoint would, from a model in memory, opened at the first request."""

    one_at_a_time = True

    def __init__(self, recipe: Recipe, recipe_path: Path, host: str) -> None:
        """`host` is what stands for the endpoint in the cache."""
        self.host, self.model = host, recipe.teacher.model or str(recipe.teacher.path)
        self._recipe, self._recipe_path = recipe, recipe_path
        self._labels = list(recipe.task.labels)
        self._opened: Model | None = None

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """See `OpenAIEndpoint.send`; never a fault."""
        return await asyncio.to_thread(self._answer, body)

    async def close(self) -> None:
        """Nothing is connected."""

    def _answer(self, body: Mapping[str, Any]) -> Reply:
        if self._opened is None:
            self._opened = _open(self._recipe, self._recipe_path)
        model = self._opened
        prompt = model.encode(model.chat(body["messages"]))
        limit = int(body.get("max_tokens") or body["max_completion_tokens"])
        if len(prompt) + limit > model.session.max_tokens:
            detail = f"{len(prompt)} prompt tokens and {limit} for the answer, the context holds {CONTEXT_TOKENS}"
            return Reply({"error": {"status": 400, "message": detail, "reason": "too_long"}})
        model.session.forget()
        if not self._recipe.task.rationale:
            said = self._label(model, prompt, '{"label": "')
        elif self._recipe.teacher.rationale_order == "before":
            reason = _write(model, prompt, '{"rationale": "', limit)
            said = self._label(model, reason.ids, '", "label": "')
            said = _Said(said.ids, {"rationale": reason.content["rationale"]} | said.content, said.odds, said.tops)
        else:
            label = self._label(model, prompt, '{"label": "')
            reason = _write(model, label.ids, '", "rationale": "', limit)
            said = _Said(reason.ids, label.content | reason.content, label.odds, label.tops)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(said.ids) - len(prompt)}
        content = json.dumps(said.content, ensure_ascii=False)
        facts = {"content": content, "finish_reason": "stop", "model": self.model, "usage": usage}
        return Reply(facts | {"label_probabilities": said.odds, "label_top_logprobs": said.tops})

    def _label(self, model: Model, ids: list[int], opening: str) -> "_Said":
        """The likeliest label after `opening`; all labels' probabilities from one walk over their tokens."""
        ids = [*ids, *model.encode(opening)]
        first = decode.log_softmax(model.session.logits(ids))
        answers = [model.encode(label + '"') for label in self._labels]
        odds = decode.trie_probabilities(model.session, ids, answers)
        best = int(odds.argmax())
        top = np.argsort(first)[::-1][:TOP_LOGPROBS]
        tops = [[model.piece(int(t)).decode("utf-8", "replace"), round(float(first[t]), 4)] for t in top]
        shares = {label: float(share) for label, share in zip(self._labels, odds, strict=True)}
        return _Said([*ids, *answers[best]], {"label": self._labels[best]}, shares, tops)


@dataclass(frozen=True)
class _Said:
    """A conversation's tokens so far, the answer's fields, and what the model thought of each label.

    `tops` are the most likely tokens where the label begins: [text, natural-log probability].
    """

    ids: list[int]
    content: dict[str, str]
    odds: dict[str, float] | None = None
    tops: list[list[Any]] | None = None


def _write(model: Model, ids: list[int], opening: str, limit: int) -> _Said:
    """A sentence after `opening`, greedily, up to a quote, a line's end or the limit."""
    ids, written = [*ids, *model.encode(opening)], b""
    for _ in range(limit):
        token = int(model.session.logits(ids).argmax())
        piece = model.piece(token)
        if token in model.stop_ids or b'"' in piece or b"\n" in piece:
            written += piece.split(b'"')[0].split(b"\n")[0] if token not in model.stop_ids else b""
            break
        written += piece
        ids.append(token)
    return _Said(ids, {"rationale": written.decode("utf-8", "ignore").strip()})


def _open(recipe: Recipe, recipe_path: Path) -> Model:
    if recipe.teacher.kind == "gguf":
        return GgufModel(_gguf_path(recipe, recipe_path))
    return TransformersModel(str(recipe.teacher.path), recipe_path.parent)


class GgufModel:
    """A GGUF file with the tokenizer and the chat template that it holds."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            EdgestillError: llama-cpp-python is missing or cannot read it.
        """
        from edgestill.runtime.gguf_session import GgufSession

        self.session: Session = GgufSession(path, usable_cores(), CONTEXT_TOKENS)
        self._llama: Any = self.session.llama
        self._template = self._llama.metadata.get("tokenizer.chat_template")
        self.stop_ids = frozenset({self._llama.token_eos()})

    def encode(self, text: str) -> list[int]:
        """See `Model`."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def piece(self, token: int) -> bytes:
        """See `Model`."""
        return bytes(self._llama.detokenize([token], special=True))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Model`; without a template the messages one after the other."""
        if self._template is None:
            return _plain_chat(messages)
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        bos, eos = (self.piece(t).decode() for t in (self._llama.token_bos(), self._llama.token_eos()))
        template = environment.from_string(self._template)
        return template.render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)


class TransformersModel:
    """A Hugging Face causal language model on the CPU, in the precision that it was saved in."""

    def __init__(self, spec: str, relative_to: Path) -> None:
        """Load the folder, package or hub id `spec`.

        Raises:
            EdgestillError: it is not there or cannot be read.
        """
        import torch
        from transformers import AutoTokenizer

        from edgestill.distill.torch_session import TorchSession
        from edgestill.distill.train import load_causal

        torch.set_num_threads(usable_cores())
        base = prepare_base(spec, relative_to)
        try:
            model, self._tokenizer = load_causal(base, torch.float32), AutoTokenizer.from_pretrained(base.folder)
        except (OSError, ValueError) as error:
            raise EdgestillError(f"teacher.path: transformers cannot read {spec}: {error}") from None
        longest = int(getattr(model.config, "max_position_embeddings", CONTEXT_TOKENS))
        self.session: Session = TorchSession(model, min(CONTEXT_TOKENS, longest))
        ends = model.generation_config.eos_token_id
        self.stop_ids = frozenset(ends if isinstance(ends, list) else [ends])

    def encode(self, text: str) -> list[int]:
        """See `Model`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def piece(self, token: int) -> bytes:
        """See `Model`."""
        return str(self._tokenizer.decode([token])).encode()

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Model`; without a template the messages one after the other."""
        if not self._tokenizer.chat_template:
            return _plain_chat(messages)
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def _plain_chat(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join(message["content"] for message in messages) + "\n\n"


def _gguf_path(recipe: Recipe, recipe_path: Path) -> Path:
    spec = str(recipe.teacher.path)
    if spec.startswith(PACKAGE_PREFIX):
        return package_file(spec, "teacher.path")
    path = recipe_path.parent / Path(spec).expanduser()
    if not path.is_file():
        raise EdgestillError(f"teacher.path: no file {path}", "name a GGUF file or package:NAME")
    return path
