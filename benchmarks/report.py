"""Write the tables of the documents from the figures in benchmarks/results.

    python -m benchmarks.report

A document marks the place of a table with `<!-- table: NAME -->` and `<!-- end -->`. Whatever is
between the two is replaced by the table, followed by the command that measures it, the files that
hold its figures, and the commit and machine that they come from. The text around the tables is
written by hand and states no measured figure. `tests/test_documents.py` checks that all tables are
current.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
UNLISTED = "unlisted"  # the place of all files of figures without a table of their own
FORMER_JUDGE = " Judged by the former judge, which flatters: not yet measured anew."
VANILLA, ROBUST = "clip-mini", "clipag-mini"
BOTH = (VANILLA, ROBUST)
DRAWING = ("clip-lite", "clipag-lite")  # that draw unless another model is named

GROUPS = {
    "seen": "captions seen in training",
    "imagenet": "not seen, a class of ImageNet",
    "neither": "neither seen nor of ImageNet",
    "sentences": "sentences",
}

Figures: TypeAlias = dict[str, Any]
Cells: TypeAlias = Iterator[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """A table of the documents.

    Attributes:
        command: measures the figures and writes the one file. It is empty for a summary of other
            tables, which is written without its sources.
        files: names in benchmarks/results, without ".json".
        cells: yields the header and the lines, given the figures of each file.
        is_judged: whether the figures depend on `benchmarks.judge`. Files that name no judge are
            older than it.
    """

    command: str
    files: tuple[str, ...]
    cells: Callable[..., Cells]
    is_judged: bool = False

    def markdown(self, document: Path) -> str:
        """Return the table and its sources, with links that are relative to a document."""
        if not all(path_of(name).exists() for name in self.files):
            return f"Not measured yet: `{self.command}`.\n"
        figures = [json.loads(path_of(name).read_text(encoding="utf-8")) for name in self.files]
        header, *lines = self.cells(*figures)
        rule = tuple("---" for _ in header)
        text = "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
        if not self.command:
            return text
        (name,), (content,) = self.files, figures
        link = f"[{name}.json]({os.path.relpath(path_of(name), document.parent)})"
        commit, machine = content["made"]["commit"], content["made"]["machine"]
        note = FORMER_JUDGE if self.is_judged and "judge" not in content else ""
        return f"{text}\n<sub>`{self.command}`; {link}: commit {commit}, {machine}.{note}</sub>\n"


TABLES: dict[str, Table] = {}


def table(
    command: str, *files: str, is_judged: bool = False
) -> Callable[[Callable[..., Cells]], Callable[..., Cells]]:
    """Register a function that yields a table's cells under the function's name."""

    def register(cells: Callable[..., Cells]) -> Callable[..., Cells]:
        TABLES[cells.__name__] = Table(command, files, cells, is_judged)
        return cells

    return register


def path_of(name: str) -> Path:
    """Return the file of figures with a name such as "train/pag"."""
    return RESULTS / f"{name}.json"


def rendered(text: str, document: Path) -> str:
    """Return a document's text with all its tables made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        tables = _unlisted_tables() if name == UNLISTED else [TABLES[name]]
        return "\n".join([match[1], *(each.markdown(document) for each in tables), match[3]])

    return PLACE.sub(replace, text)


def _unlisted_tables() -> list[Table]:
    """Return a plain table for each file of figures that has none of its own."""
    listed = {name for each in TABLES.values() for name in each.files}
    names = [
        path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.rglob("*.json")
    ]
    commands = {name: f"python -m benchmarks.{name.partition('_')[0]}" for name in names}
    return [
        Table(commands[name], (name,), _every_value) for name in sorted(names) if name not in listed
    ]


def _every_value(figures: Figures) -> Cells:
    yield "", ""
    for label, value in _flat({key: value for key, value in figures.items() if key != "made"}):
        yield label, f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(value: Any, label: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested dicts and lists under the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{label}, {key}" if label else str(key))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for number, inner in enumerate(value, start=1):
            yield from _flat(inner, f"{label}, {number}")
    elif isinstance(value, list):
        yield label, ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value)
    else:
        yield label, value


def percent(share: float, digits: int = 0) -> str:
    """Write a share of 1 in per cent."""
    return f"{100 * share:.{digits}f} %"


def select(figures: Figures, **keys: object) -> Figures:
    """Return the one entry of `figures["rows"]` with these values."""
    (entry,) = (row for row in figures["rows"] if all(row[k] == v for k, v in keys.items()))
    return dict(entry)


def r_precision(entry: Figures, digits: int = 0) -> str:
    """Write how often the right prompt is first, and how often it is among the first 5."""
    return f"{percent(entry['R-Prec'], digits)} / {percent(entry['top 5'], digits)}"


AS_THEY_ARE_AND_BLURRED = ("as they are", "blurred to 48 px")


def sharp_and_blurred(entry: Figures) -> tuple[str, str]:
    """Write R-Prec and top 5 of pictures as they are, and of the same pictures blurred."""
    blurred = {key: entry[f"blurred: {key}"] for key in ("R-Prec", "top 5")}
    return r_precision(entry), r_precision(blurred)


def with_interval(values: Sequence[float], digits: int) -> str:
    """Write a mean with its 95 % interval."""
    value, low, high = values
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


@table("", "quality", "clipdraw", "vqgan", "explain", "retrieval")
def headline(
    quality: Figures, clipdraw: Figures, vqgan: Figures, explain: Figures, retrieval: Figures
) -> Cells:
    """The README's table: one line for each thing that the models were compared in."""
    yield "", "vanilla", "CLIPAG"
    pixels = {"prompts": "seen", "setting": "augmentation"}
    drawn: tuple[tuple[str, Figures, dict[str, str], str], ...] = (
        ("pixels: R-Prec", quality, pixels, "R-Prec"),
        ("the same, blurred to 48 px", quality, pixels, "blurred: R-Prec"),
        ("strokes: R-Prec", clipdraw, {"augmentation": "yes"}, "R-Prec"),
        ("VQGAN: R-Prec", vqgan, {}, "R-Prec"),
    )
    for label, figures, keys, column in drawn:
        shares = (select(figures, model=model, **keys)[column] for model in DRAWING)
        yield label, *map(percent, shares)
    game = explain["hirescam of contrast: pointing game"]
    yield (
        "heat map's peak on the object",
        *(f"{game[f'{model}, clean'][0]:.1f} %" for model in BOTH),
    )
    yield (
        f"own caption in the top 10 of {retrieval['captions']:,}, clean / attacked (L2, ε = 3)",
        *(
            f"{percent(retrieval[m]['top 10'], 1)} / {percent(retrieval[m]['top 10, eps 3.0'], 1)}"
            for m in BOTH
        ),
    )


SETTINGS = {
    "start only": "start only",
    "no augmentation": "no augmentation",
    "augmentation": "augmentation",
    "defaults": "best of 4 tries",
}


@table("python -m benchmarks.fit_judge", "judge")
def judge(figures: Figures) -> Cells:
    """How often the judge names real pictures that it did not learn from."""
    kinds = {"plain": "as they are", "blurred": "blurred to 48 px", "worn": "worn"}
    yield "captions", "pictures", *kinds.values(), "as they are, without prototypes of their own"
    for captions, entry in figures["held-out pictures among 100 captions"].items():
        alone = entry["without their prototypes"]
        yield (
            captions,
            str(entry["pictures"]),
            *(percent(entry[kind]) for kind in kinds),
            percent(alone),
        )
        if "of the test split" in entry:
            shares = (percent(entry[f"{kind}, test split"]) for kind in kinds)
            yield f"{captions}, test split alone", str(entry["of the test split"]), *shares, "–"
    classes = figures["ImageNet's classifier among 100 names"]
    shown = percent(classes["plain"])
    yield "ImageNet, by its classifier", str(classes["pictures"]), shown, "–", "–", "–"
    yield "starts for seen captions", "100", percent(figures["starts"]), "–", "–", "–"


@table("python -m benchmarks.fit_judge --measure", "naming")
def naming(figures: Figures) -> Cells:
    """A viewer's and the judge's names of the same drawings."""
    yield "", "the judge names it", "the judge does not"
    for label, match in (("the viewer names it", True), ("the viewer does not", False)):
        by_judge = [
            row["judge"] == row["prompt"] for row in figures["rows"] if row["match"] == match
        ]
        yield label, str(sum(by_judge)), str(len(by_judge) - sum(by_judge))


def _by_setting(figures: Figures, settings: dict[str, str], digits: int = 0) -> Cells:
    """Yield a line for each group and model, with a column for each setting."""
    yield "prompts", "model", *settings.values()
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in figures["rows"]:
        cells = lines.setdefault((row["prompts"], row["model"].partition(",")[0]), {})
        cells[row["setting"]] = r_precision(row, digits)
    for (group, model), cells in lines.items():
        label = GROUPS.get(group, group)  # the former judge had another group
        yield label, f"`{model}`", *(cells.get(setting, "–") for setting in settings)


ONE_TRY = {setting: setting for setting in ("no augmentation", "augmentation")}


@table("python -m benchmarks.quality", "quality", is_judged=True)
def quality(figures: Figures) -> Cells:
    """Pixel ascent, R-Prec / top 5."""
    return _by_setting(figures, SETTINGS)


@table("python -m benchmarks.quality", "quality", is_judged=True)
def quality_blurred(figures: Figures) -> Cells:
    """Pixel ascent, R-Prec / top 5, of the pictures as they are and blurred."""
    yield "prompts", "model", *AS_THEY_ARE_AND_BLURRED
    for row in figures["rows"]:
        if row["setting"] == "augmentation" and "blurred: R-Prec" in row:
            yield GROUPS[row["prompts"]], f"`{row['model']}`", *sharp_and_blurred(row)


@table("python -m benchmarks.quality", "quality", is_judged=True)
def quality_classifier(figures: Figures) -> Cells:
    """Pixel ascent of ImageNet's classes, by ImageNet's own classifier, R-Prec / top 5."""
    yield "prompts", "model", "setting", "by ImageNet's classifier"
    for row in figures["rows"]:
        if row["prompts"] == "imagenet":
            entry = {key: row[f"classifier: {key}"] for key in ("R-Prec", "top 5")}
            yield GROUPS["imagenet"], f"`{row['model']}`", row["setting"], r_precision(entry)


@table("python -m benchmarks.canvases", "canvases", is_judged=True)
def canvases(figures: Figures) -> Cells:
    """What `generate --canvas` draws on, R-Prec / top 5."""
    yield "model", "canvas", *AS_THEY_ARE_AND_BLURRED
    for row in figures["rows"]:
        yield f"`{row['model']}`", row["canvas"], *sharp_and_blurred(row)


@table("python -m benchmarks.quality --seeds 5", "quality_seeds", is_judged=True)
def quality_seeds(figures: Figures) -> Cells:
    """One try, the mean over five seeds, R-Prec / top 5."""
    return _by_setting(figures, ONE_TRY, 1)


@table("python -m benchmarks.quality --no-memory", "quality_no_memory", is_judged=True)
def quality_no_memory(figures: Figures) -> Cells:
    """One try without the text tower's memory, R-Prec / top 5."""
    return _by_setting(figures, ONE_TRY)


@table("python -m benchmarks.clipdraw", "clipdraw", is_judged=True)
def clipdraw(figures: Figures) -> Cells:
    """CLIPDraw, R-Prec / top 5."""
    yield "model", "the notebook's augmentation", *AS_THEY_ARE_AND_BLURRED
    for row in figures["rows"]:
        yield f"`{row['model']}`", row["augmentation"], *sharp_and_blurred(row)


@table("python -m benchmarks.vqgan --prompts 50 --steps 60 --side 96", "vqgan", is_judged=True)
def vqgan(figures: Figures) -> Cells:
    """VQGAN+CLIP, R-Prec / top 5."""
    yield "model", *AS_THEY_ARE_AND_BLURRED
    for row in figures["rows"]:
        yield f"`{row['model']}`", *sharp_and_blurred(row)


def _style_at_content(entry: Figures) -> str:
    return f"{entry['style']:.3f} at {entry['content']:.3f}"


@table(
    "python -m benchmarks.clipstyler curve --side 128 --steps 40 --patches 8 --strengths 1 "
    "--canvases pyramid",
    "clipstyler",
    is_judged=True,
)
def clipstyler(figures: Figures) -> Cells:
    """CLIPStyler: gain in style at SSIM, over the strength."""
    canvases = [*dict.fromkeys(row["canvas"] for row in figures["rows"])]
    yield "`--strength`", *(f"{canvas}: `{model}`" for canvas in canvases for model in DRAWING)
    for strength in sorted({row["strength"] for row in figures["rows"]}):
        entries = (
            select(figures, canvas=canvas, model=model, strength=strength)
            for canvas in canvases
            for model in DRAWING
        )
        yield f"{strength:g}", *map(_style_at_content, entries)


def _columns(figures: Figures, digits: int) -> Cells:
    """Yield a line for each metric of `clipag eval`, with a column for each model."""
    yield "", *(f"`{name}`" for name in figures["columns"])
    metrics = dict.fromkeys(
        (row["metric"], row["judge"]) for rows in figures["columns"].values() for row in rows
    )
    for metric, judge in metrics:
        cells = []
        for rows in figures["columns"].values():
            values = [r for r in rows if (r["metric"], r["judge"]) == (metric, judge)]
            cells += [
                with_interval([row["value"], row["low"], row["high"]], digits) for row in values
            ] or ["–"]
        yield f"{metric}, {judge}", *cells


@table("python -m benchmarks.comfyui_judge table COMFYUI_DIR", "comfyui_judge")
def guided_diffusion(figures: Figures) -> Cells:
    """Pictures of a diffusion model that knows no words, guided by each model in ComfyUI."""
    yield "guide", "strength", "R-Prec", "top 5", "similarity"
    for row in figures["rows"]:
        yield (
            f"`{row['guide']}`" if row["guide"] else "none",
            f"{row['strength']:g}" if row["guide"] else "",
            percent(row["R-Prec"]),
            percent(row["top 5"]),
            f"{row['similarity']:.3f}",
        )


@table("python -m benchmarks.comfyui_judge choose COMFYUI_DIR", "train/comfyui_judge")
def guided_diffusion_choice(figures: Figures) -> Cells:
    """Similarity of guided pictures to captions that no figure uses, by strength."""
    strengths = sorted({row["strength"] for row in figures["rows"]})
    yield "guide", *(f"strength {strength:g}" for strength in strengths)
    for guide in dict.fromkeys(row["guide"] for row in figures["rows"]):
        rows = (select(figures, guide=guide, strength=strength) for strength in strengths)
        yield f"`{guide}`", *(f"{row['similarity']:.3f}" for row in rows)


@table("python -m benchmarks.comfyui_cost COMFYUI_DIR", "comfyui_cost")
def comfyui_cost(figures: Figures) -> Cells:
    """A step of full-size diffusion models of random weights, without and with the guide."""
    yield "shapes", "precision", "pixels", "a step", "a guided step", "peak memory"
    for row in figures["rows"]:
        yield (
            row["size"],
            row["precision"],
            f"{row['pixels']} × {row['pixels']}",
            f"{row['seconds a step']:.1f} s",
            f"{row['seconds a guided step']:.1f} s",
            f"{row['peak memory, GiB']:.1f} GiB",
        )


@table("python -m benchmarks.pag pictures", "pag")
def pag(figures: Figures) -> Cells:
    """PAG score by real pictures, in hundredths of cosine."""
    return _columns(figures, 2)


@table("python -m benchmarks.pag judge", "pag_judge", is_judged=True)
def pag_judge(figures: Figures) -> Cells:
    """PAG score by the judge, in hundredths of cosine."""
    return _columns(figures, 2)


@table("python -m benchmarks.pag sigma", "train/pag")
def pag_sigma(figures: Figures) -> Cells:
    """PAG score on training pictures, for several strengths of smoothing."""
    return _columns(figures, 2)


@table(
    "python -m benchmarks.robustness --pictures 300 --attacks clean pgd --norm l2 --eps 1 "
    "--steps 20 --size 64",
    "robustness",
)
def robustness(figures: Figures) -> Cells:
    """Accuracy in per cent, clean and attacked."""
    return _columns(figures, 1)


MAPS = {
    "hirescam of contrast": "HiResCAM of the contrast",
    "gradcam of contrast": "GradCAM of the contrast",
    "gradcam of similarity": "GradCAM of the similarity",
}
MEASURES = {"pointing game": "pointing", "energy inside": "energy"}


@table("python -m benchmarks.explain", "explain")
def explain(figures: Figures) -> Cells:
    """Heat maps: pointing game and energy in per cent, and what the attack takes."""
    yield (
        "map",
        "model",
        *(f"{m}, {state}" for m in MEASURES.values() for state in ("clean", "attacked", "drop")),
    )
    for key, label in MAPS.items():
        for model in BOTH:
            cells = []
            for measure in MEASURES:
                values = figures[f"{key}: {measure}"]
                cells += [
                    f"{values[f'{model}, {state}'][0]:.1f}" for state in ("clean", "attacked")
                ]
                cells.append(with_interval(values[f"{model}, drop"], digits=1))
            yield label, f"`{model}`", *cells


@table("python -m benchmarks.explain", "explain")
def explain_lead(figures: Figures) -> Cells:
    """Heat maps: how many points CLIPAG is ahead."""
    states = ("clean", "attacked")
    yield "map", *(f"{measure}, {state}" for measure in MEASURES.values() for state in states)
    for key, label in MAPS.items():
        cells = [
            with_interval(figures[f"{key}: {measure}"][f"{ROBUST} ahead by, {state}"], digits=1)
            for measure in MEASURES
            for state in states
        ]
        yield label, *cells


@table("python -m benchmarks.explain --choose 100", "train/explain")
def explain_choice(figures: Figures) -> Cells:
    """Heat maps on training pictures: the five targets, methods and stages with the best mean."""
    yield "target, method, stage", "mean of both measures and models, clean and attacked"
    means = {key: value["mean"] for key, value in figures.items() if ", stage " in key}
    for key in sorted(means, key=lambda key: -means[key])[:5]:
        yield key, f"{means[key]:.2f}"


@table("python -m benchmarks.retrieval", "retrieval")
def retrieval(figures: Figures) -> Cells:
    """How often the right caption is in the top 10, clean and attacked."""
    yield "", "clean", "ε = 1", "ε = 3"
    for model in BOTH:
        keys = ("top 10", "top 10, eps 1.0", "top 10, eps 3.0")
        yield f"`{model}`", *(percent(figures[model][key], 1) for key in keys)


@table("python -m benchmarks.unclip gap", "unclip_gap")
def unclip_gap(figures: Figures) -> Cells:
    """How near priors and other guesses come to true image embeddings."""
    columns = ("squared distance", "similarity", "centred similarity")
    yield "pictures", "guess", *columns
    for row in figures["rows"]:
        yield row["pictures"], row["guess"], *(f"{row[column]:.3f}" for column in columns)


@table("python -m benchmarks.unclip priors", "unclip_priors")
def unclip_priors(figures: Figures) -> Cells:
    """Pictures with each prior and with none."""
    groups = list(dict.fromkeys(row["prompts"] for row in figures["rows"]))
    yield "drawn towards", *groups
    for target in dict.fromkeys(row["target"] for row in figures["rows"]):
        cells = (select(figures, prompts=group, target=target) for group in groups)
        yield target, *(r_precision(cell) for cell in cells)


@table("python -m benchmarks.unclip diversity", "unclip_diversity")
def unclip_diversity(figures: Figures) -> Cells:
    """How unlike each other pictures of one prompt are."""
    yield "drawn towards", f"1 - cosine, {figures['seeds']} seeds"
    for row in figures["rows"]:
        yield row["target"], f"{row['1 - cosine']:.3f}"


@table("python -m benchmarks.unclip decoder --decoder FILE", "unclip_decoder")
def unclip_decoder(figures: Figures) -> Cells:
    """Pictures of a decoder beside the VQGAN's."""
    yield "drawn by", "R-Prec / top 5", "similarity"
    for row in figures["rows"]:
        yield row["drawn by"], r_precision(row), f"{row['similarity']:.3f}"


@table("python -m benchmarks.unclip inversion", "unclip_inversion")
def unclip_inversion(figures: Figures) -> Cells:
    """How often the judge finds the source's caption for an inversion."""
    yield "pictures", "start", "caption first / among 5", "similarity to z_i"
    for row in figures["rows"]:
        similarity = row.get("similarity to z_i")
        yield (
            row["pictures"],
            row.get("start", ""),
            r_precision(row),
            "" if similarity is None else f"{similarity:.2f}",
        )


@table("python -m benchmarks.unclip variations", "unclip_variations")
def unclip_variations(figures: Figures) -> Cells:
    """How like their sources variations are."""
    yield "pictures", "similarity to the source"
    for row in figures["rows"]:
        yield row["pictures"], f"{row['similarity to the source']:.3f}"


@table("python -m benchmarks.unclip diffs", "unclip_diffs")
def unclip_diffs(figures: Figures) -> Cells:
    """What the judge says of text diffs of growing strength."""
    yield "model", "strength", "similarity to the new text", "to the old", "nearer to the new"
    for row in figures["rows"]:
        to_new, to_old = row["similarity to the new text"], row["to the old"]
        nearer = percent(row["nearer to the new"])
        yield f"`{row['model']}`", f"{row['strength']:g}", f"{to_new:.3f}", f"{to_old:.3f}", nearer


PEERS = ("open_clip", "clip-anytorch")


@table("python -m benchmarks.guidance", "guidance")
def guidance(figures: Figures) -> Cells:
    """Seconds of a guide's loss and gradient, beside its peers."""
    yield (
        "model, views", "clipag", *PEERS, "clipag / fastest peer", "share of the machine's limit",
    )  # fmt: skip
    looks: dict[tuple[str, int], dict[str, Figures]] = {}
    for look in figures["looks"]:
        looks.setdefault((look["model"], look["views"]), {})[look["implementation"]] = look
    for (model, views), timed in looks.items():
        seconds = {name: look["seconds"] for name, look in timed.items()}
        peers = [seconds[name] for name in PEERS if name in seconds]
        yield (
            f"{model}, {views}",
            f"{seconds['clipag']:.3g} s",
            *(f"{seconds[name]:.3g} s" if name in seconds else "–" for name in PEERS),
            f"{seconds['clipag'] / min(peers):.2f}" if peers else "–",
            percent(timed["clipag"]["share of the limit"]),
        )


@table("python -m benchmarks.guidance", "guidance")
def guidance_machine(figures: Figures) -> Cells:
    """The rate of matrix products on the machine of `guidance`, and the precision chosen."""
    rates = figures["GFLOP/s of matrix products"]
    yield *(f"{precision}, GFLOP/s" for precision in rates), "chosen", "torch"
    yield *(f"{rate:.0f}" for rate in rates.values()), figures["auto precision"], figures["torch"]


@table("python -m benchmarks.guidance", "guidance")
def pictures_speed(figures: Figures) -> Cells:
    """Seconds of `generate()` with the model loaded."""
    yield "`generate()`, model loaded", "seconds"
    for label, seconds in figures["generate(), s"].items():
        yield label, f"{seconds:.2f}"


@table("python -m benchmarks.speed start same", "speed")
def speed(figures: Figures) -> Cells:
    """A picture from a cold start, and from the same seed in many processes."""
    yield '`clipag generate "a red apple"`, a whole process', ""
    for label, value in figures["start"].items():
        if label != "load":
            name, _, unit = label.rpartition(", ")
            yield name, f"{value} {unit}"
    same = figures["same"]
    yield f"different pictures of one seed in {same['processes']} processes", str(same["pictures"])


@table("python -m benchmarks.speed avx2", "speed")
def looks_avx2(figures: Figures) -> Cells:
    """CPU seconds of a look in float32, against the fastest peer's, without AVX-512."""
    yield f"{figures['avx2']['model']}, views", "of the peer's time", "peer", "of the limit"
    for look in figures["avx2"]["looks"]:
        ratio, limit = f"{look['ratio']:.2f}", percent(look["share of the limit"])
        yield str(look["views"]), ratio, look["fastest peer"].split(",")[0], limit


@table("OMP_NUM_THREADS=1 python -m benchmarks.first_minutes dist/*.whl", "first_minutes")
def first_minutes(figures: Figures) -> Cells:
    """Every command of README and docs as it stands, and the studio."""
    yield "", "seconds", "CPU seconds", "shows progress", "exit code"
    for row in figures["rows"]:
        progress = "yes" if row["shows progress"] else ""
        yield (
            f"`{row['command']}`",
            f"{row['seconds']:.1f}",
            f"{row['CPU seconds']:.1f}",
            progress,
            str(row["exit code"]),
        )
    for name, seconds in figures["studio"].items():
        yield f"`clipag studio`: {name}", f"{seconds:.1f}", "", "", ""


@table("python -m benchmarks.speed looks", "speed")
def looks(figures: Figures) -> Cells:
    """CPU seconds of a look, against the fastest peer's."""
    name, auto = figures["looks"]["model"], figures["looks"]["precision"]
    yield (
        f"{name}, views",
        "of the peer's time",
        "peer",
        "of the limit",
        "in float32, of the peer's",
    )
    for look in figures["looks"]["looks"]:
        yield (
            f"{look['views']}, {auto}",
            f"{look['ratio']:.2f}",
            look["fastest peer"],
            percent(look["share of the limit"]),
            f"{look['ratio in float32']:.2f}",
        )


FINETUNE = {"clip-mini": "`clip-mini`", "ViT-B-32": "ViT-B/32"}


@table("python -m benchmarks.gpu", "gpu")
def gpu_checks(figures: Figures) -> Cells:
    """Yield how far a GPU's pictures and gradients are from the CPU's."""
    yield "on the GPU, against float32 on the CPU", "float32", "bfloat16", "float16"
    parts = figures["parts"]
    for name, entry in _cases(parts.get("pictures", {})):
        similarity = entry["similarity"]
        same, fast = (similarity[key] - similarity["CPU"] for key in ("float32", "auto"))
        yield f"`clipag {name}`: similarity to the prompt", f"{same:+.4f}", f"{fast:+.4f}", ""
    for name, entry in _cases(parts.get("gradients", {})):
        cosines = (f"{entry[key]:.6f}" for key in ("float32", "bfloat16", "float16"))
        yield f"gradient of {name}: cosine", *cosines
    for name, entry in _cases(parts.get("renderer", {})):
        if "float32" in name:
            yield (
                f"renderer, {name.partition(',')[0]}: largest difference",
                (f"{entry['largest difference']:.1e}"),
                "",
                "",
            )
    for name, entry in _cases(parts.get("canvases", {})):
        exact, *rounded = (entry[key]["similarity"] for key in ("float32", "bfloat16", "float16"))
        changes = (f"{value - exact:+.4f}" for value in rounded)
        yield f"canvas {name}: similarity, against float32", "", *changes


@table("python -m benchmarks.gpu", "gpu")
def gpu_speed(figures: Figures) -> Cells:
    """Yield the times of a tower and of a whole step, beside those of open_clip."""
    yield (
        "milliseconds", "tower", "open_clip's", "recorded", "open_clip's", "of the limit",
        "whole step", "with open_clip",
    )  # fmt: skip
    steps = figures["parts"].get("steps", {})
    for name, entry in _cases(figures["parts"].get("looks", {})):
        times = [
            _fastest(entry["seconds"], package, is_recorded)
            for is_recorded in (False, True)
            for package in ("clipag", "open_clip")
        ]
        recorded = times[2][0] or times[0][0]
        share = entry["share of the limit"].get(recorded)
        whole = steps.get(name, {}).get("seconds", {})
        times += [(None, whole.get("clipag")), _fastest(whole, "open_clip", False)]
        cells = ["" if seconds is None else f"{1e3 * seconds:.1f}" for _, seconds in times]
        yield name, *cells[:4], "" if share is None else percent(share), *cells[4:]


@table("python -m benchmarks.gpu", "gpu")
def gpu_others(figures: Figures) -> Cells:
    """Yield what else was measured on a GPU."""
    yield "figure", "value"
    for part in ("limit", "training", "strokes", "command", "compiled"):
        for label, value in _flat(figures["parts"].get(part, {})):
            yield f"{part}: {label}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _cases(part: Figures) -> Iterator[tuple[str, Figures]]:
    """Yield the cases of a part that have figures of their own."""
    for name, entry in part.items():
        if isinstance(entry, dict) and "error" not in entry:
            yield name, entry


def _fastest(seconds: Figures, package: str, is_recorded: bool) -> tuple[str | None, float | None]:
    """Return the name and the seconds of a package's fastest way, recorded as a graph or not."""
    ways = [
        (value, name)
        for name, value in seconds.items()
        if name.startswith(package) and name.endswith("recorded") == is_recorded
    ]
    value, name = min(ways, default=(None, None))
    return name, value


@table("python -m benchmarks.finetune", "finetune")
def finetune_speed(figures: Figures) -> Cells:
    """Adversarial fine-tuning, pictures a CPU second, beside its peers."""
    names = {
        "ours": "this package, one large batch",
        "ours, 4 micro-batches": "this package, four micro-batches",
        "whole": "peer: `model(images, texts)`",
        "backward": "peer: the same, `loss.backward()`",
        "texts kept": "peer: texts embedded once",
    }
    models = [key for key in FINETUNE if key in figures]
    yield "", *(f"{FINETUNE[key]}, batch {figures[key]['batch']}" for key in models)
    for key, label in names.items():
        yield label, *(f"{figures[m]['images per CPU second'][key]:.3g}" for m in models)
    yield (
        "share of this package's time that the attack takes",
        *(percent(figures[model]["our split"]["attack"]) for model in models),
    )
    yield (
        "core hours for 2,000 updates of 40,960 pictures",
        *(
            f"{2000 * 40960 / figures[m]['images per CPU second']['ours'] / 3600:,.0f}"
            for m in models
        ),
    )


@table("python -m benchmarks.finetune --bfloat16", "finetune_bfloat16")
def finetune_bfloat16(figures: Figures) -> Cells:
    """How many times as fast adversarial fine-tuning in bfloat16 is as its peers."""
    names = {
        "whole, bfloat16": "`model(images, texts)` in bfloat16",
        "whole, float32": "the same in float32",
        "texts kept, bfloat16": "texts embedded once, in bfloat16",
    }
    models = {key: name for key, name in FINETUNE.items() if key in figures}
    results = [figures[key] for key in models]
    yield (
        "pictures a CPU second in bfloat16, times those of a peer",
        *(f"{name}, batch {r['batch']}" for name, r in zip(models.values(), results, strict=True)),
    )
    for key, label in names.items():
        yield label, *(f"{result['ours against'][key]:.2f}" for result in results)


@table("python -m benchmarks.finetune --memory", "finetune")
def finetune_memory(figures: Figures) -> Cells:
    """Peak memory of an update."""
    memory = figures["memory"]
    yield "pictures of an update", "peak memory"
    for key, value in memory.items():
        if key.isdigit():
            yield f"{int(key):,}", f"{value:.0f} {memory['unit']}"


@table("python -m benchmarks.finetune --processes", "finetune")
def finetune_processes(figures: Figures) -> Cells:
    """Pictures a second of one process of two threads and two of one."""
    processes = figures["processes"]
    yield "processes × threads", "pictures a second"
    for key in ("1 × 2", "2 × 1"):
        yield key, f"{processes[key]:.1f}"


@table("python -m benchmarks.chaos", "chaos")
def chaos(figures: Figures) -> Cells:
    """What killing a run does."""
    killed = figures["one of two processes killed"]
    yield "", ""
    yield (
        f"largest difference of any weight after {figures['kills']} kills from an undisturbed run",
        f"{figures['largest difference from an undisturbed run']:g}",
    )
    yield (
        "one of two processes killed under torchrun",
        f"exit code {killed['exit code']} after {killed['after seconds']} s",
    )
    yield (
        "that run, finished by one process: largest difference from one process throughout",
        f"{killed['largest difference from one process, finished by one']:.1e}",
    )


@table("python -m benchmarks.one_trainer", "one_trainer")
def one_trainer(figures: Figures) -> Cells:
    """Loss of the trainer that made the embedded towers, and of the common one."""
    updates, window = figures["updates"], figures["window"]
    yield "", *(f"updates {i + 1} to {i + window}" for i in range(0, updates, window))
    former = figures["former"]
    same = former["on the batches of the current trainer, seed 0"]
    for kind in BOTH:
        for label, curves in (
            ("former", former[kind]),
            ("former, on the current batches of seed 0", [same[kind]] if kind in same else []),
            ("current", figures["current"][kind]),
        ):
            for curve in curves:
                yield f"`{kind}`, {label}", *(f"{value:.2f}" for value in curve)


@table("python -m benchmarks.ablation", "ablation")
def ablation(figures: Figures) -> Cells:
    """Towers and threat models in small."""
    yield "", "clean, before → after", "under its own threat model, before → after"
    for label, accuracy in figures["accuracy"].items():
        changes = (
            f"{accuracy['before'][key]} → {accuracy['after'][key]}".replace("%", " %")
            for key in ("clean", "robust")
        )
        yield label.replace("Linf", "L∞"), *changes


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(rendered(path.read_text(encoding="utf-8"), path), encoding="utf-8")
        print(path)
