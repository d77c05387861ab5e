"""`clipag pca` and `clipag typographic`: probe what image embeddings hold."""

import argparse
from pathlib import Path

from ..defaults import COMPONENTS, INVERSION_CLOSENESS
from .invert import add_inversion_options, inversion, metadata_of, save_strip, strip_paths
from .options import (
    Commands,
    add_models,
    add_out,
    choose_device,
    command,
    exit_code,
    output_paths,
    run_options,
)

PCA_EXAMPLES = """\
examples:
  clipag pca cat.jpg --corpus photos/              pictures of 1, 4, 16, … components
  clipag pca cat.jpg --corpus photos/ --components 2 8 32 --model clip-mini
  clipag pca cat.jpg --corpus embeddings.npy --seed 3
"""
TYPOGRAPHIC_EXAMPLES = """\
examples:
  clipag typographic apple.jpg iPod "a red apple" "a pizza"
  clipag typographic cat.jpg dog "a cat" --models ViT-B/32 vanilla:ViT-B-32-laion2B
"""


def add(commands: Commands) -> None:
    """Describe `clipag pca` and `clipag typographic`."""
    pca = command(
        commands, "pca", "draw a picture's embedding from ever more components", PCA_EXAMPLES
    )
    pca.set_defaults(run=_pca)
    pca.add_argument("picture", metavar="IMAGE", help="a picture")
    pca.add_argument(
        "--corpus",
        type=Path,
        required=True,
        metavar="DIR|FILE",
        help="what the components are fitted on: a folder of pictures, or a .npy or .safetensors "
        "of embeddings (N, D)",
    )
    pca.add_argument(
        "--components",
        type=int,
        nargs="+",
        default=list(COMPONENTS),
        metavar="N",
        help="each gives a picture of the strip "
        f"(default: {' '.join(map(str, COMPONENTS))}, as far as the corpus allows)",
    )
    add_inversion_options(pca, INVERSION_CLOSENESS)
    add_out(pca, "a .png beside which a .gif is written", "pca-IMAGE-SEED.png")

    typographic = command(
        commands,
        "typographic",
        "paste a word on a picture: what models say and draw",
        TYPOGRAPHIC_EXAMPLES,
    )
    typographic.set_defaults(run=_typographic)
    typographic.add_argument("picture", metavar="IMAGE", help="a picture")
    typographic.add_argument("word", metavar="WORD", help="what is pasted on the picture")
    typographic.add_argument(
        "texts", nargs="+", metavar="TEXT", help="what models choose from, besides the word"
    )
    typographic.add_argument(
        "--truncate", action="store_true", help="cut texts of more than 77 tokens"
    )
    add_models(typographic)
    add_inversion_options(typographic, INVERSION_CLOSENESS, has_model=False)
    add_out(typographic, "a .png", "typographic-IMAGE-WORD-SEED.png")


def _pca(options: argparse.Namespace) -> int:
    strip, animation = strip_paths(options, f"pca {Path(options.picture).stem}")

    from ..hub import load_model
    from ..latents import PrincipalComponents
    from ..probing import draw_components, embed_corpus

    how = inversion(options)
    model = load_model(options.model, choose_device(options.device))
    embeddings = embed_corpus(options.corpus, model)
    components = PrincipalComponents.fit(embeddings)
    counts = options.components
    if counts == list(COMPONENTS):
        counts = [count for count in counts if count <= len(components.directions)]
    ascent = draw_components(options.picture, components, counts, model, how, run_options(options))
    metadata = {
        "picture": options.picture,
        "components": " ".join(map(str, counts)),
        "corpus": f"{options.corpus}, {len(embeddings)} pictures",
        "seed": options.seed,
        **metadata_of(options, model, how, ascent),
    }
    save_strip(ascent, strip, animation, metadata)
    return exit_code(ascent)


def _typographic(options: argparse.Namespace) -> int:
    name = f"typographic {Path(options.picture).stem} {options.word}"
    (path,) = output_paths(
        [(name, options.seed)], options.out, ".png", [options.picture, options.init]
    )

    from ..hub import load_model
    from ..pictures import save_png, to_pil
    from ..probing import attack_by_word
    from ..sheet import sheet

    how = inversion(options)
    device = choose_device(options.device)
    pictures, names, metadata, code = [], [], {}, 0
    for name in options.models:
        model = load_model(name, device)
        result = attack_by_word(
            options.picture, options.word, options.texts, model, how, run_options(options)
        )
        clean, labelled = result.pictures
        drawn, drawn_labelled = map(to_pil, result.ascent.images)
        pictures.append([clean, drawn, labelled, drawn_labelled])
        names.append(model.name)
        print(f"{model.name}: without the word / with it")
        for text, before, after in zip(result.texts, *result.probabilities.tolist(), strict=True):
            print(f"  {before:6.1%} / {after:6.1%}  {text}")
        metadata = metadata_of(options, model, how, result.ascent)
        code = exit_code(result.ascent)
        if code:
            break
    metadata |= {
        "picture": options.picture,
        "word": options.word,
        "texts": "; ".join(options.texts),
        "seed": options.seed,
        "model": ", ".join(names),
    }
    columns = ["picture", "its inversion", "with the word", "its inversion"]
    save_png(sheet(pictures, columns, names), path, metadata)
    print(path)
    return code
