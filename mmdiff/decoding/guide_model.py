"""The small autoregressive model of guided diffusion: opened from its folder, read rows to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiff.errors import CheckpointError


@dataclass(frozen=True)
class GuideModel:
    """A causal language model of transformers and its tokenizer, None where the folder has none."""

    network: Any
    tokenizer: Any

    @property
    def rows(self) -> int:
        """Rows of its vocabulary table."""
        return int(self.network.config.get_text_config().vocab_size)

    @property
    def begin(self) -> int | None:
        """The id that its texts begin with, if any."""
        return getattr(self.tokenizer, "bos_token_id", None)

    @property
    def end(self) -> int | None:
        """The id that ends a text."""
        ends = self.network.generation_config.eos_token_id
        return ends[0] if isinstance(ends, Sequence) else ends


@lru_cache(maxsize=1)  # every batch of a session asks for it
def open_guide(name: str | Path, device: torch.device, dtype: torch.dtype) -> GuideModel:
    """Any causal language model of transformers whose keys and values can be kept, from a folder
    of safetensors; it stays in memory until another is opened. Raises CheckpointError for one that
    cannot be read, or that folds the text into a state (Mamba)."""
    from transformers import AutoModelForCausalLM

    from mmdiff.checkpoints.weights import open_stock
    from mmdiff.loading import resolve
    from mmdiff.processing import read_tokenizer

    folder = resolve(name)
    network = open_stock(AutoModelForCausalLM, folder, device, dtype)
    if network._is_stateful:
        raise CheckpointError(
            f"{folder}: as a guide a model must forget rejected tokens, which this one's state "
            "cannot; use one with attention alone"
        )
    named = ("tokenizer.json", "merges.txt")
    found = any((folder / file).is_file() for file in named)
    return GuideModel(network, read_tokenizer(folder) if found else None)


class Reader:
    """Reads rows of ids to a guide, padded on the right, where causal attention never looks.

    Keys and values of the leading columns that no row has changed since the last call are kept.
    """

    def __init__(self, network: Any) -> None:
        from transformers import DynamicCache

        self.network = network
        self.cache = DynamicCache()
        self.numbers: list[int] = []
        self.rows: list[list[int]] = []

    def __call__(self, numbers: list[int], rows: list[list[int]], first: int) -> Tensor:
        """(b, n, V): what the guide says, from all before, of columns first, first + 1, ... of
        `rows`; first is at least 1 and `numbers` name the rows, of which some may leave."""
        kept = self._keep(numbers, rows, first - 1)
        width = max(first, *map(len, rows))
        padded = [row[kept:] + [0] * (width - max(kept, len(row))) for row in rows]
        heard = width - first + 1
        logits: Tensor = self.network(
            input_ids=torch.tensor(padded, device=self.network.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=heard,
        ).logits
        self.numbers, self.rows = numbers, rows
        return logits[:, -heard:-1]

    def _keep(self, numbers: list[int], rows: list[list[int]], most: int) -> int:
        """How many leading columns, `most` at most, are in the cache now."""
        if numbers != self.numbers and self.numbers:
            place = [self.numbers.index(number) for number in numbers]
            self.cache.batch_select_indices(torch.tensor(place, device=self.network.device))
            self.rows = [self.rows[i] for i in place]
        kept = min([most, *map(common, self.rows, rows)]) if self.rows else 0
        if more := self.cache.get_seq_length() - kept:
            self.cache.crop(-more)
        return kept


def common(one: list[int], other: list[int]) -> int:
    """How many ids two lists begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
