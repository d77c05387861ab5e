"""Fuzz for as long as you like: `python tests/fuzz --minutes 60 [--target NAME] [--seed N]`.

Each file is read in a child process, so a crash or a hang is a failure like any other. A file that
fails is kept in the folder `--out`; `--replay FILE` reads it again, with a full traceback.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

SILENT_FOR = 120  # seconds without a sign of the child that count as a hang
BATCH = 50  # files of one target before the next one's turn


def main() -> int:
    """Fuzz, or read one file again; return 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="(default: %(default)s)")
    parser.add_argument("--target", action="append", help="fuzz these alone (default: all)")
    parser.add_argument("--seed", type=int, default=None, help="(default: the clock)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where failures go")
    parser.add_argument("--replay", type=Path, help="read this file, named TARGET.…")
    options = parser.parse_args()
    from .targets import TARGETS

    names = options.target or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {unknown.pop()}: choose from {', '.join(TARGETS)}")
    if options.replay is not None:
        return _replay(options.replay)
    options.out.mkdir(parents=True, exist_ok=True)
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"seed {seed}, {len(names)} targets, failures go to {options.out}", flush=True)
    return _fuzz(names, seed, time.monotonic() + 60 * options.minutes, options.out)


def _replay(path: Path) -> int:
    from .check import check_bytes
    from .targets import TARGETS

    target = TARGETS[path.name.partition(".")[0]]
    try:
        was_read = check_bytes(target.read, target.filename, path.read_bytes())
    except Exception:
        traceback.print_exc()
        return 1
    print("It is read." if was_read else "It is refused as it should be.")
    return 0


def _fuzz(names: list[str], seed: int, end: float, out: Path) -> int:
    """Give each target its turn until the time is over; return 1 if something failed."""
    context = multiprocessing.get_context("spawn")
    failures: dict[str, Path] = {}
    files = turns = 0
    with tempfile.TemporaryDirectory() as folder:
        current = Path(folder) / "current"
        child, pipe = _start(context, current, out / "log.txt")
        while time.monotonic() < end:
            name = names[turns % len(names)]
            turns += 1
            pipe.send((name, f"{seed} {turns}"))
            message: object = None
            while message != "done":
                try:
                    message = pipe.recv() if pipe.poll(SILENT_FOR) else "it hangs"
                except (EOFError, OSError):
                    child.join()
                    message = f"it ends the process with {child.exitcode}"
                if message == "read":
                    files += 1
                elif isinstance(message, tuple):
                    _keep(*message, name, out, failures)
                elif message != "done":
                    _keep(str(message), current.read_bytes(), name, out, failures)
                    child.kill()
                    child, pipe = _start(context, current, out / "log.txt")
                    break
        child.kill()
    print(f"{files} files, {len(failures)} kinds of failure")
    return bool(failures)


def _start(context: multiprocessing.context.SpawnContext, current: Path, log: Path):  # type: ignore[no-untyped-def]
    ours, theirs = context.Pipe()
    child = context.Process(target=_read_files, args=(theirs, current, log), daemon=True)
    child.start()
    theirs.close()
    return child, ours


def _keep(message: str, data: bytes, name: str, out: Path, failures: dict[str, Path]) -> None:
    """Keep the first file of each kind of failure, and print how to read it again."""
    kind = f"{name}: {message.partition(': ')[0]} {message.rpartition(' @ ')[2]}"
    if kind in failures:
        return
    path = out / f"{name}.{hashlib.sha256(data).hexdigest()[:8]}"
    path.write_bytes(data)
    failures[kind] = path
    print(f"{name}: {message}\n    python tests/fuzz --replay {path}", flush=True)


def _read_files(pipe: Connection, current: Path, log: Path) -> None:
    """Read files in the child process, and tell the parent what became of each."""
    with log.open("a") as file:  # libraries in C print to the process' own streams
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from .check import Failure, check_bytes, warm_up
    from .mutators import mutate
    from .targets import TARGETS

    for target in TARGETS.values():
        warm_up(target.read, target.filename, target.valid().values())
    while True:
        name, seed = pipe.recv()
        target, dice = TARGETS[name], random.Random(f"{name} {seed}")
        for _ in range(BATCH):
            data = mutate(dice.choice(target.seeds), target.mutators, dice)
            current.write_bytes(data)
            try:
                check_bytes(target.read, target.filename, data)
            except Failure as failure:
                pipe.send((f"{failure} @ {_place(failure)}", data))
            pipe.send("read")
        pipe.send("done")


def _place(failure: BaseException) -> str:
    """Return the line of the package where the cause of a failure was raised."""
    cause = failure.__cause__ or failure
    frames = traceback.extract_tb(cause.__traceback__)
    ours = [f for f in frames if "/clipag_plugins/" in f.filename or "/integrations/" in f.filename
            or "/finetune/" in f.filename]  # fmt: skip
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "check"
