"""Output files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, renamed to `path` at the end of the block.

    If the block raises, `path` stays as it was and nothing is left beside it. A process that is
    killed leaves the name, which the next write of `path` uses up; of two writers at once the
    second waits. A link stays a link: its target is replaced. Missing parent folders are made. A
    device or pipe, which cannot be replaced, is given to the block itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.writing")
    descriptor = _claim(temporary)
    try:
        yield temporary
        os.fsync(descriptor)  # else a power cut can leave the new name without its content
        os.replace(temporary, target)
    except BaseException:  # after the rename the name may be another writer's
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _claim(path: Path) -> int:
    """An open descriptor of the empty file `path`, locked until it is closed.

    The kernel frees the lock of a process that is killed, so that what it has left can be told from
    a file that is being written. A process number in the name could not: numbers are used again.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                    os.ftruncate(descriptor, 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another writer has renamed or removed it since it was opened


def finite(value: Any) -> Any:
    """`value` with None for every NaN and infinity in its lists and dicts: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON; NaN and infinities become null."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def check_writable_folder(folder: Path, name: str) -> None:
    """Makes a folder if need be and proves that files can be written there.

    Raises:
        ValueError: it cannot be made, is no folder, or takes no files; `name` begins the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name}: cannot write in {folder}: {error.strerror}") from error


def check_writable(path: Path, name: str) -> None:
    """Refuses an output file that could not be written; touches nothing that exists.

    Missing parent folders are made. A device or pipe is not opened: that could block.

    Raises:
        ValueError: a folder, a file without write permission, or a name in a folder that takes no
            files; `name` begins the message.
    """
    try:
        if path.is_dir():
            raise ValueError(f"{name}: {path} is a folder, expected a file name")
        exists, regular = path.exists(), path.is_file()
    except OSError as error:
        raise ValueError(f"{name}: cannot write {path}: {error.strerror}") from error
    if exists and not os.access(path, os.W_OK):
        raise ValueError(f"{name}: cannot write {path}: Permission denied")
    if not exists or regular:
        check_writable_folder(Path(os.path.realpath(path)).parent, name)
