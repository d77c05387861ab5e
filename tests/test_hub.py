"""Weights from folders, the Hub and Zenodo, over real HTTP; and hostile files."""

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
from fuzz.mutators import ANYWHERE, mutate
from hub_server import COMMIT, HubServer
from PIL import Image
from safetensors.torch import load_file, save_file

import clipag_plugins as clip
from clipag_plugins import download, hub

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


def assert_same(ours, theirs):
    """Compare embeddings in float64: kernels of float32 differ between processors."""
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    side = ours.visual.native_size
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), atol=1e-6)
    assert torch.allclose(ours.encode_text(TOKENS), theirs.encode_text(TOKENS), atol=1e-6)


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
    """The environment in which a process takes the server for the Hub, with an empty cache."""
    cleared = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {**cleared, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}


@pytest.fixture
def local_hub(server, tmp_path, monkeypatch):
    """The same for this process: huggingface_hub has already read its environment."""
    from huggingface_hub import constants

    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # An interrupted chunk is fetched again. The usual 10 MB are more than these files have.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**14)
    monkeypatch.setattr(download, "ZENODO", server.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


# Folders


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, *OTHERS.values()], ids=["plain", *OTHERS])
def test_a_folder_there_and_back(config, tmp_path):
    theirs = published(tmp_path / "from", config)
    ours = clip.ClipagModel.from_pretrained(tmp_path / "from")
    assert_same(ours, theirs)
    folder = ours.save_pretrained(tmp_path / "to")
    back, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    assert_same(ours, back.eval())
    assert_same(clip.load_model(folder / "open_clip_model.safetensors"), theirs)
    assert_same(clip.ClipagModel.from_pretrained(folder), theirs)
    assert "library_name: open_clip" in (folder / "README.md").read_text()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_that_of_the_config(mode, interpolation, repository, tmp_path):
    path = repository / "open_clip_config.json"
    config = json.loads(path.read_text())
    settings = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 99}
    config["preprocess_cfg"].update(settings)
    path.write_text(json.dumps(config))
    picture = Image.effect_noise((90, 40), 80).convert("RGB")
    _, theirs = open_clip.create_model_from_pretrained(f"local-dir:{repository}")
    model, ours = clip.load(repository, device="cpu")
    assert torch.equal(ours(picture), theirs(picture))
    folder = model.save_pretrained(tmp_path / "again")
    assert torch.equal(clip.load(folder, device="cpu")[1](picture), theirs(picture))


def test_an_embedded_model_there_and_back(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "mini")
    back = clip.load_model(folder)
    image = torch.rand(1, 3, 224, 224)
    assert back.name == model.name
    assert torch.allclose(back.encode_image(image), model.encode_image(image), atol=1e-4)
    assert_same(clip.load_model(folder / "model.safetensors"), back)
    # A folder may claim any name: that lends it no licence.
    assert "- licence: MIT" in (folder / "README.md").read_text()
    assert "licence" not in (back.save_pretrained(tmp_path / "b") / "README.md").read_text()
    text = clip.tokenize("a red apple")
    assert torch.allclose(back.encode_text(text), model.encode_text(text), atol=1e-6)
    # An older model, without a memory.
    model = copy.deepcopy(model)
    model.text.memory = None
    text_cfg = {k: v for k, v in model.config["text_cfg"].items() if k != "memory"}
    model.config = {**model.config, "text_cfg": text_cfg}
    plain = clip.load_model(model.save_pretrained(tmp_path / "plain"))
    assert torch.allclose(plain.encode_text(text), model.encode_text(text), atol=1e-6)
    # A name that other libraries have for their files too: the weights alone tell the model.
    (folder / "config.json").write_text('{"model_type": "clip"}')
    assert_same(clip.load_model(folder / "model.safetensors"), back)


def test_a_model_made_by_openais_constructor_is_saved(tmp_path):
    ours = clip.clip.model.CLIP(16, 32, 1, 64, 8, 77, 300, 64, 1, 1).eval()
    folder = ours.save_pretrained(tmp_path)
    assert_same(ours, open_clip.create_model_from_pretrained(f"local-dir:{folder}")[0].eval())


# The Hub


def test_pull_and_load(local_hub, run, monkeypatch):
    result = run("pull", "chs20/robust")
    assert result.returncode == 0, result.stderr
    assert "open_clip_model.safetensors" in result.stdout
    downloads = len(local_hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert clip.load("chs20/robust", "cpu")[0].visual.output_dim == 16
    assert len(local_hub.requests) == downloads


@pytest.mark.parametrize("revision", [None, COMMIT])
@pytest.mark.parametrize(
    "filename", ["open_clip_pytorch_model.bin", "open_clip_pytorch_model.safetensors"]
)
def test_weights_under_each_name_load_offline(
    local_hub, repository, filename, revision, monkeypatch
):
    buffer = io.BytesIO()
    torch.save(load_file(repository / "open_clip_model.safetensors"), buffer)
    safe = local_hub.files.pop("chs20/robust/open_clip_model.safetensors")
    data = buffer.getvalue() if filename.endswith(".bin") else safe
    local_hub.files[f"chs20/robust/{filename}"] = data
    online = clip.ClipagModel.from_pretrained("chs20/robust", revision)
    assert_same(online, clip.load_model(repository))
    downloads = len(local_hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(clip.ClipagModel.from_pretrained("chs20/robust", revision), online)
    assert len(local_hub.requests) == downloads
    with pytest.raises(clip.ClipagError, match="cannot be reached"):
        clip.load_model("chs20/other")


@pytest.mark.slow
def test_an_embedded_model_of_the_hub_loads_offline(local_hub, model, monkeypatch):
    model.push_to_hub("me/mine", token="hf_secret")
    clip.load_model("me/mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert clip.load_model("me/mine").name == model.name


def test_another_librarys_config_in_the_cache_does_not_matter(local_hub, repository):
    """Many OpenCLIP repositories have a config.json of transformers too."""
    local_hub.files["chs20/robust/config.json"] = b'{"model_type": "clip"}'
    download.hub_file("chs20/robust", "config.json")
    assert_same(clip.load_model("chs20/robust"), clip.load_model(repository))


def test_a_cut_connection_is_taken_up_again(local_hub, repository, monkeypatch):
    local_hub.fault = "cut"
    # A partial chunk is lost, and the usual chunk is larger than the file.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    assert_same(clip.load_model("chs20/robust"), clip.load_model(repository))
    assert any(asked and asked != "bytes=0-" for _, _, asked in local_hub.requests)


def test_a_slow_server_and_a_revision(local_hub, repository):
    local_hub.fault = "slow"
    ours = clip.ClipagModel.from_pretrained("chs20/robust", COMMIT)
    assert_same(ours, clip.load_model(repository))


@pytest.mark.slow
def test_two_processes_at_once(environment):
    command = [sys.executable, "-m", "clipag_plugins", "pull", "chs20/robust"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("fault", "message"),
    # huggingface_hub would retry 500 and 502 to 504 for 23 seconds before it raises the same error.
    [("401", "HF_TOKEN"), ("403", "gated"), ("404", "no repository"), ("501", "answers 501")],
)
def test_errors_of_the_hub(local_hub, fault, message):
    local_hub.fault = fault
    with pytest.raises(clip.ClipagError, match=message) as error:
        clip.load_model("chs20/robust")
    # As OpenAI's for an unknown name.
    assert isinstance(error.value, RuntimeError) == (fault in ("401", "404"))


def test_other_things_that_are_not_there(local_hub, server):
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


def test_a_token_is_sent(local_hub, run, tmp_path, monkeypatch):
    local_hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run("pull", "chs20/robust").returncode == 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    result = run("pull", "chs20/robust")
    assert result.returncode == 2 and "hf_" not in result.stderr


@pytest.mark.slow
def test_no_network(local_hub, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("pull", "chs20/robust")
    assert result.returncode == 2 and local_hub.requests == []
    assert "open_clip_model.safetensors" in result.stderr and "clipag-mini works" in result.stderr


@pytest.mark.slow
def test_a_hub_that_is_not_there(environment):
    command = [sys.executable, "-m", "clipag_plugins", "pull", "chs20/robust"]
    offline = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and "cannot be reached (ConnectError)" in result.stderr
    # One sentence, and none of the client's about retries.
    assert result.stderr.count("\n") == 1


def test_bytes_that_belie_their_checksum(local_hub):
    local_hub.fault = "liar"
    with pytest.raises(clip.ClipagError, match="damaged and has been removed"):
        clip.load_model("chs20/robust")
    local_hub.fault = ""
    clip.load_model("chs20/robust")


def test_a_cache_that_changed_underneath(local_hub, tmp_path):
    path = hub.pull("chs20/robust")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)
    with pytest.raises(clip.ClipagError, match="damaged and has been removed"):
        clip.load_model("chs20/robust")


def test_a_symlink_out_of_the_cache(local_hub, tmp_path):
    path = hub.pull("chs20/robust")
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(clip.ClipagError, match="points out of the cache"):
        clip.load_model("chs20/robust")
    assert elsewhere.is_file()


def test_push(local_hub, repository):
    ours = clip.load_model(repository)
    address = ours.push_to_hub("me/mine", token="hf_secret")
    assert address.endswith(COMMIT)
    names = {name.split("/")[2] for name in local_hub.files if name.startswith("me/mine/")}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "README.md"} <= names
    assert b'from_pretrained("me/mine")' in local_hub.files["me/mine/README.md"]
    assert_same(clip.load_model("me/mine"), ours)
    local_hub.fault = "400"
    with pytest.raises(clip.ClipagError, match=r"answers 400.*HF_TOKEN may write"):
        ours.push_to_hub("me/mine", token="hf_secret")


# Zenodo


@pytest.fixture
def record(local_hub, repository):
    """The authors' record, with a small model in it."""
    buffer = io.BytesIO()
    torch.save(load_file(repository / "open_clip_model.safetensors"), buffer)
    local_hub.files["10446026/CLIPAG_ViTB32.pt"] = buffer.getvalue()
    return local_hub


def test_the_authors_weights(record, repository, tmp_path):
    record.fault = "cut"
    assert not hub.is_cached("ViT-B/32")
    model, _ = clip.load("ViT-B/32", device="cpu")
    assert model.name == "ViT-B/32" and hub.is_cached("ViT-B/32")
    assert_same(model, clip.load_model(repository))
    assert any(asked and asked != "bytes=0-" for _, _, asked in record.requests)
    asked = len(record.requests)
    clip.load("ViT-B/32", device="cpu")
    assert len(record.requests) == asked
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
    assert record.requests[-1][2] == "bytes=5000-"


@pytest.mark.slow
def test_zenodo_for_two_processes_at_once(record, tmp_path):
    record.fault = "slow"
    code = "from clipag_plugins import download, hub; import sys; download.ZENODO = sys.argv[1]; "
    command = [sys.executable, "-c", code + "print(hub.pull('ViT-B/32', sys.argv[2]))"]
    command += [record.address, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert outputs[0] == outputs[1] == f"{tmp_path / 'CLIPAG_ViTB32.pt'}\n".encode()
    assert sum("/files/" in path for _, path, _ in record.requests) == 1


def test_zenodo_answers_something_else(local_hub, tmp_path):
    with pytest.raises(clip.ClipagError, match="lists no file"):
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
    (tmp_path / "CLIPAG_ViTB32.pt").write_bytes(data)  # by hand, as the message message
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
    for part, key, value, message in (
        ("vision_cfg", "width", 10**9, "impossible"),
        ("vision_cfg", "layers", 10**6, "impossible"),
        ("vision_cfg", "width", 999_936, "another architecture"),
        ("vision_cfg", "patch_size", 0, "impossible"),
        ("vision_cfg", "patch_size", "8", "impossible"),
        ("vision_cfg", "width", 200, "multiple of 3"),
        ("vision_cfg", "width", True, "impossible"),
        ("vision_cfg", "mlp_ratio", "4", "impossible"),
        ("text_cfg", "heads", 0, "impossible"),
        ("vision_cfg", "timm_model_name", "no/such", "open_clip knows"),
        ("vision_cfg", "timm_model_name", "hf-hub:evil/model", "another repository"),
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
        refused(repository, message)
    for part, key in (("vision_cfg", "image_size"), ("model_cfg", "embed_dim")):
        config = json.loads(json.dumps({"model_cfg": {**CONFIG, "custom_text": True}}))
        (config["model_cfg"] if part == "model_cfg" else config["model_cfg"][part])[key] = "x"
        path.write_text(json.dumps(config))
        refused(repository, f"impossible setting {key}")
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3}}))
    refused(repository, "CLIP's preprocessing")
    for preprocessing in ({"mean": 5}, {"std": ["a", "b", "c"]}, [1], "x"):
        path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocessing}))
        refused(repository, "no mean and std")
    for key, value in (
        ("resize_mode", "crop"), ("resize_mode", ["squash"]), ("interpolation", 3),
        ("fill_color", "red"), ("fill_color", 256),
    ):  # fmt: skip
        path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {key: value}}))
        refused(repository, f"impossible setting {key}")
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


def test_a_missing_file_is_not_looked_for_on_the_hub(local_hub):
    refused("folder/weights.safetensors", "no model or weights file")
    assert local_hub.requests == []


def test_an_embedded_models_config_that_asks_too_much(model, tmp_path):
    folder = model.save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for part, key, value, message in (
        ("vision_cfg", "image_size", "x", "impossible"),
        ("vision_cfg", "widths", [64, 100, 256], "3 multiples of 8"),
        ("vision_cfg", "widths", [64, 128], "3 multiples of 8"),
        ("text_cfg", "width", 999_936, "another architecture"),
        ("text_cfg", "width", 191, "multiple of 4"),
        ("text_cfg", "heads", 0, "impossible"),
        ("text_cfg", "layers", 10**6, "impossible"),
        ("text_cfg", "vocab_size", "x", "impossible"),
        ("text_cfg", "memory", 0, "another architecture"),
        ("text_cfg", "memory", -1, "impossible"),
        ("text_cfg", "memory", "x", "impossible"),
        ("text_cfg", "memory", 2.5, "impossible"),
        ("vision_cfg", "depths", [10**6, 1, 1], "impossible"),
        ("vision_cfg", "depths", [1] * 100, "impossible"),
    ):
        changed = json.loads(json.dumps(config))
        changed["model_cfg"][part][key] = value
        (folder / "config.json").write_text(json.dumps(changed))
        refused(folder, message)
    del config["model_cfg"]["text_cfg"]["heads"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "lacks the setting heads")


def test_no_flipped_bit_gets_past_a_known_checksum(local_hub):
    path = hub.pull("chs20/robust")
    good, dice = path.read_bytes(), random.Random(0)
    blob = path.resolve()
    for _ in range(50):
        blob.write_bytes(mutate(good, ANYWHERE, dice))
        if hashlib.sha256(blob.read_bytes()).digest() != hashlib.sha256(good).digest():
            with pytest.raises(clip.ClipagError, match="removed"):
                hub.pull("chs20/robust")
        local_hub.requests.clear()


# The command line


@pytest.mark.slow
def test_models(run, run_process, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # which has no ∞
    listed = run_process("models")
    assert listed.returncode == 0 and listed.stdout.count("embedded") == 5
    assert "10446026" in run("models", "ViT-B/32").stdout
    assert run("models", "nothing").returncode == 2


def test_convert(run, repository, tmp_path):
    torch.save(load_file(repository / "open_clip_model.safetensors"), tmp_path / "weights.pt")
    result = run("convert", "weights.pt")
    assert result.returncode == 0 and result.stdout.strip() == "weights.safetensors", result.stderr
    assert_same(clip.load_model(tmp_path / "weights.safetensors"), clip.load_model(repository))
    (tmp_path / "weights.pt").write_bytes(b"nothing of use")
    for arguments in (["weights.pt"], ["no.pt"], ["weights.pt", "--out", "x.bin"]):
        result = run("convert", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert load_file(tmp_path / "weights.safetensors")
