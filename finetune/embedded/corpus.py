"""Build the corpus: picture–caption pairs from openly licensed packages.

    python -m clipag_plugins.finetune.embedded.corpus --work build/weights

Pictures are rendered once to RGBA (N, 96, 96, 4) uint8, or at another size, so that training can
put them on any background. This needs `npm` for the emoji sets, and `apt-get` and `dpkg-deb`
(Debian, Ubuntu) for the clip art and WordNet. It is needed only to remake the embedded weights.

A picture's caption and name alone decide its split, so the splits are the same on every machine:
  unseen  every picture whose caption or file name contains a concept of `splits/v2/unseen.txt` or
          one of its synonyms in `splits/v2/other_names.txt`
  test    5 % of the other pictures, chosen by a hash
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

SIZE = 96  # of the pictures, unless another is chosen
SPLIT_FOLDER = Path(__file__).parent / "splits" / "v2"
TEST_SHARE = 0.05
# Salt of the hash that chooses the test pictures. Every version of the split uses this one, so that
# their test pictures agree.
SALT = "v1"

# The share-alike set (openmoji, CC-BY-SA) and the GPL stamps are excluded on purpose, to keep the
# weights free of copyleft.
EMOJI_SETS = {
    "fluent-emoji-flat": "1.2.6",  # MIT; first, because its names make the best captions
    "fluent-emoji": "1.2.7",  # MIT
    "noto": "1.2.9",  # Apache-2.0
    "noto-v1": "1.2.5",  # Apache-2.0
    "twemoji": "1.2.5",  # CC-BY-4.0
    "emojione": "1.2.3",  # CC-BY-4.0
    "fxemoji": "1.2.2",  # Apache-2.0
}
DEBIAN_PACKAGES = ("openclipart-png", "wordnet-base")

# Emoji that show writing, or repeat a picture in another skin tone.
NOT_A_PICTURE = re.compile(
    r"(^|-)(light|medium|dark|medium-light|medium-dark)(-skin-tone)?(-|$)|skin-tone"
    r"|^flag-|^flags?$|^keycap|^letter-|-letter-?|^clock-?\d|oclock|-thirty$|thirty$|^regional-|-button$"
    r"|^japanese-|^squared|^circled|copyright|registered|trade-mark|^digit|^tag-|^component"
    r"|^kiss-|^couple-with-heart-|^family-|^people-holding-hands-"
)
EXCLUDED_CLIP_ART = (
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
    """A picture of the corpus, without its pixels.

    Attributes:
        index: its row in pictures.npy.
        caption: what it shows, in words.
        source: the emoji set, or "openclipart".
        name: its name in that source.
        group: the source's category.
        split: "train", "test" or "unseen".
    """

    index: int
    caption: str
    source: str
    name: str
    group: str
    split: str


def fetch_packages(folder: Path) -> None:
    """Download the source packages into `folder`, by npm and apt-get.

    Raises:
        ClipagError: a command is missing or fails.
    """
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
            f"{' '.join(command)!r} failed: building the corpus needs npm, apt-get, dpkg-deb and a "
            "network."
        ) from error


def unicode_names() -> dict[str, str]:
    """Map names written without spaces ("palmtree") to names with them ("palm tree")."""
    ranges = (range(0x2190, 0x2C00), range(0x1F000, 0x1FB00))
    names = (unicodedata.name(chr(code), "") for codes in ranges for code in codes)
    return {re.sub(r"[^a-z0-9]", "", name.lower()): name.lower() for name in names if name}


def emoji_pictures(folder: Path, size: int) -> Iterator[tuple[Image.Image, str, str, str, str]]:
    """Yield (picture, caption, source, name, group) for every emoji set, drawn at `size`."""
    resvg_py = library("resvg_py", "weights")  # imported late: the split lists do not need it
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
            png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
            yield Image.open(io.BytesIO(bytes(png))), caption, emoji_set, name, group


def clip_art_pictures(folder: Path) -> Iterator[tuple[Image.Image, str, str, str, str]]:
    """Yield (picture, caption, source, name, group) for the clip art.

    File names end in their authors' names ("apple_bitten_dan_gerhard_01"). So a caption ends before
    the first word that WordNet does not have as a noun, adjective or verb.
    """
    vocabulary = {
        lemma
        for part in ("noun", "adj", "verb")
        for lemma in wordnet_lemmas(folder / "wordnet-base", part)
    }
    root = folder / "openclipart-png" / "usr/share/openclipart/png"
    for path in tqdm(sorted(root.rglob("*.png")), desc="clip art", unit="picture"):
        relative = path.relative_to(root).as_posix()
        if relative.startswith(EXCLUDED_CLIP_ART):
            continue
        words = [w for w in re.split(r"[^a-z]+", path.stem.lower()) if w not in ("", "bw", "icon")]
        while words and words[0] not in vocabulary:
            words.pop(0)
        caption: list[str] = []
        for word in words:
            if word not in vocabulary and word not in ("with", "and", "of", "the", "on", "in"):
                break
            caption.append(word)
        if not caption or len(caption[0]) < 3:
            continue
        try:
            picture = Image.open(path).convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if max(picture.size) <= 8 * min(picture.size):
            yield picture, " ".join(caption[:5]), "openclipart", relative, path.parent.name


def wordnet_lemmas(folder: Path, part: str) -> dict[str, list[str]]:
    """Map WordNet's lemmas of a part of speech ("noun", "adj", "verb") to their glosses."""
    glosses = {
        line[:8]: line.split("|", 1)[1].split(";")[0].strip()
        for line in _wordnet_lines(folder, f"data.{part}")
    }
    return {
        lemma: [glosses[offset] for offset in senses]
        for lemma, senses in _wordnet_senses(folder, part).items()
    }


def wordnet_hypernyms(folder: Path, limit: int = 3) -> dict[str, list[str]]:
    """Map WordNet's nouns to the hypernyms of their first sense, the nearest first.

    For "chipmunk" these are squirrel, rodent and placental. There are at most `limit`; each is the
    first word of its synonyms.
    """
    name, parent = {}, {}
    for line in _wordnet_lines(folder, "data.noun"):
        fields = line.split(" | ")[0].split()
        words = int(fields[3], 16)  # each word is followed by a number
        name[fields[0]] = fields[4].replace("_", " ").lower()
        pointers = fields[5 + 2 * words :]  # each has four fields: symbol, offset, part, words
        parents = [
            offset
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True)
            if symbol in ("@", "@i")
        ]
        if parents:
            parent[fields[0]] = parents[0]
    hypernyms = {}
    for lemma, senses in _wordnet_senses(folder, "noun").items():
        sense = senses[0]
        chain: list[str] = []
        while sense in parent and len(chain) < limit:
            sense = parent[sense]
            chain.append(name[sense])
        hypernyms[lemma] = chain
    return hypernyms


def _wordnet_senses(folder: Path, part: str) -> dict[str, list[str]]:
    """Map lemmas to the offsets of their senses, in WordNet's order: the most frequent first."""
    return {
        fields[0].replace("_", " "): fields[-int(fields[2]) :]
        for fields in map(str.split, _wordnet_lines(folder, f"index.{part}"))
    }


def _wordnet_lines(folder: Path, file: str) -> list[str]:
    text = (folder / "usr/share/wordnet" / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith(" ")]  # the licence


def square(picture: Image.Image, size: int) -> np.ndarray:
    """Fit a picture of any shape into a transparent square, (size, size, 4)."""
    picture = picture.convert("RGBA")
    # Resize with premultiplied alpha ("RGBa"): otherwise colours of transparent pixels bleed in.
    fitted = picture.convert("RGBa")
    scale = size / max(fitted.size)
    sides = (max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale)))
    fitted = fitted.resize(sides, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return np.asarray(canvas)


def read_concepts(path: Path) -> list[str]:
    """Read a list of captions, one on each line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def split_of(caption: str, source: str, name: str, unseen: re.Pattern[str]) -> str:
    """Return the split of a picture, which depends on its caption and name alone."""
    if unseen.search(caption) or unseen.search(re.sub(r"[^a-z]+", " ", Path(name).stem.lower())):
        return "unseen"
    digest = hashlib.sha256(f"{SALT}/{source}/{name}".encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def unseen_pattern() -> re.Pattern[str]:
    """Return a pattern for texts with a held-out concept: "a zebra", "zebra head", "zebras".

    Synonyms of concepts may end in *, which stands for any end of a word: "bunny*" matches
    "bunnysuit".
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


def build(work: Path, out: Path, size: int = SIZE) -> None:
    """Write pictures.npy, (N, size, size, 4), and captions.json to `out`.

    The packages that hold the pictures are fetched into `work`.
    """
    packages = work / "packages"
    fetch_packages(packages)
    unseen = unseen_pattern()
    pictures: list[Picture] = []
    pixels: list[np.ndarray] = []
    digests: set[bytes] = set()
    for source in (emoji_pictures(packages, size), clip_art_pictures(packages)):
        for image, caption, name_of_source, name, group in source:
            array = square(image, size)
            digest = hashlib.sha256(array.tobytes()).digest()
            # Skip empty drawings, and drawings that exist under another name.
            if digest in digests or array[..., 3].mean() < 4:
                continue
            digests.add(digest)
            split = split_of(caption, name_of_source, name, unseen)
            pictures.append(Picture(len(pictures), caption, name_of_source, name, group, split))
            pixels.append(array)
    with write_beside(out / "pictures.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.stack(pixels))
    with write_beside(out / "captions.json") as temporary:
        temporary.write_text(json.dumps([asdict(picture) for picture in pictures], indent=0))
    counts = {s: sum(p.split == s for p in pictures) for s in ("train", "test", "unseen")}
    print(f"{len(pictures)} pictures, {len({p.caption for p in pictures})} captions: {counts}")


def load(work: Path) -> tuple[np.memmap, list[Picture]]:
    """Read the corpus: pixels (N, size, size, 4) uint8, memory-mapped, and the pictures' data."""
    pictures = [Picture(**entry) for entry in json.loads((work / "captions.json").read_text())]
    return np.load(work / "pictures.npy", mmap_mode="r"), pictures


def _member(archive: tarfile.TarFile, name: str) -> io.BufferedReader:
    member = archive.extractfile(name)
    if member is None:
        raise FileNotFoundError(f"{archive.name!r} has no {name}")
    return member  # type: ignore[return-value]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, help="default: the folder of --work")
    parser.add_argument("--size", type=int, default=SIZE, help="of the pictures, in pixels")
    options = parser.parse_args()
    with exit_on_user_error():
        build(options.work, options.out or options.work, options.size)
