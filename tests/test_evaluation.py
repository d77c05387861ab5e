"""Metrics against computations by hand and against other libraries, and what `clipag eval` says."""

import json
import locale

import numpy as np
import pytest
import scipy
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import attack, base, mixture
from clipag_plugins.cli import main
from clipag_plugins.defaults import ATTACKS
from clipag_plugins.evaluation import robustness
from clipag_plugins.evaluation.folders import Picture, find_pictures, read_prompts
from clipag_plugins.evaluation.judges import (
    AESTHETIC_HEAD,
    AestheticHead,
    ClipJudge,
    guided_by,
    load_judge,
)
from clipag_plugins.evaluation.metrics import fid, inception_score, judged, preference
from clipag_plugins.evaluation.report import Report, mean
from clipag_plugins.pag import blobs, picture_alignment, picture_score
from clipag_plugins.pictures import read_square, save_png, to_pil

PROMPTS = ["a red apple", "a castle", "a dog", "a fox", "a snail", "a rocket"]


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six pictures, named in the order of their prompts, and the prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn").mkdir()
    for i, image in enumerate(noise(6, 3, 40, 40)):
        to_pil(image).save(tmp_path / "drawn" / f"{i + 8}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def test_similarity_and_r_prec_by_hand(model):
    judge = ClipJudge(model)
    images, indices = noise(5, 3, 224, 224), torch.tensor([3, 0, 2, 2, 5])
    rows = judged(judge.name, judge.embed_images(images), judge.embed_texts(PROMPTS), indices)

    right, cosines, clipscores, fifths = 0, [], [], 0
    for image, index in zip(images, indices.tolist(), strict=True):
        z = model.encode_image((image[None] - torch.tensor(base.CLIP_MEAN)[:, None, None])
                               / torch.tensor(base.CLIP_STD)[:, None, None])[0]  # fmt: skip
        logits = []
        for prompt in PROMPTS:
            t = model.encode_text(clip.tokenize([prompt]))[0]
            logits.append(float(z @ t / z.norm() / t.norm()))
        right += max(range(6), key=logits.__getitem__) == index
        fifths += index in sorted(range(6), key=logits.__getitem__)[1:]
        cosines.append(logits[index])
        clipscores.append(2.5 * max(logits[index], 0))
    by_metric = {row.metric: row for row in rows}
    assert by_metric["similarity"].value == pytest.approx(100 * np.mean(cosines), abs=1e-3)
    assert by_metric["CLIPScore"].value == pytest.approx(100 * np.mean(clipscores), abs=1e-3)
    assert by_metric["R-Prec"].value == pytest.approx(100 * right / 5)
    assert by_metric["top 5"].value == pytest.approx(100 * fifths / 5)
    for row in rows:
        assert row.low <= row.value <= row.high and row.pictures == 5


def test_the_interval_is_the_bootstraps():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    row = mean("x", "", values)
    half = 1.96 * values.std().item() / 20
    assert (row.low, row.high) == pytest.approx((row.value - half, row.value + half), abs=0.02)
    alone = mean("x", "", values[:1])
    assert alone.low is None and alone.value == pytest.approx(values[0].item())


class Features(nn.Module):
    """A small extractor of features in place of Inception: of bytes, as Inception takes them."""

    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(3 * 16, width, generator=generator) / 5

    def forward(self, images):
        assert images.dtype == torch.uint8
        return F.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1) @ self.weight


def test_fid_by_its_formula():
    ours, real, network = noise(60, 3, 32, 32), noise(70, 3, 32, 32, seed=1) ** 2, Features(8)
    distance = fid(ours.split(25), real.split(25), network)

    def moments(images):
        z = network((images * 255).round().byte()).double().numpy()
        return z.mean(0), np.cov(z, rowvar=False)

    (m, s), (n, t) = moments(ours), moments(real)
    by_hand = ((m - n) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert distance == pytest.approx(by_hand, rel=1e-3)
    with pytest.raises(clip.ClipagError, match="at least 2 pictures"):
        fid([ours[:1]], [real], network)


def test_inception_score_by_its_formula():
    images, network = noise(40, 3, 32, 32), Features(10)
    score = inception_score(images.split(16), network, splits=1)
    p = network((images * 255).round().byte()).softmax(1).double()
    divergence = (p * (p.log() - p.mean(0).log())).sum(1)
    assert score == pytest.approx(divergence.mean().exp().item(), rel=1e-4)


def test_aesthetics_by_hand_and_preference(tmp_path):
    torch.manual_seed(0)
    # As improved-aesthetic-predictor has it, with a small CLIP's width.
    layers = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 4), nn.Linear(4, 1))
    torch.save({f"layers.{k}": v for k, v in layers.state_dict().items()}, tmp_path / "head.pth")
    head = AestheticHead(tmp_path / "head.pth")
    z = F.normalize(torch.randn(7, 16), dim=1)
    torch.testing.assert_close(head.scores(z), layers.eval()(z)[:, 0].detach())
    with pytest.raises(clip.ClipagError, match="takes 16 numbers, but its CLIP gives 3"):
        head.scores(torch.ones(1, 3))
    liked = preference(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert liked.tolist() == [1.0, 0.0, 0.5]
    for content in (b"", b"no weights", b"PK\x03\x04"):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(clip.ClipagError, match=r"bad\.pth is not a complete"):
            AestheticHead(tmp_path / "bad.pth")
    for state in (
        {"a": z},
        {"weight": z},
        {"weight": torch.full((1, 4), torch.nan), "bias": z[0, :1]},
    ):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(clip.ClipagError, match="is no aesthetic predictor"):
            AestheticHead(tmp_path / "bad.pth")


def test_captions_of_coco(tmp_path):
    annotations = [{"image_id": i, "caption": f"A dog,\n{i}. "} for i in range(20)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": annotations}))
    every = read_prompts(tmp_path / "captions.json")
    assert every[3] == "A dog, 3." and len(every) == 20
    some = read_prompts(tmp_path / "captions.json", 5, seed=1)
    assert len(set(some)) == 5 and set(some) < set(every)
    assert some == read_prompts(tmp_path / "captions.json", 5, seed=1)
    with pytest.raises(clip.ClipagError, match="`count` is 21"):
        read_prompts(tmp_path / "captions.json", 21)


def test_pictures_find_their_prompts(folder):
    pictures, problems = find_pictures(folder / "drawn", PROMPTS)
    # 8, 9, 10, …: by value, not 10, 11, 12, 13, 8, 9.
    assert [picture.path.stem for picture in pictures] == ["8", "9", "10", "11", "12", "13"]
    assert [picture.prompt for picture in pictures] == [0, 1, 2, 3, 4, 5] and not problems

    for prompt, seed in (("a fox", 0), ("a castle", 3)):
        metadata = {"prompt": prompt, "model": "clipag-mini"}
        (folder / "named").mkdir(exist_ok=True)
        save_png(Image.new("RGB", (8, 8)), folder / "named" / f"{seed}.png", metadata)
    Image.new("RGB", (8, 8)).save(folder / "named" / "a-red-apple-7.jpg")
    pictures, _ = find_pictures(folder / "named", PROMPTS)
    assert [picture.prompt for picture in pictures] == [3, 1, 0]
    assert guided_by(load_judge("clip-mini"), pictures) is None
    judge = load_judge("clipag-mini")
    warning = guided_by(judge, pictures)
    assert warning.startswith("clipag-mini guided 2 of these pictures")
    metadata = {"model": "a copy by another name", "weights": judge.weights}
    assert guided_by(judge, [Picture(folder, 0, metadata)]) is not None


def test_eval_writes_resumes_and_names_what_is_missing(folder, capsys, monkeypatch):
    # The Hub must not be asked in a test.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "drawn" / "99.png").write_bytes((folder / "drawn" / "8.png").read_bytes()[:60])
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "a cat"]) + "\n")
    command = ["eval", "drawings", "drawn", "--prompts", "prompts.txt", "--judge", "clip-mini",
               "no-such-judge", "--batch", "4", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "99.png is not a picture" in err and "1 of 7 pictures were skipped" in err
    assert "no-such-judge" in err and AESTHETIC_HEAD in err
    report = json.loads((folder / "evaluation" / "drawings.json").read_text())
    rows = {row["metric"]: row for row in report["columns"]["drawn"]}
    assert set(rows) == {"similarity", "CLIPScore", "R-Prec", "top 5"}
    assert rows["R-Prec"]["pictures"] == 6
    assert out.strip() == (folder / "evaluation" / "drawings.md").read_text().strip()

    # What was computed is not computed again: only the second batch is, after it is lost.
    files = sorted((folder / "evaluation" / "embeddings").iterdir())
    assert len(files) == 2
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    assert main(command) == 0
    assert files[0].stat().st_mtime_ns == before and files[1].exists()
    assert json.loads((folder / "evaluation" / "drawings.json").read_text()) == report


@pytest.mark.slow
def test_rivals_by_aesthetics(folder, capsys):
    torch.manual_seed(0)
    torch.save(nn.Linear(384, 1).state_dict(), "head.pth")
    (folder / "rival").mkdir()
    for i, image in enumerate(noise(6, 3, 40, 40, seed=5)):
        to_pil(image).save(folder / "rival" / f"{i}.png")
    command = ["eval", "drawings", "drawn", "--against", "rival", "--prompts", "prompts.txt",
               "--judge", "clip-mini", "--aesthetic", "head.pth", "--aesthetic-model",
               "clipag-mini", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    report = json.loads((folder / "evaluation" / "drawings.json").read_text())
    ours, rivals = (
        {row["metric"]: row["value"] for row in report["columns"][name]}
        for name in ("drawn", "rival")
    )
    assert ours["preference"] + rivals["preference"] == pytest.approx(100)
    assert ours["aesthetics"] != rivals["aesthetics"]


def test_a_report_is_utf_8_in_any_locale(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        Report({"ours": []}, ["LPIPS × 100"]).write(tmp_path, "drawings")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert "LPIPS × 100" in (tmp_path / "drawings.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_table1_cuts_long_prompts(folder):
    (folder / "prompts.txt").write_text("a dog\n" + "a long " * 90 + "\n")
    small = ["--judge", "clip-mini", "--steps", "1", "--strokes", "2", "--device", "cpu"]
    assert main(["eval", "table1", "--prompts", "prompts.txt", *small]) == 0
    for label in ("clip-mini-no-aug", "clip-mini-aug", "clipag-mini-no-aug", "clipag-mini-aug"):
        assert len([*(folder / "evaluation" / label).glob("*.png")]) == 2


@pytest.mark.slow
def test_table2_goes_on_where_it_stopped(folder, capsys):
    (folder / "prompts.txt").write_text("a dog\na fox\na snail\n")
    command = ["eval", "table2", "--prompts", "prompts.txt", "--judge", "clip-mini", "--steps",
               "1", "--out", "t2", "--batch", "2", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    drawn = sorted((folder / "t2" / "clipag-mini").glob("*.png"))
    assert [Image.open(path).text["prompt"] for path in drawn] == ["a dog", "a fox", "a snail"]
    drawn[1].unlink()
    before = drawn[0].stat().st_mtime_ns
    assert main(command) == 0
    assert drawn[0].stat().st_mtime_ns == before and drawn[1].exists()
    assert main([*command, "--seed", "1"]) == 2
    assert "drawn with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("pictures", "none", "--prompts", "prompts.txt"), "There is no folder none"),
        (("pictures", "empty", "--prompts", "prompts.txt"), "There is no picture in empty"),
        (("pictures", "drawn", "--prompts", "none.txt"), "none.txt is no text file"),
        (("pictures", "drawn", "--prompts", "blank.txt"), "blank.txt has no prompt"),
        (("pictures", "drawn", "--prompts", "short.txt"), "2 prompts for the 6 pictures"),
        (("pictures", "drawn", "--prompts", "prompts.txt", "--batch", "0"), "--batch is 0"),
        (("pictures", "drawn", "--prompts", "prompts.txt", "--judge", "x"), "Nothing could be"),
        (("table1", "--prompts", "prompts.txt", "--models", "clip-mini"), "--models names 1"),
        (("pag", "drawn", "--prompts", "short.txt"), "2 prompts for the 6 pictures"),
        (("pag", "drawn", "--prompts", "prompts.txt", "--samples", "0"), "samples is 0"),
        (("pag", "one", "--prompts", "prompts.txt"), "compares texts: give at least 2"),
        (("robustness", "drawn"), "drawn holds 0 folders"),
        (("robustness", "drawn", "--template", "a photo"), "has no {}"),
        (
            (
                "table2",
                "--prompts",
                "prompts.txt",
                "--count",
                "1",
                "--models",
                "clip-mini",
                "clip-mini",
                "--steps",
                "1",
            ),
            "Two --models are called 'clip-mini'",
        ),
    ],
)
def test_bad_input(folder, arguments, word, capsys):
    (folder / "empty").mkdir()
    (folder / "one").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "one" / "1.png")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "short.txt").write_text("a cat\na dog\n")
    assert main(["eval", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_one_picture_is_judged(folder, capsys):
    for path in sorted((folder / "drawn").iterdir())[1:]:
        path.unlink()
    command = ("eval", "pictures", "drawn", "--prompts", "prompts.txt", "--judge", "clip-mini")
    assert main([*command, "--device", "cpu"]) == 0
    assert "| similarity | clip-mini | " in capsys.readouterr().out


def labelled(model, count=100):
    """Return a classifier, blobs, and the classes that the classifier gives them."""
    classifier = robustness.ZeroShot(model, PROMPTS).eval()
    start = mixture.load().sample(1, torch.Generator().manual_seed(0))[:count]
    images = mixture.enlarge(start, 48).clamp(0, 1)
    with torch.no_grad():
        return classifier, images, classifier(images).argmax(1)


@pytest.mark.slow
def test_pgd_does_as_much_as_torchattacks(model):
    torchattacks = pytest.importorskip("torchattacks", reason="`make test` installs it")
    classifier, images, labels = labelled(model, 100)
    threat = attack.Linf(4 / 255, 6, 1 / 255)
    ours = robustness.correct_under_attack(classifier, images, labels, "pgd", threat)
    theirs = torchattacks.PGD(classifier, eps=4 / 255, alpha=1 / 255, steps=6)(images, labels)
    theirs = classifier(theirs).argmax(1) == labels
    assert 5 < theirs.sum() < 95
    # One of 100 images may end on the other side of the boundary: the random starts differ.
    assert abs(ours.sum() - theirs.sum()) <= 1


@pytest.mark.slow
def test_autoattack_is_no_weaker_than_pgd(vanilla):
    classifier, images, labels = labelled(vanilla, 8)
    threat = attack.Linf(8 / 255, 1, 2 / 255)
    clean, pgd, auto = (
        robustness.correct_under_attack(classifier, images, labels, name, threat)
        for name in ATTACKS
    )
    assert clean.all()
    assert auto.sum() <= pgd.sum() < 8
    with pytest.raises(clip.ClipagError, match="at least 4 classes, and there are 2"):
        few = robustness.ZeroShot(vanilla, PROMPTS[:2])
        robustness.correct_under_attack(few, images, labels.clamp(max=1), "autoattack", threat)


def test_robustness_of_a_folder(folder, capsys):
    for name in ("a dog", "a_castle", "empty"):
        (folder / "classes" / name).mkdir(parents=True)
    for i, image in enumerate(noise(3, 3, 40, 40)):
        to_pil(image).save(folder / "classes" / ("a dog", "a_castle")[i % 2] / f"{i}.png")
    (folder / "classes" / "a dog" / "broken.png").write_bytes(b"none")
    command = ["eval", "robustness", "classes", "--attacks", "clean", "pgd", "--norm", "l2",
               "--eps", "0.5", "--steps", "2", "--size", "64", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "broken.png is not a picture" in err and "There is no picture in classes/empty" in err
    assert "| accuracy | PGD, 2 steps, l2, eps 0.5 |" in out
    report = json.loads((folder / "evaluation" / "robustness.json").read_text())
    assert [row["pictures"] for row in report["columns"]["clip-mini"]] == [3, 3]


@pytest.mark.slow
def test_gradients_are_the_better_aligned_the_more_robust_the_model(model, vanilla, held_out):
    """By real pictures: no judge takes part that could share a model's mistakes."""
    captions, pictures = held_out
    assert len(captions) == len(set(captions)) == len(pictures) == 96
    # Several starts: the mean over 96 pictures from one start is noisier than the models differ.
    starts = [blobs(96, 48, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    starts.append(pictures.roll(1, dims=0))
    plain, smoothed, robust = (
        sum(picture_alignment(m, x, captions, pictures).mean() for x in starts)
        for m in (vanilla, clip.smooth(vanilla, 0.15, 4), model)
    )
    assert 0 < plain < smoothed < robust


@pytest.mark.slow
def test_the_pag_score_of_a_folder(folder, model, vanilla, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "drawn" / "99.png").write_bytes(b"none")
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "a cat"]) + "\n")
    command = ["eval", "pag", "drawn", "--prompts", "prompts.txt", "--size", "48", "--sigma",
               "0.1", "--samples", "2", "--judge", "clip-mini", "no-such-judge"]  # fmt: skip
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "99.png is not a picture" in err and "no-such-judge" in err
    assert "clip-mini is one of the models" in err
    assert out.strip() == (folder / "evaluation" / "pag.md").read_text().strip()
    columns = json.loads((folder / "evaluation" / "pag.json").read_text())["columns"]
    assert [*columns] == ["clip-mini", "clip-mini, smoothed by 0.1", "clipag-mini"]
    pictures = torch.stack([read_square(folder / "drawn" / f"{i + 8}.png", 48) for i in range(6)])
    plain, robust = (picture_score(m, PROMPTS, pictures) for m in (vanilla, model))
    by_pictures, above, by_judge, _ = columns["clipag-mini"]
    assert by_pictures["value"] == pytest.approx(robust.mean().item(), abs=1e-4)
    assert above["value"] == pytest.approx((robust - plain).mean().item(), abs=1e-4)
    assert above["low"] < above["value"] < above["high"] and above["pictures"] == 6
    # A judge that is one of the models prefers its own gradient.
    assert by_judge["judge"] == "clip-mini"
    assert columns["clip-mini"][1]["value"] > max(0, by_judge["value"])

    assert main([*command, "--sigma", "--judge", "clip-mini"]) == 0
    columns = json.loads((folder / "evaluation" / "pag.json").read_text())["columns"]
    assert [*columns] == ["clip-mini", "clipag-mini"]


def test_alignment_with_pictures_by_hand(model, held_out):
    captions, pictures = (part[:4] for part in held_out)
    x = noise(4, 3, 48, 48)
    scores = picture_alignment(model, x, captions, pictures)
    for i, text in enumerate(captions):
        given = x[i : i + 1].clone().requires_grad_(True)
        z = F.normalize(model.encode_image(base.normalize(given)), dim=-1)
        (gradient,) = torch.autograd.grad(
            (z @ clip.text_target(model, text).embedding).sum(), given
        )
        cosines = [
            F.cosine_similarity(gradient.flatten(), (p - x[i]).flatten(), 0) for p in pictures
        ]
        others = (sum(cosines) - cosines[i]) / 3
        assert scores[i].item() == pytest.approx(100 * (cosines[i] - others).item(), abs=0.01)
