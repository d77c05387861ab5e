"""CLIPStyler: its losses, its two canvases, its networks' files, and the command."""

import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import base
from clipag_plugins.architecture import OpenClip
from clipag_plugins.cli import main
from clipag_plugins.integrations import clipstyler
from clipag_plugins.integrations.clipstyler import Losses
from clipag_plugins.integrations.clipstyler import content as contents
from clipag_plugins.integrations.clipstyler import network as networks
from clipag_plugins.integrations.clipstyler.network import StyleNetwork
from clipag_plugins.pictures import read_picture, read_rgba
from clipag_plugins.targets import style_target

FEW = Losses(patches=4)
QUIET = clip.RunOptions(progress=False)


@pytest.fixture(scope="module")
def photo():
    """A house on a meadow, (3, 48, 64)."""
    image = torch.empty(3, 48, 64)
    image[:] = torch.tensor([0.5, 0.7, 0.95])[:, None, None]
    image[:, 32:] = torch.tensor([0.3, 0.6, 0.25])[:, None, None]
    image[:, 16:40, 20:44] = torch.tensor([0.75, 0.5, 0.35])[:, None, None]
    return image


def picture(mode="RGB", size=(64, 48)):
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)


def gradient(guide, image):
    image = image.clone().requires_grad_(True)
    loss = guide.loss(image)
    loss.sum().backward()
    return loss.detach(), image.grad


# The directional loss


def test_the_loss_is_the_papers(model, photo):
    texts = {}
    for text in ("a fire", "a Photo"):
        tokens = clip.tokenize([template(text) for template in OPENAI_IMAGENET_TEMPLATES])
        z = F.normalize(model.text.words(tokens), dim=1).mean(dim=0)
        texts[text] = F.normalize(z, dim=0)

    def encode(image):
        return F.normalize(model.encode_image(base.normalize(image[None]))[0], dim=0)

    other = 1 - photo
    moved, meant = encode(other) - encode(photo), texts["a fire"] - texts["a Photo"]
    expected = 1 - F.cosine_similarity(moved, meant, dim=0)
    guide = clip.Guide(
        model, [[style_target(model, "a fire", photo)]], options=clip.RunOptions("float32")
    )
    loss, slope = gradient(guide, other[None])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert slope.abs().sum() > 0


def test_at_the_photo_itself_the_gradient_is_bounded(model, photo):
    guide = clip.Guide(
        model, [[style_target(model, "a fire", photo)]], options=clip.RunOptions("float32")
    )
    loss, slope = gradient(guide, photo[None])
    assert loss.item() == pytest.approx(1, abs=1e-4)
    assert 0 < slope.norm() < 100


def test_the_threshold_lets_near_views_be(model, photo):
    target = style_target(model, "a fire", photo)
    other = 1 - photo[None]
    reached = clip.Guide(model, [[target]]).loss(other).item()
    for difference, leads in ((0.01, False), (-0.01, True)):
        held = replace(target, stop=reached + difference)
        loss, slope = gradient(clip.Guide(model, [[held]]), other)
        assert loss.item() == pytest.approx(reached, abs=1e-5)
        assert bool(slope.abs().sum() > 0) == leads


def test_each_image_has_its_own_source(model, photo):
    images = torch.stack([1 - photo, photo.flip(0)])
    targets = [style_target(model, "a fire", source) for source in (photo, photo.roll(1, 0))]
    together = clip.Guide(model, [[target] for target in targets]).loss(images)
    alone = [
        clip.Guide(model, [[t]]).loss(image[None]).item()
        for t, image in zip(targets, images, strict=True)
    ]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)


def test_directions_are_not_measured_by_angles(model, photo):
    target = style_target(model, "a fire", photo)
    with pytest.raises(clip.ClipagError, match="leave `spherical` out"):
        clip.Guide(model, [[target]], spherical=True)


def test_a_style_that_is_none(model, photo):
    with pytest.raises(clip.ClipagError, match="name a style"):
        style_target(model, "a Photo", photo)


# The views


def test_crops_of_a_wide_image_are_square():
    image = torch.linspace(0, 1, 200).expand(1, 3, 50, 200).contiguous()
    views, _ = clip.Views(0, 16, 0.5, noise=0, brightness=0, contrast=0, saturation=0, cutout=0)(
        image, 20
    )
    spread = (views[..., -1] - views[..., 0]).mean(dim=(0, 2, 3))
    assert spread == pytest.approx(torch.full((16,), 25 / 200 * 19 / 20), abs=0.01)
    assert views.amin() < 0.35 and views.amax() > 0.65  # from anywhere along it


def test_perspective_tilts_crops():
    plain = clip.Views(0, 8, 0.5, noise=0, brightness=0, contrast=0, saturation=0, cutout=0)
    tilted = replace(plain, perspective=0.5)
    image = torch.ones(1, 3, 64, 64, requires_grad=True)
    assert plain(image, 24)[0].amin() > 0.99
    views = tilted(image, 24)[0]
    corners = views[0, :, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners < 0.5).any(dim=1).float().mean() > 0.5 and views[..., 12, 12].amin() > 0.99
    views.sum().backward()
    assert image.grad.abs().sum() > 0


# The loop's penalties


def test_penalties_count(model, photo):
    guide = clip.Guide(model, [[clip.text_target(model, "a fire")]])
    drift = 1e4

    def stay(images):
        return drift * (images - photo).pow(2).mean(dim=(1, 2, 3))

    free, held = (
        clip.ascend(clip.PixelCanvas(photo[None]), guide, 8, progress=False, penalties=terms)
        for terms in ((), (stay,))
    )
    assert stay(held.images).item() < 0.1 * stay(free.images).item()
    expected = guide.loss(held.images) + stay(held.images)
    assert held.losses.item() == pytest.approx(expected.item(), abs=1e-4)


# The content


def small_towers(model):
    vit = clip.model.CLIP(16, 32, 4, 64, 8, 77, 49408, 64, 1, 1).eval()
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    convnext = {"image_size": 64, "timm_model_name": "convnext_atto", "timm_proj": "linear",
                "timm_pool": ""}  # fmt: skip
    return [model, vit] + [
        OpenClip({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}, "small").eval()
        for vision in (resnet, convnext)
    ]


@pytest.mark.parametrize("kind", range(4), ids=["mini", "ViT", "ResNet", "ConvNeXt"])
def test_content_of_every_tower(model, photo, kind):
    tower = small_towers(model)[kind]
    images = torch.stack([photo, (photo + 0.02).clamp(0, 1), photo.flip(1)]).requires_grad_(True)
    content = photo.expand(3, -1, -1, -1)
    loss = contents.ContentLoss(contents.tower_features(tower), content, weight=2.0)(images)
    (slope,) = torch.autograd.grad(loss.sum(), images)
    first, second, third = loss.tolist()
    assert first == pytest.approx(0, abs=1e-6) and first < second < third
    assert (slope[1:].flatten(1).abs().sum(dim=1) > 0).all()
    assert not any(layer._forward_hooks for layer in tower.modules())


def test_content_of_another_model(model, vanilla, photo):
    def loss(name, guiding):
        features = contents.features_of(name, guiding)
        return contents.ContentLoss(features, photo[None])(photo[None].flip(2)).item()

    assert loss("clip-mini", model) == loss("clip", vanilla) != loss("clip", model)
    with pytest.raises(clip.ClipagError, match="no model or weights file called 'vgg16'"):
        loss("vgg16", model)


def test_vgg_that_cannot_be_had_is_one_sentence(monkeypatch, tmp_path, model):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(clip.ClipagError, match=r"vgg19-\w+\.pth elsewhere .* `content` to clip"):
        contents.features_of("vgg19", model)


# The network


@pytest.mark.parametrize("size", [(16, 16), (37, 50), (64, 24)])
def test_the_network_starts_as_the_identity(size):
    image = torch.rand(2, 3, *size)
    out = StyleNetwork()(image)
    assert torch.allclose(out, image.clamp(0.02, 0.98), atol=1e-5)


def test_a_networks_file(tmp_path):
    network, path = StyleNetwork(4), tmp_path / "n.safetensors"
    torch.nn.init.normal_(network.out.weight)
    networks.save(network, path, {"prompt": "a fire"})
    again, metadata = networks.load(path)
    image = torch.rand(1, 3, 24, 40)
    assert metadata == {"prompt": "a fire"} and torch.equal(again(image), network(image))


def test_files_that_are_no_network(tmp_path):
    path = tmp_path / "n.safetensors"
    with pytest.raises(clip.ClipagError, match=r"no style network .*train one"):
        networks.load(path)
    for content in (b"text", b""):
        path.write_bytes(content)
        with pytest.raises(clip.ClipagError, match="not a style network"):
            networks.load(path)
    networks.save(StyleNetwork(4), path, {})
    state = load_file(path)
    for name, tensor in (
        ("stem.bias", torch.zeros(5)),
        ("stem.bias", torch.zeros(100_000)),
        ("stem.bias", torch.tensor(0.0)),
        ("stem.weight", torch.full((4, 3, 3, 3), torch.nan)),
        ("more", torch.zeros(1)),
    ):
        save_file({**state, name: tensor}, path)
        with pytest.raises(clip.ClipagError, match=r"n\.safetensors"):
            networks.load(path)


# Styling


@pytest.mark.slow
@pytest.mark.parametrize("network", [True, False], ids=["network", "pixels"])
def test_a_photo_nears_the_style(model, photo, network):
    losses = Losses(patches=8, content_weight=0.02)
    target = losses.target(model, "a fire", photo)
    guide, _ = losses.build(model, [target], photo[None], seed=3)
    before = guide.loss(photo[None]).item()
    ascents = [
        clipstyler.style(
            photo, "a fire", model, losses=losses, network=network, steps=12, options=QUIET
        )
        for _ in range(2)
    ]
    images = ascents[0].images
    assert images.shape == (1, *photo.shape) and images.amin() >= 0 and images.amax() <= 1
    assert torch.equal(images, ascents[1].images)
    assert guide.loss(images).item() < before - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("network", [True, False], ids=["network", "pixels"])
def test_content_is_kept_as_much_as_it_weighs(model, photo, network):
    def changed(weight):
        losses = replace(FEW, content_weight=weight)
        ascent = clipstyler.style(
            photo, "a fire", model, losses=losses, network=network, steps=8, options=QUIET
        )
        return content(ascent.images).item()

    content = contents.ContentLoss(contents.tower_features(model), photo[None])
    assert changed(10.0) < 0.5 * changed(0.0)


def test_total_variation_makes_it_smooth(model, photo):
    def rough(tv):
        losses = replace(FEW, tv=tv, content_weight=0.0, whole=0.0)
        ascent = clipstyler.style(
            photo, "a fire", model, losses=losses, network=False, steps=8, options=QUIET
        )
        return ascent.images.diff(dim=3).abs().mean()

    assert rough(100.0) < 0.7 * rough(0.0)


def test_the_whole_picture_alone(model, photo):
    losses = Losses(patches=0)
    ascent = clipstyler.style(
        photo, "a fire", model, losses=losses, network=True, steps=2, options=QUIET
    )
    assert ascent.steps == 2


def test_a_network_goes_on(model, photo):
    network = StyleNetwork()
    for frame in (photo, photo.roll(2, 2)):
        before = network(frame[None]).detach()
        clipstyler.style(
            frame, "a fire", model, losses=FEW, network=network, steps=3, options=QUIET
        )
        with torch.no_grad():
            assert (network(frame[None]) - before).abs().max() > 1e-3
    # What it learned on one frame shows on the next before a step is taken.
    assert (before - frame.clamp(0.02, 0.98)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": -1.0}, {"strength": 0.0}, {"patches": -1}, {"patches": 9999},
        {"patches": 0, "whole": 0.0}, {"patch": 0.0}, {"patch": 2.0}, {"tv": math.nan},
        {"content_weight": math.inf}, {"threshold": -0.1},
    ],
)  # fmt: skip
def test_losses_that_cannot_be(wrong):
    with pytest.raises(clip.ClipagError, match=r"choose|must be"):
        Losses(**wrong)


def test_too_small_a_photo(model):
    with pytest.raises(clip.ClipagError, match="1 × 1 pixels is too small"):
        clipstyler.style(torch.rand(3, 1, 1), "a fire", model)


# Reading


# Pillow 12.3.0, the newest for Python 3.10, cannot read back its own.
YCBCR = pytest.param("YCbCr", marks=pytest.mark.skipif(PIL.__version__ == "12.3.0", reason="bug"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "L", "LA", "1", YCBCR])
def test_modes_are_read(tmp_path, mode):
    path = tmp_path / ("p.tif" if mode in ("CMYK", "YCbCr") else "p.png")
    picture("RGB").convert(mode).save(path)
    read = read_rgba(path)
    assert read.mode == "RGBA" and read.size == (64, 48)
    near = np.abs(np.asarray(read.convert("L"), int) - np.asarray(picture("L"), int))
    assert np.median(near) <= {"1": 128, "P": 16}.get(mode, 4)


def test_sixteen_bits_keep_their_tones(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "p.png")
    read = np.asarray(read_picture(tmp_path / "p.png"))[..., 0]
    assert np.abs(read - ramp / 257).max() <= 1


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.random.rand(20, 20).astype(np.float32)).save(tmp_path / "p.tif")
    with pytest.raises(clip.ClipagError, match=r"p\.tif are floating-point"):
        read_picture(tmp_path / "p.tif")


# The command

FAST = ["--steps", "1", "--patches", "2"]


def test_turned_and_transparent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = picture("RGBA", (60, 30))
    alpha = Image.linear_gradient("L").resize((60, 30))
    source.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    source.save("p.png", exif=exif)
    assert main(["style", "p.png", "a fire", *FAST, "--size", "40", "--out", "out.png"]) == 0
    out = Image.open("out.png")
    assert out.size == (20, 40) and out.mode == "RGBA" and not out.getexif()
    wanted = np.asarray(alpha.transpose(Image.Transpose.ROTATE_270).resize((20, 40)), int)
    assert np.abs(np.asarray(out.getchannel("A"), int) - wanted).max() <= 2
    assert out.text["prompt"] == "a fire" and out.text["model"] == "clipag-lite"
    assert "clipag-lite's own features" in capsys.readouterr().err


def test_a_folder_of_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (2, 1):
        picture(size=(32, 32)).save(frames / f"f{number}.jpg")
    (frames / "f3.jpg").write_text("no picture")
    (frames / "notes.txt").write_text("passed over")
    arguments = ["style", "frames", "a fire", *FAST, "--keep-network", "--out", "styled"]
    assert main(arguments) == 2  # for the third
    said = capsys.readouterr()
    assert said.out.split() == ["styled/f1.png", "styled/f2.png"]
    assert "f3.jpg is not a picture" in said.err and "Traceback" not in said.err


@pytest.mark.slow
def test_photos_and_films_of_an_earlier_run_are_not_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("p.png", "p.gif"):
        picture(size=(32, 33)).save(name)
    for _ in range(2):
        assert main(["style", "p.png", "a fire", *FAST, "--video", "films"]) == 0
        assert main(["style", "p.png", "p.gif", "a fire", *FAST, "--out", "styled"]) == 0
    printed = capsys.readouterr().out.split()
    first = ["p-a-fire-0.png", "films/p-a-fire-0.mp4", "styled/p.png", "styled/p-2.png"]
    then = ["p-a-fire-0-2.png", "films/p-a-fire-0-2.mp4", "styled/p-3.png", "styled/p-4.png"]
    assert printed == first + then
    assert all(Path(name).is_file() for name in printed)


def test_train_and_apply(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        picture(size=(40, 32 + number)).save(tmp_path / f"photos/{number}.png")
    training = ["--train-on", "photos", "a fire", "--size", "32", "--out", "fire.safetensors"]
    assert main(["style", *training, "--steps", "6", "--patches", "2"]) == 0
    assert main(["style", "--apply", "fire.safetensors", "photos/0.png", "--out", "a.png"]) == 0
    out = Image.open("a.png")
    assert out.size == (40, 32) and out.text["prompt"] == "a fire" and out.text["steps"] == "6"
    before = np.asarray(Image.open("photos/0.png").convert("RGB"), int)
    assert np.abs(np.asarray(out, int) - before).max() > 8
    assert main(["style", "--apply", "fire.safetensors", "photos", "--out", "all"]) == 0
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["0.png", "1.png"]
    # A file from elsewhere may hold any metadata: pictures carry the known keys only.
    metadata = {"prompt": "x", "Ø": "y", "Software": "z"}
    save_file(load_file("fire.safetensors"), "other.safetensors", metadata=metadata)
    assert main(["style", "--apply", "other.safetensors", "photos/0.png", "--out", "b.png"]) == 0
    assert Image.open("b.png").text.keys() == {"prompt", "photo", "network", "Software"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["style"], "There is no style"),
        (["style", "p.png"], "There is no style"),
        (["style", "p.png", " "], "There is no style"),
        (["style", "a fire"], "There is no photo"),
        (["style", "missing.png", "a fire"], "There is no picture at missing.png"),
        (["style", "text.jpg", "a fire"], "text.jpg is not a picture"),
        (["style", "one.png", "a fire"], "1 × 1 pixels is too small"),
        (["style", "bomb.png", "a fire"], "bomb.png has too many pixels"),
        (["style", "moving.gif", "a fire"], "is an animation"),
        (["style", "empty", "a fire", "--out", "o"], "There is no picture in empty"),
        (["style", "p.png", "one.png", "a fire"], "--out must name a folder"),
        (["style", "p.png", "a fire", "--out", "p.png"], "would replace"),
        (["style", "p.png", "a fire", "--mask", "m.png", "--out", "m.png"], "would replace"),
        (["style", "p.png", "a fire", "--out", "o.jpg"], "written as .png"),
        (["style", "p.png", "a fire", "--size", "5"], "size is 5"),
        (["style", "p.png", "a fire", "--steps", "0"], "steps is 0"),
        (["style", "p.png", "a fire", "--strength", "nan"], "strength is nan"),
        (["style", "p.png", "a fire", "--keep-network", "--no-network"], "no network to keep"),
        (["style", "p.png", "word " * 99], "more than 77 tokens"),
        (["style", "--train-on", "empty", "a fire", "--out", "n.safetensors"], "no picture in"),
        (["style", "--train-on", "empty", "a fire"], "--out must name the network's file"),
        (["style", "--train-on", "empty", "--out", "n.safetensors"], "takes one style"),
        (["style", "--train-on", "a", "--apply", "b", "x"], "choose one of them"),
        (["style", "--apply", "n.safetensors", "p.png"], "no style network"),
        (["style", "--apply", "n.safetensors"], "There is no photo"),
        (["style", "--apply", "n.safetensors", "p.png", "--max-views", "8"], "leave --max-views"),
        (["style", "--apply", "n.safetensors", "p.png", "--no-network"], "leave --network out"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    picture().save("p.png")
    picture().save("m.png")
    Image.new("RGB", (1, 1)).save("one.png")
    picture().save("moving.gif", save_all=True, append_images=[picture("L"), picture("1")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("this is no picture")
    if "bomb.png" in arguments:
        Image.new("1", (30_000, 30_000)).save("bomb.png")
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_the_example(tmp_path, monkeypatch):
    example = Path(__file__).parents[1] / "examples/clipstyler.py"
    assert len(example.read_text().splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    picture().save("p.png")
    monkeypatch.setattr(sys, "argv", [str(example), "p.png", "a fire", "1", "64"])
    runpy.run_path(str(example))
    assert [Image.open(f"p-{name}.png").size for name in ("network", "pixels")] == [(64, 64)] * 2


@pytest.mark.slow
def test_a_kill_leaves_the_old_picture(tmp_path):
    picture().save(tmp_path / "p.png")
    (tmp_path / "out.png").write_bytes(b"precious")
    command = [sys.executable, "-m", "clipag_plugins", "style", "p.png", "a fire", "--steps", "999"]
    process = subprocess.Popen(
        [*command, "--out", "out.png"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    shown = ""
    while "step/s" not in shown and process.poll() is None:
        shown += process.stderr.read(1)
    process.kill()
    process.communicate()
    assert (tmp_path / "out.png").read_bytes() == b"precious"


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_so_far(tmp_path, interrupt):
    picture().save(tmp_path / "p.png")
    code, error = interrupt(
        "2/999", "style", "p.png", "a fire", "--steps", "999", "--patches", "2", "--out", "out.png"
    )
    assert code == 130 and "interrupted after" in error
    assert Image.open(tmp_path / "out.png").size == (64, 48)
