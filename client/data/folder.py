"""The images folder: what is in it, and which of it a name in the labels table means."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from client.data.reasons import Reason
from client.data.text import folded
from shared.errors import DataError


@dataclass(frozen=True)
class ImageFile:
    """One regular file inside the folder."""

    path: str  # absolute, free of links
    size: int  # bytes
    modified: int  # nanoseconds


@dataclass(frozen=True)
class Folder:
    """All regular files under the images folder, by absolute path; links are not followed."""

    root: str
    files: dict[str, ImageFile]
    unreadable: tuple[str, ...]  # subfolders that cannot be listed

    def locate(self, name: str) -> ImageFile | Reason:
        """Return the file that a name of the labels table means, or why there is none.

        Names are relative to the folder and may be written with backslashes. A link counts as
        the file it leads to, if that is inside the folder. A name that differs from one file's
        in case or Unicode form only, as Windows and macOS write it, means that file.
        """
        if "\0" in name:
            return Reason.MISSING_FILE
        path = os.path.normpath(os.path.join(self.root, name.replace("\\", "/")))
        if path in self.files:
            return self.files[path]
        found = os.path.realpath(path)
        if not found.startswith(self.root + os.sep):
            return Reason.OUTSIDE_FOLDER
        if found in self.files:
            return self.files[found]
        alike = self._folded.get(folded(self.relative(path)), ())
        if len(alike) > 1:
            return Reason.AMBIGUOUS_NAME
        return self.files[alike[0]] if alike else Reason.MISSING_FILE

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        """The files that each name without case and Unicode form may mean."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(folded(self.relative(path)), []).append(path)
        return found

    def relative(self, path: str) -> str:
        """Return a file's name as the folder's reader knows it."""
        return os.path.relpath(path, self.root)


def list_folder(path: Path) -> Folder:
    """List the images folder.

    Raises:
        DataError: It is missing, not a folder, or cannot be read.
    """
    todo = "Check data.images in site.toml and the folder's access rights"
    try:
        root = os.path.realpath(path, strict=True)
        with os.scandir(root):
            pass
    except OSError as error:
        raise DataError(
            f"cannot read the images folder: {error.strerror}", str(path), todo
        ) from None
    unreadable: list[str] = []
    files = {file.path: file for file in _walk(root, unreadable)}
    return Folder(root, files, tuple(unreadable))


def open_regular(path: str) -> int:
    """Open a regular file for reading; never a link, and never waiting for a pipe.

    Raises:
        OSError: It cannot be opened or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def looks_like_dicom(path: str) -> bool:
    """Whether a file begins like DICOM and is not a medium's directory."""
    if os.path.basename(path) == "DICOMDIR":
        return False
    try:
        with open(open_regular(path), "rb") as file:
            return begins_like_dicom(file.read(132))
    except OSError:
        return False


def begins_like_dicom(content: bytes) -> bool:
    """Whether a file of these first bytes has the DICOM preamble (PS3.10 7.1), or none at all.

    Old archives write files without it: then the first element is of group 2 or 8, and short.
    """
    if content[128:132] == b"DICM":
        return True
    if len(content) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HHI", content)
        if (group == 2 and element <= 0x0102) or (group == 8 and element <= 0x0018):
            return length < 2**10 or content[4:6].isupper()  # a length, or the type's two letters
    return False


def content_digest(path: str) -> str:
    """Return the SHA-256 of a file as 64 hex digits.

    Raises:
        OSError: It cannot be read.
    """
    with open(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(folder: str, unreadable: list[str]) -> Iterator[ImageFile]:
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        facts = entry.stat(follow_symlinks=False)
                        yield ImageFile(entry.path, facts.st_size, facts.st_mtime_ns)
        except OSError:
            unreadable.append(current)
