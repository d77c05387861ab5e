"""Pictures of image embeddings: inversion, variations, interpolation and text diffs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import embed_images
from clipag_plugins.latents import read_embeddings, slerp, slerp_through, text_difference

QUIET = clip.RunOptions(progress=False)
CAT = Path(__file__).parent.parent / "examples" / "cat-face.png"
FAST = ("--steps", "2", "--size", "48", "--views", "1", "--tries", "1", "--init", "noise")


def small(**changes):
    return clip.Inversion(**{"init": "noise", "size": 48, "views": 1, "tries": 1, **changes})


@pytest.fixture(scope="module")
def sources(held_out):
    """Four held-out pictures, (4, 3, 48, 48), and the same as PIL pictures."""
    images = held_out[1][::24]
    return images, [clip.to_pil(image) for image in images]


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_slerp_moves_on_the_great_circle_at_a_constant_speed():
    start, end = unit(2, 5, 16)
    angle = (start * end).sum(1).acos()
    for share in (0.0, 0.25, 0.5, 1.0):
        point = slerp(start, end, share)
        torch.testing.assert_close(point.norm(dim=1), torch.ones(5).double())
        torch.testing.assert_close((point * start).sum(1), (share * angle).cos())
        torch.testing.assert_close((point * end).sum(1), ((1 - share) * angle).cos())
    torch.testing.assert_close(slerp(start, start, 0.3), start)
    assert slerp(start, -start, 0.5).isfinite().all()


def test_a_path_passes_through_its_points():
    points = unit(3, 8)
    path = slerp_through(points, torch.linspace(0, 2, 5))
    torch.testing.assert_close(path[::2], points)
    torch.testing.assert_close(path[1], slerp(points[0], points[1], 0.5))
    torch.testing.assert_close(path[3], slerp(points[1], points[2], 0.5))


def test_a_text_diff_points_from_one_text_to_the_other(model):
    difference = text_difference(model, "a cat", "a lion")
    cat, lion = (clip.text_target(model, text).embedding for text in ("a cat", "a lion"))
    torch.testing.assert_close(difference, F.normalize(lion - cat, dim=0))
    with pytest.raises(clip.ClipagError, match="mean the same"):
        text_difference(model, "a cat", "a cat")


@pytest.mark.slow
def test_inversions_look_like_their_sources_to_another_model(model, vanilla, held_out):
    """The vanilla twin took no part: of all sources it finds an inversion's own the nearest."""
    images = held_out[1][::12]
    pictures = [clip.to_pil(image) for image in images]
    ascent = clip.invert(pictures, model, clip.Inversion(size=48, tries=1), options=QUIET)
    similarity = embed_images(vanilla, ascent.images) @ embed_images(vanilla, images).T
    is_nearest = similarity.argmax(dim=1) == torch.arange(len(images))
    assert is_nearest.float().mean() > 0.6  # chance is 1 / 8


def test_variations_differ_and_come_closer_with_closeness(model, sources):
    images, pictures = sources

    def variations(closeness):
        how = small(steps=2, seed=(0, 1), closeness=closeness)
        return clip.invert(pictures, model, how, options=QUIET).images.unflatten(0, (4, 2))

    distances = []
    for closeness in (0.0, 0.5, 1.0):
        drawn = variations(closeness)
        distances.append((drawn - images[:, None]).square().mean().item())
        different = (drawn[:, 0] - drawn[:, 1]).abs().mean() > 0.01
        # Without noise the seeds of a start that is not random differ in nothing.
        assert different == (closeness < 1)
    assert distances == sorted(distances, reverse=True)


def test_an_embedding_is_drawn_as_its_picture_is(model, sources):
    images, pictures = sources
    how = small(steps=2)
    embeddings = 3 * embed_images(model, images)  # any length
    drawn = clip.draw_embeddings(embeddings, model, how, options=QUIET).images
    torch.testing.assert_close(drawn, clip.invert(pictures, model, how, options=QUIET).images)


def test_a_path_between_pictures_begins_and_ends_with_their_inversions(model, sources):
    images, pictures = sources
    how = small(steps=4, closeness=1.0)
    path = clip.interpolate(pictures[:3], model, how, between=1, options=QUIET).images
    assert path.shape == (5, 3, 48, 48)
    inversions = clip.invert(pictures[:3], model, how, options=QUIET).images
    torch.testing.assert_close(path[::2], inversions, atol=1e-3, rtol=0)
    z = embed_images(model, images[:2])
    similarities = embed_images(model, path[:3]) @ z.T
    assert similarities[0, 0] > similarities[1, 0] > similarities[2, 0]
    assert similarities[0, 1] < similarities[1, 1] < similarities[2, 1]


def test_all_pictures_of_a_path_are_of_one_try(model, sources):
    how = small(steps=1, tries=3, closeness=0.5, seed=(0, 1))
    ascent = clip.interpolate(sources[1][:2], model, how, between=1, options=QUIET)
    tries = torch.tensor(ascent.rows).view(3, 2) % 3
    assert (tries == tries[0]).all()


def test_a_stronger_edit_is_nearer_to_the_new_text(model):
    how = small(steps=12, closeness=1.0, views=None)
    strengths = (0.0, 0.3, 0.6)
    ascent = clip.edit(CAT, ("a cat", "a lion"), model, how, strengths=strengths, options=QUIET)
    lion = clip.text_target(model, "a lion").embedding
    similarities = (embed_images(model, ascent.images) @ lion).tolist()
    assert similarities == sorted(similarities) and similarities[-1] > similarities[0] + 0.1
    inversion = clip.invert(CAT, model, how, options=QUIET).images
    torch.testing.assert_close(ascent.images[:1], inversion, atol=1e-3, rtol=0)


def test_embeddings_are_read_from_files(tmp_path):
    embeddings = torch.rand(2, 4)
    np.save(tmp_path / "z.npy", embeddings.numpy())
    save_file({"z": embeddings}, tmp_path / "z.safetensors")
    for name in ("z.npy", "z.safetensors"):
        assert torch.equal(read_embeddings(tmp_path / name), embeddings)
    save_file({"a": embeddings, "b": embeddings + 1}, tmp_path / "two.safetensors")
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("z")
    for name, message in (
        ("two.safetensors", "holds 2 tensors"),
        ("pickled.npy", "does not hold embeddings"),
        ("text.npy", "does not hold embeddings"),
        ("absent.npy", "There is no file"),
    ):
        with pytest.raises(clip.ClipagError, match=message):
            read_embeddings(tmp_path / name)


@pytest.mark.parametrize(
    ("embeddings", "how", "message"),
    [
        (torch.ones(2, 8), {}, "has 8 numbers, but those of clipag-mini have 384"),
        (torch.full((384,), torch.nan), {}, "not finite"),
        (torch.zeros(384), {}, "is 0"),
        (torch.ones(2, 2, 384), {}, r"not \(2, 384\)"),
        (torch.ones(0, 384), {}, "no embedding"),
        (torch.ones(384), {"closeness": 0.5}, "has no picture to be close to"),
    ],
)
def test_embeddings_that_cannot_be_drawn(model, embeddings, how, message):
    with pytest.raises(clip.ClipagError, match=message):
        clip.draw_embeddings(embeddings, model, small(**how), options=QUIET)


def test_the_command_inverts_pictures_and_embeddings(run, tmp_path, model, sources):
    result = run("invert", CAT, *FAST, "--count", "2", "--closeness", "0.5", "--seed", "3")
    assert result.stdout.split() == ["invert-cat-face-3.png", "invert-cat-face-4.png"]
    picture = Image.open(tmp_path / "invert-cat-face-4.png")
    assert picture.size == (48, 48)
    expected = {"inverted": "cat-face", "seed": "4", "closeness": "0.5", "model": "clipag-lite"}
    assert expected.items() <= picture.text.items()
    np.save(tmp_path / "z.npy", embed_images(model, sources[0][:2]).numpy())
    result = run("invert", "z.npy", *FAST, "--trajectory", "steps", "--model", "clipag-mini")
    assert result.stdout.split()[:2] == ["invert-z-0-0.png", "invert-z-1-0.png"]
    assert (tmp_path / "steps" / "invert-z-0-0.gif").is_file()


@pytest.mark.parametrize(
    ("arguments", "stem", "pictures", "metadata"),
    [
        (["interpolate", CAT, "b.png", "--between", "2"], "interpolate-cat-face-b-0", 4,
         {"between": "2", "closeness": "1.0"}),
        (["edit", CAT, "a cat", "a lion"], "edit-cat-face-a-lion-0", 4,
         {"from": "a cat", "to": "a lion", "strengths": "0 0.2 0.4 0.6"}),
    ],
)  # fmt: skip
def test_the_commands_write_a_strip_and_an_animation(
    run, tmp_path, arguments, stem, pictures, metadata
):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "b.png")
    result = run(*arguments, *FAST)
    assert result.stdout.split() == [f"{stem}.png", f"{stem}.gif"], result.stderr
    strip = Image.open(tmp_path / f"{stem}.png")
    assert strip.size == (48 * pictures, 48) and metadata.items() <= strip.text.items()
    assert Image.open(tmp_path / f"{stem}.gif").n_frames == 2 * pictures - 2  # to and fro


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_so_far(interrupt, tmp_path):
    code, stderr = interrupt("similarity", "edit", str(CAT), "a cat", "a dog", "--steps", "100000")
    assert code == 130 and "the best so far is kept" in stderr
    assert (tmp_path / "edit-cat-face-a-dog-0.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invert", CAT, "--closeness", "2"], "--closeness is 2.0"),
        (["invert", CAT, "--blur", "0.9"], "--blur is 0.9"),
        (["invert", CAT, "--blur", "nan"], "--blur is nan"),
        (["invert", CAT, "--count", "0"], "--count is 0"),
        (["invert", CAT, "--closeness", "1", "--tries", "2"], "--tries is 2"),
        (["invert", CAT, "--size", "4"], "--size is 4"),
        (["invert", "absent.png"], "no picture at absent.png"),
        (["invert", "absent.npy"], "no file absent.npy"),
        (["invert", "z.npy", "z.npy"], "name it alone"),
        (["invert", "z.npy"], "768"),
        (["invert", "p.png", "--out", "p.png"], "would replace"),
        (["interpolate", CAT], "at least two"),
        (["interpolate", CAT, CAT, "--between", "-1"], "--between is -1"),
        (["interpolate", CAT, CAT, "--out", "folder/"], "folder"),
        (["edit", CAT, "a cat", "a cat"], "mean the same"),
        (["edit", CAT, "a cat", " "], "is empty"),
        (["edit", CAT, "a cat", "a dog", "--strengths", "1.5"], "--strengths holds 1.5"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, message):
    np.save(tmp_path / "z.npy", np.ones(7))
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    before = sorted(tmp_path.iterdir())
    if "folder/" in arguments:
        arguments = [*arguments[:-1], "missing/folder/"]
    result = run(*arguments, *(() if "--size" in arguments else FAST[:4]))
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.startswith("clipag") and result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
