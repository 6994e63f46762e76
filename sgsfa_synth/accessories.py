"""Hats, glasses, scarves, bags, and what hands hold. Bags count as background in LIP."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sgsfa_synth.body import BodyModel, Rest, sheet
from sgsfa_synth.hair import HEAD_AXIS_Y, azimuth
from sgsfa_synth.identity import Bag, Hat, Identity
from sgsfa_synth.mesh import FloatArray, Label, Material, Mesh, plain_mesh
from sgsfa_synth.patterns import noise_at
from sgsfa_synth.pieces import Piece, draped, follow, lifted, rigid, thing, worn_with
from sgsfa_synth.pose import Pose
from sgsfa_synth.raster import vertex_normals
from sgsfa_synth.solids import Finish, Solid, box, ellipsoid, join, tube
from sgsfa_synth.solids import sheet as surface_of

DARK = (0.015, 0.015, 0.018)
STEEL = (0.25, 0.25, 0.26)


def worn(model: BodyModel, rest: Rest, identity: Identity, outermost: NDArray[np.floating]) -> list[Piece]:
    """Return pieces that move with the body: hat, glasses, scarf, backpack or shoulder bag.

    Args:
        model: Of `body.body_model`.
        rest: The person's body.
        identity: Who.
        outermost: Over the trunk's sheet: how far the outermost cloth stands off, in metres.
    """
    pieces: list[Piece] = []
    if identity.hat is not None:
        pieces += _hat(model, rest, identity.hat)
    if identity.eyewear:
        pieces.append(_glasses(model, rest, dark=identity.eyewear == "sunglasses"))
    if identity.scarf is not None:
        pieces += _scarf(model, rest, outermost, identity.texture)
    if identity.bag is not None and identity.bag.kind == "backpack":
        pieces += _backpack(model, rest, identity.bag, outermost)
    if identity.bag is not None and identity.bag.kind == "shoulder":
        pieces += _shoulder_bag(model, rest, identity.bag, outermost)
    return pieces


def _hat(model: BodyModel, rest: Rest, hat: Hat) -> list[Piece]:
    points = sheet("scalp").chart.points
    z, turn = points[:, 2], azimuth(points)
    front = np.cos(turn)
    # Lower border: level for a brim, over the ears and low at the back for a beanie, high at the back for a cap.
    line = {
        "cap": 0.853 - 0.023 * (1 - front) / 2,
        "beanie": 0.848 - 0.028 * (1 - front) / 2,
        "brim": 0.853 - 0.022 * (1 - front) / 2,
    }[hat.kind]
    height = z - line
    crown = np.clip((z - 0.86) / 0.05, 0, 1)
    if hat.kind == "beanie":
        offset = 0.016 + 0.010 * crown + 0.006 * np.exp(-(((height - 0.02) / 0.018) ** 2))
    elif hat.kind == "cap":
        offset = 0.016 + 0.008 * crown * (0.6 + 0.4 * front)
    else:
        offset = 0.015 + 0.020 * crown
    pieces = [draped(model, "scalp", lifted(rest, "scalp", offset), [height], Material.HAT, Label.HAT)]
    if hat.kind == "cap":
        pieces.append(_on_head(model, rest, _visor(hat.colour)))
    elif hat.kind == "brim":
        pieces.append(_on_head(model, rest, _brim(hat.colour)))
    return pieces


def _visor(colour: tuple[float, float, float]) -> Solid:
    turn = np.linspace(-1.12, 1.12, 19)
    rows = []
    for t in (-1.0, *np.linspace(0, 1, 5)):
        # The first row is tucked up into the cap, so that no forehead shows between the two.
        tuck = 0.011 * max(-t, 0.0)
        reach = max(t, 0.0) * 0.078 * np.cos(turn * 0.95) ** 0.6
        x = (0.091 - tuck + 0.10 * reach) * np.sin(turn)
        y = HEAD_AXIS_Y - (0.109 - tuck) * np.cos(turn) - reach
        z = 0.861 + tuck - 0.16 * reach - 0.012 * np.abs(np.sin(turn)) ** 2
        rows.append(np.stack([x, y, z], -1))
    upper = np.stack(rows)
    return surface_of(np.concatenate([upper, upper[::-1] - [0, 0, 0.003]]), colour, Finish.FABRIC)


def _brim(colour: tuple[float, float, float]) -> Solid:
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    rows = []
    for reach, drop in ((0.0, 0.0), (0.03, 0.003), (0.06, 0.010), (0.06, 0.014), (0.0, 0.008)):
        droop = drop * (1 + 0.5 * np.cos(2 * turn))
        rows.append(
            np.stack(
                [
                    (0.092 + reach) * np.sin(turn),
                    HEAD_AXIS_Y - (0.112 + reach) * np.cos(turn),
                    0.846 + 0.011 * np.cos(turn) - droop,
                ],
                -1,
            )
        )
    return surface_of(np.stack(rows), colour, Finish.FABRIC, wrap=True)


def _on_head(model: BodyModel, rest: Rest, shape: Solid) -> Piece:
    points = shape.vertices.astype(np.float32)
    skinning = rigid(model, len(points), ("head",))
    return thing(shape, follow(model, rest, points), skinning, material=Material.HAT, label=Label.HAT)


def _glasses(model: BodyModel, rest: Rest, *, dark: bool) -> Piece:
    eye = model.head("eye.L")
    front = float(eye[1]) - 0.036
    parts = []
    around = np.linspace(0, 2 * np.pi, 18)
    for side in (-1.0, 1.0):
        centre = np.array([side * (eye[0] + 0.001), front, eye[2] - 0.003])
        outline = np.stack(
            [0.026 * np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.8, 0 * around, 0.020 * np.sin(around)], 1
        )
        outline[:, 1] = 0.010 * (np.abs(outline[:, 0]) / 0.026) * (np.sign(outline[:, 0]) == side)
        if dark:
            parts.append(ellipsoid((0.026, 0.004, 0.020), DARK, Finish.GLASS, rows=8, power=0.8).moved(*centre))
        parts.append(tube(centre + outline, 0.0022 if dark else 0.0016, DARK, Finish.MATT, sides=5, closed=False))
        temple = [
            [side * (eye[0] + 0.027), front + 0.008, eye[2] + 0.004],
            [side * 0.074, front + 0.045, eye[2] + 0.004],
            [side * 0.081, HEAD_AXIS_Y - 0.008, eye[2] + 0.004],
        ]
        parts.append(tube(temple, 0.0022, DARK, Finish.MATT, sides=5))
    bridge = [[-0.010, front + 0.001, eye[2] + 0.004], [0.010, front + 0.001, eye[2] + 0.004]]
    parts.append(tube(bridge, 0.002, DARK, Finish.MATT, sides=5))
    shape = join(parts)
    points = shape.vertices.astype(np.float32)
    label = Label.SUNGLASSES if dark else Label.FACE
    return thing(shape, follow(model, rest, points), rigid(model, len(points), ("head",)), label=label)


def _scarf(model: BodyModel, rest: Rest, outermost: NDArray[np.floating], texture: int) -> list[Piece]:
    points = sheet("collar").chart.points
    x, y, z = points.T
    low = z - (0.632 + 0.55 * np.minimum(y + 0.01, 0.05) + 0.25 * np.abs(x))
    folds = 0.5 + 0.5 * np.sin(z * 190 + 3 * np.arctan2(x, -y))
    offset = 0.018 + 0.5 * float(outermost.mean()) + 0.010 * folds + 0.012 * noise_at(points, 22.0, texture)
    wrap = draped(model, "collar", lifted(rest, "collar", offset), [low], Material.SCARF, Label.SCARF)
    # One end hangs over the chest, on whatever is worn there.
    x, y, z = sheet("torso").chart.points.T
    lean = 0.035 + 0.10 * (0.62 - z)
    fields = [*_between(x - lean, 0.042), z - 0.33, -0.02 - y]
    band = lifted(rest, "torso", outermost + 0.012 + 0.004 * np.sin((x - lean) * 150))
    return [wrap, draped(model, "torso", band, fields, Material.SCARF, Label.SCARF)]


def _between(position: NDArray[np.floating], half_width: float) -> list[NDArray[np.floating]]:
    """Return two edge fields for a band. Not one with an absolute value: its crease would be lost inside a triangle."""
    return [half_width - position, half_width + position]


def _band(
    model: BodyModel, rest: Rest, bag: Bag, offset: NDArray[np.floating], fields: list[NDArray[np.floating]]
) -> Piece:
    """Build a strap: a narrow sheet over the clothes of the trunk."""
    off_arm = 0.05 - 0.1 * sheet("torso").chart.arm_weight
    points = lifted(rest, "torso", offset)
    return draped(
        model, "torso", points, [*fields, off_arm], Material.BAG, Label.BACKGROUND, tuple(0.6 * c for c in bag.colour)
    )


def _back_surface(model: BodyModel, x: NDArray[np.floating], z: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the canonical y of the back at points (x, z): the hindmost skin near them."""
    points = sheet("torso").chart.points
    back = points[(points[:, 1] > 0.0) & (np.abs(points[:, 0]) < 0.2)]
    distance = (x[:, None] - back[None, :, 0]) ** 2 + (z[:, None] - back[None, :, 2]) ** 2
    weight = np.exp(-distance / (2 * 0.02**2)) + 1e-12
    result: NDArray[np.floating] = (weight * back[None, :, 1]).sum(axis=1) / weight.sum(axis=1)
    return result


def _backpack(model: BodyModel, rest: Rest, bag: Bag, outermost: NDArray[np.floating]) -> list[Piece]:
    """Build a sack that starts on the back's own surface, with straps that lie on the shoulders."""
    size = bag.size
    middle, half_height, half_width, depth = 0.42, 0.205 * size, 0.145 * size, 0.125 * size
    columns, rows = 17, 19
    u, v = np.meshgrid(np.linspace(-1, 1, columns), np.linspace(-1, 1, rows))
    x = half_width * u.ravel() * (1 - 0.12 * np.clip(v.ravel(), 0, 1) ** 2)
    z = middle + half_height * v.ravel()
    back = _back_surface(model, 0.75 * x, z)
    # A rounded box: full depth but for the rim; deeper at the bottom than at the top.
    rim = (1 - np.abs(u.ravel()) ** 5) ** 0.4 * (1 - np.abs(v.ravel()) ** 6) ** 0.35
    bulge = depth * (0.82 - 0.18 * v.ravel()) * rim
    body = surface_of(np.stack([x, back + bulge, z], -1).reshape(rows, columns, 3), bag.colour, Finish.FABRIC)
    # The pocket: the same sack, smaller, proud of the lower half.
    inside = (np.abs(u.ravel()) <= 0.8) & (v.ravel() <= 0.1) & (v.ravel() >= -0.9)
    centres: NDArray[np.bool_] = np.all(inside[body.faces], axis=1)
    pocket_rim = (
        np.clip(1 - (np.abs(u.ravel()) / 0.85) ** 6, 0, 1) ** 0.4
        * np.clip(1 - (np.abs(v.ravel() + 0.4) / 0.52) ** 6, 0, 1) ** 0.4
    )
    proud = np.where(inside, 0.035 * size * pocket_rim, 0.0)
    moved = body.vertices + np.stack([0 * x, proud, 0 * x], 1)
    body = Solid(moved, body.faces, np.where(centres[:, None], np.asarray(bag.second), body.colour), body.finish)
    loop = tube(
        [[-0.03, 0.0, 0.0], [-0.02, 0.012, 0.03], [0.02, 0.012, 0.03], [0.03, 0.0, 0.0]],
        0.005,
        DARK,
        Finish.FABRIC,
        sides=6,
    )
    top = middle + half_height
    loop = loop.moved(0.0, float(_back_surface(model, np.zeros(1), np.array([top]))[0]) + 0.03, top - 0.012)
    panel = surface_of(np.stack([x, back - 0.004, z], -1).reshape(rows, columns, 3), bag.colour, Finish.FABRIC)
    shape = join([body, panel, loop])
    points = shape.vertices.astype(np.float32)
    chart = sheet("torso").chart
    behind = (chart.y > 0) & (np.abs(chart.x) < half_width) & (np.abs(chart.z - middle) < half_height)
    clearance = float(outermost[behind].mean())
    placed = follow(model, rest, points, "tights") + np.array([0.0, clearance, 0.0], np.float32)
    sack = thing(shape, placed, worn_with(model, points), material=Material.BAG)
    tx, ty, tz = sheet("torso").chart.points.T
    # From the top of the sack over the shoulder, outwards down the chest, and back under the arm.
    in_front = np.clip((0.02 - ty) / 0.06, 0, 1)
    across = 0.090 + 0.12 * np.clip(0.60 - tz, 0, 0.22) * in_front
    strap = [*_between(np.abs(tx) - across, 0.021), tz - 0.48 + 0.10 * in_front]
    webbing = [*_between(tz - 0.375 + 0.05 * (1 - in_front), 0.010), np.abs(tx) - across + 0.012]
    return [
        sack,
        _band(model, rest, bag, outermost + 0.006, strap),
        _band(model, rest, bag, outermost + 0.004, webbing),
    ]


def _shoulder_bag(model: BodyModel, rest: Rest, bag: Bag, outermost: NDArray[np.floating]) -> list[Piece]:
    side = 1.0 if bag.side == "L" else -1.0
    size = bag.size
    height, width, depth = 0.20 * size, 0.27 * size, 0.085 * size
    hip = model.head("upperleg01.L")
    ids = np.concatenate([sheet("torso").vertices, sheet("legs").vertices])
    level = (np.abs(model.template[ids, 2] - hip[2]) < 0.09) & (model.arm_weight[ids] < 0.3)
    widest = float(np.abs(rest.vertices[ids[level], 0]).max())
    shape = join(
        [
            box((depth, width, height), bag.colour, Finish.FABRIC, bevel=0.025),
            box((depth + 0.012, width * 1.01, height * 0.55), bag.second, Finish.FABRIC, bevel=0.012).moved(
                z=height * 0.47
            ),
        ]
    )
    # It hangs against the hip, tilted a little with it.
    shape = shape.turned(side * 0.08, axis=1)
    place = np.array(
        [
            side * (widest + float(outermost.mean()) + depth * 0.40 - 0.018),
            0.015,
            float(rest.heads[model.bone["upperleg01.L"]][2]) - height * 0.62,
        ]
    )
    points = (shape.vertices + place).astype(np.float32)
    sack = thing(shape, points, rigid(model, len(points), ("root",)), material=Material.BAG)
    # The strap is where a slanting plane cuts the trunk: hip on the bag's side to the other shoulder.
    tx, _, tz = sheet("torso").chart.points.T
    low, high = np.array([side * 0.17, 0.16]), np.array([-side * 0.085, 0.645])
    along = (high - low) / np.linalg.norm(high - low)
    distance = (tx - low[0]) * along[1] - (tz - low[1]) * along[0]
    return [sack, _band(model, rest, bag, outermost + 0.005, [*_between(distance, 0.018), tz - 0.10])]


def _mesh(shape: Solid, offset: NDArray[np.floating], material: Material = Material.BAG) -> Mesh:
    points = shape.vertices + offset
    return plain_mesh(points, shape.faces, vertex_normals(points, shape.faces), shape.colour, material=material)


def held(pose: Pose, hands: Mapping[str, FloatArray], body: Mesh, rng: np.random.Generator) -> list[Mesh]:
    """Return what a pose puts into the hands: a phone or a box."""
    if pose.holds == "phone":
        hand = hands[pose.hand]
        slab = box((0.011, 0.074, 0.148), DARK, Finish.GLASS, bevel=0.004).moved(z=-0.074)
        if pose.kind == "phone":
            slab = slab.turned(-0.5, axis=0)
        else:
            slab = slab.turned(1.1, axis=0).turned(-0.35 if pose.hand == "R" else 0.35)
        return [_mesh(slab, hand + np.array([0.0, -0.012, 0.035]), Material.PLAIN)]
    if pose.holds == "box":
        gap = float(abs(hands["L"][0] - hands["R"][0]))
        middle = (hands["L"] + hands["R"]) / 2
        height = rng.uniform(0.18, 0.30)
        card = np.array([0.40, 0.27, 0.15]) * rng.uniform(0.8, 1.15)
        depth = float(np.clip(rng.uniform(0.22, 0.32), 0.1, 0.5))
        shape = box((max(gap - 0.02, 0.2), depth, height), card, Finish.CARD, bevel=0.004)
        tape = box((0.05, depth + 0.003, height + 0.003), card * 1.25, Finish.CARD, bevel=0.001).moved(z=-0.0015)
        return [_mesh(join([shape, tape]), np.array([middle[0], middle[1] - 0.02, middle[2] - 0.06]), Material.PLAIN)]
    return []


def carried(identity: Identity, pose: Pose, hands: Mapping[str, FloatArray], body: Mesh) -> list[Mesh]:
    """Return the bag in the hand or suitcase beside the feet; when the hands are full they are on the ground."""
    bag = identity.bag
    if bag is None or bag.kind not in ("hand", "suitcase"):
        return []
    busy = pose.kind == "sit" or pose.holds == "box"
    side = 1.0 if bag.side == "L" else -1.0
    hand = hands[bag.side]
    size = bag.size
    if bag.kind == "hand":
        width, height, depth = 0.30 * size, 0.23 * size, 0.10 * size
        sack = box((depth, width, height), bag.colour, Finish.FABRIC, bevel=0.02)
        flap = box((depth + 0.008, width * 1.005, height * 0.35), bag.second, Finish.FABRIC, bevel=0.008).moved(
            z=height * 0.67
        )
        arc = np.linspace(0, np.pi, 9)
        grip = 0.12 * size
        handle = tube(
            np.stack([0 * arc, 0.08 * np.cos(arc), height - 0.01 + grip * np.sin(arc)], 1),
            0.008,
            bag.second,
            Finish.FABRIC,
            sides=6,
        )
        shape = join([sack, flap, handle])
        if busy:
            return [_mesh(shape, np.array([side * 0.42, -0.12, 0.0]))]
        place = np.array([hand[0], hand[1], max(hand[2] - height - grip + 0.012, 0.0)])
        return [_mesh(shape, place)]
    width, height, depth = 0.40 * size, 0.56 * size, 0.23 * size
    trunk = box((depth, width, height), bag.colour, Finish.PAINT, bevel=0.03).moved(z=0.035)
    ribs = [
        box((depth + 0.006, 0.012, height * 0.8), np.asarray(bag.colour) * 0.7, Finish.PAINT, bevel=0.003).moved(
            y=k * width * 0.2, z=0.035 + height * 0.1
        )
        for k in (-1, 0, 1)
    ]
    wheels = [
        ellipsoid((0.018, 0.025, 0.025), DARK, Finish.RUBBER, rows=6, sides=10).moved(
            x=i * depth * 0.35, y=j * width * 0.38, z=0.025
        )
        for i in (-1, 1)
        for j in (-1, 1)
    ]
    place = np.array([hand[0] + side * 0.03, hand[1] + 0.10, 0.0])
    if busy:
        place = np.array([side * 0.48, 0.02, 0.0])
    top = 0.035 + height
    reach = top + 0.02 if busy else max(float(hand[2]), top + 0.02)
    inner = np.array([hand[0] - place[0], hand[1] - place[1]]) if not busy else np.zeros(2)
    rods = [
        tube([[0, y, top - 0.03], [inner[0], inner[1] + y * 0.8, reach]], 0.007, STEEL, Finish.METAL, sides=6)
        for y in (-0.07, 0.07)
    ]
    grip_bar = tube(
        [[inner[0], inner[1] - 0.065, reach], [inner[0], inner[1] + 0.065, reach]], 0.012, DARK, Finish.RUBBER, sides=8
    )
    return [_mesh(join([trunk, *ribs, *wheels, *rods, grip_bar]), place)]
