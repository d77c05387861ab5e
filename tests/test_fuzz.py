"""Damaged and hostile files: each reader reads them, or refuses them with one clear error."""

import os
import pickle
import time
from pathlib import Path

import pytest
from fuzz.check import MEGABYTES, Failure, check_bytes, warm_up
from fuzz.mutators import mutate
from fuzz.targets import TARGETS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from clipag_plugins import ClipagError

# Files that once failed. Their names begin with the target's.
REGRESSIONS = sorted((Path(__file__).parent / "fuzz" / "regressions").glob("*.*"))


def warmed_up(name):
    target = TARGETS[name]
    warm_up(target.read, target.filename, target.valid().values())
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name):
    """About a minute for all targets; `python tests/fuzz --minutes 60` tries more."""
    target = warmed_up(name)

    was_read = []

    @settings(max_examples=target.examples, derandomize=True, deadline=None, database=None,
              phases=(Phase.generate, Phase.shrink),
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def read_damaged_file(dice):
        data = mutate(dice.choice(target.seeds), target.mutators, dice)
        was_read.append(check_bytes(target.read, target.filename, data))

    read_damaged_file()
    assert True in was_read  # some damage is harmless
    assert False in was_read or name == "resume"  # which takes the checkpoint before a damaged one


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_valid_and_hostile_files(name):
    target = warmed_up(name)
    for kind, data in target.valid().items():
        was_read = check_bytes(target.read, target.filename, data)
        assert was_read or kind in target.refused, kind
    for kind, data in target.hostile().items():
        try:
            check_bytes(target.read, target.filename, data)
        except Failure as failure:
            raise AssertionError(f"{kind}: {failure}") from failure


@pytest.mark.slow
@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_files_that_once_failed(path):
    target = warmed_up(path.name.partition(".")[0])
    check_bytes(target.read, target.filename, path.read_bytes())


def test_messages_are_one_line_that_a_terminal_can_show():
    text = str(ClipagError("no \x1b[2J\nfile \u202egnp\x00.exe" + "x" * 10**6 + ": name another."))
    assert text.isprintable() and len(text) < 3000
    assert text.startswith("no \\x1b[2J file \\u202egnp\\x00.exe") and text.endswith(
        "name another."
    )
    assert str(ClipagError("`größe` is 'a  b 猫': choose 1.")) == "`größe` is 'a  b 猫': choose 1."


def read_badly(path):
    """Do what the first byte of a file says; a reader should do none of it."""
    wrongs = {
        b"a": lambda: pickle.loads(b"cposix\ngetpid\n."),
        b"b": lambda: os.system("true"),
        b"c": lambda: Path("/etc/hostname").read_bytes(),
        b"d": lambda: eval("1 + 1"),
        b"e": lambda: open(path.parent.parent / "fuzz-was-here", "w"),  # noqa: PTH123, SIM115
        b"f": lambda: bytearray((MEGABYTES + 100) * 2**20),
        b"g": lambda: [1][2],
        b"h": lambda: (_ for _ in ()).throw(ClipagError("no end")),
        b"i": lambda: burn(time.process_time() + 60),
    }
    wrongs[path.read_bytes()]()


def burn(until):
    while time.process_time() < until:
        pass


@pytest.mark.parametrize("byte", [*"abcdefgh", pytest.param("i", marks=pytest.mark.slow)])
def test_the_check_notices_what_readers_may_not_do(byte):
    with pytest.raises(Failure):
        check_bytes(read_badly, "x", byte.encode())
