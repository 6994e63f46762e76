"""Accuracy by groups of rendered identities, whose traits are known exactly."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgsfa_synth.body import body_model, of_stature, shaped
from sgsfa_synth.identity import Identity
from sgsfa_synth.patterns import Pattern
from sgsfa_synth.randomise import varied_identity

RESAMPLES = 2000
_LUMA = np.array([0.2126, 0.7152, 0.0722])


@dataclass(frozen=True, slots=True)
class Group:
    """Accuracy on the queries of a group of identities.

    Attributes:
        trait: What the identities have in common: `skin`, `build` ...
        value: Its value.
        identities: Number of identities.
        queries: Number of queries with a match.
        rank1: In [0, 1].
        mean_ap: In [0, 1].
        low: Lower end of the 95 % interval of `mean_ap`, resampled by identity.
        high: Upper end.
    """

    trait: str
    value: str
    identities: int
    queries: int
    rank1: float
    mean_ap: float
    low: float
    high: float


def traits(identity: Identity) -> dict[str, str]:
    """Return the groups that an identity belongs to, by trait."""
    skin = float(_LUMA @ identity.skin)
    worn = identity.coat.cloth if identity.coat is not None else identity.top.cloth
    upper = float(_LUMA @ worn.main)
    return {
        "skin": _band(skin, (0.13, 0.33), ("dark", "medium", "light")),
        "upper garment": _band(upper, (0.06, 0.35), ("dark", "medium", "light")),
        "pattern": "plain" if worn.pattern is Pattern.PLAIN else "patterned",
        "lower garment": "skirt or dress" if identity.garment in ("skirt", "dress") else identity.garment,
        "stature": _band(identity.stature, (1.62, 1.75), ("below 1.62 m", "1.62 to 1.75 m", "above 1.75 m")),
        "build": _band(girth(identity), (0.109, 0.121), ("slim", "average", "heavy")),
        "bag": "none" if identity.bag is None else identity.bag.kind,
    }


def girth(identity: Identity) -> float:
    """Return the mean radius of the trunk above the hips in metres."""
    model = body_model()
    rest = of_stature(shaped(model, identity.shape), identity.stature)
    hip = float(model.head("upperleg01.L")[2])
    waist = (model.arm < 0) & (np.abs(model.template[:, 2] - hip - 0.15) < 0.05)
    points = rest.vertices[waist, :2]
    return float(np.linalg.norm(points - points.mean(0), axis=1).mean())


def accuracy_by_group(queries: Path, seed: int) -> list[dict[str, Any]]:
    """Return the accuracy of each group, from the `queries.csv` of an evaluation on rendered identities.

    Args:
        queries: The file.
        seed: Of the rendered data set.
    """
    with queries.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["ap"]]
    by_group: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        for trait, value in traits(varied_identity(seed, int(row["pid"]) - 1)).items():
            by_group[trait, value].append(row)
    return [asdict(_measured(trait, value, members)) for (trait, value), members in sorted(by_group.items())]


def _measured(trait: str, value: str, rows: Sequence[Mapping[str, str]]) -> Group:
    precision: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        precision[row["pid"]].append(float(row["ap"]))
    sums = np.array([sum(values) for values in precision.values()])
    counts = np.array([len(values) for values in precision.values()])
    chosen = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Group(
        trait=trait,
        value=value,
        identities=len(sums),
        queries=len(rows),
        rank1=sum(row["first_hit"] == "1" for row in rows) / len(rows),
        mean_ap=float(sums.sum() / counts.sum()),
        low=float(low),
        high=float(high),
    )


def _band(value: float, limits: Sequence[float], names: Sequence[str]) -> str:
    return names[int(np.searchsorted(limits, value))]
