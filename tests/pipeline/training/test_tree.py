"""Tensors in nested dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.training.tree import joined, tensors_of, with_tensors


def test_tree__round_trip_and_concatenation() -> None:
    @dataclass(frozen=True, slots=True)
    class Leaf:
        a: torch.Tensor
        b: torch.Tensor | None

    @dataclass(frozen=True, slots=True)
    class Tree:
        leaf: Leaf
        c: torch.Tensor

    def tree(value: int) -> Tree:
        return Tree(Leaf(torch.full((2, 1), value), None), torch.full((2,), value))

    both = joined([tree(1), tree(2)])
    assert both.leaf.a[:, 0].tolist() == [1, 1, 2, 2]
    assert both.leaf.b is None
    assert both.c.tolist() == [1, 1, 2, 2]
    doubled = with_tensors(both, [tensor * 2 for tensor in tensors_of(both)])
    assert doubled.c.tolist() == [2, 2, 4, 4]
