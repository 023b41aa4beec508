"""Show a model's parts, sizes and defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff import adapters
from mmdiff.checkpoints import hub
from mmdiff.checkpoints.base import find_native
from mmdiff.cli._common import JsonOption, say_json
from mmdiff.errors import CheckpointError
from mmdiff.loading import DEFAULT, base_folder, model_config, read_config, resolve

if TYPE_CHECKING:
    from pathlib import Path

BF16_BYTES = 2


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A built-in name or a checkpoint folder.")
    ] = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show a model's parts, sizes and defaults, without loading its weights."""
    folder = resolve(model)
    facts = {"model": model, **describe(base_folder(folder))}
    if base := adapters.base_of(folder):
        facts["adapters_for"] = base
    if as_json:
        say_json(facts)
    else:
        show(facts)


def describe(folder: Path) -> dict[str, Any]:
    """JSON-able facts about a checkpoint: its config, and the model built without storage."""
    stored = stored_weights(folder)
    native = find_native(read_config(folder))
    facts = native.describe(folder) if native else own_facts(folder)
    memory = facts["parameters"]["total"] * BF16_BYTES
    revision = hub.commit(folder) or read_config(folder).get("revision")
    return {**facts, "memory_bf16_bytes": memory, "stored": stored, "revision": revision}


def own_facts(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint that runs on our model."""
    from mmdiff.checkpoints import weights

    family, config = model_config(folder)
    model = weights.empty(config, folder)
    text: Any = model.backbone.config
    vision = model.vision
    return {
        "family": config.family or "mmdiff",
        "title": family.title,
        "parameters": count_parameters(model),
        "backbone": {
            "kind": text.model_type,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "max_tokens": getattr(text, "max_position_embeddings", None),
        },
        "vision": vision
        and {"kind": vision.name, "image_size": vision.image_size, "width": vision.width},
        "projector": (config.projector or {}).get("kind"),
        "tokens_per_picture": model.image_tokens,
        "vocabulary": {"rows": text.vocab_size, "used": config.vocab_used or text.vocab_size},
        "attention_layout": config.attention_layout,
        "prompt_cache_exact": config.prompt_cache_exact,
        "shift": config.shift,
        "decoding": config.decoding,
    }


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters by part; a tied output head has none of its own. The newline vector behind rows of
    visual tokens counts as the projector's."""
    parts = dict.fromkeys(("vision", "projector", "backbone", "lm_head"), 0)
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts["projector" if part == "image_newline" else part] += parameter.numel()
    return {**{k: v for k, v in parts.items() if v}, "total": sum(parts.values())}


def stored_weights(folder: Path) -> dict[str, Any]:
    """What the weight files hold, from their headers: {"dtypes": [...], "bytes": n}."""
    from safetensors import SafetensorError, safe_open

    from mmdiff.checkpoints import weights

    found, dtypes = weights.files(folder), set[str]()
    for file in found:
        if file.suffix != ".safetensors":
            dtypes |= {str(t.dtype).removeprefix("torch.") for _, t in weights.tensors(file, "cpu")}
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                dtypes |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error})") from error
    return {"dtypes": sorted(dtypes), "bytes": sum(file.stat().st_size for file in found)}


def show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(facts):
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The table's lines."""
    backbone, vision, vocabulary = facts["backbone"], facts["vision"], facts["vocabulary"]
    parts = {k: v for k, v in facts["parameters"].items() if k != "total"}
    exact = "exact" if facts["prompt_cache_exact"] else "approximate"
    picture = "takes no pictures"
    if vision:
        size = vision["image_size"]
        shape, most = (f"{size} x {size} pixels", "") if size else ("any size", "up to ")
        picture = f"{shape} -> {most}{facts['tokens_per_picture']} tokens"
    return [
        ("model", facts["model"]),
        *([("adapters for", facts["adapters_for"])] if "adapters_for" in facts else []),
        ("family", facts["family"]),
        *([("revision", facts["revision"])] if facts["revision"] else []),
        ("parameters", millions(facts["parameters"]["total"])),
        *((f"  {part}", millions(count)) for part, count in parts.items()),
        ("memory", f"{megabytes(facts['memory_bf16_bytes'])} in bfloat16, without activations"),
        ("stored", f"{megabytes(facts['stored']['bytes'])} {', '.join(facts['stored']['dtypes'])}"),
        ("vision", f"{vision['kind']}, width {vision['width']}" if vision else "none"),
        ("picture", picture),
        ("projector", facts["projector"] or "none"),
        (
            "backbone",
            f"{backbone['kind']}, {backbone['layers']} layers, width {backbone['width']}, "
            f"{backbone['heads']} heads, up to {backbone['max_tokens']} tokens",
        ),
        ("vocabulary", f"{vocabulary['used']} tokens in {vocabulary['rows']} rows"),
        ("attention", f"trained with the {facts['attention_layout']} layout"),
        ("prompt cache", exact),
        ("decoding", "  ".join(f"{k}={v}" for k, v in facts["decoding"].items()) or "defaults"),
    ]


def millions(count: int) -> str:
    if count < 1e5:
        return f"{count:,}"
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
