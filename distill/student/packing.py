"""Many short rows in one forward pass, with the prompt of both tasks computed once. Pure layout; no model, no loss.

A row has a trunk (what the answer prompt and the rationale prompt share) and one branch a task. Branches attend to the
trunk and to themselves, never to each other or to another row; positions go on from the end of the trunk. The result
equals separate padded sequences up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edgestill.distill.student.attention import Block, blocks_of


@dataclass(frozen=True)
class Branch:
    """One task of a row: token ids of prompt and completion (the completion carries the loss).

    Of a chain, which is a row's only branch, the first `reason` tokens of the completion count as a rationale and the
    others as the answer. `even` tokens of an answer weigh alike; else the first decides: see `answer_shares`.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    reason: int = 0
    even: bool = False

    @property
    def answer_shares(self) -> list[float]:
        """How much each token of the answer weighs."""
        count = len(self.completion) - self.reason
        return [1.0] * count if self.even else answer_shares(count)


@dataclass(frozen=True)
class Example:
    """One training row. `rationale` is None when the objective or the teacher gives none.

    `soft` maps vocabulary ids of the labels' answer tokens to the wanted probabilities, summing to 1, where the first
    token of the label's completion is to be learnt as a distribution; `weight` is how much the row's label counts.
    """

    label: Branch
    rationale: Branch | None
    soft: tuple[tuple[int, float], ...] | None = None
    weight: float = 1.0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Label first, then the rationale if there is one."""
        return (self.label,) if self.rationale is None else (self.label, self.rationale)

    @property
    def reason_tokens(self) -> int:
        """How many tokens of a rationale carry loss, in a branch of their own or in the label's."""
        return self.label.reason + (0 if self.rationale is None else len(self.rationale.completion))

    @property
    def label_weight(self) -> float:
        """The weights of all tokens of the label or answer, summed."""
        return self.weight * (len(self.label.completion) - self.label.reason)


@dataclass(frozen=True)
class Packed:
    """A batch of rows as one sequence of T tokens, with N positions that carry loss.

    Shapes: ids (1, T), positions (1, T), blocks of the T tokens; sources (N,) index into T of the hidden state that
    predicts, targets (N,) the token id, tasks (N,) 0 label or 1 rationale, weights (N,) float32, see `Branch`. Soft
    targets, K of them: soft_at (K,) index into N, soft_ids (K,) vocabulary ids, soft_shares (K,) float32, summing to 1
    over equal soft_at.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    blocks: tuple[Block, ...]
    sources: torch.Tensor
    targets: torch.Tensor
    tasks: torch.Tensor
    weights: torch.Tensor
    soft_at: torch.Tensor
    soft_ids: torch.Tensor
    soft_shares: torch.Tensor


def pack(examples: Sequence[Example]) -> Packed:
    """Lay out `examples` one after the other; see `Packed` for shapes."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    branches: list[int] = []  # 0: trunk, 1: label, 2: rationale
    sources: list[int] = []
    targets: list[int] = []
    tasks: list[int] = []
    weights: list[float] = []
    soft: list[tuple[int, int, float]] = []
    for row, example in enumerate(examples):
        start, trunk = len(ids), trunk_length(example)
        soft += [(len(targets), token, share) for token, share in example.soft or ()]
        ids += example.label.prompt[:trunk]
        positions += range(trunk)
        for task, branch in enumerate(example.branches):
            rest = branch.prompt[trunk:]
            first = len(ids)
            ids += (*rest, *branch.completion[:-1])  # nothing follows the last token: it is only a target
            positions += range(trunk, trunk + len(ids) - first)
            branches += [0] * (start + trunk - len(branches)) + [task + 1] * (len(ids) - first)
            before = first + len(rest) - 1 if rest else start + trunk - 1
            sources += [before, *range(first + len(rest), len(ids))]
            targets += branch.completion
            reasons = branch.reason if task == 0 else len(branch.completion)
            shares = branch.answer_shares if task == 0 else []
            tasks += [1] * reasons + [0] * len(shares)
            weights += [1.0] * reasons + [example.weight * share for share in shares]
        rows += [row] * (len(ids) - start)
    row_of, branch_of = torch.tensor(rows), torch.tensor(branches)

    def visible(here: slice) -> torch.Tensor:
        row, branch = row_of[here], branch_of[here]
        within = (row[:, None] == row[None]) & ((branch[None] == 0) | (branch[:, None] == branch[None]))
        return within.tril()

    return Packed(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        blocks=blocks_of([packed_tokens(example) for example in examples], visible),
        sources=torch.tensor(sources),
        targets=torch.tensor(targets),
        tasks=torch.tensor(tasks),
        weights=torch.tensor(weights),
        soft_at=torch.tensor([at for at, _, _ in soft], dtype=torch.long),
        soft_ids=torch.tensor([token for _, token, _ in soft], dtype=torch.long),
        soft_shares=torch.tensor([share for _, _, share in soft]),
    )


def answer_shares(count: int) -> list[float]:
    """How much each of a label's `count` tokens weighs, `count` in all: half of it at the first, which decides."""
    return [count / 2, *[count / 2 / (count - 1)] * (count - 1)] if count > 1 else [1.0]


def packed_tokens(example: Example) -> int:
    """How many tokens of a packed batch a row takes: the shared trunk once, then each branch."""
    trunk = trunk_length(example)
    return trunk + sum(len(b.prompt) - trunk + len(b.completion) - 1 for b in example.branches)


def trunk_length(example: Example) -> int:
    """How many leading prompt tokens all branches share; the whole prompt when there is one branch."""
    prompts = [branch.prompt for branch in example.branches]
    length = 0
    while all(length < len(p) and p[length] == prompts[0][length] for p in prompts):
        length += 1
    return length
