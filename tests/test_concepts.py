"""The space of `clipag-lite`'s fine tower, and the concepts in it."""

import pytest
import torch
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.finetune.embedded import concepts
from clipag_plugins.lite import FEATURES

CAPTIONS, CLASSES = 5, 7


@pytest.fixture(scope="module")
def fitted():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(CAPTIONS, FEATURES, generator=generator, dtype=torch.float64)
    caption_of = torch.arange(CAPTIONS).repeat_interleave(40)
    # Pictures of one caption scatter far along the first features.
    scale = torch.linspace(8, 0.1, FEATURES, dtype=torch.float64)
    noise = torch.randn(len(caption_of), FEATURES, generator=generator, dtype=torch.float64)
    features = means[caption_of] + noise * scale
    rows = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    return concepts.fit(features, caption_of, rows, CAPTIONS + CLASSES), features, caption_of, rows


def test_the_cosines_are_those_of_a_linear_discriminant(fitted):
    space, features, caption_of, rows = fitted
    means = torch.stack([features[caption_of == i].mean(dim=0) for i in range(CAPTIONS)])
    deviations = features - means[caption_of]
    measured = deviations.T @ deviations / len(features)
    even = torch.eye(FEATURES, dtype=torch.float64) * measured.trace() / FEATURES
    scatter = (1 - concepts.SHRINKAGE) * measured + concepts.SHRINKAGE * even
    means, rows = means - means.mean(dim=0), rows - rows.mean(dim=0)
    solved = torch.linalg.solve(scatter, means.T).T  # Fisher's directions
    lengths = (solved * means).sum(dim=1).sqrt()
    expected = solved @ means.T / (lengths[:, None] * lengths)
    assert torch.allclose(space.captions @ space.captions.T, expected.float(), atol=1e-5)
    lengths_of_rows = ((rows @ scatter) * rows).sum(dim=1).sqrt()
    expected = rows @ means.T / (lengths_of_rows[:, None] * lengths)
    assert torch.allclose(space.classes @ space.captions.T, expected.float(), atol=1e-5)


def test_features_are_placed_beside_their_captions(fitted):
    space, features, caption_of, _ = fitted
    z = F.normalize(features.float() @ space.weight.T + space.bias, dim=1)
    assert torch.equal((z @ space.captions.T).argmax(dim=1), caption_of)
    own = F.normalize(z[caption_of == 2].mean(dim=0), dim=0) @ space.captions[2]
    assert own > 0.95


def test_both_lite_models_have_the_same_concepts():
    plain, robust = (clip.load_model(name) for name in ("clip-lite", "clipag-lite"))
    for a, b in zip(plain.text.concepts.buffers(), robust.text.concepts.buffers(), strict=True):
        assert torch.equal(a, b)
    head = plain.visual.tower.fine.head
    assert torch.equal(head.weight, robust.visual.tower.fine.head.weight)


@pytest.mark.parametrize("name", ["zebra", "accordion", "school bus"])
def test_the_name_of_a_class_recalls_the_class(name):
    from open_clip import IMAGENET_CLASSNAMES

    model = clip.load_model("clipag-lite")
    stored = clip.embedded.read_weights(clip.embedded.read_config()["concepts"])
    fine = model.encode_text(clip.tokenize(name))[:, 384:]
    classes = F.normalize(stored["classes"], dim=1)
    assert (fine @ classes.T).argmax() == IMAGENET_CLASSNAMES.index(name)
