"""CLIPDraw, through the command line and in Python."""

import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import resvg_py
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from clipag_plugins import ClipagError, Guide, ascend, text_target
from clipag_plugins.arguments import RunOptions
from clipag_plugins.base import normalize
from clipag_plugins.cli import parser
from clipag_plugins.integrations.clipdraw import (
    Drawing,
    Perspectives,
    StrokeCanvas,
    Strokes,
    WholePicture,
    draw,
    read_palette,
    starting_strokes,
)
from clipag_plugins.integrations.vector.svg import write_svg

FEW = Drawing(24)
QUIET = RunOptions(progress=False)
SMALL = {"drawing": FEW, "size": 64, "options": QUIET}
FAST = ("--strokes", "12", "--size", "64", "--steps", "2")


def pixels(picture):
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255


def resvg(path):
    return pixels(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_path=str(path)))))


# ------------------------------------------------------------------------- the command line


def test_a_drawing_with_its_metadata(run, tmp_path):
    arguments = ("--seed", 3, "--negative", "a <messy> sketch", "--palette", "e63946,black")
    result = run("draw", "a red apple", *FAST, *arguments, "--trajectory", "steps")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "a-red-apple-3.svg",
        "a-red-apple-3.png",
        "steps",
    }
    picture = Image.open(tmp_path / "a-red-apple-3.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == "a red apple" and picture.text["seed"] == "3"
    assert picture.text["negative"] == "a <messy> sketch"
    svg = (tmp_path / "a-red-apple-3.svg").read_text()
    assert "prompt: a red apple" in svg and "seed: 3" in svg and "model: clipag-lite" in svg
    assert set(re.findall(r'stroke="(#\w+)"', svg)) == {"#e63946", "#000000"}
    assert (pixels(picture) - resvg(tmp_path / "a-red-apple-3.svg")).abs().mean() < 2 / 255
    names = {path.name for path in (tmp_path / "steps").iterdir()}
    assert {"a-red-apple-3-start.png", "a-red-apple-3.gif"} <= names
    strokes = Image.open(tmp_path / "steps" / "a-red-apple-3-strokes.gif")
    assert strokes.n_frames == 12
    strokes.seek(11)
    assert (pixels(strokes) - pixels(picture)).abs().mean() < 0.02


def test_a_transparent_drawing_that_is_not_square(run, tmp_path):
    arguments = ("--strokes", "12", "--steps", "2", "--size", "96", "48", "--background", "none")
    assert run("draw", "a fox", *arguments).returncode == 0
    picture = Image.open(tmp_path / "a-fox-0.png")
    assert picture.size == (96, 48) and picture.mode == "RGBA"
    assert picture.text["size"] == "96x48" and picture.text["background"] == "none"
    alpha = np.asarray(picture.getchannel("A")) / 255
    assert (alpha == 0).any() and (alpha > 0.1).any()
    assert "<rect" not in (tmp_path / "a-fox-0.svg").read_text()
    svg = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_path=str(tmp_path / "a-fox-0.svg"))))
    assert svg.size == (96, 48)
    assert abs(np.asarray(svg.getchannel("A")) / 255 - alpha).mean() < 2 / 255
    for colour in ("white", "black", "red"):
        both = [Image.new("RGBA", (96, 48), colour) for _ in range(2)]
        for paper, drawing in zip(both, (svg, picture), strict=True):
            paper.alpha_composite(drawing.convert("RGBA"))
        assert (pixels(both[0]) - pixels(both[1])).abs().mean() < 2 / 255


def test_a_drawing_on_a_colour(run, tmp_path):
    assert run("draw", "a fox", *FAST, "--background", "1d3557").returncode == 0
    picture = Image.open(tmp_path / "a-fox-0.png")
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (0x1D, 0x35, 0x57)
    assert (pixels(picture) - resvg(tmp_path / "a-fox-0.svg")).abs().mean() < 2 / 255


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_so_far(interrupt, tmp_path):
    endless = ("--steps", "100000", "--no-augment", "--out", "castle.svg")
    code, says = interrupt("similarity", "draw", "a castle", *FAST, *endless)
    assert code == 130
    assert "the best so far is kept" in says
    picture = pixels(Image.open(tmp_path / "castle.png"))
    assert (picture - resvg(tmp_path / "castle.svg")).abs().mean() < 2 / 255


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "fox.png"], ".png"),
        (["--out", "missing/fox.svg"], "missing"),
        (["--out", "photo.svg", "--init", "photo.png"], "would replace"),
        (["--count", "0"], "--count is 0"),
        (["--shapes", "dots"], "dots"),
        (["--width", "1"], "--width"),
        (["--trajectory", "missing/steps"], "missing"),
        (["--out", "fox-5.svg"], "fox-5.png"),
        (["--background", "noon"], "--background names 'noon'"),
        (["--size", "64", "8"], "--size is 8"),
        (["--size", "8", "8", "8"], "--size has 3 numbers"),
    ],
)
def test_bad_options_are_one_sentence(run, tmp_path, arguments, says):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "fox-5.png").mkdir()
    before = sorted(tmp_path.iterdir())
    result = run("draw", "fox", *FAST, *arguments)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr and "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_help_shows_examples(run):
    assert "clipag draw" in run("draw", "--help").stdout


def test_options_have_the_defaults_of_draw():
    options = vars(parser().parse_args(["draw", "fox"]))
    for function in (draw, Drawing):
        for name, argument in inspect.signature(function).parameters.items():
            if name in options and name not in ("prompts", "model", "palette", "negative"):
                assert options[name] == argument.default, name


@pytest.mark.slow
def test_the_notebooks_loop_runs_with_our_pydiffvg(tmp_path):
    example = Path(__file__).parents[1] / "examples" / "clipdraw.py"
    command = [sys.executable, str(example), "a castle", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert resvg(tmp_path / "clipdraw.svg").shape == (3, 224, 224)


# ------------------------------------------------------------------------------- in Python


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "`steps` is 0"),
        ({"size": 8}, "`size` is 8"),
        ({"seed": -1}, "`seed` is -1"),
        ({"seed": []}, "no seed"),
        ({"negative": [" "]}, "empty"),
        ({"drawing": Drawing(init="absent.png")}, "absent.png"),
    ],
)
def test_bad_arguments_are_named(model, wrong, says):
    with pytest.raises(ClipagError, match=says):
        draw(["fox"], model, **{**SMALL, "steps": 1, **wrong})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"strokes": 0}, "`strokes` is 0"),
        ({"strokes": 10**6}, "`strokes` is 1000000"),
        ({"shapes": "dots"}, "stroke, fill, pixel"),
        ({"width": (0.0, 4.0)}, "`width` is 0 to 4"),
        ({"width": (9.0, 2.0)}, "`width` is 9 to 2"),
        ({"palette": ["red", "reddish"]}, "reddish"),
        ({"palette": [""]}, "palette"),
    ],
)
def test_drawings_that_cannot_be(wrong, says):
    with pytest.raises(ClipagError, match=says):
        Drawing(**wrong)


def test_the_best_strokes_are_the_best_image(model):
    ascent = draw(["a castle", "a frog"], model, steps=4, seed=[0, 1], **SMALL)
    assert ascent.images.shape == (4, 3, 64, 64)
    assert torch.equal(ascent.canvas.render().detach(), ascent.images)
    assert ascent.losses.isfinite().all()


def test_the_best_of_each_image_is_kept(model):
    parts = zip(*(starting_strokes(seed, Drawing(12)) for seed in range(6)), strict=True)
    canvas = StrokeCanvas(Strokes(*map(torch.cat, parts)), size=64)
    guide = Guide(model, [[text_target(model, "a castle")]] * 6, Perspectives(1), seeds=range(6))
    points, losses = [], []

    def remember(step, images, reached):
        points.append(canvas.points.detach().clone())
        losses.append(reached)

    wild = torch.optim.Adam([canvas.points], lr=30)
    ascent = ascend(canvas, guide, 4, wild, remember, progress=False)
    best = torch.stack(losses).argmin(0)
    assert len(best.unique()) > 1  # the state is put together from several steps
    for image, step in enumerate(best):
        assert torch.equal(ascent.state["points"][image], points[step][image])


def test_a_drawing_does_not_depend_on_its_batch(model):
    alone = draw(["a frog"], model, steps=1, seed=1, **SMALL)
    among = draw(["a castle", "a frog"], model, steps=1, seed=[0, 1], **SMALL)
    assert torch.allclose(alone.images[0], among.images[3], atol=0.02)
    assert torch.allclose(alone.losses[0], among.losses[3], atol=1e-4)


@pytest.mark.parametrize("shapes", ["stroke", "fill", "pixel"])
def test_drawing_raises_the_similarity(model, shapes, tmp_path):
    bold = Drawing(49, shapes, (8.0, 100.0))
    ascent = draw(
        ["a castle"], model, steps=12, augment=False, drawing=bold, size=64, options=QUIET
    )
    canvas, start = ascent.canvas, StrokeCanvas(starting_strokes(0, bold, 64), bold, 64)
    guide = Guide(model, [[text_target(model, "a castle")]])
    assert ascent.losses < guide.loss(start.render()) - 0.04
    write_svg(tmp_path / "apple.svg", canvas.groups(0), (64, 64), torch.ones(3))
    assert (resvg(tmp_path / "apple.svg") - ascent.images[0]).abs().mean() < 2 / 255
    if shapes == "pixel":
        assert torch.equal(canvas.points, start.points)


def test_negative_prompts_count_against(model):
    ascent = draw(
        ["a castle"], model, steps=1, negative=["a frog", "a fox"], augment=False, **SMALL
    )
    texts = ("a castle", "a frog", "a fox")
    castle, frog, fox = (text_target(model, text).embedding for text in texts)
    z = F.normalize(model.encode_image(normalize(ascent.images)), dim=-1)[0]
    assert ascent.losses[0] == pytest.approx(
        float(-z @ (castle - 0.3 * frog - 0.3 * fox)), abs=1e-3
    )


def test_learning_rates_and_ranges_are_the_notebooks():
    canvas = StrokeCanvas(starting_strokes(0, Drawing(8)), steps=8)
    optimizer = canvas.optimizer()
    rates = []
    for _ in range(8):
        (canvas.render() ** 2).sum().backward()
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    # Full widths: diffvg, where the notebook's rate is 0.1, counts them by half.
    assert [rate[1:] for rate in rates] == [[0.2, 0.01]] * 8
    assert [rate[0] for rate in rates] == [1.0] * 4 + [0.4] * 2 + [0.1] * 2
    with torch.no_grad():
        canvas.widths[0, :2] = torch.tensor([0.5, 300])
        canvas.colours[0, 0] = torch.tensor([-1.0, 2, 0.5, 3])
    canvas.constrain()
    assert canvas.widths[0, :2].tolist() == [2, 100]
    assert canvas.colours[0, 0].tolist() == [0, 1, 0.5, 1]


def test_random_strokes_are_the_notebooks():
    start = starting_strokes(0, Drawing(4000))
    assert start.points.shape == (1, 4000, 10, 2)
    assert (start.widths == 2).all()
    assert start.segments.unique().tolist() == [1, 2, 3]
    first = start.points[0, :, 0]
    assert first.min() >= 0 and first.max() <= 224
    assert first.mean() == pytest.approx(112, abs=3)
    moves = start.points.diff(dim=2)
    assert moves.abs().max() <= 0.05 * 224 + 1e-3
    assert moves.std() == pytest.approx(0.1 * 224 / 12**0.5, rel=0.02)


def test_a_picture_gives_strokes_their_colours(tmp_path):
    picture = Image.new("RGB", (100, 80), "blue")
    picture.paste("red", (0, 0, 50, 80))
    picture.save(tmp_path / "flag.png")
    for shapes in ("stroke", "pixel"):
        drawing = Drawing(256, shapes, init=tmp_path / "flag.png")
        image = StrokeCanvas(starting_strokes(0, drawing, 64), drawing, 64).render()[0]
        left, right = image[:, :, 4:28].mean((1, 2)), image[:, :, 36:60].mean((1, 2))
        assert left[0] > left[2] + 0.4 and right[2] > right[0] + 0.4
        assert image.mean((0,)).mean() < 0.6  # of white paper little is seen


def test_pixels_have_no_seams():
    drawing = Drawing(50, "pixel")
    canvas = StrokeCanvas(starting_strokes(0, drawing, 64), drawing, 64)
    with torch.no_grad():
        canvas.colours[:] = torch.tensor([0.2, 0.4, 0.6, 1])
    assert canvas.points.shape[1] == 49
    expected = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1).expand(3, 64, 64)
    assert torch.allclose(canvas.render()[0], expected, atol=1e-4)


def test_a_palette_lets_colours_change_within_it():
    drawing = Drawing(30, palette=["red", "00f", "#00FF00"])
    palette = read_palette(drawing.palette)
    assert palette.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    canvas = StrokeCanvas(starting_strokes(0, drawing), drawing)
    with torch.no_grad():
        canvas.colours[0, 0] = torch.tensor([0.4, 0.1, 0.45, 0.5])
    colours = canvas.painted_colours()
    assert colours[0, 0].tolist() == pytest.approx([0, 0, 1, 0.5])
    assert torch.cdist(colours[0, :, :3], palette).amin(1).max() < 1e-5
    colours.sum().backward()
    assert (canvas.colours.grad == 1).all()


@pytest.mark.parametrize("size", [(128, 64), (48, 112)])
def test_strokes_fill_a_canvas_that_is_not_square(size):
    width, height = size
    start = starting_strokes(0, Drawing(2000), size)
    zoom = (width * height) ** 0.5 / 224
    first = start.points[0, :, 0] * zoom
    for axis, side in enumerate(size):
        assert first[:, axis].min() >= 0 and first[:, axis].max() <= side
        assert first[:, axis].mean() == pytest.approx(side / 2, rel=0.05)
    # Moves are as long in both directions, so strokes have the shape that they have on a square.
    across, down = start.points[0].diff(dim=1).std((0, 1)).tolist()
    assert across == pytest.approx(down, rel=0.05)


@pytest.mark.parametrize(
    ("strokes", "size", "grid"),
    [(50, 64, (7, 7)), (50, (128, 64), (10, 5)), (3, (64, 16), (3, 1)), (1, (2048, 16), (1, 1))],
)
def test_pixels_fill_a_canvas_that_is_not_square(strokes, size, grid):
    drawing = Drawing(strokes, "pixel")
    assert drawing.grid(size) == grid
    canvas = StrokeCanvas(starting_strokes(0, drawing, size), drawing, size)
    with torch.no_grad():
        canvas.colours[:] = torch.tensor([0.2, 0.4, 0.6, 1])
    image = canvas.render()
    assert image.shape == (1, 3, canvas.height, canvas.width)
    assert (image[0] - torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)).abs().max() < 1e-4


def test_a_picture_colours_a_canvas_that_is_not_square(tmp_path):
    picture = Image.new("RGB", (100, 50), "blue")
    picture.paste("red", (0, 0, 50, 50))
    picture.save(tmp_path / "flag.png")
    drawing = Drawing(200, "pixel", init=tmp_path / "flag.png")
    image = StrokeCanvas(starting_strokes(0, drawing, (128, 64)), drawing, (128, 64)).render()[0]
    assert (image[0, :, :60] > 0.9).all() and (image[2, :, 68:] > 0.9).all()


def test_what_is_not_square_is_seen_undistorted_on_its_background():
    image = torch.zeros(1, 3, 40, 80)
    views, weights = WholePicture((1.0, 0.5, 0.0))(image, 80)
    assert weights.tolist() == [1] and views.shape == (1, 1, 3, 80, 80)
    view = views[0, 0]
    assert (view[:, 20:60] == 0).all()
    edges = torch.cat([view[:, :20], view[:, 60:]], dim=1)
    assert (edges == torch.tensor([1, 0.5, 0]).view(3, 1, 1)).all()
    colour = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    plain, _ = Perspectives(background=(0.1, 0.2, 0.3))(colour.expand(1, 3, 40, 80), 64)
    assert torch.allclose(plain, colour, atol=1e-5)


def test_an_ascent_on_a_canvas_that_is_not_square(model):
    ascent = draw(["a fox"], model, **SMALL | {"size": (96, 48)}, steps=4)
    assert ascent.images.shape == (1, 3, 48, 96)
    assert ascent.losses.item() < 1


def test_perspectives_are_torchvisions():
    image = torch.ones(1, 3, 160, 160)
    image[..., 50:110, 50:110] = 0
    theirs = transforms.Compose(
        [
            transforms.RandomPerspective(fill=1, p=1, distortion_scale=0.5),
            transforms.RandomResizedCrop(160, scale=(0.7, 0.9)),
        ]
    )
    expected = torch.cat([theirs(image)[:, 0] for _ in range(120)])
    views, weights = Perspectives(120)(image, 160)
    assert views.shape == (1, 120, 3, 160, 160)
    assert weights.tolist() == pytest.approx([1 / 120] * 120)
    ours = views[0, :, 0]
    for statistic in (torch.mean, torch.std):
        assert statistic(1 - ours.mean((1, 2))) == pytest.approx(
            statistic(1 - expected.mean((1, 2))).item(), rel=0.2
        )
    # Black that comes in at the corners would show in this mean.
    assert (ours.mean(0) - expected.mean(0)).abs().mean() < 0.03


def test_perspectives_are_the_same_for_a_batch_and_white_stays_white():
    images = torch.rand(1, 3, 96, 96).repeat(3, 1, 1, 1).requires_grad_()
    views, _ = Perspectives()(images, 64)
    assert torch.allclose(views[0], views[2], atol=1e-6)
    assert not torch.allclose(views[0, 0], views[0, 1], atol=0.1)
    views.sum().backward()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    white, _ = Perspectives()(torch.ones(1, 3, 96, 96), 64)
    assert torch.allclose(white, torch.ones(()), atol=1e-5)


def test_read_only_folder(run, locked):
    result = run("draw", "fox", *FAST, "--out", locked / "fox.svg")
    assert result.returncode == 2 and f"{locked} cannot be written to" in result.stderr


def test_widths_may_be_whole_numbers(model):
    ascent = draw(["a cat"], model, steps=1, size=32, drawing=Drawing(strokes=4, width=(2, 30)))
    assert ascent.canvas._repr_svg_().startswith("<")
    assert ascent._repr_png_().startswith(b"\x89PNG")
