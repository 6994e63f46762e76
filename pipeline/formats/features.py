"""Features of images in memory: the one container of arrays that extraction, matching and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, FormatError
from pipeline.formats.provenance import Provenance
from pipeline.parts import PARTS

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]

_FLOATS = ("parts", "global_feature", "visibility", "thresholds")
_IDS = ("names", "pids", "camids", "splits")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of N images with P parts (seven in files), as the network returns them: not normalised.

    Attributes:
        parts: (N,P,D) float32 part features in the order of `PARTS`; D = 0 for a model without part features.
        global_feature: (N,W) float32; W = 0 for a model without a global feature.
        visibility: (N,P) float32 means of the predicted part masks, in [0, 1].
        thresholds: (P,) float32 calibrated thresholds of hard visibility (tau of eq. 5); 1 marks an untrained part.
        names: (N,) image names.
        pids: (N,) int64 person ids, -1 where unknown.
        camids: (N,) int64 camera ids, -1 where unknown.
        splits: (N,) `train`, `query`, `gallery` or `all`.
        provenance: What decided the features: checkpoint, data, flip, precision.

    Examples:
        >>> features = Features.load("features.h5")
        >>> features.split("query").parts.shape
        (4, 7, 128)
    """

    parts: Floats
    global_feature: Floats
    visibility: Floats
    thresholds: Floats
    names: Strings
    pids: Ints
    camids: Ints
    splits: Strings
    provenance: Provenance = field(default_factory=lambda: Provenance({}))

    @classmethod
    def from_arrays(
        cls,
        parts: npt.ArrayLike | None = None,
        global_feature: npt.ArrayLike | None = None,
        visibility: npt.ArrayLike | None = None,
        *,
        thresholds: npt.ArrayLike | None = None,
        names: Sequence[str] | npt.ArrayLike | None = None,
        pids: npt.ArrayLike | None = None,
        camids: npt.ArrayLike | None = None,
        splits: Sequence[str] | npt.ArrayLike | None = None,
        provenance: Provenance | None = None,
    ) -> Features:
        """Wrap arrays; float32 arrays are not copied.

        Args:
            parts: (N,P,D); None: no part features.
            global_feature: (N,W); None: no global feature.
            visibility: (N,P); None: every part is visible.
            thresholds: (P,); None: 0.5.
            names: (N,); None: empty.
            pids: (N,); None: unknown.
            camids: (N,); None: unknown.
            splits: (N,); None: `all`.
            provenance: What decided the features.

        Raises:
            FormatError: There is no feature, or the shapes do not fit together.
        """
        given = parts if parts is not None else global_feature
        if given is None:
            raise FormatError("no features given", expected="parts (N,P,D), global_feature (N,W) or both")
        count = len(np.asarray(given))
        part_array = np.empty((count, len(PARTS), 0), np.float32) if parts is None else np.asarray(parts, np.float32)
        num_parts = part_array.shape[1] if part_array.ndim == 3 else -1
        made = cls(
            parts=part_array,
            global_feature=np.asarray(np.empty((count, 0)) if global_feature is None else global_feature, np.float32),
            visibility=np.asarray(
                np.ones((count, max(num_parts, 0))) if visibility is None else visibility, np.float32
            ),
            thresholds=np.asarray(np.full(max(num_parts, 0), 0.5) if thresholds is None else thresholds, np.float32),
            # Broadcast, so that unknown ids of a large block take no memory.
            names=np.asarray(np.broadcast_to("", count) if names is None else names, np.str_),
            pids=np.asarray(np.broadcast_to(-1, count) if pids is None else pids, np.int64),
            camids=np.asarray(np.broadcast_to(-1, count) if camids is None else camids, np.int64),
            splits=np.asarray(np.broadcast_to("all", count) if splits is None else splits, np.str_),
            provenance=provenance or Provenance({}),
        )
        made.check()
        return made

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def part_dim(self) -> int:
        """D, the dimension of a part feature."""
        return int(self.parts.shape[2])

    @property
    def global_dim(self) -> int:
        """W, the dimension of the global feature."""
        return int(self.global_feature.shape[1])

    @property
    def visible(self) -> Bools:
        """(N,P) hard visibility: mask mean above the part's threshold (eq. 5)."""
        return self.visibility > self.thresholds

    def all_visible(self) -> Features:
        """Return the same features with every part visible."""
        return replace(self, visibility=np.ones_like(self.visibility), thresholds=np.full_like(self.thresholds, 0.5))

    def select(self, rows: npt.NDArray[Any] | slice) -> Features:
        """Return the rows of a slice (without a copy), an index array or a boolean array."""
        picked = {name: getattr(self, name)[rows] for name in (*_FLOATS[:3], *_IDS)}
        return Features(**picked, thresholds=self.thresholds, provenance=self.provenance)

    def split(self, *names: str) -> Features:
        """Return the images whose split is among `names`, in order."""
        return self.select(as_slice(self.split_rows(*names)))

    def split_rows(self, *names: str) -> Ints:
        """Return the rows whose split is among `names`, in order."""
        return np.flatnonzero(np.isin(self.splits, names))

    def check(self) -> None:
        """Check the shapes; raises `FormatError` if two arrays do not fit together."""
        count, num_parts = self.parts.shape[:2] if self.parts.ndim == 3 else (-1, -1)
        wanted = {"visibility": (count, num_parts), "thresholds": (num_parts,)} | dict.fromkeys(_IDS, (count,))
        bad = {name: getattr(self, name).shape for name, shape in wanted.items() if getattr(self, name).shape != shape}
        if self.parts.ndim != 3 or self.global_feature.ndim != 2 or len(self.global_feature) != count:
            bad["global_feature"] = self.global_feature.shape
        if bad:
            listed = ", ".join(f"{name} {shape}" for name, shape in bad.items())
            raise FormatError(
                f"arrays that do not fit together: parts {self.parts.shape}, {listed}",
                expected="parts (N,P,D), global_feature (N,W), visibility (N,P), thresholds (P,), ids (N,)",
            )

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name, without copies."""
        return {name: getattr(self, name) for name in (*_FLOATS, *_IDS)}

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per image: name, ids, split and `visibility_<part>`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("pandas is not installed", hint="pip install pandas") from None
        columns: dict[str, npt.NDArray[Any]] = {
            "name": self.names,
            "pid": self.pids,
            "camid": self.camids,
            "split": self.splits,
        }
        columns |= {f"visibility_{part}": self.visibility[:, i] for i, part in enumerate(self._part_names())}
        return pd.DataFrame(columns)

    def save(self, path: Path | str) -> None:
        """Write the features to a file: HDF5, or NumPy's format where the name ends in `.npz`.

        Raises:
            ArtifactError: The file cannot be written.
        """
        from pipeline.formats.feature_file import write_features, write_npz

        write = write_npz if Path(path).suffix == ".npz" else write_features
        write(Path(path), self)

    @classmethod
    def load(cls, path: Path | str) -> Features:
        """Read a features file (`.h5` or `.npz`) into memory: N (P D + W) 4 bytes.

        Raises:
            FormatError: The file is missing, damaged or not a features file.
        """
        from pipeline.formats.feature_file import FeatureFile, read_npz

        return read_npz(Path(path)) if Path(path).suffix == ".npz" else FeatureFile.open(Path(path)).load()

    def _part_names(self) -> Sequence[str]:
        num_parts = self.parts.shape[1]
        return PARTS if num_parts == len(PARTS) else [str(i) for i in range(num_parts)]


def as_slice(rows: Ints) -> Ints | slice:
    """Return rows as a slice where they are consecutive, so that picking them needs no copy."""
    consecutive = len(rows) > 0 and bool((np.diff(rows) == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows
