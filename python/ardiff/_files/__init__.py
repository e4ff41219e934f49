"""Output files that appear whole or not at all."""

from __future__ import annotations

import errno
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
    device or pipe, which cannot be replaced, is given to the block itself. An OSError of the block,
    as of a full disk, names `path`.
    """
    with _naming(path):
        if path.exists() and not path.is_file():
            yield path
        else:
            with _replacing_file(path) as temporary:
                yield temporary


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _replacing_file(path: Path) -> Iterator[Path]:
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


def descriptor_of(path: Path) -> int | None:
    """The open descriptor that a name such as /dev/stdout or /dev/fd/3 stands for; None if none.

    Where the shell has redirected it to a file, such a name looks like a link to that file. It has
    to be written through the descriptor: a replaced file is not the one that the shell has open.
    """
    own = ("/dev/fd", f"/proc/{os.getpid()}/fd")
    for _ in range(40):  # as many links as Linux follows
        path = Path(os.path.realpath(path.parent)) / path.name
        if str(path.parent) in own and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def finite(value: Any) -> Any:
    """`value` with None for every NaN and infinity in its lists and dicts: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON; NaN and infinities become null. An open descriptor's name
    (:func:`descriptor_of`) is written to where the descriptor stands."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    descriptor = descriptor_of(path)
    if descriptor is not None:
        with _naming(path), open(descriptor, "w", closefd=False) as file:
            file.write(text)
        return
    with replacing(path) as temporary:
        temporary.write_text(text)


def check_writable_folder(folder: Path, name: str, room: int = 2**20) -> None:
    """Makes a folder if need be and proves that files of `room` bytes can be written there.

    Raises:
        ValueError: it cannot be made, is no folder, or takes no files; `name` begins the message.
        OSError: the disk, a quota or a limit on the size of files leaves less room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, room)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            said = f"{name}: {room:,} bytes of room are needed: {error.strerror}"
            raise OSError(error.errno, said, str(folder)) from error
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without reservations
            return
        raise ValueError(f"{name}: cannot write in {folder}: {error.strerror}") from error


def check_writable(path: Path, name: str) -> None:
    """Refuses an output file that could not be written; touches nothing that exists.

    Missing parent folders are made. A device or pipe is not opened: that could block.

    Raises:
        ValueError: a folder, a file without write permission, a name in a folder that takes no
            files, or that of a descriptor not open for writing; `name` begins the message.
        OSError: the disk is full.
    """
    try:
        descriptor = descriptor_of(path)
        if descriptor is not None:
            os.write(descriptor, b"")  # fails unless it is open for writing
            return
        if path.is_dir():
            raise ValueError(f"{name}: {path} is a folder, expected a file name")
        exists, regular = path.exists(), path.is_file()
    except OSError as error:
        raise ValueError(f"{name}: cannot write {path}: {error.strerror}") from error
    if exists and not os.access(path, os.W_OK):
        raise ValueError(f"{name}: cannot write {path}: Permission denied")
    if not exists or regular:
        check_writable_folder(Path(os.path.realpath(path)).parent, name)
