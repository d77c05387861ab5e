"""Build the corpus: picture–caption pairs from openly licensed packages.

    python -m clipag_plugins.finetune.embedded.corpus --work build/weights

Pictures are drawn once to RGBA (N, 96, 96, 4) uint8, so that training can put them
on any background. Needs `npm` for the emoji sets and `apt-get` for the clip art and
WordNet (Debian, Ubuntu); only whoever remakes the embedded weights runs this.

The split is a function of the caption and the picture's name alone, so it is the same
on every machine:
  unseen  every picture whose caption or file name names a concept of `splits/v2/unseen.txt`,
          in any of the words of `splits/v2/other_names.txt`
  test    5 % of the other pictures, picked by hash
  train   the rest
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from clipag_plugins.errors import ClipagError, exit_on_user_error, library
from clipag_plugins.files import write_beside

SIZE = 96
SPLIT_FOLDER = Path(__file__).parent / "splits" / "v2"
TEST_SHARE = 0.05
# Of the hash that picks the test pictures: kept, so that they stay those of the first split.
SALT = "v1"

# The share-alike set (openmoji, CC-BY-SA) and the GPL stamps are left out on purpose:
# the weights stay free of copyleft.
EMOJI_SETS = {
    "fluent-emoji-flat": "1.2.6",  # MIT; first, because its names are the best captions
    "fluent-emoji": "1.2.7",  # MIT
    "noto": "1.2.9",  # Apache-2.0
    "noto-v1": "1.2.5",  # Apache-2.0
    "twemoji": "1.2.5",  # CC-BY-4.0
    "emojione": "1.2.3",  # CC-BY-4.0
    "fxemoji": "1.2.2",  # Apache-2.0
}
DEBIAN_PACKAGES = ("openclipart-png", "wordnet-base")

# Emoji that are writing rather than pictures, or the same picture in another skin tone.
NOT_A_PICTURE = re.compile(
    r"(^|-)(light|medium|dark|medium-light|medium-dark)(-skin-tone)?(-|$)|skin-tone"
    r"|^flag-|^flags?$|^keycap|^letter-|-letter-?|^clock-?\d|oclock|-thirty$|thirty$|^regional-|-button$"
    r"|^japanese-|^squared|^circled|copyright|registered|trade-mark|^digit|^tag-|^component"
    r"|^kiss-|^couple-with-heart-|^family-|^people-holding-hands-"
)
CLIP_ART_LEFT_OUT = (
    "shapes/",
    "special/",
    "logos/",
    "buttons/",
    "unsorted/duplicates",
    "computer/icons",
    "computer/buttons",
    "computer/diagrams",
    "signs_and_symbols/flags",
    "signs_and_symbols/led",
    "signs_and_symbols/map_symbols",
    "transportation/aiga-symbols",
)


@dataclass(frozen=True)
class Picture:
    """One row of the corpus; `index` is its row in pictures.npy."""

    index: int
    caption: str
    source: str
    name: str
    group: str
    split: str


def fetch_packages(folder: Path) -> None:
    """Download the source packages with their own package managers into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for emoji_set, version in EMOJI_SETS.items():
        if not (folder / f"iconify-json-{emoji_set}-{version}.tgz").exists():
            _run(folder, "npm", "pack", "--silent", f"@iconify-json/{emoji_set}@{version}")
    for package in DEBIAN_PACKAGES:
        if not (folder / package).exists():
            _run(folder, "apt-get", "download", package)
            (archive,) = folder.glob(f"{package}_*.deb")
            with write_beside(folder / package) as unpacked:
                _run(folder, "dpkg-deb", "-x", archive.name, str(unpacked.resolve()))


def _run(folder: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ClipagError(
            f"{' '.join(command)!r} failed: the corpus comes by npm, apt-get and dpkg-deb, from "
            "the network."
        ) from error


def unicode_names() -> dict[str, str]:
    """Map names written without spaces ("palmtree") to names with them ("palm tree")."""
    ranges = (range(0x2190, 0x2C00), range(0x1F000, 0x1FB00))
    names = (unicodedata.name(chr(code), "") for codes in ranges for code in codes)
    return {re.sub(r"[^a-z0-9]", "", name.lower()): name.lower() for name in names if name}


def emoji_pictures(folder: Path) -> Iterator[tuple[Image.Image, str, str, str, str]]:
    """Yield (picture, caption, source, name, group) for every emoji set."""
    resvg_py = library("resvg_py", "weights")  # only the corpus needs it, the split lists do not
    spaced = unicode_names()
    groups: dict[str, str] = {}
    for emoji_set, version in EMOJI_SETS.items():
        with tarfile.open(folder / f"iconify-json-{emoji_set}-{version}.tgz") as archive:
            icons = json.load(_member(archive, "package/icons.json"))
            categories = json.load(_member(archive, "package/metadata.json")).get("categories", {})
        group_of = {name: group for group, names in categories.items() for name in names}
        width, height = icons.get("width", 16), icons.get("height", 16)
        for name, icon in tqdm(icons["icons"].items(), desc=emoji_set, unit="picture"):
            if icon.get("hidden") or NOT_A_PICTURE.search(name):
                continue
            key = name.replace("-", "")
            caption = name.replace("-", " ")
            if emoji_set == "fxemoji":
                caption = spaced.get(key, caption)
            else:
                spaced[key] = caption
            group = groups.setdefault(caption, group_of.get(name, "Emoji"))
            if group == "Flags":
                continue
            w, h = icon.get("width", width), icon.get("height", height)
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {w} {h}" '
                f'width="{w}" height="{h}">{icon["body"]}</svg>'
            )
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
            yield Image.open(io.BytesIO(bytes(png))), caption, emoji_set, name, group


def clip_art_pictures(folder: Path) -> Iterator[tuple[Image.Image, str, str, str, str]]:
    """Yield (picture, caption, source, name, group) for the clip art.

    File names end in their authors' names ("apple_bitten_dan_gerhard_01"): only words
    that WordNet knows as nouns or adjectives are kept, up to the first it does not.
    """
    known = {
        lemma
        for part in ("noun", "adj", "verb")
        for lemma in wordnet_lemmas(folder / "wordnet-base", part)
    }
    root = folder / "openclipart-png" / "usr/share/openclipart/png"
    for path in tqdm(sorted(root.rglob("*.png")), desc="clip art", unit="picture"):
        relative = path.relative_to(root).as_posix()
        if relative.startswith(CLIP_ART_LEFT_OUT):
            continue
        words = [w for w in re.split(r"[^a-z]+", path.stem.lower()) if w not in ("", "bw", "icon")]
        while words and words[0] not in known:
            words.pop(0)
        kept = []
        for word in words:
            if word not in known and word not in ("with", "and", "of", "the", "on", "in"):
                break
            kept.append(word)
        if not kept or len(kept[0]) < 3:
            continue
        try:
            picture = Image.open(path).convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if max(picture.size) <= 8 * min(picture.size):
            yield picture, " ".join(kept[:5]), "openclipart", relative, path.parent.name


def wordnet_lemmas(folder: Path, part: str) -> dict[str, list[str]]:
    """Map WordNet's lemmas of one part of speech ("noun", "adj", …) to their glosses."""
    glosses = {
        line[:8]: line.split("|", 1)[1].split(";")[0].strip()
        for line in _wordnet_lines(folder, f"data.{part}")
    }
    return {
        lemma: [glosses[offset] for offset in senses]
        for lemma, senses in _wordnet_senses(folder, part).items()
    }


def wordnet_kinds(folder: Path, most: int = 3) -> dict[str, list[str]]:
    """Map WordNet's nouns to what they are a kind of in their first sense, the nearest first.

    "chipmunk" is a squirrel, a rodent, a placental. At most `most`; a name's first word where
    there are synonyms.
    """
    name, above = {}, {}
    for line in _wordnet_lines(folder, "data.noun"):
        fields = line.split(" | ")[0].split()
        words = int(fields[3], 16)  # each followed by a number of its own
        name[fields[0]] = fields[4].replace("_", " ").lower()
        pointers = fields[5 + 2 * words :]  # of four fields: symbol, offset, part, words
        kinds = [
            offset
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True)
            if symbol in ("@", "@i")
        ]
        if kinds:
            above[fields[0]] = kinds[0]
    found = {}
    for lemma, senses in _wordnet_senses(folder, "noun").items():
        sense, kinds = senses[0], []
        while sense in above and len(kinds) < most:
            sense = above[sense]
            kinds.append(name[sense])
        found[lemma] = kinds
    return found


def _wordnet_senses(folder: Path, part: str) -> dict[str, list[str]]:
    """Map lemmas to the offsets of their senses, the most frequent first where WordNet counted."""
    return {
        fields[0].replace("_", " "): fields[-int(fields[2]) :]
        for fields in map(str.split, _wordnet_lines(folder, f"index.{part}"))
    }


def _wordnet_lines(folder: Path, file: str) -> list[str]:
    text = (folder / "usr/share/wordnet" / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith(" ")]  # the licence


def square(picture: Image.Image) -> np.ndarray:
    """Fit a picture of any shape into (SIZE, SIZE, 4), transparent around it."""
    picture = picture.convert("RGBA")
    # Resize with premultiplied alpha ("RGBa"), or colours hidden under alpha 0 bleed in.
    fitted = picture.convert("RGBa")
    scale = SIZE / max(fitted.size)
    size = (max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale)))
    fitted = fitted.resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(fitted, ((SIZE - fitted.width) // 2, (SIZE - fitted.height) // 2))
    return np.asarray(canvas)


def read_concepts(path: Path) -> list[str]:
    """Read a list of captions, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def split_of(caption: str, source: str, name: str, unseen: re.Pattern[str]) -> str:
    """Name the split of a picture, from its caption and name alone."""
    if unseen.search(caption) or unseen.search(re.sub(r"[^a-z]+", " ", Path(name).stem.lower())):
        return "unseen"
    digest = hashlib.sha256(f"{SALT}/{source}/{name}".encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def unseen_pattern() -> re.Pattern[str]:
    """Match every text that names a held-out concept: "a zebra", "zebra head", "zebras".

    Other names of concepts may end in *, any end of a word ("bunny*" finds "bunnysuit").
    """
    names = [
        name
        for file in ("unseen.txt", "other_names.txt")
        for name in read_concepts(SPLIT_FOLDER / file)
    ]
    ends = "|".join(
        re.escape(name.removesuffix("*")) + "[a-z]*" * name.endswith("*") for name in names
    )
    return re.compile(rf"\b({ends})(s|es)?\b")


def build(work: Path) -> None:
    """Write pictures.npy and captions.json to `work`."""
    packages = work / "packages"
    fetch_packages(packages)
    unseen = unseen_pattern()
    rows: list[Picture] = []
    pixels: list[np.ndarray] = []
    seen: set[bytes] = set()
    for source in (emoji_pictures(packages), clip_art_pictures(packages)):
        for picture, caption, name_of_source, name, group in source:
            array = square(picture)
            digest = hashlib.sha256(array.tobytes()).digest()
            # Empty drawings, and the same drawing under two names, teach nothing.
            if digest in seen or array[..., 3].mean() < 4:
                continue
            seen.add(digest)
            split = split_of(caption, name_of_source, name, unseen)
            rows.append(Picture(len(rows), caption, name_of_source, name, group, split))
            pixels.append(array)
    with write_beside(work / "pictures.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.stack(pixels))
    with write_beside(work / "captions.json") as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=0))
    counts = {s: sum(row.split == s for row in rows) for s in ("train", "test", "unseen")}
    print(f"{len(rows)} pictures, {len({row.caption for row in rows})} captions: {counts}")


def load(work: Path) -> tuple[np.memmap, list[Picture]]:
    """Read the corpus: pictures (N, 96, 96, 4) uint8 RGBA, memory-mapped, and their rows."""
    rows = [Picture(**row) for row in json.loads((work / "captions.json").read_text())]
    return np.load(work / "pictures.npy", mmap_mode="r"), rows


def _member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    member = archive.extractfile(name)
    if member is None:
        raise FileNotFoundError(f"{archive.name!r} has no {name}")
    return member  # type: ignore[return-value]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    with exit_on_user_error():
        build(parser.parse_args().work)
