"""An app as it is written against a teacher: one prompt, the `openai` client, a label out of every answer.

`python teacher_app.py BASE_URL MODEL < texts` prints what it made of the answers as JSON; it knows no student.
"""

import json
import math
import sys
from typing import Any

from openai import OpenAI

SYSTEM = """Which colour?

Labels:
- red
- green

Answer with one JSON object and nothing else:
{"rationale": "one short sentence that says why", "label": "one of the labels above, as it is written there"}"""
SCHEMA = {
    "type": "object",
    "properties": {"rationale": {"type": "string"}, "label": {"type": "string", "enum": ["red", "green"]}},
    "required": ["rationale", "label"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


def ask(client: OpenAI, model: str, text: str) -> dict[str, Any]:
    """One label, whether there was a reason, and how sure the answer's tokens are of the label."""
    messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    wish: Any = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 512, "response_format": FORMAT}
    answer = client.chat.completions.create(**wish, logprobs=True, top_logprobs=5)
    (choice,) = answer.choices
    said = json.loads(choice.message.content or "")
    spelled = [entry for entry in choice.logprobs.content if entry.token == said["label"]]
    others = {top.token for top in spelled[0].top_logprobs}
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**wish, stream=True)
    )
    return {
        "label": said["label"],
        "keys": list(said),
        "reason": bool(said["rationale"].strip()),
        "sure": math.exp(spelled[0].logprob) > 0.5,
        "others": sorted(others & {"red", "green"}),
        "streamed": json.loads(streamed)["label"],
        "finish": choice.finish_reason,
        "model": answer.model,
        "counted": answer.usage.total_tokens > 0,
    }


def main() -> None:
    """Ask about every line of stdin."""
    base_url, model = sys.argv[1:]
    client = OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60)
    print(json.dumps([ask(client, model, line.strip()) for line in sys.stdin]))


if __name__ == "__main__":
    main()
