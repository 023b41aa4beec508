"""Tokenizer, chat template and processor of an autoregressive folder, with a mask token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.errors import CheckpointError
from mmdiff.processing import ImageSettings, Processor, TextSettings, read_tokenizer

if TYPE_CHECKING:
    from mmdiff.checkpoints.base import Family
    from mmdiff.model import MMDiffModel

MASK = "<|mask|>"
PLAIN = (
    "{% for m in messages %}### {{ m['role'] | capitalize }}:\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
# Put before a template that reads a message's content as a list of parts: ours is always text.
AS_PARTS = (
    "{% set made = namespace(parts=[]) %}{% for m in messages %}{% set made.parts = made.parts + "
    "[{'role': m['role'], 'content': [{'type': 'text', 'text': m['content']}]}] %}{% endfor %}"
    "{% set messages = made.parts %}"
)
PROBE = "What is this?"


@dataclass(frozen=True)
class Words:
    """A tokenizer with a mask token. `known` are the ids it had before, `used` is one more than its
    last id, `rows` what the tables of the new model have."""

    tokenizer: Any
    mask_token: str
    mask_id: int
    mask_is_new: bool
    known: tuple[int, ...]
    used: int
    rows: int
    image_token: str | None

    @property
    def notes(self) -> list[str]:
        if self.mask_is_new:
            return []
        return [f"the tokenizer's own {self.mask_token} is the mask token; its rows stay"]


def read_words(folder: Path, mask_token: str | None, rows: int, image_id: int | None) -> Words:
    """The folder's tokenizer with its mask token, for tables of so many `rows`.

    Raises CheckpointError where there is no tokenizer, where the token is an ordinary word, or
    where the picture's id is no token.
    """
    tokenizer = read_tokenizer(folder)
    ids = tokenizer.get_vocab()
    token = mask_token or tokenizer.mask_token or MASK
    if token in ids and token not in tokenizer.get_added_vocab():
        raise CheckpointError(
            f"{folder}: {token!r} is a word of the vocabulary; name another mask token"
        )
    names = {i: word for word, i in ids.items()}
    if image_id is not None and image_id >= 0 and image_id not in names:
        raise CheckpointError(f"{folder}: the tokenizer has no token {image_id}, the picture's")
    tokenizer.add_special_tokens({"mask_token": token})
    mask_id = int(tokenizer.convert_tokens_to_ids(token))
    used = max(tokenizer.get_vocab().values()) + 1
    return Words(
        tokenizer=tokenizer,
        mask_token=token,
        mask_id=mask_id,
        mask_is_new=token not in ids,
        known=tuple(sorted(names)),
        used=used,
        rows=max(rows, used),
        image_token=names.get(-1 if image_id is None else image_id),
    )


def processor_of(
    model: MMDiffModel, words: Words, family: Family, folder: Path
) -> tuple[Processor, list[str]]:
    """The processor of the new model, and notes on how its prompts differ from the source's."""
    tokenizer = words.tokenizer
    pictures = model.vision is not None
    template, notes = chat_template(tokenizer, folder, family.template, pictures)
    tokenizer.chat_template = template
    text = TextSettings(
        mask_id=words.mask_id,
        end_ids=end_ids(tokenizer, folder),
        after_images=family.after_images,
        image_token=words.image_token,
    )
    vision = model.vision
    image = ImageSettings.of(vision, model.image_tokens) if vision is not None else ImageSettings()
    return Processor(tokenizer, image, text, model.tiling), notes


def end_ids(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """Ids that end an answer, the tokenizer's own first; CheckpointError where there is none."""
    found = [tokenizer.eos_token_id]
    config = _json(folder / "config.json")
    for said in (_json(folder / "generation_config.json"), config, config.get("text_config") or {}):
        ends = said.get("eos_token_id")
        found += ends if isinstance(ends, list) else [ends]
    ids = tuple(dict.fromkeys(int(i) for i in found if i is not None))
    if not ids:
        raise CheckpointError(f"{folder}: names no end-of-text token; set eos_token_id")
    return ids


def chat_template(
    tokenizer: Any, folder: Path, usual: str | None, pictures: bool
) -> tuple[str, list[str]]:
    """A template that reads messages whose content is text, by default the `usual` one, and notes.

    Processors of pictures keep theirs in chat_template.json, read the content as a list of parts,
    and let the tokenizer put its begin-of-text before the whole. Raises CheckpointError for a
    template that cannot be used.
    """
    template = tokenizer.chat_template or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, dict):
        template = template.get("default")
    template = template or usual
    notes: list[str] = []
    if template is None:
        template, notes = PLAIN, ["there is no chat template; a plain one was written"]
    rendered = render(tokenizer, template)
    if rendered is None:
        template = AS_PARTS + template
        rendered = render(tokenizer, template)
    if rendered is None:
        raise CheckpointError(f"{folder}: the chat template does not show what a user says")
    begins = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    if (pictures or notes) and begins and not rendered.startswith(tokenizer.bos_token):
        template = "{{ bos_token }}" + template
    return template, notes


def render(tokenizer: Any, template: str) -> str | None:
    """A question through the template; None where it does not come out."""
    messages = [{"role": "user", "content": PROBE}]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # whatever a template raises for what it does not expect
        return None
    return text if PROBE in text else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's settings, none where there is no such file."""
    if not path.is_file():
        return {}
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    return made if isinstance(made, dict) else {}
