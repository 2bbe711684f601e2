"""A solver of reasoning-gym's leg_counting behind an OpenAI-compatible address: it writes steps and reviews them.

It stands for a large model in an experiment, always right, and is named as what it is. Tokens are a fourth of the
characters.
"""

import json
import re
from typing import Any

from scripted_server import Answer, Call

MODEL = "a solver that writes and reviews steps"
LISTED = re.compile(r"(\d+) ([a-z ]+?)(?=[,?])")
STEP = re.compile(r"^\d+\. (.*)$", re.MULTILINE)


class Solver:
    """The steps and the answer to a question of leg_counting; how many legs an animal has it knows from there."""

    def __init__(self) -> None:
        """Raises ModuleNotFoundError without reasoning-gym."""
        from reasoning_gym.arithmetic.leg_counting import ANIMALS

        self._legs = dict(ANIMALS)

    def solve(self, question: str) -> tuple[list[str], str]:
        """(a step an animal and one for the sum, the number)."""
        steps, counts = [], []
        for number, name in LISTED.findall(question):
            each = self._legs.get(name, self._legs.get(name.removesuffix("s"), -1))
            counts.append(int(number) * each)
            steps.append(f"{number} {name} with {each} legs each have {counts[-1]}.")
        total = str(sum(counts))
        return [*steps, f"{' + '.join(map(str, counts))} = {total}."], total

    def __call__(self, call: Call) -> Answer:
        """Its own steps, or a review where a student's are in the question."""
        if "\n\nThe student's steps:\n" not in call.text:
            steps, total = self.solve(call.text)
            return Answer(json.dumps({"rationale": " ".join(steps), "answer": total}))
        return Answer(json.dumps(self.review(call.text)))

    def review(self, asked: str) -> dict[str, Any]:
        """A step is right where it is the solver's own in that place; one too many is wrong as well."""
        question, _, rest = asked.partition("\n\nThe student's steps:\n")
        theirs = STEP.findall(rest.partition("\n\nThe student's answer: ")[0])
        steps, total = self.solve(question)
        wrong = next((i for i, step in enumerate(theirs) if i >= len(steps) or step != steps[i]), None)
        if wrong is None:
            return {"verdicts": ["CORRECT"] * len(theirs), "first_error": None, "revised_steps": [], "answer": total}
        revised = steps[wrong:] or steps[-1:]
        verdicts = ["CORRECT"] * wrong + ["WRONG"]
        return {"verdicts": verdicts, "first_error": wrong + 1, "revised_steps": revised, "answer": total}


def questions() -> list[tuple[str, str]]:
    """(question, answer) of two or three kinds of animals, up to six of each; all different, in a fixed order.

    Raises:
        AssertionError: the solver is wrong about one.
    """
    from reasoning_gym import create_dataset

    drawn = create_dataset("leg_counting", seed=1, size=4_000, min_animals=2, max_animals=3, max_instances=6)
    rows = {row["question"].strip().splitlines()[-1].removeprefix("Now, "): row["answer"] for row in drawn}
    solver = Solver()
    assert all(solver.solve(text)[1] == gold for text, gold in rows.items())
    return list(rows.items())
