"""The five stages, and which of them a configuration needs.

    synth -> masks -> train -> extract -> eval

Each states what it reads of the configuration and which inputs decide what it makes. A path of the user's is no part
of that, the content of its file is: a moved file makes nothing stale.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Precision, RunConfig, Section
from pipeline.errors import ConfigError, FormatError, WeightsError
from pipeline.formats.provenance import fingerprint
from pipeline.parsing.files import parser_files
from pipeline.parsing.versions import version_of
from pipeline.runtime.files import at_home
from pipeline.runtime.process_group import rank_info
from pipeline.stages import bodies
from pipeline.stages.sources import RENDERED, Sources
from pipeline.stages.stage import Stage

_FILE = "FILE"
_NETWORK = 3
"""Version of the SGSFA network. 3: the body mask is taught by masks alone, strips of `paper` are calibrated by
its own head row. 2: features without necks are centred, the body mask has a wider view."""
_LABEL_MAP_SUFFIXES = (".png", ".npy")
_PARSER_ENTRY_POINTS = "sgsfa.parsers"
_PACKAGE = Path(__file__).resolve().parents[1]
_PARSER_WEIGHTS = _PACKAGE / "parsing" / "weights" / "builtin.safetensors"
_BACKBONE_WEIGHTS = _PACKAGE / "model" / "imagenet" / "mobilenet_v2.safetensors"


def needed(config: RunConfig) -> tuple[str, ...]:
    """Names of the stages that a configuration needs, in order."""
    if config.matching.features is not None:
        return ("eval",)
    trains = config.extract.checkpoint is None
    names = []
    if RENDERED in (config.data.tests or (config.data.source,)) or (trains and config.data.source == RENDERED):
        names.append("synth")
    if trains:
        if _uses_masks(config) and config.masks.file is None:
            names.append("masks")
        names.append("train")
    return (*names, "extract", "eval")


def _uses_masks(config: RunConfig) -> bool:
    return config.model.kind != "baseline"


def _section(name: str, section: Section, *omitted: str) -> dict[str, Any]:
    """The decisive fields of a section by dotted key."""
    table = section.model_dump(mode="json")
    return {f"{name}.{key}": table[key] for key in section.decisive_fields() if key not in omitted}


# synth


def _synth_decisive(config: RunConfig) -> Mapping[str, Any]:
    return _section("synth", config.synth)


def _synth_inputs(config: RunConfig, sources: Sources) -> Mapping[str, str]:
    return {}


# masks


def _masks_decisive(config: RunConfig) -> Mapping[str, Any]:
    # allow_failed decides whether the run goes on, not what the masks are.
    read = _section("masks", config.masks, "file", "allow_failed")
    read["masks.parser"] = config.masks.parser.partition(":")[0]
    for key in ("masks.label_set", "masks.grouping"):
        if read[key] is not None and read[key].endswith(".toml"):
            read[key] = _FILE
    return read


def _masks_inputs(config: RunConfig, sources: Sources) -> Mapping[str, str]:
    # Masks know nothing of identities and cameras: a corrected one parses nothing anew.
    found = {"training images": sources.contents(config.data.source, "train")}
    found |= _parser_input(config, sources)
    # The same weights give other masks, when the code around them changes.
    if (version := version_of(config.masks.parser.partition(":")[0])) is not None:
        found["parser's version"] = version
    for what, value in (("label set", config.masks.label_set), ("grouping", config.masks.grouping)):
        if value is not None and value.endswith(".toml"):
            found[what] = sources.file(Path(value), f"the {what} file", ConfigError)
    return found


def _parser_input(config: RunConfig, sources: Sources) -> dict[str, str]:
    kind, _, argument = config.masks.parser.partition(":")
    if kind == "builtin":
        return {"parser": sources.file(_PARSER_WEIGHTS, "the built-in parser's weights file", WeightsError)}
    if kind == "label-maps":
        if argument:
            return {"label maps": sources.tree(at_home(argument), *_LABEL_MAP_SUFFIXES)}
        # The data set's own; those of rendered people are part of the rendered images' fingerprint.
        maps = None if config.data.source == RENDERED else sources.training().label_maps
        return {} if maps is None else {"label maps": sources.tree(maps, *_LABEL_MAP_SUFFIXES)}
    found = {}
    path = at_home(argument)
    if argument and path.is_file():
        # With what else is read: descriptions, label sets and tensors stand in files beside a model.
        for what, file in parser_files(path).items():
            found[what] = sources.file(file, f"the {what}" if file != path else "the parser's file", WeightsError)
    elif kind in ("schp", "onnx", "torchscript"):
        if argument:
            raise WeightsError("the parser's file does not exist", where=argument)
    elif argument:
        # What an installed parser makes of it is its own affair: a folder counts by content, anything else as it is.
        found["parser's argument"] = sources.tree(path) if path.is_dir() else fingerprint(argument)
    for point in importlib.metadata.entry_points(group=_PARSER_ENTRY_POINTS, name=kind):
        if point.dist is not None:
            found["parser's package"] = f"{point.dist.name} {point.dist.version}"
    return found


# train


def _train_decisive(config: RunConfig) -> Mapping[str, Any]:
    read = {
        **_section("model", config.model),
        **_section("loss", config.loss),
        **_section("train", config.train),
    }
    if config.train.start is None:
        # So that runs from before there was this key are what they were.
        del read["train.start"]
    else:
        read["train.start"] = _FILE
        del read["model.weights"]
    model = config.model
    if model.strip_pooling == "width":
        # For the same reason.
        del read["model.strip_pooling"]
    centred = not (model.necks and model.global_dim)
    if model.kind == "sgsfa" and (model.body_attention or centred or model.head_row_test == "max+1"):
        # Not the stage's version: what it does not concern need not be trained anew.
        read["network"] = _NETWORK
    if "model.weights" in read and _is_file(config.model.weights):
        read["model.weights"] = _FILE
    return read


def _train_inputs(config: RunConfig, sources: Sources) -> Mapping[str, str]:
    found = {"training images": sources.images(config.data.source, "train")}
    if _uses_masks(config):
        if config.masks.file is not None:
            found["masks"] = sources.file(config.masks.file, "the mask file", FormatError)
        else:
            found["masks"] = sources.artifacts["masks"][0]
    if config.train.start is not None:
        found["start"] = sources.file(config.train.start, "the checkpoint to start from", WeightsError)
    elif _is_file(config.model.weights):
        found["weights"] = sources.file(Path(config.model.weights), "the weights file", WeightsError)
    elif config.model.weights == "builtin":
        found["weights"] = sources.file(_BACKBONE_WEIGHTS, "the built-in ImageNet weights file", WeightsError)
    if config.train.eval_every:
        for test in sources.tests():
            found[f"test images {test.name}"] = sources.images(test.spec, "query", "gallery")
    return found


def _is_file(weights: str) -> bool:
    return weights not in ("imagenet", "builtin", "none")


# extract


def _extract_decisive(config: RunConfig) -> Mapping[str, Any]:
    return _section("extract", config.extract, "checkpoint")


def _extract_inputs(config: RunConfig, sources: Sources) -> Mapping[str, str]:
    if config.extract.checkpoint is not None:
        found = {"checkpoint": sources.file(config.extract.checkpoint, "the checkpoint", WeightsError)}
    else:
        found = {"checkpoint": sources.artifacts["train"][0]}
    for test in sources.tests():
        found[f"test images {test.name}"] = sources.images(test.spec, "query", "gallery")
    return found


# eval


def _eval_decisive(config: RunConfig) -> Mapping[str, Any]:
    return _section("matching", config.matching, "features")


def _eval_inputs(config: RunConfig, sources: Sources) -> Mapping[str, str]:
    if config.matching.features is not None:
        found = {"features": sources.file(config.matching.features, "the features file", FormatError)}
        if (test := bodies.sole_test(config, sources)) is not None:
            found["test images"] = sources.images(test.spec, "query", "gallery")
            if (attributes := sources.attributes(test.spec)) is not None:
                found["attributes"] = attributes
        return found
    found = {"features": sources.artifacts["extract"][0]}
    for test in sources.tests():
        if (attributes := sources.attributes(test.spec)) is not None:
            found[f"attributes {test.name}"] = attributes
    return found


# What is looked for before the first stage; rendered people are yet to come then.


def _check_training(config: RunConfig, sources: Sources) -> None:
    if config.data.source != RENDERED:
        sources.training()


def _check_tests(config: RunConfig, sources: Sources) -> None:
    for test in sources.tests():
        if test.spec != RENDERED:
            sources.test_records(test.spec)


def _check_masks(config: RunConfig, sources: Sources) -> None:
    _check_training(config, sources)
    # Finished label maps need no device, and parsers of other packages may have names of their own for theirs.
    if config.masks.parser.partition(":")[0] in ("builtin", "schp", "onnx", "torchscript"):
        _check_device(config.masks.device)


def _check_train(config: RunConfig, sources: Sources) -> None:
    _check_training(config, sources)
    if config.train.eval_every:
        _check_tests(config, sources)
        first = sources.tests()[0]
        if first.spec != RENDERED:
            sources.require_matches(first.spec)
    _check_device(config.train.device, config.train.amp, together=True)
    from pipeline.training.run import check_network
    from pipeline.training.sampler import check_batches

    check_network(config.model, from_weights=config.train.start is None)
    if config.data.source != RENDERED:
        people = {record.path: record.pid for record in sources.training().split("train")}
        check_batches(list(people.values()), config.train, processes=rank_info().world_size)


def _check_extract(config: RunConfig, sources: Sources) -> None:
    _check_tests(config, sources)
    _check_device(config.extract.device, config.extract.amp, together=True)


def _check_eval(config: RunConfig, sources: Sources) -> None:
    _check_device(config.matching.device)
    if config.matching.features is None:
        for test in sources.tests():
            if test.spec != RENDERED:
                sources.require_matches(test.spec)


def _check_device(name: str, amp: Precision = "off", *, together: bool = False) -> None:
    """See that a device is there, for all processes if `together`, and computes in that precision.

    PyTorch is left alone where nothing can be wrong.
    """
    ranks = rank_info()
    processes = together and ranks.world_size > 1
    if name != "auto" or amp == "fp16" or processes:
        from pipeline.runtime.device import autocast, resolve_device

        device = resolve_device(name)
        autocast(ranks.device(device) if together else device, amp)


STAGES: tuple[Stage, ...] = (
    Stage("synth", 3, _synth_decisive, _synth_inputs, bodies.synth),
    Stage("masks", 3, _masks_decisive, _masks_inputs, bodies.masks, _check_masks),
    Stage("train", 5, _train_decisive, _train_inputs, bodies.train, _check_train, distributed=True),
    Stage("extract", 2, _extract_decisive, _extract_inputs, bodies.extract, _check_extract, distributed=True),
    Stage("eval", 3, _eval_decisive, _eval_inputs, bodies.evaluate, _check_eval),
)
"""All stages, in order."""

STAGE_NAMES = tuple(stage.name for stage in STAGES)
