"""What a reader must do with any file: return, or raise one clear error, and nothing else."""

import gc
import os
import resource
import signal
import sys
import tempfile
import time
import typing
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipag_plugins.errors import ClipagError

SECONDS = 10  # of processor time that a file of some kilobytes may take
MEGABYTES = 1024  # of memory that it may take
LONGEST_MESSAGE = 2010  # characters
# Events of `sys.audit` that no file may cause.
FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "socket.bind", "pickle.find_class",
    "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "os.symlink", "os.link",
    "os.kill", "shutil.rmtree", "ctypes.dlopen", "webbrowser.open", "urllib.Request",
)  # fmt: skip
# Where Python's and the libraries' own files are, and what the machine says of itself.
READABLE = tuple({str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, *sys.path)
                  if Path(path).is_dir()} | {"/proc", "/sys", "/dev", "/usr/share"})  # fmt: skip


class Failure(Exception):
    """A reader did something else with a file than to read or to refuse it."""


class _TooLong(BaseException):
    """The time is over. Not an Exception, so that no reader catches it."""


class _Watch:
    """Notes what a reader does that only a file's own code would do."""

    def __init__(self) -> None:
        self.folder: str | None = None  # of the file that is read; None while nothing is watched
        self.events: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event of `sys.audit`."""
        folder = self.folder
        if folder is None:
            return
        self.folder = None  # what is done below causes events too
        try:
            if self._is_forbidden(event, arguments, folder):
                self.events.append(f"{event}{arguments!r:.200}")
        finally:
            self.folder = folder

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...], folder: str) -> bool:
        if event == "open":
            path, mode, flags = arguments
            if not isinstance(path, str | bytes):
                return False
            place = os.path.realpath(os.fsdecode(path))
            if place.startswith(folder):
                return False
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or "w" in (mode or "")
            return (writes and place != "/dev/null") or not place.startswith(READABLE)
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            return name.startswith("<") and not name.startswith("<frozen") and not _is_expected()
        # The folder itself may be changed: a damaged checkpoint is renamed.
        if event in ("os.remove", "os.rmdir", "os.rename", "os.chmod", "shutil.rmtree"):
            return not os.path.realpath(os.fsdecode(arguments[0])).startswith(folder)
        return event in FORBIDDEN


def _is_expected() -> bool:
    """Return whether code is run by an import, or by `typing`, which reads our own annotations."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(("<frozen importlib", typing.__file__)):
            return True
        frame = frame.f_back
    return False


_watch = _Watch()


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Raise Failure if the block runs code that is not ours, or takes too much time or memory."""

    began = time.thread_time()

    def stop(*_: object) -> None:
        # The timer counts all threads of the process; what counts is the one that reads.
        if time.thread_time() - began >= SECONDS:
            raise _TooLong
        signal.setitimer(signal.ITIMER_PROF, 1)

    before, _ = _resident_megabytes()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, stop)
    _watch.events.clear()
    # A net below the measured limit: what asks for all memory must not take the machine along.
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + 8 * MEGABYTES * 2**20, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _watch.folder = os.path.realpath(folder)
    # A collection would walk through all that the tests before have left: not the reader's time.
    gc.freeze()
    try:
        yield
    except _TooLong:
        raise Failure(f"it takes more than {SECONDS} s of processor time") from None
    finally:
        gc.unfreeze()
        _watch.folder = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    _, peak = _resident_megabytes()
    if peak - before > MEGABYTES:
        raise Failure(f"it takes {peak - before:.0f} MB of memory")
    if _watch.events:
        raise Failure(f"it makes the reader do {'; '.join(_watch.events)}")


def check(read: Any, path: Path) -> bool:
    """Read a file; return whether it was read and not refused.

    Args:
        read: takes the path.
        path: the file, in a folder that holds nothing of value.

    Raises:
        Failure: the reader raised something other than one ClipagError whose message is one line
            of printable text; took too long or too much memory; ran code, opened other files for
            writing, or used the network.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _watched(path.parent):
                read(path)
        except ClipagError as error:
            _check_message(str(error))
            return False
        except Failure:
            raise
        except MemoryError as error:
            raise Failure("it asks for more memory than it may") from error
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Failure(f"it raises {type(error).__name__}: {error!s:.300}") from error
    return True


def _check_message(message: str) -> None:
    if not message.isprintable() or not message.endswith((".", ")", "?")):
        raise Failure(f"the message is no line of text that ends like a sentence: {message!r:.300}")
    if len(message) > LONGEST_MESSAGE:
        raise Failure(f"the message has {len(message)} characters: {message:.100} …")


def _resident_megabytes() -> tuple[float, float]:
    """Return the memory of this process now and at most since the last call, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")  # the highest value counts from now on
    except OSError:  # not Linux
        return 0, 0
    fields = dict(line.split(":", 1) for line in status.splitlines())
    now, peak = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def _virtual_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def check_bytes(read: Any, filename: str, data: bytes) -> bool:
    """Write a file to a folder of its own and check it; see `check`."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / filename
        path.write_bytes(data)
        return check(read, path)


def warm_up(read: Any, filename: str, files: Iterable[bytes]) -> None:
    """Read valid files unwatched: libraries import and make functions when they are first used."""
    for data in files:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / filename
            path.write_bytes(data)
            with suppress(ClipagError):
                read(path)
