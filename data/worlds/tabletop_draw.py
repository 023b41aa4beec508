"""Rendering a scene with numpy and Pillow: `render` is a pure function of scene and size.

The canvas is a float32 array (height, width, 3) in 0..255 at the final size; only the masks of the
objects are drawn larger and averaged, which is where anti-aliasing is needed.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmdiff.data.worlds.tabletop_backgrounds import background, noise
from mmdiff.data.worlds.tabletop_shapes import DEPTH, SIDE, is_box, outline
from mmdiff.data.worlds.tabletop_spec import Look, Obj, Scene, between, stream
from mmdiff.errors import SettingError

MAX_SIDE = 3000


def render(scene: Scene, size: int | None = None) -> Image.Image:
    """The RGB picture, `size` pixels along its longer side (the scene's own size when None).

    Raises SettingError when `size` is outside 16..3000.
    """
    longer = max(scene.width, scene.height)
    if size is not None and not 16 <= size <= MAX_SIDE:
        raise SettingError(f"render(size={size}): choose a longer side of 16 to {MAX_SIDE} pixels")
    scale = (size or longer) / longer
    width, height = max(1, round(scene.width * scale)), max(1, round(scene.height * scale))
    unit = math.sqrt(width * height)
    rng = stream("tabletop pixels", scene.seed)
    canvas = background(scene, rng, width, height)
    # Who stands farther down stands nearer, and hides what is behind.
    for obj in sorted(scene.objects, key=lambda obj: obj.y):
        if scene.look.shadow:
            _shadow(canvas, obj, unit, scene.look.shadow)
        _paint(canvas, obj, unit, scene.look.shaded)
    canvas = _lit(canvas, scene.look)
    picture = Image.fromarray(_bytes(canvas))
    if scene.look.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(scene.look.blur * unit))
    if scene.look.noise:
        offset = int(between(rng, 0, 1) * 512)
        grain = noise(height, width, offset)
        picture = Image.fromarray(_bytes(np.asarray(picture) + scene.look.noise * grain))
    return _compressed(picture, scene.look.jpeg) if scene.look.jpeg else picture


def _paint(canvas: np.ndarray, obj: Obj, unit: float, shaded: bool) -> None:
    radius = obj.radius * unit
    line = max(1.0, obj.outline * radius) if obj.outline else 0.0
    points = [(x * radius, y * radius) for x, y in outline(obj, shaded)]
    height, width = canvas.shape[:2]
    centre = (obj.x * width, obj.y * height)
    reach_x = max(abs(x) for x, _ in points) + line / 2 + 1
    reach_y = max(abs(y) for _, y in points) + line / 2 + 1
    left, right = max(0, int(centre[0] - reach_x)), min(width, int(centre[0] + reach_x) + 2)
    top, bottom = max(0, int(centre[1] - reach_y)), min(height, int(centre[1] + reach_y) + 2)
    if right <= left or bottom <= top:
        return
    patch = canvas[top:bottom, left:right]
    whole, inner = _masks([(x + centre[0] - left, y + centre[1] - top) for x, y in points],
                          patch.shape[1], patch.shape[0], line)  # fmt: skip
    if line:
        patch += whole * (np.array(obj.outline_rgb, dtype=np.float32) - patch)
    xs = (np.arange(left, right, dtype=np.float32) + 0.5 - centre[0]) / radius
    ys = (np.arange(top, bottom, dtype=np.float32) + 0.5 - centre[1]) / radius
    patch += inner * (_fill(obj, xs[None, :], ys[:, None], radius, shaded) - patch)


def _masks(
    points: list[tuple[float, float]], width: int, height: int, line: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (height, width, 1) in [0, 1] of the object with its outline, and of its inside."""
    finer = 4 if max(width, height) < 64 else 2 if max(width, height) < 600 else 1
    # Pillow's pixel centres are whole numbers, ours lie at halves.
    corners = [(x * finer - 0.5, y * finer - 0.5) for x, y in points]
    inside = Image.new("L", (width * finer, height * finer))
    ImageDraw.Draw(inside).polygon(corners, fill=255)
    if not line:
        mask = _coverage(inside, finer)
        return mask, mask
    whole = inside.copy()
    closed = [*corners, corners[0], corners[1]]
    for image, value in ((whole, 255), (inside, 0)):
        thick = max(1, round(line * finer))
        ImageDraw.Draw(image).line(closed, fill=value, width=thick, joint="curve")
    return _coverage(whole, finer), _coverage(inside, finer)


def _coverage(mask: Image.Image, finer: int) -> np.ndarray:
    smaller = mask.reduce(finer) if finer > 1 else mask
    return np.asarray(smaller, dtype=np.float32)[..., None] / np.float32(255)


def _fill(obj: Obj, xs: np.ndarray, ys: np.ndarray, radius: float, shaded: bool) -> np.ndarray:
    """Paint with texture and shading, (height, width, 3); xs, ys count radii from the centre."""
    turn = math.radians(obj.rotation)
    wide = math.sqrt(obj.aspect)
    across = (xs * math.cos(turn) + ys * math.sin(turn)) / wide
    down = (ys * math.cos(turn) - xs * math.sin(turn)) * wide
    colour = np.array(obj.rgb, dtype=np.float32)
    if obj.texture != "plain":
        marks = _marks(obj, across, down, radius)[..., None]
        colour = colour + marks * (np.array(obj.mark_rgb, dtype=np.float32) - colour)
    if not shaded:
        return colour
    shade, shine = _shading(obj, across, down)
    colour = np.minimum(colour * shade[..., None], np.float32(255))
    return colour + shine[..., None] * (np.float32(255) - colour)


def _marks(obj: Obj, across: np.ndarray, down: np.ndarray, radius: float) -> np.ndarray:
    """Where stripes or dots are, in [0, 1]; coarser on small objects, so that they stay visible."""
    cos, sin = math.cos(math.pi * obj.grain), math.sin(math.pi * obj.grain)
    u, v = across * cos + down * sin, down * cos - across * sin
    period = 0.62 if obj.size == "small" else 0.4
    if obj.texture == "striped":
        edge = np.abs(u / period - np.round(u / period)) - 0.25
        return np.clip(0.5 - edge * period * radius, 0, 1)
    period *= 1.12
    u, v = u - np.round(u / period) * period, v - np.round(v / period) * period
    return np.clip((0.3 * period - np.sqrt(u * u + v * v)) * radius + 0.5, 0, 1)


def _shading(obj: Obj, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor on the paint and share of white light on top; the light comes from the upper left."""
    none = np.zeros(np.broadcast(across, down).shape, dtype=np.float32)
    if obj.shape == "circle":
        towards = np.sqrt(np.maximum(0, 1 - across**2 - down**2))
        facing = np.maximum(0, -0.4 * across - 0.55 * down + 0.73 * towards)
        return 0.72 + 0.36 * facing, 0.5 * facing**24
    if is_box(obj, shaded=True):
        front = SIDE - DEPTH
        top = (down < -front) & (across < -down)
        side = (across > front) & (across > -down)
        return 1 + none - 0.24 * side, 0.28 * top + none
    if obj.shape == "triangle":
        # A cone: the lit band runs from the apex to the left part of the base.
        place = across / np.maximum(0.15, (down + 1.1) / 1.9)
        return 0.78 + 0.3 * np.exp(-((place + 0.3) ** 2) / 0.35), none
    return 0.97 - 0.12 * across - 0.12 * down + none, none


def _shadow(canvas: np.ndarray, obj: Obj, unit: float, dark: float) -> None:
    height, width = canvas.shape[:2]
    radius = obj.radius * unit
    x, y = obj.x * width + 0.15 * radius, obj.y * height + 0.85 * radius
    left, right = max(0, int(x - 1.6 * radius)), min(width, int(x + 1.6 * radius))
    top, bottom = max(0, int(y - 0.6 * radius)), min(height, int(y + 0.6 * radius))
    if right <= left or bottom <= top:
        return
    across = (np.arange(left, right, dtype=np.float32) - x) / (1.5 * radius)
    down = (np.arange(top, bottom, dtype=np.float32) - y) / (0.5 * radius)
    fall = np.maximum(0, 1 - across[None, :] ** 2 - down[:, None] ** 2)
    canvas[top:bottom, left:right] *= 1 - np.float32(dark) * (fall * fall)[..., None]


def _lit(canvas: np.ndarray, look: Look) -> np.ndarray:
    gain = np.array(look.gain, dtype=np.float32)
    if look.vignette:
        height, width = canvas.shape[:2]
        across = np.linspace(-1, 1, width, dtype=np.float32) ** 2
        down = np.linspace(-1, 1, height, dtype=np.float32) ** 2
        fall = 1 - np.float32(look.vignette / 2) * (across[None, :] + down[:, None])
        canvas = canvas * fall[..., None]
    return canvas * gain


def _bytes(canvas: np.ndarray) -> np.ndarray:
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _compressed(picture: Image.Image, quality: int) -> Image.Image:
    store = io.BytesIO()
    picture.save(store, "JPEG", quality=quality)
    return Image.open(store).convert("RGB")
