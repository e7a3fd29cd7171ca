import errno
import pickle

import pytest
from safetensors import SafetensorError

from scaleup.common.errors import UserError
from scaleup.common.processes import explain

LOADER = "DataLoader worker (pid 17) is killed by signal: "
ENDED = RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("yours"), "yours"),
        (MemoryError(), "the machine has no memory left; use fewer loader processes"),
        (OSError(errno.ENOMEM, ""), "the machine has no memory left"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "the machine has no memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the device has no memory left"),
        (
            RuntimeError("upsample_trilinear3d_backward_out_cuda does not have a deterministic implementation"),
            "the model",
        ),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "this torch has no programs for this"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the device has no memory left"),
        (OSError(errno.ENOSPC, "", "a/b"), "'a/b': No space left on device: the disk is full"),
        (SafetensorError("Error: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "", "a/b"), "'a/b': Permission denied: this user may not"),
        (OSError(errno.EROFS, "", "a/b"), "'a/b': Read-only file system: "),
        (OSError(errno.EMFILE, ""), "too many files are open; allow more (ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "too many files are open"),
        (RuntimeError("can't start new thread"), "no more processes can be started"),
        (
            RuntimeError(LOADER + "Killed. "),
            "loader process 17 was killed, most likely because the machine has no memory",
        ),
        (
            RuntimeError(LOADER + "Bus error. It is possible"),
            "shared memory (/dev/shm) is too small; set data.workers=0",
        ),
        (RuntimeError(LOADER + "Segmentation fault. "), "loader process 17 was ended by a signal: Segmentation fault"),
        (ENDED, "loader process 17, 18 has ended; if it printed no cause"),
        (caused(RuntimeError(*ENDED.args), RuntimeError(LOADER + "Killed. ")), "loader process 17 was killed"),
        (
            RuntimeError("unable to write to file </torch_7_1_2>: No space left on device (28)"),
            "shared memory (/dev/shm)",
        ),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1>: Success (0)"), "shared memory"),
    ],
)
def test_a_known_cause_is_told(error: Exception, said: str) -> None:
    assert (explain(error) or "").startswith(said) or f": {said}" in (explain(error) or "")


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2"), KeyError("out of memory"), FileNotFoundError(2, ""), pickle.PickleError()]
)
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    assert explain(error) is None
