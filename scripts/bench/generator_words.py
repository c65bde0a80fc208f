"""What are whole networks worth that were generated from a description in words of a task never seen?

    python -m scripts.bench.generator_words NAME=FOLDER,FOLDER,... --zoo out/zoos/subset_examples [--record]

Each folder is the output of one `scripts.train_generator experiment=generator_words`; the folders of a name differ in
the seed alone. The tasks are those of the zoo's test runs, of which no description was trained on, and accuracy is on
their test examples; the worst task is the mean over its runs. A minute of one core.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from generator import ParameterPipeline
from generator.training.tasks import task_of
from zoo import Zoo
from zoo.tasks.families.words import NUMBER_WORDS, listed, of_subset

from ..rows import Row
from .command import bench
from .generator_subsets import accuracies
from .generator_table import PACKAGES

TYPED = (
    "I want a network that recognises {}",
    "please pick out the {}",
    "detect {} among the digits",
    "say yes to {} and no to the others",
    "can you spot {} for me",
)
UNSEEN_NEGATION = "whatever isn't {}"
NOISE = ("river", "yellow", "quickly", "seventeen", "table", "of", "singing", "because", "north", "paper")


def rows(*generators: str, zoo: str) -> Iterator[Row]:
    """Own runs, then generators.

    Args:
        generators: NAME=FOLDER,FOLDER,...
        zoo: of label subsets
    """
    subsets = Zoo.open(zoo)
    runs = subsets.split("test")
    task = task_of(subsets).for_runs(runs.tolist())
    masks = torch.from_numpy(subsets.runs["mask"][runs])
    _, which = masks.unique(return_inverse=True)
    members = ((masks[:, None] >> torch.arange(task.dataset.num_classes or 0)) & 1 == 1).tolist()

    def row(method: str, networks: Sequence[Tensor]) -> Row:
        return accuracies(str(__doc__), method, networks, task, which)

    yield row("own runs", [torch.from_numpy(subsets.params[runs][:, -1])])
    for name, folders in (argument.split("=", maxsplit=1) for argument in generators):
        pipes = [ParameterPipeline.from_pretrained(folder) for folder in folders.split(",")]
        for kind, said in descriptions(members).items():
            prompt = {"description": said}
            made = [
                pipe(prompt=prompt, num_samples=len(runs), task=task, generator=torch.Generator().manual_seed(0))
                for pipe in pipes
            ]
            yield row(f"{name}: {kind}", [one.params for one in made])


def descriptions(members: Sequence[Sequence[bool]]) -> dict[str, list[str]]:
    """What each of N tasks, given as (C,) classes that belong to it, is called, by kind of sentence."""
    rng = random.Random(0)
    numerals = [str(number) for number in range(len(NUMBER_WORDS))]
    plurals = [f"{word}es" if word == "six" else f"{word}s" for word in NUMBER_WORDS]
    said = [rng.choice(of_subset(member)) for member in members]
    return {
        "sentences as in training": said,
        "sentences as they are typed": _each(members, lambda some: rng.choice(TYPED).format(some), numerals, rng),
        "plurals never seen, 'find every threes or fives'": _each(
            members, lambda some: f"find every {some}", plurals, rng
        ),
        "a negation never seen, 'whatever isn't 3 or 5'": _each(
            [[not is_in for is_in in member] for member in members], UNSEEN_NEGATION.format, numerals, rng
        ),
        "of another task": said[len(said) // 3 :] + said[: len(said) // 3],
        "random words": [" ".join(rng.choices(NOISE, k=6)) for _ in members],
    }


def _each(
    members: Sequence[Sequence[bool]], say: Callable[[str], str], names: Sequence[str], rng: random.Random
) -> list[str]:
    """A sentence for each task, its classes in random order, joined by "or" or "and"."""
    found = []
    for member in members:
        inside = [name for name, is_in in zip(names, member, strict=True) if is_in]
        rng.shuffle(inside)
        found.append(say(listed(inside, rng.choice(("and", "or")))))
    return found


if __name__ == "__main__":
    bench("examples", rows, packages=PACKAGES, num_threads=1)
