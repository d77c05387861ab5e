"""Write files so that nothing that existed is lost or half-written; and what to call them."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it to `target` on success.

    The folder is made if it is only the last of its path that is missing.

    The block may write a file or make a folder at the path it is given. When it raises,
    the temporary is removed and whatever stood at `target` is untouched.

    Raises:
        OSError: the folder of `target` can be neither made nor written to.
    """
    target = Path(target)
    target.parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".clipag-", dir=target.parent))
    # The file keeps its name inside the temporary folder: writers read the format off it.
    temporary = folder / target.name
    try:
        yield temporary
        if temporary.is_file():
            # Some writers make private files; this one should be as open as any other.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(target: Path, value: object) -> None:
    """Write a value as JSON that people can read."""
    with write_beside(target) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def slug(text: str) -> str:
    """Return a text as file names have it: "a red apple" is a-red-apple."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60]
