import pytest

from scaleup.common.errors import UserError
from scaleup.data.lists import Row, read_classes, read_rows
from scaleup.data.sources import read_source

ROWS = {  # lists, and the pairs of path and label in them
    "spaces": ("my clip.mp4 3\nb.mp4 12 \n", [("my clip.mp4", "3"), ("b.mp4", "12")]),
    "spaces, words": ("a b.mp4 playing guitar\nc.mp4 run\n", [("a b.mp4", "playing guitar"), ("c.mp4", "run")]),
    "spaces, commas in paths": ("a,b.mp4 3\nc,d.mp4 4\n", [("a,b.mp4", "3"), ("c,d.mp4", "4")]),
    "spaces, quotes": ("\"a b.mp4\" 'x'\nc.mp4 y\n", [("a b.mp4", "x"), ("c.mp4", "y")]),
    "label first": ("0 a b.mp4\n1 c.mp4\n", [("a b.mp4", "0"), ("c.mp4", "1")]),
    "label first, comma": ("playing guitar,a.mp4\nrun,b.mp4\n", [("a.mp4", "playing guitar"), ("b.mp4", "run")]),
    "colons": ("a b.mp4::x y\nc::d.mp4::z\n", [("a b.mp4", "x y"), ("c::d.mp4", "z")]),
    "tabs": ("a b.mp4\tx y\nc.mp4\tz, w\n", [("a b.mp4", "x y"), ("c.mp4", "z, w")]),
    "semicolons": ("a.mp4; x, y\nb.mp4;z\n", [("a.mp4", "x, y"), ("b.mp4", "z")]),
    "quotes": ('"a, b.mp4","say ""x"", y"\n"c.mp4",z\n', [("a, b.mp4", 'say "x", y'), ("c.mp4", "z")]),
    "last comma": ("a.mp4,3,\nb.mp4,4,\n", [("a.mp4", "3"), ("b.mp4", "4")]),
    "CRLF and a mark": ("\ufeffa.mp4,3\r\nb.mp4,4\r\n", [("a.mp4", "3"), ("b.mp4", "4")]),
    "CR": ("a.mp4,3\rb.mp4,4\r", [("a.mp4", "3"), ("b.mp4", "4")]),
    "header": ("path,label\na.mp4,3\n", [("a.mp4", "3")]),
    "header in capitals": ("Filename;Class\na.mp4;x\n", [("a.mp4", "x")]),
    "header with spaces": ("Video Name,Class Name\na.mp4,x\n", [("a.mp4", "x")]),
    "header, spaces": ("path label\na b.mp4 3\n", [("a b.mp4", "3")]),
    "header, comment": ("# path,label\na.mp4,3\n", [("a.mp4", "3")]),
    "header, label first": ("label\tvideo\nx\ta.mp4\n", [("a.mp4", "x")]),
    "header, four columns": ("path,start,end,label\na.mp4,0,10,x\nb.mp4,1,11,\n", [("a.mp4", "x"), ("b.mp4", "")]),
    "header, index": (",path,label\n0,a.mp4,x\n1,b.mp4,y\n", [("a.mp4", "x"), ("b.mp4", "y")]),
    "header, two paths": ("clip_name,clip_path,label\na,d/a.mp4,x\n", [("d/a.mp4", "x")]),
    "header, frames": ("path frames label\na.mp4 300 3\n", [("a.mp4", "3")]),
    "header, ids": ("id,label\n17,x\n18,y\n", [("17", "x"), ("18", "y")]),
    "header in other words": ("Datei,Label\na.mp4,x\n", [("a.mp4", "x")]),
    "header, other label": ("video;Klasse\na.mp4;x\n", [("a.mp4", "x")]),
    "no header": ("d/notes,action\na.mp4,x\n", [("d/notes", "action"), ("a.mp4", "x")]),
    "bars": ("a.mp4|x y\nb.mp4|z\n", [("a.mp4", "x y"), ("b.mp4", "z")]),
    "single quotes": ("'a.mp4','x'\n'b.mp4','y'\n", [("a.mp4", "x"), ("b.mp4", "y")]),
    "comments": ("# made by hand\na.mp4 1\n#b.mp4 2\n#\n# c.mp4 3\n", [("a.mp4", "1"), ("#b.mp4", "2")]),
    "no endings": ("a 1\nb 2\n", [("a", "1"), ("b", "2")]),
}


@pytest.mark.parametrize("case", ROWS)
def test_lists_as_people_have_them(tmp_path, case):
    text, pairs = ROWS[case]
    (tmp_path / "list.csv").write_bytes(text.encode())
    assert list(read_rows(tmp_path / "list.csv")) == [Row(*pair) for pair in pairs]
    (tmp_path / "list.csv").write_bytes(text.removeprefix("\ufeff").encode("utf-16"))
    assert list(read_rows(tmp_path / "list.csv")) == [Row(*pair) for pair in pairs]


WRONG = {
    "another separator": (
        "a.mp4,1\nb.mp4,2\nc.mp4\t3\n",
        2,
        "line 3 has tabs between path and label, but other lines have commas",
    ),
    "a comma too many": ("a.mp4,x\nb.mp4,y\nc.mp4,z, w\n", 2, "line 3 has 3 columns, not 2; put quotes around text"),
    "two labels": ("a.mp4 1\nb.mp4 2\nc.mp4 1 2\n", 2, "line 3 has 3 columns, not 2"),
    "quotes that do not close": ('a.mp4,x\n"b.mp4,y\nc.mp4,z\n', 1, "line 2 has an opening quote without a closing"),
    "no label": ("\na.mp4,x\nb.mp4\n", 1, "line 3 has no label after the path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_line_that_is_no_row_is_named_and_the_others_are_read(tmp_path, case):
    text, wrong, reason = WRONG[case]
    (tmp_path / "list.csv").write_text(text)
    rows = list(read_rows(tmp_path / "list.csv"))
    assert rows[wrong].reason.startswith(reason) and [bool(row.reason) for row in rows].count(True) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a.mp4,x,0,10\nb.mp4,y,0,10\n", "has 4 columns and no header that says which are path and label"),
        (b"a.mp4 300 4\nb.mp4 200 5\n", "has 3 columns and no header"),
        (b'{"path": "a.mp4", "label": 1}\n', "holds JSON; a list has a path and a label in each line"),
        ("a.mp4,x\n".encode("utf-16-le"), "looks like UTF-16; save it as UTF-8"),
        ("caf\u00e9.mp4,x\n".encode("latin-1"), "is not text in UTF-8 .byte 3 is wrong."),
        (b"path,label\n", "lists no files"),
        (b"", "lists no files"),
        (b"a.mp4\nb.mp4\n", "line 1 has no label after the path"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_sentence(tmp_path, content, said):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_source(tmp_path / "list.csv")


LABELS = {  # of a list: labels in it, the classes, what each label becomes
    "numbers": (["2", "10", "-1", ""], [str(n) for n in range(11)], ["2", "10", None, None]),
    "floats": (["3.0", "03", "nan", "1"], ["0", "1", "2", "3"], ["3", "3", None, "1"]),
    "odd numbers": (["2", "-2", "1.5", "none"], ["0", "1", "2"], ["2", None, None, None]),
    "words": (["walk", "none", "-1", "Run"], ["Run", "none", "walk"], ["walk", "none", None, "Run"]),
    "several": (["2", "0,1", "1, 2", "0"], ["0", "1", "2"], ["2", None, None, "0"]),
    "words with numbers": (['"0,1"', "walk"], ["0,1", "walk"], ["0,1", "walk"]),
    "mixed": (["10", "9", "walk"], ["9", "10", "walk"], ["10", "9", "walk"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_what_labels_mean(tmp_path, case):
    labels, classes, meant = LABELS[case]
    (tmp_path / "list.csv").write_text("".join(f"{n}.mp4\t{label}\n" for n, label in enumerate(labels)))
    listing = read_source(tmp_path / "list.csv")
    assert listing.classes == classes
    assert [item.label if not item.reason else None for item in listing.items] == meant


def test_classes_are_those_of_rows_that_can_be_used(tmp_path):
    text = "a.mp4,run\nb.mp4,run\nnotes.txt,text\n../c.mp4,outside\na.mp4,again\nstill.jpg,still\n"
    (tmp_path / "list.csv").write_text(text)
    assert read_source(tmp_path / "list.csv").classes == ["run"]


def test_paths_of_other_systems(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.mp4", "17.webm", "back\\slash.mp4"):
        (tmp_path / name).write_bytes(b"x")
    text = "clips\\a.mp4,x\nC:\\data\\b.mp4,x\n17,x\nhttps://host/c.mp4,x\nback\\slash.mp4,x\n/abs/d.mp4,x\n"
    text += "file:///abs/e%20f.mp4,x\n"
    (tmp_path / "list.csv").write_text(text)
    items = read_source(tmp_path / "list.csv").items
    here = [tmp_path / name for name in ("clips/a.mp4", "17.webm", "back\\slash.mp4", "/abs/d.mp4", "/abs/e f.mp4")]
    assert [item.path for item in items if not item.reason] == here
    said = [item.reason for item in items if item.reason]
    assert "is a Windows path" in said[0] and "is an address" in said[1] and len(said) == 2


def test_why_a_path_without_an_ending_is_no_file(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "list.csv").write_text("video_id,class\nframes,run\n17,run\n18,walk\n")
    with pytest.raises(
        UserError, match="17: does not exist, with or without an extension .and 1 more.*frames: is a folder; a list"
    ):
        read_source(tmp_path / "list.csv")


CLASSES = {
    "names": ("run\nplaying guitar\nwalk\n", ["run", "playing guitar", "walk"]),
    "names with commas": ("run\nplaying, guitar\nwalk\n", ["run", "playing, guitar", "walk"]),
    "names with numbers": ("class 7\nclass 8\n", ["class 7", "class 8"]),
    "numbers and names": ("1 run\n2 a walk\n", ["run", "a walk"]),
    "comma": ("1,walk\n0,abseiling\n", ["abseiling", "walk"]),
    "comma, names first": ("walk,1\nplaying guitar,0\n", ["playing guitar", "walk"]),
    "header": ("id,name\n0,abseiling\n1,playing guitar\n", ["abseiling", "playing guitar"]),
    "header, names first": ('name,id\n"a, b",1\nc,0\n', ["c", "a, b"]),
    "header alone": ("label\nrun\nwalk\n", ["run", "walk"]),
    "tabs": ("0\trun\n1\ta walk\n", ["run", "a walk"]),
    "quotes": ('"0","run"\n"1","say ""a"", b"\n', ["run", 'say "a", b']),
    "colons": ("0: run\n1: walk\n", ["run", "walk"]),
    "header of other words": ("action,number\nrun,0\na walk,1\n", ["run", "a walk"]),
    "header of a table": (",name\n0,run\n1,walk\n", ["run", "walk"]),
    "header of an index": ("class_index class_name\n0 run\n1 walk\n", ["run", "walk"]),
    "comment": ("# of the first split\nrun\nwalk\n", ["run", "walk"]),
    "name before one with a number": ("run, fast\n3 point turn\n", ["run, fast", "3 point turn"]),
}


@pytest.mark.parametrize("case", CLASSES)
def test_class_names_as_people_have_them(tmp_path, case):
    text, names = CLASSES[case]
    (tmp_path / "classes.csv").write_text(text)
    assert read_classes(tmp_path / "classes.csv") == names


@pytest.mark.parametrize("content", ['["run", "walk"]', '{"0": "run", "1": "walk"}', '{"walk": 1, "run": "0"}'])
def test_class_names_in_json(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    assert read_classes(tmp_path / "classes.json") == ["run", "walk"]
