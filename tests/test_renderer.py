import io
import math
from itertools import pairwise

import numpy as np
import pytest
import resvg_py
import torch
from PIL import Image
from torch.nn.functional import max_pool2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.vector.paths import (
    Group,
    Path,
    circle,
    ellipse,
    polygon,
    rectangle,
)
from clipag_plugins.integrations.vector.renderer import compose_on, render, render_paths, straight

WHITE = torch.ones(3)
SIDE = 64


# --------------------------------------------------------------------------- against resvg


def svg_path(path):
    points, number, command = path.points.tolist(), 0, "M{} {}".format(*path.points[0].tolist())
    for controls in path.num_control_points.tolist():
        following = [points[(number + step) % len(points)] for step in range(1, controls + 2)]
        command += "LQC"[controls] + " ".join(f"{x} {y}" for x, y in following)
        number += controls + 1
    return command + ("Z" if path.is_closed else "")


def svg_lines(path):
    """Write a path as short lines, each by itself."""
    number, command = 0, ""
    for controls in path.num_control_points.tolist():
        order = controls + 1
        corners = path.points[[(number + k) % len(path.points) for k in range(order + 1)]]
        t, k = torch.linspace(0, 1, 33 if controls else 2)[:, None], torch.arange(order + 1)
        binomial = torch.tensor([math.comb(order, int(n)) for n in k])
        nodes = ((binomial * t**k * (1 - t) ** (order - k)) @ corners).tolist()
        lines = pairwise(nodes)
        command += "".join(f"M{ax} {ay}L{bx} {by}" for (ax, ay), (bx, by) in lines)
        number += order
    return command


def svg_paint(name, paint):
    if paint is None:
        return f'{name}="none"'
    red, green, blue, alpha = paint.tolist()
    colour = f"rgb({red * 255:.3f},{green * 255:.3f},{blue * 255:.3f})"
    return f'{name}="{colour}" {name}-opacity="{alpha:.5f}"'


def resvg(groups, write_stroke, zoom):
    """Draw on white at `zoom` times the size. Returns (3, SIDE, SIDE, zoom, zoom)."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}">'
    for group in groups:
        rule = "evenodd" if group.use_even_odd_rule else "nonzero"
        svg += (
            f'<path d="{"".join(map(svg_path, group.paths))}" fill-rule="{rule}" '
            f"{svg_paint('fill', group.fill)}/>"
            f'<path d="{"".join(map(write_stroke, group.paths))}" fill="none" '
            f"{svg_paint('stroke', group.stroke)} "
            'stroke-linecap="round" stroke-linejoin="round" '
            f'stroke-width="{float(group.paths[0].stroke_width)}"/>'
        )
    png = resvg_py.svg_to_bytes(svg_string=svg + "</svg>", background="#ffffff", zoom=zoom)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB")))
    return (pixels / 255).view(SIDE, zoom, SIDE, zoom, 3).permute(4, 0, 2, 1, 3)


def random_path(width, side=SIDE):
    kind = int(torch.randint(0, 7, ()))
    centre, extent = torch.rand(2) * side, torch.rand(2) * side / 3 + 1
    if kind == 0:
        return circle(centre, extent[0], width)
    if kind == 1:
        return ellipse(centre, extent, width)
    if kind == 2:
        return rectangle(centre - extent, centre + extent, width)
    anywhere = torch.rand(13, 2) * 1.3 * side - 0.15 * side
    if kind == 3:
        return polygon(anywhere[:5], is_closed=bool(torch.rand(()) < 0.5), stroke_width=width)
    controls = torch.randint(0, 3, (int(torch.randint(2, 5, ())),))
    closed = kind == 4
    return Path(anywhere[: int((controls + 1).sum()) + (not closed)], controls, closed, width)


def random_scene(side=SIDE):
    scene = []
    for _ in range(int(torch.randint(1, 6, ()))):
        width = torch.rand(()) * 8 + 0.5
        paths = [random_path(width, side) for _ in range(int(torch.randint(1, 3, ())))]
        fill, stroke = torch.rand(4), torch.rand(4)
        kind = int(torch.randint(0, 3, ()))
        scene.append(
            Group(
                paths,
                fill=None if kind == 0 else fill,
                stroke=None if kind == 1 else stroke,
                use_even_odd_rule=bool(torch.rand(()) < 0.5),
            )
        )
    return scene


@pytest.mark.slow
def test_pictures_are_those_of_resvg():
    scenes = [random_scene() for _ in range(200)]
    drawn = compose_on(render(scenes, (SIDE, SIDE)), WHITE)
    for picture, scene in zip(drawn, scenes, strict=True):
        plain = resvg(scene, svg_path, zoom=1)[..., 0, 0]
        assert (picture - plain).abs().mean() < 2 / 255
        # Pixels are judged by 4 × 4 of resvg's, whose edges alone are off by up to a third, and
        # by strokes of single lines, for it leaves notches where a wide curve turns sharply.
        fine = resvg(scene, svg_lines, zoom=4)
        difference = (picture - fine.mean((3, 4))).abs()
        brightest = max_pool2d(fine.amax((3, 4)), 3, 1, padding=1)
        darkest = -max_pool2d(-fine.amin((3, 4)), 3, 1, padding=1)
        assert difference.mean() < 1 / 255
        # Where two edges of one shape meet in a pixel, only samples tell them apart.
        assert (difference < 0.06 + 0.3 * (brightest - darkest)).all()


def test_shapes_have_their_areas():
    centre, ink = torch.tensor([20.3, 17.8]), torch.ones(4)
    half_axes = torch.tensor([12.0, 5.0])
    for path, area in (
        (circle(centre, torch.tensor(9.0)), math.pi * 81),
        (ellipse(centre, half_axes), math.pi * 60),
        (rectangle(centre - half_axes, centre + half_axes), 240),
        (polygon(torch.tensor([[3.0, 4.0], [30.5, 4.0], [3.0, 20.0]])), 220),
    ):
        assert render([[Group([path], fill=ink)]], (40, 40))[0, 3].sum() == pytest.approx(
            area, rel=2e-3
        )
    ring = Group([circle(centre, torch.tensor(9.0), stroke_width=3.0)], stroke=ink)
    assert render([[ring]], (40, 40))[0, 3].sum() == pytest.approx(2 * math.pi * 27, rel=2e-3)


def test_fill_rules_cut_holes():
    outer = polygon(torch.tensor([[2.0, 2], [14, 2], [14, 14], [2, 14]]))
    inner = polygon(torch.tensor([[5.0, 5], [11, 5], [11, 11], [5, 11]]))
    turned = polygon(inner.points.flip(0))
    for paths, even_odd, centre in (
        ([outer, inner], False, 1),
        ([outer, inner], True, 0),
        ([outer, turned], False, 0),
    ):
        group = Group(paths, fill=torch.ones(4), use_even_odd_rule=even_odd)
        alpha = render([[group]], (16, 16))[0, 3]
        assert alpha[8, 8] == pytest.approx(centre, abs=1e-6)
        assert alpha[3, 3] == pytest.approx(1)
        assert alpha[1, 1] == 0


# ------------------------------------------------------------------------------- gradients


def check_gradients(draw, parameters):
    """Hold the gradient of a random sum of pixels against central differences."""
    weights = torch.rand_like(draw())
    gradients = torch.autograd.grad((draw() * weights).sum(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        values, gradient = parameter.data.view(-1), gradient.reshape(-1)
        assert gradient.abs().max() > 0
        for index in range(len(values)):
            numeric = 0.0
            for sign in (1, -1):
                values[index] += sign * 1e-6
                numeric += sign * float((draw().detach() * weights).sum()) / 2e-6
                values[index] -= sign * 1e-6
            assert float(gradient[index]) == pytest.approx(numeric, rel=1e-4, abs=1e-5)


def parameter(*shape, scale=1.0, least=0.0):
    return (torch.rand(*shape, dtype=torch.float64) * scale + least).requires_grad_()


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("even_odd", [False, True])
def test_gradients_of_paths(closed, even_odd):
    controls = torch.tensor([0, 1, 2, 2])
    points = parameter(2, 9 + (not closed), 2, scale=24)
    widths, fills, strokes = parameter(2, scale=4, least=0.2), parameter(2, 4), parameter(2, 4)

    def draw():
        paths = [Path(points[i], controls, closed, widths[i]) for i in range(2)]
        return render(
            [[Group([paths[i]], fills[i], strokes[i], even_odd) for i in range(2)]], (24, 24)
        )

    check_gradients(draw, [points, widths, fills, strokes])


def test_gradients_of_shapes_transforms_and_paint_functions():
    centre, radius = parameter(2, scale=4, least=8), parameter(2, scale=4, least=3)
    corner, colours = parameter(2, scale=4, least=2), parameter(2, 4)
    turn = (torch.eye(3, dtype=torch.float64) + parameter(3, 3, scale=0.2)).detach()
    turn = turn.requires_grad_()

    def shade(points):
        return torch.lerp(colours[0], colours[1], points[:, :1] / 20)

    def draw():
        return render(
            [
                [
                    Group([ellipse(centre, radius)], fill=shade, shape_to_canvas=turn),
                    Group([circle(centre, radius[0], 2.0)], stroke=shade),
                    Group([rectangle(corner, centre)], fill=colours[0], stroke=colours[1]),
                ]
            ],
            (20, 20),
        )

    check_gradients(draw, [centre, radius, corner, colours])
    # The last row of an affine map is not used.
    check_gradients(draw, [turn])


def test_gradients_of_a_batch():
    points = parameter(2, 2, 7, 2, scale=20)
    widths, strokes = parameter(2, 2, scale=3), parameter(2, 2, 4)
    check_gradients(
        lambda: render_paths(points, (20, 20), strokes=strokes, widths=widths, samples=1),
        [points, widths, strokes],
    )


# ---------------------------------------------------------------------- painting and batches


def test_later_groups_lie_on_top_and_strokes_on_fills():
    square = polygon(torch.tensor([[4.0, 4], [12, 4], [12, 12], [4, 12]]), stroke_width=4.0)
    red, green = torch.tensor([1, 0, 0, 0.5]), torch.tensor([0, 1, 0, 0.5])
    blue = torch.tensor([0.0, 0, 1, 1])
    image = render([[Group([square], fill=red), Group([square], fill=green)]], (16, 16))
    assert image[0, :, 8, 8].tolist() == pytest.approx([0.25, 0.5, 0, 0.75])
    assert straight(image)[0, :, 8, 8].tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0.75])
    assert compose_on(image, WHITE)[0, :, 8, 8].tolist() == pytest.approx([0.5, 0.75, 0.25])
    image = render([[Group([square], fill=red, stroke=blue)]], (16, 16))
    assert image[0, :, 8, 4].tolist() == pytest.approx([0, 0, 1, 1])


def test_strokes_of_one_group_count_once_where_they_cross():
    lines = [
        polygon(torch.tensor([[2.0, 8], [14, 8]]), is_closed=False, stroke_width=4.0),
        polygon(torch.tensor([[8.0, 2], [8, 14]]), is_closed=False, stroke_width=4.0),
    ]
    ink = torch.tensor([0, 0, 0, 0.5])
    assert render([[Group(lines, stroke=ink)]], (16, 16))[0, 3, 8, 8] == pytest.approx(0.5)
    apart = [Group([line], stroke=ink) for line in lines]
    assert render([apart], (16, 16))[0, 3, 8, 8] == pytest.approx(0.75)


def test_a_batch_is_its_drawings():
    scenes = [random_scene() for _ in range(5)]
    scenes.insert(2, [])
    together = render(scenes, (48, 64))
    assert together.shape == (6, 4, 48, 64)
    for scene, image in zip(scenes, together, strict=True):
        if scene:
            assert torch.allclose(render([scene], (48, 64))[0], image, atol=1e-6)
        else:
            assert not image.any()


def test_uniform_paths_are_groups():
    points, widths = torch.rand(2, 5, 10, 2) * 40, torch.rand(2, 5) * 4
    strokes, fills = torch.rand(2, 5, 4), torch.rand(2, 5, 4)
    segments = torch.randint(1, 4, (2, 5))
    image = render_paths(
        points, (40, 40), strokes=strokes, widths=widths, fills=fills, segments=segments
    )

    def group(drawing, number):
        count = int(segments[drawing, number])
        path = Path(
            points[drawing, number, : 3 * count + 1],
            torch.full((count,), 2),
            False,
            widths[drawing, number],
        )
        return Group([path], fills[drawing, number], strokes[drawing, number])

    scenes = [[group(drawing, number) for number in range(5)] for drawing in range(2)]
    assert torch.allclose(render(scenes, (40, 40)), image, atol=1e-5)

    closed = render_paths(points[:, :, :9], (40, 40), fills=fills, is_closed=True)
    path = Path(points[1, 0, :9], torch.full((3,), 2), True)
    assert torch.allclose(
        render_paths(points[1:, :1, :9], (40, 40), fills=fills[1:, :1], is_closed=True),
        render([[Group([path], fill=fills[1, 0])]], (40, 40)),
        atol=1e-6,
    )
    assert closed.shape == (2, 4, 40, 40)


def test_a_transform_moves_points_and_scales_widths():
    path = polygon(torch.tensor([[1.0, 2], [4, 3]]), is_closed=False, stroke_width=1.0)
    there = polygon(path.points * 3 + torch.tensor([2.0, 1]), is_closed=False, stroke_width=3.0)
    move = torch.tensor([[3.0, 0, 2], [0, 3, 1], [0, 0, 1]])
    ink = torch.ones(4)
    moved = render([[Group([path], stroke=ink, shape_to_canvas=move)]], (16, 16))
    assert torch.allclose(moved, render([[Group([there], stroke=ink)]], (16, 16)), atol=1e-5)


# ------------------------------------------------------------------------ degenerate input


def strokes_at(points, width=1.0):
    """Render opaque strokes; return alpha and the gradients of its sum."""
    points = points.requires_grad_()
    widths = torch.full(points.shape[:2], width, requires_grad=True)
    image = render_paths(points, (32, 32), strokes=torch.ones(*points.shape[:2], 4), widths=widths)
    gradients = torch.autograd.grad(image[:, 3].sum(), [points, widths])
    assert all(gradient.isfinite().all() for gradient in gradients)
    return image[:, 3].detach(), *gradients


def test_a_stroke_without_length_is_a_dot():
    for width in (2.0, 6.0):
        alpha, moves, growth = strokes_at(torch.full((1, 1, 4, 2), 16.0), width)
        assert alpha.sum() == pytest.approx(math.pi * width**2 / 4, rel=0.05)
        assert moves.abs().max() < 1e-3
        assert growth > 0


def test_coincident_points_do_no_harm():
    points = torch.tensor([[4.5, 16.5]] * 3 + [[20.5, 16.5]] * 4).view(1, 1, 7, 2)
    alpha, _, _ = strokes_at(points, 2.0)
    assert alpha.sum() == pytest.approx(16 * 2 + math.pi, rel=0.01)


def test_width_zero_draws_nothing_but_can_grow():
    alpha, _, growth = strokes_at(torch.rand(1, 3, 4, 2) * 32, 0.0)
    assert not alpha.any()
    assert (growth > 0).all()


def test_strokes_beside_the_canvas_draw_nothing():
    for away in (-100.0, 1000.0, 1e9):
        alpha, moves, _ = strokes_at(torch.rand(1, 3, 4, 2) * 32 + away, 4.0)
        assert not alpha.any()
        assert not moves.any()


def test_what_reaches_in_from_outside_is_drawn():
    line = polygon(torch.tensor([[-1e4, 8.0], [1e4, 8.0]]), is_closed=False, stroke_width=2.0)
    alpha = render([[Group([line], stroke=torch.ones(4))]], (16, 16))[0, 3]
    assert alpha.sum() == pytest.approx(32, rel=1e-3)
    corners = torch.tensor([[-1e6, -1e6], [8, -1e6], [8, 1e6], [-1e6, 1e6]])
    alpha = render([[Group([polygon(corners)], fill=torch.ones(4))]], (16, 16))[0, 3]
    assert torch.allclose(alpha, (torch.arange(16) < 8).float().expand(16, 16), atol=1e-4)


def test_four_thousand_strokes():
    points = (torch.rand(1, 4096, 1, 2) * 64 + torch.randn(1, 4096, 4, 2) * 4).requires_grad_()
    image = render_paths(points, (64, 64), strokes=torch.rand(1, 4096, 4))
    image.sum().backward()
    assert image.min() >= 0
    assert image.max() <= 1 + 1e-5
    assert points.grad.isfinite().all()


def test_precision_follows_the_input():
    for dtype in (torch.float32, torch.float64):
        image = render_paths(
            torch.rand(1, 1, 4, 2, dtype=dtype), (8, 8), fills=torch.rand(1, 1, 4).to(dtype)
        )
        assert image.dtype == dtype


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["points", "stroke widths", "colours"])
def test_numbers_that_went_wrong_are_named(name, bad):
    values = {
        "points": torch.rand(1, 2, 4, 2),
        "stroke widths": torch.rand(1, 2),
        "colours": torch.rand(1, 2, 4),
    }
    values[name].view(-1)[-1] = bad
    points, widths, strokes = values.values()
    with pytest.raises(ClipagError, match=name):
        render_paths(points, (8, 8), strokes=strokes, widths=widths)


def test_points_that_do_not_fit_are_counted():
    with pytest.raises(ClipagError, match=r"Path 0 has 5 points.* open, need 4"):
        path = Path(torch.rand(5, 2), torch.tensor([2]), False)
        render([[Group([path], stroke=torch.ones(4))]], (8, 8))
    with pytest.raises(ClipagError, match="num_control_points holds 3"):
        path = Path(torch.rand(5, 2), torch.tensor([3]), False)
        render([[Group([path], stroke=torch.ones(4))]], (8, 8))
    with pytest.raises(ClipagError, match="5 points a path"):
        render_paths(torch.rand(1, 1, 5, 2), (8, 8), strokes=torch.rand(1, 1, 4))
    with pytest.raises(ClipagError, match="leave segments out"):
        render_paths(torch.rand(1, 1, 6, 2), (8, 8), segments=torch.ones(1, 1), is_closed=True)
    with pytest.raises(ClipagError, match="nothing to render"):
        render([[]], (8, 8))


# ------------------------------------------------------------------------------------ cost


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return made


def test_cost_follows_what_is_covered():
    places = torch.rand(1, 1000, 1, 2) * 512 + torch.randn(1, 1000, 4, 2) * 4
    with Largest() as seen:
        render_paths(places, (512, 512), strokes=torch.rand(1, 1000, 4), samples=1)
    # Strokes of some 10 × 3 pixels in a picture of 512 × 512, not 1000 × 512 × 512.
    assert seen.elements <= 4 * 512 * 512
    with Largest() as seen:
        render_paths(places / 16, (32, 32), strokes=torch.rand(1, 1000, 4), samples=1)
    assert seen.elements < 1000 * 32 * 32 / 4


def test_cost_of_a_long_slanted_stroke_is_its_length():
    points = torch.tensor([[0.0, 0], [300, 300], [600, 600], [1000, 1000]]).view(1, 1, 4, 2)
    with Largest() as seen:
        image = render_paths(points, (1000, 1000), strokes=torch.ones(1, 1, 4), samples=1)
    assert seen.elements <= image.numel()
