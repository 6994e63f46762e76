"""Shared-part distances of query and gallery, as matrix products in blocks, on any device.

With L2-normalised part features q_i and g_i, visibilities v_i and o_i = v_i^q v_i^g, the cosine distances
d_i = 1 - q_i.g_i never need to be formed part by part:

    sum_i o_i     = (Vq Vg^T)
    sum_i o_i d_i = (Vq Vg^T) - (Vq*Q)(Vg*G)^T

The global distance d0 with weight m joins both products as one more part that everybody shows with visibility
sqrt(m). Rules (paper, eq. 6 and 7; docs/concepts/matching.md tells why the letter of it is not the default):

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
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import FormatError
from pipeline.formats.features import FeatureRows, Features

RuleName = Literal["shrunk", "mean", "sum", "query", "all"]
Metric = Literal["cosine", "euclidean"]
VisibilityKind = Literal["hard", "soft"]

NOTHING_SHARED = 3.0
"""Distance of a pair that shares nothing where the whole-body term is off: larger than any mean of distances."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How part distances become one distance.

    Attributes:
        name: See the module's text.
        shrink: m, the weight of the global distance in `shrunk`.
        global_term: Use the global distance d0: in `shrunk`, and alone where `mean` finds nothing shared or
            `query` finds nothing visible. Off, or where the features have none: such pairs get `NOTHING_SHARED`.
            `sum` keeps the letter of eq. 7, where they get 0; `all` never uses d0.
        metric: cosine distance, in [0, 2], or the Euclidean distance of L2-normalised features, in [0, 2].
    """

    name: RuleName = "shrunk"
    shrink: float = 1.0
    global_term: bool = True
    metric: Metric = "cosine"

    @property
    def symmetric(self) -> bool:
        """Whether d(a, b) = d(b, a)."""
        return self.name != "query"


SHRUNK = Rule()


@dataclass(frozen=True, slots=True)
class PartSet:
    """Features of some images, ready to be compared.

    Attributes:
        parts: (N,P,D) part features of any length; D = 0 for a model without parts, which leaves the whole body.
        global_feature: (N,W) global features; W = 0 for a model without.
        visible: (N,P) visibility of each part in [0, 1]: 0 or 1, or a weight.
    """

    parts: Tensor
    global_feature: Tensor
    visible: Tensor

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, rows: slice | Tensor) -> PartSet:
        return PartSet(self.parts[rows], self.global_feature[rows], self.visible[rows])

    def take(self, rows: npt.NDArray[np.int64]) -> PartSet:
        """The rows picked by an index array."""
        return self[torch.from_numpy(rows).to(self.parts.device)]

    def to(self, device: torch.device | str) -> PartSet:
        """The same on another device."""
        return PartSet(self.parts.to(device), self.global_feature.to(device), self.visible.to(device))


@dataclass(frozen=True, slots=True)
class Prepared:
    """One side of the products, made once and used for every block.

    Attributes:
        units: (N,K) what is multiplied: the L2-normalised features, each times its visibility, side by side.
        weights: (N,P) or (N,P+1) visibilities, the last column sqrt(m) where the whole body takes part.
        global_feature: (N,W) L2-normalised global features where they decide pairs that share nothing, else None.
        lengths: Length of each feature inside `units`; one more than parts where the whole body takes part.
        num_parts: P.
    """

    units: Tensor
    weights: Tensor
    global_feature: Tensor | None
    lengths: tuple[int, ...]
    num_parts: int

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, rows: slice | Tensor) -> Prepared:
        return Prepared(
            self.units[rows],
            self.weights[rows],
            None if self.global_feature is None else self.global_feature[rows],
            self.lengths,
            self.num_parts,
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Prepared:
        """The rows picked by an index array."""
        return self[torch.from_numpy(rows).to(self.units.device)]


class Workspace:
    """Memory that one block after another is computed in.

    Fresh tensors for each block of a large gallery scatter over the heap, so that the process grows with the gallery
    although no tensor does. What was computed in a workspace is written over by the next block.
    """

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
        """An uninitialised tensor of that shape, in the type and on the device of `like`."""
        size = shape[0] * shape[1]
        room = self._room.get(name)
        if room is None or room.numel() < size or room.dtype != like.dtype or room.device != like.device:
            room = self._room[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return room[:size].view(shape)


def visibility_weights(
    visibility: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float32], kind: VisibilityKind
) -> npt.NDArray[np.float32]:
    """Visibility from mask means.

    `hard` is eq. 5: 1 above the part's threshold, else 0. `soft` divides by the threshold and stops at 1, so that what
    `hard` drops counts by how little is missing: raw means of a small part (shoes) would count for little however well
    it is seen.

    Args:
        visibility: (N,P) mask means in [0, 1].
        thresholds: (P,) thresholds.
        kind: hard or soft.

    Returns:
        (N,P) float32 in [0, 1].
    """
    if kind == "hard":
        return (visibility > thresholds).astype(np.float32)
    least = np.maximum(thresholds, np.finfo(np.float32).tiny)
    # A threshold of 1 marks a part that the training data never show; it never counts.
    return np.where(thresholds >= 1, 0.0, np.minimum(visibility / least, 1.0)).astype(np.float32)


def part_set(
    features: Features | FeatureRows,
    thresholds: npt.NDArray[np.float32],
    kind: VisibilityKind = "hard",
    device: torch.device | str = "cpu",
) -> PartSet:
    """Wrap features of a file (without copying on the CPU)."""
    weights = visibility_weights(features.visibility, thresholds, kind)
    return PartSet(
        torch.from_numpy(features.parts), torch.from_numpy(features.global_feature), torch.from_numpy(weights)
    ).to(device)


def prepare(side: PartSet, rule: Rule = SHRUNK, *, is_query: bool, space: Workspace | None = None) -> Prepared:
    """Normalise and weigh one side.

    Args:
        side: The features.
        rule: How distances are formed.
        is_query: Query and gallery differ in the rule `query`.
        space: Where to put the result, instead of into fresh memory.

    Raises:
        FormatError: The arrays do not fit each other, or there is no feature at all.
    """
    count, num_parts, part_dim = side.parts.shape
    global_dim = side.global_feature.shape[1]
    if side.visible.shape != (count, num_parts) or len(side.global_feature) != count:
        raise FormatError(
            f"parts {tuple(side.parts.shape)}, whole {tuple(side.global_feature.shape)} and visibility "
            f"{tuple(side.visible.shape)} do not belong together"
        )
    if part_dim == 0 and (global_dim == 0 or not rule.global_term):
        raise FormatError("there is nothing to compare: no part features, and the global feature is missing or off")
    dtype = _working_type(rule, side.parts.device)
    visible = side.visible.to(dtype)
    if part_dim == 0:
        visible = torch.zeros_like(visible)
    elif rule.name == "all" or (rule.name == "query" and not is_query):
        visible = torch.ones_like(visible)
    has_global = rule.global_term and global_dim > 0
    in_mean = has_global and rule.name == "shrunk" and rule.shrink > 0
    as_fallback = has_global and not in_mean and (rule.name != "sum" or part_dim == 0)

    # Both L2 norms and visibilities scale whole feature vectors, so one factor a part does both.
    units = (space or Workspace()).take("units", (count, num_parts * part_dim + global_dim * in_mean), visible)
    scale = visible / torch.linalg.vector_norm(side.parts, dim=2, dtype=dtype).clamp_min(_TINY)
    flat = units[:, : num_parts * part_dim].view(count, num_parts, part_dim)
    torch.mul(side.parts, scale[:, :, None], out=flat)
    lengths = (part_dim,) * num_parts
    weights = visible
    if in_mean:
        root = rule.shrink**0.5
        units[:, num_parts * part_dim :] = F.normalize(side.global_feature.to(dtype), eps=_TINY) * root
        weights = torch.cat([visible, torch.full_like(visible[:, :1], root)], dim=1)
        lengths = (*lengths, global_dim)
    global_feature = F.normalize(side.global_feature.to(dtype), eps=_TINY) if as_fallback else None
    return Prepared(units, weights, global_feature, lengths, num_parts)


def distances(query: Prepared, gallery: Prepared, rule: Rule = SHRUNK, *, space: Workspace | None = None) -> Tensor:
    """Distances of prepared sides.

    Args:
        query: (Q) the one side.
        gallery: (G) the other.
        rule: The rule that both were prepared for.
        space: Where to compute, instead of in fresh memory; the result may lie there too.

    Returns:
        (Q,G) float32, never NaN and never negative for finite features.

    Raises:
        FormatError: The sides have features of different lengths.
    """
    if query.lengths != gallery.lengths:
        raise FormatError(
            f"query features have lengths {query.lengths}, gallery features {gallery.lengths}",
            hint="extract both with the same checkpoint",
        )
    if space is None:
        return _combine(query, gallery, rule, lambda left, right: left @ right.T)
    # Two products make the distances; further ones, which few rules need, must not write over them.
    names = iter(("shared", "products"))

    def product(left: Tensor, right: Tensor) -> Tensor:
        name = next(names, None)
        out = None if name is None else space.take(name, (len(left), len(right)), left)
        return torch.mm(left, right.T, out=out)

    return _combine(query, gallery, rule, product)


def paired_distances(left: Prepared, right: Prepared, rule: Rule = SHRUNK) -> Tensor:
    """Distances of row i to row i only, for chosen pairs: (N,) float32. See `distances`."""
    return _combine(left, right, rule, lambda a, b: (a * b).sum(dim=1))


def candidate_distances(query: Prepared, candidates: Prepared, rule: Rule = SHRUNK) -> Tensor:
    """Distances of each query to candidates of its own: (Q,C) float32. See `distances`.

    Args:
        query: (Q) the one side.
        candidates: (Q * C) the other, C rows for each query in turn.
        rule: The rule that both were prepared for.
    """
    each = len(candidates) // max(1, len(query))

    def product(left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(right.view(len(left), each, right.shape[1]), left[:, :, None])[:, :, 0]

    return _combine(query, candidates, rule, product)


def distance_blocks(
    query: PartSet | Prepared, gallery: PartSet | Prepared, *, rule: Rule = SHRUNK, rows: int | None = None
) -> Iterator[Tensor]:
    """Distances of successive queries to the whole gallery, so that no full matrix is held.

    Args:
        query: (Q) features; the device of the features is where the work is done.
        gallery: (G) features on the same device.
        rule: How distances are formed.
        rows: Queries a block; by default as many as make a block of some 16 MB.

    Yields:
        (B,G) float32 blocks in query order.
    """
    left = query if isinstance(query, Prepared) else prepare(query, rule, is_query=True)
    right = gallery if isinstance(gallery, Prepared) else prepare(gallery, rule, is_query=False)
    size = rows or max(32, 2**22 // max(1, len(right)))
    for start in range(0, len(left), size):
        yield distances(left[start : start + size], right, rule)


def distance_matrix(
    query: PartSet | Prepared, gallery: PartSet | Prepared, *, rule: Rule = SHRUNK, rows: int | None = None
) -> Tensor:
    """All distances: (Q,G) float32 on the features' device. See `distance_blocks` for one that needs less memory."""
    right = gallery if isinstance(gallery, Prepared) else prepare(gallery, rule, is_query=False)
    out = torch.empty(len(query), len(gallery), dtype=torch.float32, device=right.units.device)
    start = 0
    for block in distance_blocks(query, right, rule=rule, rows=rows):
        out[start : start + len(block)] = block
        start += len(block)
    return out


def part_distances(query: PartSet, gallery: PartSet, *, metric: Metric = "cosine") -> Tensor:
    """Distance of each part by itself, visibility ignored, to explain single pairs.

    Returns:
        (Q,G,P+1) float32; the last column is the whole body. A feature of length 0 gives NaN: there is no distance.
    """
    columns = [(query.parts[:, i], gallery.parts[:, i]) for i in range(query.parts.shape[1])]
    columns.append((query.global_feature, gallery.global_feature))
    found = []
    for left, right in columns:
        cosine = F.normalize(left.double(), eps=_TINY) @ F.normalize(right.double(), eps=_TINY).T
        distance = 1 - cosine if metric == "cosine" else (2 - 2 * cosine).clamp_min(0).sqrt()
        found.append(distance if left.shape[1] else torch.full_like(distance, torch.nan))
    return torch.stack(found, dim=2).to(torch.float32)


_BEHIND = 2.0
"""No mean of part distances is larger, cosine or Euclidean of unit vectors."""

_TINY = 1e-12
"""Norms below this are those of a zero vector, whose cosine with anything is 0."""


def _working_type(rule: Rule, device: torch.device) -> torch.dtype:
    # The square root blows rounding up near 0: 1e-7 in the cosine is 4e-4 in the distance of two equal images.
    needs_double = rule.metric == "euclidean" and device.type != "mps"
    return torch.float64 if needs_double else torch.float32


def _combine(query: Prepared, gallery: Prepared, rule: Rule, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Distances of all pairs, or of pairs of rows, as `product` multiplies."""
    with _full_precision():
        shared = product(query.weights, gallery.weights)
        is_mean = rule.name not in ("sum", "query")
        if rule.metric == "cosine":
            cosines = product(query.units, gallery.units)
            if is_mean:
                # 1 - cosines / shared in one pass over memory, which is what costs here.
                total = torch.addcdiv(_one(cosines), cosines, shared, value=-1, out=cosines)
            else:
                total = torch.sub(shared, cosines, out=cosines)
            total.clamp_min_(0)
        else:
            total = _weighted_euclidean(query, gallery, product)
            if is_mean:
                total.div_(shared)
        # Where the whole body takes part in every mean, something is always shared.
        always = len(query.lengths) > query.num_parts
        literal = rule.name == "sum" and query.global_feature is None
        if not (always or literal) and shared.numel() and bool(shared.amin() == 0):
            # Only here is 0 / 0 possible; it is replaced, not computed with.
            torch.where(shared == 0, _fallback(query, gallery, rule, product), total, out=total)
    return total.to(torch.float32)


def _weighted_euclidean(query: Prepared, gallery: Prepared, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum of o_i d_i over all columns."""
    total: Tensor | None = None
    start = 0
    for column, length in enumerate(query.lengths):
        weight = product(query.weights[:, column : column + 1], gallery.weights[:, column : column + 1])
        cosine = product(query.units[:, start : start + length], gallery.units[:, start : start + length])
        # units carry the visibility, so `cosine` is o times the cosine: o sqrt(2 - 2 c) = sqrt(o (2 o - 2 o c)).
        term = ((2 * (weight - cosine)).clamp_min_(0) * weight).sqrt_()
        total = term if total is None else total.add_(term)
        start += length
    assert total is not None
    return total


def _one(like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device)


def _fallback(query: Prepared, gallery: Prepared, rule: Rule, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if query.global_feature is None or gallery.global_feature is None:
        return torch.full((), NOTHING_SHARED, dtype=query.units.dtype, device=query.units.device)
    cosine = product(query.global_feature, gallery.global_feature)
    d0 = (1 - cosine).clamp_min_(0) if rule.metric == "cosine" else (2 - 2 * cosine).clamp_min_(0).sqrt_()
    if rule.name not in ("mean", "shrunk") or query.lengths[0] == 0:
        return d0
    # Distances of the whole body are on a scale of their own, often smaller than those of parts: such pairs are ordered
    # by it among themselves, behind all that share a part.
    return d0.add_(_BEHIND)


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
