"""What a student in training writes in place of a recorded completion: seeds, sampling, and how much it counts.

GKD's on-policy part (arXiv 2306.13649): with some probability the divergence is taken on the student's own sample.
Drawing row by row, and letting a sample weigh as the completion it stands for, are our reading.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgestill.distill.student.packing import Branch

PASS_BITS = 12  # of the seed that the loop gives torch before a pass: its number in the batch, behind seed and step


def row_generator(prompt: Sequence[int]) -> random.Random:
    """A generator of a row in this step of the loop: the same in whichever pass and process the row is computed."""
    step = torch.initial_seed() >> PASS_BITS
    return random.Random(hashlib.sha256(f"{step}:{prompt}".encode()).digest())


def sampler(seeds: Sequence[int], vocabulary: int, temperature: float) -> Callable[[Tensor], Tensor]:
    """What `student.writing.write` picks tokens by: logits (R, V') -> (R,), each row by a generator of its own.

    So that a row's completion depends on no other row of its batch, up to rounding.

    Args:
        seeds: R of them.
        vocabulary: V; logits beyond are padding and never picked.
        temperature: logits are divided by it.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def pick(logits: Tensor) -> Tensor:
        shares = (logits[:, :vocabulary] / temperature).softmax(-1)
        rows = zip(shares, generators, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])

    return pick


def stand_in(recorded: Branch, said: tuple[int, ...]) -> tuple[Branch, list[float]]:
    """A branch with what the student said in it, and what each of its tokens is multiplied by.

    The multiples make its tokens weigh in all as much as the recorded ones, however many there are: a batch's mass is
    known before anything is written, and writing more does not count for more. A chain is divided into reason and
    answer in the proportion of the recorded one.
    """
    count, whole = len(said), len(recorded.completion)
    reason = min(round(count * recorded.reason / whole), count - 1)
    answer = (whole - recorded.reason) / (count - reason)
    own = [recorded.reason / reason] * reason if reason else []
    return replace(recorded, completion=said, reason=reason), [*own, *[answer] * (count - reason)]
