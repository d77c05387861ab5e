"""The prompts that figures are about, in groups, and the names of ImageNet's classes.

A group holds what a guide of the embedded corpus can be asked: what it saw in training, what only a
network of ImageNet knows, what neither knows, and sentences. `tests/test_groups.py` checks that the
lists are what they promise.
"""

import re
from functools import cache
from pathlib import Path

from clipag_plugins.finetune.embedded import corpus

PROMPTS = Path(__file__).parent / "prompts"


def prompts_of(group: str) -> list[str]:
    """Return a list of prompts.

    Args:
        group: "seen" (captions of the guides' training pictures), "imagenet" (held out of the
            corpus, an ImageNet class), "neither" (held out of both), "sentences" (two things or an
            attribute), or "choosing" (captions for choosing settings, which no figure uses).
    """
    folder = corpus.SPLIT_FOLDER if group == "seen" else PROMPTS
    return corpus.read_concepts(folder / f"{group}.txt")


@cache
def class_names() -> list[set[str]]:
    """Return the names of ImageNet's 1,000 classes: WordNet's synonyms and open_clip's name."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [
        {
            synonym.strip().lower()
            for synonym in (*info.index_to_description(number).split(","), name)
        }
        for number, name in enumerate(IMAGENET_CLASSNAMES)
    ]


def classes_of(name: str) -> list[int]:
    """Return the ImageNet classes of a name, none if it has none.

    These are the classes that have the name as a synonym, or else those with a synonym that ends in
    it: "monarch butterfly" is a class of "butterfly".
    """
    same = [number for number, names in enumerate(class_names()) if name in names]
    ending = re.compile(rf"\b{re.escape(name)}$")
    return same or [
        number for number, names in enumerate(class_names()) if any(map(ending.search, names))
    ]
