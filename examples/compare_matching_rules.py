"""Metrics of one features file under every matching rule: compare_matching_rules.py FEATURES."""

import sys

import sgsfa


def main(path: str) -> None:
    """Evaluate the features in `path` five times."""
    features = sgsfa.Features.load(path)
    print(f"{len(features.split('query'))} queries, {len(features.split('gallery'))} gallery images")
    for rule in ("shrunk", "mean", "sum", "query", "all"):
        metrics = sgsfa.evaluate(features, rule=rule, breakdown=False).result.metrics
        print(f"{rule:6}  rank-1 {metrics.rank1:6.1%}  mAP {metrics.mAP:6.1%}  mINP {metrics.mINP:6.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
