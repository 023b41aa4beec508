"""A cache inside the layers: of the answer, only cells whose values moved are computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.backbone import KeyValueCache
from mmdiff.canvas import Canvas
from mmdiff.decoding.cache import CACHES, Cache
from mmdiff.decoding.draws import top
from mmdiff.decoding.settings import PLAIN, Decoding, between, whole
from mmdiff.diffusion.attention import Cells, additive, allowed
from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from mmdiff.model import MMDiffModel

# Decoders that are nothing but rotary angles, layers and a norm.
LAYERED = ("llama", "qwen2", "qwen3", "qwen2_5_vl_text")


@CACHES.register("refresh")
class Refresh(Cache):
    """The prompt is computed every `prompt` steps, the answer every `answer` steps. In the steps
    between, a layer projects the values of the whole answer, and the int(`share` n) of its n cells
    whose values are least like the kept ones, by cosine, go through the layer; the others add to
    their residual stream what they added last (dLLM-Cache, arXiv:2506.06295,
    `cache_hook_LLaDA.py`; 100, 7 and 0.25 for LLaDA and Dream, prompt=25 for LLaDA-V, prompt=20 and
    answer=2 to 5 for MMaDA). An approximation.

    In the first layer values depend on a cell's own token alone, so that nearly all tie: it
    computes the whole answer. Each row chooses its own cells.
    """

    options: ClassVar[dict[str, float]] = {"prompt": 100, "answer": 7, "share": 0.25}

    def __init__(
        self,
        model: MMDiffModel,
        canvas: Canvas,
        settings: Decoding = PLAIN,
        prompt: float = 100,
        answer: float = 7,
        share: float = 0.25,
    ) -> None:
        kind = model.backbone.config.model_type
        if kind not in LAYERED:
            raise SettingError(
                f"cache=refresh runs layers one by one, which is made for {', '.join(LAYERED)}, "
                f"not {kind}; use cache=delayed"
            )
        between("cache=refresh: share", share, 0, 1)
        self.model, self.share = model, share
        self.every = whole("cache=refresh: prompt", prompt), whole("cache=refresh: answer", answer)
        self.prompt = model.embed(canvas)[:, : canvas.prompt_length]
        self.store = KeyValueCache(canvas.shape[1])
        blank = self.prompt.new_zeros(*canvas.shape, self.prompt.shape[2])
        self.added = [blank.clone() for _ in model.backbone.layers]  # by each layer to each cell
        self.hidden = blank
        self.step = 0

    def score(self, canvas: Canvas, need: Tensor) -> Tensor:
        prompt, answer = (self.step % steps == 0 for steps in self.every)
        self.step += 1
        first = 0 if prompt else canvas.prompt_length
        answers = canvas.valid[:, canvas.prompt_length :]
        counts = torch.tensor([int(n * self.share) for n in answers.sum(1).tolist()])
        for count in counts.unique().tolist():  # rows that compute equally many cells
            rows = (counts == count).nonzero()[:, 0].to(canvas.device)
            self.total += 1
            made = self._run(canvas, rows, first, None if answer else count)
            self.hidden[rows, first:] = made
        return self.model.head(self.model.pick(self.hidden, need))

    def _run(self, canvas: Canvas, rows: Tensor, first: int, count: int | None) -> Tensor:
        """(r, W, D) of the columns from `first` on of these rows (r,): all computed, or of the
        answer `count` cells a layer."""
        view, start = canvas.select(rows), canvas.prompt_length
        x = self.model.get_input_embeddings()(view.ids[:, start:])
        if first < start:
            x = torch.cat([self.prompt[rows], x], dim=1)
        for number in range(len(self.added)):
            fed = torch.ones_like(view.ids[:, first:], dtype=torch.bool)
            if number and count is not None:
                cells = view.valid[:, start:]
                fed[:, start - first :] = self._moved(
                    number, x[:, start - first :], cells, rows, count
                )
            columns = fed.nonzero()[:, 1].view(len(rows), -1) + first
            given = x.gather(1, _wide(columns - first, x))
            made = self._layer(number, given, view, rows, columns)
            self.added[number][rows[:, None], columns] = made - given
            x = (x + self.added[number][rows, first:]).scatter(1, _wide(columns - first, x), made)
        normed: Tensor = self.model.backbone.norm(x)
        return normed

    def _moved(self, number: int, x: Tensor, cells: Tensor, rows: Tensor, count: int) -> Tensor:
        """(r, N) bool: the `count` cells of the answer x (r, N, D) whose values turned most, of
        those marked in `cells`. All new values are kept."""
        layer, values = self.model.backbone.layers[number], self.store.values[number]
        kept = values[rows, :, -x.shape[1] :].transpose(1, 2)
        new = layer.self_attn.v_proj(layer.input_layernorm(x)).view(kept.shape)
        values[rows, :, -x.shape[1] :] = new.transpose(1, 2)
        exact = torch.promote_types(new.dtype, torch.float32)
        # 1 - cosine is half the square of how far directions lie apart, which is exact near 0.
        before, now = (F.normalize(v.flatten(2).to(exact), dim=2) for v in (kept, new))
        turned = (now - before).square().sum(2).masked_fill(~cells, float("-inf"))
        return top(turned, torch.full_like(rows, count))

    def _layer(
        self, number: int, given: Tensor, view: Canvas, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """(r, Q, D): what a layer makes of `given` (r, Q, D), which stands at columns (r, Q)."""
        if not columns.shape[1]:
            return given
        decoder, position = self.model.backbone, view.position
        position = position.gather(-1, columns.expand(*position.shape[:-1], -1))
        layout = view.layout or self.model.config.attention_layout
        mask = additive(allowed(Cells.at(view, columns), Cells.of(view), layout), given.dtype)
        if mask is None:  # a layer alone would take that for causal
            mask = given.new_zeros(1, 1, 1, view.shape[1])
        made = decoder.layers[number](
            given,
            attention_mask=mask,
            position_ids=position,
            past_key_values=self.store.at(rows, columns, len(self.hidden)),
            use_cache=True,
            position_embeddings=decoder.rotary_emb(given, position),
        )
        out: Tensor = made[0] if isinstance(made, tuple) else made
        return out

    def select(self, rows: Tensor) -> None:
        self.prompt, self.hidden = self.prompt[rows], self.hidden[rows]
        self.added = [added[rows] for added in self.added]
        self.store.select(rows)


def _wide(columns: Tensor, like: Tensor) -> Tensor:
    """columns (r, Q) as an index into `like` (r, W, D)."""
    return columns[..., None].expand(-1, -1, like.shape[2])
