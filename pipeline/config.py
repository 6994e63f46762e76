"""The typed configuration of a run: every choice, its default, its meaning, its source.

One TOML file holds it; presets are such files too; `--set section.key=value` overrides both. Unknown keys are an
error that names the nearest known key. A field marked `execution` decides how fast or where the work is done but
not what comes out, so it is no part of an artifact's fingerprint.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import tomlkit
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipeline.errors import ConfigError
from pipeline.runtime.files import at_home

PRESETS = ("demo", "paper", "strong", "baseline")

_EXECUTION: dict[str, JsonValue] = {"execution": True}


UserPath = Annotated[Path, AfterValidator(at_home)]
UserText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A name, or the path of a file."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Precision = Literal["off", "bf16", "fp16"]
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")
SUMMING_RULES = ("sum", "query")
"""Matching rules whose distance adds up over parts, so that 1 - distance is no similarity."""


class Section(BaseModel):
    """Base of all sections: frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def decisive_fields(cls) -> tuple[str, ...]:
        """Names of the fields that decide the content of what a stage makes."""
        return tuple(name for name, info in cls.model_fields.items() if not is_execution(info))


class DataConfig(Section):
    """Which images."""

    source: str = Field(
        "rendered",
        description="Training data and, without `tests`, test data: KIND:PATH (`sgsfa data list`), "
        "or `rendered` for people rendered by `[synth]`.",
    )
    tests: tuple[str, ...] = Field(
        (),
        description="Data sets to test on, each KIND:PATH; empty: query and gallery of `source`. "
        "For training on one set and testing on others.",
    )
    expect_counts: bool = Field(
        True,
        description="Refuse a known data set whose image and identity counts are not the published ones.",
    )


class SynthConfig(Section):
    """Rendered people, used when `data.source` is `rendered`."""

    ids: Positive = Field(60, description="Identities, train and test together (distractors come on top).")
    cameras: Annotated[int, Field(ge=2, le=64)] = Field(4, description="Cameras; an identity is seen by every one.")
    shots: Positive = Field(3, description="Images of an identity in a camera.")
    occlusion: Fraction = Field(0.25, description="Share of occluded training images; queries are all occluded.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of everything drawn.")
    height: Annotated[int, Field(ge=64, le=1024)] = Field(256, description="Image height in pixels.")
    width: Annotated[int, Field(ge=32, le=512)] = Field(128, description="Image width in pixels.")
    tone: Fraction = Field(
        0.05, description="How far each camera's colours differ from the others' (0: all alike, 1: strongly)."
    )
    backdrop: Fraction = Field(
        0.88, description="How far a camera keeps its own backdrop (1: always the same place, 0: anywhere)."
    )
    train_share: Annotated[float, Field(ge=0.1, le=0.95)] = Field(0.5, description="Share of training identities.")
    randomise: tuple[Literal["scene", "quality", "box", "clothes"], ...] = Field(
        (),
        description="Drawn for every image, for training data that transfers to real images: scene (camera, place, "
        "light), quality (resolution, blur, compression), box (jittered, truncated). clothes: vary widely.",
    )
    jobs: int = Field(-1, description="Worker processes; -1: one per core.", json_schema_extra=_EXECUTION)


class MasksConfig(Section):
    """Part masks of the training images."""

    file: UserPath | None = Field(None, description="A finished mask file to use instead of building one.")
    parser: str = Field(
        "builtin",
        description="builtin | schp:FILE | onnx:FILE | torchscript:FILE | label-maps:DIR | label-maps (those of the "
        "data set) | an installed parser's name.",
    )
    label_set: UserText | None = Field(
        None, description="Label set of the parser's output where it does not say it itself (or a TOML file)."
    )
    grouping: UserText = Field("spreid", description="How labels become four parts: spreid | ssp | a TOML file.")
    flip: bool = Field(False, description="Average the parser's output over the image and its mirror image.")
    hard: bool = Field(
        False, description="Take each pixel's most likely label before resizing, instead of soft labels."
    )
    allow_failed: bool = Field(
        False,
        description="Go on to training although some images could not be parsed; they train without masks, as those do "
        "that failed in `file`.",
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)
    batch_size: Positive | Literal["auto"] = Field(
        "auto", description="Images a forward.", json_schema_extra=_EXECUTION
    )
    backend: Literal["none", "loky", "threading", "dask"] = Field(
        "none",
        description="joblib back end to spread the parsing over; none: this process.",
        json_schema_extra=_EXECUTION,
    )
    jobs: int = Field(1, description="Workers of that back end; -1: one a core.", json_schema_extra=_EXECUTION)
    scheduler: str | None = Field(None, description="Address of a Dask scheduler.", json_schema_extra=_EXECUTION)


class ModelConfig(Section):
    """The network. See docs/concepts/method.md for what the paper fixes and what it leaves open."""

    kind: Literal["sgsfa", "baseline"] = Field(
        "sgsfa",
        description="sgsfa, or baseline: the same backbone with one global feature, the honest rival.",
    )
    backbone: str = Field(
        "resnet50",
        description="resnet18 | resnet34 | resnet50 | resnet101 | mobilenet_v2 | timm:NAME (extra `timm`).",
    )
    weights: UserText = Field(
        "imagenet",
        description="Where the backbone starts: imagenet (torchvision downloads), builtin (ImageNet weights in "
        "this package, for mobilenet_v2), none, or a file (.safetensors, .pth).",
    )
    height: Annotated[int, Field(ge=64)] = Field(256, description="Input height in pixels, a multiple of 16.")
    width: Annotated[int, Field(ge=32)] = Field(128, description="Input width in pixels, a multiple of 16.")
    body_attention: bool = Field(True, description="Body attention after stage 1 (paper, Table 5).")
    body_reduction: Positive = Field(8, description="gamma of Fig. 3.")
    local_reduction: Positive = Field(2, description="gamma_1 of Fig. 4.")
    part_dim: Positive = Field(256, description="Length of each of the seven part features.")
    pooling: Literal["masked", "average"] = Field(
        "masked", description="Pooling of a part: mean weighted by its mask, or plain global average."
    )
    strip_pooling: Literal["width", "body"] = Field(
        "width",
        description="Pooling of a strip: the plain mean over its rows, or weighted by the body in it, the union of the "
        "predicted part masks.",
    )
    head_threshold: Fraction = Field(
        0.1,
        description="A mask that exceeds this somewhere shows something: whether there is a head, which strips show "
        "the body. A cell holds the share of its pixels that show the part; a small head fills a third of one.",
    )
    head_row_test: Literal["first", "max+1"] = Field(
        "first",
        description="Test-time head row: first active row, as in training, or row of the maximum + 1 (Sec. 3.3).",
    )
    body_height: Literal["image", "head"] = Field(
        "image",
        description="Strips divide the rows under the head row, or a body 1/0.15 times the head's height.",
    )
    strips: tuple[float, float, float] = Field((0.15, 0.23, 0.62), description="Top, middle and bottom (Sec. 3.2).")
    global_dim: int = Field(
        0,
        ge=0,
        description="Length of a trained global feature; 0: the untrained global average of stage 4.",
    )
    necks: bool = Field(False, description="BNNeck and identity classifier for each semantic feature (strong).")

    @field_validator("backbone")
    @classmethod
    def _known(cls, backbone: str) -> str:
        if backbone not in BACKBONES and not backbone.startswith("timm:"):
            near = suggestion(backbone, BACKBONES)
            raise ValueError("there is no such backbone" + (f", {near}" if near else ""))
        return backbone

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.height % 16 or self.width % 16:
            raise ValueError(f"input size {self.height}x{self.width} is not a multiple of 16")
        if abs(sum(self.strips) - 1.0) > 1e-6 or min(self.strips) <= 0:
            raise ValueError(f"strips {self.strips} must be positive and add up to 1")
        return self


class LossConfig(Section):
    """The losses (paper, Sec. 3.4)."""

    balance: Fraction = Field(0.8, description="lambda of eq. 11: balance (L_tri + L_se) + (1 - balance) L_d_cls.")
    smoothing: Fraction = Field(0.1, description="epsilon of eq. 10.")
    margin: float = Field(0.3, gt=0, description="Margin of the batch-hard triplet loss.")
    triplet_on: Literal["semantic", "spatial", "all", "parts"] = Field(
        "semantic",
        description="Triplet on the concatenated semantic, spatial or all features, or on the mean distance over the "
        "parts that both images show (`parts`).",
    )
    dynamic: bool = Field(True, description="Choose the spatial features that train by eq. 3; off: always all five.")
    mask_weight: float = Field(1.0, ge=0, description="Factor of L_se inside eq. 11.")
    global_weight: float = Field(
        1.0, ge=0, description="Factor of the global feature's own losses, where `model.global_dim` > 0."
    )


class TrainConfig(Section):
    """The training run."""

    start: UserPath | None = Field(
        None,
        description="A finished checkpoint of the same network to go on from, instead of `model.weights`: for other "
        "people, another image size, another schedule.",
    )
    epochs: Positive = Field(120, description="Epochs; `epoch_length` says what one is.")
    identities: Annotated[int, Field(ge=2)] = Field(
        16, description="P: identities a batch, over all processes together."
    )
    instances: Annotated[int, Field(ge=2)] = Field(4, description="K: images of each identity in a batch.")
    epoch_length: Literal["identities", "images"] = Field(
        "images",
        description="An epoch ends when each identity was drawn once (identities), or after as many batches as "
        "the images fill (images).",
    )
    lr: float = Field(3e-4, gt=0, description="Learning rate of Adam.")
    weight_decay: float = Field(5e-4, ge=0, description="On all weights but those of normalisation and biases.")
    schedule: Literal["step", "cosine"] = Field("step", description="After warm-up.")
    schedule_epochs: int = Field(
        120,
        ge=0,
        description="Length of training that milestones and warm-up are stated for; they scale with `epochs`. "
        "0: they count as they stand.",
    )
    milestones: tuple[int, ...] = Field(
        (50, 80, 100, 120), description="Epochs after which `step` multiplies by `gamma`."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor at each milestone.")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(0, description="Linear warm-up.")
    warmup_factor: float = Field(0.01, gt=0, le=1, description="Where the warm-up starts, times lr.")
    final_factor: float = Field(0.002, ge=0, le=1, description="Where `cosine` ends, times lr.")
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip.")
    erase: Fraction = Field(0.5, description="Probability of random erasing with the image's mean colour.")
    pad: int = Field(0, ge=0, description="Pixels padded on each side before a random crop; 0: no crop.")
    occlude: Fraction = Field(
        0.0,
        description="Probability of pasting a patch of another image of the batch over the person; masks follow.",
    )
    colour_jitter: Fraction = Field(0.0, description="Strength of random brightness, contrast and saturation.")
    amp: Precision = Field("off", description="Mixed precision: off | bf16 | fp16 (with loss scaling).")
    accumulate: Positive = Field(
        1,
        description="Split each P x K batch into this many forwards; hard mining still sees the whole batch.",
    )
    clip_norm: float = Field(0.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are tested; 0: none.")
    eval_every: int = Field(0, ge=0, description="Test on the first test set every so many epochs; 0: not in training.")
    gather: bool = Field(
        False, description="Distributed: take the loss over the whole batch, not over each process's share of it."
    )
    seed: int = Field(0, ge=0, description="Seed of weights, batches and augmentation.")
    deterministic: bool = Field(True, description="Ask for deterministic kernels, so that a resumed run is bit-equal.")
    channels_last: bool = Field(True, description="Memory layout of images and weights.", json_schema_extra=_EXECUTION)
    compile: bool = Field(
        False, description="torch.compile the network, the losses and the augmentation.", json_schema_extra=_EXECUTION
    )
    cuda_graph: bool = Field(
        True,
        description="On a single GPU, record a step's work once and start it as a whole from then on.",
        json_schema_extra=_EXECUTION,
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)
    image_budget_gb: float = Field(
        4.0,
        gt=0,
        description="Images are held in memory up to this size, streamed above it.",
        json_schema_extra=_EXECUTION,
    )
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="Save a resumable state at least this often; the end of an epoch saves one, too, if a tenth of "
        "this time has passed.",
        json_schema_extra=_EXECUTION,
    )
    tensorboard: bool = Field(
        False, description="Also write TensorBoard logs (extra `tensorboard`).", json_schema_extra=_EXECUTION
    )


class ExtractConfig(Section):
    """Features of query and gallery images."""

    checkpoint: UserPath | None = Field(None, description="A finished checkpoint to use instead of training one.")
    flip: bool = Field(False, description="Average features over the image and its mirror image; named in results.")
    amp: Precision = Field("off", description="Precision of the forward: off | bf16 | fp16.")
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)
    batch_size: Positive = Field(64, description="Images a forward.", json_schema_extra=_EXECUTION)


class MatchingConfig(Section):
    """Distances, ranking and metrics."""

    features: UserPath | None = Field(
        None, description="A finished features file to evaluate instead of extracting one."
    )
    rule: Literal["shrunk", "mean", "sum", "query", "all"] = Field(
        "shrunk", description="How part distances become one (docs/concepts/matching.md)."
    )
    shrink: float = Field(1.0, ge=0, description="m of the shrunk rule: weight of the global distance.")
    global_term: bool = Field(
        True,
        description="Use the global distance (in `shrunk`, and where nothing is shared); off: they rank last.",
    )
    metric: Literal["cosine", "euclidean"] = Field("cosine", description="Distance of two part features.")
    visibility: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: 0/1 by the calibrated threshold (eq. 5); soft: below the threshold in proportion.",
    )
    average_precision: Literal["mean", "trapezoid"] = Field(
        "mean", description="Rule of AP (docs/concepts/protocols.md)."
    )
    max_rank: Positive = Field(50, description="Length of the CMC curve.")
    rerank: bool = Field(False, description="k-reciprocal re-ranking; named in results.")
    rerank_k1: Positive = Field(20, description="k1 of re-ranking.")
    rerank_k2: Positive = Field(6, description="k2 of re-ranking.")
    rerank_lambda: Fraction = Field(0.3, description="Share of the original distance in re-ranking.")
    query_expansion: int = Field(
        0, ge=0, description="Neighbours that queries are averaged with; 0: none. Not with the rules sum and query."
    )
    verification: bool = Field(False, description="Also true positive rates at false positive rates 1e-4 to 1e-2.")
    bootstrap: int = Field(0, ge=0, description="Resamplings of the queries for 95 % intervals; 0: none.")
    breakdown: bool = Field(True, description="Also metrics by visible fraction, visible parts and camera pair.")
    pictures: int = Field(8, ge=0, description="Queries drawn with their ranking.")
    histogram: bool = Field(
        False, description="Also rank by colour histograms of the images, the rival that needs no training."
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)

    @model_validator(mode="after")
    def _expansible(self) -> Self:
        if self.query_expansion and self.rule in SUMMING_RULES:
            raise ValueError(f"query_expansion does not go with rule = {self.rule!r}; shrunk, mean and all do")
        return self


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run's artifact folders.")
    artifacts: UserPath = Field(
        Path("artifacts"),
        description="Where artifacts are kept, relative to the working folder.",
        json_schema_extra=_EXECUTION,
    )
    data: DataConfig = Field(default_factory=DataConfig)
    synth: SynthConfig = Field(default_factory=SynthConfig)
    masks: MasksConfig = Field(default_factory=MasksConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    extract: ExtractConfig = Field(default_factory=ExtractConfig)
    matching: MatchingConfig = Field(default_factory=MatchingConfig)


def is_execution(info: FieldInfo) -> bool:
    """Whether a field only decides how the work is done, not what comes out."""
    return info.json_schema_extra == _EXECUTION


def load_config(path: Path | None = None, *, preset: str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a configuration: defaults, then the preset, then the file, then the overrides.

    Args:
        path: A TOML file. It may name its own `preset` at the top; the argument `preset` wins over it.
        preset: One of `PRESETS`.
        overrides: `section.key=value` strings; the value is TOML, or else taken as a bare string.

    Raises:
        ConfigError: On an unreadable file, an unknown key or a value of the wrong kind or range.
    """
    tables: list[tuple[str, Mapping[str, Any]]] = []
    file_table: dict[str, Any] = {}
    if path is not None:
        file_table = read_toml(path, "the configuration file", hint="`sgsfa init` writes one")
        named = file_table.pop("preset", None)
        if named is not None and not isinstance(named, str):
            raise ConfigError(f"preset must be a name, not {named!r}", where=path)
        preset = preset or named
    if preset is not None:
        tables.append((f"preset {preset}", preset_table(preset)))
    if path is not None:
        tables.append((str(path), file_table))
    tables += [(f"--set {text}", parse_override(text)) for text in overrides]

    merged: dict[str, Any] = {}
    for origin, table in tables:
        _refuse_unknown(RunConfig, table, origin)
        _merge(merged, table)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, tables) from error


def read_toml(path: Path, what: str, *, hint: str | None = None) -> dict[str, Any]:
    """Read a TOML file, or say where it is broken.

    Args:
        path: The file.
        what: What it is, for the message: `the configuration file`.
        hint: What to do where there is none.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    try:
        # Some editors of Windows begin files with a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{what} does not exist", where=path, hint=hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}", where=path) from error


def preset_table(name: str) -> dict[str, Any]:
    """The TOML table of a preset.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}", expected=" | ".join(PRESETS), hint=suggestion(name, PRESETS))
    text = (resources.files("pipeline") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def parse_override(text: str) -> dict[str, Any]:
    """Turn `a.b=value` into nested tables.

    Raises:
        ConfigError: There is no `=`, or a key is empty.
    """
    key, equals, raw = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"{text!r} is not an override", expected="section.key=value, as in train.epochs=60")
    try:
        value: Any = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    # What looks like a number or a date is text where text is wanted, as in name=2024.
    if not isinstance(value, str | list | dict) and _wants_text(_field(names)):
        value = raw.strip()
    for name in reversed(names):
        value = {name: value}
    table: dict[str, Any] = value
    return table


def to_toml(config: RunConfig, *, comments: bool = False) -> str:
    """Write a configuration as TOML; with `comments`, each key under its meaning."""
    document = tomlkit.document()
    _write(document, config, comments)
    return tomlkit.dumps(document)


def suggestion(name: str, known: Iterable[str], before: str = "", after: str = "") -> str | None:
    """`did you mean ...?`, or None when nothing is near.

    Args:
        name: What was given.
        known: What there is.
        before: What stands before the name where it is written; it has no say in what is near.
        after: What stands after it.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {before + near[0] + after!r}?" if near else None


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the configuration."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        section = _section_of(info)
        if section is None:
            keys.append(prefix + name)
        else:
            keys += known_keys(section, f"{prefix}{name}.")
    return keys


def _elsewhere(name: str) -> str | None:
    """A suggestion for a key that stands in another section."""
    keys = {key.rpartition(".")[2]: key for key in known_keys()}
    near = difflib.get_close_matches(name, keys, 1)
    return f"did you mean {keys[near[0]]!r}?" if near else None


def _section_of(info: FieldInfo) -> type[Section] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _refuse_unknown(model: type[Section], table: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for name, value in table.items():
        info = model.model_fields.get(name)
        if info is None:
            near = suggestion(name, model.model_fields, prefix) or _elsewhere(name)
            raise ConfigError(f"unknown key {prefix + name!r}", where=origin, hint=near)
        section = _section_of(info)
        if section is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{prefix + name!r} is a section, not a value", where=origin)
        _refuse_unknown(section, value, origin, f"{prefix}{name}.")


def _merge(into: dict[str, Any], table: Mapping[str, Any]) -> None:
    for name, value in table.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        elif isinstance(value, Mapping):
            into[name] = {}
            _merge(into[name], value)
        else:
            into[name] = value


def _explain(error: ValidationError, tables: Sequence[tuple[str, Mapping[str, Any]]]) -> ConfigError:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"]]
    # Pydantic adds the tag of a union's branch to the location; our keys are at most two deep.
    key = ".".join(names[:2])
    origin = next((where for where, table in reversed(tables) if _has(table, names[:2])), None)
    found, message = first.get("input"), first["msg"].removeprefix("Value error, ")
    if isinstance(found, Mapping):
        # A section as a whole; its validator says which values do not go together.
        return ConfigError(f"[{key}]: {message}", where=origin)
    expected = None
    info = _field(names[:2])
    if info is not None:
        choices = [str(choice) for choice in get_args(info.annotation) if isinstance(choice, str)]
        # Pydantic's own messages say what would be right; ours may not.
        expected = " | ".join(choices) or (None if message.startswith("Input should") else info.description)
        if first["type"] == "tuple_type":
            expected = '["...", "..."]' if get_args(info.annotation)[0] is str else "[..., ...]"
        if choices and isinstance(found, str) and (near := suggestion(found, choices)):
            expected = f"{expected} ({near})"
    return ConfigError(f"{key} = {found!r}: {message}", where=origin, expected=expected)


def _has(table: Mapping[str, Any], names: Sequence[str]) -> bool:
    value: Any = table
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def _field(names: Sequence[str]) -> FieldInfo | None:
    model: type[Section] | None = RunConfig
    info: FieldInfo | None = None
    for name in names:
        if model is None:
            return info
        info = model.model_fields.get(name)
        if info is None:
            return None
        model = _section_of(info)
    return info


def _kinds(info: FieldInfo) -> list[Any]:
    """The plain types that a field takes, without their constraints."""
    union = get_origin(info.annotation) in (UnionType, Union)
    kinds = get_args(info.annotation) if union else (info.annotation,)
    return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]


def _wants_text(info: FieldInfo | None) -> bool:
    return info is not None and any(kind in (str, Path) for kind in _kinds(info))


def _write(table: Any, config: Section, comments: bool) -> None:
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            section = tomlkit.table()
            if comments and type(value).__doc__:
                section.comment(str(type(value).__doc__).splitlines()[0])
            _write(section, value, comments)
            table.add(name, section)
            continue
        if comments and info.description:
            table.add(tomlkit.comment(info.description))
        if value is None:
            if comments:
                table.add(tomlkit.comment(f"{name} = ..."))
            continue
        table.add(name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, tuple):
        return list(value)
    return value
