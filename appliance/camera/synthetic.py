"""A conveyor belt that exists only here: parts pass under the lens, some of them defective.

Every frame is a pure function of (seed, frame number), so any frame can be drawn alone and its truth is
known. The belt glides slowly while a part is under the lens and then hurries on to the next place, so that
a part is either wholly in view or (3 frames in 30) counts as not there.
"""

import math
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.camera.camera import Camera, Picture, url_options, wrong_url
from appliance.config import CameraConfig

Label = Literal["ok", "scratched", "missing_hole", "empty"]
LABELS: tuple[Label, ...] = get_args(Label)

DEFAULT_WIDTH, DEFAULT_HEIGHT = 320, 240
DEFAULT_FPS = 30.0
MAX_PIXELS = 3840 * 2160
"""Of a picture: what is kept for drawing takes some twenty times as many bytes."""
DEFAULT_DEFECTS = 0.3
DEFAULT_EMPTY = 0.1

GLIDE = 27
"""Frames in which a part is wholly in view."""
CYCLE = GLIDE + 3
"""Frames from one part to the next; in the last three the belt hurries on."""
REACH = 0.14
"""How far from the middle a gliding part starts and ends, in picture widths."""

DIAMETER = 0.62
"""Of a part, in picture heights (or in three quarters of the width, if that is less)."""
HOLES = 6
HOLE_RADIUS = 0.125
HOLE_CIRCLE = 0.68
BORE_RADIUS = 0.27
RAIL = 0.085
"""Height of the rail at either side of the belt, in picture heights."""
METALS = ((214, 218, 222), (222, 188, 112), (214, 142, 104), (156, 178, 200))
"""Steel, brass, copper, blue zinc."""

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint16]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """What lies in one place of the belt. Lengths are in radii of the part, angles in radians."""

    label: Label
    metal: int
    angle: float
    """Of the first hole; the missing one, if any, is this one."""
    dx: float
    dy: float
    smudge: tuple[float, float, float]
    """Dirt every part has: angle and distance of its centre, and its strength."""
    scratch: tuple[float, float, float, float]
    """Angle and distance of its middle, direction, half its length."""


def part_at(seed: int, place: int, defects: float = DEFAULT_DEFECTS, empty: float = DEFAULT_EMPTY) -> Part:
    """The part in the belt's ``place``-th place; ``defects`` of the parts and ``empty`` of the places are so."""
    draw = random.Random(f"{seed}/{place}")
    vacant, defective, which = (draw.random() for _ in range(3))
    label: Label = "ok"
    if vacant < empty:
        label = "empty"
    elif defective < defects:
        label = "scratched" if which < 0.5 else "missing_hole"
    return Part(
        label=label,
        metal=draw.randrange(len(METALS)),
        angle=draw.uniform(0, math.tau),
        dx=draw.uniform(-0.06, 0.06),
        dy=draw.uniform(-0.06, 0.06),
        smudge=(draw.uniform(0, math.tau), draw.uniform(0.2, 0.8), draw.uniform(0, 0.22)),
        scratch=(draw.uniform(0, math.tau), draw.uniform(0.42, 0.6), draw.uniform(0, math.pi), draw.uniform(0.4, 0.6)),
    )


def truth(seed: int, n: int, defects: float = DEFAULT_DEFECTS, empty: float = DEFAULT_EMPTY) -> Label:
    """What frame ``n`` shows: the part that is wholly in view, or ``empty``."""
    place, phase = divmod(n, CYCLE)
    return part_at(seed, place, defects, empty).label if phase < GLIDE else "empty"


class Conveyor:
    """Draws frames of one size; what frames share (belt, light, noise, the last parts) is kept."""

    def __init__(
        self,
        width: int = DEFAULT_WIDTH,
        height: int = DEFAULT_HEIGHT,
        seed: int = 0,
        defects: float = DEFAULT_DEFECTS,
        empty: float = DEFAULT_EMPTY,
    ) -> None:
        self.width, self.height, self.seed = width, height, seed
        self.defects, self.empty = defects, empty
        self._radius = DIAMETER * min(height, 0.75 * width) / 2
        self._pitch = width + 2.2 * self._radius
        texture = np.random.default_rng(seed)
        self._belt = _belt(texture, width, height)
        self._rail = _rail(texture, width, max(1, round(RAIL * height)))
        self._lamp = _lamp(width, height)
        self._noise = texture.normal(0, 3.0, (height + _NOISE_SHIFT, (width + _NOISE_SHIFT) * 3)).astype(np.int16)
        self._stencil = _Stencil(self._radius)
        self._sprite = lru_cache(maxsize=4)(self._draw_part)

    def truth(self, n: int) -> Label:
        """What frame ``n`` shows."""
        return truth(self.seed, n, self.defects, self.empty)

    def draw(self, n: int) -> Pixels:
        """Frame ``n`` as RGB, uint8 [height, width, 3]."""
        place, phase = divmod(n, CYCLE)
        offset = self._offset(phase)
        canvas = self._belt_at(place * self._pitch + offset)
        for ahead in (0, 1):
            self._put(canvas, place + ahead, offset - ahead * self._pitch)
        rail = len(self._rail)
        canvas[:rail] = self._rail
        canvas[-rail:] = self._rail[::-1]
        return self._expose(canvas, n)

    def _offset(self, phase: int) -> float:
        """Pixels from the middle of the picture to the part that was or is under the lens."""
        reach = REACH * self.width
        if phase < GLIDE:
            return reach * (2 * phase / (GLIDE - 1) - 1)
        # cut off by the edge, even in a very wide picture; then between two parts; then the next one, cut off
        leaving = max((self._pitch + 2 * reach) / 4, self.width / 2 - self._radius / 2)
        return (leaving, self._pitch / 2, self._pitch - leaving)[phase - GLIDE]

    def _belt_at(self, travel: float) -> Words:
        period = self._belt.shape[1] // 3 - self.width
        start = 3 * (-round(travel) % period)
        return self._belt[:, start : start + 3 * self.width].astype(np.uint16)

    def _put(self, canvas: Words, place: int, offset: float) -> None:
        part = part_at(self.seed, place, self.defects, self.empty)
        if part.label == "empty":
            return
        side = self._stencil.side
        left = round(self.width / 2 + offset + part.dx * self._radius - side / 2)
        top = round(self.height / 2 + part.dy * self._radius - side / 2)
        x0, x1 = max(0, left), min(self.width, left + side)
        y0, y1 = max(0, top), min(self.height, top + side)
        if x0 >= x1 or y0 >= y1:
            return
        shade, colour = self._sprite(part)
        there = (slice(y0, y1), slice(3 * x0, 3 * x1))
        here = (slice(y0 - top, y1 - top), slice(3 * (x0 - left), 3 * (x1 - left)))
        canvas[there] = (canvas[there] * shade[here] + colour[here]) >> 8

    def _draw_part(self, part: Part) -> tuple[Words, Words]:
        return self._stencil.draw(part)

    def _expose(self, canvas: Words, n: int) -> Pixels:
        """Light that wanders in brightness and colour, then the noise of the sensor."""
        beat = n + 997 * self.seed
        level = 0.82 + 0.10 * math.sin(beat / 97) + 0.03 * math.sin(beat / 11)
        warmth = 0.05 * math.sin(beat / 211)
        tint = np.array([level * (1 + warmth), level, level * (1 - warmth)]) * 255
        light = (self._lamp * np.tile(tint.astype(np.uint16), self.width)) >> 8
        signal = ((canvas * light) >> 8).view(np.int16)
        draw = random.Random(f"{self.seed}/{n}/noise")
        row, column = draw.randrange(_NOISE_SHIFT), 3 * draw.randrange(_NOISE_SHIFT)
        signal += self._noise[row : row + self.height, column : column + 3 * self.width]
        return np.clip(signal, 0, 255, out=signal).astype(np.uint8).reshape(self.height, self.width, 3)


_NOISE_SHIFT = 64


class _Stencil:
    """What parts of one size have in common. Pictures are flat: [rows, columns x 3]."""

    def __init__(self, radius: float) -> None:
        self.side = math.ceil(2.5 * radius)
        middle = (self.side - 1) / 2
        axis = (np.arange(self.side, dtype=np.float32) - middle) / radius
        self._y, self._x = np.meshgrid(axis, axis, indexing="ij")
        self._soft = radius
        self._distance = np.hypot(self._x, self._y)
        self._solid = self._inside(self._distance, 1.0) * (1 - self._inside(self._distance, BORE_RADIUS))
        self._metal = self._turned()
        blurred = np.clip((1.22 - np.hypot(self._x - 0.09, self._y - 0.12)) / 0.34, 0, 1)
        self._shadow = (1 - 0.62 * blurred).astype(np.float32)

    def _inside(self, distance: Floats, radius: float) -> Floats:
        """1 inside of a circle, 0 outside, with an edge of one pixel."""
        inside: Floats = np.clip((radius - distance) * self._soft + 0.5, 0, 1)
        return inside

    def _turned(self) -> Floats:
        """A face turned on a lathe: rings, the two bright sectors they reflect, bevelled edges."""
        angle = np.arctan2(self._y, self._x)
        rings = 0.035 * np.sin(self._distance * 46) + 0.02 * np.sin(self._distance * 131)
        sheen = 0.16 * np.cos(2 * (angle + 0.9)) + 0.05 * np.cos(angle + 2.2)
        slope = -(self._x + 1.3 * self._y) / 1.6
        bevel = self._ring(1.0, 0.06) * slope * 0.45 - self._ring(BORE_RADIUS, 0.06) * slope * 1.2
        step = -0.14 * self._ring(0.43, 0.022)
        metal: Floats = (0.82 + rings + sheen + bevel + step).astype(np.float32)
        return metal

    def _ring(self, radius: float, width: float) -> Floats:
        ring: Floats = np.clip(1 - np.abs(self._distance - radius) / width, 0, 1)
        return ring

    def draw(self, part: Part) -> tuple[Words, Words]:
        """(shade, colour): a picture P under the part becomes ``(P * shade + colour) >> 8``."""
        solid, metal = self._solid.copy(), self._metal.copy()
        angle, distance, strength = part.smudge
        spot = (self._x - distance * math.cos(angle)) ** 2 + (self._y - distance * math.sin(angle)) ** 2
        metal *= 1 - strength * np.clip(1 - spot * 8, 0, 1)
        for hole in range(part.label == "missing_hole", HOLES):
            self._drill(solid, metal, part.angle + math.tau * hole / HOLES)
        if part.label == "scratched":
            self._scratch(metal, part)
        tint = np.array(METALS[part.metal], np.float32)
        lit = np.clip(metal, 0, 1) * solid * 256
        colour = (lit[..., None] * tint).astype(np.uint16).reshape(self.side, -1)
        shade = np.repeat((256 * (1 - solid) * self._shadow).astype(np.uint16), 3, axis=1)
        return shade, colour

    def _drill(self, solid: Floats, metal: Floats, angle: float) -> None:
        x, y = HOLE_CIRCLE * math.cos(angle), HOLE_CIRCLE * math.sin(angle)
        reach = HOLE_RADIUS + 0.08
        to_pixel = self._soft, (self.side - 1) / 2
        rows, columns = (
            slice(
                math.floor((c - reach) * to_pixel[0] + to_pixel[1]), math.ceil((c + reach) * to_pixel[0] + to_pixel[1])
            )
            for c in (y, x)
        )
        dx, dy = self._x[rows, columns] - x, self._y[rows, columns] - y
        distance = np.hypot(dx, dy)
        edge = np.clip(1 - np.abs(distance - HOLE_RADIUS) / 0.06, 0, 1)
        metal[rows, columns] += edge * (dx + 1.3 * dy) / HOLE_RADIUS * 0.16
        solid[rows, columns] *= 1 - self._inside(distance, HOLE_RADIUS)

    def _scratch(self, metal: Floats, part: Part) -> None:
        """A bright groove with a dark lip, crossing the face beside the bore."""
        angle, distance, direction, half = part.scratch
        x, y = self._x - distance * math.cos(angle), self._y - distance * math.sin(angle)
        along = x * math.cos(direction) + y * math.sin(direction)
        across = y * math.cos(direction) - x * math.sin(direction) + 0.05 * np.sin(along * 7)
        ends = np.clip((half - np.abs(along)) * 10, 0, 1)
        metal += ends * np.clip(1.25 - np.abs(across) * 34, 0, 1) * 0.5
        metal -= ends * np.clip(1.25 - np.abs(across - 0.055) * 34, 0, 1) * 0.4


def _belt(texture: np.random.Generator, width: int, height: int) -> Pixels:
    """Ribbed rubber that repeats after one and a half pictures, plus one picture: any slice is whole."""
    period = round(1.5 * width)
    x, y = np.arange(period), np.arange(height)[:, None]
    turn = math.tau * x / period
    slant = np.abs(y - height / 2) / width * 1.2
    rib = np.sin(18 * (turn - slant * math.tau / 1.5))
    rubber = 78 + 6 * np.clip(rib * 3, -1, 1)
    for _ in range(6):
        waves, steep, phase = texture.integers(1, 6), texture.uniform(-3, 3), texture.uniform(0, math.tau)
        rubber = rubber + 1.6 * np.sin(waves * turn + steep * y / height * math.tau + phase)
    rubber += texture.normal(0, 3.2, (height, period))
    for _ in range(40):  # scuffs along the way the belt runs
        row, start = texture.integers(0, height), texture.integers(0, period)
        length = texture.integers(period // 40, period // 6)
        rubber[row, (start + np.arange(length)) % period] += texture.uniform(-14, 12)
    from_rail = np.minimum(y, height - 1 - y) / height - RAIL
    rubber *= np.clip(0.45 + from_rail * 8, 0.45, 1)
    colour = np.clip(rubber[..., None] * np.array([0.94, 1.0, 1.03]), 0, 255).astype(np.uint8)
    belt: Pixels = np.concatenate([colour, colour[:, :width]], axis=1).reshape(height, -1)
    return belt


def _rail(texture: np.random.Generator, width: int, height: int) -> Words:
    """The upper rail, [height, width x 3]: brushed aluminium with bolts; the lower one is its mirror image."""
    y = np.linspace(0, 1, height)[:, None]
    metal = 150 + 50 * np.sin(2.6 * y + 0.4) - 90 * (y > 0.86) + texture.normal(0, 5, (height, 1))
    metal = metal + texture.normal(0, 2, (1, width)) + np.zeros((height, width))
    x = np.arange(width)
    spacing, radius = width / 5, 0.26 * height
    distance = np.hypot((x + spacing / 2) % spacing - spacing / 2, (y - 0.45) * height)
    metal -= 70 * np.clip(radius + 1 - distance, 0, 1)
    metal += 80 * np.clip(radius - 1 - distance, 0, 1)
    colour = np.clip(metal[..., None] * np.array([0.97, 1.0, 1.04]), 0, 255)
    rail: Words = colour.astype(np.uint16).reshape(height, -1)
    return rail


def _lamp(width: int, height: int) -> Words:
    """A ring light over the middle: full there, two thirds in the corners; 255 = full."""
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    level = 255 * (1 - 0.17 * (x**2 + y**2))
    return np.repeat(level.astype(np.uint16), 3, axis=1)


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may follow ``synthetic:?``, e.g. ``synthetic:?seed=7&defects=0.4``."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] = 0
    defects: Share = DEFAULT_DEFECTS
    """Of the parts."""
    empty: Share = DEFAULT_EMPTY
    """Of the places on the belt."""


class SyntheticCamera(Camera):
    """An endless run of the conveyor; ``meta["truth"]`` of each picture is its label."""

    live = False

    def __init__(self, conveyor: Conveyor, fps: float) -> None:
        self.description = f"synthetic conveyor, seed {conveyor.seed}, {conveyor.width}x{conveyor.height}, {fps:g} fps"
        self._conveyor = conveyor
        self._fps = fps
        self._next = 0

    def read(self) -> Picture:
        n, conveyor = self._next, self._conveyor
        self._next += 1
        return Picture(
            width=conveyor.width,
            height=conveyor.height,
            captured_ns=time.time_ns(),
            pixels=conveyor.draw(n),
            pts=n / self._fps,
            meta={"truth": conveyor.truth(n)},
        )

    def close(self) -> None:
        """Nothing to give back."""


def open_synthetic(config: CameraConfig) -> SyntheticCamera:
    """The conveyor in the configured size and rate; a width alone keeps the proportions, and so does a height.

    ConfigError for unknown options and for more than MAX_PIXELS.
    """
    options = url_options(config, Options)
    width = config.width or round((config.height or DEFAULT_HEIGHT) * DEFAULT_WIDTH / DEFAULT_HEIGHT)
    height = config.height or round(width * DEFAULT_HEIGHT / DEFAULT_WIDTH)
    if width * height > MAX_PIXELS:
        raise wrong_url(config, f"{width}x{height} is over the limit of {MAX_PIXELS} pixels")
    conveyor = Conveyor(width, height, options.seed, options.defects, options.empty)
    return SyntheticCamera(conveyor, config.fps or DEFAULT_FPS)
