"""Tokens that a corpus does not need are cut: texts of the others are split as before and give the same outputs."""

import json

import pytest
import torch
from text_case import text_folder

import l0prune
from l0prune.errors import ConfigError, FileFormatError
from l0prune.hf.stand_ins import directions, rows_worth_keeping
from l0prune.hf.token_files import needed_tokens, renumbered_tokenizer, vocabulary_of, with_parts
from l0prune.sources.libraries import build_hf

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = ["the film is good", "the plot is good and good", "a film"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_folder(tmp_path_factory.mktemp("voc"))


def tokenizer_of(path):
    return transformers.AutoTokenizer.from_pretrained(path)


def test_a_cut_folder_is_a_plain_one_with_the_same_outputs(folder, tmp_path):
    found = l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "cut", keep=1.0, merge=False)
    before, after = (build_hf(str(path), {}, pretrained=False).model for path in (folder, tmp_path / "cut"))
    old, new = (tokenizer_of(path) for path in (folder, tmp_path / "cut"))

    assert found.tokens == (40, after.config.vocab_size)
    assert found.tokens[1] < 15
    assert after.get_input_embeddings().weight.shape[0] == found.tokens[1]
    assert (found.coverage, found.unchanged) == (1.0, 1.0)
    assert found.n_bytes[1] < found.n_bytes[0]
    for text in CORPUS:
        assert old.tokenize(text) == new.tokenize(text)
        with torch.no_grad():
            expected, outputs = (m(**t(text, return_tensors="pt")).logits for m, t in ((before, old), (after, new)))
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    assert new.tokenize("dull") == ["[UNK]"]
    assert type(transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut")) is type(after)


def test_the_most_frequent_tokens_stay(folder, tmp_path):
    found = l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "cut", keep=9, merge=False)
    assert found.tokens[1] == 9
    left = set(tokenizer_of(tmp_path / "cut").get_vocab())
    assert {"good", "film", "is"} <= left | {"the"}
    assert "plot" not in left
    assert 0 < found.coverage < 1
    for keep in (2, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="stay in any case"):
            l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "more", keep=keep, merge=False)
    assert not (tmp_path / "more").exists()


def test_tokens_without_a_row_take_the_one_most_like_theirs(folder, tmp_path):
    found = l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "cut", keep=1.0)
    before, after = (build_hf(str(path), {}, pretrained=False).model for path in (folder, tmp_path / "cut"))
    old, new = (tokenizer_of(path) for path in (folder, tmp_path / "cut"))
    weight, smaller = (model.get_input_embeddings().weight.detach() for model in (before, after))

    assert found.tokens[1] == len(smaller) < 15
    assert (found.coverage, found.unchanged) == (1.0, 1.0)
    text = "a dull story was fine and good"
    assert new.tokenize(text) == old.tokenize(text) or len(new(text)["input_ids"]) == len(old(text)["input_ids"])
    toward = directions(weight)
    rows = {number: tuple(row) for number, row in enumerate(weight.tolist())}
    kept = {number for number, row in rows.items() if row in set(map(tuple, smaller.tolist()))}
    special = {old.convert_tokens_to_ids(token) for token in old.all_special_tokens}
    shared = sorted(kept - special)
    for number, place in zip(old(text)["input_ids"], new(text)["input_ids"], strict=True):
        nearest = shared[int((toward[shared] @ toward[number]).argmax())]
        expected = number if number in kept else nearest
        assert torch.equal(smaller[place], weight[expected])
    for text in CORPUS:
        with torch.no_grad():
            expected, outputs = (m(**t(text, return_tensors="pt")).logits for m, t in ((before, old), (after, new)))
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


def test_rows_that_a_near_one_can_stand_for_go_first():
    weight = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    weight[21] = weight[20] * 1.5 + 0.01
    counts = {20: 6, 21: 5, 30: 2, 31: 2}

    kept = rows_worth_keeping(directions(weight), counts, {0, 1}, n=5)

    assert {0, 1, 20} <= kept
    assert 21 not in kept
    assert len(kept) == 5
    assert rows_worth_keeping(directions(weight), counts, {0}, n=None, coverage=1.0) >= {20, 21, 30, 31}


def test_an_embedding_stored_in_half_is_computed_with_as_before(folder, tmp_path):
    whole = l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "whole", keep=1.0)
    half = l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "half", keep=1.0, half=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")

    assert half.n_bytes[1] < whole.n_bytes[1]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < half.max_rel_diff < 1e-2


def test_tokens_that_a_model_predicts_share_no_rows(tmp_path):
    folder = text_folder(tmp_path / "m")
    config = transformers.BertConfig.from_pretrained(folder)
    transformers.BertForMaskedLM(config).save_pretrained(folder)

    with pytest.raises(ConfigError, match="it predicts tokens, whose names would be lost"):
        l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "cut", keep=1.0, merge=True)
    assert not (tmp_path / "cut").exists()


def test_what_cannot_be_cut_is_one_line_and_leaves_nothing(folder, tmp_path):
    with pytest.raises(ConfigError, match="no tokens"):
        l0prune.hf.cut_vocabulary(folder, [], tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(FileFormatError, match="not an empty folder"):
        l0prune.hf.cut_vocabulary(folder, CORPUS, tmp_path / "full")
    assert not (tmp_path / "a").exists()


def bpe():
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    return made, trainer


def unigram():
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    return made, tokenizers.trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>", "<s>"], unk_token="<unk>")


def wordpiece():
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made, tokenizers.trainers.WordPieceTrainer(vocab_size=70, special_tokens=["[UNK]", "[CLS]"])


LEARNED = [
    "the playing players played the plays",
    "a good goodness is goodly good",
    "running runners ran and run again",
] * 5
OTHER = ["playing goodness", "runners again played", "and the goodly ran"]


@pytest.mark.parametrize("kind", [bpe, unigram, wordpiece])
def test_texts_of_tokens_that_are_left_are_split_as_before_and_others_still_are(kind):
    made, trainer = kind()
    made.train_from_iterator(LEARNED, trainer)
    content = json.loads(made.to_str())
    vocabulary = vocabulary_of(content, "tokenizer.json")
    used = {number for text in LEARNED[:2] for number in made.encode(text).ids}
    letters = set("".join(LEARNED))
    kept = sorted(with_parts(content, vocabulary, needed_tokens(content, vocabulary, letters) | used))
    smaller = tokenizers.Tokenizer.from_str(json.dumps(renumbered_tokenizer(content, kept)))

    assert len(kept) < len(vocabulary)
    assert smaller.get_vocab_size() == len(kept)
    for text in LEARNED[:2]:
        assert smaller.encode(text).tokens == made.encode(text).tokens
    for text in OTHER:
        tokens = smaller.encode(text).tokens
        assert not {"[UNK]", "<unk>"} & set(tokens)
        assert sum(len(token.strip("#\u2581\u0120")) for token in tokens) == len(text.replace(" ", ""))
