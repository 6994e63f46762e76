"""Why queries fail: the dominant reason that the terms of the distances give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.report.model import FailureGroup
from pipeline.evaluation.report.ranking import Rankings
from pipeline.formats.features import Features
from pipeline.matching.contributions import Contributions, contributions
from pipeline.matching.distance import MatchingRule
from pipeline.parts import PARTS

Strings = npt.NDArray[np.str_]

DOMINANT = 0.6
"""Share of the lead of a wrong image over the best match from which one part alone decides."""

NO_MATCH = "no match in the gallery"
NOTHING_SHARED = "no part shared with the nearest image"
MATCH_HIDDEN = "no part shared with any match"
SAME_CAMERA = "background of the same camera"
ONE_PART = "one part decides"
LOOK_ALIKE = "look-alike in all parts"

EXPLANATIONS = {
    NO_MATCH: "No gallery image of this identity from another camera.",
    NOTHING_SHARED: "Query and nearest image share no visible part; the global feature or a constant ranks it.",
    MATCH_HIDDEN: "The best match shares no visible part with the query; other images are compared by their parts.",
    SAME_CAMERA: "The nearest image is of another identity in the query's own camera, where the background is alike.",
    ONE_PART: f"A single part gives at least {100 * DOMINANT:.0f} % of the nearest image's lead over the best match.",
    LOOK_ALIKE: "The nearest image is nearer than the best match without a single part deciding.",
}
"""What each reason means; the order is the order in which they are tested."""


def failure_reasons(query: Features, gallery: Features, rankings: Rankings, rule: MatchingRule) -> Strings:
    """Return the reason of each query that fails at rank 1, empty where it does not: (Q,) text."""
    first = rankings.nearest[:, 0]
    correct = gallery.pids[first] == query.pids
    matched = rankings.best_match >= 0
    wrong = contributions(query, gallery.select(first), rule)
    match = contributions(query, gallery.select(np.maximum(rankings.best_match, 0)), rule)
    conditions = {
        NO_MATCH: ~matched,
        NOTHING_SHARED: ~(wrong.weights[:, : len(PARTS)] > 0).any(1),
        MATCH_HIDDEN: ~(match.weights[:, : len(PARTS)] > 0).any(1),
        SAME_CAMERA: gallery.camids[first] == query.camids,
        ONE_PART: _largest_lead(wrong, match) >= DOMINANT,
        LOOK_ALIKE: np.ones(len(query), np.bool_),
    }
    return np.where(correct, "", np.select(list(conditions.values()), list(conditions), LOOK_ALIKE))


def failure_groups(reasons: Strings) -> list[FailureGroup]:
    """Return the groups of failing queries, the largest first."""
    counts = Counter(reason for reason in reasons.tolist() if reason)
    total = max(1, counts.total())
    return [FailureGroup(name, count, count / total, EXPLANATIONS[name]) for name, count in counts.most_common()]


def shared_parts(terms: Contributions) -> Sequence[str]:
    """Return, for each pair, the names of the parts that count, separated by spaces."""
    counting = terms.weights[:, : len(PARTS)] > 0
    return [" ".join(np.array(PARTS)[row]) for row in counting]


def _largest_lead(wrong: Contributions, match: Contributions) -> npt.NDArray[np.float64]:
    """Return (Q,) the largest share of one term in the lead of the wrong image."""
    lead = match.distances * match.weights - wrong.distances * wrong.weights
    total = lead.sum(axis=1)
    return np.asarray(np.divide(lead.max(axis=1), total, out=np.zeros(len(total)), where=total > 0))
