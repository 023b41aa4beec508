"""The public verbs of a model: caption, answer, chat, infill and generate.

Mixed into `MMDiffModel`, so that `mmdiff.load().caption("x.png")` works; each verb is a few lines
over `run`, which every head shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import Decoding, limited, make_decoding, with_seed
from mmdiff.decoding.stop import answer_length
from mmdiff.errors import InputError
from mmdiff.heads import look
from mmdiff.heads.base import HEADS, Example, Head
from mmdiff.heads.paint import paint
from mmdiff.heads.run import Generation, fill
from mmdiff.images import load_image
from mmdiff.raw_ids import canvas_from_ids, extend_canvas, left_padded

BATCH = 32  # rows decoded together; larger lists are cut into batches of this size


@dataclass
class GenerateOutput(ModelOutput):
    """`sequences` (B, P + N); `nfe`, `tokens_per_forward` (B,); `calls`: backbone calls in all;
    `trace`: every Step, where asked for."""

    sequences: Tensor | None = None
    nfe: Tensor | None = None
    calls: int | None = None
    tokens_per_forward: Tensor | None = None
    trace: Any = None


class Tasks:
    """Verbs of a model that has a `processor`; lists in give lists out."""

    processor: Any  # a Processor, or None; transformers evaluates class annotations at run time

    def caption(
        self, images: Any, prompt: str | None = None, *, allow_urls: bool = False, **decoding: Any
    ) -> Any:
        """Describe a picture, or each of a list of pictures."""
        inputs = [([image], prompt) for image in _listed(images)]
        made = self.run("caption", inputs, allow_urls=allow_urls, **decoding)
        return made if isinstance(images, (list, tuple)) else made[0]

    def answer(
        self, images: Any, question: Any, *, allow_urls: bool = False, **decoding: Any
    ) -> Any:
        """Answer a question about a picture (or pictures; None for no picture). A list of questions
        is answered in one batch, about the same pictures."""
        shown = [] if images is None else _listed(images)
        inputs = [(shown, q) for q in _listed(question)]
        made = self.run("answer", inputs, allow_urls=allow_urls, **decoding)
        return made if isinstance(question, (list, tuple)) else made[0]

    def chat(
        self, messages: Any, images: Any = (), *, allow_urls: bool = False, **decoding: Any
    ) -> Generation:
        """The next assistant turn. Pictures may stand in the messages ({"type": "image", "image":
        ...}) or come in `images`, in the order of the image parts."""
        messages, inline = _inline_images(messages)
        inputs = [(_listed(images) + inline, messages)]
        return self.run("chat", inputs, allow_urls=allow_urls, **decoding)[0]

    def infill(
        self, template: str, images: Any = (), *, allow_urls: bool = False, **decoding: Any
    ) -> Generation:
        """Fill the [MASK:n] holes of a template, with or without pictures."""
        inputs = [(_listed(images), template)]
        return self.run("infill", inputs, allow_urls=allow_urls, **decoding)[0]

    def paint(
        self: Any,
        text: Any,
        codec: Any = None,
        size: tuple[int, int] | None = None,
        **decoding: Any,
    ) -> Any:
        """Paint a text, or each of a list in one batch: a `GeneratedImage` with `.image`, `.codes`.

        `codec` as in `run` makes pixels of the codes; `size` (height, width) in pixels defaults to
        the family's own. Raises InputError for a model without image codes or a size that its codes
        do not divide.
        """
        made = paint(self, _listed(text), codec, size, **decoding)
        return made if isinstance(text, (list, tuple)) else made[0]

    def run(
        self: Any,
        head: str,
        inputs: Sequence[tuple[list[Any], Any]],
        *,
        allow_urls: bool = False,
        batch_size: int = BATCH,
        progress: Callable[[int], None] | None = None,
        codec: Any = None,
        **decoding: Any,
    ) -> list[Generation]:
        """Any head over (pictures, text) pairs, batch by batch; `progress` hears finished rows.

        `codec` makes codes of pictures where the family reads these so: one of
        `mmdiff.encoders.codes`, or the folder with its weights; it stays the model's own, and
        defaults to the one beside the checkpoint.

        Raises SettingError when `seed` is a list that has not one seed for each pair.
        """
        if self.processor is None:
            raise InputError("this checkpoint has no processor files; use generate(input_ids=...)")
        if codec is not None:
            look.use_codec(self, codec)
        task = HEADS.get(head)()
        settings = self.decoding(decoding, task.defaults)
        seeds = with_seed(settings, len(inputs))
        made: list[Generation] = []
        for start in range(0, len(inputs), batch_size):
            batch = slice(start, start + batch_size)
            chunk = inputs[batch]
            # The same object given twice is read, and later encoded, once.
            sources = {id(image): image for images, _ in chunk for image in images}
            read = {key: load_image(image, allow_urls).image for key, image in sources.items()}
            examples = [
                task.compose(self.processor, [read[id(image)] for image in images], text)
                for images, text in chunk
            ]
            made += self.fill(task, examples, replace(settings, seed=tuple(seeds[batch])))
            if progress:
                progress(len(chunk))
        return made

    def decoding(self: Any, given: Mapping[str, Any], defaults: Mapping[str, Any] = {}) -> Decoding:
        """The settings `given` over the checkpoint's own over a task's `defaults`."""
        return make_decoding(defaults, self.config.decoding, given)

    def fill(
        self: Any, task: Head, examples: Sequence[Example], settings: Decoding
    ) -> list[Generation]:
        """Decode one batch of a head's examples and read every row."""
        return fill(self, task, list(examples), settings)

    def generate(
        self: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Any = None,
        draft_tokens: Tensor | None = None,
        image_sizes: Any = None,
        image_grid_thw: Any = None,
        suffix_ids: Sequence[int] = (),
        draft_fixed: bool = True,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **decoding: Any,
    ) -> GenerateOutput:
        """Append `max_new_tokens` cells to raw ids (B, P) and fill them; needs no tokenizer.

        Rows may be padded on either side; `attention_mask` (B, P) is 0 there.

        `draft_tokens` (B, N) gives the answer region instead: cells holding the mask id are filled,
        all others stay, or may be revised with `draft_fixed=False`. `suffix_ids` stand fixed
        behind the answer. `pixel_values`, `image_sizes` and `image_grid_thw` as in
        `mmdiff.raw_ids.read_pictures`. `negative_prompt_ids` (B, P'), with a mask where padded, are
        the prompt that guidance compares with (`cfg_scale` above 0); without them that is the
        prompt's cells as mask ids.
        """
        settings = self.decoding(decoding)
        end_id = self.config.eos_token_id
        prompt = canvas_from_ids(
            self, input_ids, attention_mask, pixel_values, None, image_sizes, image_grid_thw
        )
        rows, length = prompt.shape
        if draft_tokens is None:
            shape = (rows, settings.max_new_tokens)
            draft_tokens = torch.full(shape, self.config.mask_token_id, device=input_ids.device)
        else:
            settings = limited(settings, draft_tokens.shape[1])
        suffix = torch.tensor(suffix_ids, dtype=torch.long, device=input_ids.device)
        draft_tokens = torch.cat([draft_tokens, suffix.expand(rows, -1)], dim=1)
        # The first answer cell follows its prompt, which a shifted checkpoint scores it from.
        canvas = extend_canvas(left_padded(prompt), draft_tokens, self.config.mask_token_id)
        if not draft_fixed:
            canvas.writable[:, length : length + settings.max_new_tokens] = True
        free = None
        if negative_prompt_ids is not None:
            negative = canvas_from_ids(self, negative_prompt_ids, negative_prompt_attention_mask)
            free = extend_canvas(left_padded(negative), draft_tokens, self.config.mask_token_id)
        filled = decode(self, canvas, settings, end_id, free)
        answer = filled.canvas.ids[:, length:]
        ends = () if end_id is None else (end_id,)
        lengths = answer_length(answer, (*ends, *settings.stop_ids))
        return GenerateOutput(
            sequences=torch.cat([prompt.ids, answer], dim=1),
            nfe=filled.nfe,
            calls=filled.calls,
            tokens_per_forward=lengths / filled.nfe.clamp(min=1),
            trace=filled.trace or None,
        )


def _listed(value: Any) -> list[Any]:
    """A list or tuple as a list, anything else as its only element."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _inline_images(messages: Any) -> tuple[Any, list[Any]]:
    """Messages with their {"type": "image", "image": x} pictures taken out, in order."""
    found: list[Any] = []
    if not isinstance(messages, list):
        return messages, found
    plain = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = []
            for part in content:
                if isinstance(part, dict) and "image" in part:
                    found.append(part["image"])
                    part = {"type": "image"}
                parts.append(part)
            message = {**message, "content": parts}
        plain.append(message)
    return plain, found
