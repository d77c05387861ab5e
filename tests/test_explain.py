"""Heat maps, input gradients and attacks, through the library and the command line."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import attack, explain, mixture, pag
from clipag_plugins.architecture import OpenClip
from clipag_plugins.base import normalize

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


def images(count=2, side=64):
    generator = torch.Generator().manual_seed(0)
    samples = mixture.load().sample(1, generator)[:count]
    return mixture.enlarge(samples, side)


def similarity(model, x, text):
    embeddings = F.normalize(model.encode_image(normalize(x)), dim=-1)
    return embeddings @ clip.text_target(model, text).embedding


@pytest.mark.slow
@pytest.mark.parametrize("method, layer, side", [("gradcam", 6, 6), ("hirescam", 2, 12)])
def test_maps_by_hand(model, method, layer, side):
    x = images().requires_grad_(True)
    targets = explain.contrast_targets(model, ["a castle", "a dog"])
    heat = explain.heat_maps(model, x, targets, method)

    outputs = []
    # The last block before a downsampling.
    block = model.visual.tower.layers[layer]
    handle = block.register_forward_hook(lambda *call: outputs.append(call[2]))
    embeddings = F.normalize(model.encode_image(normalize(x)), dim=-1)
    handle.remove()
    (features,) = outputs
    assert features.shape[2:] == (side, side)
    total = (embeddings * torch.stack([target.embedding for target in targets])).sum()
    (gradient,) = torch.autograd.grad(total, features)
    if method == "gradcam":
        gradient = gradient.mean(dim=(2, 3), keepdim=True)
    by_hand = (gradient * features).sum(1, keepdim=True).relu()
    # The mean over a cell of the coarse grid is close to the value at its centre, so interpolation
    # matters little.
    coarse = F.interpolate(heat[:, None], size=(side, side), mode="area")
    for pair in zip(coarse.flatten(1), by_hand.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.9


def test_a_contrast_is_what_other_texts_do_not_say(model64):
    texts = ["a red apple", "a dog", "a castle"]
    apple, dog, castle = (clip.text_target(model64, text).embedding for text in texts)
    contrast, *_ = explain.contrast_targets(model64, texts, texts[1:])
    torch.testing.assert_close(contrast.embedding, F.normalize(apple - (dog + castle) / 2, dim=0))
    (among_many,) = explain.contrast_targets(model64, texts[:1])
    assert 0.5 < among_many.embedding @ apple < 0.999
    with pytest.raises(clip.ClipagError, match="is empty"):
        explain.contrast_targets(model64, [" "])


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


@pytest.mark.slow
@pytest.mark.parametrize("name, tower, shape", [*towers()], ids=lambda value: str(value)[:20])
def test_gradcam_of_every_tower(name, tower, shape):
    # In float64, where one image and two give the same on every processor.
    tower = tower.double().eval().requires_grad_(False)
    x = images(2, 48).double()
    layer, to_maps = explain.default_layer(tower.visual)
    outputs = []
    handle = layer.register_forward_hook(lambda *call: outputs.append(call[2]))
    tower.encode_image(normalize(x))
    handle.remove()
    maps = to_maps(outputs[0])
    assert maps.shape[0] == 2 and maps.shape[2:] == shape

    target = clip.text_target(tower, "a cat")
    heat = explain.heat_maps(tower, x, [target, target])
    assert heat.shape == (2, 48, 48) and heat.min() >= 0 and heat.max() <= 1
    alone = explain.heat_maps(tower, x[1:], [target])
    # pytorch-grad-cam rounds its maps, which are at most 1, to float32 (6e-8), and resizes them.
    torch.testing.assert_close(heat[1:], alone, atol=1e-6, rtol=0)
    assert not layer._forward_hooks


def test_plain_and_smoothed_gradients(vanilla):
    x = images()
    targets = [clip.text_target(vanilla, "a dog")] * 2
    plain = explain.heat_maps(vanilla, x, targets, "grad")
    smooth = explain.heat_maps(vanilla, x, targets, "smoothgrad")
    assert plain.shape == smooth.shape == (2, 64, 64)
    assert not torch.allclose(plain, smooth, atol=0.05)
    leaf = x.clone().requires_grad_(True)
    (by_hand,) = torch.autograd.grad(similarity(vanilla, leaf, "a dog").sum(), leaf)
    # `input_gradient` computes in float32, whose relative rounding error is 6e-8. Some 20 layers,
    # with sums of up to some 1,000 products that mostly cancel, make it at most 1e-4 of the largest
    # gradient.
    gradient = pag.input_gradient(vanilla, x, targets)
    bound = 1e-4 * by_hand.abs().max().item()
    torch.testing.assert_close(gradient, by_hand, atol=bound, rtol=0)
    largest = by_hand.abs().amax(1)
    torch.testing.assert_close(plain, largest / largest.amax((1, 2), True), atol=1e-3, rtol=0)
    with pytest.raises(clip.ClipagError, match="choose from gradcam"):
        explain.heat_maps(vanilla, x, targets, "lime")


@pytest.mark.slow
@pytest.mark.parametrize("norm, eps", [("linf", 8 / 255), ("l2", 1.0)])
def test_the_attack_of_equation_4(vanilla, norm, eps):
    x = images()
    threat = attack.threat_model_of(norm, eps, 10)
    attacked = attack.attack(vanilla, x, "a cat", threat)
    change = (attacked - x).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    # In float32, 1e-5 is 100 roundings (6e-8) of pixels in [0, 1], and of lengths of about 1.
    assert (length <= eps + 1e-5).all() and (length > 0.5 * eps).all()
    assert attacked.min() >= 0 and attacked.max() <= 1

    def loss(images):
        return similarity(vanilla, images, "not a cat") - similarity(vanilla, images, "a cat")

    def rise(images):
        return loss(images) - loss(x)

    # The two texts have similar embeddings, so the loss is compared with that of noise of the
    # same length.
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise = eps * (noise.sign() if norm == "linf" else attack.unit_l2(noise))
    assert (rise(attacked) > 10 * rise(x + noise).abs()).all()
    targeted = attack.attack(vanilla, x, "a cat", threat, towards="a dog")
    gain = similarity(vanilla, targeted, "a dog") - similarity(vanilla, x, "a dog")
    assert (gain > 0.02).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l1", 1, 1), "`norm` is 'l1'"),
        (("l2", 0, 1), "`eps` is 0"),
        (("l2", float("nan"), 1), "`eps` is nan"),
        (("l2", 1, 0), "`steps` is 0"),
        (("l2", 1, 1, -1), "`step_size` is -1"),
    ],
)
def test_impossible_threat_models_are_refused(arguments, message):
    with pytest.raises(clip.ClipagError, match=message):
        attack.threat_model_of(*arguments)


@pytest.mark.slow
def test_heat_maps_as_a_user_asks_for_them(run, tmp_path):
    Image.effect_noise((90, 60), 60).save(tmp_path / "noise.png")
    small = ("--size", 64, "--steps", 2)
    result = run("explain", "noise.png", "a dog", *small, "--models", "clipag-mini")
    assert result.returncode == 0, result.stderr
    picture = Image.open(tmp_path / result.stdout.strip())
    assert picture.width > 4 * 64 and picture.text["method"] == "hirescam"
    assert picture.text["attack"] == "linf, eps 0.0313725, 2 steps"


@pytest.mark.slow
def test_pag_and_attack(run, tmp_path):
    Image.effect_noise((90, 60), 60).save(tmp_path / "noise.png")
    texts = ("a dog", "a cat")
    assert run("pag", "noise.png", *texts, "--size", 64, "--samples", 2).returncode == 0
    assert Image.open(tmp_path / "pag-a-dog-0.png").height > 2 * 64
    small = ("--size", 64, "--steps", 2, "--eps", "16/255")
    result = run("attack", "noise.png", "a dog", *small, "--towards", "a cat")
    assert result.returncode == 0 and "similarity to 'a cat'" in result.stdout
    assert Image.open(tmp_path / "attack-a-dog-0.png").size == (64, 64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("attack", "none.png", "a dog"), "There is no picture at none.png"),
        (("attack", "noise.txt", "a dog"), "noise.txt is not a picture"),
        (("attack", "noise.png", " "), "is empty"),
        (("attack", "noise.png", "a dog", "--eps", "0"), "--eps is 0"),
        (("attack", "noise.png", "a dog", "--out", "noise.png"), "would replace"),
        (("explain", "noise.png", "a dog", "--out", "noise.png"), "would replace"),
        (("pag", "noise.png", "a dog", "--out", "noise.png"), "would replace"),
        (("explain", "noise.png", "a dog", "--size", "4"), "size is 4"),
        (("explain", "noise.png", "a dog", "--models", "no-such"), "no-such"),
        (("pag", "noise.png", "a dog", "--models", "clip-mini"), "--models names 1"),
        (("pag", "noise.png", "a dog", "--samples", "0"), "--samples is 0"),
        (("pag", "noise.png", "a dog", "--samples", f"{10**12}"), "not enough memory"),
    ],
)
def test_bad_input(arguments, message, run, tmp_path):
    (tmp_path / "noise.txt").write_text("no picture")
    Image.effect_noise((32, 32), 60).save(tmp_path / "noise.png")
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr
