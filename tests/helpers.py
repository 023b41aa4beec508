"""A tiny random checkpoint that every verb can load, made in a second without a download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mmdiff.model import MMDiffModel
    from mmdiff.processing import Row
    from mmdiff.training.packing import Pair

PLACEHOLDER = -200  # one per picture in raw ids
TEXTS = ["a red circle, a blue square and a green star.", "how many circles are there?"]
TEXT_CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
VISION_CONFIG = {
    "source": "transformers",
    "model_type": "bit",
    "image_size": 32,
    "config": {
        "embedding_size": 8,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_groups": 8,
        "global_padding": "SAME",
    },
}
NEW_MODEL = {
    "text_config": TEXT_CONFIG,
    "vision_config": VISION_CONFIG,
    "projector": {"kind": "mlp2x_gelu"},
    "vocab_size": 320,
}


def tiny_model() -> MMDiffModel:
    """A model with small random weights and its processor."""
    from mmdiff.training.build import fit_tokenizer, new_model
    from mmdiff.training.recipe import NewModel

    spec = NewModel(**NEW_MODEL, decoding={"max_new_tokens": 6})
    return new_model(spec, fit_tokenizer(TEXTS * 20, spec.vocab_size), seed=0).eval()


def tiny_checkpoint(folder: Path) -> Path:
    """`folder`, holding the tiny model."""
    tiny_model().save_pretrained(folder)
    return folder


def sharp_model() -> MMDiffModel:
    """The tiny model in float64 with large weights: its answers depend on every cell they should,
    and no two choices lie within rounding of each other."""
    import torch

    model = tiny_model().double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(1.5 if name.endswith("embed_tokens.weight") else 10)
    return model


def ids(rows: int = 2, cells: int = 10, seed: int = 0) -> Tensor:
    """Random plain ids (rows, cells)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 250, (rows, cells), generator=generator)


def pixels(n: int, side: int = 32, seed: int = 0) -> Tensor:
    """Random pixel values (n, 3, side, side)."""
    import torch

    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def separate_prefix(pairs: list[Pair], copies: int, image: int, shared: int) -> list[Row]:
    """One row per turn and copy, as a packed row shows them: the prompt clean and the `shared`
    first cells, the picture's, apart from the question."""
    from mmdiff.training.packing import separate

    rows = separate(pairs, copies, [image])
    for row in rows:
        row.copy[: row.prompt] = [0] * row.prompt
        row.segment[:shared] = [0] * shared
    return rows
