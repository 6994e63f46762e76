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
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2")
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
    height: Annotated[int, Field(ge=64, multiple_of=16)] = Field(256, description="Input height in pixels.")
    width: Annotated[int, Field(ge=32, multiple_of=16)] = Field(128, description="Input width in pixels.")
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
    necks: bool = Field(False, description="BNNeck and identity classifier for each semantic feature (strong).")

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
        description="Triplet on the concatenated semantic, spatial or all features, or on the mean distance over the "
        "parts that both images show (`parts`).",
    )
    dynamic: bool = Field(True, description="Choose the spatial features that train by eq. 3; off: always all five.")
    mask_weight: float = Field(1.0, ge=0, description="Factor of L_se inside eq. 11.")
    global_triplet: bool = Field(True, description="Triplet loss on the global feature.")
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
    lr_heads: float = Field(1.0, gt=0, description="Factor of the learning rate of all that is not the backbone.")
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
        description="Probability of pasting a cut-out in front of the person: an object, or another person of the "
        "batch; masks follow.",
    )
    occlude_people: Fraction = Field(
        0.4, description="Share of occluders that are people of the batch, cut out by their body masks."
    )
    truncate: Fraction = Field(
        0.0, description="Probability of keeping only the upper part or one side of an image, stretched to the frame."
    )
    augment_ramp: Fraction = Field(
        0.0, description="Share of the training over which `occlude` and `truncate` rise from 0."
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
            raise ValueError(
                f"query_expansion cannot be combined with rule = {self.rule!r}, only with shrunk, mean and all"
            )
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
