"""The prompts of benchmarks/ are what their groups promise."""

import re

import pytest

from benchmarks.groups import classes_of, prompts_of
from benchmarks.judge import Head

SIZES = {"seen": 100, "imagenet": 100, "neither": 100, "sentences": 50, "choosing": 100}


@pytest.fixture(scope="module")
def captions():
    """The captions of all pictures that a guide may see in training."""
    return Head.load().known


@pytest.mark.parametrize("group", SIZES)
def test_a_group_has_different_prompts(group):
    prompts = prompts_of(group)
    assert len(prompts) == len(set(prompts)) == SIZES[group]
    assert prompts == sorted(prompts)


def test_no_prompt_is_in_two_groups():
    prompts = [prompt for group in SIZES for prompt in prompts_of(group)]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("group", ["seen", "choosing"])
def test_guides_saw_these_captions(group, captions):
    assert set(prompts_of(group)) <= set(captions)


@pytest.mark.parametrize("group", ["imagenet", "neither", "sentences"])
def test_no_caption_contains_a_held_out_prompt(group, captions):
    for prompt in prompts_of(group):
        word = re.compile(rf"\b{re.escape(prompt)}(s|es)?\b")
        assert not any(map(word.search, captions)), prompt


def test_imagenet_has_one_group_and_not_the_other():
    assert all(map(classes_of, prompts_of("imagenet")))
    assert not any(map(classes_of, prompts_of("neither")))


def test_a_name_is_a_synonym_or_ends_one():
    assert classes_of("leopard") == [288]  # not also 289, the snow leopard
    assert classes_of("chainsaw") == classes_of("chain saw") == [491]
    assert classes_of("penguin") == [145]  # king penguin
    assert classes_of("unicorn") == []
