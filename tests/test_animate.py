"""The animation: frames, timing, and files that are whole or not there."""

import pytest
from PIL import Image

from mmdiff.animate import FRESH, LAST_MS, MASKED, MAX_FRAMES, Scene, animate, check_target
from mmdiff.errors import InputError, SettingError
from mmdiff.training.build import fit_tokenizer

PICTURE = Image.new("RGB", (60, 40), "red")


@pytest.fixture(scope="module")
def processor():
    from mmdiff.processing import ImageSettings, Processor

    return Processor(fit_tokenizer(["a red circle."] * 20, 300), ImageSettings())


@pytest.fixture
def trace(processor):
    """Three cells, then end-of-text, then two cells that the end closes."""
    words = processor.encode("a red circle")[:3]
    answer = [*words, processor.end_id, processor.end_id, processor.end_id]
    masked = [True] * 6
    steps = []
    for accepted in ([1], [0, 3], [2]):
        for cell in accepted:
            masked[cell] = False
        if 3 in accepted:
            masked[4:] = [False, False]
        ids = [processor.mask_id if m else i for i, m in zip(answer, masked, strict=True)]
        flags = [cell in accepted for cell in range(6)]
        steps.append({"ids": ids, "masked": list(masked), "accepted": flags})
    return steps


def middle(scene, frame, cell):
    """The colour near a cell's left edge, where no letter stands."""
    left, top, _, bottom = scene.boxes[cell]
    return "#{:02x}{:02x}{:02x}".format(*frame.getpixel((left + 4, (top + bottom) // 2)))


def test_frames_show_the_canvas(processor, trace):
    scene = Scene(PICTURE, trace, processor)
    frames = list(scene.frames())
    assert len(frames) == 4
    assert {middle(scene, frames[0], cell) for cell in range(6)} == {MASKED}
    assert middle(scene, frames[1], 1) == FRESH
    assert middle(scene, frames[1], 0) == MASKED
    assert MASKED not in {middle(scene, frames[-1], cell) for cell in range(6)}
    assert middle(scene, frames[2], 4) not in (MASKED, FRESH)  # closed by the end, not decided


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_files(processor, trace, tmp_path, suffix):
    path = animate(PICTURE, trace, processor, tmp_path / f"out{suffix}")
    image = Image.open(path)
    assert image.n_frames == 4
    image.seek(3)
    image.load()
    assert image.info["duration"] == LAST_MS
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_words_of_a_template_stand_from_the_start(processor, trace):
    given = [{**step, "masked": [False, *step["masked"][1:]]} for step in trace]
    for step in given:
        step["ids"] = [trace[-1]["ids"][0], *step["ids"][1:]]
        step["accepted"] = [False, *step["accepted"][1:]]
    scene = Scene(PICTURE, given, processor)
    first = next(scene.frames())
    assert middle(scene, first, 0) != MASKED
    assert middle(scene, first, 1) == MASKED


def test_long_answers_are_wrapped_and_thinned(processor):
    cells, steps = 300, 300
    trace = [
        {
            "ids": [processor.mask_id] * cells,
            "masked": [cell > step for cell in range(cells)],
            "accepted": [cell == step for cell in range(cells)],
        }
        for step in range(steps)
    ]
    scene = Scene(PICTURE, trace, processor)
    assert max(box[2] for box in scene.boxes) <= scene.size[0]
    assert max(box[3] for box in scene.boxes) <= scene.size[1]
    scene.frame = lambda step, number: number
    numbers = list(scene.frames())
    assert len(numbers) <= MAX_FRAMES + 2
    assert (numbers[0], numbers[-1]) == (0, steps)


@pytest.mark.parametrize("name", ["out.mp4", "out", "no/folder/out.gif"])
def test_targets_that_are_refused(tmp_path, name):
    with pytest.raises(SettingError, match="out"):
        check_target(tmp_path / name)


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "out.gif").mkdir()
    with pytest.raises(SettingError, match="is a folder"):
        check_target(tmp_path / "out.gif")


def test_an_empty_trace(processor, tmp_path):
    with pytest.raises(InputError, match="trace=true"):
        animate(PICTURE, [], processor, tmp_path / "out.gif")


def test_a_write_that_fails_leaves_nothing(processor, trace, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SettingError, match="No space left"):
        animate(PICTURE, trace, processor, tmp_path / "out.gif")
    assert list(tmp_path.iterdir()) == []
