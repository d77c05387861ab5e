"""pydiffvg as scripts use it: through the shim, and held against resvg."""

import importlib
import io
import sys
import textwrap

import numpy as np
import pytest
import resvg_py
import torch
from PIL import Image

from clipag_plugins import ClipagError
from clipag_plugins.integrations import shims
from clipag_plugins.integrations.shims import redirect

SIDE = 64
INK = [0.1, 0.4, 0.8, 0.7]
GOLD = [0.9, 0.6, 0.1, 0.8]


@pytest.fixture
def pydiffvg():
    shims.install(pydiffvg="ours")
    import pydiffvg

    pydiffvg.set_use_gpu(False)
    yield pydiffvg
    shims.uninstall()


def render(pydiffvg, shapes, groups, width=SIDE, height=SIDE, background=None, canvas=None):
    canvas = canvas or (width, height)
    arguments = pydiffvg.RenderFunction.serialize_scene(*canvas, shapes, groups)
    return pydiffvg.RenderFunction.apply(width, height, 2, 2, 0, background, *arguments)


def on_white(image):
    alpha = image[..., 3:]
    return alpha * image[..., :3] + 1 - alpha


def resvg(svg, zoom=8):
    """Draw SVG on white, finely, and average. Returns (SIDE, SIDE, 3)."""
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", zoom=zoom)
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB"))
    return torch.from_numpy(pixels / 255).float().view(SIDE, zoom, SIDE, zoom, 3).mean((1, 3))


def assert_same_picture(one, other):
    difference = (one - other).abs()
    assert difference.mean() < 0.5 / 255
    assert difference.max() < 0.12  # of an edge that crosses a pixel


def svg(body, head=""):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" {head}>'
        f"{body}</svg>"
    )


# --------------------------------------------------------------------------------- the shim


@pytest.mark.slow
def test_clipdraws_loop_runs_as_it_is(tmp_path, run_process):
    """The loop of kvfrans/clipdraw's notebook, in its own words where they matter."""
    script = """
        import random
        import clip, torch, pydiffvg, ttools.modules
        from torchvision import transforms
        device = torch.device('cuda')
        model, preprocess = clip.load('ViT-B/32', device, jit=False)
        text_features = model.encode_text(clip.tokenize("a red apple").to(device)).detach()
        pydiffvg.set_print_timing(False)
        pydiffvg.set_use_gpu(torch.cuda.is_available())
        pydiffvg.set_device(device)
        augment = transforms.Compose([
            transforms.RandomPerspective(fill=1, p=1, distortion_scale=0.5),
            transforms.RandomResizedCrop(224, scale=(0.7, 0.9)),
        ])
        random.seed(0), torch.manual_seed(0)
        shapes, groups = [], []
        for i in range(24):
            segments = random.randint(1, 3)
            points = torch.rand(1, 2) + 0.1 * (torch.rand(3 * segments + 1, 2) - 0.5).cumsum(0)
            shapes.append(pydiffvg.Path(
                num_control_points=torch.zeros(segments, dtype=torch.int32) + 2,
                points=points * 224, stroke_width=torch.tensor(1.0), is_closed=False))
            groups.append(pydiffvg.ShapeGroup(
                shape_ids=torch.tensor([len(shapes) - 1]), fill_color=None,
                stroke_color=torch.rand(4)))
        for path, group in zip(shapes, groups):
            path.points.requires_grad = True
            path.stroke_width.requires_grad = True
            group.stroke_color.requires_grad = True
        optims = [torch.optim.Adam([path.points for path in shapes], lr=1.0),
                  torch.optim.Adam([path.stroke_width for path in shapes], lr=0.1),
                  torch.optim.Adam([group.stroke_color for group in groups], lr=0.01)]
        render = pydiffvg.RenderFunction.apply
        losses = []
        for t in range(3):
            for optim in optims: optim.zero_grad()
            scene_args = pydiffvg.RenderFunction.serialize_scene(224, 224, shapes, groups)
            img = render(224, 224, 2, 2, t, None, *scene_args)
            img = img[:, :, 3:4] * img[:, :, :3] + torch.ones(
                img.shape[0], img.shape[1], 3, device=pydiffvg.get_device()
            ) * (1 - img[:, :, 3:4])
            pydiffvg.imwrite(img.cpu(), f'res/iter_{t}.png', gamma=1.0)
            img = img.unsqueeze(0).permute(0, 3, 1, 2)
            torch.manual_seed(0)  # the same views, so that steps can be compared
            features = model.encode_image(torch.cat([augment(img) for _ in range(1)]))
            loss = -torch.cosine_similarity(text_features, features, dim=1).sum()
            loss.backward()
            losses.append(loss.item())
            for optim in optims: optim.step()
            for path in shapes: path.stroke_width.data.clamp_(1.0, 50)
            for group in groups: group.stroke_color.data.clamp_(0.0, 1.0)
        pydiffvg.save_svg('res/drawing.svg', 224, 224, shapes, groups)
        assert losses[-1] < losses[0], losses
    """
    (tmp_path / "loop.py").write_text(textwrap.dedent(script))
    done = run_process("run", "--device", "cpu", "--pydiffvg", "ours", "loop.py")
    assert done.returncode == 0, done.stderr
    said = "clipag: import pydiffvg gives clipag_plugins.integrations.pydiffvg.\n"
    assert done.stderr.count(said) == 1
    first, last = (Image.open(tmp_path / f"res/iter_{t}.png") for t in (0, 2))
    assert first.size == (224, 224) and first.mode == "RGB"
    assert np.array(first).tobytes() != np.array(last).tobytes()
    assert (tmp_path / "res/drawing.svg").read_text().count("<path") == 24


def test_a_real_pydiffvg_is_used_unless_asked_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "pydiffvg", raising=False)
    (tmp_path / "pydiffvg.py").write_text("Path = 'the real one'")
    monkeypatch.syspath_prepend(tmp_path)
    shims.install()
    assert importlib.import_module("pydiffvg").Path == "the real one"
    assert capsys.readouterr().err == ""
    shims.install(pydiffvg="ours")
    assert importlib.import_module("pydiffvg").Path != "the real one"
    assert "import pydiffvg gives clipag_plugins" in capsys.readouterr().err
    shims.uninstall()
    assert importlib.import_module("pydiffvg").Path == "the real one"
    with pytest.raises(ClipagError, match="`pydiffvg` is 'theirs'"):
        shims.install(pydiffvg="theirs")


def test_where_there_is_none_ours_is_given_until_uninstalled(monkeypatch):
    monkeypatch.delitem(sys.modules, "pydiffvg", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "diffvg" not in p])
    if importlib.util.find_spec("pydiffvg") is not None:
        pytest.skip("a real pydiffvg is installed")
    shims.install()
    assert importlib.import_module("pydiffvg").RenderFunction
    shims.uninstall()
    with pytest.raises(ImportError):
        importlib.import_module("pydiffvg")


# --------------------------------------------------------------------- shapes, held against SVG


def every_shape(pydiffvg, **options):
    """Name for each shape: what diffvg calls it, and what SVG does."""
    t = torch.tensor
    wave = t([[6.0, 20], [20, 2], [30, 50], [40, 30], [58, 10], [56, 40]])
    star = t([[32.0, 4], [50, 60], [4, 24], [60, 24], [14, 60]])
    corners = " ".join(f"{x},{y}" for x, y in star.tolist())
    return {
        "circle": (
            pydiffvg.Circle(radius=t(17.5), center=t([30.0, 34.0]), **options),
            '<circle r="17.5" cx="30" cy="34" {}/>',
        ),
        "ellipse": (
            pydiffvg.Ellipse(radius=t([20.0, 9.0]), center=t([30.0, 34.0]), **options),
            '<ellipse rx="20" ry="9" cx="30" cy="34" {}/>',
        ),
        "rect": (
            pydiffvg.Rect(p_min=t([8.0, 12.5]), p_max=t([50.0, 44.0]), **options),
            '<rect x="8" y="12.5" width="42" height="31.5" {}/>',
        ),
        "polygon": (
            pydiffvg.Polygon(points=star, is_closed=True, **options),
            f'<polygon points="{corners}" {{}}/>',
        ),
        "polyline": (
            pydiffvg.Polygon(points=star, is_closed=False, **options),
            f'<polyline points="{corners}" {{}}/>',
        ),
        "open path": (
            pydiffvg.Path(t([2, 1]), wave, False, **options),
            '<path d="M6 20C20 2 30 50 40 30Q58 10 56 40" {}/>',
        ),
        "closed path": (
            pydiffvg.Path(t([2, 0, 0]), wave[:5], True, **options),
            '<path d="M6 20C20 2 30 50 40 30L58 10Z" {}/>',
        ),
    }


PAINT = (
    'fill="rgb(25.5,102,204)" fill-opacity="0.7" stroke="rgb(229.5,153,25.5)" stroke-opacity="0.8" '
    'stroke-width="5" stroke-linecap="round" stroke-linejoin="round" '
)


@pytest.mark.parametrize("even_odd", [True, False])
@pytest.mark.parametrize("name", list(every_shape(importlib.import_module(redirect.OUR_PYDIFFVG))))
def test_every_shape_is_what_svg_calls_by_that_name(pydiffvg, name, even_odd):
    # diffvg's stroke_width is half of SVG's.
    shape, element = every_shape(pydiffvg, stroke_width=torch.tensor(2.5))[name]
    turn = torch.tensor([[0.8, -0.3, 12.0], [0.3, 0.8, -4.0], [0, 0, 1]])
    group = pydiffvg.ShapeGroup(
        shape_ids=torch.tensor([0]),
        fill_color=torch.tensor(INK),
        stroke_color=torch.tensor(GOLD),
        use_even_odd_rule=even_odd,
    )
    paint = PAINT + f'fill-rule="{"evenodd" if even_odd else "nonzero"}"'
    expected = resvg(svg(element.format(paint)))
    assert_same_picture(on_white(render(pydiffvg, [shape], [group])), expected)
    group.shape_to_canvas = turn
    moved = element.format(paint + ' transform="matrix(0.8 0.3 -0.3 0.8 12 -4)"')
    assert_same_picture(on_white(render(pydiffvg, [shape], [group])), resvg(svg(moved)))


def test_groups_hold_several_shapes(pydiffvg):
    shapes = [
        pydiffvg.Circle(torch.tensor(20.0), torch.tensor([32.0, 32.0])),
        pydiffvg.Circle(torch.tensor(9.0), torch.tensor([32.0, 32.0])),
    ]
    ring = pydiffvg.ShapeGroup(torch.tensor([0, 1]), torch.tensor(INK))
    image = render(pydiffvg, shapes, [ring])
    assert image[32, 32, 3] < 1e-6
    assert image[32, 18].tolist() == pytest.approx(INK)


def gradients(pydiffvg):
    offsets = torch.tensor([0.1, 0.5, 0.9])
    colors = torch.tensor([INK, GOLD, [1.0, 0, 0, 1]])
    t = torch.tensor
    return {
        "linear": pydiffvg.LinearGradient(t([10.0, 20.0]), t([50.0, 40.0]), offsets, colors),
        "radial": pydiffvg.RadialGradient(t([30.0, 30.0]), t([30.0, 20.0]), offsets, colors),
    }


@pytest.mark.parametrize("kind", ["linear", "radial"])
def test_gradients_as_paint(pydiffvg, kind):
    shape = pydiffvg.Rect(torch.tensor([4.0, 4.0]), torch.tensor([60.0, 60.0]), torch.tensor(2.0))
    group = pydiffvg.ShapeGroup(
        torch.tensor([0]), gradients(pydiffvg)[kind], stroke_color=gradients(pydiffvg)["linear"]
    )
    image = render(pydiffvg, [shape], [group])
    place = torch.tensor([[31.5, 30.5]])
    assert torch.allclose(image[30, 31], group.fill_color(place)[0], atol=1e-3)
    # Twice the size is the same picture, twice as large.
    large = render(pydiffvg, [shape], [group], 2 * SIDE, 2 * SIDE, canvas=(SIDE, SIDE))
    small = torch.nn.functional.avg_pool2d(on_white(large).permute(2, 0, 1), 2).permute(1, 2, 0)
    assert_same_picture(small, on_white(image))


# ------------------------------------------------------------------------------ SVG in and out


def many_groups(pydiffvg):
    shapes = [shape for shape, _ in every_shape(pydiffvg, stroke_width=torch.tensor(1.5)).values()]
    for shape in shapes[::2]:
        shape.stroke_width = torch.tensor(0.6)
    turn = torch.tensor([[0.5, -0.2, 20.0], [0.2, 0.5, 3.0], [0, 0, 1]])
    paints = [torch.tensor(INK), torch.tensor(GOLD), *gradients(pydiffvg).values()]
    groups = [
        pydiffvg.ShapeGroup(
            shape_ids=torch.tensor([number]),
            fill_color=None if number % 3 == 0 else paints[number % 4],
            stroke_color=None if number % 3 == 1 else paints[(number + 1) % 4],
            use_even_odd_rule=number % 2 == 0,
            shape_to_canvas=turn if number % 2 else torch.eye(3),
        )
        for number in range(len(shapes))
    ]
    # Shapes of two widths in one group, whose strokes cross and count once.
    groups.append(pydiffvg.ShapeGroup(torch.tensor([2, 3]), None, stroke_color=torch.tensor(INK)))
    return shapes, groups


def test_what_is_saved_is_what_is_rendered_and_is_read_back(pydiffvg, tmp_path):
    shapes, groups = many_groups(pydiffvg)
    drawn = on_white(render(pydiffvg, shapes, groups))
    file = tmp_path / "drawing.svg"
    pydiffvg.save_svg(file, SIDE, SIDE, shapes, groups)
    assert_same_picture(drawn, resvg(file.read_text()))
    assert [path.name for path in tmp_path.iterdir()] == ["drawing.svg"]

    # Without the last group, which SVG can only say as several.
    pydiffvg.save_svg(file, SIDE, SIDE, shapes, groups[:-1])
    width, height, *scene = pydiffvg.svg_to_scene(file)
    assert (width, height) == (SIDE, SIDE)
    again = on_white(render(pydiffvg, *scene))
    drawn = on_white(render(pydiffvg, shapes, groups[:-1]))
    assert (again - drawn).abs().max() < 1.5 / 255  # colours in SVG have 8 bits


def test_other_peoples_svg_is_read(pydiffvg, tmp_path):
    body = """
      <style>.leaf {fill: #2a7; stroke: navy; stroke-width: 1.5}</style>
      <defs>
        <linearGradient id="stops"><stop offset="0" stop-color="red"/>
          <stop offset="80%" style="stop-color:rgb(0,128,0);stop-opacity:0.5"/></linearGradient>
        <linearGradient id="box" href="#stops" x1="0" y1="0" x2="1" y2="0"/>
        <radialGradient id="disc" href="#stops" cx="25" cy="45" r="12"
          gradientUnits="userSpaceOnUse"/>
      </defs>
      <g transform="translate(3 5) scale(2)" stroke-linejoin="round">
        <circle class="leaf" cx="6" cy="6" r="5" fill-opacity="0.5"/>
        <path d="M14 2 a5 5 0 0 1 8 6 z m1 2 q 2 2 3 3" fill="url(#box)" stroke-linecap="round"
          style="stroke:#0a0a;stroke-width:1px"/>
        <rect x="2" y="14" width="9" height="6" rx="2" opacity="80%"/>
        <rect x="13" y="14" width="9" height="6" fill="none" stroke="orange"/>
        <polygon points="24,2 29 10 19,12" fill="hsl(300, 50%, 50%)" style="opacity:.8"/>
      </g>
      <circle cx="25" cy="45" r="14" fill="url(#disc)"/>
      <g id="lines" fill="none" stroke="black" stroke-linecap="round" stroke-linejoin="round">
        <line x1="40" y1="40" x2="60" y2="44"/><polyline points="40,48 50 52 60,48"/>
        <ellipse cx="50" cy="56" rx="9" ry="4"/></g>
      <use href="#lines" x="1" y="-32"/>
    """
    # In a viewBox of the same shape, the canvas counts in its units.
    for head in ("", f'viewBox="0 0 {SIDE} {SIDE}"'):
        file = tmp_path / "theirs.svg"
        file.write_text(svg(body, head))
        width, height, *scene = pydiffvg.svg_to_scene(file)
        assert (width, height) == (SIDE, SIDE)
        assert_same_picture(on_white(render(pydiffvg, *scene)), resvg(svg(body, head)))
    kinds = [type(shape).__name__ for shape in scene[0]]
    assert kinds.count("Circle") == 2 and kinds.count("Rect") == 1 and kinds.count("Ellipse") == 2
    large = svg(body, f'viewBox="0 0 {SIDE} {SIDE}"').replace('width="64"', 'width="640"', 1)
    file.write_text(large)
    assert pydiffvg.svg_to_scene(file)[0] == SIDE


@pytest.mark.parametrize(
    "offsets",
    [
        [-1.0, 0.3, 2.0],
        [0.2, 0.6, 1.7],
        [-3.0, -2.0, 0.4],
        [-3.0, -2.0, -1.0],
        [2.0, 3.0, 4.0],
        [0.8, 0.4, 0.1],
        [0.2, 0.9, 0.4],
        [0.9, 0.1, 0.5],
        [1.5, -0.5, 0.5],
        [0.5, 2.0, -0.3],
        [0.4, 0.4, 0.1],
    ],
)
def test_stops_anywhere_are_saved_as_they_are_rendered(pydiffvg, tmp_path, offsets):
    t = torch.tensor
    colors = t([[1.0, 0, 0, 1], [0, 0, 1, 0.5], [0, 1, 0, 1]])
    shape = pydiffvg.Rect(t([0.0, 0.0]), t([64.0, 64.0]))
    for paint in (
        pydiffvg.LinearGradient(t([10.0, 20.0]), t([40.0, 44.0]), t(offsets), colors),
        pydiffvg.LinearGradient(t([10.0, 20.0]), t([10.0, 20.0]), t(offsets), colors),
        pydiffvg.RadialGradient(t([30.0, 30.0]), t([20.0, 15.0]), t(offsets), colors),
    ):
        group = pydiffvg.ShapeGroup(t([0]), paint)
        image = on_white(render(pydiffvg, [shape], [group]))
        pydiffvg.save_svg(tmp_path / "drawing.svg", SIDE, SIDE, [shape], [group])
        difference = (image - resvg((tmp_path / "drawing.svg").read_text())).abs()
        # A jump between two colours may cross a pixel.
        assert difference.mean() < 1.5 / 255 and difference.amax(2).median() < 2 / 255


UNDRAWN = '<rect x="4" y="4" width="20" height="20" fill="red"/>'


def with_attribute(attribute):
    return UNDRAWN.replace("/>", f" {attribute}/>")


NAMED = with_attribute("id='r'")


@pytest.mark.parametrize(
    "body",
    [
        *(f'<{tag} id="x">{UNDRAWN}</{tag}>' for tag in (
            "mask", "symbol", "marker", "defs", "clipPath", "pattern", "linearGradient", "metadata"
        )),
        f'<g visibility="hidden">{UNDRAWN}</g>',
        f'<g style="visibility: collapse">{UNDRAWN}</g>',
        "<style>.h {visibility: hidden}</style>" + with_attribute("class='h'"),
        "<style>.h {display: none}</style>" + with_attribute("class='h'"),
        '<g display="none">' + with_attribute("display='inline'") + "</g>",
        f"<defs>{NAMED}</defs><mask><use href='#r'/></mask>",
        f'<symbol id="s">{UNDRAWN}</symbol><use href="#s" visibility="hidden"/>',
        f'<switch><g requiredExtensions="x">{UNDRAWN}</g></switch>',
    ],
)  # fmt: skip
def test_what_is_not_drawn_is_not_read(pydiffvg, tmp_path, body):
    (tmp_path / "theirs.svg").write_text(svg(body))
    _, _, shapes, groups = pydiffvg.svg_to_scene(tmp_path / "theirs.svg")
    assert (shapes, groups) == ([], [])
    assert (resvg(svg(body)) == 1).all()


@pytest.mark.parametrize(
    "body",
    [
        f'<symbol id="s">{UNDRAWN}</symbol><use href="#s" x="5"/>',
        f'<symbol id="s" style="display: none">{UNDRAWN}</symbol><use href="#s" x="5"/>',
        f'<defs><symbol id="s" viewBox="2 2 30 30">{UNDRAWN}</symbol></defs>'
        '<use href="#s" x="5" y="6" width="40" height="30" transform="translate(2 1)"/>',
        f'<symbol id="s" viewBox="0 0 30 30">{UNDRAWN}</symbol><use href="#s"/>',
        f'<defs visibility="hidden"><g id="g">{UNDRAWN}</g></defs><use href="#g" y="9"/>',
        '<mask><circle id="c" cx="20" cy="20" r="9"/></mask><use href="#c" fill="blue"/>',
        '<g visibility="hidden">' + with_attribute("visibility='visible'") + "</g>",
        f'<switch>{UNDRAWN}<rect width="60" height="60"/></switch>',
        f"<!-- {UNDRAWN} --><g><title>a square</title>{UNDRAWN}</g>",
    ],
)
def test_what_is_referred_to_is_read(pydiffvg, tmp_path, body):
    (tmp_path / "theirs.svg").write_text(svg(body))
    _, _, *scene = pydiffvg.svg_to_scene(tmp_path / "theirs.svg")
    assert_same_picture(on_white(render(pydiffvg, *scene)), resvg(svg(body)))
    assert (resvg(svg(body)) < 0.5).any()


def test_paths_from_commands(pydiffvg):
    one, other = pydiffvg.from_svg_path("M1 2L3 4Q5 6 7 8ZM0 0C1 1 2 2 3 0")
    assert one.num_control_points.tolist() == [0, 1, 0] and one.is_closed
    assert one.points.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert other.num_control_points.tolist() == [2] and not other.is_closed
    half = torch.tensor([[0.5, 0, 1], [0, 0.5, 0], [0, 0, 1]])
    (closed,) = pydiffvg.from_svg_path("M0 0C1 1 2 2 3 0", half, force_close=True)
    assert closed.num_control_points.tolist() == [2, 0] and closed.is_closed
    assert closed.points[-1].tolist() == [2.5, 0]
    (arc,) = pydiffvg.from_svg_path("M10 0A10 10 0 0 1 0 10")
    assert torch.allclose(arc.points[[0, -1]], torch.tensor([[10.0, 0], [0, 10]]), atol=1e-4)


# --------------------------------------------------------------------------------- rendering


def test_gradients_reach_everything(pydiffvg):
    def leaf(value):
        return value.double().requires_grad_()

    t = torch.tensor
    leaves = {
        "points": leaf(t([[4.0, 9], [12, 2], [15, 20], [21, 12]])),
        "stroke_width": leaf(t(1.3)),
        "stroke_color": leaf(t(GOLD)),
        "radius": leaf(t([6.0, 4.0])),
        "center": leaf(t([11.0, 13.0])),
        "fill_color": leaf(t(INK)),
        "shape_to_canvas": leaf(t([[0.9, -0.2, 3.0], [0.2, 0.8, 1.0], [0, 0, 1]])),
        "begin": leaf(t([3.0, 4.0])),
        "end": leaf(t([20.0, 16.0])),
        "offsets": leaf(t([0.1, 0.8])),
        "stop_colors": leaf(t([INK, GOLD])),
    }
    weights = torch.rand(30, 24, 4, dtype=torch.float64)

    def total():
        v = leaves
        shapes = [
            pydiffvg.Path(t([2]), v["points"], False, v["stroke_width"]),
            pydiffvg.Ellipse(v["radius"], v["center"]),
        ]
        fade = pydiffvg.LinearGradient(v["begin"], v["end"], v["offsets"], v["stop_colors"])
        groups = [
            pydiffvg.ShapeGroup(t([1]), v["fill_color"], shape_to_canvas=v["shape_to_canvas"]),
            pydiffvg.ShapeGroup(t([1]), fade),
            pydiffvg.ShapeGroup(t([0]), None, stroke_color=v["stroke_color"]),
        ]
        background = torch.full((30, 24, 4), 0.5, dtype=torch.float64)
        image = render(pydiffvg, shapes, groups, 24, 30, background, canvas=(24, 24))
        return (image * weights).sum()

    found = torch.autograd.grad(total(), list(leaves.values()))
    for (name, value), gradient in zip(leaves.items(), found, strict=True):
        assert gradient.abs().max() > 0, name
        flat = value.data.view(-1)
        for index in range(len(flat)):
            before = flat[index].item()
            numeric = 0.0
            for sign in (1, -1):
                flat[index] = before + sign * 1e-6
                numeric += sign * total().item() / 2e-6
            flat[index] = before
            assert gradient.reshape(-1)[index].item() == pytest.approx(
                numeric, rel=1e-3, abs=1e-4
            ), name


@pytest.mark.parametrize("even_odd", [True, False])
def test_edges_between_pixels_can_move(pydiffvg, even_odd):
    """As of diffvg's single_rect.py: shapes of whole numbers grow into what they are to match."""
    p_min, p_max = torch.tensor([20.0, 16.0]), torch.tensor([40.0, 40.0])
    rect = pydiffvg.Rect(p_min - 4, p_max + 4)
    group = pydiffvg.ShapeGroup(torch.tensor([0]), torch.tensor(INK), even_odd)
    target = on_white(render(pydiffvg, [rect], [group]))
    rect.p_min, rect.p_max = p_min.requires_grad_(), p_max.requires_grad_()
    adam = torch.optim.Adam([p_min, p_max], lr=0.5)
    for _ in range(40):
        adam.zero_grad()
        picture = on_white(render(pydiffvg, [rect], [group]))
        (picture - target).square().sum().backward()
        adam.step()
    assert torch.allclose(p_min, torch.tensor([16.0, 12.0]), atol=0.5)
    assert torch.allclose(p_max, torch.tensor([44.0, 44.0]), atol=0.5)


def test_alpha_is_straight_and_lies_on_a_background(pydiffvg):
    shape = pydiffvg.Rect(torch.tensor([10.5, 10.0]), torch.tensor([30.0, 30.0]))
    group = pydiffvg.ShapeGroup(torch.tensor([0]), torch.tensor(INK))
    image = render(pydiffvg, [shape], [group])
    assert image[20, 20].tolist() == pytest.approx(INK)
    assert image[20, 10].tolist() == pytest.approx([*INK[:3], INK[3] / 2], abs=1e-4)  # half covered
    assert image[20, 40].tolist() == [0, 0, 0, 0]
    behind = torch.tensor([1.0, 0.5, 0.0, 1.0]).expand(SIDE, SIDE, 4)
    image = render(pydiffvg, [shape], [group], background=behind)
    mixed = INK[3] * torch.tensor(INK) + (1 - INK[3]) * behind[0, 0]
    assert torch.allclose(image[20, 20, :3], mixed[:3])
    assert torch.equal(image[20, 40], behind[20, 40]) and (image[..., 3] == 1).all()


def test_a_scene_holds_the_tensors_of_its_making(pydiffvg):
    circle = pydiffvg.Circle(torch.tensor(9.0), torch.tensor([32.0, 32.0]))
    group = pydiffvg.ShapeGroup(torch.tensor([0]), torch.tensor(INK))
    scene = pydiffvg.RenderFunction.serialize_scene(SIDE, SIDE, [circle], [group])
    circle.radius = torch.tensor(20.0)  # another tensor: not seen
    group.fill_color[3] = 1.0  # the same one: seen
    image = pydiffvg.RenderFunction.apply(SIDE, SIDE, 2, 2, 0, None, *scene)
    assert image[32, 32, 3] == 1 and image[32, 48, 3] == 0
    # One scene can be rendered, and its gradient taken, again and again.
    circle.center.requires_grad = True
    for _ in range(2):
        pydiffvg.RenderFunction.apply(SIDE, SIDE, 2, 2, 0, None, *scene).square().sum().backward()


def test_timing_is_printed_on_demand(pydiffvg, capsys):
    circle = pydiffvg.Circle(torch.tensor(9.0), torch.tensor([32.0, 32.0]))
    group = pydiffvg.ShapeGroup(torch.tensor([0]), torch.tensor(INK))
    render(pydiffvg, [circle], [group])
    assert capsys.readouterr().out == ""
    pydiffvg.set_print_timing(True)
    render(pydiffvg, [circle], [group])
    pydiffvg.set_print_timing(False)
    assert capsys.readouterr().out.startswith("Forward pass, time: ")


def test_devices(pydiffvg):
    assert pydiffvg.get_device() == torch.device("cpu") and not pydiffvg.get_use_gpu()
    pydiffvg.set_device("cuda:0")
    assert pydiffvg.get_device() == torch.device("cuda:0") and pydiffvg.get_use_gpu()
    pydiffvg.set_use_gpu(False)
    assert pydiffvg.get_device() == torch.device("cpu")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_pictures_are_written(pydiffvg, tmp_path, shape):
    file = tmp_path / "new" / "folder" / "picture.png"
    picture = torch.rand(shape)
    pydiffvg.imwrite(picture, str(file), gamma=1.0)
    pixels = np.array(Image.open(file)) / 255
    assert np.abs(pixels.reshape(shape) - picture.numpy()).max() <= 0.51 / 255
    pydiffvg.imwrite(picture.numpy() * 9 - 3, str(file), gamma=2.2, normalize=True)
    pixels = np.array(Image.open(file))
    assert pixels.shape == shape[:2] + (() if shape[2:] in ((), (1,)) else shape[2:])
    assert (pixels.min(), pixels.max()) == (0, 255)


# --------------------------------------------------------------------------------- bad input


def test_bad_input_is_named(pydiffvg, tmp_path):
    t = torch.tensor
    circle = pydiffvg.Circle(t(9.0), t([32.0, 32.0]))
    group = pydiffvg.ShapeGroup(t([0]), t(INK))

    def fails(sentence, shapes=(circle,), groups=(group,), background=None, **options):
        with pytest.raises(ClipagError, match=sentence):
            scene = pydiffvg.RenderFunction.serialize_scene(SIDE, SIDE, shapes, groups, **options)
            pydiffvg.RenderFunction.apply(SIDE, SIDE, 2, 2, 0, background, *scene)

    fails("Group 0 names shape 3, but there are 1", groups=[pydiffvg.ShapeGroup(t([3]), t(INK))])
    fails("fill_color of group 0 has shape", groups=[pydiffvg.ShapeGroup(t([0]), t(INK[:3]))])
    fails("Shape 0 is a str", shapes=["circle"])
    wide = pydiffvg.Circle(t(9.0), t([32.0, 32.0]), torch.ones(7))
    fails("Shape 0 has 7 stroke widths", shapes=[wide])
    fails("points of the drawing hold NaN", shapes=[pydiffvg.Circle(t(torch.nan), circle.center)])
    short = pydiffvg.Path(t([2]), torch.rand(3, 2), False)
    fails("Path 0 has 3 points", shapes=[short])
    fails(r"background_image has shape \(64, 64, 3\)", background=torch.ones(SIDE, SIDE, 3))
    fails("Distance fields", output_type=pydiffvg.OutputType.sdf)
    fails("eval_positions", eval_positions=torch.rand(3, 2))
    hann = pydiffvg.PixelFilter(pydiffvg.FilterType.hann, t(1.5))
    fails("pixel filter hann of radius 1.5", filter=hann)

    file = tmp_path / "drawing.svg"
    with pytest.raises(ClipagError, match="use_gamma"):
        pydiffvg.save_svg(file, SIDE, SIDE, [circle], [group], use_gamma=True)
    with pytest.raises(ClipagError, match="need 4"):
        pydiffvg.save_svg(file, SIDE, SIDE, [short], [group])
    with pytest.raises(ClipagError, match="NaN"):
        bad = pydiffvg.Circle(t(torch.nan), circle.center)
        pydiffvg.save_svg(file, SIDE, SIDE, [bad], [group])
    assert not file.exists()
    file.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="100%"/>')
    with pytest.raises(ClipagError, match="has no size"):
        pydiffvg.svg_to_scene(file)
    for text in ("no XML", "<html/>"):
        file.write_text(text)
        with pytest.raises(ClipagError, match="is not SVG"):
            pydiffvg.svg_to_scene(file)


def test_what_is_missing_says_how_to_get_it(pydiffvg, monkeypatch):
    monkeypatch.setitem(sys.modules, "svgelements", None)
    with pytest.raises(ClipagError, match=r"pip install .clipag-plugins\[svg\]"):
        pydiffvg.from_svg_path("M0 0L1 1")
    if importlib.util.find_spec("ttools").origin is None:
        import ttools.modules

        with pytest.raises(ClipagError, match="pip install torch-tools"):
            ttools.modules.LPIPS()
