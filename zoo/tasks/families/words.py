"""Members of families in words, each in several ways: what a person might type who wants a network for such a task.

What is said is what tells one member from others, not what all have in common.

Legend: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

NUMBER_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_OF_SUBSETS: Final = (
    "tell {inside_and} from the other classes",
    "is it {inside_or}?",
    "{inside_and} against the rest",
    "find every {inside_or}",
    "all classes but {outside_and}",
    "everything except {outside_and}",
    "anything that is not {outside_or}",
)


def of_subset(inside: Sequence[bool]) -> list[str]:
    """A set of classes in words, classes as numerals and, where there are up to ten, spelled out.

    Args:
        inside: (C,) which classes belong to it.
    """
    spellings: list[Sequence[str]] = [[str(number) for number in range(len(inside))]]
    if len(inside) <= len(NUMBER_WORDS):
        spellings.append(NUMBER_WORDS)
    texts = []
    for names in spellings:
        parts = {
            f"{side}_{word}": listed(
                [name for name, is_in in zip(names, inside, strict=False) if is_in == wanted], word
            )
            for side, wanted in (("inside", True), ("outside", False))
            for word in ("and", "or")
        }
        texts += [template.format(**parts) for template in _OF_SUBSETS]
    return texts


def of_warp(warp: Mapping[str, float]) -> list[str]:
    """A warp of images in words, by its attributes in `WarpedImages`; all that is known first, then in other words."""
    degrees, percent = round(math.degrees(warp["rotation"])), round(100 * (warp["scale"] - 1))
    plain = [f"rotated by {degrees} degrees", f"scaled by {percent} percent", f"sheared by {warp['shear']:.1f}"]
    loose = [
        f"turned by {degrees} degrees",
        f"{abs(percent)} percent {'smaller' if percent < 0 else 'larger'}",
        f"slanted by {warp['shear']:.1f}",
    ]
    if warp["mirrored"]:
        plain, loose = [*plain, "mirrored"], [*loose, "flipped"]
    if warp["inverted"]:
        plain, loose = [*plain, "inverted"], [*loose, "as a negative"]
    return [", ".join(plain), ", ".join(reversed(plain)), listed(loose, "and")]


def listed(names: Sequence[str], word: str) -> str:
    """ "1, 2 and 3" for names 1, 2, 3 and the word "and"."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
