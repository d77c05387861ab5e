import copy
import math

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import sampler
from clipag_plugins.base import INPUT_RESOLUTION, embed_images, normalize, transform
from clipag_plugins.mini import Memory
from clipag_plugins.targets import text_embeddings
from clipag_plugins.vit import CLIP


def test_interface_is_openais(model):
    image = transform(INPUT_RESOLUTION)(Image.new("RGB", (300, 200), "red"))[None]
    text = clip.tokenize(["a red apple", "a castle", "a dog"])
    assert image.shape == (1, 3, 224, 224)
    assert text.shape == (3, 77) and text.dtype == torch.int
    per_image, per_text = model(image, text)
    assert per_image.shape == (1, 3) and torch.equal(per_image.t(), per_text)
    assert model.encode_image(image).shape == (1, model.visual.output_dim)
    assert model.encode_text(text).shape == (3, model.visual.output_dim)
    assert model.visual.input_resolution == 224
    assert model.context_length == 77 and model.vocab_size == 49408
    assert model.dtype == torch.float32


def test_tokens_are_clips():
    assert clip.tokenize("a red apple")[0, :5].tolist() == [49406, 320, 736, 3055, 49407]


def test_long_text_is_refused_or_cut():
    text = "apple " * 100
    with pytest.raises(RuntimeError, match="too long"):
        clip.tokenize(text)
    assert clip.tokenize(text, truncate=True)[0, -1] == 49407


def test_other_images_of_a_batch_do_not_matter(model64):
    images = normalize(torch.rand(3, 3, 48, 48, dtype=torch.float64))
    together = model64.encode_image(images)
    alone = torch.cat([model64.encode_image(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-9)


def test_padding_does_not_matter(model64):
    short, long = clip.tokenize("a castle"), clip.tokenize("a very old castle on a green hill")
    together = model64.encode_text(torch.cat([short, long]))
    assert torch.allclose(together[:1], model64.encode_text(short), atol=1e-9)


def test_a_memory_adds_embeddings_of_pictures_with_similar_captions():
    memory = Memory(entries=2, embed_dim=4, temperature=0.1)
    texts = torch.eye(4)[:1] * torch.tensor([[1.0], [-1.0]])  # too far apart for a mixture
    memory.keys[:], memory.values[:] = texts, torch.eye(4)[2:] * 3
    assert torch.allclose(memory(texts * 5), texts + torch.eye(4)[2:], atol=1e-6)
    memory.keys[:] = torch.eye(4)[:2]
    # Of two keys at 0.78 and 0.62, weights e^(0.78 / 0.1) to e^(0.62 / 0.1).
    query = torch.tensor([[0.78, 0.62, 0.0, 0.0]])
    query = query / query.norm()
    odds = math.exp((query[0, 0] - query[0, 1]).item() / 0.1)
    retrieved = torch.tensor([[0.0, 0.0, odds, 1.0]])
    by_hand = query + retrieved / retrieved.norm()
    assert torch.allclose(memory(query), by_hand, atol=1e-5)


def test_each_model_has_a_memory_of_its_image_tower(model, vanilla, held_out):
    """It moves texts towards that tower's embeddings of held-out pictures."""
    captions, pictures = held_out
    bare = copy.deepcopy(model)
    bare.text.memory = None
    for tested, other in ((model, vanilla), (vanilla, model)):
        images = embed_images(tested, pictures)
        similarities = [
            (images * text_embeddings(m, captions)).sum(dim=1).mean().item()
            for m in (tested, other, bare)
        ]
        assert similarities[0] > similarities[1] + 0.05
        assert similarities[0] > similarities[2] + 0.2


def test_a_memory_in_half_precision(model):
    text = clip.tokenize(["a red apple", "a zeppelin"])
    half = copy.deepcopy(model).half().encode_text(text)
    assert half.dtype == torch.float16
    assert (F.cosine_similarity(half.float(), model.encode_text(text)) > 0.999).all()


def test_weights_are_frozen_and_images_are_not(model):
    image = torch.rand(1, 3, 224, 224, requires_grad=True)
    model.encode_image(normalize(image)).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_robust_gradient_is_smoother_than_vanilla(model, vanilla):
    """The point of CLIPAG: a step of length 1 along the gradient changes its loss less."""
    images = torch.rand(8, 3, 64, 64)
    target = clip.text_target(model, "a red apple")
    drops = {}
    for name, tower in (("clipag", model), ("vanilla", vanilla)):
        guide = clip.Guide(tower, [[target]] * 8)
        x = images.clone().requires_grad_(True)
        before = guide.loss(x)
        (gradient,) = torch.autograd.grad(before.sum(), x)
        length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        drops[name] = (guide.loss(x + gradient / length) - before).mean().item()
    assert 0 < drops["clipag"] < drops["vanilla"]


def test_a_saved_embedded_model_keeps_the_embedded_settings(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = clip.load_model(tmp_path)
    loaded.name = "mine"
    assert sampler.settings_for(loaded) == sampler.EMBEDDED_SETTINGS


def test_texts_embedded_together_are_those_embedded_alone():
    torch.manual_seed(0)
    model = CLIP(32, 32, 1, 64, 16, 77, 49408, 64, 2, 2).eval().double()
    texts = ["a cat", "a red apple on a table beside a window", "dog " * 90]
    with torch.no_grad():
        expected = F.normalize(model.encode_text(clip.tokenize(texts, truncate=True)), dim=-1)
    torch.testing.assert_close(text_embeddings(model, texts, truncate=True), expected)
    alone = text_embeddings(model, texts[:1])
    torch.testing.assert_close(alone, expected[:1])
