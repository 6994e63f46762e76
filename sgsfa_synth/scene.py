"""One image: a person in a place, what stands behind and before them, and the true label of every pixel.

Colour and label of a pixel come from one z-buffer, so they cannot disagree. Everything random is drawn from streams
named by (seed, identity, camera, shot), so an image does not depend on which others are made, or when.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.config import SynthConfig
from pipeline.runtime import seeds
from sgsfa_synth import light as lighting
from sgsfa_synth.backdrop import Place, Stand, paint_backdrop
from sgsfa_synth.camera import Extent, Site, View, Window
from sgsfa_synth.cameras import Camera, FixedCamera
from sgsfa_synth.coverage import VISIBLE_RANGE, Coverage
from sgsfa_synth.degradation import Degradation, degrade, develop
from sgsfa_synth.garments import dress, seat
from sgsfa_synth.identity import Identity, sample_identity
from sgsfa_synth.jit import njit
from sgsfa_synth.light import Light, Tone
from sgsfa_synth.mesh import Label, Material, Mesh, merge
from sgsfa_synth.pose import sample_pose
from sgsfa_synth.props import VARIANTS, Prop, prop
from sgsfa_synth.randomise import RandomCamera, varied_identity
from sgsfa_synth.raster import GBuffer, interpolate, rasterise
from sgsfa_synth.shading import Fragments, bend_normals, surface
from sgsfa_synth.solids import Finish

Random = np.random.Generator
Array = npt.NDArray[np.float64]
Array32 = npt.NDArray[np.float32]

PASSERS_BY = 400
"""Different people who occlude others."""


@dataclass(frozen=True, slots=True)
class Extras:
    """Other people in the images.

    Attributes:
        people: How many different ones there are.
        background: Share of images with one in the background.
    """

    people: int = PASSERS_BY
    background: float = 0.0


# Few, because dressing a new person takes longer than rendering the image.
_RANDOM_EXTRAS = Extras(people=48, background=0.25)

_OCCLUDERS = {
    "person": 0.22, "car": 0.09, "bicycle": 0.07, "railing": 0.07, "fence": 0.05, "plant": 0.06, "bush": 0.05,
    "hedge": 0.03, "planter": 0.04, "boxes": 0.05, "pillar": 0.06, "tree": 0.05, "post": 0.02, "sign": 0.05,
    "bin": 0.03, "cart": 0.03, "parasol": 0.02, "barrier": 0.03,
}  # fmt: skip
_FURNITURE = {
    "car": 0.20, "bicycle": 0.12, "plant": 0.08, "bush": 0.10, "hedge": 0.05, "tree": 0.08, "railing": 0.06,
    "fence": 0.05, "pillar": 0.03, "post": 0.07, "sign": 0.06, "bin": 0.05, "parasol": 0.02, "planter": 0.05,
    "barrier": 0.02, "bench": 0.06,
}  # fmt: skip
_INDOOR_FURNITURE = {"plant": 0.45, "bin": 0.15, "pillar": 0.15, "sign": 0.1, "bench": 0.15}
_INDOOR_OCCLUDERS = {
    "person": 0.35,
    "plant": 0.15,
    "boxes": 0.15,
    "pillar": 0.12,
    "sign": 0.08,
    "bin": 0.05,
    "cart": 0.10,
}
# Their pole must be in the picture, or what it carries seems to float.
_POLED = frozenset({"parasol"})

_KINDS_TRIED = 7
_PLACES_TRIED = 6
_AO_REACH = 0.25
_LABELS = len(Label)

# A look-up from materials of people to finishes.
_FINISH = np.full(max(Material) + 1, Finish.MATT, np.uint8)
_FINISH[Material.SKIN] = Finish.SKIN
_FINISH[Material.EYE] = Finish.SKIN
_FINISH[Material.HAIR] = Finish.HAIR
_FINISH[Material.LOCKS] = Finish.HAIR
_FINISH[Material.SHOE] = Finish.SKIN
_FINISH[Material.BAG] = Finish.SKIN


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What is the same in all images of a data set.

    Attributes:
        height: Pixels.
        width: Pixels.
        supersample: Samples a pixel along each axis.
        tone: As in `config.SynthConfig`.
        backdrop: As in `config.SynthConfig`.
        randomise: As in `config.SynthConfig`.
        degrade: Off: a clean image.
        flat: Paint each pixel in its label's colour of `palette()` instead, without light and faults: for tests.
    """

    height: int = 256
    width: int = 128
    supersample: int = 2
    tone: float = 0.05
    backdrop: float = 0.88
    randomise: frozenset[str] = frozenset()
    degrade: bool = True
    flat: bool = False

    @classmethod
    def of(cls, config: SynthConfig) -> SceneSettings:
        """Return the settings of a configured data set."""
        kinds = frozenset(config.randomise)
        return cls(config.height, config.width, tone=config.tone, backdrop=config.backdrop, randomise=kinds)


@dataclass(frozen=True, slots=True)
class Rendered:
    """An image and what is true about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8, `mesh.Label`; bags, occluders and other people are background.
        visible: Share of the person that is seen, neither hidden nor outside the picture.
        truncated: Share of the person that is outside the picture.
        occluder: Kind of what was put before the person, or None.
        pose: Of `pose.POSES`.
        outfit: Of the identity.
        quality: JPEG quality for the writer of the file.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    visible: float
    truncated: float
    occluder: str | None
    pose: str
    outfit: str
    quality: int


@dataclass(frozen=True, slots=True)
class Item:
    """Something in a scene: a person (with an identity) or a prop (with finishes)."""

    mesh: Mesh
    identity: Identity | None = None
    finish: npt.NDArray[np.uint8] | None = None

    def moved(self, yaw: float, x: float, y: float) -> Item:
        """Return turned about the vertical axis and then shifted along the ground."""
        return replace(self, mesh=self.mesh.moved(yaw, (x, y, 0.0)))


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that decides an image of `size` (height, width) before it is drawn; the first item is the person."""

    items: tuple[Item, ...]
    place: Place
    stand: Stand
    view: View
    window: Window
    size: tuple[int, int]
    light: Light
    tone: Tone
    degradation: Degradation
    visible: float
    truncated: float
    occluder: str | None
    pose: str


def render(
    seed: int, identity_index: int, camera: int, shot: int, *, occluded: bool = False, settings: SceneSettings
) -> Rendered:
    """Render one image.

    Args:
        seed: Of the data set.
        identity_index: Of the person, see `identity.sample_identity`.
        camera: Number of the camera.
        shot: Number of the image of this person in this camera.
        occluded: Put something before the person, so that the visible share lies in `VISIBLE_RANGE`.
        settings: Of the data set.
    """
    words = (identity_index, camera, shot)
    kinds = settings.randomise
    identity = (varied_identity if "clothes" in kinds else sample_identity)(seed, identity_index)
    fixed = FixedCamera(seed, camera, (settings.height, settings.width), settings.tone, settings.backdrop)
    taken_by: Camera = fixed
    if kinds:
        taken_by = RandomCamera(seeds.rng(seed, "shot", *words), fixed, settings.tone, kinds)
    extras = _RANDOM_EXTRAS if "scene" in kinds else Extras()
    scene = compose(identity, seed, taken_by, words, occluded=occluded, extras=extras)
    return draw(scene, settings, seeds.rng(seed, "sensor", *words))


def compose(
    identity: Identity,
    seed: int,
    camera: Camera,
    words: Sequence[int],
    *,
    occluded: bool,
    extras: Extras = Extras(),
) -> Scene:
    """Decide everything about an image: pose, place, light, furniture, occluder, box.

    Args:
        identity: Of the person.
        seed: Of the data set.
        camera: That takes the image.
        words: Name of the image's random streams.
        occluded: Put something before the person.
        extras: Other people in the images.
    """

    def stream(name: str) -> Random:
        return seeds.rng(seed, name, *words)

    random = stream("person")
    site = camera.site
    pose = sample_pose(random)
    yaw = site.yaw + random.normal(0, 0.35) + (math.pi if random.random() < site.both_ways else 0.0)
    body = Item(dress(identity, pose, random), identity)
    items = [body.moved(yaw, 0.0, 0.0)]
    if (spot := seat(identity, pose)) is not None:
        items.append(_seat_under(spot.height, (spot.front_y + spot.back_y) / 2, random).moved(yaw, 0.0, 0.0))

    random = stream("place")
    place = camera.place(random)
    stand, view = _stand(site, place, random)
    light = lighting.scene_light(random, place.azimuth + stand.bearing, place.elevation, place.sun, place.warmth)

    plane, _ = view.project(items[0].mesh.vertices[items[0].mesh.visible_vertices])
    extent = Extent.of(plane)
    random = stream("furniture")
    room = (stand.wall / math.cos(min(abs(place.wall_yaw - stand.bearing), 1.2)) - stand.distance) * 0.8
    items += _furniture(random, place, room, items)
    if extras.background and random.random() < extras.background:
        items += _bystander(random, _passer_by(random, seed, extras.people), room, items[0])
    coverage = Coverage([item.mesh for item in items], view, extent)

    random = stream("occluder")
    kind = None
    if occluded:
        draw_person = functools.partial(_passer_by, random, seed, extras.people)
        kind, blocker = _occlude(random, draw_person, place, stand.distance, items, coverage)
        items.append(blocker)
        coverage = Coverage([item.mesh for item in items], view, extent)

    random = stream("crop")
    window = camera.box(random, extent, coverage, occluded=occluded)
    visible, truncated = coverage.seen_in(window)
    random = stream("camera")
    return Scene(
        items=tuple(items),
        place=place,
        stand=stand,
        view=view,
        window=window,
        size=camera.size,
        light=light,
        tone=_moment(camera.tone, light, random),
        degradation=camera.degradation(random),
        visible=visible,
        truncated=truncated,
        occluder=kind,
        pose=pose.kind,
    )


def draw(scene: Scene, settings: SceneSettings, noise: Random) -> Rendered:
    """Draw a scene.

    Args:
        scene: Of `compose`.
        settings: Of the data set.
        noise: Stream for the sensor's noise.
    """
    factor = settings.supersample
    height, width = scene.size[0] * factor, scene.size[1] * factor
    mesh, owner = merge([item.mesh for item in scene.items])
    plane, inverse_depth = scene.view.project(mesh.vertices)
    pixels = scene.window.pixels(plane, height, width)
    buffer = rasterise(pixels, inverse_depth, mesh.faces, mesh.edges, height, width)
    radiance, labels = _shaded(scene, mesh, owner, buffer, flat=settings.flat)
    labels = vote(labels, factor)
    small = np.asarray(cv2.resize(radiance, scene.size[::-1], interpolation=cv2.INTER_AREA), np.float32)
    if settings.flat:
        image = np.rint(small * 255).astype(np.uint8)
    else:
        shown = develop(small, scene.tone)
        how = scene.degradation if settings.degrade else Degradation(0.0, 0.0, 1.0, 0.0, 95)
        image = degrade(shown, how, noise)
    identity = scene.items[0].identity
    return Rendered(
        image=image,
        labels=labels,
        visible=scene.visible,
        truncated=scene.truncated,
        occluder=scene.occluder,
        pose=scene.pose,
        outfit=identity.outfit if identity is not None else "",
        quality=scene.degradation.quality,
    )


# ------------------------------------------------------------------------------------------------ composing


def _stand(site: Site, place: Place, random: Random) -> tuple[Stand, View]:
    """Return where the person stands in the place, and how the camera sees them."""
    distance = site.distance * random.uniform(0.88, 1.10)
    bearing = random.uniform(-0.20, 0.20)
    wall = site.distance + place.wall_gap
    # The wall must stay a step behind the person, wherever they stand.
    towards = math.cos(place.wall_yaw) * math.cos(bearing) + math.sin(place.wall_yaw) * math.sin(bearing)
    distance = min(distance, (wall - 0.9) / max(towards, 0.3))
    target = (float(random.normal(0, 0.10)), 0.0, 0.85)
    view = View.looking((0.0, -distance, site.height), target, site.roll + random.normal(0, 0.008))
    return Stand(bearing, distance, wall), view


def _moment(tone: Tone, light: Light, random: Random) -> Tone:
    """Return the camera's tone at one moment: automatic exposure and white balance wander a little."""
    drift = random.normal(0, 1, 2)
    return replace(
        tone,
        exposure=float(tone.exposure * lighting.metered(light) * np.exp(0.08 * drift[0])),
        gain=tone.gain * np.exp(0.025 * drift[1] * np.array([1.0, 0.0, -1.0])),
    )


def _seat_under(height: float, middle: float, random: Random) -> Item:
    """Return a seat whose top is at `height`, about `middle` metres behind the origin of a person who faces -y."""
    kind = str(random.choice(["bench", "stool", "block"], p=[0.5, 0.25, 0.25]))
    seat_prop = prop(kind, int(random.integers(VARIANTS)))
    mesh = seat_prop.mesh
    points = mesh.vertices * np.array([1.0, 1.0, height / 0.45], np.float32)
    shift = np.array([random.uniform(-0.3, 0.3) if kind != "stool" else 0.0, middle + 0.03, 0.0], np.float32)
    return Item(replace(mesh, vertices=points + shift), finish=seat_prop.finish)


def _draw_kind(random: Random, shares: dict[str, float]) -> str:
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    return names[int(random.choice(len(names), p=weights / weights.sum()))]


def _as_item(thing: Prop) -> Item:
    return Item(thing.mesh, finish=thing.finish)


def _yaw_of(kind: str, random: Random) -> float:
    """Return how a prop is turned: long ones lie across the view, round ones anyhow."""
    spread = {"car": 0.25, "railing": 0.3, "fence": 0.3, "hedge": 0.25, "barrier": 0.3, "bicycle": 0.4, "planter": 0.3}
    if kind in spread:
        return float(random.normal(0, spread[kind]) + (math.pi if random.random() < 0.5 else 0.0))
    if kind in ("sign", "boxes", "cart", "bench", "pillar"):
        return float(random.normal(0, 0.5))
    return float(random.uniform(0, 2 * math.pi))


def _furniture(random: Random, place: Place, room: float, items: Sequence[Item]) -> list[Item]:
    """Return up to two things behind the person, none of them in the wall or in each other."""
    behind = max(float(item.mesh.vertices[:, 1].max()) for item in items)
    indoor = place.ground == "indoor"
    added: list[Item] = []
    for _ in range(int(random.choice([0, 1, 2], p=[0.50, 0.36, 0.14]))):
        kind = _draw_kind(random, _INDOOR_FURNITURE if indoor else _FURNITURE)
        thing = _as_item(prop(kind, int(random.integers(VARIANTS)))).moved(_yaw_of(kind, random), 0.0, 0.0)
        low, high = thing.mesh.vertices.min(0), thing.mesh.vertices.max(0)
        depth = float(high[1] - low[1])
        if room < behind + depth + 0.6:
            continue
        y = float(random.uniform(behind + 0.35, min(room - depth, behind + 7.0)) - low[1])
        x = float(random.normal(0, 0.75 + 0.10 * y)) + (math.copysign(1.2, random.normal()) if kind == "car" else 0.0)
        if kind in _POLED:
            x *= 0.4
        placed = thing.moved(0.0, x, y)
        if not any(_overlap(placed.mesh, other.mesh) for other in added):
            added.append(placed)
    return added


def _bystander(random: Random, other: Item, room: float, person: Item) -> list[Item]:
    """Return another person, placed a few steps behind the first, if there is room."""
    behind = float(person.mesh.vertices[:, 1].max()) + 0.5
    if room < behind + 0.5:
        return []
    other = other.moved(float(random.uniform(0, 2 * math.pi)), 0.0, 0.0)
    y = float(random.uniform(behind, min(room - 0.4, behind + 6.0)))
    return [other.moved(0.0, float(random.normal(0, 0.5 + 0.08 * y)), y)]


def _overlap(first: Mesh, second: Mesh) -> bool:
    low = np.maximum(first.vertices.min(0), second.vertices.min(0))
    high = np.minimum(first.vertices.max(0), second.vertices.max(0))
    return bool((low < high).all())


def _occlude(
    random: Random,
    draw_person: Callable[[], Item],
    place: Place,
    distance: float,
    items: Sequence[Item],
    coverage: Coverage,
) -> tuple[str, Item]:
    """Find something to put before the person that leaves a share of them visible.

    A wanted share is drawn; of each kind a few positions are tried, and the one that comes nearest is taken if it is
    in range. The number of tries is bounded; the last resort is a pile of parcels scaled to hide the wanted share.
    """
    low, high = VISIBLE_RANGE
    wanted = random.uniform(low + 0.08, high - 0.08)
    front = min(float(item.mesh.vertices[:, 1].min()) for item in items[:2])
    for _ in range(_KINDS_TRIED):
        kind = _draw_kind(random, _INDOOR_OCCLUDERS if place.ground == "indoor" else _OCCLUDERS)
        thing = draw_person() if kind == "person" else _as_item(prop(kind, int(random.integers(VARIANTS))))
        best: tuple[float, Item] | None = None
        for _ in range(_PLACES_TRIED):
            turned = thing.moved(_yaw_of(kind, random), 0.0, 0.0)
            least, most = turned.mesh.vertices.min(0), turned.mesh.vertices.max(0)
            # The nearer the camera, the steeper it looks down: what stands too near hides nothing but the feet.
            gap = random.uniform(0.08, min(1.5, 0.22 * distance))
            reach = (float(most[0]) - float(least[0])) / 2
            aside = 0.12 if kind in _POLED else 0.75 * reach + 0.18
            x = random.uniform(-1, 1) * aside - (float(most[0]) + float(least[0])) / 2
            placed = turned.moved(0.0, x, front - gap - float(most[1]))
            if float(placed.mesh.vertices[:, 1].min()) < -distance + 0.8:
                continue
            share = coverage.share(coverage.hidden | coverage.hides(placed.mesh))
            if low + 0.01 < share < high - 0.01 and (best is None or abs(share - wanted) < abs(best[0] - wanted)):
                best = share, placed
        if best is not None:
            return kind, best[1]
    return "boxes", _fallback(random, wanted, front, coverage)


def _fallback(random: Random, wanted: float, front: float, coverage: Coverage) -> Item:
    """Return parcels wider than the person, stacked just as high as hides the wanted share (found by halving)."""
    pile = _as_item(prop("boxes", int(random.integers(VARIANTS))))
    size = pile.mesh.vertices.max(0) - pile.mesh.vertices.min(0)
    span = 1.5 / float(size[0])

    def scaled(height: float) -> Item:
        factor = np.array([span, 0.4 / float(size[1]), height / float(size[2])], np.float32)
        shape = replace(pile.mesh, vertices=pile.mesh.vertices * factor)
        return replace(pile, mesh=shape).moved(0.0, 0.0, front - 0.4)

    short, tall = 0.05, 2.2
    for _ in range(9):
        middle = (short + tall) / 2
        if coverage.share(coverage.hidden | coverage.hides(scaled(middle).mesh)) > wanted:
            short = middle
        else:
            tall = middle
    return scaled(tall)


def _passer_by(random: Random, seed: int, people: int) -> Item:
    index = int(random.integers(people))
    other = sample_identity(seed, index, population="passers-by")
    kinds = ["walk", "stand", "phone", "pocket"]
    return Item(dress(other, sample_pose(random, str(random.choice(kinds, p=[0.6, 0.2, 0.1, 0.1]))), random), other)


# ------------------------------------------------------------------------------------------------ drawing


@functools.lru_cache(maxsize=1)
def palette() -> npt.NDArray[np.uint8]:
    """Return (20, 3) RGB of the labels: LIP's colours, as in most parsers' pictures."""
    colours = "000000 800000 ff0000 005500 aa0033 ff5500 000055 0077dd 555500 005555 553300 345680 008000 0000ff"
    colours += " 33aadd 00ffff 55ffaa aaff55 ffff00 ffaa00"
    table = np.array([list(bytes.fromhex(colour)) for colour in colours.split()], np.uint8)
    table.setflags(write=False)
    return table


def _shaded(
    scene: Scene, mesh: Mesh, owner: npt.NDArray[np.int32], buffer: GBuffer, *, flat: bool
) -> tuple[Array32, npt.NDArray[np.uint8]]:
    """Return the radiance (H, W, 3) and labels (H, W) at the buffer's own resolution."""
    rows, columns = np.nonzero(buffer.face >= 0)
    faces = buffer.face[rows, columns]
    owners = owner[faces]
    count = len(faces)
    albedo = np.zeros((count, 3), np.float32)
    labels = np.zeros(count, np.uint8)
    finish = np.zeros(count, np.uint8)
    relief = np.zeros(buffer.face.shape, np.float32)
    starts = np.cumsum([0] + [len(item.mesh.faces) for item in scene.items]).astype(np.int32)
    for number, item in enumerate(scene.items):
        mine = np.flatnonzero(owners == number)
        if len(mine) == 0:
            continue
        local = faces[mine] - starts[number]
        if item.identity is None:
            albedo[mine] = item.mesh.colour[local]
            if item.finish is not None:
                finish[mine] = item.finish[local]
            continue
        look = surface(item.mesh, item.identity, Fragments(local, buffer.weights[rows[mine], columns[mine]]))
        albedo[mine] = look.albedo
        relief[rows[mine], columns[mine]] = look.bump
        finish[mine] = _FINISH[item.mesh.material[local]]
        if number == 0:
            labels[mine] = look.label
    picture = np.zeros(buffer.face.shape, np.uint8)
    picture[rows, columns] = labels
    if flat:
        return (palette()[picture] / np.float32(255)).astype(np.float32), picture

    fields = interpolate(buffer, mesh.faces, np.concatenate([mesh.vertices, mesh.normals, mesh.canonical], 1))
    normals = bend_normals(unit(fields[..., 3:6]), fields[..., :3], relief)
    shadows = lighting.cast_shadows(mesh, scene.light.direction)
    lit = np.empty((count, 3), np.float32)
    lighting.shade(
        albedo,
        normals[rows, columns],
        fields[rows, columns, :3],
        fields[rows, columns, 6:9],
        finish,
        _openness(buffer, scene)[rows, columns],
        scene.view.position,
        lighting.FINISHES,
        scene.light.direction,
        scene.light.sun,
        scene.light.sky,
        scene.light.bounce,
        shadows.depth,
        shadows.axes,
        shadows.frame,
        lit,
    )
    radiance = paint_backdrop(
        scene.place,
        scene.stand,
        scene.view,
        scene.window,
        scene.light,
        shadows,
        lighting.contact(mesh),
        lighting.CONTACT_EXTENT,
        buffer.face >= 0,
    )
    radiance[rows, columns] = lit
    return radiance, picture


def _openness(buffer: GBuffer, scene: Scene) -> Array32:
    """Return ambient occlusion from depths: a pixel that lies behind its surroundings sees less of the sky."""
    height, width = buffer.face.shape
    nearest = scene.stand.distance + 0.6
    with np.errstate(divide="ignore"):
        depth = np.where(buffer.face >= 0, 1.0 / buffer.inverse_depth, nearest).astype(np.float32)
    depth = np.minimum(depth, nearest)
    half = cv2.resize(depth, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(half, (0, 0), height / 110)
    around = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    hidden = np.clip(depth - around, 0.0, _AO_REACH)
    return np.asarray(np.clip(1.0 - 1.7 * hidden, 0.6, 1.0), np.float32)


def unit(vectors: Array32) -> Array32:
    """Return vectors (..., 3) scaled to length 1; zero stays zero."""
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return np.asarray(vectors / np.maximum(length, np.float32(1e-12)), np.float32)


def vote(labels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Return the most frequent label of each pixel's `factor` x `factor` samples, the smaller one in a tie."""
    if factor == 1:
        return labels
    height, width = labels.shape[0] // factor, labels.shape[1] // factor
    out = np.zeros((height, width), np.uint8)
    _vote(labels, factor, out)
    return out


@njit
def _vote(labels: npt.NDArray[np.uint8], factor: int, out: npt.NDArray[np.uint8]) -> None:
    counts = np.zeros(_LABELS, np.int64)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            counts[:] = 0
            for j in range(factor):
                for i in range(factor):
                    counts[labels[y * factor + j, x * factor + i]] += 1
            best = 0
            for label in range(1, counts.shape[0]):
                if counts[label] > counts[best]:
                    best = label
            out[y, x] = best
