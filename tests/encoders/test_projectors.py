import pytest
import torch

from mmdiff.encoders.projectors import build_projector
from mmdiff.errors import SettingError

GELU = torch.nn.functional.gelu


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("linear", 49), ("mlp2x_gelu", 49), ("mlp4x_gelu", 49), ("pooler", 9), ("avg_pool", 9)],
)
def test_shapes_and_gradients(kind, tokens):
    projector = build_projector(kind, 6, 10, norm=True)
    out = projector(torch.randn(2, 49, 6))
    assert out.shape == (2, tokens, 10) and projector.tokens_out(49) == tokens
    out.square().sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_mlp_is_linear_gelu_linear():
    projector = build_projector("mlp2x_gelu", 6, 10)
    first, second = projector.layers[0], projector.layers[2]
    x = torch.randn(3, 5, 6)
    hidden = x @ first.weight.T + first.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    assert torch.allclose(projector(x), hidden @ second.weight.T + second.bias, atol=1e-6)
    assert len(build_projector("mlp3x_gelu", 6, 10).layers) == 5
    assert len(build_projector("linear", 6, 10).layers) == 1


@pytest.mark.parametrize("side", [4, 5])
def test_average_pool_by_hand(side):
    projector = build_projector("avg_pool", 3, 8)
    x = torch.randn(2, side * side, 3)
    half = side // 2
    pooled = torch.empty(2, half * half, 3)
    for row in range(half):
        for column in range(half):
            cells = [
                x[:, (2 * row + i) * side + 2 * column + j] for i in range(2) for j in range(2)
            ]
            pooled[:, row * half + column] = sum(cells) / 4
    assert torch.allclose(projector(x), projector.layers(pooled), atol=1e-6)


def test_conv_pool_by_hand():
    projector = build_projector("pooler", 3, 8, ratio=3)
    x = torch.randn(2, 49, 3)
    kernel, last = projector.conv.weight, projector.layers[1]
    pooled = projector.conv.bias.repeat(2, 4, 1)
    for row in range(2):
        for column in range(2):
            for i in range(3):
                for j in range(3):
                    cell = x[:, (3 * row + i) * 7 + 3 * column + j]
                    pooled[:, row * 2 + column] += cell @ kernel[:, :, i, j].T
    expected = GELU(pooled) @ last.weight.T + last.bias
    assert torch.allclose(projector(x), expected, atol=1e-5)
    assert build_projector("pooler", 3, 8).tokens_out(729) == 169


def test_mistakes():
    with pytest.raises(SettingError, match="Did you mean"):
        build_projector("avgpool", 3, 8)
    with pytest.raises(SettingError, match="unknown option 'ratio'; it has norm"):
        build_projector("linear", 3, 8, ratio=2)
    with pytest.raises(SettingError, match="unknown option 'depth'"):
        build_projector("mlp2x_gelu", 3, 8, depth=4)
    with pytest.raises(SettingError, match="ratio is 0"):
        build_projector("pooler", 3, 8, ratio=0)
    with pytest.raises(SettingError, match="48 tokens"):
        build_projector("avg_pool", 3, 8)(torch.zeros(1, 48, 3))
    with pytest.raises(SettingError, match="1 tokens"):
        build_projector("avg_pool", 3, 8).tokens_out(1)


@pytest.mark.parametrize(("kind", "side"), [("linear", 4), ("mlp2x_gelu", 4), ("avg_pool", 2)])
def test_places_add_a_row_and_a_column_vector(kind, side):
    torch.manual_seed(0)
    projector = build_projector(kind, 6, 10, places=side)
    x = torch.randn(2, 16, 6)
    with_places = projector(x)
    projector.rows, rows = None, projector.rows
    plain = projector(x)
    for row in range(side):
        for column in range(side):
            place = rows[row, 0] + projector.columns[0, column]
            cell = row * side + column
            assert torch.allclose(with_places[:, cell], plain[:, cell] + place, atol=1e-6)


def test_places_of_another_grid_are_refused():
    with pytest.raises(SettingError, match="places is 3, but the encoder gives 16 tokens"):
        build_projector("linear", 6, 10, places=3)(torch.zeros(1, 16, 6))
