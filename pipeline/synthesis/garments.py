"""Clothes over the body, and `dress`: the whole posed person.

Where cloth ends is a field over the body's canonical surface, positive where it covers (in metres or limb lengths), so
that a hem is one smooth curve on everybody. Skin under cloth is left out, a little way in from each border.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.synthesis.accessories import carried, held, worn
from pipeline.synthesis.body import Rest, body_model, bone_transforms, shaped, sheet, skin
from pipeline.synthesis.hair import covered_scalp, hair_pieces
from pipeline.synthesis.identity import Coat, Identity, Top
from pipeline.synthesis.mesh import FloatArray, IntArray, Label, Material, Mesh, merge
from pipeline.synthesis.patterns import noise_at
from pipeline.synthesis.pieces import Piece, assembled, draped, lifted
from pipeline.synthesis.pose import Arm, Pose, rotations
from pipeline.synthesis.raster import vertex_normals

OVERLAP = 0.012
"""How far skin goes on under the border of cloth, in metres."""

Field = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Wardrobe:
    """One person's clothed body in the rest pose, ready to be posed.

    Args:
        rest: Body shape.
        piece: Everything worn.
        soles: (n,) vertices of `piece` that can touch the ground.
    """

    rest: Rest
    piece: Piece
    soles: IntArray


@dataclass(frozen=True, slots=True)
class Seat:
    """Where somebody sits: put the top of a bench at `height`, between `front_y` and `back_y` (metres, person faces -y)."""

    height: float
    front_y: float
    back_y: float


class _Outfit:
    """Builds the pieces of one identity from the skin outwards and remembers what they cover."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.model = body_model()
        self.rest = shaped(self.model, identity.shape)
        self.pieces: list[Piece] = []
        self.x, self.y, self.z = self.model.template.T
        self.hip = float(self.model.head("upperleg01.L")[2])
        self.shoulder = float(self.model.head("upperarm01.L")[2])
        self.covered = np.full(len(self.z), -1, np.float32)
        """Over the body: how far inside some cloth, positive where skin need not be drawn."""
        self.thickness = 0.012
        """How far the outermost cloth stands off the trunk."""

    def cover(self, *fields: Field) -> None:
        """Note that cloth covers where all fields are positive."""
        self.covered = np.maximum(self.covered, np.minimum.reduce(fields)).astype(np.float32)

    def add(self, name: str, offset: Field | float, fields: list[Field], material: Material, label: Label) -> None:
        """Drape a sheet."""
        self.pieces.append(draped(self.model, name, lifted(self.rest, name, offset), fields, material, label))

    def on(self, name: str, field: Field) -> Field:
        """A field over the body, at the vertices of a sheet."""
        values: Field = field[sheet(name).vertices]
        return values

    # Fields over the whole body.

    def neckline(self, neck: str) -> Field:
        """Positive below a plane through the neck, lower in front; a V goes down to the breastbone."""
        height, slope = {"round": (0.640, 0.55), "v": (0.640, 0.62), "high": (0.694, 0.20)}[neck]
        line = height + slope * self.y + 0.25 * np.abs(self.x)
        if neck == "v":
            line = line - np.clip(0.10 - 1.5 * np.abs(self.x), 0, 1) * np.clip(-(self.y + 0.02) * 30, 0, 1)
        return np.asarray(line - self.z)

    def sleeves(self, end: float) -> Field:
        """Positive on the trunk and on the arms as far as `end`."""
        if end < 0:
            # Arm holes follow the skinning weights, the one smooth coordinate over the shoulder.
            return np.asarray((0.42 - self.model.arm_weight) * 0.1)
        return np.asarray((end - self.model.arm) * 0.5)

    def front_gap(self, half_width: float, spread: float = 0.0) -> Field:
        """Positive beside an open front; `spread` widens it downwards."""
        if half_width < 0:
            return np.ones(len(self.x), np.float32)
        width = half_width * (1 + spread * np.clip((self.hip + 0.1 - self.z) / 0.6, 0, 1))
        return np.asarray(np.abs(self.x) - width + 4 * np.clip(self.y + 0.03, 0, 1))

    # Pieces, from the inside outwards.

    def feet(self) -> None:
        shoes = self.identity.shoes
        leg = self.model.leg
        if shoes.sock is not None:
            field = (leg - shoes.sock_height) * 0.8
            self.add("feet", 0.003, [self.on("feet", field)], Material.SOCK, Label.SOCKS)
            self.cover(field)
        if shoes.kind == "boot":
            opening = (leg - 0.74) * 0.8
        else:
            ankle = self.model.head("foot.L")[2]
            top = ankle + (0.002 if shoes.kind == "trainer" else -0.016)
            # Lower in front of the ankle, up again at the tongue.
            opening = top - 0.15 * np.clip(-self.y - 0.01, 0, 0.08) - self.z
            opening = np.where(leg < 0.5, -1, opening)
        points = self.model.template[sheet("feet").vertices]
        ground = points[:, 2].min()
        welt = np.clip((ground + 0.034 - points[:, 2]) / 0.02, 0, 1)
        toe = np.clip((-points[:, 1] - 0.08) / 0.1, 0, 1)
        offset = 0.006 + 0.006 * welt + 0.004 * toe + (0.004 if shoes.kind == "boot" else 0.0)
        self.add("feet", offset, [self.on("feet", opening)], Material.SHOE, Label.LEFT_SHOE)
        self.cover(opening)

    def legs(self) -> None:
        identity, leg = self.identity, self.model.leg
        bottom = identity.bottom
        label = Label.JUMPSUITS if identity.garment == "jumpsuit" else Label.PANTS
        below_waist = self.hip + 0.095 - self.z
        ends = (bottom.length - leg) * 0.8
        off_arm = np.where(self.model.arm_weight > 0.3, -1, 1)
        on_legs = leg[sheet("legs").vertices]
        t = np.clip((on_legs - 0.15) / max(bottom.length - 0.15, 0.2), 0, 1)
        points = self.model.template[sheet("legs").vertices]
        # Cloth gathers over the shoe in long trousers.
        stack = 0.006 * np.clip((on_legs - 0.86) / 0.1, 0, 1) * np.sin(on_legs * 95) if bottom.length > 0.9 else 0.0
        offset = 0.007 + bottom.wide * t**1.3 + 0.004 * noise_at(points, 14.0, identity.texture) + stack
        if identity.garment == "shorts":
            offset = offset + 0.016 * t
        self.add("legs", offset, [self.on("legs", below_waist), self.on("legs", ends)], Material.BOTTOM, label)
        self.cover(below_waist, ends, off_arm)

    def skirt(self, *, dress: bool) -> None:
        bottom = self.identity.bottom
        ids = sheet("skirt").vertices
        z = self.model.template[ids, 2]
        ankle = self.model.head("foot.L")[2]
        end = self.hip - bottom.length * (self.hip - ankle)
        points = self._flared(bottom.flare, folds=0.05)
        rise = np.clip((0.20 - z) / 0.06, 0, 1)
        normals = vertex_normals(points, sheet("skirt").faces)
        # The upper rim dips under the bodice, so that the seam is where the two meet.
        lift = (0.010 * rise - 0.012 * (1 - rise)) if dress else 0.004 * rise
        points = points + normals * lift[:, None].astype(np.float32)
        label = Label.DRESS if dress else Label.SKIRT
        field = z - end
        self.pieces.append(draped(self.model, "skirt", points, [field], Material.SKIRT, label))
        # Legs are seen from below into a skirt, so only what is well inside is left out.
        self.cover(self.z - end - 0.16, self.hip + 0.08 - self.z, np.where(self.model.arm_weight > 0.3, -1.0, 1.0))

    def _flared(self, flare: float, *, folds: float) -> FloatArray:
        """The skirt helper, widened towards its hem and laid in folds."""
        part = sheet("skirt")
        points = np.asarray(part.smooth @ self.rest.vertices[part.vertices])
        canonical = self.model.template[part.vertices]
        t = np.clip((self.hip + 0.06 - canonical[:, 2]) / 0.7, 0, 1)
        centre = np.array([0.0, float(points[:, 1].mean()), 0.0], np.float32)
        angle = np.arctan2(canonical[:, 1] - 0.0, canonical[:, 0])
        ripple = folds * t * np.sin(7 * angle + self.identity.texture % 7)
        scale = (1 + (flare - 1) * t**0.8) * (1 + ripple)
        out = points.copy()
        out[:, :2] = centre[:2] + (points[:, :2] - centre[:2]) * scale[:, None]
        result: FloatArray = out.astype(np.float32)
        return result

    def top(self) -> None:
        identity, top = self.identity, self.identity.top
        label = {"dress": Label.DRESS, "jumpsuit": Label.JUMPSUITS}.get(identity.garment, Label.UPPER_CLOTHES)
        one_piece = identity.garment in ("dress", "jumpsuit")
        tucked = identity.garment == "skirt" or one_piece
        hem_height = {"dress": self.hip + 0.05, "jumpsuit": self.hip + 0.06, "skirt": self.hip + 0.08}.get(
            identity.garment, self.hip + top.hem
        )
        hem, neck, sleeves = self.z - hem_height, self.neckline(top.neck), self.sleeves(top.sleeve)
        on_trunk = np.where(self.model.arm_weight > 0.3, 1.0, hem)
        offset = self._top_offset(top, hem_height, tucked)
        self.add("torso", offset, [self.on("torso", f) for f in (on_trunk, neck, sleeves)], Material.TOP, label)
        self.cover(on_trunk, neck, sleeves)
        self.thickness = max(self.thickness, 0.010 + top.loose)

    def _top_offset(self, top: Top, hem_height: float, tucked: bool) -> Field:
        ids = sheet("torso").vertices
        points, arm = self.model.template[ids], self.model.arm[ids]
        z, on_arm = points[:, 2], self.model.arm_weight[ids] > 0.5
        loose = top.loose * (0.6 + 0.6 * noise_at(points, 8.0, self.identity.texture))
        trunk = loose * (1.0 if not tucked else 0.5)
        if not tucked:
            # Cloth hangs from the chest: it fills the waist and stands off at the hem.
            trunk = trunk + 1.1 * top.loose * np.exp(-(((z - 0.30) / 0.10) ** 2))
            trunk = trunk + (0.006 + 0.5 * top.loose) * np.exp(-np.clip(z - hem_height, 0, 1) / 0.07)
        if top.sleeve > 0.9:
            sleeve = loose * (0.9 - 0.5 * np.clip((arm - 0.8) / 0.15, 0, 1)) + 0.003
        else:
            sleeve = 0.6 * loose + top.loose * np.clip(arm / max(top.sleeve, 0.1), 0, 1) ** 2
        offset = 0.008 + np.where(on_arm, sleeve, trunk)
        if top.neck == "high":
            offset = offset + 0.004 * np.clip((z - 0.64) / 0.03, 0, 1)
        return np.asarray(offset)

    def coat(self, coat: Coat) -> None:
        long = coat.length > 0.13
        gap = self.front_gap(coat.opening)
        hem_height = self.hip + 0.03 if long else self.hip - coat.length
        on_trunk = np.where(self.model.arm_weight > 0.3, 1.0, self.z - hem_height)
        neck, sleeves = self.neckline("round") + 0.012, self.sleeves(1.0)
        ids = sheet("torso").vertices
        points = self.model.template[ids]
        base = 0.018 + self.identity.top.loose * 0.6
        offset = base + 0.006 * noise_at(points, 7.0, self.identity.texture + 3)
        offset = offset + (0.008 if coat.padded else 0.0)
        on_arm = self.model.arm_weight[ids] > 0.5
        hem_flare = 0.010 * np.exp(-np.clip(points[:, 2] - hem_height, 0, 1) / 0.05)
        offset = np.where(on_arm, 0.75 * offset, offset + (0 if long else hem_flare))
        fields = [self.on("torso", f) for f in (on_trunk, neck, sleeves, gap)]
        self.add("torso", offset, fields, Material.COAT, Label.COAT)
        self.cover(on_trunk, neck, sleeves, gap)
        if long:
            self._coat_skirt(coat, base)
        self.thickness = base + 0.012

    def _coat_skirt(self, coat: Coat, base: float) -> None:
        ids = sheet("skirt").vertices
        z = self.model.template[ids, 2]
        wide = self.identity.bottom.flare if self.identity.garment in ("skirt", "dress") else 1.0
        points = self._flared(max(1.10, wide + 0.10), folds=0.03)
        rise = np.clip((0.215 - z) / 0.09, 0, 1)
        lift = (base + 0.006) * rise - 0.006 * (1 - rise)
        points = points + vertex_normals(points, sheet("skirt").faces) * lift[:, None].astype(np.float32)
        gap = self.on("skirt", self.front_gap(coat.opening, spread=1.2))
        fields = [z - (self.hip - coat.length), gap]
        self.pieces.append(draped(self.model, "skirt", points, fields, Material.COAT, Label.COAT))

    def gloves(self) -> None:
        field = (self.model.arm - 0.93) * 0.5
        self.add("hands", 0.003, [self.on("hands", field)], Material.GLOVE, Label.GLOVE)
        self.cover(field)

    def skin(self) -> None:
        """What is left of the skin; must come last of the layers."""
        hair = self.identity.hair
        if hair.style != "bald":
            self.cover(covered_scalp(self.model) + OVERLAP - 0.006)
        eyes = np.zeros(len(self.x), bool)
        eyes[self.model.faces["eyes"].ravel()] = True
        part = sheet("skin")
        piece = draped(
            self.model, "skin", self.rest.vertices[part.vertices], [OVERLAP - self.covered], Material.SKIN, Label.FACE
        )
        # Eyeballs are separate surfaces; a face belongs to one if its first vertex does.
        eye = np.isin(piece.canonical.view("f4,f4,f4").ravel(), self.model.template[eyes].view("f4,f4,f4").ravel())
        material = np.where(eye[piece.faces[:, 0]], Material.EYE, Material.SKIN).astype(np.int16)
        self.pieces.append(replace(piece, material=material))


@functools.lru_cache(maxsize=96)
def wardrobe(identity: Identity) -> Wardrobe:
    """Everything that somebody wears in every image, built once (about 100 ms) and kept for the next 96 people."""
    outfit = _Outfit(identity)
    garment = identity.garment
    outfit.feet()
    if garment in ("trousers", "jeans", "shorts", "jumpsuit"):
        outfit.legs()
    outfit.top()
    if garment in ("skirt", "dress"):
        outfit.skirt(dress=garment == "dress")
    if identity.coat is not None:
        outfit.coat(identity.coat)
    if identity.gloves is not None:
        outfit.gloves()
    outfit.skin()
    clearance = outfit.thickness
    outfit.pieces += hair_pieces(
        outfit.model,
        outfit.rest,
        identity.hair,
        under_hat=identity.hat is not None,
        clearance=clearance,
        texture=identity.texture,
    )
    outfit.pieces += worn(outfit.model, outfit.rest, identity, clearance)
    piece = assembled(outfit.pieces)
    shoes = np.unique(piece.faces[piece.material == Material.SHOE])
    kept = shoes[piece.edges[shoes].min(axis=1) >= 0].astype(np.int32)
    return Wardrobe(outfit.rest, piece, kept)


def dress(identity: Identity, pose: Pose, rng: np.random.Generator) -> Mesh:
    """The whole person: body, clothes, hair, and what they wear and carry.

    Args:
        identity: Who.
        pose: How they stand; arms that a bag needs are brought to it, see `adapted`.
        rng: Of the image, for what is not the same in all of them.

    Returns:
        A mesh that stands on z = 0 with the pelvis at x = y = 0, facing -y.
    """
    model, worn_by = body_model(), wardrobe(identity)
    pose = adapted(pose, identity)
    transforms = bone_transforms(model, worn_by.rest.heads, rotations(pose, model, worn_by.rest.heads))
    piece = worn_by.piece
    vertices = skin(piece.rest, piece.influences, piece.weights, transforms)
    pelvis = worn_by.rest.heads[model.bone["root"]]
    vertices -= np.array([pelvis[0], pelvis[1], vertices[worn_by.soles, 2].min()], np.float32)
    body = Mesh(
        vertices=vertices,
        faces=piece.faces,
        edges=piece.edges,
        normals=vertex_normals(vertices, piece.faces),
        canonical=piece.canonical,
        arm=piece.arm,
        leg=piece.leg,
        label=piece.label,
        material=piece.material,
        colour=piece.colour,
    )
    hands = {side: _palm(body, side) for side in "LR"}
    things = [*held(pose, hands, body, rng), *carried(identity, pose, hands, body)]
    return merge([body, *things])[0] if things else body


def _palm(body: Mesh, side: str) -> FloatArray:
    """(3,) middle of the hand's inside: the mean of the vertices beyond the wrist on that side."""
    own = (body.arm > 1.15) & (body.arm < 1.6) & ((body.canonical[:, 0] > 0) == (side == "L"))
    result: FloatArray = body.vertices[own].mean(axis=0)
    return result


def adapted(pose: Pose, identity: Identity) -> Pose:
    """The pose with the arms that the person's bag needs: a hand that holds a bag hangs, a hip bag keeps its arm off."""
    bag = identity.bag
    if bag is None or bag.kind == "backpack" or pose.kind == "sit":
        return pose
    left = bag.side == "L"
    if bag.kind == "shoulder":
        arm = pose.left_arm if left else pose.right_arm
        moved = replace(arm, spread=max(arm.spread, 17.0))
        return replace(pose, left_arm=moved) if left else replace(pose, right_arm=moved)
    if pose.holds == "box":
        return pose
    if pose.holds and pose.hand == bag.side:
        pose = mirrored(pose)
    hanging = (
        Arm(flexion=-12.0, spread=12.0, inward=4.0, elbow=8.0) if bag.kind == "suitcase" else Arm(2.0, 15.0, 0.0, 10.0)
    )
    pose = replace(pose, curl=60.0)
    return replace(pose, left_arm=hanging) if left else replace(pose, right_arm=hanging)


def mirrored(pose: Pose) -> Pose:
    """The pose with left and right exchanged."""
    return replace(
        pose,
        left_arm=pose.right_arm,
        right_arm=pose.left_arm,
        left_leg=pose.right_leg,
        right_leg=pose.left_leg,
        twist=-pose.twist,
        roll=-pose.roll,
        turn=-pose.turn,
        tilt=-pose.tilt,
        hand="L" if pose.hand == "R" else "R",
    )


def seat(identity: Identity, pose: Pose) -> Seat | None:
    """Where the person of a sitting pose needs a seat; None for other poses.

    The height is that of the underside of thighs and buttocks, so that a bench of this height touches them.
    """
    if pose.kind != "sit":
        return None
    body = dress(identity, pose, np.random.default_rng(0))
    under = body.visible_vertices & (body.leg > -0.15) & (body.leg < 0.30) & (body.arm < 0)
    under &= ~np.isin(body.label, (Label.COAT, Label.SKIRT, Label.DRESS))
    points = body.vertices[under]
    return Seat(float(np.percentile(points[:, 2], 3)), -0.28, 0.22)
