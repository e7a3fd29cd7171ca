import http.server
import io
import re
import threading
from contextlib import nullcontext

import fsspec
import pytest
from PIL import Image
from support.tools import tool

from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.data import storage as storages
from scaleup.data import verify as verifying
from scaleup.data.decode import BadSample
from scaleup.data.loader import train_loader
from scaleup.data.pack import write_shards
from scaleup.data.shards import Sample, Shards
from scaleup.data.storage import Directory, storage
from scaleup.data.verify import verify


@pytest.fixture
def shards(tmp_path):
    samples = []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(buffer, "png")
        samples.append(Sample(f"s{number}", "png", buffer.getvalue(), {"label": number % 3}))
    return write_shards(samples, tmp_path / "train", "image", {"label": ["a", "b", "c"]}, per_shard=5)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves ranges of bytes, as object stores do; the first ``failing`` requests are answered with an error."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Range"]))
        if self.server.failing:
            self.server.failing -= 1
            self.send_error(503)
            return
        path, wanted = self.translate_path(self.path), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        part = data[int(wanted[1]) : int(wanted[2]) + 1] if wanted and self.server.ranges else data
        self.send_response(206 if wanted and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(shards):
    def handler(*args):
        return Ranges(*args, directory=str(shards.path.parent))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        made.asked, made.failing, made.ranges = [], 0, True
        made.address = f"http://127.0.0.1:{made.server_port}/train"
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_shards_over_http_are_read_by_ranges(shards, server):
    remote = Shards.open(server.address)
    assert remote.name == "train" and str(remote.path) == server.address and remote.keys == shards.keys
    assert [remote.read(i) for i in range(12)] == [shards.read(i) for i in range(12)]
    assert server.asked[0] == ("/train/index.json", None)
    assert all(wanted.startswith("bytes=") for _, wanted in server.asked[1:])
    asked = [(path, wanted) for path, wanted in server.asked if path.endswith(".tar")]
    assert len(asked) == 12 and len(server.asked) - 13 == 5  # columns, each in one block
    ends = [[int(end) for end in wanted[6:].split("-")] for _, wanted in asked]
    assert all(end - begin + 1 == len(shards.read(i).media) for i, (begin, end) in enumerate(ends))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_the_same_from_afar(shards, server, workers):
    def batches(where, workers):
        data = schema.Data({"images": schema.Dataset(str(where), {"h": "label"})}, batch=4, workers=workers)
        return list(train_loader(data, schema.Input(size=[16, 16]), 0, 5))

    for near, far in zip(batches(shards.path, 0), batches(server.address, workers), strict=True):
        assert near.keys == far.keys and near.pixels.equal(far.pixels)


def test_any_protocol_of_fsspec_will_do(shards):
    files = fsspec.filesystem("memory")
    for path in shards.path.iterdir():
        files.pipe_file(f"/far/train/{path.name}", path.read_bytes())
    remote = Shards.open("memory://far/train/")
    assert [remote.read(i) for i in range(12)] == [shards.read(i) for i in range(12)]


def test_requests_are_tried_again(shards, server, monkeypatch):
    monkeypatch.setattr(storages, "PAUSE", 0)
    remote = Shards.open(server.address)
    assert remote.read(4) == shards.read(4)  # reads the rows of the index too
    server.failing = 2
    assert remote.read(3) == shards.read(3)
    server.failing = 3
    with pytest.raises(BadSample, match="000000.tar cannot be read: .*503"):
        remote.read(3)


def test_what_comes_instead_is_named(shards, server):
    remote = Shards.open(server.address)
    server.ranges = False  # the whole file comes, not the bytes asked for
    with pytest.raises(UserError, match="index.columns' comes whole: its server does not send ranges of bytes"):
        remote.read(3)
    server.ranges = True
    assert remote.read(4) == shards.read(4)
    server.ranges = False
    with pytest.raises(UserError, match="000000.tar' comes whole: its server does not send ranges of bytes"):
        remote.read(3)
    (shards.path / "000000.tar").unlink()
    with pytest.raises(BadSample, match="000000.tar cannot be read"):
        remote.read(3)


@pytest.mark.parametrize("address", ["nosuch://x/train", "pipe://cat x", "http://127.0.0.1:9/none"])
def test_an_address_that_leads_nowhere_is_one_sentence(address, monkeypatch):
    monkeypatch.setattr(storages, "PAUSE", 0)
    with pytest.raises(UserError, match="is not a shard directory"):
        Shards.open(address)


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "MAX_OPEN", 3)
    for number in range(8):
        (tmp_path / str(number)).write_bytes(b"0123456789" + str(number).encode())
    files = storage(tmp_path)
    assert isinstance(files, Directory)
    for number in [0, 1, 2, 3, 4, 5, 6, 7, 0, 7, 3]:
        assert files.part(str(number), 8, 3) == b"89" + str(number).encode()
        assert len(files._open) <= 3


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_are_checked_from_afar(shards, server, processes, monkeypatch):
    monkeypatch.setattr(storages, "PAUSE", 0)
    assert verify(server.address, processes=processes).problems == []
    tar = shards.path / "000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600] + b"x" + whole[-599:])
    (shards.path / "000002.tar").unlink()
    first, second, third = verify(server.address, processes=processes).problems
    assert first == "000001.tar: its sha256 is not that of the index" and second.startswith(
        "000001.tar: cut off or damaged"
    )
    assert third == "000002.tar: missing"


def test_a_tar_that_does_not_come_is_a_problem_and_the_others_are_checked(shards, server, monkeypatch):
    monkeypatch.setattr(storages, "PAUSE", 0)
    advanced = []

    def fail_next():
        advanced.append(1)
        server.failing = storages.TRIES if len(advanced) == 1 else 0

    monkeypatch.setattr(verifying, "progress", lambda title, total: nullcontext(fail_next))
    problems = verify(server.address, processes=1).problems
    assert len(problems) == 1 and len(advanced) == 3
    assert problems[0].startswith("000001.tar: cannot be read: ") and "503" in problems[0]


def test_the_tool_checks_an_address(shards, server):
    (shards.path / "000002.tar").unlink()
    done = tool("check_shards", server.address)
    assert done.returncode == 1 and done.stdout == "000002.tar: missing\n"
