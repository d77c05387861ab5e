"""Priors: trained on pictures with captions, they draw image embeddings of prompts."""

import csv
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import embed_images
from clipag_plugins.finetune import prior as training
from clipag_plugins.finetune.settings import Source
from clipag_plugins.latents import PrincipalComponents
from clipag_plugins.prior.drawing import picture_targets, sample_embeddings
from clipag_plugins.prior.files import build, load_prior, save_prior
from clipag_plugins.prior.network import Shape, condition_of

FAST = ("--steps", "1", "--size", "48", "--views", "1", "--tries", "1", "--init", "noise")
TINY = {"width": 32, "layers": 2, "heads": 2, "text_length": 8, "components": 16, "buckets": 32}
KINDS = [
    "autoregressive",
    pytest.param(
        "diffusion",
        marks=pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers"),
    ),
]


def recipe(kind, **changes):
    return training.Recipe(kind, batch=16, average=0.9, **{**TINY, **changes})


@pytest.fixture(scope="module")
def pairs(model, held_out):
    captions, images = held_out
    unique = list(dict.fromkeys(captions))
    numbers = torch.tensor([unique.index(caption) for caption in captions])
    return training.EmbeddedPairs(unique, numbers, embed_images(model, images))


@pytest.fixture(scope="module")
def table(held_out, tmp_path_factory):
    """A table of pictures with captions, as users have them."""
    folder = tmp_path_factory.mktemp("table")
    with (folder / "pictures.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        for number, (caption, image) in enumerate(zip(*held_out, strict=True)):
            clip.to_pil(image).save(folder / f"{number}.png")
            writer.writerow((f"{number}.png", caption))
    return folder / "pictures.csv"


@pytest.fixture
def untrained(model, pairs, tmp_path):
    """The file of an untrained autoregressive prior."""
    prior = build(recipe("autoregressive").shape(model))
    prior.fit_statistics(pairs.embeddings, pairs.embeddings)
    save_prior(prior, model, tmp_path / "untrained.safetensors")
    return tmp_path / "untrained.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_prior_draws_embeddings_that_pictures_have(model, pairs, tmp_path, kind):
    settings = recipe(kind, steps=60, rate=1e-2)
    prior = load_prior(training.train(pairs, model, settings, tmp_path), model)
    untrained = build(settings.shape(model))
    captions = condition_of(model, pairs.captions)
    z_t = captions.embeddings[pairs.numbers]
    untrained.fit_statistics(pairs.embeddings, z_t)
    with torch.no_grad():
        before, after = (
            each.loss(
                condition_of(model, [pairs.captions[number] for number in pairs.numbers]),
                pairs.embeddings,
                torch.zeros(len(z_t), dtype=torch.bool),
                torch.Generator().manual_seed(0),
            )
            for each in (untrained, prior)
        )
    assert after < 0.9 * before
    if kind == "diffusion":  # the other kind needs longer
        figures = training.measure(prior, model, pairs, pairs)
        assert figures["prior"]["similarity"] > figures["z_t"]["similarity"] + 0.1
    texts = pairs.captions[:3]
    drawn = sample_embeddings(prior, model, texts, [0, 1])
    torch.testing.assert_close(drawn.norm(dim=2), torch.ones(3, 2))
    # Two seeds differ, if only a little after such a short training.
    assert (drawn[:, 0] - drawn[:, 1]).norm(dim=1).min() > 1e-4
    alone = sample_embeddings(prior, model, texts[1:2], [1])
    torch.testing.assert_close(alone[0, 0], drawn[1, 1], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(model, pairs, tmp_path, kind):
    def weights(folder):
        return load_file(tmp_path / folder / training.RESULT)

    whole, part = recipe(kind, steps=4, save_every=2), tmp_path / "part"
    training.train(pairs, model, whole, tmp_path / "whole")
    training.train(pairs, model, whole, part)
    (part / "00000004.pt").unlink()  # as if it had been killed after the first checkpoint
    training.train(pairs, model, whole, part)
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("part")[name]), name
    with pytest.raises(clip.ClipagError, match="begun with another rate"):
        training.train(pairs, model, recipe(kind, steps=4, save_every=2, rate=1.0), part)


def test_codes_are_quantised_components(model, pairs):
    prior = build(recipe("autoregressive").shape(model))
    prior.fit_statistics(pairs.embeddings, pairs.embeddings)
    components = PrincipalComponents.fit(pairs.embeddings, TINY["components"])
    coordinates = components.coordinates(pairs.embeddings)
    width = components.variances.sqrt() * 6 / TINY["buckets"]
    reached = coordinates.clamp(-16 * width, 16 * width)
    decoded = prior.decode(prior.encode(pairs.embeddings))
    assert (F.cosine_similarity(decoded, components.reconstruct(reached)) > 0.995).all()


def test_no_position_sees_a_later_one(model):
    prior = build(recipe("autoregressive").shape(model)).double()
    sequence = torch.randn(1, 12, TINY["width"]).double()
    changed = sequence.clone()
    changed[:, 8:] = torch.randn(1, 4, TINY["width"]).double()
    before, after = prior.features(sequence), prior.features(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().min(dim=2).values.max() > 1e-6


def test_padding_and_the_texts_behind_the_prefix_do_not_matter(model):
    one = condition_of(model, ["a red apple"])
    _, two = (condition_of(model, ["a much longer text about a cat", "a red apple"]),) * 2
    prior = build(recipe("autoregressive").shape(model))
    torch.testing.assert_close(prior.prefix(one)[0], prior.prefix(two)[1])


def test_the_cache_is_read_while_data_and_tower_are_the_same(model, vanilla, table, tmp_path):
    source, cache = Source("table", str(table)), tmp_path / "z.safetensors"
    first = training.encode(source, model, cache)
    written = cache.stat().st_mtime_ns
    assert len(first.numbers) == 96
    again = training.encode(source, model, cache)
    assert cache.stat().st_mtime_ns == written and torch.equal(first.embeddings, again.embeddings)
    other = training.encode(source, vanilla, cache)
    assert (F.cosine_similarity(other.embeddings, first.embeddings) < 0.9).all()


@pytest.mark.slow
def test_the_commands_train_a_prior_and_draw_with_it(run, tmp_path, table):
    small = ("--width", "32", "--heads", "2", "--layers", "1", "--text-length", "8")
    result = run(
        "prior", table, "--kind", "autoregressive", "--steps", "2", "--batch", "8",
        "--components", "16", *small,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == "prior/prior.safetensors" and len(lines) == 6
    prior = ("--prior", "prior/prior.safetensors")
    assert run("generate", "a red apple", *FAST, *prior).stdout == "a-red-apple-0.png\n"
    assert Image.open(tmp_path / "a-red-apple-0.png").text["prior"] == prior[1]
    for name, options in (
        ("draw", ("--strokes", "4", "--steps", "1", "--size", "32")),
        ("vqgan", ("--steps", "1", "--size", "32", "32")),
    ):
        result = run(
            name, "a red apple", "--model", "clipag-mini", *options, *prior, "--out", f"{name}/"
        )
        assert result.returncode == 0, result.stderr
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    result = run("style", "photo.png", "a fire", "--model", "clipag-mini", "--no-network",
                 "--steps", "1", "--size", "64", *prior)  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_each_seed_has_an_embedding_of_its_own(model, untrained):
    options = clip.RunOptions(prior=untrained, progress=False)
    targets = picture_targets(model, ["a cat", "a dog"], [0, 1], options)
    embeddings = torch.stack([target.embedding for (target,) in targets])
    assert len({tuple(row.tolist()) for row in embeddings}) == 4
    (alone,) = picture_targets(model, ["a dog"], [1], options)
    torch.testing.assert_close(alone[0].embedding, embeddings[3], atol=1e-3, rtol=0)


@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")
def test_the_embedded_prior_comes_nearer_to_pictures_than_texts_do(model, held_out):
    captions, images = (each[::4] for each in held_out)
    prior, z = load_prior("diffusion", model), embed_images(model, images)
    drawn = sample_embeddings(prior, model, captions, [0])[:, 0]
    z_t = condition_of(model, captions).embeddings
    of_drawn, of_texts = (F.cosine_similarity(each, z).mean() for each in (drawn, z_t))
    assert of_drawn > of_texts + 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, "'magic': choose from diffusion, autoregressive"),
        ({"width": 30, "heads": 4}, "multiple of 4 heads"),
        ({"layers": 0}, "`layers` is 0"),
        ({"components": 9999}, "`components` is 9999"),
    ],
)
def test_shapes_that_are_impossible(changes, message):
    with pytest.raises(clip.ClipagError, match=message):
        Shape(**{"kind": "diffusion", "embed_dim": 384, "token_width": 192, **changes})


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("absent.safetensors", "--prior is 'absent.safetensors', and there is no such file"),
        ("autoregressive", "No autoregressive prior comes with this package"),
        ("diffusion", "comes with this package is clipag-mini's, not clip-mini's"),
        ("text.safetensors", "text.safetensors is not a prior"),
        ("other.safetensors", "other.safetensors is not a prior"),
        ("untrained.safetensors", "another image tower than that of clip-mini"),
    ],
)
def test_priors_that_cannot_be_used(run, tmp_path, untrained, prior, message):
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"z": torch.ones(3)}, tmp_path / "other.safetensors")
    result = run("generate", "a cat", *FAST, "--prior", prior, "--model", "clip-mini")
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.startswith("clipag") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "There is no absent"),
        (["table.csv", "--kind", "autoregressive", "--components", "90"], "--components has 90"),
        (["table.csv", "--steps", "0"], "--steps is 0"),
        (["table.csv", "--template", "a photo"], "no {}"),
        (["empty/"], "empty"),
    ],
)
def test_training_refuses_bad_input_in_one_sentence(run, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    with (tmp_path / "table.csv").open("w") as file:
        file.write("image,caption\na.png,a cat\nb.png,a dog\nb.png,a bus\n")
    for name in ("a", "b"):
        Image.new("RGB", (20, 20), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    result = run("prior", *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.splitlines()[-1].startswith("clipag: ")
