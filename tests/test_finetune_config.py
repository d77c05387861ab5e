import pytest

import clipag_plugins as clip
from clipag_plugins.finetune import config, settings


def test_the_configs_of_the_package_are_whole():
    for name in config.names().split(", "):
        config.read(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("learning_rate=1", "learning_rate is no setting"),
        ("threat.epss=1", "did you mean threat.eps"),
        ("steps=many", "steps is 'many', which is no int"),
        ("objective=tecao", "choose clipag, clipag+dreams, tecoa, fare"),
        ("threat.norm=l1", "choose linf, l2"),
        ("threat.step_size=-1", "0 or more"),
        ("clip=nan", "clip is nan"),
        ("lr=-1", "a number above 0"),
        ("betas=[0.9]", "two numbers"),
        ("data.7.path=x", "there is no 'data.7.path'"),
        ("steps", "KEY=VALUE"),
        ("batch=0", "batch is 0"),
        ("threat.eps=2/0", "threat.eps is '2/0', which is no float"),
        ("data.0.path=2024", "data.0.path is 2024, which is no str | list[str]"),
        ('data.0.path=["a", "b"]', "kind corpus takes one path"),
        ("data.0.weight=inf", "data.weight is inf"),
        ("data.0.augment=zoom", "choose crop, pose"),
        ("candidates=some", "choose batch, all"),
        ("decay=step", "choose cosine, linear"),
        ("dreams.share=0", "dreams.share is 0"),
        ("dreams.size=1", "dreams.size is no setting"),
        ("max_scale=0", "max_scale is 0"),
    ],
)
def test_a_mistaken_setting_is_one_sentence(change, words):
    with pytest.raises(clip.ClipagError) as error:
        config.read("mini", [change])
    assert words in str(error.value)


def test_a_number_may_be_a_fraction():
    assert config.read("mini", ["threat.eps=2/255"]).threat.eps == 2 / 255


def test_shares_are_not_compiled():
    with pytest.raises(clip.ClipagError, match="set one of them to false"):
        config.read("mini", ["shard=true", "compile=true"])


def test_a_batch_that_cannot_be_shared_out_is_refused():
    settings.check_processes(config.read("mini"), 2)
    for changes in (["streams=3"], ["micro_batch=20"], ["batch=100"]):
        with pytest.raises(clip.ClipagError, match="multiple"):
            settings.check_processes(config.read("mini", changes), 2)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return str(folder / "child.toml")


def test_a_config_holds_what_differs_from_its_base(tmp_path):
    path = write(
        tmp_path,
        child='base = "parent.toml"\nsteps = 7\n[threat]\neps = 0.5',
        parent='base = "mini"\nlr = 1.0\n[[data]]\nkind = "files"\npath = "x"',
    )
    child, mini = config.read(path), config.read("mini")
    assert (child.steps, child.lr, child.batch) == (7, 1.0, mini.batch)
    assert child.threat == settings.Threat(eps=0.5, attack_steps=mini.threat.attack_steps)
    assert child.data == [settings.Source("files", "x")]  # lists are replaced
    assert config.read(path, ["lr=2", "threat.eps=1"]).lr == 2


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ('base = "child.toml"', "its own base"),
        ('base = "parent"', "There is no config 'parent'"),
        ("base = 3", "base is 3"),
        ('base = "mini"\nlearning_rate = 1', "learning_rate is no setting"),
        ('base = "mini"\n[[stages]]\nsteps = 1\nlearning_rate = 1', "stages.0.learning_rate is no"),
        ('base = "mini"\n[[stages]]\nsteps = 1\nbatch = 1', "stages.0.batch is no setting"),
        ('base = "mini"\n[[stages]]\nlr = 1', "stages.0 has no steps"),
        ('base = "mini"\n[[stages]]\nsteps = "many"', "stages.0.steps is 'many'"),
        ('base = "mini"\n[[stages]]\nsteps = 1\nlr = -1', "lr is -1"),
        ('base = "mini"\nstages = [1]', "write it as a table"),
    ],
)
def test_a_mistaken_base_or_stage_is_one_sentence(child, words, tmp_path):
    with pytest.raises(clip.ClipagError) as error:
        config.read(write(tmp_path, child=child))
    assert words in str(error.value)


STAGES = """
model = "clip-mini"
lr = 1.0
decay = "linear"
[threat]
eps = 0.5
[[stages]]
steps = 4
lr_end = 0.5
warmup = 2
[[stages]]
steps = 2
lr = 0.5
threat = { eps = 2.0 }
[[data]]
kind = "files"
path = "x"
"""


def test_stages_take_from_the_run_what_they_do_not_set(tmp_path):
    path = write(tmp_path, child=STAGES)
    run = config.read(path)
    assert run.steps == 6
    assert [run.rate(step) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [run.at(step)[0].threat.eps for step in range(6)] == [0.5] * 4 + [2.0] * 2
    assert run.last.threat.attack_steps == run.threat.attack_steps
    assert run.at(100)[0] == run.last  # workers read beyond the end
    early = config.read(path, ["steps=3"])
    assert early.steps == 3 and early.rate(2) == 1.0
    other = config.read(path, ["stages.1.threat.eps=3"])
    assert other.last.threat.eps == 3 and other.identity() != run.identity()


def test_the_rate_warms_up_and_decays():
    run = settings.Config(steps=12, warmup=2, lr=1.0, lr_end=0.2)
    assert [run.rate(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert run.rate(7) == pytest.approx(0.6) and run.rate(11) == pytest.approx(0.2196, abs=1e-4)
