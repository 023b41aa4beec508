"""A stock transformers decoder run bidirectionally, and the key/value cache it writes into.

The decoder classes are transformers' own (`LlamaModel`, `Qwen2Model`, ...), with
`config.is_causal=False` where nothing is masked, an additive float 4-D mask everywhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KeyValueCache:
    """Rotated keys and values of each layer in buffers of full canvas length (B, H, L, d).

    Writes go to columns [start, start + Q), or to some columns of some rows; attention then reads
    the columns [0, stop). Behaves as a transformers cache (`update`, `get_seq_length`) without ever
    concatenating.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.start = 0
        self.stop = length
        self.place: tuple[Tensor, Tensor] | None = None
        self.rows = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def window(self, start: int, stop: int) -> KeyValueCache:
        """The next forward writes from column `start` and reads columns [0, stop)."""
        self.start, self.stop, self.place = start, stop, None
        return self

    def at(self, rows: Tensor, columns: Tensor, total: int) -> KeyValueCache:
        """The next forward writes columns (r, Q) of these rows (r,), of `total` ones, and reads all
        their columns."""
        self.place, self.rows = (rows, columns), total
        self.start, self.stop = 0, self.length
        return self

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        if layer not in self.keys:
            rows, heads, _n, width = keys.shape
            rows = self.rows if self.place else rows
            self.keys[layer] = keys.new_zeros(rows, heads, self.length, width)
            self.values[layer] = values.new_zeros(rows, heads, self.length, values.shape[-1])
        if self.place:
            fed, columns = self.place
            for whole, new in ((self.keys[layer], keys), (self.values[layer], values)):
                whole[fed[:, None], :, columns] = new.transpose(1, 2)
            if len(fed) == self.rows:
                return self.keys[layer], self.values[layer]
            return self.keys[layer][fed], self.values[layer][fed]
        end = self.start + keys.shape[2]
        self.keys[layer][:, :, self.start : end] = keys
        self.values[layer][:, :, self.start : end] = values
        return self.keys[layer][:, :, : self.stop], self.values[layer][:, :, : self.stop]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.start

    def get_query_offset(self, layer: int = 0) -> int:
        return self.start

    def get_mask_sizes(self, queries: int, layer: int = 0) -> tuple[int, int]:
        return self.stop, 0

    def widen(self, length: int) -> None:
        """Room for a canvas of `length` columns, where there is less."""
        more = length - self.length
        if more > 0:
            self.length = length
            for kept in (self.keys, self.values):
                kept.update({i: F.pad(tensor, (0, 0, 0, more)) for i, tensor in kept.items()})

    def select(self, rows: Tensor) -> None:
        """Keep only these rows: finished ones leave the batch."""
        self.keys = {layer: k[rows] for layer, k in self.keys.items()}
        self.values = {layer: v[rows] for layer, v in self.values.items()}


PARTS = "mmdiff_parts"  # an attention implementation's name, for training on packed rows


def attend_in_parts(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of rows whose first S cells are seen by all, and whose other cells are in n parts
    of W that do not see each other; S from `mask` (B, n, W, S + W) and the row's length.

    query (B, H, L, d), key and value (B, h, L, d) -> (B, L, H, d). It computes S^2 + n W (S + W)
    scores a row for L^2.
    """
    rows, heads, length, depth = query.shape
    parts, width = mask.shape[1:3]
    shared = length - parts * width
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))

    def split(tensor: Tensor) -> tuple[Tensor, Tensor]:
        front, own = tensor[:, :, :shared], tensor[:, :, shared:]
        return front, own.reshape(rows, heads, parts, width, depth)

    def behind(tensor: Tensor) -> Tensor:
        front, own = split(tensor)
        return torch.cat([front[:, :, None].expand(-1, -1, parts, -1, -1), own], 3)

    def attend(q: Tensor, k: Tensor, v: Tensor, hide: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-1, -2) * scaling
        if hide is not None:
            scores = scores + hide
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v

    front, own = split(query)
    seen = attend(front, split(key)[0], split(value)[0], None)
    rest = attend(own, behind(key), behind(value), mask[:, None])
    output = torch.cat([seen, rest.reshape(rows, heads, parts * width, depth)], 2)
    return output.transpose(1, 2).contiguous(), None


def see_in_parts(decoder: PreTrainedModel) -> None:
    """Let this decoder use `attend_in_parts` on canvases that have `parts`."""
    from transformers import AttentionInterface

    AttentionInterface.register(PARTS, attend_in_parts)
    decoder.set_attn_implementation(PARTS)


def build_decoder(text_config: dict[str, Any], attention: str | None = None) -> PreTrainedModel:
    """A bidirectional decoder without head from a transformers config (`model_type` + sizes)."""
    from transformers import AutoConfig, AutoModel

    settings = dict(text_config)
    kind = settings.pop("model_type", None)
    if kind is None:
        raise SettingError("text_config has no model_type; name a transformers decoder, e.g. llama")
    config = AutoConfig.for_model(kind, **settings)
    config.is_causal = False
    config.use_cache = False
    if attention is not None:
        config._attn_implementation = attention
    return AutoModel.from_config(config)


def run_decoder(
    decoder: PreTrainedModel,
    embeds: Tensor,
    position: Tensor,
    mask: Tensor | None,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """Hidden states (B, Q, D) of `embeds` (B, Q, D) at `position` (B, Q).

    `mask` is additive (B, 1, Q, K), or None when every query sees every key.
    """
    implementation = getattr(decoder.config, "_attn_implementation", "sdpa")
    if mask is not None and implementation not in ("sdpa", "eager", PARTS):
        raise SettingError(
            f"attention {implementation!r} cannot take this mask; load with attention='sdpa'"
        )
    output = decoder(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden
