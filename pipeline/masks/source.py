"""What masks are built from: a parser or finished label maps, and the record of everything that decides them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.config import MasksConfig
from pipeline.datasets.images import read_image
from pipeline.errors import ConfigError, DeviceError, FormatError, ImageError
from pipeline.formats.masks import absent_text, label_map_keys
from pipeline.formats.provenance import JsonScalar, Provenance, fingerprint
from pipeline.masks.compute import Recipe, fits
from pipeline.masks.occupancy import RESIZE_RULE
from pipeline.parsing.files import LABEL_MAPS_VERSION, sidecar_path
from pipeline.parsing.labelmaps import LabelMaps
from pipeline.parsing.labels import LabelSet, load_grouping, load_label_set
from pipeline.parsing.parser import Parser, load_parser
from pipeline.runtime.allocator import tune_allocator
from pipeline.runtime.files import at_home, sha256_file

LABEL_MAPS = "label-maps"
DEFAULT_LABEL_SET = "lip-20"
"""Label set of label maps for which none is configured."""

# Input pixels per batch. On a CPU more only costs memory; a GPU is idle with less.
_CPU_PIXELS = 64 * 256 * 128
_GPU_PIXELS = 512 * 256 * 128
_LARGEST_BATCH = 512
_LABEL_MAP_CHUNK = 64
_SAMPLE = 64  # label maps whose hashes identify a folder of them

_LOG = logging.getLogger("sgsfa.masks")


@dataclass(frozen=True, slots=True)
class MaskSource:
    """A parser, or finished label maps (exactly one of the two), for images below `root`.

    Attributes:
        names: Relative POSIX paths of the images, sorted and distinct.
        provenance: Everything that decides the masks.
        recipe: How label maps become masks.
        label_set: Name of the label set.
        on_cpu: Whether a parser computes on the CPU.
    """

    root: Path
    names: tuple[str, ...]
    config: MasksConfig
    provenance: Provenance
    recipe: Recipe
    label_set: str
    parser: Parser | None = None
    maps: LabelMaps | None = None
    on_cpu: bool = False

    def readable(self, name: str) -> bool:
        """Whether the image, or its label map, can be read now."""
        try:
            if self.maps is not None:
                self.maps.read(name)
            else:
                read_image(self.root / name)
        except (ImageError, FormatError):
            return False
        return True


def open_source(config: MasksConfig, root: Path, names: tuple[str, ...], own_maps: Path | None) -> MaskSource:
    """Load the parser, or open the folder of label maps: for `label-maps` without a folder those of the data set.

    Raises:
        ConfigError: The parser, label set or grouping is not valid.
        WeightsError: The parser's weights cannot be used.
        DeviceError: The device does not exist, or its memory is too small for one image.
    """
    kind, _, argument = config.parser.partition(":")
    if kind == LABEL_MAPS:
        maps = _open_label_maps(config, at_home(argument) if argument else None, names, own_maps)
        recipe = _recipe(config, maps.label_set)
        _require_some(maps, names)
        read: dict[str, JsonScalar] = {
            "parser": LABEL_MAPS,
            "parser_version": LABEL_MAPS_VERSION,
            "batch_size": _LABEL_MAP_CHUNK,
            **label_map_keys(_sample_hashes(maps, names)),
        }
        provenance = _provenance(config, maps.label_set, recipe, read)
        return MaskSource(root, names, config, provenance, recipe, maps.label_set.name, maps=maps)
    tune_allocator()
    parser = load_parser(config.parser, label_set=config.label_set, device=config.device)
    info = parser.info
    recipe = _recipe(config, info.label_set)
    device = compute_device(parser)
    sidecar = sidecar_path(at_home(argument)) if kind == "onnx" else None
    own: dict[str, JsonScalar] = {
        "parser": info.name,
        "parser_version": info.version,
        "weights_sha256": info.weights_sha256 or None,
        "input_size": f"{parser.input_size[0]}x{parser.input_size[1]}",
        "backend": info.backend,
        "precision": info.precision,
        "batch_size": batch_size(parser, device, config, recipe),
    }
    provenance = _provenance(config, info.label_set, recipe, own, sidecar)
    on_cpu = device.type == "cpu"
    return MaskSource(root, names, config, provenance, recipe, info.label_set.name, parser=parser, on_cpu=on_cpu)


def compute_device(parser: Parser) -> torch.device:
    """Return where a parser computes: the device it states, or that of its output."""
    if parser.info.device:
        return torch.device(parser.info.device)
    with torch.inference_mode():
        return parser.parse(np.zeros((1, *parser.input_size, 3), np.uint8)).device


def batch_size(parser: Parser, device: torch.device, config: MasksConfig, recipe: Recipe) -> int:
    """Return the configured images per batch, or what suits the device and fits into its memory.

    Raises:
        DeviceError: Not even one image fits.
    """
    if config.batch_size != "auto":
        return config.batch_size
    height, width = parser.input_size
    pixels = _CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS
    count = min(_LARGEST_BATCH, 1 << max(0, (pixels // (height * width)).bit_length() - 1))
    if device.type == "cpu":
        return count
    while not fits(parser, count, recipe):
        if count == 1:
            raise DeviceError(f"not enough memory on {device} for one image", hint="set masks.device=cpu")
        count //= 2
    return count


def _open_label_maps(
    config: MasksConfig, folder: Path | None, names: Sequence[str], own_maps: Path | None
) -> LabelMaps:
    if folder is None and own_maps is None:
        raise ConfigError(
            "this data set comes without label maps",
            where="masks.parser",
            expected=f"{LABEL_MAPS}:DIR, or a parser such as builtin",
        )
    if config.flip:
        raise ConfigError("finished label maps cannot be averaged over mirror images", where="masks.flip")
    if config.label_set is None and folder is not None:
        _LOG.warning(
            "no label set configured: the label maps are read as %s; masks.label_set defines their ids",
            DEFAULT_LABEL_SET,
        )
    return LabelMaps(folder or own_maps or Path(), names, load_label_set(config.label_set or DEFAULT_LABEL_SET))


def _provenance(
    config: MasksConfig, label_set: LabelSet, recipe: Recipe, own: Mapping[str, JsonScalar], sidecar: Path | None = None
) -> Provenance:
    """The record of a source: `own` entries, settings, and a hash of what may change its content under one name."""
    rules = {
        "label set": asdict(label_set),
        "grouping": asdict(recipe.grouping),
        "description": sha256_file(sidecar) if sidecar is not None and sidecar.is_file() else None,
    }
    settings: dict[str, JsonScalar] = {
        "label_set": label_set.name,
        "grouping": recipe.grouping.name,
        "absent_parts": absent_text(recipe.grouping.absent),
        "resize": RESIZE_RULE,
        "flip": config.flip,
        "hard": config.hard,
        "rules_sha256": fingerprint(rules),
    }
    return Provenance(settings | dict(own))


def _recipe(config: MasksConfig, label_set: LabelSet) -> Recipe:
    if config.hard and label_set.kind == "fields":
        raise ConfigError(f"the fields of {label_set.name} overlap: no pixel has one label", where="masks.hard")
    return Recipe(load_grouping(config.grouping, label_set), flip=config.flip, hard=config.hard)


def _require_some(maps: LabelMaps, names: Sequence[str]) -> None:
    """Check that some image has a label map; warn if some have none."""
    failures: list[tuple[str, FormatError]] = []
    for name in names:
        try:
            maps.find(name)
        except FormatError as error:
            failures.append((name, error))
    if not failures:
        return
    first, fault = failures[0]
    tried, existing = maps.describe_missing(first)
    counts = f"{len(failures):,} of {len(names):,}"
    holds = f"the folder holds {existing}" if existing else "the folder holds no files"
    message, expected = f"{counts} images have no label map; {holds}", f"for {first} one of {tried}"
    if fault.expected:
        message, expected = f"{counts} images have no label map of their own: {fault.message}", fault.expected
    if len(failures) == len(names):
        raise ConfigError(message, where=maps.folder, expected=expected)
    _LOG.warning("%s: %s; expected %s", maps.folder, message, expected)


def _sample_hashes(maps: LabelMaps, names: Sequence[str]) -> dict[str, str]:
    """Hashes of some label maps, evenly spread over the images, by image name; missing ones are left out."""
    count = min(_SAMPLE, len(names))
    hashes = {}
    for name in (names[number * len(names) // count] for number in range(count)):
        with contextlib.suppress(FormatError):
            hashes[name] = sha256_file(maps.find(name))[:16]
    return hashes
