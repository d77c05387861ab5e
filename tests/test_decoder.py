"""Decoders: trained on pictures, they draw what image embeddings stand for."""

from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import embed_images
from clipag_plugins.prior.decoder import Decoder, DecoderShape
from clipag_plugins.prior.files import load_decoder, save_decoder

TINY = DecoderShape(384, side=16, sketch=4, channels=(16, 32))
needs_diffusers = pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers")


@pytest.fixture(scope="module")
def small(held_out):
    """The held-out pictures, small."""
    return F.interpolate(held_out[1], size=(16, 16), mode="area")


@pytest.fixture
def untrained(model, held_out, small, tmp_path):
    """The file of a decoder of which only the sketch is fitted."""
    decoder = Decoder(TINY)
    decoder.fit_statistics(embed_images(model, held_out[1]), small)
    save_decoder(decoder, model, tmp_path / "decoder.safetensors")
    return tmp_path / "decoder.safetensors"


@needs_diffusers
def test_the_sketch_begins_as_the_ridge_regression_of_thumbnails(model, held_out, small):
    z, decoder = embed_images(model, held_out[1]), Decoder(TINY)
    decoder.fit_statistics(z, small, ridge=0.03)
    x = ((z - z.mean(dim=0)) / (z - z.mean(dim=0)).square().mean().sqrt()).double()
    y = F.interpolate(small, size=(4, 4), mode="area").flatten(1).double() * 2 - 1
    # The same as least squares with the penalty as further rows.
    penalty = (0.03 * len(x)) ** 0.5 * torch.eye(x.shape[1]).double()
    rows = torch.cat([y - y.mean(dim=0), torch.zeros(x.shape[1], y.shape[1]).double()])
    weight = torch.linalg.lstsq(torch.cat([x, penalty]), rows).solution
    torch.testing.assert_close(
        decoder.sketch.straight.weight.double(), weight.T, atol=1e-4, rtol=1e-3
    )


@needs_diffusers
def test_a_picture_depends_on_its_seed_and_embedding_and_not_on_its_batch(
    model, held_out, untrained
):
    decoder, z = load_decoder(untrained, model), embed_images(model, held_out[1][:3])
    together = decoder.sample(z, [0, 1, 0], steps=3)
    assert together.shape == (3, 3, 16, 16) and together.min() >= 0 and together.max() <= 1
    alone = decoder.sample(z[1:2], [1], steps=3)
    torch.testing.assert_close(alone, together[1:2], atol=1e-4, rtol=0)
    assert (decoder.sample(z[:1], [1], steps=3) - together[:1]).abs().mean() > 1e-3


@needs_diffusers
@pytest.mark.slow
def test_training_lowers_the_loss(model, held_out, small, tmp_path):
    from clipag_plugins.finetune import decoder as training

    z = embed_images(model, held_out[1])
    both = torch.stack([z, embed_images(model, held_out[1].flip(3))], dim=1)
    pictures = training.EmbeddedPictures((small * 255).round().byte(), both)
    recipe = training.Recipe(
        steps=25, batch=16, rate=3e-3, average=0.8, side=16, sketch=4, channels=(16, 32)
    )
    trained = load_decoder(training.train(pictures, model, recipe, tmp_path), model)
    untrained, nothing = Decoder(TINY), torch.zeros(len(z), dtype=torch.bool)
    untrained.fit_statistics(z, small)
    with torch.no_grad():
        before, after = (
            decoder.loss(z, small, nothing, torch.Generator().manual_seed(0))
            for decoder in (untrained, trained)
        )
    assert after < 0.8 * before


@needs_diffusers
@pytest.mark.slow
def test_the_commands_train_a_decoder_and_draw_with_it(run, tmp_path, held_out):
    (tmp_path / "pictures").mkdir()
    for number, (caption, image) in enumerate(zip(*held_out, strict=True)):
        clip.to_pil(image).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(caption)
    small = ("--side", "16", "--sketch", "4", "--channels", "16", "32")
    result = run("decoder", "pictures", "--steps", "2", "--batch", "4", *small)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "decoder/decoder.safetensors"
    drawn = run(
        "unclip", "a red apple", "--decoder", "decoder/decoder.safetensors", "--steps", "2",
        "--refinement", "1", "--size", "48", "--count", "2",
    )  # fmt: skip
    assert drawn.stdout == "a-red-apple-0.png\na-red-apple-1.png\n", drawn.stderr
    picture = Image.open(tmp_path / "a-red-apple-1.png")
    assert picture.size == (48, 48) and picture.text["refinement"] == "1"
    result = run("decoder", "pictures", "--steps", "2", "--batch", "8", *small)
    assert result.returncode == 2 and "begun with another batch" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 50}, "`side` is 50: choose a multiple of 8"),
        ({"side": 0}, "`side` is 0"),
        ({"patch": 0}, "`patch` is 0"),
        ({"patch": 5}, "choose a multiple of 20"),
        ({"channels": (20,)}, "multiples of 16"),
        ({"channels": ()}, "multiples of 16"),
    ],
)
def test_shapes_that_are_impossible(changes, message):
    with pytest.raises(clip.ClipagError, match=message):
        DecoderShape(**{"embed_dim": 384, **changes})


@needs_diffusers
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder", "absent"], "--decoder is 'absent', and there is no such file"),
        (["--decoder", "other.safetensors"], "other.safetensors is not a decoder"),
        (["--decoder", "decoder.safetensors", "--model", "clip-mini"], "another image tower"),
        (["--decoder", "decoder.safetensors", "--steps", "0"], "--steps is 0"),
        (["--decoder", "decoder.safetensors", "--refinement", "-1"], "--refinement is -1"),
        (["--decoder", "decoder.safetensors", "--size", "64x32"], "give one side"),
        (
            ["--decoder", "decoder.safetensors", "--refinement", "0", "--trajectory", "t"],
            "--refinement is 0",
        ),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, untrained, options, message):
    save_file({"z": torch.ones(3)}, tmp_path / "other.safetensors")
    result = run("unclip", "a cat", *options)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.splitlines()[-1].startswith("clipag: ")
