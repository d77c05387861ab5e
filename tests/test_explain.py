"""Heat maps, input gradients and attacks, through the library and the command line."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import attack, explain, mixture, pag
from clipag_plugins.architecture import OpenClip
from clipag_plugins.base import normalize
from clipag_plugins.cli import main

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


def images(count=2, side=64):
    generator = torch.Generator().manual_seed(0)
    start = mixture.load().sample(1, generator)[:count]
    return mixture.enlarge(start, side)


def similarity(model, x, text):
    z = F.normalize(model.encode_image(normalize(x)), dim=-1)
    return z @ clip.text_target(model, text).embedding


@pytest.mark.parametrize("method, layer, side", [("gradcam", 6, 6), ("hirescam", 2, 12)])
def test_maps_by_hand(model, method, layer, side):
    x = images().requires_grad_(True)
    targets = explain.contrast_targets(model, ["a castle", "a dog"])
    heat = explain.heat_maps(model, x, targets, method)

    kept = []
    # The last block before a downsampling.
    layer = model.visual.tower.layers[layer]
    handle = layer.register_forward_hook(lambda *call: kept.append(call[2]))
    z = F.normalize(model.encode_image(normalize(x)), dim=-1)
    handle.remove()
    (features,) = kept
    assert features.shape[2:] == (side, side)
    total = sum(row @ target.embedding for row, target in zip(z, targets, strict=True))
    (slope,) = torch.autograd.grad(total, features)
    if method == "gradcam":
        slope = slope.mean(dim=(2, 3), keepdim=True)
    by_hand = (slope * features).sum(1, keepdim=True).relu()
    # The map's grid is coarse: at its cells' centres no interpolation matters much.
    coarse = F.interpolate(heat[:, None], size=(side, side), mode="area")
    for mine, theirs in zip(coarse.flatten(1), by_hand.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([mine, theirs]))[0, 1] > 0.9


def test_a_contrast_is_what_others_do_not_say(model):
    texts = ["a red apple", "a dog", "a castle"]
    plain, (apple, *_) = (
        torch.stack([clip.text_target(model, text).embedding for text in texts]),
        explain.contrast_targets(model, texts, texts[1:]),
    )
    by_hand = F.normalize(plain[0] - (plain[1] + plain[2]) / 2, dim=0)
    torch.testing.assert_close(apple.embedding, by_hand)
    (among_many,) = explain.contrast_targets(model, texts[:1])
    assert 0.5 < among_many.embedding @ plain[0] < 0.999
    with pytest.raises(clip.ClipagError, match="is empty"):
        explain.contrast_targets(model, [" "])


def towers():
    vit = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64,
           "patch_size": 8}, "text_cfg": TEXT}  # fmt: skip
    with_mean = {**vit, "vision_cfg": {**vit["vision_cfg"], "pool_type": "avg"}}
    resnet = {**vit, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
    convnext = {**vit, "vision_cfg": {"timm_model_name": "convnext_atto", "image_size": 64,
                "timm_pool": "", "timm_proj": "linear"}}  # fmt: skip
    timm_vit = {**vit, "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224",
                "image_size": 224, "timm_pool": "", "timm_proj": "linear"}}  # fmt: skip
    yield "vit", clip.clip.model.CLIP(16, 32, 2, 64, 8, 77, 49408, 64, 1, 1), (4, 4)
    yield "open_clip's vit", OpenClip(with_mean, "small"), (4, 4)
    yield "resnet", OpenClip(resnet, "small"), (2, 2)
    yield "convnext", OpenClip(convnext, "small"), (2, 2)
    yield "timm's vit", OpenClip(timm_vit, "small"), (14, 14)


@pytest.mark.parametrize("name, tower, shape", [*towers()], ids=lambda value: str(value)[:20])
def test_gradcam_of_every_tower(name, tower, shape):
    tower = tower.eval().requires_grad_(False)
    x = images(2, 48)
    layer, as_maps = explain.default_layer(tower.visual)
    kept = []
    handle = layer.register_forward_hook(lambda *call: kept.append(call[2]))
    tower.encode_image(normalize(x))
    handle.remove()
    maps = kept[0] if as_maps is None else as_maps(kept[0])
    assert maps.shape[0] == 2 and maps.shape[2:] == shape

    target = clip.text_target(tower, "a cat")
    heat = explain.heat_maps(tower, x, [target, target])
    assert heat.shape == (2, 48, 48) and heat.min() >= 0 and heat.max() <= 1
    alone = explain.heat_maps(tower, x[1:], [target])
    torch.testing.assert_close(heat[1:], alone, atol=1e-3, rtol=1e-3)
    assert not layer._forward_hooks


def test_plain_and_smoothed_gradients(vanilla):
    x = images()
    targets = [clip.text_target(vanilla, "a dog")] * 2
    plain = explain.heat_maps(vanilla, x, targets, "grad")
    smooth = explain.heat_maps(vanilla, x, targets, "smoothgrad")
    assert plain.shape == smooth.shape == (2, 64, 64)
    assert not torch.allclose(plain, smooth, atol=0.05)
    given = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(similarity(vanilla, given, "a dog").sum(), given)
    torch.testing.assert_close(pag.input_gradient(vanilla, x, targets), slope, atol=1e-5, rtol=1e-2)
    by_hand = slope.abs().amax(1)
    torch.testing.assert_close(plain, by_hand / by_hand.amax((1, 2), True), atol=1e-3, rtol=1e-2)
    with pytest.raises(clip.ClipagError, match="choose from gradcam"):
        explain.heat_maps(vanilla, x, targets, "lime")


@pytest.mark.parametrize("norm, eps", [("linf", 8 / 255), ("l2", 1.0)])
def test_the_attack_of_equation_4(vanilla, norm, eps):
    x = images()
    threat = attack.threat_model_of(norm, eps, 10)
    attacked = attack.attack(vanilla, x, "a cat", threat)
    change = (attacked - x).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (length <= eps + 1e-5).all() and (length > 0.5 * eps).all()
    assert attacked.min() >= 0 and attacked.max() <= 1

    def rise(images):
        losses = [similarity(vanilla, i, "not a cat") - similarity(vanilla, i, "a cat")
                  for i in (x, images)]  # fmt: skip
        return losses[1] - losses[0]

    # Both texts recall cats, so they are close: the measure is what noise of that length does.
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise = eps * (noise.sign() if norm == "linf" else attack.unit_l2(noise))
    assert (rise(attacked) > 10 * rise(x + noise).abs()).all()
    nearer = attack.attack(vanilla, x, "a cat", threat, towards="a dog")
    risen = similarity(vanilla, nearer, "a dog") - similarity(vanilla, x, "a dog")
    assert (risen > 0.02).all()


def test_attacks_that_cannot_be():
    for bad, word in [(("l1", 1, 1), "norm is 'l1'"), (("l2", 0, 1), "eps is 0"),
                      (("l2", float("nan"), 1), "eps is nan"), (("l2", 1, 0), "steps is 0"),
                      (("l2", 1, 1, -1), "step_size is -1")]:  # fmt: skip
        with pytest.raises(clip.ClipagError, match=word):
            attack.threat_model_of(*bad)


def test_heat_maps_as_a_user_asks_for_them(run, tmp_path):
    Image.effect_noise((90, 60), 60).save(tmp_path / "noise.png")
    small = ("--size", 64, "--steps", 2)
    result = run("explain", "noise.png", "a dog", *small, "--models", "clipag-mini")
    assert result.returncode == 0, result.stderr
    picture = Image.open(tmp_path / result.stdout.strip())
    assert picture.width > 4 * 64 and picture.text["method"] == "hirescam"
    assert picture.text["attack"] == "linf, eps 0.0313725, 2 steps"


def test_pag_and_attack(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((90, 60), 60).save("noise.png")
    assert main(["pag", "noise.png", "a dog", "a cat", "--size", "64", "--samples", "2"]) == 0
    assert Image.open("pag-a-dog-0.png").height > 2 * 64
    small = ("--size", "64", "--steps", "2", "--eps", "16/255")
    assert main(["attack", "noise.png", "a dog", *small, "--towards", "a cat"]) == 0
    assert "similarity to 'a cat'" in capsys.readouterr().out
    assert Image.open("attack-a-dog-0.png").size == (64, 64)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("attack", "none.png", "a dog"), "There is no picture at none.png"),
        (("attack", "noise.txt", "a dog"), "noise.txt is not a picture"),
        (("attack", "noise.png", " "), "is empty"),
        (("attack", "noise.png", "a dog", "--eps", "0"), "eps is 0"),
        (("attack", "noise.png", "a dog", "--out", "noise.png"), "would replace"),
        (("explain", "noise.png", "a dog", "--out", "noise.png"), "would replace"),
        (("pag", "noise.png", "a dog", "--out", "noise.png"), "would replace"),
        (("explain", "noise.png", "a dog", "--size", "4"), "size is 4"),
        (("explain", "noise.png", "a dog", "--models", "no-such"), "no-such"),
        (("pag", "noise.png", "a dog", "--models", "clip-mini"), "--models names 1"),
        (("pag", "noise.png", "a dog", "--samples", "0"), "samples is 0"),
        (("pag", "noise.png", "a dog", "--samples", f"{10**12}"), "not enough memory"),
    ],
)
def test_bad_input(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.txt").write_text("no picture")
    Image.effect_noise((32, 32), 60).save(tmp_path / "noise.png")
    assert main([*arguments]) == 2
    assert word in capsys.readouterr().err
