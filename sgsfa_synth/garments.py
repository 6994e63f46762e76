"""Clothes over the body, and `dress`: the whole posed person.

Clothes are layers over the body, cut by the borders of `hems`. Skin under cloth is left out, a little way in from each
border.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sgsfa_synth.accessories import carried, held, worn
from sgsfa_synth.body import Chart, Rest, body_model, bone_transforms, of_stature, shaped, sheet, skin
from sgsfa_synth.hair import covered_scalp, hair_pieces
from sgsfa_synth.hems import (
    Border,
    Field,
    above,
    below,
    down_to,
    from_leg,
    neckline,
    off_arms,
    open_front,
    shoe,
    sleeves,
)
from sgsfa_synth.identity import Coat, Identity, Top
from sgsfa_synth.mesh import FloatArray, IntArray, Label, Material, Mesh, merge
from sgsfa_synth.patterns import noise_at
from sgsfa_synth.pieces import Piece, assembled, draped, lifted
from sgsfa_synth.pose import Arm, Pose, rotations
from sgsfa_synth.raster import vertex_normals

OVERLAP = 0.012
"""How far skin continues under the border of cloth, in metres."""


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
    """Where a person sits: the top of a bench at `height`, from `front_y` to `back_y` (metres; facing -y)."""

    height: float
    front_y: float
    back_y: float


class _Outfit:
    """Builds the pieces of one identity from the skin outwards and remembers what they cover."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.model = body_model()
        self.rest = of_stature(shaped(self.model, identity.shape), identity.stature)
        self.pieces: list[Piece] = []
        self.hip = float(self.model.head("upperleg01.L")[2])
        self.covered = np.full(len(self.model.template), -1, np.float32)
        """Over the body: how far inside some cloth, positive where skin need not be drawn."""
        self.outermost: Field = np.full(len(sheet("torso").vertices), 0.006)
        """Over the trunk's sheet: how far the outermost cloth stands off."""

    @property
    def skirt_end(self) -> float:
        """Canonical height of the hem of a skirt or dress; out of reach where there is none."""
        if self.identity.garment not in ("skirt", "dress"):
            return 9.0
        return self.hip - self.identity.bottom.length * (self.hip - float(self.model.head("foot.L")[2]))

    def cover(self, *borders: Border) -> None:
        """Note that cloth covers where all fields are positive."""
        fields = [border(self.model.chart) for border in borders]
        self.covered = np.maximum(self.covered, np.minimum.reduce(fields)).astype(np.float32)

    def add(self, name: str, points: FloatArray, borders: Sequence[Border], material: Material, label: Label) -> None:
        """Drape a sheet."""
        fields = [border(sheet(name).chart) for border in borders]
        self.pieces.append(draped(self.model, name, points, fields, material, label))

    def lift(self, name: str, offset: Field | float) -> FloatArray:
        """Return the sheet's vertices, moved off the body."""
        return lifted(self.rest, name, offset)

    # Pieces, from the inside outwards.

    def feet(self) -> None:
        shoes = self.identity.shoes
        if shoes.sock is not None:
            sock = from_leg(shoes.sock_height)
            self.add("feet", self.lift("feet", 0.003), [sock, below(self.skirt_end + 0.06)], Material.SOCK, Label.SOCKS)
            self.cover(sock)
        chart = sheet("feet").chart
        welt = np.clip((chart.z.min() + 0.034 - chart.z) / 0.02, 0, 1)
        toe = np.clip((-chart.y - 0.08) / 0.1, 0, 1)
        offset = 0.005 + 0.005 * welt + 0.004 * toe + (0.003 if shoes.kind == "boot" else 0.0)
        borders = [shoe(shoes.kind)]
        if shoes.kind == "boot" and self.identity.garment not in ("shorts", "skirt", "dress"):
            # Trousers fall over the shafts.
            borders.append(from_leg(self.identity.bottom.length - 0.05))
        self.add("feet", self.lift("feet", offset), borders, Material.SHOE, Label.LEFT_SHOE)
        self.cover(*borders)

    def legs(self) -> None:
        identity, bottom = self.identity, self.identity.bottom
        chart = sheet("legs").chart
        t = np.clip((chart.leg - 0.15) / max(bottom.length - 0.15, 0.2), 0, 1)
        offset = 0.007 + bottom.wide * t**1.3 + 0.004 * noise_at(chart.points, 14.0, identity.texture)
        if bottom.length > 0.9:
            # Cloth gathers over the shoe.
            offset = offset + 0.003 * np.clip((chart.leg - 0.86) / 0.1, 0, 1) * np.sin(chart.leg * 95)
        if identity.garment == "shorts":
            offset = offset + 0.016 * t
        borders = [below(self.hip + 0.095), down_to(bottom.length)]
        label = Label.JUMPSUITS if identity.garment == "jumpsuit" else Label.PANTS
        self.add("legs", self.lift("legs", offset), borders, Material.BOTTOM, label)
        self.cover(*borders, off_arms)

    def skirt(self, *, dress: bool) -> None:
        bottom = self.identity.bottom
        z = sheet("skirt").chart.z
        end = self.skirt_end
        rise = np.clip((0.20 - z) / 0.06, 0, 1)
        # The upper rim dips under the bodice, so that the seam is where the two meet.
        lift = (0.010 * rise - 0.012 * (1 - rise)) if dress else 0.004 * rise
        label = Label.DRESS if dress else Label.SKIRT
        self.add("skirt", self._flared(bottom.flare, lift, folds=0.05), [above(end)], Material.SKIRT, label)
        # One can look up into a skirt a little, but knees must not come through it.
        self.cover(above(end + 0.06), below(self.hip + 0.08), off_arms)

    def _flared(self, flare: float, lift: Field, *, folds: float) -> FloatArray:
        """Return the skirt helper, widened towards its hem, laid in folds and lifted off."""
        part, chart = sheet("skirt"), sheet("skirt").chart
        points = lifted(self.rest, "skirt", 0.0)
        t = np.clip((self.hip + 0.06 - chart.z) / 0.7, 0, 1)
        centre = points[:, 1].mean()
        ripple = folds * t * np.sin(7 * np.arctan2(chart.y, chart.x) + self.identity.texture % 7)
        scale = (1 + (flare - 1) * t**0.8) * (1 + ripple)
        wide = np.stack([points[:, 0] * scale, centre + (points[:, 1] - centre) * scale, points[:, 2]], axis=1)
        wide = wide.astype(np.float32)
        result: FloatArray = wide + vertex_normals(wide, part.faces) * lift[:, None].astype(np.float32)
        return result

    def top(self) -> None:
        identity, top = self.identity, self.identity.top
        label = {"dress": Label.DRESS, "jumpsuit": Label.JUMPSUITS}.get(identity.garment, Label.UPPER_CLOTHES)
        tucked = identity.garment in ("dress", "jumpsuit", "skirt")
        hem = {"dress": self.hip + 0.05, "jumpsuit": self.hip + 0.06, "skirt": self.hip + 0.08}.get(
            identity.garment, self.hip + top.hem
        )
        borders = [above(hem), neckline(top.neck), sleeves(top.sleeve)]
        if identity.coat is not None:
            offset: Field = np.full(len(sheet("torso").vertices), 0.008)
        else:
            offset = self._top_offset(top, hem, tucked)
        self.outermost = np.maximum(self.outermost, offset)
        self.add("torso", self.lift("torso", offset), borders, Material.TOP, label)
        self.cover(*borders)

    def _top_offset(self, top: Top, hem: float, tucked: bool) -> Field:
        chart = sheet("torso").chart
        loose = top.loose * (0.6 + 0.6 * noise_at(chart.points, 8.0, self.identity.texture))
        trunk = loose * (1.0 if not tucked else 0.5)
        if not tucked:
            # Cloth hangs from the chest: it fills the waist and stands off at the hem.
            trunk = trunk + 1.1 * top.loose * np.exp(-(((chart.z - 0.30) / 0.10) ** 2))
            trunk = trunk + (0.006 + 0.5 * top.loose) * np.exp(-np.clip(chart.z - hem, 0, 1) / 0.07)
        if top.sleeve > 0.9:
            sleeve = loose * (0.9 - 0.5 * np.clip((chart.arm - 0.8) / 0.15, 0, 1)) + 0.003
        else:
            sleeve = 0.6 * loose + top.loose * np.clip(chart.arm / max(top.sleeve, 0.1), 0, 1) ** 2
        on_arm = np.clip((chart.arm_weight - 0.3) / 0.4, 0, 1)
        offset = 0.008 + on_arm * sleeve + (1 - on_arm) * trunk
        if top.neck == "high":
            offset = offset + 0.004 * np.clip((chart.z - 0.64) / 0.03, 0, 1)
        return np.asarray(offset)

    def coat(self, coat: Coat) -> None:
        long = coat.length > 0.13
        hem = self.hip + 0.03 if long else self.hip - coat.length
        chart = sheet("torso").chart
        base = 0.018 + self.identity.top.loose * 0.6
        offset = base + 0.006 * noise_at(chart.points, 7.0, self.identity.texture + 3) + 0.008 * coat.padded
        flare = 0.0 if long else 0.010 * np.exp(-np.clip(chart.z - hem, 0, 1) / 0.05)
        on_arm = np.clip((chart.arm_weight - 0.3) / 0.4, 0, 1)
        offset = on_arm * 0.85 * offset + (1 - on_arm) * (offset + flare)
        borders = [above(hem), neckline("round", lower=-0.012), sleeves(1.0), open_front(coat.opening)]
        self.outermost = np.maximum(self.outermost, offset)
        self.add("torso", self.lift("torso", offset), borders, Material.COAT, Label.COAT)
        self.cover(*borders)
        if long:
            self._coat_skirt(coat, base)

    def _coat_skirt(self, coat: Coat, base: float) -> None:
        wide = self.identity.bottom.flare if self.identity.garment in ("skirt", "dress") else 1.0
        rise = np.clip((0.215 - sheet("skirt").chart.z) / 0.09, 0, 1)
        points = self._flared(max(1.10, wide + 0.10), (base + 0.006) * rise - 0.006 * (1 - rise), folds=0.03)
        borders = [above(self.hip - coat.length), open_front(coat.opening, spread=1.2)]
        self.add("skirt", points, borders, Material.COAT, Label.COAT)

    def gloves(self) -> None:
        def on_hands(chart: Chart) -> Field:
            return np.asarray((chart.arm - 0.93) * 0.5)

        self.add("hands", self.lift("hands", 0.003), [on_hands], Material.GLOVE, Label.GLOVE)
        self.cover(on_hands)

    def skin(self) -> None:
        """Return what is left of the skin; must come last of the layers."""
        hair = self.identity.hair
        if hair.style != "bald":
            self.covered = np.maximum(self.covered, covered_scalp(self.model, self.identity.hair) + OVERLAP - 0.006)
        eyes = np.zeros(len(self.covered), bool)
        eyes[self.model.faces["eyes"].ravel()] = True
        part = sheet("skin")
        piece = draped(
            self.model,
            "skin",
            self.rest.vertices[part.vertices],
            [OVERLAP - self.covered[part.vertices]],
            Material.SKIN,
            Label.FACE,
        )
        # Eyeballs are separate surfaces; a face belongs to one if its first vertex does.
        eye = np.isin(piece.canonical.view("f4,f4,f4").ravel(), self.model.template[eyes].view("f4,f4,f4").ravel())
        material = np.where(eye[piece.faces[:, 0]], Material.EYE, Material.SKIN).astype(np.int16)
        self.pieces.append(replace(piece, material=material))


@functools.lru_cache(maxsize=96)
def wardrobe(identity: Identity) -> Wardrobe:
    """Return what a person wears in every image, built once (about 30 ms) and cached for 96 people."""
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
    clearance = float(outfit.outermost[sheet("torso").chart.arm_weight < 0.3].mean())
    outfit.pieces += hair_pieces(
        outfit.model,
        outfit.rest,
        identity.hair,
        under_hat=identity.hat is not None,
        clearance=clearance,
        texture=identity.texture,
    )
    outfit.pieces += worn(outfit.model, outfit.rest, identity, outfit.outermost)
    piece = assembled(outfit.pieces)
    shoes = np.unique(piece.faces[piece.material == Material.SHOE])
    kept = shoes[piece.edges[shoes].min(axis=1) >= 0].astype(np.int32)
    return Wardrobe(outfit.rest, piece, kept)


def dress(identity: Identity, pose: Pose, rng: np.random.Generator) -> Mesh:
    """Return the whole person: body, clothes, hair, and what they wear and carry.

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
    """Return (3,) middle of the hand's inside: the mean of the vertices beyond the wrist on that side."""
    own = (body.arm > 1.15) & (body.arm < 1.6) & ((body.canonical[:, 0] > 0) == (side == "L"))
    result: FloatArray = body.vertices[own].mean(axis=0)
    return result


def adapted(pose: Pose, identity: Identity) -> Pose:
    """Return the pose with the arms that the bag needs: a hand that holds a bag hangs, a hip bag keeps its arm off."""
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
    """Return the pose with left and right exchanged."""
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
    """Return where the person of a sitting pose needs a seat; None for other poses.

    The height is that of the underside of thighs and buttocks, so that a bench of this height touches them.
    """
    if pose.kind != "sit":
        return None
    body = dress(identity, pose, np.random.default_rng(0))
    under = body.visible_vertices & (body.leg > -0.15) & (body.leg < 0.30) & (body.arm < 0)
    tight = under & ~np.isin(body.label, (Label.COAT, Label.SKIRT, Label.DRESS))
    # Under a long coat nothing tight is left; then the cloth about the buttocks, which does not hang, tells.
    points = body.vertices[tight if tight.any() else under & (body.leg < 0.12)]
    return Seat(float(np.percentile(points[:, 2], 3)), -0.28, 0.22)
