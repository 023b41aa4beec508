"""Three-axis positions against a loop over cells, and canvases that carry them."""

import pytest
import torch

from mmdiff.errors import InputError
from mmdiff.positions import three_axes


def brute(row):
    """(time, row, column) of each cell; `row` lists "text" cells and (columns, rows) pictures."""
    made, following = [], 0
    for part in row:
        if part == "text":
            made.append((following,) * 3)
            following += 1
            continue
        columns, rows = part
        made += [(following, following + y, following + x) for y in range(rows)
                 for x in range(columns)]  # fmt: skip
        following += max(columns, rows)
    return made, following


ROWS = [
    ["text", (4, 3), "text", "text"],
    ["text", (2, 5), (3, 1), "text"],  # no text between two pictures
    [(1, 1), "text"],
    ["text"] * 5,
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_equal_the_loop(side):
    expected = [brute(row) for row in ROWS]
    length = max(len(cells) for cells, _ in expected) + 1
    valid = torch.zeros(len(ROWS), length, dtype=torch.bool)
    pictured = torch.zeros_like(valid)
    places = []
    for i, (row, (cells, _)) in enumerate(zip(ROWS, expected, strict=True)):
        start = length - len(cells) if side == "left" else 0
        places.append(slice(start, start + len(cells)))
        valid[i, places[i]] = True
        kinds = [part != "text" for part in row for _ in range(1 if part == "text" else
                                                               part[0] * part[1])]  # fmt: skip
        pictured[i, places[i]] = torch.tensor(kinds)
    grids = [part for row in ROWS for part in row if part != "text"]
    position, delta = three_axes(pictured, grids, valid)
    for i, (cells, following) in enumerate(expected):
        assert list(map(tuple, position[:, i, places[i]].T.tolist())) == cells
        assert int(delta[i, 0]) == following - length
    assert not bool(position[:, ~valid].any())


@pytest.mark.parametrize(
    ("cells", "grids"), [("tppt", [(3, 1)]), ("tppt", []), ("tpp", [(2, 1), (1, 1)])]
)
def test_grids_that_do_not_fit_are_refused(cells, grids):
    pictured = torch.tensor([[c == "p" for c in cells]])
    with pytest.raises(InputError, match="picture"):
        three_axes(pictured, grids, torch.ones_like(pictured))
