"""Write files without losing what was there before; check folders; name files after texts."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ClipagError


@contextmanager
def write_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to `target`, and rename it to `target` on success.

    The block may write a file or make a folder at the temporary path. If the block raises, the
    temporary is removed and whatever stood at `target` is untouched. The parent folder of `target`
    is made if it is missing; its own parent must exist.

    Raises:
        OSError: the parent folder can be neither made nor written to.
    """
    target = Path(target)
    target.parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".clipag-", dir=target.parent))
    # The file keeps its name inside the temporary folder: writers derive the format from it.
    temporary = folder / target.name
    try:
        yield temporary
        if temporary.is_file():
            # Some writers make private files; give this one the usual permissions.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(target: Path, value: object) -> None:
    """Write a value as indented JSON."""
    with write_beside(target) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def slug(text: str) -> str:
    """Return a text in the form that file names have: "a red apple" becomes a-red-apple."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60]


def require_writable_folder(folder: Path) -> None:
    """Raise ClipagError unless a folder exists and can be written to."""
    # os.path, not Path: a folder without access rights counts as missing.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ClipagError(f"There is no folder {folder}: make it first, or name another.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ClipagError(f"The folder {folder} cannot be written to: name another.") from error


def require_writable_or_creatable(folder: Path | None) -> None:
    """Raise ClipagError unless a folder can be written to, or can be made in its parent."""
    if folder is not None:
        require_writable_folder(folder if folder.exists() else folder.parent)
