"""The generated tabletop world as a training source."""

from __future__ import annotations

from collections.abc import Iterator

from mmdiff.data.source import SOURCES, Anchor, Sample, Turn
from mmdiff.data.worlds import tabletop
from mmdiff.data.worlds.tabletop_spec import stream
from mmdiff.heads.caption import PROMPT

CAPTION_REQUESTS = (
    PROMPT,
    "describe the image.",
    "what do you see?",
    "write a caption.",
)
CAPTION_CELLS, ANSWER_CELLS = 64, 8
VALIDATION_SEED = 7919  # samples of another seed are other scenes


@SOURCES.register("tabletop")
class Tabletop:
    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample:
        """A caption request and `turns` questions about one scene."""
        if split == "validation":
            seed += VALIDATION_SEED
        made = tabletop.training_example(index, seed, turns)
        # Half of the requests are the default one, the rest go round the others.
        request = CAPTION_REQUESTS[0 if index % 2 else index // 2 % len(CAPTION_REQUESTS)]
        caption = Turn(request, made.caption, CAPTION_CELLS)
        asked = tuple(Turn(qa.question, qa.answer, ANSWER_CELLS) for qa in made.qas)
        anchors = tuple(
            Anchor(o.x, o.y, (o.colour, o.shape, o.size, o.texture)) for o in made.scene.objects
        )
        return Sample(index, (made.image,), (caption, *asked), anchors)

    def name(self, index: int, seed: int, split: str) -> str:
        return f"scene {index}"

    def length(self, index: int, seed: int) -> int:
        return 0

    def text(self, seed: int) -> Iterator[str]:
        yield from CAPTION_REQUESTS
        for index in range(4000):
            rng = stream("tabletop words", seed, index)
            scene = tabletop.sample_scene(rng)
            yield tabletop.captions(scene, rng)
            for qa in tabletop.questions(scene, rng, 4):
                yield qa.question
                yield qa.answer
