"""The engines of a teacher in this process: llama.cpp and transformers behind one protocol. Knows no labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgestill.distill.base import PACKAGE_PREFIX, Base, package_file, prepare_base
from edgestill.distill.recipe import Recipe
from edgestill.runtime.device import usable_cores
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.session import Session

CONTEXT_TOKENS = 8192


class Model(Protocol):
    """What a local engine must give: a session, its tokenizer, and its chat template."""

    session: Session

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids without a beginning of text; the names of special tokens are read as these tokens, or as text."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """What token ids say; bytes that are no whole character become U+FFFD."""
        ...

    def stops(self, token: int) -> bool:
        """Whether a token ends a turn, or is no text at all."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation, up to where the answer begins."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def open_model(recipe: Recipe, recipe_path: Path) -> Model:
    """The recipe's local teacher, in memory.

    Raises:
        EdgestillError: it is not there or cannot be read.
    """
    if recipe.teacher.kind == "gguf":
        return GgufModel(gguf_path(recipe, recipe_path))
    return TransformersModel(str(recipe.teacher.path), recipe_path.parent)


class GgufModel:
    """A GGUF file with the tokenizer and the chat template that it holds."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            EdgestillError: llama-cpp-python is missing or cannot read it.
        """
        from edgestill.runtime.gguf_session import GgufSession

        self._session = GgufSession(path, usable_cores(), CONTEXT_TOKENS)
        self.session: Session = self._session
        self._llama: Any = self._session.llama
        facts = self._llama.metadata
        longest = int(facts.get(f"{facts.get('general.architecture')}.context_length", CONTEXT_TOKENS))
        self.session.max_tokens = min(CONTEXT_TOKENS, longest)
        self._template = facts.get("tokenizer.chat_template")

    def encode(self, text: str, special: bool = True) -> list[int]:
        """See `Model`."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=special))

    def text(self, ids: Sequence[int]) -> str:
        """See `Model`."""
        return bytes(self._llama.detokenize(list(ids), special=True)).decode("utf-8", "replace")

    def stops(self, token: int) -> bool:
        """See `Model`."""
        return token == self._llama.token_eos() or not self._llama.detokenize([token], special=False)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Model`; without a template the messages one after the other."""
        marks = {"bos_token": self._llama.token_bos(), "eos_token": self._llama.token_eos()}
        return _filled(self._template, messages, {name: self.text([t]) if t >= 0 else "" for name, t in marks.items()})

    def close(self) -> None:
        """See `Model`."""
        self._session.close()


class TransformersModel:
    """A Hugging Face causal language model on the CPU, in float32."""

    def __init__(self, spec: str, relative_to: Path) -> None:
        """Load the folder, package or hub id `spec`.

        Raises:
            EdgestillError: it is not there or cannot be read.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoTokenizer

        from edgestill.distill.student.causal import load_causal
        from edgestill.distill.torch_session import TorchSession

        torch.set_num_threads(usable_cores())
        base = teacher_base(spec, relative_to)
        try:
            model, self._tokenizer = load_causal(base, torch.float32), AutoTokenizer.from_pretrained(base.folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise EdgestillError(f"teacher.path: transformers cannot read {spec}: {error}") from None
        longest = int(getattr(model.config, "max_position_embeddings", CONTEXT_TOKENS))
        self.session: Session = TorchSession(model, min(CONTEXT_TOKENS, longest))
        ends = model.generation_config.eos_token_id
        self._stops = {*self._tokenizer.all_special_ids, *(ends if isinstance(ends, list) else [ends])}

    def encode(self, text: str, special: bool = True) -> list[int]:
        """See `Model`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special))

    def text(self, ids: Sequence[int]) -> str:
        """See `Model`."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def stops(self, token: int) -> bool:
        """See `Model`."""
        return token in self._stops

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Model`; without a template the messages one after the other."""
        template = self._tokenizer.chat_template
        return _filled(template and self._tokenizer.get_chat_template(), messages, self._tokenizer.special_tokens_map)

    def close(self) -> None:
        """See `Model`: torch frees what nobody holds."""


def _filled(template: str | None, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, Any]) -> str:
    """A chat template filled in by transformers; one that knows no system turn gets it with the first user's.

    Raises:
        EdgestillError: the template takes no such conversation.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if not template:
        return "\n\n".join(message["content"] for message in messages) + "\n\n"
    system, user, *rest = messages
    both = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
    problem = ""
    for turns in (messages, [both, *rest]):
        try:
            asked: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True, **special_tokens}
            return str(render_jinja_template([[dict(turn) for turn in turns]], **asked)[0][0])
        except TemplateError as error:
            problem = str(error)
    raise EdgestillError(f"teacher.path: the model's chat template takes no instruction with a text: {problem}")


def teacher_base(spec: str, relative_to: Path) -> Base:
    """The folder, package or hub id `spec` as a Hugging Face folder.

    Raises:
        EdgestillError: it is not there.
    """
    try:
        return prepare_base(spec, relative_to)
    except EdgestillError as error:
        raise type(error)(error.message.replace("student.base", "teacher.path"), error.hint) from None


def gguf_path(recipe: Recipe, recipe_path: Path) -> Path:
    """The GGUF file that the recipe names.

    Raises:
        EdgestillError: no such file or package.
    """
    spec = str(recipe.teacher.path)
    if spec.startswith(PACKAGE_PREFIX):
        return package_file(spec, "teacher.path")
    path = recipe_path.parent / Path(spec).expanduser()
    if not path.is_file():
        raise EdgestillError(f"teacher.path: no file {path}", "name a GGUF file or package:NAME")
    return path
