"""The MAGVIT-v2 picture tokenizer of Show-o and MMaDA (showlab/magvitv2): a convolutional encoder
and decoder around 13 look-up-free bits. Module names are those of the published weights."""

import json
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmdiff.encoders.codes import CODECS
from mmdiff.encoders.codes.lfq import to_codes, to_latents
from mmdiff.errors import CheckpointError

ENCODER: dict[str, Any] = {
    "ch": 128,
    "ch_mult": [1, 2, 2, 4, 4],
    "num_res_blocks": [4, 3, 4, 3, 4],
    "z_channels": 13,
}
DECODER = ENCODER | {"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": [4, 4, 3, 4, 3]}
IGNORED = ("resolution", "attn_resolutions", "dropout", "in_ch", "out_ch", "double_z")
DERIVED = ("quantize.",)  # tables of all codes, which follow from the number of bits


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv(inside: int, outside: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, side, padding=side // 2)


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.norm1, self.conv1 = norm(inside), conv(inside, outside)
        self.norm2, self.conv2 = norm(outside), conv(outside, outside)
        self.nin_shortcut = conv(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj_out(seen.unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1 = Residual(channels, channels), Attention(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, then a step down or up where there is another level."""

    def __init__(self, inside: int, outside: int, blocks: int, step: str | None):
        super().__init__()
        sizes = [inside] + [outside] * blocks
        self.block = nn.ModuleList(map(Residual, sizes, sizes[1:]))
        self.step = step
        if step == "down":
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(outside, outside, 3, stride=2)})
        elif step == "up":
            self.upsample = nn.ModuleDict({"conv": conv(outside, outside)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.step == "down":  # the padding of TensorFlow's `same`
            return self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        if self.step == "up":
            return self.upsample["conv"](F.interpolate(x, scale_factor=2, mode="nearest"))
        return x


class Encoder(nn.Module):
    def __init__(self, ch: int, ch_mult: list[int], num_res_blocks: list[int], z_channels: int):
        super().__init__()
        self.conv_in = conv(3, ch)
        sizes = [ch * m for m in (1, *ch_mult)]
        steps = ["down"] * (len(ch_mult) - 1) + [None]
        self.down = nn.ModuleList(map(Level, sizes, sizes[1:], num_res_blocks, steps))
        self.mid, self.norm_out = Middle(sizes[-1]), norm(sizes[-1])
        self.conv_out = conv(sizes[-1], z_channels)
        self.quant_conv = conv(z_channels, z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) -> latents (n, z, h, w)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    def __init__(self, ch: int, ch_mult: list[int], num_res_blocks: list[int], z_channels: int):
        super().__init__()
        self.post_quant_conv = conv(z_channels, z_channels, 1)
        outside = [ch * m for m in ch_mult]
        inside = [*outside[1:], outside[-1]]
        steps = [None] + ["up"] * (len(ch_mult) - 1)
        self.conv_in, self.mid = conv(z_channels, outside[-1]), Middle(outside[-1])
        self.up = nn.ModuleList(map(Level, inside, outside, num_res_blocks, steps))
        self.norm_out, self.conv_out = norm(outside[0]), conv(outside[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        """Latents (n, z, h, w) -> pixels (n, 3, H, W)."""
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Magvit(nn.Module):
    def __init__(self, encoder: dict[str, Any], decoder: dict[str, Any]):
        super().__init__()
        self.encoder, self.decoder = Encoder(**encoder), Decoder(**decoder)
        self.bits = encoder["z_channels"]
        self.size = 2**self.bits
        self.factor = 2 ** (len(encoder["ch_mult"]) - 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] -> codes (n, h, w)."""
        return to_codes(self.encoder(pixels.to(self.encoder.conv_in.weight)))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, h, w) -> pixels (n, 3, H, W)."""
        z = to_latents(codes, self.bits).to(self.decoder.conv_in.weight)
        pixels: Tensor = self.decoder(z)
        return pixels


def sizes(config: dict[str, Any], part: str, published: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Encoder or Decoder; CheckpointError for a variant that is not built."""
    given = config.get(part, {})
    unknown = given.keys() - published.keys() - set(IGNORED)
    if unknown:
        raise CheckpointError(f"magvit: the {part} has no setting {min(unknown)!r}")
    made = published | {key: value for key, value in given.items() if key in published}
    sides = [given.get("resolution", 256) // 2**i for i in range(len(made["ch_mult"]))]
    if set(sides) & set(given.get("attn_resolutions", ())):
        raise CheckpointError(f"magvit: attention inside the levels of the {part} is not supported")
    return made


def said_in(path: Path) -> dict[str, Any]:
    """What the folder's config.json says of encoder and decoder; the published one says nothing."""
    file = path / "config.json"
    if not file.is_file():
        return {}
    try:
        said = dict(json.loads(file.read_text(encoding="utf-8")))
        return {part: dict(said[part]) for part in ("encoder", "decoder") if part in said}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from None


@CODECS.register("magvit")
def load(path: Path, config: dict[str, Any] | None = None) -> Magvit:
    """A Magvit with the weights of a file or a folder; nothing missing, nothing over. Sizes that
    are not in `config` are those of the folder's config.json, else the published ones."""
    from mmdiff.checkpoints.weights import files, tensors

    config = said_in(path) if config is None else config
    model = Magvit(sizes(config, "encoder", ENCODER), sizes(config, "decoder", DECODER))
    found: dict[str, Tensor] = {}
    for file in files(path) if path.is_dir() else [path]:
        found |= dict(tensors(file, "cpu"))
    found = {key: tensor for key, tensor in found.items() if not key.startswith(DERIVED)}
    wanted = model.state_dict()
    for key in sorted(found.keys() ^ wanted.keys()):
        said = "lacks the weight" if key in wanted else "holds a weight that the codec has not"
        raise CheckpointError(f"{path}: the checkpoint {said}: {key}")
    for key, tensor in wanted.items():
        if tensor.shape != found[key].shape:
            raise CheckpointError(
                f"{path}: {key} is {tuple(found[key].shape)}, not {tuple(tensor.shape)}"
            )
    model.load_state_dict(found)
    return model.eval().requires_grad_(False)
