import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipag_plugins as clip

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def guide(model):
    return clip.Guide(model, [[clip.text_target(model, "red apple")]])


def test_an_ascent_keeps_the_best_iterate(guide):
    losses_by_step, renderings = [], []

    class CountingCanvas(clip.PixelCanvas):
        def render(self):
            renderings.append(1)
            return super().render()

    ascent = clip.ascend(
        CountingCanvas(torch.full((1, 3, 64, 64), 0.5), 0.03),
        guide,
        8,
        callback=lambda step, images, losses: losses_by_step.append(losses.item()),
        progress=False,
    )
    # Before each update, and once after the last.
    assert len(losses_by_step) == len(renderings) == 9
    assert ascent.losses.item() == min(losses_by_step) < losses_by_step[0]
    assert guide.loss(ascent.images).item() == pytest.approx(min(losses_by_step), abs=1e-5)
    assert ascent.steps == 8


def test_a_callback_ends_the_ascent(guide):
    canvas = clip.PixelCanvas(torch.rand(1, 3, 64, 64))
    ascent = clip.ascend(canvas, guide, 50, callback=lambda step, *_: step == 2, progress=False)
    assert ascent.steps == 2


def test_ctrl_c_keeps_the_best_so_far(guide):
    def interrupt(step, images, losses):
        if step == 3:
            raise KeyboardInterrupt

    canvas = clip.PixelCanvas(torch.rand(1, 3, 64, 64))
    ascent = clip.ascend(canvas, guide, 50, callback=interrupt, progress=False)
    assert ascent.interrupted and ascent.steps == 3
    assert torch.isfinite(ascent.losses).all()


@pytest.mark.slow
def test_a_canvas_of_the_users_own(tmp_path):
    assert len((EXAMPLES / "pyramid.py").read_text().splitlines()) <= 30
    command = [sys.executable, str(EXAMPLES / "pyramid.py"), "a red apple", "3"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert Image.open(tmp_path / "pyramid.png").size == (224, 224)
