"""How fast and how large matching is, against limits and against other projects' code.

    python -m benchmarks.matching                       all parts, some ten minutes on two cores
    python -m benchmarks.matching --part metrics --part distance
    python -m benchmarks.matching --part growth --rows 20000 200000

Each part runs in a process of its own, so that its peak memory is its own, with as many BLAS threads as `--threads`.
Times of one part come from one process in turns, so that their ratios hold on a machine that others use too; absolute
times need a quiet one. All data are made up: neither products nor comparisons are faster or slower on real features,
except that a good model puts fewer entries before the matches.

Other projects: `--peers FOLDER` names a folder from which fast-reid's compiled metric (`rank_cy` of
`fastreid/evaluation/rank_cylib`, built in place) and torchreid can be imported. Where they cannot, their pure-Python
metric is stood in for by our own literal version of the same algorithm, and the result says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

NUM_QUERY, NUM_GALLERY = 3368, 15913  # Market-1501
PARTS = ("metrics", "peers", "distance", "rerank", "growth", "faiss")


def best_of(work: Callable[[], Any], repeat: int) -> dict[str, float]:
    """Seconds of several calls: the best (the machine undisturbed), the median, and the least processor time.

    Processor time, over all threads, hardly changes when others use the machine; wall time does.
    """
    seconds, processor = [], []
    for _ in range(repeat):
        begun, used = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
    return {"best": min(seconds), "median": statistics.median(seconds), "processor": min(processor)}


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def market_ids() -> tuple[Any, Any, Any, Any]:
    """Identities and cameras with Market-1501's counts: 750 people, 2,798 distractors, 6 cameras."""
    import numpy as np

    rng = np.random.default_rng(0)
    gallery = np.concatenate([rng.integers(1, 751, NUM_GALLERY - 2798), np.zeros(2798, dtype=np.int64)])
    query = np.arange(NUM_QUERY) % 750 + 1
    return query, gallery, rng.integers(0, 6, NUM_QUERY), rng.integers(0, 6, NUM_GALLERY)


def market_distances(ids: tuple[Any, Any, Any, Any]) -> Any:
    """(3368, 15913) float32 in which a person's own images tend to be near."""
    import numpy as np

    distances = np.random.default_rng(1).random((NUM_QUERY, NUM_GALLERY), dtype=np.float32)
    distances[ids[0][:, None] == ids[1]] *= 0.3
    return distances


def made_up_parts(count: int, global_dim: int, seed: int) -> Any:
    """Part features of `count` images of 1,500 people, 7 x 256 and the whole body."""
    import torch

    from pipeline.formats.features import Features

    draw = torch.Generator().manual_seed(seed)
    people = torch.randn(1500, 7, 256, generator=torch.Generator().manual_seed(7))
    who = torch.randint(0, len(people), (count,), generator=draw)
    parts = torch.randn(count, 7, 256, generator=draw).add_(people[who])
    global_feature = torch.randn(count, global_dim, generator=draw)
    visible = (torch.rand(count, 7, generator=draw) < 0.7).float()
    return Features.from_arrays(parts, global_feature, visible)


def metrics(_: argparse.Namespace) -> dict[str, Any]:
    """Metrics of a given matrix, against sorting it."""
    import numpy as np

    from pipeline.matching.metrics import rank_metrics

    ids = market_ids()
    distances = market_distances(ids)
    ours = best_of(lambda: rank_metrics(distances, *ids), 5)
    sort = best_of(lambda: [np.sort(row) for row in distances], 2)
    stable = best_of(lambda: [np.argsort(row, kind="stable") for row in distances[:400]], 1)["best"]
    ties = best_of(lambda: rank_metrics(np.zeros_like(distances), *ids), 1)["best"]
    return {
        "rank_metrics": ours,
        "bare_sort_of_values": sort,
        "stable_argsort_scaled_from_400_rows": stable * NUM_QUERY / 400,
        "all_distances_equal": ties,
        "ours_over_bare_sort": ours["best"] / sort["best"],
    }


def peers(options: argparse.Namespace) -> dict[str, Any]:
    """Metrics of a given matrix by other projects' code, where it can be imported."""
    import numpy as np

    from pipeline.matching.metrics import rank_metrics

    if options.peers:
        # The compiled module is taken by itself: the package around it does not import on current Python.
        sys.path[:0] = [options.peers, str(Path(options.peers) / "fastreid" / "evaluation" / "rank_cylib")]
    ids = market_ids()
    distances = market_distances(ids)
    some = 200
    found: dict[str, Any] = {
        "rank_metrics": best_of(lambda: rank_metrics(distances, *ids), 3),
        "literal_python_scaled_from_200_queries": best_of(
            lambda: literal_metrics(distances[:some], ids[0][:some], ids[1], ids[2][:some], ids[3]), 1
        )["best"]
        * NUM_QUERY
        / some,
        "literal_python_is": "our own version of the usual loop (argsort, mask, cumulative sums for each query)",
    }
    as_int64 = tuple(np.asarray(one, dtype=np.int64) for one in ids)
    for name, module, call in (
        (
            "fastreid_cython",
            "rank_cy",
            lambda m: m.evaluate_cy(distances, *as_int64, 50, False),
        ),
        ("torchreid_python_200_queries", "torchreid.reid.metrics.rank", lambda m: m.evaluate_rank(
            distances[:some], as_int64[0][:some], as_int64[1], as_int64[2][:some], as_int64[3], use_cython=False)),
    ):  # fmt: skip
        try:
            loaded = importlib.import_module(module)
        except Exception as error:  # Other people's packages fail in many ways; each is a finding.
            found[name] = f"not importable: {error!r}"
            continue
        found[name] = best_of(lambda call=call, loaded=loaded: call(loaded), 2)
    if isinstance(found["fastreid_cython"], dict):
        found["fastreid_cython_over_ours"] = found["fastreid_cython"]["best"] / found["rank_metrics"]["best"]
    return found


def literal_metrics(distances: Any, query_pids: Any, gallery_pids: Any, query_camids: Any, gallery_camids: Any) -> Any:
    """MAP by the loop that most code has: the whole row is sorted for each query."""
    import numpy as np

    precisions = []
    for i in range(len(distances)):
        order = np.argsort(distances[i], kind="stable")
        removed = (gallery_pids[order] == query_pids[i]) & (gallery_camids[order] == query_camids[i])
        match = (gallery_pids[order] == query_pids[i])[~removed].astype(np.float64)
        if match.any():
            hits = match.cumsum()
            precisions.append((hits / np.arange(1, len(hits) + 1) * match).sum() / match.sum())
    return np.mean(precisions)


def distance(options: argparse.Namespace) -> dict[str, Any]:
    """Distance and metrics streamed from features, against the bare matrix products."""
    import torch

    from pipeline.matching.distance import MatchingRule, distance_blocks
    from pipeline.matching.metrics import RankStream

    ids = market_ids()
    query = made_up_parts(NUM_QUERY, options.global_feature, 1)
    gallery = made_up_parts(NUM_GALLERY, options.global_feature, 2)
    before = peak_mb()
    rule = MatchingRule(options.rule)

    def streamed() -> None:
        stream = RankStream(*ids)
        for block in distance_blocks(query, gallery, rule=rule):
            stream.update(block)
        stream.compute()

    def distances_only() -> None:
        for _ in distance_blocks(query, gallery, rule=rule):
            pass

    streamed()
    peak = peak_mb()
    # `mean` forms the whole-body product too: among millions of pairs some share nothing.
    columns = 7 * 256 + options.global_feature
    left, right = torch.randn(NUM_QUERY, columns), torch.randn(NUM_GALLERY, columns)
    few, many = torch.rand(NUM_QUERY, 8), torch.rand(NUM_GALLERY, 8)

    def bare() -> None:
        for start in range(0, NUM_QUERY, 256):
            left[start : start + 256] @ right.T
            few[start : start + 256] @ many.T

    timed = {"bare": bare, "distances": distances_only, "streamed": streamed}
    rounds = [{name: best_of(work, 1) for name, work in timed.items()} for _ in range(3)]
    best = {name: min(one[name]["best"] for one in rounds) for name in timed}
    used = {name: min(one[name]["processor"] for one in rounds) for name in timed}
    return {
        "rule": options.rule,
        "features": f"7 x 256 and whole {options.global_feature}",
        "seconds": best,
        "processor_seconds": used,
        "streamed_over_bare": best["streamed"] / best["bare"],
        "streamed_over_bare_by_round": [one["streamed"]["best"] / one["bare"]["best"] for one in rounds],
        "streamed_over_bare_processor": used["streamed"] / used["bare"],
        "peak_mb": peak,
        "peak_mb_before_the_work": before,
    }


def rerank(options: argparse.Namespace) -> dict[str, Any]:
    """k-reciprocal re-ranking of the shared-part distance."""
    import torch

    from pipeline.matching.rerank import k_reciprocal

    query = made_up_parts(NUM_QUERY, options.global_feature, 1)
    gallery = made_up_parts(NUM_GALLERY, options.global_feature, 2)
    ours = best_of(lambda: k_reciprocal(query, gallery), 1)
    peak = peak_mb()
    total = NUM_QUERY + NUM_GALLERY
    block = torch.randn(2816, 7 * 256 + options.global_feature)
    product = best_of(lambda: block @ block.T, 3)
    # One triangle of the matrix of all against all is the least that exact neighbours need.
    times = total * (total + 2816) / 2 / 2816**2
    return {
        "seconds": ours["best"],
        "processor_seconds": ours["processor"],
        "bare_products_seconds": product["best"] * times,
        "bare_products_processor_seconds": product["processor"] * times,
        "peak_mb": peak,
    }


def write_gallery(path: Path, rows: int, dim: int, *, spread: float) -> None:
    """A features file of made-up people, ten images each."""
    import numpy as np

    from pipeline.formats.feature_file import feature_layout
    from pipeline.formats.provenance import Provenance
    from pipeline.formats.rows import OK, open_or_create

    rng = np.random.default_rng(0)
    layout = feature_layout(
        names=[f"{i:07d}.jpg" for i in range(rows)],
        pids=np.arange(rows) // 10,
        camids=np.arange(rows) % 6,
        splits=["gallery"] * rows,
        part_dim=dim,
        global_dim=dim,
        thresholds=np.full(7, 0.1),
    )
    with open_or_create(path, layout, Provenance({})) as writer:
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            people = np.random.default_rng(start).standard_normal((-(-count // 10), 7, dim), dtype=np.float32)
            parts = np.repeat(people, 10, axis=0)[:count]
            parts += spread * rng.standard_normal(parts.shape, dtype=np.float32)
            visibility = np.where(rng.random((count, 7)) < 0.7, 0.3, 0.0)
            arrays = {"parts": parts, "global_feature": parts.mean(axis=1), "visibility": visibility}
            writer.write(start, arrays, np.full(count, OK, np.uint8))
        writer.finish()


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """One gallery size: exact top-50 and exact metrics of 500 queries from disk; time and memory."""
    import numpy as np

    from pipeline.formats.feature_file import FeatureFile
    from pipeline.matching.distance import distances, prepare
    from pipeline.matching.search import block_rows, rank_on_disk, search

    file = FeatureFile.open(Path(options.file))
    query = file.load(np.linspace(0, len(file) - 1, 500).astype(np.int64))
    hits = None

    def top_50() -> None:
        nonlocal hits
        hits = search(query, file, 50)

    before = peak_mb()
    searching = best_of(top_50, max(3, min(20, 2_000_000 // len(file))))
    peak_search = peak_mb()
    ranking = best_of(lambda: rank_on_disk(query, file).metrics(), 1)
    found = {
        "rows": len(file),
        "top_50_seconds": searching["best"],
        "top_50_processor_seconds": searching["processor"],
        "metrics_seconds": ranking["best"],
        "metrics_processor_seconds": ranking["processor"],
        "peak_mb_search": peak_search,
        "peak_mb": peak_mb(),
        "peak_mb_before_the_work": before,
    }
    if options.check:
        assert hits is not None
        # The same in memory: the whole gallery is held, and each query's distances to all of it.
        right = [prepare(block, is_query=False) for _, block in file.blocks(block_rows(file, 1))]
        left = prepare(query, is_query=True)
        equal, largest = True, 0.0
        for start in range(0, len(query), 50):
            some = slice(start, start + 50)
            matrix = np.concatenate([distances(left[some], one).numpy() for one in right], axis=1)
            for line, columns, values in zip(matrix, hits.rows[some], hits.distances[some], strict=True):
                near = np.flatnonzero(line <= np.partition(line, 49)[49])
                order = near[np.argsort(line[near], kind="stable")][:50]
                equal &= bool((order == columns).all())
                largest = max(largest, float(np.abs(line[order] - values).max()))
        found["top_50_of_all_queries_equal_to_memory"] = equal
        found["largest_difference"] = largest
    return found


def turns(options: argparse.Namespace) -> dict[str, Any]:
    """The search of all gallery sizes by turns in one process, so that their ratios hold on a shared machine."""
    import numpy as np

    from pipeline.formats.feature_file import FeatureFile
    from pipeline.matching.search import search

    files = [FeatureFile.open(Path(path)) for path in options.files]
    queries = [file.load(np.linspace(0, len(file) - 1, 500).astype(np.int64)) for file in files]
    rounds = [
        [
            best_of(lambda f=file, q=query: search(q, f, 50), max(1, min(12, 1_000_000 // len(file))))
            for file, query in zip(files, queries, strict=True)
        ]
        for _ in range(4)
    ]
    found: dict[str, Any] = {"rows": [len(file) for file in files]}
    for name in ("best", "processor"):
        seconds = [min(one[i][name] for one in rounds) for i in range(len(files))]
        per_row = [second / len(file) for second, file in zip(seconds, files, strict=True)]
        found[name] = {"seconds": seconds, "time_a_row_over_the_one_before": [b / a for a, b in pairwise(per_row)]}
    return found


def faiss(options: argparse.Namespace) -> dict[str, Any]:
    """Candidates from an inverted file and exact re-scoring, against exact search: recall and time."""
    import numpy as np

    from pipeline.formats.feature_file import FeatureFile
    from pipeline.matching.approximate import build_index, measure_recall
    from pipeline.matching.search import search

    file = FeatureFile.open(Path(options.file))
    query = file.load(np.linspace(0, len(file) - 1, 500).astype(np.int64))
    exact = search(query, file, 10)
    exact_seconds = best_of(lambda: search(query, file, 10), 2)["best"]
    begun = time.perf_counter()
    index = build_index(file, lists=options.lists)
    building = time.perf_counter() - begun
    tried = []
    for share, candidates in ((0.2, 200), (0.4, 100), (0.4, 200), (0.5, 200), (0.5, 400)):
        probes = max(1, round(index.index.nlist * share))
        found = index.search(query, 10, candidates=candidates, probes=probes)
        seconds = best_of(lambda n=candidates, p=probes: index.search(query, 10, candidates=n, probes=p), 3)["best"]
        tried.append(
            {
                "lists": index.index.nlist,
                "probes": probes,
                "candidates": candidates,
                "recall_of_top_10": measure_recall(found, exact),
                "seconds": seconds,
                "times_faster": exact_seconds / seconds,
            }
        )
    return {
        "rows": len(file),
        "features": f"7 x {file.part_dim} and whole {file.global_dim}",
        "exact_seconds": exact_seconds,
        "build_seconds": building,
        "tried": tried,
        "peak_mb": peak_mb(),
    }


WORK: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "metrics": metrics,
    "peers": peers,
    "distance": distance,
    "rerank": rerank,
    "growth": growth,
    "turns": turns,
    "faiss": faiss,
}


def in_a_process(part: str, options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Run one part by itself."""
    arguments = {**vars(options), **more}
    command = [sys.executable, "-m", "benchmarks.matching", "--worker", part, "--options", json.dumps(arguments)]
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(options.threads))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    import numpy as np
    import scipy
    import torch

    from pipeline.version import __version__

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "torch": torch.__version__,
            "sgsfa": __version__,
        },
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for part in options.part or PARTS:
            sys.stderr.write(f"{part} ...\n")
            if part == "growth":
                paths = [Path(folder) / f"{rows}.h5" for rows in sorted(options.rows)]
                for path, rows in zip(paths, sorted(options.rows), strict=True):
                    write_gallery(path, rows, options.dim, spread=0.7)
                found[part] = {
                    "each": [in_a_process(part, options, file=str(path), check=True) for path in paths],
                    "by_turns": in_a_process("turns", options, files=[str(path) for path in paths]),
                }
                for path in paths:
                    path.unlink()
            elif part == "faiss":
                path = Path(folder) / "faiss.h5"
                write_gallery(path, options.faiss_rows, options.dim, spread=0.7)
                found[part] = in_a_process(part, options, file=str(path))
                path.unlink()
            elif part == "distance":
                found[part] = [
                    in_a_process(part, options, rule=rule, global_feature=global_feature)
                    for rule, global_feature in (("shrunk", 256), ("mean", 2048))
                ]
            else:
                found[part] = in_a_process(part, options)
            sys.stderr.write(json.dumps(found[part], indent=1) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; repeatable")
    parser.add_argument("--threads", type=int, default=2, help="BLAS threads (default 2)")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000, 2_000_000], help="gallery sizes")
    parser.add_argument("--dim", type=int, default=64, help="values per part in the random galleries (default 64)")
    parser.add_argument("--whole", type=int, default=256, help="numbers of the global feature (default 256)")
    parser.add_argument("--faiss-rows", type=int, default=1_000_000, help="gallery of the approximate search")
    parser.add_argument(
        "--lists", type=int, default=None, help="lists of the inverted file; default: twice the root of the rows"
    )
    parser.add_argument("--folder", default=None, help="where the made-up galleries go (up to 4.7 GB)")
    parser.add_argument("--peers", default=None, help="folder that fastreid and torchreid can be imported from")
    parser.add_argument("--rule", default="shrunk", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "matching.json", help="where the figures go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        given = argparse.Namespace(**json.loads(options.options))
        print(json.dumps(WORK[options.worker](given)))
        return
    out, options.out = options.out, str(options.out)

    from pipeline.runtime.files import read_json, write_json

    found = run(options)
    earlier = read_json(out) if out.is_file() else {}
    stamp = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **machine(options.threads)}
    failed = [part for part, figures in found.items() if _has_failed(figures)]
    for part, figures in found.items():
        if part not in failed:  # what was measured before stays
            earlier[part] = {"machine": stamp, "figures": figures}
    write_json(out, earlier)
    sys.stderr.write(f"written to {out}\n")
    if failed:
        raise SystemExit(f"failed, and not written: {', '.join(failed)}")


def _has_failed(figures: Any) -> bool:
    if isinstance(figures, dict):
        return "failed" in figures or any(map(_has_failed, figures.values()))
    return isinstance(figures, list) and any(map(_has_failed, figures))


if __name__ == "__main__":
    main()
