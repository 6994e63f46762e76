"""Crops, occluders and the loss of the parser's training."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tools.parser.crops", reason="run from the repository, where tools/ lies")

from pipeline.parsing.builtin import BuiltinNet
from tools.parser import occluders, shaders, shapes, textures, train
from tools.parser.clothing import BAG, IN_FRONT, Photograph, is_person
from tools.parser.crops import (
    HEIGHT,
    WIDTH,
    Crop,
    CropRules,
    behind,
    cut,
    disguised,
    drawn_out,
    mirrored,
    random_crop,
    random_occluder,
    redressed,
)
from tools.parser.data import Crops, label_shares
from tools.parser.losses import parser_loss, soft_cross_entropy, soft_jaccard
from tools.parser.train import blended, load_start, save_weights


def photograph() -> Photograph:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (200, 150, 3), dtype=np.uint8)
    labels = np.zeros((200, 150), np.uint8)
    labels[20:40, 60:90] = 13
    labels[40:110, 50:100] = 5
    labels[110:180, 55:95] = 9
    return Photograph("drawn", image, labels, (50, 20, 100, 180))


KINDS = {*occluders.TRAINING, *shapes.TRAINING, *occluders.RESERVED}
TEXTURES = {*textures.TRAINING, *shaders.TRAINING, *textures.RESERVED}


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_occluders_fit_the_crop(kind: occluders.Kind) -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        made = kind(rng, 64, 32, lambda height, width: np.zeros((height, width, 3), np.uint8))
        assert made.opacity.shape == (64, 32)
        assert made.picture.shape == (64, 32, 3)
        assert made.picture.dtype == np.uint8
        assert 0 <= made.opacity.min() <= made.opacity.max() <= 1


@pytest.mark.parametrize("texture", sorted(TEXTURES, key=lambda texture: texture.__name__))
def test_textures_fill_what_is_asked_and_no_two_are_alike(texture: textures.Texture) -> None:
    rng = np.random.default_rng(1)
    for height, width in ((40, 30), (57, 33), (256, 128)):
        made = texture(rng, height, width)
        assert made.shape == (height, width, 3)
        assert made.dtype == np.uint8
    again = [texture(rng, 40, 30) for _ in range(4)]
    assert all(each.std() > 0 for each in again)
    assert not np.array_equal(again[0], again[1])


def test_no_kind_or_texture_serves_both_training_and_test() -> None:
    assert not {*occluders.TRAINING, *shapes.TRAINING} & set(occluders.RESERVED)
    assert not {*textures.TRAINING, *shaders.TRAINING} & set(textures.RESERVED)


def test_a_thing_drawn_out_of_shape_stays_where_it_was_and_of_its_size() -> None:
    rng = np.random.default_rng(2)
    opacity = np.zeros((HEIGHT, WIDTH), np.float32)
    opacity[90:170, 30:100] = 1
    straight = occluders.Occluder(opacity, np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    for _ in range(10):
        bent = shapes.bent(rng, straight)
        assert bent.opacity.shape == opacity.shape
        assert 0 <= bent.opacity.min() <= bent.opacity.max() <= 1
        assert bent.opacity.mean() == pytest.approx(opacity.mean(), rel=0.6)
        assert bent.opacity[130, 65] == 1


def test_crops_show_things_of_both_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[str] = set()

    def noted(kind: occluders.Kind) -> occluders.Kind:
        def draw(rng: np.random.Generator, height: int, width: int, paint: occluders.Paint) -> occluders.Occluder:
            drawn.add(kind.__name__)
            return kind(rng, height, width, paint)

        return draw

    for kinds in (occluders, shapes):
        monkeypatch.setattr(kinds, "TRAINING", tuple(map(noted, kinds.TRAINING)))
    rng = np.random.default_rng(4)
    made = [random_occluder(rng, [photograph()], CropRules(unnamed=0.5)) for _ in range(300)]
    # Mostly large enough to hide something, hardly ever all.
    hidden = np.array([each.opacity.mean() for each in made])
    assert (hidden > 0.02).mean() > 0.8
    assert (hidden > 0.95).mean() < 0.1
    assert drawn == {kind.__name__ for kind in KINDS - set(occluders.RESERVED)}


def test_cutting_the_whole_box_keeps_the_labels_where_they_were() -> None:
    crop = cut(photograph(), (50, 20, 100, 180))
    assert crop.labels.shape == (HEIGHT, WIDTH)
    assert set(crop.labels[40:140, 4:-4].ravel()) == {5}
    assert set(crop.labels[150:250, 20:100].ravel()) == {9}


def test_mirroring_exchanges_left_and_right() -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, :10] = 14
    turned = mirrored(Crop(np.zeros((HEIGHT, WIDTH, 3), np.uint8), labels))
    assert set(turned.labels[:, -10:].ravel()) == {15}
    assert not turned.labels[:, :-10].any()


def test_an_occluder_hides_labels_and_pixels() -> None:
    crop = cut(photograph(), (50, 20, 100, 180))
    opacity = np.zeros((HEIGHT, WIDTH), np.float32)
    opacity[128:] = 1
    covered = behind(crop, occluders.Occluder(opacity, np.full((HEIGHT, WIDTH, 3), 7, np.uint8)))
    assert (covered.labels[128:] == IN_FRONT).all()
    assert not is_person(covered.labels[128:]).any()
    assert (covered.image[128:] == 7).all()
    assert np.array_equal(covered.image[:128], crop.image[:128])


def test_label_shares_count_the_pixels_of_a_cell() -> None:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[0:4, 0:3] = 5
    shares = label_shares(labels)
    assert shares.shape == (22, 64, 32)
    assert shares[5, 0, 0] == 0.75
    assert shares[0, 0, 0] == 0.25
    assert np.allclose(shares.sum(0), 1)


def test_crop_numbers_decide_everything() -> None:
    def crops(first: int) -> Crops:
        return Crops([photograph()] * 3, [], share=0.0, rules=CropRules(), seed=5, first=first, last=9)

    for number in range(3, 6):
        for now, again in zip(crops(0)[number], crops(3)[number - 3], strict=True):
            assert torch.equal(torch.as_tensor(now), torch.as_tensor(again))


def test_what_hides_the_person_is_remembered() -> None:
    rng = np.random.default_rng(4)
    rules = CropRules(occluded=1.0, crowd=0.0, backdrop=0.0, truncated=0.0)
    crops = [random_crop(rng, [photograph()], 0, rules) for _ in range(20)]
    for crop in crops:
        assert crop.hidden is not None
        assert not is_person(crop.labels[crop.hidden]).any()
    assert sum(crop.hidden.any() for crop in crops if crop.hidden is not None) > 10


def test_heavy_cells_count_more() -> None:
    logits = torch.zeros(1, 22, 64, 32)
    logits[:, 5] = 4
    target = torch.zeros(1, 22, 64, 32)
    target[:, 5] = 1
    target[:, 5, :8] = 0
    target[:, 0, :8] = 1
    cells = torch.ones(1, 64, 32)
    cells[:, :8] = 4
    weights = torch.ones(22)
    plain = parser_loss(logits, target, weights, jaccard=0.0)
    assert parser_loss(logits, target, weights, jaccard=0.0, cells=cells) > plain
    assert parser_loss(logits, target, weights, jaccard=0.0, cells=torch.ones(1, 64, 32)) == plain


def test_unknown_backgrounds_may_be_of_any_kind() -> None:
    target = torch.zeros(2, 22, 4, 4)
    target[:, 0] = 1
    logits = torch.zeros(2, 22, 4, 4)
    logits[:, IN_FRONT] = 20
    weights = torch.ones(1, 22, 1, 1)
    assert soft_cross_entropy(logits, target, weights, torch.tensor([False, False])) < 1e-6
    assert soft_cross_entropy(logits, target, weights, torch.tensor([True, False])) == pytest.approx(10, abs=0.1)
    assert soft_cross_entropy(logits, target, weights) == pytest.approx(20, abs=0.1)


def test_bags_and_things_in_front_are_no_part_of_the_mask() -> None:
    target = torch.zeros(1, 22, 64, 32)
    target[:, BAG, :32] = 1
    target[:, IN_FRONT, 32:] = 1
    logits = target * 20
    weights = torch.ones(22)
    # The cut at one half is softened, so that an empty mask costs a little.
    assert parser_loss(logits, target, weights, jaccard=1.0) < 0.75
    logits = logits.roll(-5, 1)
    assert parser_loss(logits, target, weights, jaccard=0.0) > 10


def test_another_cloth_changes_pixels_of_one_garment_and_no_label() -> None:
    crop = cut(photograph(), (50, 20, 100, 180))
    changed = redressed(np.random.default_rng(0), crop, 0.5)
    assert np.array_equal(changed.labels, crop.labels)
    touched = (changed.image.astype(int) - crop.image).any(2)
    garments = [label for label in (5, 9) if touched[crop.labels == label].mean() > 0.5]
    assert len(garments) == 1
    assert touched[crop.labels == 13].mean() < 0.3


def test_a_thing_in_disguise_has_a_colour_of_the_person() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 250, np.uint8)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[100:200] = 5
    image[100:200] = (120, 70, 40)
    rng = np.random.default_rng(0)
    opacity = np.zeros((HEIGHT, WIDTH), np.float32)
    opacity[50:150, 20:90] = 1
    thing = occluders.Occluder(opacity, rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    for _ in range(20):
        made = disguised(rng, thing, Crop(image, labels))
        assert np.array_equal(made.opacity, opacity)
        shown = made.picture[opacity >= 0.5].astype(np.float64)
        mean = shown.mean(0)
        assert mean[0] / mean[1] == pytest.approx(120 / 70, rel=0.4)
        assert mean[0] > mean[1] > mean[2]
        assert shown.std() > 5  # it keeps a texture of its own
    empty = Crop(image, np.zeros_like(labels))
    assert disguised(rng, thing, empty) is thing


def test_a_texture_drawn_out_is_finer_across_than_along() -> None:
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    ratios = []
    for _ in range(30):
        made = drawn_out(rng, grain).astype(np.float64)
        assert made.shape == grain.shape
        steps = [np.abs(np.diff(made, axis=axis)).mean() for axis in (0, 1)]
        ratios.append(max(steps) / min(steps))
    assert max(ratios) > 2


def test_random_crops_are_whole() -> None:
    rng = np.random.default_rng(2)
    rules = CropRules(occluded=1.0, crowd=1.0, backdrop=0.5, pictured=0.5, disguised=0.5, aslant=0.5)
    things = [np.full((160, 90, 4), 200, np.uint8)]
    for _ in range(20):
        crop = random_crop(rng, [photograph()] * 2, 0, rules, things)
        assert crop.image.shape == (HEIGHT, WIDTH, 3)
        assert crop.labels.shape == (HEIGHT, WIDTH)
        assert crop.image.dtype == crop.labels.dtype == np.uint8


def test_the_loss_prefers_the_truth() -> None:
    target = torch.zeros(2, 22, 64, 32)
    target[:, 0] = 1
    target[:, :, 16:48, 8:24] = 0
    target[:, 5, 16:48, 8:24] = 1
    weights = torch.ones(22)
    good = parser_loss(target * 12, target, weights, jaccard=1.0)
    bad = parser_loss(-target * 12, target, weights, jaccard=1.0)
    assert 2 * good < bad


def test_soft_jaccard_of_equal_and_disjoint_masks() -> None:
    mask = torch.zeros(1, 16, 8)
    mask[:, :8] = 1
    assert soft_jaccard(mask, mask) < 0.03
    assert soft_jaccard(1 - mask, mask) > 0.95


def test_training_starts_from_weights_of_the_same_network_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, other = BuiltinNet(), BuiltinNet()
    save_weights(tmp_path / "some.safetensors", network)
    load_start(other, tmp_path / "some.safetensors")
    for name, value in network.state_dict().items():
        assert torch.allclose(other.state_dict()[name].float(), value.float(), atol=1e-3), name
    save_weights(tmp_path / "narrow.safetensors", BuiltinNet(width=32))
    with pytest.raises(ValueError, match="is of another network"):
        load_start(other, tmp_path / "narrow.safetensors")


def test_a_blend_lies_between_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shares = {tmp_path / f"{number}.safetensors": share for number, share in enumerate((0.25, 0.5, 0.25))}
    stored = []
    for path in shares:
        network = BuiltinNet()
        save_weights(path, network)
        stored.append({name: value.half().float() for name, value in network.state_dict().items()})
    for name, value in blended(shares).state_dict().items():
        if value.is_floating_point():
            wanted = sum(share * state[name] for share, state in zip(shares.values(), stored, strict=True))
            torch.testing.assert_close(value, wanted)
    with pytest.raises(ValueError, match="do not add up to 1"):
        blended(dict.fromkeys(shares, 0.5))


def test_a_stage_s_weights_are_written_before_the_state_that_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later stages may start from them; a run killed during the measurement must not continue without."""

    class Killed(BaseException):
        pass

    class Stub(train.Trainer):
        def __init__(self) -> None:
            self.network = self.average = BuiltinNet(width=8, fine_width=8)
            self.out, self.done, self.batch, self.frozen, self.seed = tmp_path, 0, 2, 3, 1
            self.decay, self.jaccard, self.half, self.device = 0.9, 1.0, False, torch.device("cpu")
            self.rules, self.things, self.rendered = CropRules(), [], None
            self.photographs = [photograph()] * 2
            self.optimiser = self._new_optimiser()
            self.state = tmp_path / "state.pt"
            self.start = ""

        def _measure(self, stage: train.Stage) -> None:
            raise Killed

    monkeypatch.setattr(train, "_STATE_EVERY", 1)
    stage = train.Stage("only", 1, 1e-3, 1.0, 0.0, 1.0, 0.0)
    with pytest.raises(Killed):
        Stub()._run_stage(stage, 0, warm_up=0)
    assert not (tmp_path / "state.pt").exists()


def test_the_shipped_configuration_is_sound() -> None:
    config = tomllib.loads((Path(train.__file__).with_name("config.toml")).read_text())
    names: list[str] = []
    for table in config["stage"]:
        stage = train.Stage(**table)
        train._check_names(stage.begins_with, names)
        assert abs(sum(stage.begins_with.values()) - 1) < 1e-9 or not stage.begins_with
        CropRules(**{**config["rules"], **stage.rules})
        names.append(stage.name)
    train._check_names(config["blend"], names)
    with pytest.raises(ValueError, match="no earlier stage 'none'"):
        train._check_names({"none": 1.0}, names)
