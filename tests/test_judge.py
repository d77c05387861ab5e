"""The judge of benchmarks/ names pictures that it did not learn from."""

import pytest

from clipag_plugins.errors import ClipagError


@pytest.mark.slow
@pytest.mark.xdist_group("judge")
def test_the_judge_names_held_out_pictures(judge, held_out):
    captions, images = held_out
    names = judge.names(images, captions)
    assert sum(map(str.__eq__, map(str, names), captions)) > 60
    grey = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    assert judge.names(grey, captions).count(None) > 48


@pytest.mark.slow
@pytest.mark.xdist_group("judge")
def test_imagenets_classifier_names_its_classes(judge, held_out):
    captions, images = held_out
    shown = {"feather": "quill", "maracas": "maraca", "hot beverage": "coffee mug"}
    names = [*shown.values(), "ostrich", "toaster", "lynx"]
    shares = judge.classes(images[[captions.index(caption) for caption in shown]], names)
    assert [names[i] for i in shares.argmax(dim=1)] == [*shown.values()]
    assert shares.sum(dim=1).tolist() == pytest.approx([1.0] * len(shown))
    with pytest.raises(ClipagError, match="'unicorn' is no class"):
        judge.classes(images[:1], ["ostrich", "unicorn"])
