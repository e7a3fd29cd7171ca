"""A folder with one subfolder per class, as shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from scaleup.data.decode import EXTENSIONS, BadSample, check
from scaleup.data.parallel import parallel
from scaleup.data.shards import Sample, Shards, write_shards
from scaleup.errors import UserError


def class_folders(source: str | Path) -> dict[str, list[Path]]:
    """Class name -> its files at any depth, both sorted; hidden files do not count."""
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"source '{source}' is neither a folder nor the word 'shapes'")
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    files = {folder.name: sorted(path for path in folder.rglob("[!.]*") if path.is_file()) for folder in folders}
    if not any(files.values()):
        raise UserError(f"'{source}' has no class folders with files in them; it needs {source}/CLASS/FILE")
    return files


def modality_of(files: dict[str, list[Path]]) -> str:
    """Image or video, by the endings of the files; UserError where there are both or neither."""
    endings = {_extension(path) for paths in files.values() for path in paths}
    found = [modality for modality, known in EXTENSIONS.items() if endings & set(known)]
    if len(found) != 1:
        known = ", ".join(f".{extension}" for extensions in EXTENSIONS.values() for extension in extensions)
        raise UserError(f"source holds {' and '.join(found) or 'no'} files; one kind of these is needed: {known}")
    return found[0]


def pack_folder(
    source: str | Path, out: str | Path, overwrite: bool = False, advance: Callable[[], None] = lambda: None
) -> Shards:
    """Write the files of ``source``/CLASS/ to the shard directory ``out``, with label ``label``, bytes unchanged.

    Every file is decoded in full; what cannot be is left out and named in the index's failures. ``advance`` is
    called after every file.

    Raises:
        UserError: the folder does not have this form, or no file in it can be read.
    """
    files = class_folders(source)
    modality, failures = modality_of(files), list[dict[str, str]]()
    tasks = [(path, modality, number) for number, paths in enumerate(files.values()) for path in paths]

    def samples() -> Iterator[Sample]:
        for order, (task, result) in enumerate(zip(tasks, parallel(_read, tasks), strict=True)):
            if isinstance(result, str):
                failures.append({"source": str(task[0]), "reason": result})
            else:
                yield Sample(_key(order, task[0]), _extension(task[0]), result, {"label": task[2]})
            advance()
        if len(failures) == len(tasks):
            raise UserError(f"none of the {len(tasks)} files can be read; the first: {failures[0]['reason']}")

    return write_shards(samples(), out, modality, {"label": list(files)}, overwrite=overwrite, failures=failures)


def _read(task: tuple[Path, str, int]) -> bytes | str:
    """The file's bytes, or why it cannot be a sample."""
    path, modality, _ = task
    if _extension(path) not in EXTENSIONS[modality]:
        return f"no {modality} file by its ending"
    try:
        data = path.read_bytes()
        check(data, modality)
    except BadSample as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return data


def _extension(path: Path) -> str:
    return {"jpeg": "jpg"}.get(extension := path.suffix.lower().lstrip("."), extension)


def _key(order: int, path: Path) -> str:
    """Unique by its number, readable by its stem, and without what tar and WebDataset give a meaning to."""
    return f"{order:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)[:60]}"
