"""Plots as SVG text: bars, and points with errors. Everything written in them is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH = 720
BAR = 22
LEFT = 260  # where bars begin; names stand before


def bars(rows: Sequence[tuple[str, float, str]], most: float) -> str:
    """A horizontal bar for each (name, value, what stands behind it); `most` fills the width."""
    height = BAR * len(rows) + 8
    body = []
    for number, (name, value, label) in enumerate(rows):
        y = 4 + BAR * number
        length = max(0.0, (WIDTH - LEFT - 110) * value / most) if most else 0.0
        body += [
            _text(LEFT - 8, y + 15, _short(name, 38), "end"),
            f'<rect class="bar" x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{BAR - 7}"/>',
            _text(LEFT + length + 6, y + 15, label),
        ]
    return _svg(height, body)


def points(
    rows: Sequence[tuple[str, float, float, float]], across: str, up: str, height: int = 360
) -> str:
    """A point with an error bar for each (name, x, y, half its interval), axes from zero on x."""
    right, top, bottom, left = WIDTH - 150, 16, height - 46, 70
    most_x = max((x for _, x, _, _ in rows), default=1) * 1.1 or 1
    low = min((y - half for _, _, y, half in rows), default=0)
    high = max((y + half for _, _, y, half in rows), default=1)
    room = (high - low) * 0.1 or max(abs(high), 1) * 0.1
    low, high = low - room, high + room

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * x / most_x,
            bottom - (bottom - top) * (y - low) / (high - low),
        )

    body = [
        f'<path class="axis" d="M{left} {top} V{bottom} H{right}"/>',
        _text((left + right) / 2, height - 8, across, "middle"),
        f'<g transform="rotate(-90 14 {(top + bottom) / 2})">'
        f"{_text(14, (top + bottom) / 2, up, 'middle')}</g>",
    ]
    for tick in range(5):
        value_x, value_y = most_x * tick / 4, low + (high - low) * tick / 4
        x, y = place(value_x, value_y)
        body += [
            _text(x, bottom + 18, f"{value_x:.3g}", "middle"),
            _text(left - 6, y + 4, f"{value_y:.3g}", "end"),
            f'<path class="grid" d="M{left} {y:.1f} H{right}"/>',
        ]
    for name, value, score, half in rows:
        x, y = place(value, score)
        _, end_low = place(value, score - half)
        _, end_high = place(value, score + half)
        body += [
            f'<path class="axis" d="M{x:.1f} {end_low:.1f} V{end_high:.1f}"/>',
            f'<circle class="bar" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
            _text(x + 9, y - 6, _short(name, 24)),
        ]
    return _svg(height, body)


def _svg(height: int, body: Sequence[str]) -> str:
    view = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {view}>{"".join(body)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
