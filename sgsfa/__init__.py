"""Occluded person re-identification: part masks, training, features and matching that compares shared parts.

>>> import sgsfa
>>> model = sgsfa.load_model()
>>> features = model.embed(["a.jpg", "b.jpg"])

Everything public is listed in `__all__` and imported when it is used, so `import sgsfa` loads no PyTorch. Functions
have the names of the commands, and their settings those of the configuration keys. Notes and warnings are reported by
the logger `sgsfa`; without any logging configuration they are shown on standard error.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipeline.version import __version__

if TYPE_CHECKING:
    from pipeline.config import RunConfig as Config
    from pipeline.datasets.records import Dataset
    from pipeline.errors import SgsfaError
    from pipeline.formats.features import Features
    from pipeline.matching.distance import MatchingRule
    from sgsfa.api import (
        build_masks,
        compare,
        distances,
        evaluate,
        export,
        extract,
        load_config,
        load_model,
        open_dataset,
        read_masks,
        report,
        run,
        search,
        train,
    )

_HOMES = {
    "Config": ("pipeline.config", "RunConfig"),
    "Dataset": ("pipeline.datasets.records", "Dataset"),
    "Features": ("pipeline.formats.features", "Features"),
    "MatchingRule": ("pipeline.matching.distance", "MatchingRule"),
    "SgsfaError": ("pipeline.errors", "SgsfaError"),
}

__all__ = [
    "Config",
    "Dataset",
    "Features",
    "MatchingRule",
    "SgsfaError",
    "__version__",
    "build_masks",
    "compare",
    "distances",
    "evaluate",
    "export",
    "extract",
    "load_config",
    "load_model",
    "open_dataset",
    "read_masks",
    "report",
    "run",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sgsfa' has no attribute {name!r}")
    module, attribute = _HOMES.get(name, ("sgsfa.api", name))
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
