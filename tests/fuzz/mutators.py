"""Damage files: at random, and in ways that are typical for their format.

A mutator takes a file's bytes and a source of random choices, and returns other bytes. It returns
the file as it is if the file is not of its format.
"""

import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random

Mutator = Callable[[bytes, Random], bytes]

LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
           2**63, 2**64 - 1)  # fmt: skip
# A number, a string, or a word that stands for a value in JSON, TOML, YAML, XML or a list.
VALUES = re.compile(rb"-?\d[\d.]*(?:[eE][-+]?\d+)?|\"[^\"\n]*\"|'[^'\n]*'|\b(?:true|false|null)\b")
ODD_VALUES = (
    b"0", b"-1", b"1", b"2", b"0.5", b"1e400", b"-1e400", b"1e-400", b"NaN", b"-Infinity", b"inf",
    b"9" * 30, b"9" * 5000, b"1000000000", b"4294967296", b"18446744073709551616", b"true", b"null",
    b"[]", b"{}", b"[[]]", b'{"a": 1}', b"[1, 2, 3]", b'""', b'"x"', b'"8"', b"x", b"", b"1,2",
    b'"1e999"', b'"-1"', b'"nan"', b'"1/0"', b'"url(#a)"', b'"a:b"', b'"\\ud800"', b'"\\u0000"',
    "\"\u202egnp.exe\"".encode(), b'"' + b"x" * 10_000 + b'"', b"1_000", b"0x7fffffffffffffff",
    b"2024-01-01", b"'5%'", b'"5%"', b'"1e9px"', b'"hf-hub:x/y"', b'"pipe:id"', b'"/etc/passwd"',
)  # fmt: skip
ODD_TEXTS = (
    b"\x00", b"\x00\x00\x00\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x85", b"\r",
    "\u202e".encode(), "\u2028".encode(), "\U0001f469\u200d\U0001f680".encode(), b"%n%s",
    b"\x1b[2J", b"\n\n", b"&a;", b"*a", b"<<: *a", b"<!--", b"<![CDATA[", b"\\", b'"', b"'",
)  # fmt: skip
NESTS = ((b"[", b"]"), (b'{"a":', b"}"), (b"<g>", b"</g>"), (b"<svg>", b"</svg>"), (b"(", b")"),
         (b"- ", b""), (b"a.", b""), (b"]", b""), (b"}\x94", b""))  # fmt: skip
# Names that a hostile pickle may ask for, in torch's own modules too.
GLOBALS = (
    b"os\nsystem", b"posix\nsystem", b"builtins\neval", b"builtins\nexec", b"builtins\ngetattr",
    b"subprocess\nPopen", b"torch\nload", b"torch.hub\nload", b"torch.storage\n_load_from_bytes",
    b"torch._utils\n_rebuild_parameter", b"torch._utils\n_rebuild_sparse_tensor",
    b"torch._utils\n_rebuild_meta_tensor_no_storage", b"torch._tensor\n_rebuild_from_type_v2",
    b"torch.jit._script\nunpackage_script_module", b"torch\nQInt8Storage", b"torch\ndevice",
    b"numpy\nfromfile", b"numpy.core.multiarray\n_reconstruct", b"_codecs\nencode",
    b"argparse\nNamespace", b"main\nMain", b"collections\nCounter", b"__builtin__\neval",
)  # fmt: skip
GLOBAL = re.compile(rb"c[\w.]+\n\w+(?=\n)")


def flip(data: bytes, dice: Random) -> bytes:
    """Flip a bit."""
    return _with_byte(data, dice, lambda byte: byte ^ 1 << dice.randrange(8))


def overwrite(data: bytes, dice: Random) -> bytes:
    """Replace a byte by any other."""
    return _with_byte(data, dice, lambda _: dice.randrange(256))


def truncate(data: bytes, dice: Random) -> bytes:
    """Cut off the end."""
    return data[: dice.randrange(len(data) + 1)]


def insert(data: bytes, dice: Random) -> bytes:
    """Insert random bytes."""
    spot = _spot(data, dice)
    return data[:spot] + dice.randbytes(dice.randrange(1, 20)) + data[spot:]


def delete(data: bytes, dice: Random) -> bytes:
    """Remove a few bytes."""
    spot = _spot(data, dice)
    return data[:spot] + data[spot + dice.randrange(1, 20) :]


def splice(data: bytes, dice: Random) -> bytes:
    """Copy a part of the file to another place, over what is there or between."""
    start, spot = _spot(data, dice), _spot(data, dice)
    part = data[start : start + dice.choice((4, 16, 100, 1000))]
    return data[:spot] + part + data[spot + dice.choice((0, len(part))) :]


def length(data: bytes, dice: Random) -> bytes:
    """Write an extreme number where a length may be."""
    spot, width, order = (
        _spot(data, dice),
        dice.choice((1, 2, 4, 8)),
        dice.choice(("big", "little")),
    )
    number = dice.choice(LENGTHS) % 256**width
    return data[:spot] + number.to_bytes(width, order) + data[spot + width :]


def value(data: bytes, dice: Random) -> bytes:
    """Replace a value of a text format by a value of another type or size."""
    matches = list(VALUES.finditer(data))
    if not matches:
        return data
    match = dice.choice(matches)
    odd = dice.choice(ODD_VALUES)
    if match[0][:1] == b'"' and dice.randrange(2):  # keep XML and strings in one piece
        odd = b'"' + odd.strip(b"\"'") + b'"'
    return data[: match.start()] + odd + data[match.end() :]


def swap(data: bytes, dice: Random) -> bytes:
    """Replace a value of a text format by another value of the same file."""
    matches = list(VALUES.finditer(data))
    if not matches:
        return data
    match = dice.choice(matches)
    return data[: match.start()] + dice.choice(matches)[0] + data[match.end() :]


def text(data: bytes, dice: Random) -> bytes:
    """Insert characters that are special in some format, or to a terminal."""
    spot = _spot(data, dice)
    return data[:spot] + dice.choice(ODD_TEXTS) * dice.choice((1, 1, 3)) + data[spot:]


def nest(data: bytes, dice: Random) -> bytes:
    """Insert deep nesting."""
    spot, (opening, closing) = _spot(data, dice), dice.choice(NESTS)
    times = dice.choice((2, 60, 1100, 20_000))
    return data[:spot] + opening * times + closing * times * dice.randrange(2) + data[spot:]


def line(data: bytes, dice: Random) -> bytes:
    """Remove, repeat or move a line."""
    lines = data.split(b"\n")
    chosen = lines.pop(dice.randrange(len(lines)))
    for _ in range(dice.choice((0, 1, 2, 500 if len(chosen) < 1000 else 2))):
        lines.insert(dice.randrange(len(lines) + 1), chosen)
    return b"\n".join(lines)


def archive(data: bytes, dice: Random) -> bytes:
    """Damage a member of a zip archive, or the archive's order, and write it correctly again."""
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(data)) as source:
            entries = [info for info in source.infolist() if info.file_size < 2**24]
            members = [[info.filename, source.read(info)] for info in entries]
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, NotImplementedError, zlib.error,
            RuntimeError, EOFError, struct.error):  # fmt: skip
        return data
    if not members:
        return data
    pickles = [member for member in members if member[0].endswith(".pkl")]
    member = dice.choice(pickles if pickles and dice.randrange(4) else members)
    kind = dice.randrange(10)
    if kind < 5:
        member[1] = dice.choice((*ANYWHERE, pickled, pickled))(member[1], dice)
    elif kind == 5:
        member[0] = dice.choice(("../../x", "/x", "x", "\0", "a" * 300, dice.choice(members)[0]))
    elif kind == 6:
        members.remove(member)
    elif kind == 7:
        members.insert(dice.randrange(len(members) + 1), [member[0], dice.choice(members)[1]])
    elif kind == 8:
        member[1] = data  # an archive in an archive
    else:
        member[1] = bytes(dice.choice((0, 1, 2**16, 2**24)))
    target = io.BytesIO()
    compression = dice.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", compression) as new:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members:
            with new.open(name, "w", force_zip64=dice.randrange(8) == 0) as file:
                file.write(content)
    return target.getvalue()


def pickled(data: bytes, dice: Random) -> bytes:
    """Replace a name that a pickle imports, or a number in it."""
    names = list(GLOBAL.finditer(data))
    if names and dice.randrange(2):
        match = dice.choice(names)
        return data[: match.start()] + b"c" + dice.choice(GLOBALS) + data[match.end() :]
    numbers = [i for i, byte in enumerate(data) if byte in b"KMJ"]
    if not numbers:
        return data
    spot = dice.choice(numbers)
    width = {ord("K"): 1, ord("M"): 2, ord("J"): 4}[data[spot]]
    new = b"J" + struct.pack("<i", dice.choice((-1, 0, 1, 7, 2**16, 2**31 - 1)))
    if dice.randrange(4) == 0:
        new = b"\x8a\x08" + struct.pack("<q", dice.choice((2**63 - 1, 2**40, -(2**63))))
    return data[:spot] + new + data[spot + 1 + width :]


def tensors(data: bytes, dice: Random) -> bytes:
    """Damage the header of a .safetensors file, and give its right length."""
    (size,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    header, rest = data[8 : 8 + size], data[8 + size :]
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        return data
    if not isinstance(entries, dict) or not entries:
        return data
    key, other = dice.choice(list(entries)), dice.choice(list(entries))
    kind = dice.randrange(6)
    if kind == 0:
        entries[key] = entries[other]
    elif kind == 1:
        del entries[key]
    elif kind == 2:
        entries[dice.choice(("__metadata__", "x" * 5000, "\u202e", "", "\n"))] = entries[key]
    elif kind == 3 and isinstance(entries[key], dict):
        dtypes = ("BOOL", "U8", "I64", "F64", "F16", "BF16", "F8_E4M3", "U64", "C64", "X")
        entries[key]["dtype"] = dice.choice(dtypes)
    elif kind == 4 and isinstance(entries[key], dict):
        entries[key]["shape"] = dice.choice(
            (
                [],
                [0],
                [-1],
                [2**62, 4],
                [2**31, 0],
                [1] * 100,
                [1, 1, *entries[key].get("shape", [])],
            )
        )
    new = json.dumps(entries).encode()
    if kind == 5:
        new = dice.choice((value, swap, nest, text))(header, dice)
    return struct.pack("<Q", len(new)) + new + rest


def chunk(data: bytes, dice: Random) -> bytes:
    """Damage a chunk of a PNG, or the order of the chunks, and give their right checksums."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    chunks: list[tuple[bytes, bytes]] = []
    spot = 8
    while spot + 8 <= len(data):
        (size,) = struct.unpack(">I", data[spot : spot + 4])
        chunks.append((data[spot + 4 : spot + 8], data[spot + 8 : spot + 8 + size]))
        spot += 12 + size
    if not chunks:
        return data
    number = dice.randrange(len(chunks))
    name, content = chunks[number]
    kind = dice.randrange(5)
    if kind < 3:
        chunks[number] = name, dice.choice(ANYWHERE)(content, dice)
    elif kind == 3:
        chunks.insert(dice.randrange(len(chunks) + 1), chunks[number])
    else:
        bomb = zlib.compress(bytes(2**24))
        odd = ((b"tEXt", b"prompt\0" + b"\xff" * 9), (b"iCCP", b"x\0\0" + bomb),
               (b"zTXt", b"prompt\0\0" + bomb), (b"iTXt", b"prompt\0\1\0\0\0" + bomb),
               (b"acTL", struct.pack(">II", 2**31 - 1, 0)), (b"eXIf", b"Exif\0\0MM\0*" + bytes(9)),
               (b"tRNS", b"\0" * 300), (b"PLTE", b"\0" * 3))  # fmt: skip
        chunks.insert(dice.randrange(len(chunks)), dice.choice(odd))
    body = (
        struct.pack(">I", len(content)) + name + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )  # fmt: skip
    return data[:8] + b"".join(body)


# Mutators of any bytes; of text formats; and of archives, weights and pictures.
ANYWHERE: tuple[Mutator, ...] = (flip, overwrite, truncate, insert, delete, splice, length)
TEXT: tuple[Mutator, ...] = (value, value, value, swap, text, nest, line, delete, truncate, flip)
BINARY: tuple[Mutator, ...] = (*ANYWHERE, text)
WEIGHTS: tuple[Mutator, ...] = (*BINARY, *[archive] * 8, tensors, pickled)
TENSORS: tuple[Mutator, ...] = (*BINARY, *[tensors] * 8)
PICTURE: tuple[Mutator, ...] = (*BINARY, *[chunk] * 4)


def mutate(data: bytes, mutators: Sequence[Mutator], dice: Random) -> bytes:
    """Damage a file one to three times."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        data = dice.choice(mutators)(data, dice)
    return data


def _spot(data: bytes, dice: Random) -> int:
    """Choose a place; often near an end, where binary files have their structure."""
    whole = len(data)
    kind = dice.randrange(4)
    if kind == 0:
        return dice.randrange(min(whole, 64) + 1)
    if kind == 1:
        return whole - dice.randrange(min(whole, 3000) + 1)
    return dice.randrange(whole + 1)


def _with_byte(data: bytes, dice: Random, change: Callable[[int], int]) -> bytes:
    if not data:
        return data
    spot = min(_spot(data, dice), len(data) - 1)
    return data[:spot] + bytes([change(data[spot])]) + data[spot + 1 :]
