"""Tensors in nested dataclasses: listed, replaced, concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def tensors_of(tree: Any) -> list[Tensor]:
    """Return all tensors of a tree (a tensor, None, or a dataclass of trees) in the order of the fields."""
    if isinstance(tree, Tensor):
        return [tree]
    if is_dataclass(tree):
        return [tensor for item in fields(tree) for tensor in tensors_of(getattr(tree, item.name))]
    return []


def with_tensors(tree: T, tensors: Iterable[Tensor]) -> T:
    """Return a tree with other tensors in the places of its own."""
    rest = iter(tensors)
    if isinstance(tree, Tensor):
        return next(rest)  # type: ignore[return-value]
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{item.name: with_tensors(getattr(tree, item.name), rest) for item in fields(tree)})
    return tree


def joined(trees: Sequence[T]) -> T:
    """Concatenate trees of the same shape, each tensor along its first axis."""
    if len(trees) == 1:
        return trees[0]
    columns = zip(*(tensors_of(tree) for tree in trees), strict=True)
    return with_tensors(trees[0], [torch.cat(column) for column in columns])
