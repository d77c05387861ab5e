"""Weights from folders, the Hub and Zenodo: over real HTTP, and hostile until proven."""

import copy
import hashlib
import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile

import open_clip
import pytest
import torch
from hub_server import COMMIT, HubServer
from safetensors.torch import load_file, save, save_file

import clipag_plugins as clip
from clipag_plugins import architecture, download, hub, untrusted

TEXT = {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
OTHERS = {
    "quick": {**CONFIG, "quick_gelu": True},
    "mlp_ratio": {**CONFIG, "vision_cfg": {**VISION, "mlp_ratio": 4.3637}},
    "average": {**CONFIG, "vision_cfg": {**VISION, "pool_type": "avg"}},
    "custom_text": {**CONFIG, "custom_text": True},
    "resnet": {**CONFIG, "embed_dim": 64,
               "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
    "convnext": {**CONFIG, "vision_cfg": {"timm_model_name": "convnext_atto", "image_size": 64,
                                          "timm_pool": "", "timm_proj": "linear"}},
}  # fmt: skip
TOKENS = torch.randint(1, 299, (2, 77))


def published(folder, config=CONFIG):
    """An OpenCLIP repository as open_clip itself would write it, and its model."""
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    model = kind(**settings).eval()
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    full = {"model_cfg": config, "preprocess_cfg": {"mean": mean, "std": std}}
    (folder / "open_clip_config.json").write_text(json.dumps(full))
    return model


def same(ours, theirs):
    image = torch.randn(2, 3, ours.visual.native_size, ours.visual.native_size)
    assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), atol=1e-4)
    assert torch.allclose(ours.encode_text(TOKENS), theirs.encode_text(TOKENS), atol=1e-4)


@pytest.fixture
def repository(tmp_path):
    published(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def server(repository):
    with HubServer() as server:
        for path in repository.iterdir():
            server.files[f"chs20/robust/{path.name}"] = path.read_bytes()
        yield server
        server.shutdown()


@pytest.fixture
def environment(server, tmp_path):
    """What makes a process take the server for the Hub, and a fresh folder for its cache."""
    cleared = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {**cleared, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}


def pull(environment, name="chs20/robust", **more):
    command = [sys.executable, "-m", "clipag_plugins", "pull", name]
    return subprocess.run(
        command, env={**environment, **more}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def here(server, tmp_path, monkeypatch):
    """The same for this process, which has read its environment long ago."""
    from huggingface_hub import constants

    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # What is cut within a chunk is fetched again; 10 MB would be more than these files.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**14)
    monkeypatch.setattr(download, "ZENODO", server.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


# Folders


@pytest.mark.parametrize("config", [CONFIG, *OTHERS.values()], ids=["plain", *OTHERS])
def test_a_folder_there_and_back(config, tmp_path):
    theirs = published(tmp_path / "from", config)
    ours = clip.ClipagModel.from_pretrained(tmp_path / "from")
    same(ours, theirs)
    folder = ours.save_pretrained(tmp_path / "to")
    back, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    same(ours, back.eval())
    same(clip.load_model(folder / "open_clip_model.safetensors"), theirs)
    same(clip.ClipagModel.from_pretrained(folder), theirs)
    assert "library_name: open_clip" in (folder / "README.md").read_text()


def test_an_embedded_model_there_and_back(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "mini")
    back = clip.load_model(folder)
    image = torch.rand(1, 3, 224, 224)
    assert back.name == model.name
    assert torch.allclose(back.encode_image(image), model.encode_image(image), atol=1e-4)
    same(clip.load_model(folder / "model.safetensors"), back)
    # A folder may claim any name: that lends it no licence.
    assert "- licence: MIT" in (folder / "README.md").read_text()
    assert "licence" not in (back.save_pretrained(tmp_path / "b") / "README.md").read_text()
    text = clip.tokenize("a red apple")
    assert torch.allclose(back.encode_text(text), model.encode_text(text), atol=1e-6)
    # From before there were memories.
    model = copy.deepcopy(model)
    model.text.memory = None
    text_cfg = {k: v for k, v in model.config["text_cfg"].items() if k != "memory"}
    model.config = {**model.config, "text_cfg": text_cfg}
    plain = clip.load_model(model.save_pretrained(tmp_path / "plain"))
    assert torch.allclose(plain.encode_text(text), model.encode_text(text), atol=1e-6)
    # A name that other libraries have for their files too.
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(clip.ClipagError, match=r"model\.safetensors"):
        clip.load_model(folder / "model.safetensors")


def test_a_model_made_by_openais_constructor_is_saved(tmp_path):
    ours = clip.clip.model.CLIP(16, 32, 1, 64, 8, 77, 300, 64, 1, 1).eval()
    folder = ours.save_pretrained(tmp_path)
    same(ours, open_clip.create_model_from_pretrained(f"local-dir:{folder}")[0].eval())


# The Hub


@pytest.mark.slow
def test_pull_and_load(environment, server, tmp_path):
    result = pull(environment)
    assert result.returncode == 0, result.stderr
    assert "open_clip_model.safetensors" in result.stdout
    downloads = len(server.seen)
    code = "import clipag_plugins as c; print(c.load('chs20/robust', 'cpu')[0].visual.output_dim)"
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True)
    assert result.stdout.strip() == b"16", result.stderr
    assert len(server.seen) == downloads


def test_a_cut_connection_is_taken_up_again(here, repository, monkeypatch):
    here.fault = "cut"
    # Less than a chunk is not kept, and the file is smaller than the usual chunk.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    same(clip.load_model("chs20/robust"), clip.load_model(repository))
    assert any(asked and asked != "bytes=0-" for _, _, asked in here.seen)


def test_a_slow_server_and_a_revision(here, repository):
    here.fault = "slow"
    ours = clip.ClipagModel.from_pretrained("chs20/robust", COMMIT)
    same(ours, clip.load_model(repository))


@pytest.mark.slow
def test_two_processes_at_once(environment):
    command = [sys.executable, "-m", "clipag_plugins", "pull", "chs20/robust"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("fault", "says"),
    [("401", "HF_TOKEN"), ("403", "gated"), ("404", "no repository"), ("503", "answers 503")],
)
def test_errors_of_the_hub(here, fault, says, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it retries
    here.fault = fault
    with pytest.raises(clip.ClipagError, match=says):
        clip.load_model("chs20/robust")


def test_other_things_that_are_not_there(here, server):
    with pytest.raises(clip.ClipagError, match="no such revision"):
        clip.ClipagModel.from_pretrained("chs20/robust", "v9")
    with pytest.raises(clip.ClipagError, match="has no open_clip_config"):
        clip.load_model("chs20/other")
    server.files["chs20/other/config.json"] = b'{"model_type": "clip"}'
    with pytest.raises(clip.ClipagError, match="another library"):
        clip.load_model("chs20/other")
    del server.files["chs20/robust/open_clip_model.safetensors"]
    with pytest.raises(clip.ClipagError, match="has no weights"):
        clip.load_model("chs20/robust")


@pytest.mark.slow
def test_a_token_is_sent(environment, server):
    server.token = "hf_secret"
    assert pull(environment, HF_TOKEN="hf_secret").returncode == 0
    result = pull(environment, HF_TOKEN="hf_wrong", HF_HOME=environment["HF_HOME"] + "2")
    assert result.returncode == 2 and "hf_" not in result.stderr


@pytest.mark.slow
def test_no_network(environment, server):
    result = pull(environment, HF_HUB_OFFLINE="1")
    assert result.returncode == 2 and server.seen == []
    assert "open_clip_model.safetensors" in result.stderr and "clipag-mini works" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_hub_that_is_not_there(environment):
    result = pull(environment, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 2 and "cannot be reached (ConnectError)" in result.stderr
    # One sentence, and none of the client's about trying again.
    assert result.stderr.count("\n") == 1


def test_bytes_that_belie_their_checksum(here):
    here.fault = "liar"
    with pytest.raises(clip.ClipagError, match="damaged and has been removed"):
        clip.load_model("chs20/robust")
    here.fault = ""
    clip.load_model("chs20/robust")


def test_a_cache_that_changed_underneath(here, tmp_path):
    path = hub.pull("chs20/robust")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)
    with pytest.raises(clip.ClipagError, match="damaged and has been removed"):
        clip.load_model("chs20/robust")


def test_a_symlink_out_of_the_cache(here, tmp_path):
    path = hub.pull("chs20/robust")
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(clip.ClipagError, match="points out of the cache"):
        clip.load_model("chs20/robust")
    assert elsewhere.is_file()


def test_push(here, repository):
    ours = clip.load_model(repository)
    address = ours.push_to_hub("me/mine", token="hf_secret")
    assert address.endswith(COMMIT)
    names = {name.split("/")[2] for name in here.files if name.startswith("me/mine/")}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "README.md"} <= names
    assert b'from_pretrained("me/mine")' in here.files["me/mine/README.md"]
    same(clip.load_model("me/mine"), ours)
    here.fault = "400"
    with pytest.raises(clip.ClipagError, match=r"answers 400.*HF_TOKEN may write"):
        ours.push_to_hub("me/mine", token="hf_secret")


# Zenodo


@pytest.fixture
def record(here, repository):
    """The authors' record, with a small model in it."""
    buffer = io.BytesIO()
    torch.save(load_file(repository / "open_clip_model.safetensors"), buffer)
    here.files["10446026/CLIPAG_ViTB32.pt"] = buffer.getvalue()
    return here


def test_the_authors_weights(record, repository, tmp_path):
    record.fault = "cut"
    assert not hub.is_cached("ViT-B/32")
    model, _ = clip.load("ViT-B/32", device="cpu")
    assert model.name == "ViT-B/32" and hub.is_cached("ViT-B/32")
    same(model, clip.load_model(repository))
    assert any(asked and asked != "bytes=0-" for _, _, asked in record.seen)
    asked = len(record.seen)
    clip.load("ViT-B/32", device="cpu")
    assert len(record.seen) == asked
    path = tmp_path / "xdg" / "clipag" / "CLIPAG_ViTB32.pt"
    assert {entry.name for entry in path.parent.iterdir()} <= {
        path.name, f"{path.name}.sha256", f"{path.name}.lock"
    }  # fmt: skip
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(clip.ClipagError, match="is damaged"):
        clip.load("ViT-B/32", device="cpu")


def test_zenodo_resumes_what_another_process_left(record, tmp_path):
    data = record.files["10446026/CLIPAG_ViTB32.pt"]
    (tmp_path / "CLIPAG_ViTB32.pt.part").write_bytes(data[:5000])
    path = hub.pull("ViT-B/32", tmp_path)
    assert path == tmp_path / "CLIPAG_ViTB32.pt" and path.read_bytes() == data
    assert record.seen[-1][2] == "bytes=5000-"


@pytest.mark.slow
def test_zenodo_for_two_processes_at_once(record, tmp_path):
    record.fault = "slow"
    code = "from clipag_plugins import download, hub; import sys; download.ZENODO = sys.argv[1]; "
    command = [sys.executable, "-c", code + "print(hub.pull('ViT-B/32', sys.argv[2]))"]
    command += [record.address, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert outputs[0] == outputs[1] == f"{tmp_path / 'CLIPAG_ViTB32.pt'}\n".encode()
    assert sum("/files/" in path for _, path, _ in record.seen) == 1


def test_zenodo_answers_something_else(here, tmp_path):
    with pytest.raises(clip.ClipagError, match="names no file"):
        hub.pull("ViT-B/32", tmp_path)


def test_zenodo_lies_or_fails(record, tmp_path):
    record.fault = "liar"
    with pytest.raises(clip.ClipagError, match="arrived damaged"):
        hub.pull("ViT-B/32", tmp_path)
    record.fault = "500"
    with pytest.raises(clip.ClipagError, match=r"put it at .*CLIPAG_ViTB32\.pt"):
        hub.pull("ViT-B/32", tmp_path)
    assert not (tmp_path / "CLIPAG_ViTB32.pt").exists()
    data = record.files["10446026/CLIPAG_ViTB32.pt"]
    (tmp_path / "CLIPAG_ViTB32.pt").write_bytes(data)  # by hand, as the message says
    assert clip.load("ViT-B/32", device="cpu", download_root=str(tmp_path))[0].name == "ViT-B/32"


# Hostile files


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def torchscript(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", pickle.dumps(()))
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(16))


def refused(path, match="."):
    with pytest.raises(clip.ClipagError, match=match):
        clip.load_model(path)


def test_code_in_any_kind_of_file_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    payload = {"visual.proj": Hostile(mark)}
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(payload, protocol=2))
    torch.save(payload, tmp_path / "zip.pt")
    torch.save(payload, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torchscript(tmp_path / "script.pt", pickle.dumps(payload, protocol=2))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(payload))
    for path in sorted(tmp_path.glob("*.*")):
        refused(path)
    assert not mark.exists()


def test_a_zip_bomb(tmp_path):
    for name, extra in (("state.pt", "x/version"), ("script.pt", "x/constants.pkl")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", pickle.dumps({}))
            archive.writestr("x/data/0", bytes(100 * 2**20))
            archive.writestr(extra, b"3")
        refused(tmp_path / name, "many times its size")


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_configs_that_ask_too_much(repository):
    path = repository / "open_clip_config.json"
    for part, key, value, says in (
        ("vision_cfg", "width", 10**9, "impossible"),
        ("vision_cfg", "layers", 10**6, "impossible"),
        ("vision_cfg", "width", 999_936, "another architecture"),
        ("vision_cfg", "patch_size", 0, "open_clip knows"),
        ("vision_cfg", "patch_size", "8", "open_clip knows"),
        ("vision_cfg", "timm_model_name", "no/such", "open_clip knows"),
        ("vision_cfg", "timm_model_name", "hf-hub:evil/model", "elsewhere"),
        ("vision_cfg", "typo", 1, "open_clip knows"),
        ("text_cfg", "hf_tokenizer_name", "bert", "CLIP's tokens"),
        ("text_cfg", "hf_model_name", "evil/model", "transformers"),
        ("text_cfg", "vocab_size", 250_000, "CLIP's tokens"),
        ("text_cfg", "vocab_size", "x", "impossible"),
        ("text_cfg", "context_length", 32, "CLIP's tokens"),
    ):
        config = json.loads(json.dumps(CONFIG))
        config[part][key] = value
        path.write_text(json.dumps({"model_cfg": config}))
        refused(repository, says)
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3}}))
    refused(repository, "CLIP's preprocessing")
    for preprocessing in ({"mean": 5}, {"std": ["a", "b", "c"]}, [1], "x"):
        path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocessing}))
        refused(repository, "no mean and std")
    for text in ("", "[]", "{}", '{"model_cfg": 3}', "[" * 100_000, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        refused(repository)


def test_tensors_that_claim_to_be_large_cost_nothing(tmp_path):
    state = open_clip.CLIP(**CONFIG).state_dict()
    state["visual.conv1.weight"] = torch.zeros(10**9, 3, 8, 0)
    save_file(state, tmp_path / "large.safetensors")
    refused(tmp_path / "large.safetensors", "another architecture")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(64, 3, 8, 8).to_sparse(),
        torch.zeros(64, 3, 8, 8, device="meta"),
        torch.zeros(64, 3, 8, 8, dtype=torch.cfloat),
        torch.zeros(1).expand(10**6, 3, 10**3, 10**3),
        torch.full((64, 3, 8, 8), float("nan")),
        torch.zeros(64, 3, 8, 8).to(torch.float8_e4m3fn),
        torch.zeros(64, 3, 8, 9),
    ],
    ids=["sparse", "meta", "complex", "strides of 0", "nan", "float8", "wrong shape"],
)
def test_odd_tensors(tensor, tmp_path):
    torch.save({**open_clip.CLIP(**CONFIG).state_dict(), "visual.conv1.weight": tensor},
               tmp_path / "odd.pt")  # fmt: skip
    refused(tmp_path / "odd.pt")


@pytest.mark.parametrize("metadata", [3, {"": 3}, {"": {"quick_gelu": "yes"}}])
def test_odd_metadata(metadata, tmp_path):
    state = open_clip.CLIP(**CONFIG).state_dict()
    state._metadata = metadata
    torch.save(state, tmp_path / "odd.pt")
    assert clip.load_model(tmp_path / "odd.pt").visual.output_dim == 16


def test_a_missing_file_is_not_looked_for_on_the_hub(here):
    refused("folder/weights.safetensors", "no model or weights file")
    assert here.seen == []


def test_an_embedded_models_config_that_asks_too_much(model, tmp_path):
    folder = model.save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for part, key, value in (
        ("vision_cfg", "image_size", "x"),
        ("text_cfg", "width", 999_936),
        ("text_cfg", "heads", 0),
        ("text_cfg", "layers", 10**6),
        ("text_cfg", "vocab_size", "x"),
        ("text_cfg", "memory", 0),
        ("text_cfg", "memory", -1),
        ("text_cfg", "memory", "x"),
        ("text_cfg", "memory", 2.5),
        ("vision_cfg", "depths", [10**6, 1, 1]),
    ):
        changed = json.loads(json.dumps(config))
        changed["model_cfg"][part][key] = value
        (folder / "config.json").write_text(json.dumps(changed))
        refused(folder)


def mutate(data, dice):
    """Flip, cut, insert or swap something in a file."""
    data = bytearray(data)
    # Most of a file is tensors; its structure is at the ends.
    spot = dice.choice([dice.randrange(len(data)), dice.randrange(3000), -dice.randrange(1, 3000)])
    kind = dice.randrange(5)
    if kind == 0:
        data[spot] ^= 1 << dice.randrange(8)
    elif kind == 1:
        data[spot] = dice.randrange(256)
    elif kind == 2:
        del data[dice.randrange(len(data)) :]
    elif kind == 3:
        data[spot:spot] = dice.randbytes(dice.randrange(1, 20))
    else:
        del data[spot : spot + dice.randrange(1, 20)]
    return bytes(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and says so often
def test_two_thousand_mutated_files(tmp_path):
    """Each is refused with our error, or is a model with every weight finite; none crashes."""
    small = {**CONFIG, "text_cfg": {**TEXT, "vocab_size": 20}}
    model = open_clip.CLIP(**small).eval()
    state = model.state_dict()
    buffers = {name: io.BytesIO() for name in ("zip.pt", "legacy.pt", "script.pt")}
    torch.save(state, buffers["zip.pt"])
    torch.save(state, buffers["legacy.pt"], _use_new_zipfile_serialization=False)
    tokens = torch.zeros(1, 77, dtype=torch.long)
    example = {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": tokens}
    torch.jit.save(torch.jit.trace_module(model, example), buffers["script.pt"])
    files = {name: buffer.getvalue() for name, buffer in buffers.items()}
    files["tensors.safetensors"] = save(state)
    dice, loaded = random.Random(0), 0
    for i in range(2000):
        name = list(files)[i % len(files)]
        path = tmp_path / name
        path.write_bytes(mutate(files[name], dice))
        try:
            result = architecture.from_state(untrusted.read(path), str(path))
        except clip.ClipagError:
            continue
        loaded += 1
        assert all(p.isfinite().all() for p in result.parameters())
    assert 0 < loaded < 2000  # a flipped bit in a weight is still a weight


def test_no_flipped_bit_gets_past_a_known_checksum(here):
    path = hub.pull("chs20/robust")
    good, dice = path.read_bytes(), random.Random(0)
    blob = path.resolve()
    for _ in range(50):
        blob.write_bytes(mutate(good, dice))
        if hashlib.sha256(blob.read_bytes()).digest() != hashlib.sha256(good).digest():
            with pytest.raises(clip.ClipagError, match="removed"):
                hub.pull("chs20/robust")
        here.seen.clear()


# The command line


@pytest.mark.slow
def test_models(run_process, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # which has no ∞
    listed = run_process("models")
    assert listed.returncode == 0 and listed.stdout.count("embedded") == 3
    assert "10446026" in run_process("models", "ViT-B/32").stdout
    assert run_process("models", "nothing").returncode == 2


def test_convert(run, repository, tmp_path):
    torch.save(load_file(repository / "open_clip_model.safetensors"), tmp_path / "weights.pt")
    result = run("convert", "weights.pt")
    assert result.returncode == 0 and result.stdout.strip() == "weights.safetensors", result.stderr
    same(clip.load_model(tmp_path / "weights.safetensors"), clip.load_model(repository))
    (tmp_path / "weights.pt").write_bytes(b"nothing of use")
    for arguments in (["weights.pt"], ["no.pt"], ["weights.pt", "--out", "x.bin"]):
        result = run("convert", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert load_file(tmp_path / "weights.safetensors")
