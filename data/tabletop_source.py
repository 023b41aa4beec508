"""The generated tabletop world as a training source."""

from __future__ import annotations

from collections.abc import Iterator

from mmdiff.data.source import SOURCES, Sample, Turn
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
# Shapes are learned first on single big objects: on crowded tables alone a small encoder stays
# with colours for thousands of steps. Training samples below the number are of that stage.
STAGES = {"one": 8_000, "few": 20_000}
VALIDATION_SEED = 7919  # samples of another seed are other scenes


@SOURCES.register("tabletop")
class Tabletop:
    def sample(self, index: int, seed: int, turns: int, split: str) -> Sample:
        """A caption request and `turns` questions about one scene."""
        if split == "validation":
            seed += VALIDATION_SEED
            stage = "all"
        else:
            stage = next((name for name, end in STAGES.items() if index < end), "all")
        made = tabletop.training_example(index, seed, turns, stage)
        # Half of the requests are the default one, the rest go round the others.
        request = CAPTION_REQUESTS[0 if index % 2 else index // 2 % len(CAPTION_REQUESTS)]
        caption = Turn(request, made.caption, CAPTION_CELLS)
        asked = tuple(Turn(qa.question, qa.answer, ANSWER_CELLS) for qa in made.qas)
        return Sample(index, made.image, (caption, *asked))

    def text(self, seed: int) -> Iterator[str]:
        yield from CAPTION_REQUESTS
        for index in range(4000):
            rng = stream("tabletop words", seed, index)
            scene = tabletop.sample_scene(rng)
            yield tabletop.captions(scene, rng)
            for qa in tabletop.questions(scene, rng, 4):
                yield qa.question
                yield qa.answer
