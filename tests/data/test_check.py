"""`mmdiff check` and the rules behind it: every bad row is named, no good one is."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from mmdiff.cli.main import main
from mmdiff.data.check import check
from mmdiff.data.pictures import data_root
from mmdiff.data.readers import open_data
from mmdiff.data.rows import KINDS, BadRow, read_row
from mmdiff.errors import DataError
from tests.data.malformed import BAD, png, row, write_lines

ROOT = Path(__file__).parent.parent.parent


def verdicts(path, root=None):
    return {each.place: each for each in check(open_data(path), data_root(path, root))}


def test_a_thousand_malformed_rows(tmp_path, capsys):
    path, wanted = write_lines(tmp_path, 500, 1000)
    report = tmp_path / "report.jsonl"
    assert main(["check", str(path), "--output", str(report)]) == 2
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert {each["place"]: each.get("kind", "") for each in lines} == wanted
    assert all(each["ok"] == (not wanted[each["place"]]) for each in lines)
    assert len({each["kind"] for each in lines if not each["ok"]}) == len(BAD) >= 25
    out = capsys.readouterr().out
    assert "1500 rows, 500 good, 1000 bad" in out
    assert all(f" {kind} " in out for kind in BAD)
    assert not list(tmp_path.glob("*.part"))


def test_kinds_are_documented_and_tested():
    page = (ROOT / "docs" / "training.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in page] == []
    assert set(KINDS) - set(BAD) == {"broken_file", "too_long"}


def test_a_clean_file(tmp_path, capsys):
    path, _ = write_lines(tmp_path, 30, 0)
    assert main(["check", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["bad"], told["kinds"]) == (30, 0, {})


def test_json_is_read_as_json_lines_are(tmp_path):
    path, wanted = write_lines(tmp_path, 40, 100)
    lines = path.read_bytes().splitlines()
    places = [f"line {n}" for n in range(1, len(lines) + 1) if wanted[f"line {n}"] != "broken_json"]
    kept = [lines[int(place.split()[1]) - 1] for place in places]
    whole = path.with_suffix(".json")
    whole.write_bytes(b"[" + b",\n".join(kept) + b"]")
    found = [each.kind for each in verdicts(whole).values()]
    assert found == [wanted[place] for place in places]


@pytest.mark.parametrize(
    ("content", "kind"), [(b'[{"id": 1}, {"id": ]', "broken_json"), (b"", "broken_json")]
)
def test_a_broken_whole_file(tmp_path, content, kind):
    (tmp_path / "a.json").write_bytes(content)
    assert [each.kind for each in verdicts(tmp_path / "a.json").values()] == [kind]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.json"], "there is no such data file"),
        (["tran.jsonl"], "Did you mean train.jsonl"),
        (["notes.txt"], "data files end in"),
        (["object.json"], "must be a list of rows"),
        (["."], "name the file to read"),
        (["z/zipped.tar"], "decompress it"),
        (["train.jsonl", "--image-root", "nowhere"], "no such folder"),
        (["train.jsonl", "--output", "nowhere/report.jsonl"], "cannot be written"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "object.json").write_text('{"id": 1}')
    (tmp_path / "train.jsonl").write_text(json.dumps(row("a", None, "what?")) + "\n")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "zipped.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    if arguments == ["."]:
        (tmp_path / "train.json").write_text("[]")
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_where_pictures_are(tmp_path):
    file = tmp_path / "train.json"
    assert data_root(file) == tmp_path
    (tmp_path / "images").mkdir()
    assert data_root(file) == tmp_path / "images"
    assert data_root(file, tmp_path) == tmp_path
    with pytest.raises(DataError, match="no such folder"):
        data_root(file, tmp_path / "x")


def test_pictures_go_where_messages_show_them():
    made = read_row(
        {
            "images": ["a.png", "c.png"],
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "first <image>\n<image>"},
                {"role": "assistant", "content": " two "},
            ],
        }
    )
    assert made.images == ("a.png", "c.png")
    assert made.messages[1]["content"] == [
        {"type": "text", "text": "first "},
        {"type": "image"},
        {"type": "image"},
    ]
    assert made.messages[2] == {"role": "assistant", "content": "two"}
    parts = [
        {"type": "image_url", "image_url": {"url": "b.png"}},
        {"type": "text", "text": "what?"},
        {"type": "image"},
    ]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    assert read_row({"image": "a.png", "messages": said}).images == ("b.png", "a.png")


def test_a_caption_row_and_its_spaces():
    made = read_row(row("a", asked="<image>\n  what is it? \n"))
    assert made.messages[0]["content"] == [
        {"type": "image"},
        {"type": "text", "text": "what is it?"},
    ]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def body(name, images=1):
    made = row(name, None, "<image>" * images + "what?")
    return json.dumps(made).encode()


def test_tar(tmp_path):
    members = [
        ("x/one.jpg", png()),
        ("x/one.json", body("one")),
        ("x/two.1.png", png(seed=2)),
        ("x/two.0.png", png(seed=1)),
        ("x/two.json", body("two", 2)),
        ("three.json", body("three", 0)),
        ("four.png", png()),
        ("four.txt", b"a red circle"),
        ("five.png", png()),
        ("six.png", None),
        ("seven.json", body("seven")),
        ("eight.png", png()[:-40]),
        ("eight.json", body("eight")),
        ("nine.json", b"{"),
        ("ten.json", b"[]"),
        ("eleven.txt", b"\xff"),
        ("twelve.png", png()),
        ("twelve.png", png()),
        ("z" * 150 + ".png", png()),
        ("z" * 150 + ".json", body("z")),
    ]
    path = tmp_path / "shard-0.tar"
    write_tar(path, members)
    reader = open_data(path)
    found = {each.place: each for each in reader.scan()}
    assert {place: each.kind for place, each in verdicts(path).items()} == {
        "x/one": "",
        "x/two": "",
        "three": "",
        "four": "",
        "five": "no_conversation",
        "six": "not_a_file",
        "seven": "more_placeholders",
        "eight": "damaged_image",
        "nine": "broken_json",
        "ten": "not_an_object",
        "eleven": "encoding",
        "twelve": "duplicate_key",
        "z" * 150: "",
    }
    for each in found.values():  # the same row again, by its address
        if isinstance(each.raw, BadRow):
            with pytest.raises(BadRow):
                reader.fetch(each.address)
        else:
            assert reader.fetch(each.address) == each.raw
    assert read_row(found["x/two"].raw).images == (png(seed=1), png(seed=2))
    assert read_row(found["four"].raw).messages[1]["content"] == "a red circle"

    path.write_bytes(path.read_bytes()[:3500])  # the disk was full
    *_, last = verdicts(path).values()
    assert last.kind == "broken_file"


def test_shards(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"s-{number}.tar", [("a.png", png()), ("a.json", body(f"r{number}"))])
    reader = open_data(tmp_path)
    found = list(reader.scan())
    assert [each.place for each in found] == ["s-0.tar a", "s-1.tar a"]
    assert [reader.fetch(each.address)["id"] for each in found] == ["r0", "r1"]


def test_parquet_and_saved_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    from pyarrow import Table, parquet

    rows = [row(f"p{i}", {"bytes": png(), "path": None}, "<image>what?") for i in range(3)]
    rows[1]["conversations"][1]["value"] = ""
    parquet.write_table(Table.from_pylist(rows), tmp_path / "train.parquet")
    made = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"))
    made.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "train.parquet", tmp_path / "saved"):
        assert [each.kind for each in verdicts(path).values()] == ["", "empty_answer", ""]
        assert read_row(open_data(path).fetch(2)).id == "p2"
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        verdicts(tmp_path / "train.parquet")


def test_parquet_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError.__base__, match=r"mmdiff\[data\]"):
        verdicts(tmp_path / "a.parquet")
