import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torch.utils.data import Dataset, _utils

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Valid
from scaleup.data import workers
from scaleup.data.loader import eval_loader, train_loader
from scaleup.data.shards import Shards
from scaleup.data.workers import in_workers, stack_shared
from scaleup.training.run_inputs import build_models
from scaleup.training.validation import Validation


class Numbers(Dataset):
    """Batches filled with their number; ``varied`` ones are of two shapes and several lengths."""

    def __init__(self, varied):
        self.varied = varied

    def __getitem__(self, number):
        shape = (4, 3, 2) if self.varied and number % 3 == 0 else (5, 7)
        return stack_shared([torch.full(shape, number)] * (1 + self.varied * number % 4))


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_result_is_there_until_the_next_is_asked_for(count, varied):
    """However far ahead the processes are by then."""
    for number, batch in enumerate(in_workers(Numbers(varied), range(30), count)):
        time.sleep(0.02)
        assert torch.equal(batch, torch.full_like(batch, number))
        assert len(batch) == 1 + varied * number % 4 and batch.shape[1:] in ((4, 3, 2), (5, 7))


def test_memory_is_used_by_turns():
    kept = {}  # keeps it mapped
    for batch in in_workers(Numbers(False), range(40), 2):
        kept[batch.data_ptr()] = batch
    assert len(kept) == 2 * (workers.PREFETCH + 1)


def hang(flag, begin, begun, number):
    """Begins a process; the first that begins as number 1 hangs, and does not listen to SIGTERM."""
    if number == 1 and flag.exists():
        flag.unlink()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    begin(begun, number)


def test_a_process_that_hangs_as_it_begins_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "flag").touch()
    before = set(multiprocessing.active_children())
    monkeypatch.setattr(workers, "_begin_worker", partial(hang, tmp_path / "flag", workers._begin_worker))
    monkeypatch.setattr(workers, "PATIENCE", 2.0)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    results = in_workers(Numbers(False), range(9), 2)
    assert len(set(multiprocessing.active_children()) - before) == 2
    assert [int(batch[0, 0, 0]) for batch in results] == [*range(9)]


def test_processes_that_never_begin_are_a_sentence(monkeypatch):
    monkeypatch.setattr(workers, "_begin_worker", lambda begun, number: time.sleep(1000))
    monkeypatch.setattr(workers, "PATIENCE", 0.1)
    monkeypatch.setattr(workers, "STARTS", 1)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError, match="2 of 2 loader processes did not begin within 0 s, 1 times in a row"):
        in_workers(Numbers(False), range(9), 2)
    assert set(multiprocessing.active_children()) == before


CLIP, IMAGE = 3 * 8 * 32 * 32, 3 * 32 * 32  # bytes
WORLD = World(0, 1, torch.device("cpu"))


def trained(recipe):
    train_loader(recipe.data, recipe.model.input, 0, 100)


def evaluated(recipe):
    shards = Shards.open(recipe.data.train["videos"].shards)
    eval_loader(shards, {}, recipe.model.input, "2x1", batch=4, workers=recipe.data.workers)


def validated(recipe):
    Validation(recipe, Valid(recipe.data.train["videos"].shards), build_models(recipe, {"a": Arm()}).values(), WORLD)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("opened", "needed"),
    [(trained, 2 * 3 * 4 * (CLIP + IMAGE)), (evaluated, 3 * 4 * 2 * CLIP), (validated, 3 * 4 * CLIP)],
)
def test_too_little_shared_memory_is_said_before_the_first_batch(opened, needed, ranks, tiny, monkeypatch):
    """It holds three batches of each shape of each of two processes, or all that there are: three of 12 samples."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(workers, "_free_shared", lambda: ranks * needed - 1)
    with pytest.raises(UserError, match=rf"of {2 * ranks} loader processes need .*B are free; set data.workers=0"):
        opened(tiny("data.workers=2"))
    opened(tiny("data.workers=0"))
    monkeypatch.setattr(workers, "_free_shared", lambda: ranks * needed)
    opened(tiny("data.workers=2"))


SMALL = """
import torch
from scaleup.data.workers import in_workers, stack_shared

class Large(torch.utils.data.Dataset):
    def __getitem__(self, number):
        return stack_shared([torch.zeros(2**22, dtype=torch.uint8)])

next(in_workers(Large(), range(10), 2))
"""


def test_shared_memory_that_runs_out_is_a_sentence():
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("mounts nothing here")
    done = subprocess.run([*mounted, sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "UserError: shared memory (/dev/shm) is too small; set data.workers=0" in done.stderr
