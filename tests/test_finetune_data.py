import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import COLOURS, SIDE, add, drawings, png, small_run, write_shards

import clipag_plugins as clip
from clipag_plugins.finetune import data, sources
from clipag_plugins.finetune.settings import Config, Source


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


def take(cfg, rank, processes, micro_batches, folder, state=None):
    """Return a process's samples, (caption, sum of the picture) by place, and its reader."""
    reader = data.Data(cfg, SIDE, rank, processes, folder)
    if state:
        reader.load_state_dict(state)
    samples = {}
    for number in range(micro_batches):
        images, captions = reader.take()
        for place, image, caption in zip(reader.indices(number), images, captions, strict=True):
            samples[place] = (caption, image.sum().item())
    return samples, reader


def test_the_order_does_not_depend_on_who_reads(shards, tmp_path):
    cfg = small_run(shards)
    alone, _ = take(cfg, 0, 1, 6, tmp_path)
    halves = [take(cfg, rank, 2, 3, tmp_path)[0] for rank in (0, 1)]
    assert halves[0] | halves[1] == alone
    workers, _ = take(replace(cfg, workers=2), 0, 1, 6, tmp_path)
    assert workers == alone
    assert len({v for k, v in alone.items() if k < 32}) == 32  # an epoch shows each picture once


def test_reading_goes_on_from_a_position_on_another_number_of_processes(shards, tmp_path):
    cfg = small_run(shards)
    whole, _ = take(cfg, 0, 1, 6, tmp_path)
    _, reader = take(cfg, 0, 1, 2, tmp_path)
    rest = {}
    for rank in (0, 1):
        rest |= take(cfg, rank, 2, 2, tmp_path, reader.state_dict())[0]
    assert rest == {place - 16: whole[place] for place in range(16, 48)}


def test_bad_samples_and_a_broken_shard_are_counted_logged_and_skipped(shards, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for shard in sorted(shards.glob("*.tar")):
        (folder / shard.name).write_bytes(shard.read_bytes())
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(whole[: 15_360 + 700])  # dies midway
    with tarfile.open(folder / "00001.tar", "a") as tar:
        for name, content in (("x.png", b"no picture"), ("x.txt", b"a red circle"),
                              ("y.png", png(drawings()[0][1]))):  # fmt: skip
            add(tar, name, content)
    cfg = replace(small_run(shards), data=[Source(kind="shards", path=str(folder))])
    _, reader = take(cfg, 0, 1, 8, tmp_path)
    log = (tmp_path / "skipped.tsv").read_text()
    assert reader.skipped == len(log.splitlines()) >= 3
    assert "no caption" in log and "cannot identify image" in log and "breaks off" in log


def test_what_is_held_out_passes_over_bad_samples(tmp_path):
    _, picture, caption = drawings()[0]
    captions = [caption, caption, ["a list"], caption, caption]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, words in enumerate(captions):
            content = b"no picture" if number == 1 else png(picture)
            for extension, member in (
                ("png", content),
                ("json", json.dumps({"caption": words}).encode()),
            ):
                add(tar, f"{number}.{extension}", member)
    source = Source("shards", str(tmp_path / "0.tar"))
    for count, readable in ((2, 2), (9, 3)):
        images, texts = sources.held_out(source, SIDE, count)
        assert images.shape == (readable, 3, SIDE, SIDE)
        assert texts == [caption] * readable


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_to_read_is_one_sentence(workers, tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(8):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"broken")
    source = Source(kind="classes", path=str(tmp_path))
    cfg = Config(model="clip-mini", data=[source], streams=2, micro_batch=4, workers=workers)
    with pytest.raises(
        clip.ClipagError, match=r"^Nothing in .* can be read: .*skipped.tsv says why.$"
    ):
        data.Data(cfg, SIDE, 0, 1, tmp_path).take()


def test_tables_as_excel_writes_them(tmp_path):
    table = tmp_path / "t.csv"
    source = Source("table", str(table))
    table.write_text("image,caption\na.png,a café\n", encoding="utf-8-sig")
    assert next(sources.open_source(source).read(0))[2] == "a café"
    for content in ("image,caption\na.png,a café\n".encode("latin-1"),
                    b"image,caption\na.png," + b"x" * 140_000):  # fmt: skip
        table.write_bytes(content)
        with pytest.raises(clip.ClipagError, match="cannot be read as a table"):
            sources.open_source(source)


def test_a_class_is_called_what_its_pictures_are(tmp_path):
    (tmp_path / "_big_cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "_big_cat" / "a.png")
    source = Source("classes", str(tmp_path))
    assert sources.all_captions([source]) == sources.held_out(source, 8, 1)[1] == ["big cat"]


def test_shards_are_found_at_home(shards, monkeypatch):
    monkeypatch.setenv("HOME", str(shards))
    assert len(sources.open_source(Source("shards", "~/{00000..00003}.tar"))) == 4


def test_every_layout_is_read_and_mixed_by_weight(shards, tmp_path):
    pictures = tmp_path / "pictures"
    for name, picture, caption in drawings()[:12]:
        folder = pictures / caption.split()[1]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"file {caption}")
    paths = [p.relative_to(tmp_path) for p in sorted(pictures.rglob("*.png"))]
    rows = [{"file": str(path), "words": "a table row"} for path in paths]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{p},a csv row\n" for p in paths))
    mixed = [
        Source(kind="shards", path=str(shards), weight=2.0),
        Source(kind="files", path=str(pictures)),
        Source(kind="classes", path=str(pictures)),
        Source(kind="table", path=f"{tmp_path}/t.jsonl", image="file", caption="words"),
        Source(kind="table", path=f"{tmp_path}/t.csv"),
    ]
    samples, _ = take(replace(small_run(shards), data=mixed), 0, 1, 75, tmp_path)
    texts = [caption for caption, _ in samples.values()]
    counts = [
        sum(text.startswith("file ") for text in texts),
        sum(text in COLOURS for text in texts),
        texts.count("a table row"),
        texts.count("a csv row"),
    ]
    assert all(60 < count < 140 for count in counts)  # 100 each of 600, the shards 200
    assert 150 < len(texts) - sum(counts) < 250


# ------------------------------------------------------------------ configs


def test_classes_named_by_wordnet_ids_are_refused(tmp_path):
    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    with pytest.raises(clip.ClipagError, match="WordNet ids, as n01440764"):
        sources.open_source(Source("classes", str(tmp_path)))


def test_all_captions_are_known_of_tables_and_not_of_shards(shards, tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\na.png,a pear\nb.png, a fig \nc.png,a pear\n")
    assert sources.all_captions([Source("table", f"{tmp_path}/t.csv")]) == ["a fig", "a pear"]
    with pytest.raises(clip.ClipagError, match="not known beforehand"):
        sources.all_captions([Source("shards", str(shards))])


def test_other_captions_have_another_fingerprint(tmp_path):
    prints = set()
    for caption in ("a pear", "a fig", "a pear"):
        (tmp_path / "t.csv").write_text(f"image,caption\na.png,{caption}\n")
        units = sources.open_source(Source("table", f"{tmp_path}/t.csv"))
        prints.add(sources.fingerprint([units]))
    assert len(prints) == 2


def test_a_posed_picture_moves_before_a_random_background():
    drawing = Image.new("RGBA", (64, 48))
    drawing.paste((255, 0, 0, 255), (26, 18, 38, 30))
    poses = [
        sources.decode(drawing, 32, 1.0, np.random.default_rng(seed), "pose") for seed in (0, 0, 1)
    ]
    assert torch.equal(poses[0], poses[1]) and not torch.equal(poses[0], poses[2])
    corners = set()
    for seed in range(20):
        pose = sources.decode(drawing, 32, 1.0, np.random.default_rng(seed), "pose")
        assert pose.shape == (3, 32, 32) and pose.dtype == torch.uint8
        red, green, blue = pose.float()
        assert ((red - green) + (red - blue)).max() > 200  # the drawing is in view
        corners.add(tuple(pose[:, 0, 0].tolist()))
    assert len(corners) > 10
    plain = sources.decode(drawing, 32, 1.0, None, "pose")  # held-out pictures stay as they are
    assert (plain[:, 0] == 255).all()


def test_a_stage_sets_the_side_of_its_pictures(shards, tmp_path):
    stages = [replace(small_run(shards), steps=1, side=side) for side in (0, 64)]
    reader = data.Data(replace(small_run(shards), stages=stages), SIDE, 0, 1, tmp_path)
    sides = [reader.take()[0].shape[-1] for _ in range(6)]  # two micro-batches a step
    assert sides == [SIDE, SIDE, 64, 64, 64, 64]
