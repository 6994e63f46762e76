"""The schema of the configuration: every key with its type, range, default and meaning.

`pipeline.config_file` reads it from TOML. A field marked `execution` decides how fast or where the work is done but not
its result, so it is not part of an artifact's provenance.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipeline.runtime.files import at_home

_EXECUTION: dict[str, JsonValue] = {"execution": True}


UserPath = Annotated[Path, AfterValidator(at_home)]
UserText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A name, or the path of a file."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Precision = Literal["off", "bf16", "fp16"]
BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"),
    *("resnet18_ibn_a", "resnet34_ibn_a", "resnet50_ibn_a", "resnet101_ibn_a"),
)
SUMMING_RULES = ("sum", "query")
"""Matching rules whose distance adds up over parts, so that 1 - distance is no similarity."""


class Section(BaseModel):
    """Base of all sections: frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def decisive_fields(cls) -> tuple[str, ...]:
        """Return the names of the fields that decide the output of a stage."""
        return tuple(name for name, info in cls.model_fields.items() if not is_execution(info))


class DataConfig(Section):
    """Images to train and test on."""

    source: str = Field(
        "rendered",
        description="Training data and, without `tests`, test data: KIND:PATH (`sgsfa data list`), "
        "or `rendered` for images rendered with `[synth]`.",
    )
    tests: tuple[str, ...] = Field(
        (),
        description="Data sets to test on, each KIND:PATH; empty: query and gallery of `source`. "
        "For training on one set and testing on others.",
    )
    expect_counts: bool = Field(
        True,
        description="Require the published numbers of images and identities of a known data set.",
    )


class SynthConfig(Section):
    """Rendered identities, used if `data.source` is `rendered`."""

    ids: Positive = Field(60, description="Identities, train and test together (distractors come on top).")
    cameras: Annotated[int, Field(ge=2, le=64)] = Field(
        4, description="Cameras; every identity appears in each of them."
    )
    shots: Positive = Field(3, description="Images per identity and camera.")
    occlusion: Fraction = Field(0.25, description="Share of occluded training images; queries are all occluded.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of everything random.")
    height: Annotated[int, Field(ge=64, le=1024)] = Field(256, description="Image height in pixels.")
    width: Annotated[int, Field(ge=32, le=512)] = Field(128, description="Image width in pixels.")
    tone: Fraction = Field(0.05, description="Difference between the colours of the cameras (0: none, 1: strong).")
    backdrop: Fraction = Field(
        0.88, description="How consistent the background of a camera is (1: always the same place, 0: random)."
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

    file: UserPath | None = Field(None, description="Mask file to use instead of building one.")
    parser: str = Field(
        "builtin",
        description="builtin | schp:FILE | onnx:FILE | label-maps:DIR | label-maps (those of the data set) | an "
        "installed parser's name.",
    )
    label_set: UserText | None = Field(
        None,
        description="Label set of the parser's output, a name or a TOML file; only if the parser does not define it.",
    )
    grouping: UserText = Field("spreid", description="How labels become four parts: spreid | ssp | a TOML file.")
    flip: bool = Field(False, description="Average the parser's output over the image and its mirror image.")
    hard: bool = Field(
        False, description="Take each pixel's most likely label before resizing, instead of soft labels."
    )
    allow_failed: bool = Field(
        False,
        description="Continue if some images cannot be parsed; they train without masks, as do those that failed in "
        "`file`.",
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)
    batch_size: Positive | Literal["auto"] = Field(
        "auto", description="Images per batch.", json_schema_extra=_EXECUTION
    )
    backend: Literal["none", "loky", "threading", "dask"] = Field(
        "none",
        description="joblib back end that distributes the parsing; none: this process.",
        json_schema_extra=_EXECUTION,
    )
    jobs: int = Field(1, description="Workers of the back end; -1: one per core.", json_schema_extra=_EXECUTION)
    scheduler: str | None = Field(None, description="Address of a Dask scheduler.", json_schema_extra=_EXECUTION)


class ModelConfig(Section):
    """The network. See docs/concepts/method.md for what the paper fixes and what it leaves open."""

    kind: Literal["sgsfa", "baseline"] = Field(
        "sgsfa",
        description="sgsfa, or baseline: the same backbone with a single global feature.",
    )
    backbone: str = Field(
        "resnet50",
        description="resnet18 | resnet34 | resnet50 | resnet101, each also with _ibn_a | mobilenet_v2 | timm:NAME "
        "(extra `timm`).",
    )
    weights: UserText = Field(
        "imagenet",
        description="Initial weights of the backbone: imagenet (downloaded by torchvision), builtin (ImageNet weights "
        "of mobilenet_v2 in this package), rendered (mobilenet_v2 of the built-in re-ID network), none, or a file "
        "(.safetensors, .pth).",
    )
    non_local: bool = Field(False, description="Non-local blocks in layers 2 and 3 of a ResNet, as in AGW.")
    height: Annotated[int, Field(ge=64, multiple_of=16)] = Field(256, description="Input height in pixels.")
    width: Annotated[int, Field(ge=32, multiple_of=16)] = Field(128, description="Input width in pixels.")
    fit: Literal["stretch", "pad"] = Field(
        "stretch",
        description="How images are fitted to the input size. stretch: resized to it. pad: images that are less than "
        "1.6 or more than 3 times as high as wide, such as crops that end at the waist, keep their proportions and "
        "are padded at the bottom or the sides; the others are resized.",
    )
    body_attention: bool = Field(True, description="Body attention after stage 1 (paper, Table 5).")
    body_reduction: Positive = Field(8, description="gamma of Fig. 3.")
    local_reduction: Positive = Field(2, description="gamma_1 of Fig. 4.")
    part_dim: Positive = Field(256, description="Dimension of each of the seven part features.")
    pooling: Literal["masked", "average"] = Field(
        "masked", description="Pooling of a semantic part: mean weighted by its mask, or global average."
    )
    strip_pooling: Literal["width", "body"] = Field(
        "width",
        description="Pooling of a spatial part: mean over its rows, or mean weighted by the body, the union of the "
        "predicted part masks.",
    )
    head_threshold: Fraction = Field(
        0.1,
        description="Minimum of a predicted mask's maximum for its part to count as visible; decides whether there is "
        "a head and which spatial parts contain the body. A cell is the share of its pixels that belong to the part.",
    )
    head_row_test: Literal["first", "max+1"] = Field(
        "first",
        description="Test-time head row: first active row, as in training, or row of the maximum + 1 (Sec. 3.3).",
    )
    body_height: Literal["image", "head"] = Field(
        "image",
        description="Spatial parts divide the rows below the head row, or a body of 1/0.15 times the head's height.",
    )
    strips: tuple[float, float, float] = Field(
        (0.15, 0.23, 0.62), description="Shares of the top, middle and bottom spatial part (Sec. 3.2)."
    )
    global_dim: int = Field(
        0,
        ge=0,
        description="Dimension of a trained global feature; 0: the untrained global average of stage 4.",
    )
    global_pooling: Literal["average", "average+max", "gem"] = Field(
        "average", description="Pooling of the global feature: mean, mean and maximum, or a generalised mean."
    )
    foreground_dim: int = Field(
        0,
        ge=0,
        description="Dimension of a foreground feature, pooled over the predicted body and matched with the global "
        "feature; 0: none. Needs `global_dim`.",
    )
    concatenated: bool = Field(False, description="Also classify the seven parts side by side, in training only.")
    fine_masks: bool = Field(
        False, description="Predict part masks at stride 8 from fused features; off: at stride 16, as published."
    )
    part_features: Literal["last", "deep", "middle"] = Field(
        "last",
        description="Map that part features are pooled from: the last stage's, the one's before it, or stride 8.",
    )
    detach_masks: bool = Field(
        False, description="Supervise part masks by the parser's masks alone, not by the identity losses."
    )
    logit_scale: float = Field(1.0, gt=0, description="Factor of identity logits.")
    necks: bool = Field(False, description="BNNeck and identity classifier for each semantic feature (as in `strong`).")

    @field_validator("backbone")
    @classmethod
    def _known(cls, backbone: str) -> str:
        if backbone not in BACKBONES and not backbone.startswith("timm:"):
            near = suggestion(backbone, BACKBONES)
            raise ValueError("unknown backbone" + (f", {near}" if near else ""))
        return backbone

    @field_validator("strips")
    @classmethod
    def _divide(cls, strips: tuple[float, float, float]) -> tuple[float, float, float]:
        if abs(sum(strips) - 1.0) > 1e-6 or min(strips) <= 0:
            raise ValueError("the shares must be positive and add up to 1")
        return strips

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.part_features == "middle" and not self.fine_masks:
            raise ValueError("part_features = 'middle' needs fine_masks = true")
        if self.non_local and not self.backbone.startswith("resnet"):
            raise ValueError("non_local needs a ResNet as backbone")
        if self.foreground_dim and not self.global_dim:
            raise ValueError("foreground_dim needs global_dim")
        return self


class LossConfig(Section):
    """The losses (paper, Sec. 3.4)."""

    balance: Fraction = Field(0.8, description="lambda of eq. 11: balance (L_tri + L_se) + (1 - balance) L_d_cls.")
    smoothing: Fraction = Field(0.1, description="epsilon of eq. 10.")
    margin: float = Field(0.3, ge=0, description="Margin of the batch-hard triplet loss; 0: the soft margin.")
    triplet_on: Literal["semantic", "spatial", "all", "parts"] = Field(
        "semantic",
        description="Triplet loss on the concatenated semantic, spatial or all features, or on the mean distance over "
        "the parts that are visible in both images (`parts`).",
    )
    dynamic: bool = Field(True, description="Select the spatial features to train by eq. 3; off: always all five.")
    mask_weight: float = Field(1.0, ge=0, description="Factor of L_se inside eq. 11.")
    global_triplet: bool = Field(True, description="Triplet loss on the global feature.")
    global_weight: float = Field(
        1.0, ge=0, description="Factor of the losses of the global feature, if `model.global_dim` > 0."
    )


class TrainConfig(Section):
    """The training run."""

    start: UserPath | None = Field(
        None,
        description="Checkpoint of the same network to start from, instead of `model.weights`: for other identities, "
        "another image size or schedule.",
    )
    epochs: Positive = Field(120, description="Number of epochs; see `epoch_length`.")
    identities: Annotated[int, Field(ge=2)] = Field(
        16, description="P: identities per batch, over all processes together."
    )
    instances: Annotated[int, Field(ge=2)] = Field(4, description="K: images per identity in a batch.")
    epoch_length: Literal["identities", "images"] = Field(
        "images",
        description="An epoch ends when each identity was drawn once (identities), or after as many batches as "
        "the images fill (images).",
    )
    lr: float = Field(3e-4, gt=0, description="Learning rate of Adam.")
    lr_heads: float = Field(1.0, gt=0, description="Factor of the learning rate of all that is not the backbone.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay, except for normalisation layers and biases.")
    schedule: Literal["step", "cosine"] = Field("step", description="Schedule of the learning rate after the warm-up.")
    schedule_epochs: int = Field(
        120,
        ge=0,
        description="Number of epochs that milestones and warm-up refer to; they scale with `epochs`. 0: no scaling.",
    )
    milestones: tuple[int, ...] = Field(
        (50, 80, 100, 120), description="Epochs after which `step` multiplies the learning rate by `gamma`."
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor at each milestone.")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(0, description="Epochs of linear warm-up.")
    warmup_factor: float = Field(
        0.01, gt=0, le=1, description="Initial learning rate of the warm-up, relative to `lr`."
    )
    final_factor: float = Field(0.002, ge=0, le=1, description="Final learning rate of `cosine`, relative to `lr`.")
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip.")
    erase: Fraction = Field(0.5, description="Probability of random erasing, with the mean colour of the image.")
    pad: int = Field(
        0,
        ge=0,
        description="Pixels padded on each side before a random crop, for images 256 high; others in proportion. "
        "0: no crop.",
    )
    occlude: Fraction = Field(
        0.0,
        description="Probability of pasting a cut-out in front of the person: an object, or another person of the "
        "batch; masks follow.",
    )
    occlude_people: Fraction = Field(
        0.4, description="Share of occluders that are people of the batch, cut out by their body masks."
    )
    truncate: Fraction = Field(
        0.0,
        description="Probability of keeping only the upper part or one side of an image, resized to the frame or, with "
        "`model.fit = pad`, also padded.",
    )
    augment_ramp: Fraction = Field(
        0.0, description="Share of the training over which `occlude` and `truncate` rise from 0."
    )
    colour_jitter: Fraction = Field(0.0, description="Strength of random brightness, contrast and saturation.")
    occluded_copies: Fraction = Field(
        0.0,
        description="Occluded or truncated copies of training images added to each step, as a share of the batch, for "
        "the mask and identity losses; 0: none.",
    )
    mask_teacher: Fraction = Field(
        0.0,
        description="Rendered images with true masks added to each step, as a share of the batch, for the mask losses "
        "only; 0: none. Not with `occluded_copies`.",
    )
    teacher_data: str = Field(
        "rendered",
        description="Images of `mask_teacher`: synthetic:DIR, or `rendered` for images rendered with `[synth]`.",
    )
    amp: Precision = Field("off", description="Mixed precision: off | bf16 | fp16 (with loss scaling).")
    accumulate: Positive = Field(
        1,
        description="Forward passes per P x K batch; hard mining still uses the whole batch.",
    )
    clip_norm: float = Field(0.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the exponential moving average of the weights, which is tested and saved; 0: none.",
    )
    eval_every: int = Field(
        0, ge=0, description="Epochs between evaluations on the first test set; 0: none during training."
    )
    gather: bool = Field(
        False, description="Several processes: losses over the whole batch instead of the share of each process."
    )
    seed: int = Field(0, ge=0, description="Seed of weights, batches and augmentation.")
    deterministic: bool = Field(True, description="Use deterministic kernels, so that a resumed run is bit-equal.")
    channels_last: bool = Field(True, description="Channels-last memory layout.", json_schema_extra=_EXECUTION)
    compile: bool = Field(
        False, description="torch.compile the network, the losses and the augmentation.", json_schema_extra=_EXECUTION
    )
    cuda_graph: bool = Field(
        True,
        description="On a single GPU, record a training step as a CUDA graph and replay it.",
        json_schema_extra=_EXECUTION,
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)
    image_budget_gb: float = Field(
        4.0,
        gt=0,
        description="Decoded images are kept in memory up to this size and streamed from disk above it.",
        json_schema_extra=_EXECUTION,
    )
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="Longest time between saved training states; the end of an epoch also saves one if a tenth of this "
        "time has passed.",
        json_schema_extra=_EXECUTION,
    )
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (),
        description="Also log to these programs, in local files (extras of the same names).",
        json_schema_extra=_EXECUTION,
    )

    @model_validator(mode="after")
    def _warms_up(self) -> Self:
        of = self.schedule_epochs or self.epochs
        if self.warmup_epochs >= of:
            raise ValueError(f"a warm-up of {self.warmup_epochs:g} of {of} epochs: training never reaches `lr`")
        return self

    @model_validator(mode="after")
    def _one_kind_of_extra_images(self) -> Self:
        if self.occluded_copies and self.mask_teacher:
            raise ValueError("mask_teacher and occluded_copies cannot be combined: set one of them to 0")
        return self


class ExtractConfig(Section):
    """Features of query and gallery images."""

    checkpoint: UserPath | None = Field(
        None, description="Checkpoint to use instead of training one: a file, or `builtin`."
    )
    flip: bool = Field(False, description="Average features over the image and its mirror image; recorded in results.")
    amp: Precision = Field("off", description="Precision of the forward pass: off | bf16 | fp16.")
    visibility: Literal["network", "parser"] = Field(
        "network", description="Source of visibility: the network's predicted masks, or the built-in human parser."
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)
    batch_size: Positive = Field(64, description="Images per batch.", json_schema_extra=_EXECUTION)


class MatchingConfig(Section):
    """Distances, ranking and metrics."""

    features: UserPath | None = Field(None, description="Features file to evaluate instead of extracting one.")
    rule: Literal["shrunk", "mean", "sum", "query", "all"] = Field(
        "shrunk", description="Matching rule: how part distances become one (docs/concepts/matching.md)."
    )
    shrink: float = Field(1.0, ge=0, description="m of the shrunk rule: weight of the global distance.")
    global_term: bool = Field(
        True,
        description="Use the global distance in `shrunk` and for pairs without shared parts; off: they rank last.",
    )
    metric: Literal["cosine", "euclidean"] = Field("cosine", description="Distance between two part features.")
    visibility: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: 0 or 1 by the calibrated threshold (eq. 5); soft: proportional below the threshold.",
    )
    average_precision: Literal["mean", "trapezoid"] = Field(
        "mean", description="Definition of average precision (docs/concepts/protocols.md)."
    )
    max_rank: Positive = Field(50, description="Length of the CMC curve.")
    rerank: bool = Field(False, description="k-reciprocal re-ranking; recorded in results.")
    rerank_k1: Positive = Field(20, description="k1 of re-ranking.")
    rerank_k2: Positive = Field(6, description="k2 of re-ranking.")
    rerank_lambda: Fraction = Field(0.3, description="Weight of the original distance in re-ranking.")
    query_expansion: int = Field(
        0, ge=0, description="Nearest neighbours averaged into each query; 0: none. Not with the rules sum and query."
    )
    verification: bool = Field(False, description="Also true positive rates at false positive rates of 1e-4 to 1e-2.")
    bootstrap: int = Field(0, ge=0, description="Bootstrap samples of the queries for 95 % intervals; 0: none.")
    breakdown: bool = Field(True, description="Also metrics by visible fraction, visible parts and camera pair.")
    figures: int = Field(8, ge=0, description="Number of ranking figures.")
    report: bool = Field(False, description="Write a report page (report.html) that shows what was found and why.")
    histogram: bool = Field(
        False, description="Also rank by colour histograms of the images, a baseline without training."
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N | mps.", json_schema_extra=_EXECUTION)

    @model_validator(mode="after")
    def _expansible(self) -> Self:
        if self.query_expansion and self.rule in SUMMING_RULES:
            raise ValueError(
                f"query_expansion cannot be combined with rule = {self.rule!r}, only with shrunk, mean and all"
            )
        return self


class RunConfig(Section):
    """A whole run.

    Examples:
        >>> from sgsfa import load_config
        >>> load_config(preset="baseline").model.kind
        'baseline'
    """

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run's artifact folders.")
    artifacts: UserPath = Field(
        Path("artifacts"),
        description="Folder of the artifacts, relative to the working folder.",
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

    @property
    def teacher_spec(self) -> str | None:
        """The data set that teaches masks, if there is one."""
        return self.train.teacher_data if self.train.mask_teacher and self.model.kind == "sgsfa" else None


def is_execution(info: FieldInfo) -> bool:
    """Return whether a field decides only how the work is done, not its result."""
    return info.json_schema_extra == _EXECUTION


def suggestion(name: str, known: Iterable[str], before: str = "", after: str = "") -> str | None:
    """Return `did you mean ...?`, or None if nothing is near.

    Args:
        name: What was given.
        known: What is valid.
        before: What precedes the name where it is written; it does not count in the comparison.
        after: What follows it.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {before + near[0] + after!r}?" if near else None


def section_of(info: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, None for a plain value."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def known_keys() -> dict[str, FieldInfo]:
    """Return all plain fields of the configuration by dotted key."""
    return dict(_fields(RunConfig, ""))


def _fields(model: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        section = section_of(info)
        if section is None:
            yield prefix + name, info
        else:
            yield from _fields(section, f"{prefix}{name}.")
