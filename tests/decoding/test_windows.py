"""Caches that recompute windows: rows on their own, exact where nothing was kept too long."""

import pytest
import torch

from mmdiff.decoding.windows import Windows
from mmdiff.errors import SettingError
from tests.decoding.helpers import answers, fill, make_row, requests

RULES = [
    {"steps": 4, "block_length": 3},
    {"accept": "threshold", "threshold": 0.3, "block_length": 4},
    {"accept": "factor", "factor": 1.5, "temperature": 1.0, "remask": "revise"},
]
CACHES = ["suffix", "prefill", "freeze", "dual", "delayed", "delayed:reload=3"]
CACHES += ["refresh:prompt=3,answer=2,share=0.5"]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("layout", ["full", "prefix", "block"])
@pytest.mark.parametrize("cache", CACHES)
def test_a_batch_equals_its_rows_alone(model, layout, shift, cache):
    model.config.attention_layout, model.config.shift = layout, shift
    model.config.picture_apart = layout != "full"
    for rule in RULES:
        together = fill(model, *requests(model), cache=cache, seed=(5, 6, 7), trace=True, **rule)
        assert not bool(together.canvas.masked.any())
        for i, row in enumerate(requests(model)):
            alone = fill(model, row, cache=cache, seed=5 + i, trace=True, **rule)
            assert answers(alone)[0] == answers(together)[i], rule
            assert int(alone.nfe[0]) == int(together.nfe[i]) == alone.calls, rule
            sure = [
                step.probability[step.rows == i][0] for step in together.trace if i in step.rows
            ]
            for one, other in zip(alone.trace, sure, strict=True):
                own = one.probability[0]
                torch.testing.assert_close(own, other[-len(own) :], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["full", "prefix", "block"])
@pytest.mark.parametrize("cache", ["delayed:reload=1", "suffix", "prefill", "freeze", "dual"])
def test_what_is_recomputed_every_time_is_exact(model, layout, cache):
    """One block is fed whole by suffix, prefill and dual: exact where the prompt never sees it."""
    model.config.attention_layout, model.config.picture_apart = layout, layout != "full"
    exact = "reload" in cache or layout != "full"
    for rule in RULES[1:]:
        rule = rule | {"block_length": None, "cfg_scale": 0.5}
        runs = [fill(model, *requests(model), trace=True, cache=c, **rule) for c in ("none", cache)]
        gaps = [
            float((one.probability - other.probability).abs().max())
            for one, other in zip(runs[0].trace, runs[1].trace, strict=False)
        ]
        assert (max(gaps) < 1e-5) == exact
        if exact:
            assert answers(runs[0]) == answers(runs[1])


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ("suffix", [["all", 6, 6], ["all", 3, 3]]),
        ("prefill", [["all", 7, 7], ["all", 7, 7]]),
        ("freeze", [["all", 6, 6], [4, 3, 3]]),
        ("dual", [["all", 3, 3], ["all", 3, 3]]),
        ("delayed:reload=9", [["all", "all", 5], ["all", "all", 2]]),
        ("delayed:reload=2", [["all", "all", "all"], ["all", "all", "all"]]),
    ],
)
def test_each_step_feeds_its_window(model, cache, expected, monkeypatch):
    fed, plain = [], Windows._hidden

    def noting(self, canvas, rows, columns):
        fed.append("all" if columns.shape[1] == canvas.shape[1] else columns.shape[1])
        return plain(self, canvas, rows, columns)

    monkeypatch.setattr(Windows, "_hidden", noting)
    fill(model, make_row(model.processor, "a", "red"), cache=cache, block_length=3)
    assert [fed[:3], fed[3:]] == expected


def test_unknown_options_are_refused(model):
    with pytest.raises(SettingError, match="reload"):
        fill(model, *requests(model), cache="delayed:relod=2")
    with pytest.raises(SettingError, match="no option"):
        fill(model, *requests(model), cache="prefix:block=2")
