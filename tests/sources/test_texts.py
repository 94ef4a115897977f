"""Tables of texts as data: what is read, how batches are padded, what their targets are."""

import csv
import json

import numpy as np
import pytest
import torch
from text_case import WORDS, text_folder, text_table, texts

from l0prune.errors import DataError
from l0prune.sources.batches import make_batches
from l0prune.sources.datasets import load_data
from l0prune.sources.held_out import set_apart
from l0prune.sources.model_spec import load_model
from l0prune.sources.tables import read_parts
from l0prune.sources.texts import TextOptions

transformers = pytest.importorskip("transformers")

N = 24
NAMES = ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_folder(tmp_path_factory.mktemp("model"))


def read(folder, spec, **options):
    return load_data(spec, texts=TextOptions(str(folder), NAMES, **options))


def write(path, columns):
    """The same columns as csv, tsv and json lines."""
    rows = list(zip(*columns.values(), strict=True))
    with (path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *rows])
    (path / "t.tsv").write_text("\n".join("\t".join(map(str, row)) for row in [tuple(columns), *rows]) + "\n")
    (path / "t.jsonl").write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))


def tokens(data, part="train"):
    """Rows of token ids without padding."""
    rows = getattr(data, f"x_{part}")["input_ids"]
    return [rows.read(np.array([i]))[0].tolist() for i in range(len(rows))]


def test_every_kind_of_table_gives_the_same_rows(folder, tmp_path):
    write(tmp_path, {"text": texts(N), "label": [i % 3 for i in range(N)]})
    for kind in ("csv", "tsv", "jsonl"):
        data = read(folder, f"{kind}:{tmp_path}/t.{kind},{tmp_path}/t.{kind}")
        assert [len(row) for row in tokens(data)] == [len(text.split()) + 2 for text in texts(N)]
        assert data.y_train.tolist() == data.y_test.tolist() == [i % 3 for i in range(N)]


def test_plain_texts_are_lines_or_what_lies_between_marks(folder, tmp_path):
    (tmp_path / "lines.txt").write_text("a film\n\nthe plot is good\n")
    (tmp_path / "marked.txt").write_text("a film\nis dull\n<|endoftext|>\n\nthe plot\n<|endoftext|>\n")

    (tmp_path / "windows.txt").write_bytes(b"a film\r\nis dull\r\n<|endoftext|>\r\n\r\nthe plot\r\n")

    for name, lengths in (("lines", [2, 4]), ("marked", [4, 2]), ("windows", [4, 2])):
        data = read(folder, f"txt:{tmp_path}/{name}.txt,{tmp_path}/{name}.txt", as_language=True)
        assert [len(row) - 2 for row in tokens(data)] == lengths
    with pytest.raises(DataError, match="no column is called label"):
        read(folder, f"txt:{tmp_path}/lines.txt,{tmp_path}/lines.txt")


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_line_feeds_end_a_row(folder, tmp_path, inside):
    film, plot = f"a film{inside}is dull", f"the plot{inside}and the story"
    (tmp_path / "t.txt").write_bytes(f"{film}\r\n{plot}\n".encode())
    for kind, separator in (("csv", ","), ("tsv", "\t")):
        rows = [["sentence", "label"], [film, "0"], [plot, "1"]]
        (tmp_path / f"t.{kind}").write_bytes("\r\n".join(separator.join(row) for row in rows).encode())
    records = [{"sentence": film, "label": 0}, {"sentence": plot, "label": 1}]
    (tmp_path / "t.jsonl").write_bytes("\n".join(json.dumps(one, ensure_ascii=False) for one in records).encode())

    for kind in ("txt", "csv", "tsv", "jsonl"):
        table, _ = read_parts(kind, str(tmp_path / f"t.{kind}"))
        assert table.columns["text" if kind == "txt" else "sentence"] == [film, plot]


def test_a_data_set_saved_to_disk_is_read_with_the_names_of_its_classes(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        table = pa.table({"text": texts(N), "label": [i % 2 for i in range(N)]})
        with (
            pa.OSFile(str(tmp_path / part / "data-0.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        (tmp_path / part / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
        features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
        (tmp_path / part / "dataset_info.json").write_text(json.dumps({"features": features}))
    data = read(folder, f"hf-datasets:{tmp_path}")
    assert data.class_names == ("neg", "pos")
    assert len(data.y_train) == len(data.y_test) == N


def test_batches_are_what_the_tokenizer_pads_and_of_alike_lengths(folder, tmp_path):
    text_table(tmp_path / "t.tsv", N)
    data = read(folder, f"tsv:{tmp_path}/t.tsv,{tmp_path}/t.tsv")
    loaded = load_model(f"hf:{folder}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = {tuple(tokenizer(text)["input_ids"]): i % 3 for i, text in enumerate(texts(N))}
    seen = 0
    for inputs, labels in make_batches(loaded, data.x_train, data.y_train, batch_size=5, shuffle=True, seed=1):
        mask = inputs["attention_mask"]
        assert mask.sum(1).max() == mask.shape[1]
        assert mask.sum(1).max() - mask.sum(1).min() <= 1
        assert torch.equal(inputs["input_ids"] != 0, mask == 1)
        for ids, row, label in zip(inputs["input_ids"], mask, labels, strict=True):
            assert expected[tuple(ids[row == 1].tolist())] == int(label)
            seen += 1
    assert seen == N


def test_one_file_leaves_a_tenth_for_testing_and_rows_can_be_held_out(folder, tmp_path):
    text_table(tmp_path / "t.tsv", 120)
    data = read(folder, f"tsv:{tmp_path}/t.tsv")
    assert (len(data.y_train), len(data.y_test)) == (108, 12)
    assert np.bincount(data.y_test).tolist() == [4, 4, 4]
    apart = set_apart(data, "train", seed=0)
    assert len(apart.deciding.x_train["input_ids"]) + len(apart.deciding.x_test["input_ids"]) == 108


def test_names_of_classes_take_the_order_of_the_model_where_it_knows_them(folder, tmp_path):
    write(tmp_path, {"text": texts(3), "label": ["neutral", "good", "bad"]})
    spec = f"jsonl:{tmp_path}/t.jsonl,{tmp_path}/t.jsonl"
    assert read(folder, spec).class_names == ("bad", "good", "neutral")
    assert read(folder, spec, class_names=("neutral", "bad", "good")).y_train.tolist() == [0, 2, 1]


def test_pairs_are_two_inputs_or_two_segments(folder, tmp_path):
    write(tmp_path, {"sentence1": texts(6), "sentence2": texts(7)[1:], "score": [0.5 * i for i in range(6)]})
    spec = f"csv:{tmp_path}/t.csv,{tmp_path}/t.csv"
    apart = read(folder, spec, as_pairs=True)
    assert apart.x_train["input_ids"].shape[:2] == (6, 2)
    assert apart.y_train.dtype == np.float32
    joined = load_data(spec, texts=TextOptions(str(folder), (*NAMES, "token_type_ids")))
    segments = joined.x_train["token_type_ids"].read(np.array([0]))[0]
    assert segments.tolist() == [0] * (len(texts(1)[0].split()) + 2) + [1] * (len(texts(2)[1].split()) + 1)


def test_language_is_its_own_target_and_no_labels_are_zeros(folder, tmp_path):
    text_table(tmp_path / "t.tsv", 6)
    spec = f"tsv:{tmp_path}/t.tsv,{tmp_path}/t.tsv"
    data = read(folder, spec, as_language=True)
    rows = np.arange(6)
    ids, targets = data.x_train["input_ids"].read(rows), data.y_train.read(rows)
    assert np.array_equal(np.where(ids == 0, -100, ids), targets)
    assert data.labelled
    assert not read(folder, spec, labelled=False).labelled


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text\tlabel\na film\t0\nbad\n", {}, "row 3 has 1 columns"),
        (
            "words\tlabel\na film\t0\n",
            {},
            "no column is called text, sentence, sentence1 or the like; it has words, label",
        ),
        ("text\tlabel\na film\t0\n", {"label": "grade"}, "no column 'grade'"),
        ("text\nbad\n", {}, "it has text: name it with --label, or do without: --labels none, or --task language"),
        ("text\tlabel\n", {}, "has no rows"),
        ("text\ttext\na\tb\n", {}, "each once"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(folder, tmp_path, content, options, message):
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        read(folder, f"tsv:{tmp_path}/t.tsv,{tmp_path}/t.tsv", **options)


def test_tokens_that_the_model_does_not_know_are_named(folder, tmp_path):
    text_table(tmp_path / "t.tsv", 6)
    with pytest.raises(DataError, match=r"makes token \d+ \('\w+'\), and the model knows 10: .*--tokenizer"):
        read(folder, f"tsv:{tmp_path}/t.tsv,{tmp_path}/t.tsv", vocabulary=10)


def test_files_that_are_missing_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="no such file or folder: "):
        read(folder, f"tsv:{tmp_path}/gone.tsv")
    with pytest.raises(DataError, match=r"has no train\.csv"):
        read(folder, f"csv:{tmp_path}")


def test_a_new_head_is_the_same_each_time_and_the_body_is_the_one_in_the_folder(tmp_path):
    tmp = text_folder(tmp_path / "m")
    body = transformers.AutoModel.from_pretrained(tmp)
    body.save_pretrained(tmp)
    first, second = (load_model(f"hf:{tmp}", model_args={"num_labels": 5}).model for _ in range(2))
    assert type(first) is transformers.BertForSequenceClassification
    assert first.classifier.weight.shape == (5, 24)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    for name, value in body.state_dict().items():
        assert torch.equal(value, first.state_dict()[f"bert.{name}"])
    assert len(WORDS) == 13
