"""Files that attack: pickles that call functions, bombs, archives that belie themselves."""

import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from functools import cache
from typing import Any

import torch


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: str, *arguments: object):
        self.function = function
        self.arguments = arguments

    def pickled(self) -> bytes:
        """Return a pickle of {"visual.proj": function(*arguments)}."""
        module, _, name = self.function.rpartition(".")
        arguments = pickle.dumps(self.arguments, 2)[2:-1]
        called = b"c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R"
        return b"\x80\x02}X\x0b\x00\x00\x00visual.proj" + called + b"s."


CALLS = (
    Call("os.system", "true"),
    Call("posix.system", "true"),
    Call("builtins.eval", "__import__('os').system('true')"),
    Call("builtins.exec", "import os; os.system('true')"),
    Call("builtins.getattr", "os", "system"),
    Call("builtins.open", "/tmp/fuzz-was-here", "w"),
    Call("subprocess.check_output", ["true"]),
    Call("importlib.import_module", "antigravity"),
    Call("runpy.run_path", "/tmp/x.py"),
    Call("torch.load", "/etc/passwd"),
    Call("torch.hub.load", "owner/name", "model"),
    Call("torch.storage._load_from_bytes", pickle.dumps(1)),
    Call("torch.utils.data.datapipes.utils.decoder.basichandlers", "pickle", b""),
    Call("torch.serialization.load", "/etc/passwd"),
    Call("torch.jit.load", "/etc/passwd"),
    Call("torch.classes.load_library", "/tmp/x.so"),
    Call("torch.ops.load_library", "/tmp/x.so"),
    Call("torch._inductor.codecache.PyCodeCache.load", "import os"),
    Call("numpy.fromfile", "/etc/passwd"),
    Call("numpy.testing._private.utils.runstring", "import os", {}),
    Call("main.run", "true"),
    Call("webbrowser.open", "http://127.0.0.1"),
)


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive; a name may be there twice."""
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", compression) as file:
        warnings.simplefilter("ignore")
        for name, content in members:
            file.writestr(name, content)
    return target.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    """Return what torch.save writes."""
    target = io.BytesIO()
    torch.save(value, target, **options)
    return target.getvalue()


def pickles() -> dict[str, bytes]:
    """Return files that unpickling would run, as plain pickle, torch archive and TorchScript."""
    files = {}
    for call in CALLS:
        data = call.pickled()
        members = [("x/data.pkl", data), ("x/version", b"3"), ("x/byteorder", b"little")]
        files[f"{call.function} plain"] = data
        files[f"{call.function} zip"] = archive(*members)
        files[f"{call.function} script"] = archive(*members, ("x/constants.pkl", b"\x80\x02)."))
        legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        files[f"{call.function} legacy"] = legacy + data + pickle.dumps([], 2)
    return files


@cache
def archives() -> dict[str, bytes]:
    """Return archives that claim, hide or nest something."""
    good = pickle.dumps({}, 2)
    evil = CALLS[0].pickled()
    version, script = ("x/version", b"3"), ("x/constants.pkl", b"\x80\x02).")
    zeros = bytes(100 * 2**20)
    nested = archive(("x/data.pkl", evil), version)
    plain = archive(("x/data.pkl", good), version)
    twice = archive(("x/data.pkl", good), ("x/data.pkl", evil), version, script)
    # A tensor of 2**50 elements of a storage of 16 bytes, by strides of 0.
    expanded = torch.zeros(1).expand(2**30, 2**10)
    return {
        "bomb": archive(("x/data.pkl", zeros), version, compression=zipfile.ZIP_DEFLATED),
        "bomb in a script": archive(
            ("x/data.pkl", zeros), version, script, compression=zipfile.ZIP_DEFLATED
        ),
        "bomb of storage": archive(
            ("x/data.pkl", good),
            ("x/data/0", zeros),
            version,
            script,
            compression=zipfile.ZIP_DEFLATED,
        ),
        "nested": archive(("x/data.pkl", nested), version),
        "nested script": archive(("x/data.pkl", nested), version, script),
        "duplicated": archive(("x/data.pkl", good), ("x/data.pkl", evil), version),
        "duplicated script": twice,
        "outside": archive(("../../x/data.pkl", evil), ("../../x/version", b"3")),
        "behind a prefix": evil + plain,
        "before a suffix": plain + evil,
        "zip64 with a wrong size": plain.replace(
            b"PK\x01\x02", b"PK\x06\x06" + struct.pack("<Q", 2**63) + b"PK\x01\x02", 1
        ),
        "many members": archive(*((f"x/data/{i}", b"") for i in range(20_000)), version, script),
        "stride 0": saved({"visual.proj": expanded}),
        "stride 0 legacy": saved({"visual.proj": expanded}, _use_new_zipfile_serialization=False),
        "deep pickle": b"\x80\x02" + b"(" * 10_000 + b"l." * 10_000,
        "deep script": archive(
            ("x/data.pkl", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."), version, script
        ),
        "a pickle that grows": b"\x80\x02X\x04\x00\x00\x00aaaa" + b"2\x86" * 40 + b".",
        "memo of 2 to the 32nd": b"\x80\x02}r\xff\xff\xff\xff.",
        "string of 4 GB": b"\x80\x02X\xff\xff\xff\xffa.",
        "frame of 2 to the 60th": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x10}.",
        "tar of 2017": b"storages\0" + bytes(600),
    }


def svgs() -> dict[str, bytes]:
    """Return pictures in SVG that grow, recur or refer to other files."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    head += 'width="64" height="64">'
    entities, uses = '<!ENTITY a0 "haha">', "<g id='a0'><rect width='1'/></g>"
    for i in range(1, 10):
        entities += f"<!ENTITY a{i} '" + f"&a{i - 1};" * 10 + "'>"
        uses += f"<g id='a{i}'>" + f"<use href='#a{i - 1}'/>" * 10 + "</g>"
    texts = {
        "billion laughs": f"<!DOCTYPE svg [{entities}]>{head}<text>&a9;</text></svg>",
        "external entity": f'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>{head}'
        '<path d="&a;"/></svg>',
        "external subset": f'<!DOCTYPE svg SYSTEM "http://127.0.0.1:9/x.dtd">{head}</svg>',
        "billion uses": f"{head}{uses}</svg>",
        "use of itself": f'{head}<g id="a"><use href="#a"/></g></svg>',
        "uses of each other": f'{head}<g id="a"><use href="#b"/></g>'
        '<g id="b"><use href="#a"/></g></svg>',
        "deep": head + "<g>" * 50_000 + "</g>" * 50_000 + "</svg>",
        "rather deep": head
        + "<g>" * 900
        + "<rect width='1' height='1'/>"
        + "</g>" * 900
        + "</svg>",
        "picture elsewhere": f'{head}<image href="file:///etc/passwd" width="9" height="9"/></svg>',
        "picture on the net": f'{head}<image xlink:href="http://127.0.0.1:9/a.png"/></svg>',
        "picture inside": f'{head}<image href="data:image/png;base64,AAAA"/></svg>',
        "gradients in a ring": f'{head}<linearGradient id="a" href="#b"/><linearGradient id="b" '
        'href="#a"/><rect width="9" height="9" fill="url(#a)"/></svg>',
        "infinite": f'{head}<path d="M1e999 1L-1e999 nan z"/><circle r="1e308"/></svg>',
        "huge": '<svg width="1e300" height="1e300"><rect width="1e300" height="1"/></svg>',
        "negative": '<svg viewBox="0 0 -5 -5"><rect width="-1" height="-1" rx="-1"/></svg>',
        "many arcs": head + '<path d="M0 0' + "A1 1 0 0 0 9 9" * 20_000 + '"/></svg>',
        "style bomb": head + "<style>" + "g{fill:red}" * 20_000 + "</style><g/></svg>",
        "not closed": head,
        "a script": f"{head}<script>alert(1)</script><rect width='1' height='1'/></svg>",
        "UTF-7": "<?xml version='1.0' encoding='utf-7'?>+ADw-svg+AD4-",
        "unknown encoding": "<?xml version='1.0' encoding='x-none'?><svg/>",
        "transform": f'{head}<rect width="9" height="9" transform="matrix(1 2) rotate(a)"/></svg>',
    }
    return {name: text.encode() for name, text in texts.items()}


def configs() -> dict[str, bytes]:
    """Return texts that no JSON, TOML or YAML reader may stumble over."""
    aliases = "a0: &a0 [1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    texts = {
        "empty": "",
        "null": "null",
        "list": "[]",
        "deep list": "[" * 100_000,
        "deep list, closed": "[" * 50_000 + "]" * 50_000,
        "deep object": '{"a":' * 50_000 + "1" + "}" * 50_000,
        "deep table": "a" + ".a" * 5_000 + " = 1",
        "deep array": "a = " + "[" * 5_000 + "]" * 5_000,
        "long number": "9" * 100_000,
        "long number in TOML": "steps = " + "9" * 100_000,
        "infinite": '{"model_cfg": Infinity}',
        "surrogate": '{"name": "\\ud800", "model_cfg": "\\udfff"}',
        "aliases": aliases,
        "python tag": "!!python/object/apply:os.system ['true']",
        "python name": "a: !!python/name:os.system",
        "recursive alias": "model: &a\n  params: *a\n",
        "merge bomb": "a: &a {x: 1}\nb: {" + ", ".join(["<<: *a"] * 3_000) + "}",
        "date": "a: 9999-99-99",
        "sexagesimal": "a: " + "9:" * 5000 + "9",
        "byte order mark": "\ufeff{}",
        "NUL": '{"a\0": 1}',
        "bidi": '{"\u202e": "\u202e"}',
        "one line": "x" * 500_000,
    }
    return {name: text.encode("utf-8") for name, text in texts.items()} | {
        "not UTF-8": b"\xff\xfe\x00",
        "UTF-16": "{}".encode("utf-16"),
        "half a surrogate": b"\xed\xa0\x80",
    }


def pictures() -> dict[str, bytes]:
    """Return pictures that claim or hide more than they hold."""

    def png(
        width: int, height: int, depth: int, colour: int, *chunks: tuple[bytes, bytes]
    ) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(content)) + name + content
            + struct.pack(">I", zlib.crc32(name + content))
            for name, content in ((b"IHDR", header), *chunks, (b"IEND", b""))
        )  # fmt: skip

    zeros = zlib.compress(bytes(2**26))
    scanline = zlib.compress(bytes(65))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/tmp/x) (w) file\n%%EOF\n"
    return {
        "huge PNG": png(2**31 - 1, 2**31 - 1, 8, 6, (b"IDAT", b"x")),
        "bomb": png(30_000, 30_000, 8, 0, (b"IDAT", zeros)),
        "large and truncated": png(8_000, 7_999, 8, 6, (b"IDAT", zeros)),
        "flat": png(2**26, 1, 8, 0, (b"IDAT", zeros)),
        "no pixels": png(64, 64, 8, 0),
        "no width": png(0, 64, 8, 0, (b"IDAT", scanline)),
        "text bomb": png(1, 1, 8, 0, (b"zTXt", b"prompt\0\0" + zeros), (b"IDAT", scanline)),
        "profile bomb": png(1, 1, 8, 0, (b"iCCP", b"x\0\0" + zeros), (b"IDAT", scanline)),
        "many texts": png(
            1, 1, 8, 0, *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 200,
            (b"IDAT", scanline),
        ),
        "animation of 2 billion": png(
            1, 1, 8, 0, (b"acTL", struct.pack(">II", 2**31 - 1, 0)), (b"IDAT", scanline)
        ),
        "GIF of 4 gigapixels": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;",
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 32,
                                   0, 0, 0, 0, 0, 0),
        "EPS": eps,
        "TIFF of itself": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 330, 4, 1, 8, 8),
        "XBM": b"#define x_width 99999\n#define x_height 99999\nstatic char x_bits[] = {0x00};",
        "PPM": b"P6 8000 8000 255\n",
        "DDS": b"DDS " + struct.pack("<I", 124) + b"\xff" * 120,
        "FITS": b"SIMPLE  =                    T" + b" " * 3000,
        "EXIF": png(1, 1, 8, 0, (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\xff\xff\xff\xff\0\6"),
                    (b"IDAT", zlib.compress(b"\0\0"))),
        "HTML": b"<html>404</html>",
        "empty": b"",
    }  # fmt: skip


def tensors() -> dict[str, bytes]:
    """Return files in the safetensors format that claim what they do not hold."""

    def file(header: object, data: bytes = b"") -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def entry(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, object]:
        return {"dtype": dtype, "shape": shape, "data_offsets": offsets}

    return {
        "header of 2 to the 63rd": struct.pack("<Q", 2**63) + b"{}",
        "header longer than the file": struct.pack("<Q", 10**8) + b"{}",
        "overlap": file({"a": entry("U8", [4], [0, 4]), "b": entry("U8", [4], [2, 6])}, bytes(6)),
        "beyond the end": file({"a": entry("F32", [2**40], [0, 2**42])}),
        "overflow": file({"a": entry("F32", [2**33, 2**33], [0, 0])}),
        "empty and large": file({"visual.proj": entry("F32", [10**12, 0], [0, 0])}),
        "many": file({f"a{i}": entry("U8", [0], [0, 0]) for i in range(20_000)}),
        "metadata": file({"__metadata__": {"quick_gelu": "\0" * 9, "prompt": "\u202e" * 9}}),
        "deep": struct.pack("<Q", 40_000) + b"[" * 20_000 + b"]" * 20_000,
        "pickle": CALLS[0].pickled(),
    }
