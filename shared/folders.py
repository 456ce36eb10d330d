"""Making a home folder: all of it or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_whole(home: Path) -> Iterator[Path]:
    """Give a folder to fill, whose files become the home's at the end of the block.

    If the block fails nothing stays, and a home that was not there before is not there after.
    Files already in the home stay as they are.

    Args:
        home: Becomes mode 0700; its parents are made too.

    Raises:
        OSError: The home cannot be written.
        FileExistsError: It has a file of a name that is to be made.
    """
    found = home.exists()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as draft:
            yield Path(draft)
            made = sorted(Path(draft).iterdir())
            if taken := [path.name for path in made if (home / path.name).exists()]:
                raise FileExistsError(17, f"there is a {taken[0]} already", str(home))
            home.chmod(0o700)
            for path in made:
                path.rename(home / path.name)
    except BaseException:
        if not found:
            shutil.rmtree(home, ignore_errors=True)
        raise
