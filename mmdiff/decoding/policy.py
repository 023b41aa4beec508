"""A learned accept rule: a one-layer transformer over confidences says which cells to decide.

Policy (arXiv:2512.09106): for each open cell, the chance that it is decided now, from how sure the
model is of every cell of the block, which of them are still masked and how much of the answer is.
Its own sizes are not published; these are small enough to cost nothing beside a backbone.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from mmdiff.canvas import Canvas
from mmdiff.decoding.choose import ACCEPTS
from mmdiff.decoding.draws import Draws, top
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import CheckpointError, SettingError

CONFIG, WEIGHTS = "policy.json", "policy.safetensors"


class Policy(nn.Module):
    """Logits (b, n) of deciding cells of a block now: from `chance`, the probability of what the
    model would take there (decided cells: 1), `masked`, both (b, n), and `left` (b,), the share of
    the answer that is masked. Cells that are not `valid` (b, n) are seen by none; the others know
    their number among them by sines and cosines.
    """

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        if width < 2 or width % 2 or heads < 1 or width % heads:
            raise SettingError(
                f"a policy's width={width} must be a multiple of 2 and heads={heads}"
            )
        self.width, self.heads = width, heads
        self.enter = nn.Linear(3, width)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.leave = nn.Linear(width, 1)

    def forward(self, chance: Tensor, masked: Tensor, valid: Tensor, left: Tensor) -> Tensor:
        seen = torch.stack([chance, masked.to(chance), left[:, None].expand_as(chance)], dim=2)
        hidden = self.enter(seen) + self.places(valid).to(chance)
        hidden = self.layer(hidden, src_key_padding_mask=~valid)
        logits: Tensor = self.leave(hidden)[..., 0]
        return logits

    def places(self, valid: Tensor) -> Tensor:
        """(b, n, width) of the cells' numbers among the valid ones."""
        number = (valid.long().cumsum(1) - 1).clamp(min=0)
        count = self.width // 2
        rate = 1e4 ** (-torch.arange(count, device=valid.device) / count)
        angle = number[..., None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=2)

    def save(self, folder: str | Path) -> None:
        """Sizes and weights, for `policy=FOLDER`."""
        from safetensors.torch import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        sizes = {"width": self.width, "heads": self.heads}
        (path / CONFIG).write_text(json.dumps(sizes) + "\n", encoding="utf-8")
        save_file(self.state_dict(), path / WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> Policy:
        """What `save` wrote; raises CheckpointError for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(folder)
        try:
            sizes = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            made = cls(**sizes)
            made.load_state_dict(load_file(path / WEIGHTS))
        except (
            OSError, ValueError, TypeError, RuntimeError, SafetensorError, SettingError
        ) as error:  # fmt: skip
            raise CheckpointError(
                f"policy {path}: holds no {CONFIG} and {WEIGHTS} that fit ({error}); write them "
                "with Policy.save"
            ) from None
        return made.eval()


@ACCEPTS.register("policy")
class Learned:
    """Each open cell by its own draw, with the chance that the network in the folder `policy` gives
    it; the likeliest one where none is drawn. Noise is that of the row's seed."""

    def __init__(self, settings: Decoding, canvas: Canvas) -> None:
        if settings.policy is None:
            raise SettingError("accept=policy needs a trained network; use policy=FOLDER")
        self.network = Policy.load(settings.policy).to(canvas.device)
        self.cells = canvas.writable.sum(1)

    def __call__(
        self, score: Tensor, probability: Tensor, canvas: Canvas, rows: Tensor, draws: Draws
    ) -> Tensor:
        is_open = score > float("-inf")
        block = canvas.writable & (canvas.block == canvas.open_block())
        left = (canvas.masked & canvas.writable).sum(1) / self.cells[rows]
        chance = torch.where(canvas.masked, probability, 1.0).float()
        columns = block.any(0)  # of all open blocks; a row sees its own alone
        inputs = (x[:, columns] for x in (chance, canvas.masked, block))
        logits = torch.full_like(score, float("-inf"), dtype=torch.float32)
        logits[:, columns] = self.network(*inputs, left)
        logits = logits.masked_fill(~is_open, float("-inf"))
        own, drawn = draws.within(is_open), torch.zeros_like(is_open)
        drawn[is_open] = own.uniform() < logits.sigmoid()[is_open]
        one = (~drawn.any(1) & is_open.any(1)).long()
        return drawn | top(logits, one)
