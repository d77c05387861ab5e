"""Probes of image embeddings: principal components and pasted words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import probing
from clipag_plugins.base import embed_images
from clipag_plugins.latents import PrincipalComponents
from clipag_plugins.pictures import read_square

QUIET = clip.RunOptions(progress=False)
CAT = Path(__file__).parent.parent / "examples" / "cat-face.png"
FAST = ("--steps", "2", "--size", "48", "--views", "1", "--tries", "1", "--init", "noise")


def test_components_are_those_of_scikit_learn():
    embeddings = torch.randn(40, 12, dtype=torch.float64) @ torch.randn(12, 12).double()
    components = PrincipalComponents.fit(embeddings, 5)
    other = PCA(5).fit(embeddings.numpy())
    torch.testing.assert_close(components.variances, torch.tensor(other.explained_variance_))
    signs = (components.directions * torch.tensor(other.components_)).sum(dim=1)
    torch.testing.assert_close(signs.abs(), torch.ones(5).double())
    coordinates = torch.tensor(other.transform(embeddings.numpy())) * signs
    torch.testing.assert_close(components.coordinates(embeddings), coordinates)
    reconstructed = torch.tensor(other.inverse_transform(other.transform(embeddings.numpy())))
    torch.testing.assert_close(
        components.reconstruct(components.coordinates(embeddings)), F.normalize(reconstructed)
    )
    assert len(PrincipalComponents.fit(embeddings[:8]).directions) == 7


@pytest.mark.parametrize(
    ("embeddings", "count", "message"),
    [
        (torch.ones(0, 4), None, "no two embeddings"),
        (torch.ones(1, 4), None, "no two embeddings"),
        (torch.full((3, 4), torch.nan), None, "not finite"),
        (torch.rand(3, 4), 3, "`components` has 3, but 3 embeddings of width 4 have at most 2"),
        (torch.rand(9, 4), 0, "`components` has 0"),
    ],
)
def test_components_that_cannot_be_fitted(embeddings, count, message):
    with pytest.raises(clip.ClipagError, match=message):
        PrincipalComponents.fit(embeddings, count)


def test_more_components_draw_what_is_nearer_to_the_picture(model, held_out):
    components = PrincipalComponents.fit(embed_images(model, held_out[1]))
    how = clip.Inversion(size=48, views=1, tries=1, closeness=1.0, steps=8)
    ascent = probing.draw_components(CAT, components, (1, 16, 90), model, how, QUIET)
    z = embed_images(model, read_square(CAT, 48)[None])[0]
    similarities = (embed_images(model, ascent.images) @ z).tolist()
    assert similarities == sorted(similarities)


def test_a_word_is_pasted_in_the_middle():
    picture = Image.new("RGB", (90, 60), "red")
    labelled = np.asarray(probing.with_word(picture, "iPod"))
    changed = (labelled != np.asarray(picture)).any(axis=2)
    height, width = np.nonzero(changed.any(axis=1))[0], np.nonzero(changed.any(axis=0))[0]
    assert abs(height.mean() - 29.5) < 1 and abs(width.mean() - 44.5) < 1
    assert 0.1 < changed.mean() < 0.4
    has_letters = (labelled[changed] < 64).all(axis=1)
    assert has_letters.any() and (labelled[changed] > 192).all(axis=1).any()
    with pytest.raises(clip.ClipagError, match="is empty"):
        probing.with_word(picture, " ")


def test_the_command_draws_components(run, tmp_path, model, held_out):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, image in enumerate(held_out[1][:6]):
        clip.to_pil(image).save(corpus / f"{number}.png")
    result = run("pca", CAT, "--corpus", "corpus", *FAST)
    assert result.stdout.split() == ["pca-cat-face-0.png", "pca-cat-face-0.gif"], result.stderr
    strip = Image.open(tmp_path / "pca-cat-face-0.png")
    assert strip.size == (96, 48) and strip.text["components"] == "1 4"
    assert strip.text["corpus"] == "corpus, 6 pictures"
    np.save(tmp_path / "z.npy", embed_images(model, held_out[1][:6]).numpy())
    result = run("pca", CAT, "--corpus", "z.npy", "--components", "5", *FAST)
    assert result.stdout.split() == ["pca-cat-face-0-2.png"], result.stderr


def test_the_command_pastes_a_word_and_asks_both_models(run, tmp_path):
    result = run("typographic", CAT, "bus", "a cat", "a tree", *FAST)
    assert result.returncode == 0, result.stderr
    *table, path = result.stdout.splitlines()
    assert path == "typographic-cat-face-bus-0.png"
    assert [line.split()[0] for line in (table[0], table[4])] == ["clip-mini:", "clipag-mini:"]
    shares = [float(line.split("%")[0]) for line in table[5:8]]
    assert abs(sum(shares) - 100) < 0.2 and shares[0] == max(shares)  # it is a cat
    assert Image.open(tmp_path / path).text["word"] == "bus"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pca", CAT, "--corpus", "absent"], "no folder absent"),
        (["pca", CAT, "--corpus", "empty"], "no picture in empty"),
        (["pca", CAT, "--corpus", "narrow.npy"], "are (N, 384)"),
        (["pca", CAT, "--corpus", "nan.npy"], "not finite"),
        (["pca", CAT, "--corpus", "z.npy", "--components", "9"], "--components has 9"),
        (["typographic", CAT, "bus", "bus"], "nothing but the word"),
        (["typographic", CAT, " ", "a cat"], "is empty"),
        (["typographic", "absent.png", "bus", "a cat"], "no picture at absent.png"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "narrow.npy", np.ones((3, 7)))
    np.save(tmp_path / "nan.npy", np.full((3, 384), np.nan))
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(4, 384)))
    before = sorted(tmp_path.iterdir())
    result = run(*arguments, *FAST)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.startswith("clipag") and result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
