"""What is odd about a video that is used is said by all who make and check shards."""

import json

from test_playback import animation
from test_tars import write_tar
from test_timeline import FPS, film, remuxed
from videos import numbered

from scaleup.data.decode import EXTENSIONS
from scaleup.data.encode import Encoding
from scaleup.data.index import Note
from scaleup.data.pack import pack
from scaleup.data.shards import Shards
from scaleup.data.sources import read_source
from scaleup.data.tars import index_tars
from scaleup.data.verify import verify

ODD = "the times of 7 of 8 frames are not plausible; the frame rate is used instead"


def at_once():
    return remuxed(film(8), lambda number, stamp: 0)


def test_make_shards_keeps_notes(tmp_path):
    for name, media in {"a/odd.mkv": at_once(), "b/well.mp4": numbered(4)}.items():
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(media)
    listing = read_source(tmp_path / "clips")
    expected = [Note(str(tmp_path / "clips/a/odd.mkv"), ODD)]
    for number, encoding in enumerate([Encoding(), Encoding(fps=FPS)]):
        shards = pack(listing, tmp_path / f"out{number}", encoding, processes=1)
        assert len(shards) == 2 and shards.notes == Shards.open(shards.path).notes == expected
    odd, mended = (verify(tmp_path / f"out{number}", processes) for number, processes in enumerate([2, 1]))
    assert not odd.problems and [note.partition("': ")[2] for note in odd.notes] == [ODD]
    assert not mended.problems and not mended.notes


def test_tars_in_place_have_notes(tmp_path):
    about = json.dumps({"label": "a"}).encode()
    write_tar(tmp_path / "0.tar", [("x.mkv", at_once()), ("x.json", about), ("y.mp4", numbered(4)), ("y.json", about)])
    shards = index_tars(tmp_path, processes=1)
    assert len(shards) == 2 and shards.notes == [Note("0.tar: x", ODD)]


def test_a_folder_of_gifs_is_one_of_videos(tmp_path):
    (tmp_path / "clips/a").mkdir(parents=True)
    (tmp_path / "clips/a/1.GIF").write_bytes(animation("GIF", [100] * 5))
    shards = pack(read_source(tmp_path / "clips"), tmp_path / "out", processes=1)
    assert shards.modality == "video" and shards.read(0).extension == "gif" and "gif" in EXTENSIONS["video"]
