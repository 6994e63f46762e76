"""Shared-part distances of query and gallery, as matrix products in blocks, on any device.

With L2-normalised part features q_i and g_i, visibilities v_i and o_i = v_i^q v_i^g, the cosine distances
d_i = 1 - q_i.g_i never need to be formed part by part:

    sum_i o_i     = (Vq Vg^T)
    sum_i o_i d_i = (Vq Vg^T) - (Vq*Q)(Vg*G)^T

The global distance d0 with weight m joins both products as one more part of visibility sqrt(m) in every image.
Matching rules (paper, eq. 6 and 7; docs/concepts/matching.md compares them):

    shrunk   (sum_i o_i d_i + m d0) / (sum_i o_i + m)
    mean      sum_i o_i d_i / sum_i o_i
    sum       sum_i o_i d_i
    query     sum_i v_i^q d_i
    all       the mean of all d_i, visibility ignored
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import MatchingConfig
from pipeline.errors import FormatError
from pipeline.formats.features import Features

RuleName = Literal["shrunk", "mean", "sum", "query", "all"]
Metric = Literal["cosine", "euclidean"]
VisibilityKind = Literal["hard", "soft"]

Floats = npt.NDArray[np.float32]

NOTHING_SHARED = 3.0
"""Distance of a pair without a shared part where the global term is off: larger than any mean of distances."""

BEHIND = 2.0
"""Added to the global distance where it replaces a mean of part distances, none of which is larger than this."""


@dataclass(frozen=True, slots=True)
class MatchingRule:
    """How part distances become one distance.

    Attributes:
        name: See the module's docstring.
        shrink: m, the weight of the global distance in `shrunk`.
        global_term: Use the global distance d0: in `shrunk`, and alone where `mean` finds no shared part or `query`
            no visible one. Off, or without global features, such pairs get `NOTHING_SHARED`. `sum` follows eq. 7 as
            published, where they get 0; `all` never uses d0.
        metric: Cosine distance, in [0, 2], or the Euclidean distance of L2-normalised features, in [0, 2].
        visibility: `hard` or `soft`, see `visibility_weights`.

    Examples:
        >>> MatchingRule("mean", metric="euclidean").symmetric
        True
    """

    name: RuleName = "shrunk"
    shrink: float = 1.0
    global_term: bool = True
    metric: Metric = "cosine"
    visibility: VisibilityKind = "hard"

    @classmethod
    def from_config(cls, config: MatchingConfig) -> Self:
        """Return the rule of a configuration."""
        return cls(config.rule, config.shrink, config.global_term, config.metric, config.visibility)

    @property
    def symmetric(self) -> bool:
        """Whether d(a, b) = d(b, a)."""
        return self.name != "query"


SHRUNK = MatchingRule()


@dataclass(frozen=True, slots=True)
class Prepared:
    """One side of the products, computed once and used for every block.

    Attributes:
        rule: The matching rule it was prepared for.
        units: (N,K) the L2-normalised features, each times its visibility, side by side.
        weights: (N,P) or (N,P+1) visibilities, the last column sqrt(m) where the global feature joins every mean.
        global_feature: (N,W) L2-normalised global features where they decide pairs without a shared part, else None.
        dims: Dimension of each feature inside `units`; one more than parts where the global feature joins.
        num_parts: P.
    """

    rule: MatchingRule
    units: Tensor
    weights: Tensor
    global_feature: Tensor | None
    dims: tuple[int, ...]
    num_parts: int

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, rows: slice | Tensor) -> Prepared:
        fallback = None if self.global_feature is None else self.global_feature[rows]
        return Prepared(self.rule, self.units[rows], self.weights[rows], fallback, self.dims, self.num_parts)

    @property
    def global_joins(self) -> bool:
        """Whether the global feature is part of every distance."""
        return len(self.dims) > self.num_parts

    def take(self, rows: npt.NDArray[np.int64]) -> Prepared:
        """Return the rows of an index array."""
        return self[torch.from_numpy(rows).to(self.units.device)]

    def concat(self, other: Prepared) -> Prepared:
        """Return the rows of both."""
        fallback = None
        if self.global_feature is not None and other.global_feature is not None:
            fallback = torch.cat([self.global_feature, other.global_feature])
        units, weights = torch.cat([self.units, other.units]), torch.cat([self.weights, other.weights])
        return Prepared(self.rule, units, weights, fallback, self.dims, self.num_parts)


class Workspace:
    """Memory that one block after another is computed in.

    New tensors for every block of a large gallery would scatter over the heap, and the process would grow with the
    gallery. The next block overwrites what was computed in a workspace.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
        """Return an uninitialised tensor of that shape, in the type and on the device of `like`."""
        size = shape[0] * shape[1]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)


def visibility_weights(visibility: Floats, thresholds: Floats, kind: VisibilityKind) -> Floats:
    """Return the weight of each part (N,P) in [0, 1] from its mask mean (N,P) and threshold (P,).

    `hard` is eq. 5: 1 above the part's threshold, else 0. `soft` divides by the threshold and stops at 1, so that a
    part below its threshold counts in proportion. Raw means of a small part (shoes) would count for little however
    well it is seen.
    """
    if kind == "hard":
        return (visibility > thresholds).astype(np.float32)
    least = np.maximum(thresholds, np.finfo(np.float32).tiny)
    # A threshold of 1 marks a part without training data; it never counts.
    return np.where(thresholds >= 1, 0.0, np.minimum(visibility / least, 1.0)).astype(np.float32)


def prepare(
    side: Features,
    rule: MatchingRule = SHRUNK,
    *,
    is_query: bool,
    device: torch.device | str = "cpu",
    space: Workspace | None = None,
) -> Prepared:
    """Normalise and weight one side, for products on `device`, in the memory of `space` if given.

    Args:
        side: The features.
        rule: The matching rule.
        is_query: Query and gallery differ under the rule `query`.
        device: Device of the result.
        space: Memory for the result.

    Raises:
        FormatError: Neither part features nor a global feature can be compared.
    """
    count, num_parts, part_dim = side.parts.shape
    global_dim = side.global_dim
    if part_dim == 0 and (global_dim == 0 or not rule.global_term):
        raise FormatError("nothing to compare: no part features, and the global feature is missing or off")
    visibility = visibility_weights(side.visibility, side.thresholds, rule.visibility)
    parts, global_feature, visible = (
        torch.from_numpy(each).to(device) for each in (side.parts, side.global_feature, visibility)
    )
    # The square root amplifies rounding near 0: 1e-7 in the cosine is 4e-4 in the distance of two equal images.
    dtype = torch.float64 if rule.metric == "euclidean" and parts.device.type != "mps" else torch.float32
    visible = visible.to(dtype)
    if part_dim == 0:
        visible = torch.zeros_like(visible)
    elif rule.name == "all" or (rule.name == "query" and not is_query):
        visible = torch.ones_like(visible)
    has_global = rule.global_term and global_dim > 0
    joins = has_global and rule.name == "shrunk" and rule.shrink > 0
    falls_back = has_global and not joins and (rule.name != "sum" or part_dim == 0)

    # L2 norm and visibility both scale a whole feature vector, so one factor per part does both.
    units = (space or Workspace()).take("units", (count, num_parts * part_dim + global_dim * joins), visible)
    scale = visible / torch.linalg.vector_norm(parts, dim=2, dtype=dtype).clamp_min(_TINY)
    flat = units[:, : num_parts * part_dim].view(count, num_parts, part_dim)
    torch.mul(parts, scale[:, :, None], out=flat)
    dims = (part_dim,) * num_parts
    weights = visible
    if joins:
        root = rule.shrink**0.5
        units[:, num_parts * part_dim :] = F.normalize(global_feature.to(dtype), eps=_TINY) * root
        weights = torch.cat([visible, torch.full_like(visible[:, :1], root)], dim=1)
        dims = (*dims, global_dim)
    fallback = F.normalize(global_feature.to(dtype), eps=_TINY) if falls_back else None
    return Prepared(rule, units, weights, fallback, dims, num_parts)


def distances(query: Prepared, gallery: Prepared, *, space: Workspace | None = None) -> Tensor:
    """Return the distances of two sides prepared for one rule.

    Returns:
        (Q,G) float32, never NaN and never negative for finite features; in the memory of `space` if given.

    Raises:
        FormatError: The sides have features of different dimensions.
    """
    if query.dims != gallery.dims:
        raise FormatError(
            f"query features have dimensions {query.dims}, gallery features {gallery.dims}",
            hint="extract both with the same checkpoint",
        )
    if space is None:
        return _combine(query, gallery, lambda left, right: left @ right.T)
    # Two products form the distances; further ones, which few rules need, must not overwrite them.
    names = iter(("shared", "products"))

    def product(left: Tensor, right: Tensor) -> Tensor:
        name = next(names, None)
        out = None if name is None else space.take(name, (len(left), len(right)), left)
        return torch.mm(left, right.T, out=out)

    return _combine(query, gallery, product)


def paired_distances(left: Prepared, right: Prepared) -> Tensor:
    """Return the distance of row i to row i: (N,) float32. See `distances`."""
    return _combine(left, right, lambda a, b: (a * b).sum(dim=1))


def candidate_distances(query: Prepared, candidates: Prepared) -> Tensor:
    """Return the distances of each query to its own candidates, C rows for each in turn: (Q,C). See `distances`."""
    each = len(candidates) // max(1, len(query))

    def product(left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(right.view(len(left), each, right.shape[1]), left[:, :, None])[:, :, 0]

    return _combine(query, candidates, product)


def distance_blocks(
    query: Features | Prepared,
    gallery: Features | Prepared,
    *,
    rule: MatchingRule = SHRUNK,
    device: torch.device | str = "cpu",
    rows: int | None = None,
) -> Iterator[Tensor]:
    """Yield the distances of successive queries to the whole gallery (B,G), so that no full matrix is held.

    Args:
        query: (Q) features, or a prepared side, which has its own rule and device.
        gallery: (G) the same.
        rule: The matching rule.
        device: Device of the work and of the blocks.
        rows: Queries per block; by default as many as make a block of about 16 MB.
    """
    left = query if isinstance(query, Prepared) else prepare(query, rule, is_query=True, device=device)
    right = gallery if isinstance(gallery, Prepared) else prepare(gallery, rule, is_query=False, device=device)
    size = rows or max(32, 2**22 // max(1, len(right)))
    for start in range(0, len(left), size):
        yield distances(left[start : start + size], right)


def distance_matrix(
    query: Features | Prepared,
    gallery: Features | Prepared,
    *,
    rule: MatchingRule = SHRUNK,
    device: torch.device | str = "cpu",
    rows: int | None = None,
) -> Floats:
    """Return all distances: (Q,G) float32. `distance_blocks` needs less memory and has the same arguments."""
    out = np.empty((len(query), len(gallery)), dtype=np.float32)
    start = 0
    for block in distance_blocks(query, gallery, rule=rule, device=device, rows=rows):
        out[start : start + len(block)] = block.cpu().numpy()
        start += len(block)
    return out


_TINY = 1e-12
"""Norms below this are those of a zero vector, whose cosine with anything is 0."""


def _combine(query: Prepared, gallery: Prepared, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the distances of all pairs, or of pairs of rows, as `product` multiplies."""
    rule = query.rule
    with _full_precision():
        shared = product(query.weights, gallery.weights)
        is_mean = rule.name not in ("sum", "query")
        if rule.metric == "cosine":
            cosines = product(query.units, gallery.units)
            if is_mean:
                # 1 - cosines / shared in one pass over memory, which is what costs here.
                one = torch.ones((), dtype=cosines.dtype, device=cosines.device)
                total = torch.addcdiv(one, cosines, shared, value=-1, out=cosines)
            else:
                total = torch.sub(shared, cosines, out=cosines)
            total.clamp_min_(0)
        else:
            total = _weighted_euclidean(query, gallery, product)
            if is_mean:
                total.div_(shared)
        # Where the global feature joins every mean, something is always shared.
        as_published = rule.name == "sum" and query.global_feature is None
        if not (query.global_joins or as_published) and shared.numel() and bool(shared.amin() == 0):
            # Only here is 0 / 0 possible; it is replaced, not computed with.
            torch.where(shared == 0, _fallback(query, gallery, product), total, out=total)
    return total.to(torch.float32)


def _weighted_euclidean(query: Prepared, gallery: Prepared, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the sum of o_i d_i over all columns."""
    total: Tensor | None = None
    start = 0
    for column, length in enumerate(query.dims):
        weight = product(query.weights[:, column : column + 1], gallery.weights[:, column : column + 1])
        cosine = product(query.units[:, start : start + length], gallery.units[:, start : start + length])
        # units carry the visibility, so `cosine` is o times the cosine: o sqrt(2 - 2 c) = sqrt(o (2 o - 2 o c)).
        term = ((2 * (weight - cosine)).clamp_min_(0) * weight).sqrt_()
        total = term if total is None else total.add_(term)
        start += length
    assert total is not None
    return total


def _fallback(query: Prepared, gallery: Prepared, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the distances that pairs without a shared part get."""
    rule = query.rule
    if query.global_feature is None or gallery.global_feature is None:
        return torch.full((), NOTHING_SHARED, dtype=query.units.dtype, device=query.units.device)
    cosine = product(query.global_feature, gallery.global_feature)
    d0 = (1 - cosine).clamp_min_(0) if rule.metric == "cosine" else (2 - 2 * cosine).clamp_min_(0).sqrt_()
    if rule.name not in ("mean", "shrunk") or query.dims[0] == 0:
        return d0
    # Global distances have a scale of their own, often smaller than that of parts: such pairs are ordered by it among
    # themselves, behind all that share a part.
    return d0.add_(BEHIND)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep TF32 and bfloat16 products, which a training script may have allowed, out of distances."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
