import pytest

from scaleup.cli import predict
from scaleup.common.errors import UserError
from scaleup.data.decode import BadSample
from scaleup.data.media import content, expanded


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Videos, some of them hidden, and links to folders, two of which go round."""
    files = ["a.mp4", "B.PNG", "notes.txt", "deep/c.mp4", "deep/er/d.mp4", "._a.mp4", ".git/e.mp4", "__MACOSX/f.mp4"]
    for name in [*(f"source/{name}" for name in files), "disk/g.mp4"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "source/link").symlink_to(tmp_path / "disk")
    (tmp_path / "source/round").symlink_to(".")
    (tmp_path / "source/deep/up").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "source"


def test_a_folder_holds_what_is_not_hidden_and_what_it_links_to(folder, capsys):
    names = ["B.PNG", "a.mp4", "deep/c.mp4", "deep/er/d.mp4", "link/g.mp4"]
    assert (
        expanded([str(folder)]) == [str(folder / name) for name in names] and expanded(["source"])[0] == "source/B.PNG"
    )
    said = capsys.readouterr().err
    assert "source/._a.mp4: is hidden (and 2 more like it)" in said and "notes.txt" not in said
    assert "links to a folder that contains it (and 1 more like it)" in said


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("source/**/*.mp4", ["source/a.mp4", "source/deep/c.mp4", "source/deep/er/d.mp4", "source/link/g.mp4"]),
        (
            "source/**",
            ["source/B.PNG", "source/a.mp4", "source/deep/c.mp4", "source/deep/er/d.mp4", "source/link/g.mp4"],
        ),
        ("**/deep/**/*.mp4", ["source/deep/c.mp4", "source/deep/er/d.mp4"]),
        ("source/*.mp4", ["source/a.mp4"]),
        ("source/[dl]*/*.mp4", ["source/deep/c.mp4", "source/link/g.mp4"]),
        ("source/__MACOSX/*.mp4", ["source/__MACOSX/f.mp4"]),
        ("source/.git/*", ["source/.git/e.mp4"]),
        ("source/.git", ["source/.git/e.mp4"]),
        ("source/._a.mp4", ["source/._a.mp4"]),
    ],
)
def test_patterns_pass_over_what_is_hidden_unless_it_is_named(folder, pattern, names):
    assert expanded([pattern]) == names


def test_a_link_to_nothing_is_a_file_that_cannot_be_read(folder):
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    assert str(folder / "gone.mp4") in expanded(expanded([str(folder)]))
    with pytest.raises(BadSample, match="there is no such file"):
        content(str(folder / "gone.mp4"))


def test_a_colon_makes_no_protocol_of_a_file_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("12:30.mp4", "concat:a.mp4"):
        (folder / name).write_bytes(b"x")
        assert expanded([name]) == [f"./{name}"]
    assert expanded(["*:*.mp4"]) == ["./12:30.mp4", "./concat:a.mp4"]
    assert "./12:30.mp4" in expanded(["."]) and f"{folder}/12:30.mp4" in expanded([str(folder)])
    with pytest.raises(UserError, match="there is no file '12:31.mp4'"):
        expanded(["12:31.mp4"])


@pytest.mark.parametrize("option", ["--out", "--overlay"])
def test_no_output_takes_the_place_of_a_source_or_unasked_of_a_file(folder, option):
    def sources(*words):
        return predict.read_sources(predict.arguments().parse_args(["model", *words]))

    (folder / "same.png").symlink_to("B.PNG")
    for name in ("same.png", "./same.png"):
        for overwrite in ([], ["--overwrite"]):
            with pytest.raises(UserError, match="same.png' would take the place of a source; name another file"):
                sources("source/B.PNG", option, f"source/{name}", *overwrite)
    with pytest.raises(UserError, match="a.mp4' exists"):
        sources("source/B.PNG", option, "source/a.mp4")
    assert sources("source/B.PNG", option, "source/a.mp4", "--overwrite") == ["source/B.PNG"]
