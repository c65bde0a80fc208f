"""Sentences as vectors, and what a model reads in them."""

import json

import pytest
import torch

from generator.prompts.descriptions import DescriptionReader, RunDescriptions, embedded, embedder_of, hashed_words
from generator.prompts.prompt import Prompt


def letters(texts):
    """(N, 26): which letters a text has."""
    return torch.tensor([[float(chr(97 + i) in text) for i in range(26)] for text in texts])


def test_hashed_words_know_words_alone():
    vectors = hashed_words(["tell 3, 5 and 7 from 1", "Tell 7 from 1! 5 and 3", "tell 3, 5 and 8 from 1", "unheard of"])
    assert vectors.shape == (4, 512)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert torch.equal(vectors[0], vectors[1])
    assert 0.5 < float(vectors[0] @ vectors[2]) < 0.95
    assert abs(float(vectors[0] @ vectors[3])) < 1e-6
    with pytest.raises(ValueError, match=r"must have words, got '\?!'"):
        hashed_words(["three", "?!"])


def test_a_run_is_described_by_one_of_its_texts():
    texts = [["ab", "cd"], "xyz", ["ab", "cd"], ["q"]]
    runs = RunDescriptions.of(texts, letters)
    assert runs.vectors.shape == (3, 2, 26), "texts of the same task are read once"
    drawn = runs.draw(torch.arange(4).repeat(20), torch.Generator().manual_seed(0)).unflatten(0, (20, 4))
    for i, of_run in enumerate(texts):
        wanted = letters([of_run] if isinstance(of_run, str) else of_run)
        assert {tuple(row) for row in drawn[:, i].tolist()} == {tuple(row) for row in wanted.tolist()}
    for bad in ([[]], [""], [" "], [["a", 3]], [None], [3]):
        with pytest.raises(ValueError, match="described by a text or several"):
            RunDescriptions.of(bad, letters)


def test_what_all_sentences_share_is_taken_out():
    reader = DescriptionReader(26, 4)
    said = letters(["the cat", "the dog", "the ox"])
    nothing = torch.full((3, 26), torch.nan)
    reader.fit(said + 100)
    found = reader(torch.cat((said + 100, nothing)))
    assert found.shape == (6, 5)
    assert found[:3, -1].all()
    assert not found[3:].any()
    other = DescriptionReader(26, 4)
    other.load_state_dict(reader.state_dict() | {"mean": reader.mean - 100})
    torch.testing.assert_close(other(said), found[:3], rtol=1e-4, atol=1e-4)


def test_a_prompt_in_words_is_of_one_sentence_or_of_one_each():
    one, each = (Prompt.of({"description": said}, [], 2, embed=letters) for said in ("cat", ["cat", "dog"]))
    assert torch.equal(one.description, letters(["cat", "cat"]))
    assert torch.equal(each.description, letters(["cat", "dog"]))
    assert one.shows_task.all()
    assert not one.is_null.any()
    assert one.empty().is_null.all()
    assert torch.equal(each[torch.tensor([1])].description, letters(["dog"]))
    for bad in ("", ["cat"] * 3, 5, ["cat", 5]):
        with pytest.raises(ValueError, match="description must be a sentence, or 2"):
            Prompt.of({"description": bad}, [], 2, embed=letters)
    with pytest.raises(ValueError, match="was not trained on descriptions"):
        Prompt.of({"description": "cat"}, [], 2)


@pytest.mark.parametrize(
    "vectors", [torch.zeros(3, 4), torch.zeros(2), torch.full((2, 4), torch.nan), torch.zeros(2, 0)]
)
def test_vectors_that_are_none_are_refused(vectors):
    with pytest.raises(ValueError, match="2 texts as many vectors of finite numbers"):
        embedded(["a", "b"], lambda texts: vectors)


@pytest.mark.parametrize("embed", ["words", lambda texts: None, lambda texts: [torch.zeros(3)] * 2])
def test_what_reads_no_texts_is_refused(embed):
    with pytest.raises(ValueError, match="what reads descriptions must"):
        embedded(["a", "b"], embed)


def test_a_sentence_model_is_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "three", "five", "and"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    embed = embedder_of(str(tmp_path))
    together = embed(["three", "three and five"])
    assert together.shape == (2, 8)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(together[:1], embed(["three"]), rtol=1e-4, atol=1e-5)  # padding counts for nothing
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    with pytest.raises(ValueError, match="give a function from texts to vectors instead"):
        embedder_of(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        embedder_of(str(tmp_path / "nothing"))
    for place in ("", "/", str(tmp_path / "1_Pooling")):
        with pytest.raises(ValueError, match=f"or the folder of a sentence model, got '{place}'") as refused:
            embedder_of(place)
        assert "\n" not in str(refused.value)


def test_vectors_of_another_embedder_have_another_sketch():
    texts = ["ab", "cd", "xyz"]
    known = torch.tensor(RunDescriptions.of(texts, letters).sketch())
    nearly = RunDescriptions.of(texts, lambda some: letters(some) * (1 + 1e-5)).sketch()
    torch.testing.assert_close(torch.tensor(nearly), known, rtol=1e-3, atol=1e-3)
    for other in (lambda some: letters(some).flip(0), lambda some: letters(some).flip(1), lambda some: -letters(some)):
        assert (torch.tensor(RunDescriptions.of(texts, other).sketch()) - known).abs().max() > 0.1
