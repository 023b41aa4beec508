"""Our Treebank tokens against Stanford's tokenizer, where pycocoevalcap and Java are installed."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmdiff.eval.metrics import ptb

CAPTIONS = """
A man's dog, two cats' toys and the children's ball.
it's not his; they're hers, aren't they? I'd've said so!
cannot gonna wanna gotta lemme gimme dunno
'tis the season, 'twas the night, y'all, ma'am, o'clock
A black-and-white, half-eaten 12-inch pizza (with olives) on a table.
The sign reads "STOP" or 'Go slow'...
St. Mark's Ave. in the U.S. at 10:30 a.m. vs. Dr. Smith Jr. etc.
Jan. 5, 1990s, 1,000.50, $3.50, 50%, #1, no. 7, fig. 3, No way
1st 2nd 3D 5km 10pm 10:30pm 4x4 1/2 w/o w/ and/or he/she
-- wait --- what?! no!! yes?? - ok
New York-based T-shirts, e-mail me@x.org or www.example.com/a?b=1 now
C++ and C# and AT&T and R&B, R & B
caf\u00e9 na\u00efve \u00bd cup 30\u00b0C x\u00b2 \u201cquoted\u201d it\u2019s \u2026 \u2013 \u2014
[brack] {brace} <mask> <|eot_id|> </s> a<b :) ;-) <3
foo.bar end.Start cat,dog cat;dog a_b c*d e=f k|l
Mass. gov. and mass. and Wash. and wash. the A. dog
rows: 1. one 2. two, A B C D
""".strip().splitlines()


@pytest.mark.skipif(
    find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="needs pycocoevalcap and java",
)
def test_tokens_are_stanfords(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    folder = Path(find_spec("pycocoevalcap").submodule_search_locations[0]) / "tokenizer"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", "stanford-corenlp-3.4.1.jar"]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(file)]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=120)
    for caption, line in zip(CAPTIONS, done.stdout.split("\n"), strict=False):
        wanted = [token for token in line.split() if token not in ptb.DROPPED]
        assert ptb.tokens(caption) == wanted


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man can't wait.", "a man ca n't wait"),
        ("the dogs' (red) ball, etc.", "the dogs ' -lrb- red -rrb- ball etc."),
        ("cannot, gonna!", "can not gon na"),
        ("No. 7 vs. no, no. way", "no. 7 vs. no no way"),
        ("U.S.A. $5.00 #1 50%", "u.s.a. $ 5.00 # 1 50 %"),
        ("a - b -- c ... d", "a b c d"),
    ],
)
def test_tokens(caption, tokens):
    # a lone apostrophe is among the signs that are dropped
    assert ptb.tokenized(caption) == tokens.replace(" ' ", " ")
