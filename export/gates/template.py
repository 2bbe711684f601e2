"""Gate: the chat template in the GGUF file renders what transformers renders from the bundle's own.

Rendered by llama-cpp-python's formatter over jinja, with the special tokens that the GGUF file names. The student's own
prompt uses no template; programs that chat with the file do.
"""

from pathlib import Path
from typing import Any

from edgestill.export.gates.gate import Gate, at_most

Messages = list[dict[str, str]]
_USER = {"role": "user", "content": "Is it  dark?\n\n\u00e9 \U0001f600 {{ x }} <|im_end|>"}
_ANSWER = {"role": "assistant", "content": "Yes."}
CONVERSATIONS: tuple[Messages, ...] = ([_USER], [_USER, _ANSWER, _USER], [{"role": "system", "content": "Be."}, _USER])


def template_gate(folder: Path, gguf: Path) -> list[Gate]:
    """Conversations that both render differently; no gate where there is no template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template, begin, end = _stored(gguf)
    if template is None and tokenizer.chat_template is None:
        return []
    wrong = 0
    for messages in CONVERSATIONS:
        for prompted in (False, True):
            by_transformers = _rendered(tokenizer, messages, prompted)
            wrong += by_transformers != (template and _formatted(template, begin, end, messages, prompted))
    return [at_most("chat template, renderings that differ", wrong, 0, f"of {2 * len(CONVERSATIONS)}")]


def _stored(gguf: Path) -> tuple[str | None, str, str]:
    """(template, beginning, end of sequence) of a GGUF file, as text."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"]

    def token(key: str) -> str:
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        return "" if field is None else str(tokens.contents(int(field.contents())))

    template = fields.get("tokenizer.chat_template")
    return None if template is None else str(template.contents()), token("bos"), token("eos")


def _rendered(tokenizer: Any, messages: Messages, prompted: bool) -> str | None:
    """By transformers; None where the template refuses such a conversation, or there is none."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted))
    except (TemplateError, ValueError):
        return None


def _formatted(template: str, begin: str, end: str, messages: Messages, prompted: bool) -> str | None:
    """By llama-cpp-python; None where the template refuses such a conversation."""
    from jinja2 import TemplateError
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    try:
        made = Jinja2ChatFormatter(template, eos_token=end, bos_token=begin, add_generation_prompt=prompted)
        return str(made(messages=messages).prompt)
    except (TemplateError, ValueError):
        return None
