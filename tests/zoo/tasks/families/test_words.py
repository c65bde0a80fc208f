"""Members of families in words."""

import re

import pytest

from zoo.tasks.families.words import NUMBER_WORDS, of_subset
from zoo.tasks.registry import get_task


def test_a_subset_is_told_by_its_classes_or_by_the_others():
    inside = [number in (3, 5, 7) for number in range(10)]
    texts = of_subset(inside)
    assert "tell 3, 5 and 7 from the other classes" in texts
    assert "is it three, five or seven?" in texts
    assert len(set(texts)) == len(texts)
    for text in texts:
        named = {int(number) for number in re.findall(r"\d", text)}
        named |= {number for number, word in enumerate(NUMBER_WORDS) if word in text.split(" ") or f"{word}," in text}
        assert named <= {3, 5, 7} or named <= {0, 1, 2, 4, 6, 8, 9}
    assert "find every 11" in of_subset([number == 11 for number in range(12)])


def test_each_run_of_a_family_has_the_words_of_its_member():
    masks = [0b1000, 0b1111]
    task = get_task("digits_subset", masks=masks)
    first, second, again = task.in_words([0, 1, 2])
    assert first == again
    assert "find every 3" in first
    assert "find every 0, 1, 2 or 3" in second


def test_a_warp_says_what_its_attributes_are():
    task = get_task("warped_images", base="digits", hidden=(4,))
    attributes = task.run_attributes([0, 1, 2, 3])
    for i, texts in enumerate(task.in_words([0, 1, 2, 3])):
        degrees = attributes["rotation"][i].rad2deg().round().int().item()
        assert f"rotated by {degrees} degrees" in texts[0]
        assert ("mirrored" in texts[0]) == bool(attributes["mirrored"][i])
        assert ("as a negative" in texts[-1]) == bool(attributes["inverted"][i])
        assert len(set(texts)) == 3


def test_families_without_words_say_so():
    with pytest.raises(ValueError, match="say what they are, describe="):
        get_task("tabular_prior").in_words([0])
