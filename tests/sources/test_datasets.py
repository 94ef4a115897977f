import gzip
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from l0prune.errors import DataError
from l0prune.sources.batches import ImageBatches
from l0prune.sources.datasets import DataSource, load_data
from l0prune.sources.image_folders import ImageFiles
from l0prune.sources.preprocessing import Preprocessing
from l0prune.tasks.provided.classification import Classification


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def arrays(n_train=6, n_test=3, shape=(4, 5, 3)):
    """Four arrays as an npz file holds them."""
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.arange(n_train) % 3,
        "x_test": random.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.arange(n_test) % 3,
    }


def message(spec, **options):
    with pytest.raises(DataError) as caught:
        load_data(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rejected(**changes):
    with pytest.raises(DataError) as caught:
        DataSource(**{**arrays(), **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits_are_bundled():
    data = load_data("digits")

    assert data.x_train.shape == (1437, 8, 8)
    assert data.x_test.shape == (360, 8, 8)
    assert Classification().n_classes(data) == 10
    assert data.has_images
    assert data.x_train.max() == 255
    assert set(data.y_test) == set(range(10))


def test_no_digit_is_in_both_parts():
    data = load_data("digits")

    train = {image.tobytes() for image in data.x_train}
    assert not any(image.tobytes() in train for image in data.x_test)


def test_an_npz_file_comes_back_as_it_was(tmp_path):
    given = arrays()
    np.savez(tmp_path / "d.npz", **given, other=np.zeros(3))

    data = load_data(f"npz:{tmp_path}/d.npz")

    for name, array in given.items():
        assert np.array_equal(getattr(data, name), array)
    assert data.y_train.dtype == np.int64
    assert Classification().n_classes(data) == 3
    assert data.name == f"npz:{tmp_path}/d.npz"


def test_an_npz_file_may_state_the_number_of_classes(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(), n_classes=7)

    assert load_data(f"npz:{tmp_path}/d.npz").n_classes == 7


def test_what_is_wrong_with_an_npz_file_is_said(tmp_path):
    given = arrays()
    np.savez(tmp_path / "short.npz", **{name: given[name] for name in ("x_train", "y_train")}, y=given["y_test"])
    np.save(tmp_path / "single.npy", given["x_train"])
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    (tmp_path / "junk.npz").write_bytes(b"junk" * 20)
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "whole.npz", **given)
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:400])

    assert "no x_test, y_test; found x_train, y_train, y" in message(f"npz:{tmp_path}/short.npz")
    assert "single array" in message(f"npz:{tmp_path}/single.npz")
    for name in ("junk", "empty", "half"):
        assert "damaged or is not an npz" in message(f"npz:{tmp_path}/{name}.npz")
    assert "no such file" in message(f"npz:{tmp_path}/none.npz")
    assert "path after the colon" in message("npz:")


def test_pickled_arrays_are_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    np.savez(tmp_path / "d.npz", **{**arrays(), "y_train": np.array([Bomb(trap)] * 6, dtype=object)})

    assert "refused" in message(f"npz:{tmp_path}/d.npz")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x_train": np.zeros((0, 4, 5, 3), np.uint8), "y_train": np.zeros(0, int)}, "x_train is empty"),
        ({"x_test": np.zeros((0, 4, 5, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"y_train": np.zeros(5, int)}, "x_train has 6 entries, y_train has 5"),
        ({"y_train": np.zeros(6)}, "y_train and y_test differ in type, or in shape beyond the first dimension"),
        ({"y_train": np.zeros((6, 2), int)}, "int64 (2,) and int64 ()"),
        ({"x_train": np.zeros((6, 4), np.uint8)}, "(N, H, W)"),
        ({"x_train": np.zeros((6, 3, 4, 5), np.uint8)}, "transpose it"),
        ({"x_train": np.zeros((6, 4, 5, 3), np.float32)}, "differ in type, or in shape beyond the first dimension"),
        ({"x_test": np.zeros((3, 8, 8, 3), np.uint8)}, "uint8 (4, 5, 3) and uint8 (8, 8, 3)"),
        ({"x_train": np.array(["a"] * 6)}, "type <U1"),
        ({"x_train": [1, 2, 3]}, "is a list"),
        ({"x_train": np.full((6, 4), np.nan)}, "24 of 24 values that are NaN"),
    ],
)
def test_what_is_wrong_with_arrays_is_said(changes, reason):
    assert reason in rejected(**changes)


def test_features_and_tokens_are_data_too():
    features = DataSource(np.zeros((4, 7)), np.zeros(4, np.int8), np.zeros((2, 7)), np.ones(2, np.int8))
    tokens = {"input_ids": np.zeros((4, 7), np.int32), "attention_mask": np.ones((4, 7), np.int32)}
    text = DataSource(tokens, np.zeros(4), tokens, np.zeros(4))

    assert features.x_train.dtype == np.float32
    assert Classification().n_classes(features) == 2
    assert not features.has_images
    assert text.x_train["input_ids"].dtype == np.int64
    assert text.n_classes is None
    with pytest.raises(DataError, match="differ in length"):
        DataSource({**tokens, "input_ids": np.zeros((3, 7), np.int32)}, np.zeros(4), tokens, np.zeros(4))


def write_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_files_are_read(tmp_path, end):
    given = arrays(shape=(28, 28))
    for part, prefix in (("train", "train"), ("test", "t10k")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{end}", given[f"x_{part}"])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{end}", given[f"y_{part}"].astype(np.uint8))

    data = load_data(f"mnist:{tmp_path}")

    assert np.array_equal(data.x_train, given["x_train"])
    assert np.array_equal(data.y_test, given["y_test"])
    labels = tmp_path / f"t10k-labels-idx1-ubyte{end}"
    labels.write_bytes(labels.read_bytes()[:-2])
    assert "damaged" in message(f"mnist:{tmp_path}")
    labels.write_bytes(b"\x1f\x8bxx" if end else b"GIF89a")
    assert str(labels) in message(f"mnist:{tmp_path}")
    labels.unlink()
    assert "t10k-labels-idx1-ubyte" in message(f"mnist:{tmp_path}")
    assert "no such folder" in message(f"mnist:{tmp_path}/none")


def write_cifar(folder, *, protocol=2, labels=None):
    """Five training batches and a test batch of two images each; their pixels, (12, 3072)."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        batch = {b"data": pixels[2 * i : 2 * i + 2], b"labels": labels or [i, 9], b"filenames": [b"a.png", b"b.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return pixels


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_batches_are_read_without_running_a_pickle(tmp_path, protocol):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = write_cifar(folder, protocol=protocol)

    data = load_data(f"cifar10:{tmp_path}")

    assert data.x_train.shape == (10, 32, 32, 3)
    assert np.array_equal(data.x_test[1].transpose(2, 0, 1).reshape(-1), pixels[11])
    assert data.y_train.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert data.n_classes == 10


def test_cifar_batches_of_python_2_are_read(tmp_path):
    write_cifar(tmp_path)
    # What Python 2 wrote: a str of bytes under the old module name of numpy.
    old = b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
    old += b"K\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    old += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + b"\x07" * 3072
    old += b"tbU\x06labels]K\x04au."
    (tmp_path / "test_batch").write_bytes(old)

    data = load_data(f"cifar10:{tmp_path}")

    assert data.x_test.shape == (1, 32, 32, 3)
    assert (data.x_test == 7).all()
    assert data.y_test.tolist() == [4]


def test_what_is_wrong_with_cifar_batches_is_said(tmp_path):
    trap = tmp_path / "trap"
    write_cifar(tmp_path)
    batch = tmp_path / "data_batch_3"
    content = batch.read_bytes()

    batch.write_bytes(pickle.dumps({b"data": Bomb(trap)}))
    assert "refused" in message(f"cifar10:{tmp_path}")
    assert not trap.exists()
    batch.write_bytes(content[:500])
    assert "damaged" in message(f"cifar10:{tmp_path}")
    batch.write_bytes(pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}))
    assert "uint8 (2, 3071), expected uint8 (N, 3072)" in message(f"cifar10:{tmp_path}")
    batch.unlink()
    assert "data_batch_3" in message(f"cifar10:{tmp_path}")


def write_images(folder, counts, *, size=(6, 4), mode="RGB"):
    image = pytest.importorskip("PIL.Image")
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image.new(mode, size, 10 * i if mode == "L" else (10 * i, 0, 0)).save(folder / name / f"{i:02}.png")


def test_a_folder_without_parts_is_split_the_same_way_each_time(tmp_path):
    write_images(tmp_path, {"cat": 10, "ant": 5})

    data, again = load_data(f"folder:{tmp_path}"), load_data(f"folder:{tmp_path}")

    assert data.x_train.shape == (12, 4, 6, 3)
    assert data.y_test.tolist() == [0, 1, 1]
    assert data.x_test[:, 0, 0, 0].tolist() == [40, 40, 90]
    assert np.array_equal(data.x_test, again.x_test)


def test_a_folder_with_parts_keeps_them(tmp_path):
    write_images(tmp_path / "train", {"a": 3, "b": 2}, mode="L")
    write_images(tmp_path / "val", {"a": 1, "b": 1}, mode="L")

    data = load_data(f"folder:{tmp_path}")

    assert data.x_train.shape == (5, 4, 6)
    assert data.y_test.tolist() == [0, 1]


def test_pictures_of_several_sizes_need_one(tmp_path):
    write_images(tmp_path, {"a": 5})
    write_images(tmp_path / "b", {"deeper": 5}, size=(9, 7))

    assert "--image-size" in message(f"folder:{tmp_path}")
    assert load_data(f"folder:{tmp_path}", image_size=(8, 8)).x_train.shape == (8, 8, 8, 3)


def test_a_large_folder_is_read_batch_by_batch_and_gives_the_same_images(tmp_path, monkeypatch):
    write_images(tmp_path, {"train/a": 3, "train/b": 2, "test/a": 1, "test/b": 1}, size=(9, 7))
    whole = load_data(f"folder:{tmp_path}", image_size=(8, 8))
    monkeypatch.setattr("l0prune.sources.image_folders.IN_MEMORY", 3 * 64 * 4)  # the training data are more than this
    streamed = load_data(f"folder:{tmp_path}", image_size=(8, 8))

    assert isinstance(streamed.x_train, ImageFiles)
    assert isinstance(streamed.x_test, np.ndarray)
    assert streamed.has_images
    preprocessing = Preprocessing((8, 8), (0.5,) * 3, (0.2,) * 3)
    batches = [
        list(ImageBatches(data.x_train, data.y_train, preprocessing=preprocessing, batch_size=2, shuffle=True, seed=1))
        for data in (whole, streamed)
    ]
    for (images, labels), (expected, wanted) in zip(batches[1], batches[0], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, wanted)
    assert np.array_equal(streamed.x_train[np.array([4, 0])].read(np.arange(2)), whole.x_train[[4, 0]])


def test_what_is_wrong_with_a_folder_is_said(tmp_path, monkeypatch):
    write_images(tmp_path / "some", {"a": 2})
    assert "no folders in it" in message(f"folder:{tmp_path}/some/a")
    assert "too few" in message(f"folder:{tmp_path}/some")
    (tmp_path / "some" / "b").mkdir()
    assert "no images" in message(f"folder:{tmp_path}/some")
    (tmp_path / "some" / "b" / "x.png").write_bytes(b"no image")
    for i in range(4):
        (tmp_path / "some" / "b" / f"y{i}.png").write_bytes(b"no image")
    assert "x.png is damaged or is not a readable image" in message(f"folder:{tmp_path}/some")
    write_images(tmp_path / "parts" / "train", {"a": 1})
    write_images(tmp_path / "parts" / "test", {"b": 1})
    assert "differ: a, b" in message(f"folder:{tmp_path}/parts")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install pillow" in message(f"folder:{tmp_path}/some")


def test_a_factory_returns_data_in_three_forms(tmp_path, monkeypatch):
    name = f"data_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\n"
        "from l0prune.sources.datasets import DataSource\n"
        "x, y = np.zeros((3, 4), np.float32), np.arange(3)\n"
        "def source(): return DataSource(x, y, x, y)\n"
        "def four(): return x, y, x, y\n"
        "def named(): return dict(x_train=x, y_train=y, x_test=x, y_test=y)\n"
        "def short(): return dict(x_train=x)\n"
        "def number(): return 3\n"
        "def fails(): return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)

    for form in ("source", "four", "named"):
        assert load_data(f"{name}:{form}").y_test.tolist() == [0, 1, 2]
    assert "x_train has 3 entries and there is no x_test; expected 16 at least" in message(f"{name}:short")
    assert "returned a int" in message(f"{name}:number")
    assert "ZeroDivisionError" in message(f"{name}:fails")


def test_unknown_data_is_answered_with_what_there_is():
    assert "mnist:DIR" in message("imagenet")
    assert "Did you mean npz:x/d.npz?" in message("x/d.npz")
    assert "no module 'nps'" in message("nps:file")


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        (
            {"x_train": np.full((4, 3), 1e300)},
            "x_train has 12 of 12 values that float32 does not hold; the largest is 1e+300",
        ),
        ({"y_test": np.full(2, 2**63, np.uint64)}, "y_test has 2 of 2 values that int64 does not hold"),
    ],
)
def test_numbers_beyond_the_type_they_are_kept_in_are_refused(replaced, words):
    arrays = {"x_train": np.zeros((4, 3)), "x_test": np.zeros((2, 3))}
    arrays |= {"y_train": np.zeros(4, np.int64), "y_test": np.zeros(2, np.int64)}

    with pytest.raises(DataError) as caught:
        DataSource(**(arrays | replaced))

    assert words in str(caught.value)


def test_inputs_may_come_without_targets_and_the_last_tenth_is_for_testing(tmp_path):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.savez(tmp_path / "inputs.npz", x_train=x)
    np.savez(tmp_path / "both.npz", x_train=x, x_test=x[:3])

    held_out, given = (load_data(f"npz:{tmp_path / name}") for name in ("inputs.npz", "both.npz"))

    assert not held_out.labelled
    assert (held_out.x_train == x[:18]).all()
    assert (held_out.x_test == x[18:]).all()
    assert len(held_out.y_train) == 18
    assert (given.x_train == x).all()
    assert (given.x_test == x[:3]).all()


def test_half_of_the_targets_is_not_enough(tmp_path):
    np.savez(tmp_path / "some.npz", x_train=np.zeros((20, 2), np.float32), y_test=np.arange(3))

    with pytest.raises(DataError, match=r"some.npz: no y_train, x_test; found x_train, y_test"):
        load_data(f"npz:{tmp_path / 'some.npz'}")
