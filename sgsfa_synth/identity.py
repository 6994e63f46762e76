"""Identities: body, hair and clothes, drawn once and worn in front of every camera.

Identities come in teams of four neighbours (0-3, 4-7, ...), because people who share clothes and a palette are what
makes re-identification hard. Two of three teams wear a uniform: one cut in one shade, woven in another pattern for
each member, with hats, scarves and the like that most members keep to, and bags of their own. The members of the
third resemble each other in shoes, skin and mostly hair, and two each in the colour above, or in the one below. Four
traits are numbered - the main colour of what is worn above, the main colour of what is worn below, the colour of the
shoes, the tone of the skin - and no two identities of a population have all four in common. That bounds the
population: see `CAPACITY`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import ConfigError
from sgsfa_synth.body import BodyModel, body_model
from sgsfa_synth.patterns import Cloth, Pattern, of_mean, sample_cloth

Colour = tuple[float, float, float]
"""Linear albedo, red, green, blue in [0, 1]."""


def srgb(red: float, green: float, blue: float) -> Colour:
    """Return the linear albedo of a display colour in [0, 1] (IEC 61966-2-1)."""
    r, g, b = (((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in (red, green, blue))
    return r, g, b


# Ordered so that the three groups of eight, of which one wears no uniforms (see `_traits`), each hold dark, light and
# coloured shades.
ABOVE: tuple[Colour, ...] = tuple(
    srgb(*c)
    for c in (
        (0.11, 0.11, 0.12), (0.84, 0.84, 0.82), (0.14, 0.18, 0.30), (0.62, 0.16, 0.18),
        (0.46, 0.47, 0.48), (0.33, 0.38, 0.24), (0.80, 0.70, 0.52), (0.30, 0.48, 0.68),
        (0.16, 0.16, 0.18), (0.78, 0.80, 0.84), (0.20, 0.27, 0.45), (0.42, 0.12, 0.18),
        (0.62, 0.63, 0.63), (0.16, 0.38, 0.26), (0.84, 0.66, 0.24), (0.78, 0.52, 0.58),
        (0.20, 0.19, 0.19), (0.88, 0.84, 0.76), (0.26, 0.40, 0.62), (0.80, 0.34, 0.20),
        (0.33, 0.34, 0.36), (0.24, 0.50, 0.50), (0.46, 0.34, 0.24), (0.46, 0.28, 0.48),
    )
)  # fmt: skip
BELOW: tuple[Colour, ...] = tuple(
    srgb(*c)
    for c in (
        (0.10, 0.10, 0.11), (0.17, 0.21, 0.33), (0.30, 0.30, 0.31), (0.68, 0.61, 0.48),
        (0.14, 0.14, 0.16), (0.26, 0.33, 0.47), (0.50, 0.50, 0.51), (0.36, 0.28, 0.21),
        (0.18, 0.18, 0.20), (0.36, 0.45, 0.60), (0.13, 0.15, 0.24), (0.34, 0.36, 0.25),
        (0.22, 0.21, 0.23), (0.78, 0.77, 0.73), (0.48, 0.14, 0.18), (0.23, 0.36, 0.36),
    )
)  # fmt: skip
# Each row of four is near in colour: the members of a team have a row, and each its own shade of it.
SHOES: tuple[Colour, ...] = tuple(
    srgb(*c)
    for c in (
        (0.09, 0.09, 0.10), (0.12, 0.12, 0.14), (0.15, 0.13, 0.12), (0.18, 0.18, 0.19),
        (0.30, 0.20, 0.14), (0.40, 0.29, 0.20), (0.38, 0.22, 0.18), (0.34, 0.26, 0.22),
        (0.64, 0.64, 0.63), (0.58, 0.55, 0.50), (0.57, 0.60, 0.63), (0.54, 0.54, 0.55),
    )
)  # fmt: skip
SKIN: tuple[Colour, ...] = tuple(
    srgb(*c)
    for c in (
        (0.91, 0.74, 0.65), (0.86, 0.68, 0.56), (0.80, 0.60, 0.47), (0.72, 0.52, 0.39),
        (0.58, 0.40, 0.29), (0.43, 0.29, 0.21), (0.32, 0.22, 0.17),
    )
)  # fmt: skip
HAIR: tuple[Colour, ...] = tuple(
    srgb(*c)
    for c in (
        (0.07, 0.06, 0.06), (0.12, 0.09, 0.08), (0.20, 0.14, 0.10), (0.31, 0.21, 0.14), (0.45, 0.32, 0.20),
        (0.55, 0.41, 0.24), (0.66, 0.53, 0.34), (0.44, 0.22, 0.12), (0.50, 0.49, 0.48), (0.72, 0.71, 0.70),
    )
)  # fmt: skip
ACCENT: tuple[Colour, ...] = (*ABOVE, srgb(0.86, 0.82, 0.20), srgb(0.20, 0.62, 0.34), srgb(0.86, 0.20, 0.22))

TEAM = 4
"""Neighbours that partly dress alike."""

KEEPS = 0.92
"""Probability that a member of a team in uniform keeps to a thing that the team wears."""

KEEPS_BAG = 0.25
"""The same of bags, which members in uniform bring along themselves."""

KEEPS_CIVIL = 0.6
"""The same in a team without a uniform."""

CAPACITY = len(ABOVE) * len(BELOW) * len(SHOES) * len(SKIN)
"""Identities of one population that can be made distinct: the combinations of the four numbered traits (32,256)."""


@dataclass(frozen=True, slots=True)
class Hair:
    """Hair of the head and the face.

    Args:
        style: bald, crop, short, curly, bob, long, ponytail or bun.
        colour: Of the strands.
        parting: Where the hair parts: x in metres on the crown, the person's left positive.
        volume: Thickness against the usual, about 0.8 to 1.3.
        length: How far long hair reaches, in metres below the chin.
        beard: 0 none, 0.35 stubble, 1 full.
        fringe: Falls over the forehead.
        brow: Strength of the eyebrows, about 0.5 to 1.
    """

    style: str
    colour: Colour
    parting: float
    volume: float
    length: float
    beard: float
    fringe: bool
    brow: float


@dataclass(frozen=True, slots=True)
class Top:
    """What covers the trunk: shirt, or the upper part of a dress or jumpsuit.

    Args:
        cloth: Its look.
        sleeve: Arm coordinate where the sleeves end; negative: none.
        hem: Height of the lower border above the hip joint in metres.
        neck: round, v or high.
        loose: Distance from the body in metres.
        collar: A shirt's collar and button band.
        hood: Cords and a pouch pocket, as of a hooded shirt.
    """

    cloth: Cloth
    sleeve: float
    hem: float
    neck: str
    loose: float
    collar: bool
    hood: bool


@dataclass(frozen=True, slots=True)
class Bottom:
    """What covers the legs.

    Args:
        cloth: Its look.
        length: Leg coordinate where it ends (1: the ankle).
        wide: Extra width at the ends of trouser legs in metres.
        flare: Width of a skirt's hem against the hips.
        denim: Faded and stitched.
        side_stripe: A stripe along the outer seam.
    """

    cloth: Cloth
    length: float
    wide: float
    flare: float
    denim: bool
    side_stripe: bool


@dataclass(frozen=True, slots=True)
class Coat:
    """Coat or jacket.

    Args:
        cloth: Its look.
        length: How far below the hip joint it ends, in metres.
        opening: Half the width of the open front in metres; negative: closed.
        padded: Quilted in horizontal bands.
    """

    cloth: Cloth
    length: float
    opening: float
    padded: bool


@dataclass(frozen=True, slots=True)
class Footwear:
    """Shoes and socks: kind is low, pump, trainer or boot; `sock` is None where no sock shows."""

    kind: str
    colour: Colour
    sole: Colour
    sock: Colour | None
    sock_height: float


@dataclass(frozen=True, slots=True)
class Hat:
    """Hat: cap, beanie or brim."""

    kind: str
    colour: Colour


@dataclass(frozen=True, slots=True)
class Bag:
    """Bag: backpack, shoulder, hand or suitcase; `side` is the hand or hip (L or R) that it is at."""

    kind: str
    colour: Colour
    second: Colour
    side: str
    size: float


@dataclass(frozen=True, slots=True)
class Identity:
    """A person as every camera sees them.

    Args:
        index: Number in the population.
        texture: Seed of noise in their textures.
        shape: 24 coefficients of `body.shaped`.
        stature: Height in metres, barefoot.
        female: Shape and style.
        adult: False for a child.
        skin: Albedo of the skin.
        outfit: trousers, jeans, shorts, skirt, dress or jumpsuit, with "coat+" before it under a coat.
        hair, top, bottom, coat, shoes, hat, bag: Their parts; None where there is none.
        eyewear: "", sunglasses or glasses.
        scarf: Its look, or None.
        gloves: Their colour, or None.
    """

    index: int
    texture: int
    shape: tuple[float, ...]
    stature: float
    female: bool
    adult: bool
    skin: Colour
    outfit: str
    hair: Hair
    top: Top
    bottom: Bottom
    coat: Coat | None
    shoes: Footwear
    hat: Hat | None
    eyewear: str
    scarf: Cloth | None
    gloves: Colour | None
    bag: Bag | None

    @property
    def garment(self) -> str:
        """The outfit without the coat."""
        return self.outfit.removeprefix("coat+")


def require_capacity(ids: int) -> None:
    """Refuse a population that cannot be made of distinct people.

    Raises:
        ConfigError: If `ids` is not in 1..`CAPACITY`.
    """
    if ids < 1:
        raise ConfigError(f"{ids} identities were asked for", expected=f"1 to {CAPACITY}")
    if ids > CAPACITY:
        raise ConfigError(
            f"{ids} identities were asked for, but only {CAPACITY} can be made distinct",
            expected=f"1 to {CAPACITY}",
            hint="ask for fewer identities, or render two sets with different seeds and keep them apart",
        )


# Decks of ten cards: each run of ten teams (forty identities) gets every card once, in a shuffled order, so that a rare
# class occurs early in every population and at its rate in a large one.
_OUTFITS = ("trousers",) * 4 + ("jeans",) * 2 + ("shorts", "skirt", "dress", "jumpsuit")
_TROUSERED = frozenset({"trousers", "jeans", "shorts"})
_COATS = ("worn",) * 2 + ("",) * 8
_HATS = ("cap", "headgear") + ("",) * 8
_EYES = ("sunglasses",) + ("glasses",) * 2 + ("",) * 7
_SCARVES = ("worn",) + ("",) * 9
_GLOVES = ("worn",) + ("",) * 9
_BAGS = ("backpack",) * 3 + ("shoulder", "hand", "hand", "luggage") + ("",) * 3
_SOCKS = ("worn",) * 6 + ("",) * 4


@functools.lru_cache(maxsize=4096)
def sample_identity(seed: int, index: int, *, population: str = "cast") -> Identity:
    """Draw an identity; the same arguments give the same person in any process.

    Args:
        seed: Of the data set.
        index: 0 to `CAPACITY` - 1.
        population: Another word gives other, independent people: passers-by of the same data set, for instance.

    Raises:
        ConfigError: If the index is outside the population.
    """
    if not 0 <= index < CAPACITY:
        raise ConfigError(f"there is no identity {index}", expected=f"0 to {CAPACITY - 1}")
    model = body_model()
    word = zlib.crc32(population.encode())
    rng = np.random.default_rng([word, seed, 0, index])
    team, member = divmod(index, TEAM)
    above, below, shoe, tone, uniform = _traits(seed, word, index)

    def chosen(number: int, keeps: float) -> tuple[int, int, np.random.Generator]:
        """Return the chooser of a thing, (0, team) or (1, index), and the generator of its details.

        The first member always keeps to the team's choice, so that nothing rare gets lost.
        """
        own = np.random.default_rng([word, seed, 4, number, index])
        if member > 0 and own.random() >= keeps:
            return 1, index, own
        return 0, team, np.random.default_rng([word, seed, 5, number, team])

    def dealt(deck: Sequence[str], number: int, keeps: float) -> tuple[str, np.random.Generator]:
        """Return the card of the chooser, and the generator of the details."""
        alone, holder, details = chosen(number, keeps)
        order = np.random.default_rng([word, seed, 2, number, alone, holder // len(deck)]).permutation(len(deck))
        return deck[order[holder % len(deck)]], details

    cut_keeps, keeps = (1.0, KEEPS) if uniform else (KEEPS_CIVIL, KEEPS_CIVIL)
    # A uniform is one shade and one cut: every member draws it from the same fresh generator of the team.
    tailor = np.random.default_rng([word, seed, 1, team]) if uniform else rng
    garment, _ = dealt(_OUTFITS, 0, cut_keeps)
    if uniform and garment not in _TROUSERED and member > 0 and rng.random() >= KEEPS:
        garment = "trousers"
    female = True if garment in ("skirt", "dress") else bool(rng.random() < 0.38)
    adult = bool(rng.random() > 0.05)
    coat_worn, _ = dealt(_COATS, 1, cut_keeps)
    top_main, bottom_main = _tinted(ABOVE[above], tailor), _tinted(BELOW[below], tailor)
    second, third = _accent(tailor), _accent(tailor)
    top_design, bottom_design = _design(tailor), _design(tailor, 0.82, _LEG_DESIGNS)
    one_piece = garment in ("dress", "jumpsuit")
    coat = _coat(tailor, top_main) if coat_worn else None
    if coat is not None:
        # The coat is what is seen above: it carries the numbered colour, and the shirt under it another.
        top_main = _accent(tailor)
    if one_piece:
        second = bottom_main
    top = sample_top(
        tailor, garment, female and not uniform, sample_cloth(top_design, top_main, second, third, trim=one_piece)
    )
    bottom = sample_bottom(tailor, garment, sample_cloth(bottom_design, bottom_main, third, second))
    if (uniform or rng.random() < 0.5) and not one_piece:
        # Of one mean colour, so that only who sees patterns can tell the members apart by their clothes.
        weaver = np.random.default_rng([word, seed, 6, team])
        if coat is not None:
            coat = replace(coat, cloth=_woven(weaver, member, coat.cloth.main, _WEAVES, 1.4))
        else:
            top = replace(top, cloth=_woven(weaver, member, top_main, _WEAVES, 1.4))
        if uniform and not bottom.denim:
            bottom = replace(bottom, cloth=_woven(weaver, member, bottom_main, _LEG_WEAVES, 0.55))
    stature = _stature(rng, female, adult)
    age, shape = _shape(rng, model, female, adult, stature)
    prefix = "coat+" if coat is not None else ""
    eyewear, _ = dealt(_EYES, 3, keeps)
    gloves, knitter = dealt(_GLOVES, 5, keeps)
    return Identity(
        index=index,
        texture=int(rng.integers(1 << 16)),
        shape=shape,
        stature=stature,
        female=female,
        adult=adult,
        skin=_tinted(SKIN[tone], rng, 0.03),
        outfit=prefix + garment,
        hair=_hair(rng, chosen(8, KEEPS)[2], female, adult, tone, grey=age > 0.8),
        top=top,
        bottom=bottom,
        coat=coat,
        shoes=_footwear(*dealt(_SOCKS, 7, keeps), female, garment, SHOES[shoe]),
        hat=_hat(*dealt(_HATS, 2, keeps)),
        eyewear=eyewear,
        scarf=_scarf(*dealt(_SCARVES, 4, keeps)),
        gloves=_accent(knitter) if gloves else None,
        bag=_bag(*dealt(_BAGS, 6, KEEPS_BAG)),
    )


def _traits(seed: int, word: int, index: int) -> tuple[int, int, int, int, bool]:
    """Return the numbered traits of an identity: a one-to-one map from index to (above, below, shoes, skin).

    A team has a pair (above, below), a tone of skin and a row of shoes, and each member its own shoes of that row. The
    pair's group of eight `above` colours says whether the team wears a uniform: in two of three groups it does. In the
    third, members get the pair shifted within its group by an amount that depends on the member only, so that the map
    stays one-to-one: two each have `above` in common, and two each `below`. The order of the tables is shuffled by
    the seed.
    """
    order = np.random.default_rng([word, seed, 3])
    pairs, runs = len(ABOVE) * len(BELOW), len(SHOES) // TEAM * len(SKIN)
    pair_order, run_order = order.permutation(pairs), order.permutation(runs)
    team, member = divmod(index, TEAM)
    block, slot = divmod(team, pairs)
    above, below = divmod(int(pair_order[slot]), len(BELOW))
    # For each pair, block after block goes through all runs of shoes; neighbouring pairs begin at different ones.
    row, tone = divmod(int(run_order[(block + slot) % runs]), len(SKIN))
    group, place = divmod(above, 8)
    uniform = group < 2
    if not uniform:
        above = group * 8 + (place + 2 * (member // 2)) % 8
        below = (below + 5 * (member % 2)) % len(BELOW)
    return above, below, row * TEAM + member, tone, uniform


def _tinted(colour: Colour, rng: np.random.Generator, spread: float = 0.06) -> Colour:
    """Return the colour as another dye lot: a little lighter or darker, a little warmer or colder."""
    light, warm = np.exp(rng.normal(0, spread)), rng.normal(0, spread / 3)
    r, g, b = np.clip(np.array(colour) * light * (1 + np.array([warm, 0.0, -warm])), 0.004, 0.80)
    return float(r), float(g), float(b)


def _accent(rng: np.random.Generator) -> Colour:
    return _tinted(ACCENT[int(rng.integers(len(ACCENT)))], rng)


_DESIGNS = {
    "stripes": 0.20, "pinstripes": 0.06, "plaid": 0.17, "blocks": 0.12, "floral": 0.08,
    "logo": 0.18, "yoke": 0.06, "camo": 0.04, "dots": 0.05, "melange": 0.04,
}  # fmt: skip
_WEAVES = (Pattern.PLAIN, Pattern.STRIPES, Pattern.BARS, Pattern.CHECKS, Pattern.PLAID, Pattern.CAMO, Pattern.DOTS)
_LEG_WEAVES = (Pattern.PLAIN, Pattern.PLAIN, Pattern.BARS, Pattern.CHECKS, Pattern.PLAID, Pattern.CAMO, Pattern.DOTS)
# How the figure differs from the mean, as steps of the cube roots of red, green and blue: lighter or darker and
# tinged, never the same twice in a team.
_TINGES = (
    (0.26, 0.22, 0.12), (0.10, 0.20, 0.28), (-0.10, -0.22, -0.26), (-0.26, -0.18, -0.06),
    (0.28, 0.06, 0.10), (-0.24, 0.04, -0.12), (0.24, 0.24, 0.26), (-0.04, -0.24, 0.02),
)  # fmt: skip


def _woven(weaver: np.random.Generator, member: int, mean: Colour, weaves: Sequence[Pattern], contrast: float) -> Cloth:
    """Return a member's own cloth of a team whose cloth is `mean` from afar.

    Every member has another place in `weaves`. A pattern that stands there twice, as `PLAIN` does for legs, may fall to
    two members, and plain cloths of one mean colour look alike.

    Args:
        weaver: The team's; of the same state for every member.
        member: Number in the team.
        mean: Linear albedo.
        weaves: At least `TEAM` patterns.
        contrast: Of the pattern, as a factor on `_TINGES`.
    """
    pattern = weaves[int(weaver.permutation(len(weaves))[member])]
    tinge = np.array(_TINGES[int(weaver.permutation(len(_TINGES))[member])])
    seed = int(weaver.integers(1 << 15)) + member
    scale = float(np.exp(weaver.normal(0, 0.2)))
    base = np.cbrt(mean)
    # A dark cloth has room above only, a light one below.
    if (base.mean() < 0.45 and tinge.mean() < 0) or (base.mean() > 0.80 and tinge.mean() > 0):
        tinge = -tinge
    red, green, blue = (float(value) for value in np.clip(base + contrast * tinge, 0.16, 0.928) ** 3)
    figure = (red, green, blue)
    return of_mean(Cloth(pattern, mean, figure, figure, scale, seed, 0), mean)


_LEG_DESIGNS = {"plaid": 0.35, "pinstripes": 0.35, "melange": 0.20, "camo": 0.10}


def _design(rng: np.random.Generator, plain: float = 0.5, kinds: Mapping[str, float] = _DESIGNS) -> tuple[str, int]:
    """Return the kind of pattern and the seed of its details."""
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    return ("plain" if rng.random() < plain else kind), int(rng.integers(1 << 20))


def _stature(rng: np.random.Generator, female: bool, adult: bool) -> float:
    """Draw a height in metres."""
    mean, spread = (1.64, 0.065) if female else (1.76, 0.070)
    if not adult:
        mean, spread = 1.32, 0.10
    return float(np.clip(rng.normal(mean, spread), mean - 2.2 * spread, mean + 2.2 * spread))


def _shape(
    rng: np.random.Generator, model: BodyModel, female: bool, adult: bool, stature: float
) -> tuple[float, tuple[float, ...]]:
    """Return the age in [0, 1], and a blend of two sampled bodies that are near the wanted phenotype."""
    age = float(rng.choice([0.50, 0.62, 0.67, 0.75, 0.90])) if adult else 0.40
    wanted = {
        "gender": 0.95 if female else 0.05,
        "age": age,
        "muscle": rng.uniform(0.25, 0.7),
        "weight": rng.uniform(0.25, 0.8),
        # Stature is almost linear in this phenotype (fitted to the samples); `body.of_stature` does the rest.
        "height": (stature - 1.09 + 0.13 * female - 0.31 * age) / 1.07 if adult else 0.4,
    }
    spread = {"gender": 0.15, "age": 0.12, "muscle": 0.25, "weight": 0.25, "height": 0.06}
    distance = sum(((model.phenotypes[:, model.phenotype[k]] - v) / spread[k]) ** 2 for k, v in wanted.items())
    odds = np.exp(-0.5 * (distance - np.min(distance)))
    first, second = rng.choice(len(odds), 2, p=odds / odds.sum())
    share = rng.uniform(0.2, 0.8)
    blend = (1 - share) * model.samples[first] + share * model.samples[second]
    return age, tuple(float(c) for c in blend)


def _hair(
    rng: np.random.Generator, dyer: np.random.Generator, female: bool, adult: bool, tone: int, *, grey: bool
) -> Hair:
    """Return the hair whose cut is drawn by `rng` and whose colour by `dyer`, which most of a team share."""
    women = {"long": 0.34, "bob": 0.18, "ponytail": 0.22, "bun": 0.10, "short": 0.08, "curly": 0.08}
    men = {"short": 0.50, "crop": 0.22, "bald": 0.08, "curly": 0.12, "bob": 0.04, "bun": 0.04}
    odds = women if female else men
    style = str(rng.choice(list(odds), p=list(odds.values())))
    if style == "bald" and not adult:
        style = "crop"
    fair = (0.18, 0.18, 0.18, 0.15, 0.12, 0.08, 0.05, 0.06, 0.0, 0.0)
    dark = (0.50, 0.35, 0.15, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    silver = (0.0, 0.1, 0.1, 0.05, 0.0, 0.0, 0.0, 0.0, 0.45, 0.3)
    shades = silver if grey else fair if tone < 3 else dark
    bearded = not female and adult
    return Hair(
        style=style,
        colour=_tinted(HAIR[int(dyer.choice(len(HAIR), p=shades))], rng),
        parting=float(rng.choice([-0.03, 0.0, 0.03])) + rng.normal(0, 0.004),
        volume=rng.uniform(0.8, 1.3),
        length=rng.uniform(0.10, 0.36),
        beard=float(rng.choice([0.0, 0.35, 1.0], p=[0.55, 0.25, 0.20])) if bearded else 0.0,
        fringe=style in ("long", "bob", "ponytail", "bun") and bool(rng.random() < 0.3),
        brow=rng.uniform(0.5, 0.8) if female else rng.uniform(0.7, 1.0),
    )


def sample_top(rng: np.random.Generator, garment: str, female: bool, cloth: Cloth) -> Top:
    """Draw the cut of what covers the trunk."""
    sleeves = [-0.1, 0.22, 0.32, 0.60, 0.97] if female else [-0.1, 0.27, 0.36, 0.60, 0.97]
    sleeve = float(rng.choice(sleeves, p=[0.14, 0.18, 0.26, 0.08, 0.34] if female else [0.04, 0.25, 0.31, 0.05, 0.35]))
    long = sleeve > 0.9
    collar = bool(long and rng.random() < 0.35) and garment != "dress"
    return Top(
        cloth=cloth,
        sleeve=sleeve + (rng.uniform(-0.03, 0.04) if sleeve > 0 else 0.0),
        hem=rng.uniform(-0.10, 0.02),
        neck=str(rng.choice(["round", "v", "high"], p=[0.62, 0.25, 0.13])),
        loose=float(rng.uniform(0.004, 0.013) if female or garment == "dress" else rng.uniform(0.007, 0.020)),
        collar=collar,
        hood=bool(long and rng.random() < 0.35) and not collar and garment not in ("dress", "jumpsuit"),
    )


def sample_bottom(rng: np.random.Generator, garment: str, cloth: Cloth) -> Bottom:
    """Draw the cut of what covers the legs."""
    lengths = {"shorts": (0.30, 0.52), "skirt": (0.36, 0.85), "dress": (0.40, 0.95), "jumpsuit": (0.93, 1.02)}
    return Bottom(
        cloth=cloth,
        length=rng.uniform(*lengths.get(garment, (0.97, 1.06))),
        wide=float(rng.choice([0.002, 0.012, 0.026], p=[0.4, 0.4, 0.2])),
        flare=rng.uniform(1.0, 1.25) + (0.15 if garment == "dress" else 0.08),
        denim=garment == "jeans" or (garment == "shorts" and bool(rng.random() < 0.3)),
        side_stripe=bool(garment == "trousers" and rng.random() < 0.15),
    )


def _coat(rng: np.random.Generator, colour: Colour) -> Coat:
    length = float(rng.choice([0.02, 0.10, 0.30, 0.45])) + rng.uniform(-0.02, 0.03)
    return Coat(
        cloth=sample_cloth(_design(rng, 0.85), colour, _accent(rng), _accent(rng)),
        length=length,
        opening=float(rng.uniform(0.015, 0.085)) if rng.random() < 0.65 else -1.0,
        padded=bool(length < 0.15 and rng.random() < 0.35),
    )


def _footwear(socks: str, rng: np.random.Generator, female: bool, garment: str, colour: Colour) -> Footwear:
    kind = str(rng.choice(["low", "trainer", "boot"], p=[0.38, 0.50, 0.12]))
    pump, pale, coloured, dye = rng.random() < 0.7, rng.random() < 0.5, rng.random() < 0.4, _accent(rng)
    if female and kind == "low" and pump:
        kind = "pump"
    sock = (dye if coloured else srgb(0.80, 0.80, 0.78)) if socks and kind not in ("boot", "pump") else None
    high = garment in ("shorts", "skirt", "dress")
    trainer = srgb(0.70, 0.70, 0.68) if pale else srgb(0.13, 0.12, 0.12)
    return Footwear(
        kind=kind,
        colour=_tinted(colour, rng),
        sole=trainer if kind == "trainer" else srgb(0.10, 0.09, 0.09),
        sock=sock,
        sock_height=rng.uniform(0.60, 0.92) if high else 0.9,
    )


def _hat(kind: str, rng: np.random.Generator) -> Hat | None:
    if kind == "headgear":
        kind = str(rng.choice(["beanie", "brim"]))
    return Hat(kind, _accent(rng)) if kind else None


def _scarf(worn: str, rng: np.random.Generator) -> Cloth | None:
    return sample_cloth(_design(rng), _accent(rng), _accent(rng), _accent(rng)) if worn else None


def _bag(kind: str, rng: np.random.Generator) -> Bag | None:
    if kind == "luggage":
        kind = str(rng.choice(["suitcase", "backpack"]))
    colour, second, side = _accent(rng), _accent(rng), str(rng.choice(["L", "R"]))
    size = rng.uniform(0.85, 1.15)
    return Bag(kind, colour, second, side, size) if kind else None
