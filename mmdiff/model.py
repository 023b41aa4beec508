"""The model: encoders -> projector -> bidirectional backbone -> logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mmdiff.backbone import PARTS, KeyValueCache, build_decoder, run_decoder
from mmdiff.canvas import Canvas, Features
from mmdiff.diffusion.attention import Cells, additive, allowed, in_parts
from mmdiff.diffusion.losses import shift_right
from mmdiff.encoders.projectors import build_projector
from mmdiff.encoders.vision import build_vision
from mmdiff.encoders.vision.patches import Patching, cells_of, read_cutting
from mmdiff.encoders.vision.tiles import merge
from mmdiff.errors import SettingError
from mmdiff.heads.tasks import Tasks
from mmdiff.processing import Processor
from mmdiff.raw_ids import canvas_from_ids


class MMDiffConfig(PreTrainedConfig):
    """Architecture and special ids; lives in config.json.

    `text_config` and `vision_config` are plain dicts (a transformers `model_type` with its sizes; a
    vision encoder's `spec()`), `projector` the projector's kind and options, `tiling` how pictures
    are cut into tiles (`mmdiff.encoders.vision.tiles`; None: squashed to one) or, where it has
    `max_pixels`, patches (`mmdiff.encoders.vision.patches`). `image_token_id` is negative where the
    vocabulary has no such token. `vocab_used` cuts off vocabulary rows that no token uses: they can
    never be generated. `codes` (first id, how many) are the ids that stand for a picture's codes.
    `block_size` is for the block layout: blocks of so many cells from a row's first cell on, so
    that the prompt is block-causal too (None: the prompt is one block). `picture_apart`: trained on
    packed rows, where picture cells never see the question behind them. `turn_causal`: trained so
    that the turns of a conversation see no later ones (`processing.turn_blocks`). `decoding` holds
    the default decoding settings the checkpoint was meant for. A published checkpoint of another
    project carries the name of its `family` and its `published` config.json, and one of the hub the
    commit it was loaded from as `revision`.
    """

    model_type = "mmdiff"

    def __init__(
        self,
        text_config: dict[str, Any] | None = None,
        vision_config: dict[str, Any] | None = None,
        projector: dict[str, Any] | None = None,
        tiling: dict[str, Any] | None = None,
        attention_layout: str = "full",
        block_size: int | None = None,
        picture_apart: bool = False,
        turn_causal: bool = False,
        shift: bool = False,
        mask_token_id: int = 0,
        image_token_id: int | None = None,
        vocab_used: int | None = None,
        codes: list[int] | None = None,
        forbidden_ids: list[int] | None = None,
        decoding: dict[str, Any] | None = None,
        family: str | None = None,
        published: dict[str, Any] | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = text_config or {"model_type": "llama"}
        self.vision_config = vision_config
        self.projector = projector
        self.tiling = tiling
        self.attention_layout = attention_layout
        self.block_size = block_size
        self.picture_apart = picture_apart
        self.turn_causal = turn_causal
        self.shift = shift
        self.mask_token_id = mask_token_id
        self.image_token_id = image_token_id
        self.vocab_used = vocab_used
        self.codes = codes
        self.forbidden_ids = forbidden_ids or []
        self.decoding = decoding or {}
        self.family = family
        self.published = published
        self.revision = revision
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)

    @property
    def prompt_cache_exact(self) -> bool:
        """Trained so that the prompt never sees the answer: its keys and values can be kept. Where
        `block_size` cuts the prompt, its tail shares a block with the answer: see cache=block."""
        return self.attention_layout in ("prefix", "block") and self.block_size is None


@dataclass
class MMDiffOutput(ModelOutput):
    logits: Tensor | None = None


class MMDiffModel(Tasks, PreTrainedModel):
    """Everything from pixels and ids to logits. `caption`, `answer`, `chat`, `infill` and
    `generate` come from `mmdiff.heads.tasks`."""

    config_class = MMDiffConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MMDiffConfig) -> None:
        super().__init__(config)
        self.backbone = build_decoder(config.text_config, config._attn_implementation)
        width = self.backbone.config.hidden_size
        self.vision = self.projector = None
        if config.vision_config:
            self.vision = build_vision(config.vision_config)
            options = dict(config.projector or {"kind": "mlp2x_gelu"})
            self.projector = build_projector(
                options.pop("kind"), self.vision.width, width, **options
            )
        self.tiling = read_cutting(config.tiling) if config.tiling else None
        self.image_newline = None
        if getattr(self.tiling, "newline", False):
            self.image_newline = nn.Parameter(torch.randn(width) / width**0.5)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(width, self.backbone.config.vocab_size, bias=False)
        self.processor: Processor | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the parts as their own libraries initialised them."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """A folder that `mmdiff.load` reads: config, weights and the processor, if any."""
        super().save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, and the folder's processor comes along."""
        loaded = super().from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if Processor.saved_in(name):
            model.processor = Processor.from_pretrained(name)
        return loaded

    def get_input_embeddings(self) -> nn.Embedding:
        table: nn.Embedding = self.backbone.get_input_embeddings()
        return table

    @property
    def image_tokens(self) -> int:
        """Canvas cells that one picture fills, or of one tile where pictures are tiled; at most
        where pictures keep their size."""
        if self.vision is None or self.projector is None:
            return 0
        if isinstance(self.tiling, Patching):
            return self.tiling.most
        return int(self.projector.tokens_out(self.vision.tokens))

    def cells_of(self, size: tuple[int, int]) -> int:
        """Canvas cells that a picture of `size` (width, height) fills."""
        return cells_of(size, self.tiling, self.image_tokens)

    @property
    def three_axes(self) -> bool:
        """Whether the backbone rotates by time, row and column (M-RoPE)."""
        rope = getattr(self.backbone.config, "rope_parameters", None) or {}
        return "mrope_section" in rope

    @property
    def rows(self) -> int:
        """Rows of the vocabulary table."""
        return int(self.backbone.config.vocab_size)

    def encode(self, features: Features) -> Tensor:
        """(K, D) projected encoder outputs for the cells of `features`."""
        assert self.vision is not None and self.projector is not None
        pixels = features.pixel_values.to(self.dtype)
        if isinstance(self.tiling, Patching):
            shapes = [block.grid for block in features.blocks or [] if block.grid is not None]
            seen = self.vision(pixels, self.tiling.patch_grids(shapes))
            return self.projector(seen)[features.source]
        tokens = self.projector(self.vision(pixels))
        if self.tiling is None or features.blocks is None:
            return tokens.flatten(0, 1)[features.source]
        merged, first = [], 0
        for block in features.blocks:
            last = first + block.tiles
            tiles = tokens[first:last]
            merged.append(merge(tiles, block.grid, block.size, self.tiling, self.image_newline))
            first = last
        return torch.cat(merged)[features.source]

    def embed(self, canvas: Canvas) -> Tensor:
        """(B, L, D): word embeddings with encoder outputs painted into their cells."""
        words = self.get_input_embeddings()(canvas.ids)
        if canvas.features is None:
            return words
        painted = self.encode(canvas.features).to(words.dtype)
        flat = words.flatten(0, 1).index_copy(0, canvas.features.cells, painted)
        return flat.view_as(words)

    def hidden(
        self,
        canvas: Canvas,
        embeds: Tensor,
        start: int = 0,
        stop: int | None = None,
        cache: KeyValueCache | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, D) of the columns [start, stop), or of `columns` (B, Q), which `embeds` holds.

        With a cache, keys of columns [0, start) come from it; without, start must be 0. With
        `columns` its caller has said where they go (`KeyValueCache.at`), and it holds all others.
        """
        stop = canvas.ids.shape[1] if stop is None else stop
        key = Cells.of(canvas, 0, stop)
        if columns is None:
            query, position = Cells.of(canvas, start, stop), canvas.position[..., start:stop]
        else:
            query, numbers = Cells.at(canvas, columns), canvas.position
            position = numbers.gather(-1, columns.expand(*numbers.shape[:-1], -1))
        layout = canvas.layout or self.config.attention_layout
        if canvas.parts and self.backbone.config._attn_implementation == PARTS:
            see = in_parts(canvas, layout)
        else:
            see = allowed(query, key, layout)
        mask = additive(see, embeds.dtype)
        if cache is not None and columns is None:
            cache.window(start, stop)
        return run_decoder(self.backbone, embeds, position, mask, cache)

    def head(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Logits (..., V) of hidden states (..., D), or those of some rows of the vocabulary."""
        if not self.config.tie_word_embeddings and rows == slice(None):
            logits: Tensor = self.lm_head(hidden)
            return logits
        table = self.get_input_embeddings() if self.config.tie_word_embeddings else self.lm_head
        return F.linear(hidden, table.weight[rows])

    def forbidden(self, codes: tuple[int, int] | None = None, anything: bool = False) -> Tensor:
        """(n,) ids that no cell may take: those of another lane, that is image codes in text and
        everything but `codes` (first id, how many) in a picture; mask, image placeholder, unused
        vocabulary rows. With `anything`, cells may take any id but a picture's `codes` alone."""
        config = self.config
        taken = torch.ones(self.rows, dtype=torch.bool)
        if not anything:
            taken[config.vocab_used or self.rows :] = False
            reserved = [config.mask_token_id, config.image_token_id, *config.forbidden_ids]
            taken[[i for i in reserved if i is not None and 0 <= i < self.rows]] = False
        if codes is not None:
            first, end = codes[0], sum(codes)
            if not 0 <= first < end <= self.rows:
                raise SettingError(f"codes={codes}: not inside the {self.rows} ids of this model")
            taken[:first] = taken[end:] = False
        elif config.codes and not anything:
            taken[config.codes[0] : sum(config.codes)] = False
        return (~taken).nonzero()[:, 0].to(self.device)

    def score(self, canvas: Canvas, need: Tensor, embeds: Tensor | None = None) -> Tensor:
        """(K, V) logits of the needed cells (B, L) bool, row-major; no cache. `embeds` is what
        `embed(canvas)` gave, where the caller needed it too."""
        embeds = self.embed(canvas) if embeds is None else embeds
        return self.head(self.pick(self.hidden(canvas, embeds), need))

    def pick(self, hidden: Tensor, need: Tensor, start: int = 0) -> Tensor:
        """(K, D) hidden states that score the needed cells; `hidden` begins at column `start`."""
        rows, cells = self.scoring(need)
        return hidden[rows, cells - start]

    def scoring(self, need: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and cells (K,) whose hidden states score the needed cells (B, L).

        A shifted checkpoint scores cell i from position i - 1 (cell 0 from itself).
        """
        rows, cells = need.nonzero(as_tuple=True)
        return rows, (cells - 1).clamp(min=0) if self.config.shift else cells

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Any = None,
        writable: Tensor | None = None,
        attention_layout: str | None = None,
        image_sizes: Any = None,
        image_grid_thw: Any = None,
        **_: Any,
    ) -> MMDiffOutput:
        """Logits (B, L, V); row i scores cell i.

        `input_ids` (B, L) have canvas length, or hold one placeholder -200 per picture, which is
        expanded here. `writable` (B, L) marks the answer, which a prefix-layout prompt cannot see.
        `attention_layout` is used in place of the model's own. `pixel_values`, `image_sizes` and
        `image_grid_thw` as in `mmdiff.raw_ids.read_pictures`.
        """
        canvas = canvas_from_ids(
            self, input_ids, attention_mask, pixel_values, writable, image_sizes, image_grid_thw
        )
        canvas.layout = attention_layout
        if self.config.block_size is not None:
            canvas.align_blocks(self.config.block_size)
        hidden = self.hidden(canvas, self.embed(canvas))
        if self.config.shift:
            hidden = shift_right(hidden)
        return MMDiffOutput(logits=self.head(hidden))


AutoConfig.register("mmdiff", MMDiffConfig)
AutoModel.register(MMDiffConfig, MMDiffModel)
