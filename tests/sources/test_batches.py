import time

import numpy as np
import pytest
import torch
from torch import nn

from l0prune.errors import ConfigError, DataError, FileFormatError
from l0prune.sources.augmentation import Augmentation, crop_and_flip
from l0prune.sources.batches import ArrayBatches, ImageBatches, make_batches
from l0prune.sources.model_spec import LoadedModel, load_model
from l0prune.sources.preprocessing import Preprocessing

RGB = Preprocessing((6, 5), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
PLAIN = Preprocessing((6, 5), (0.0,) * 3, (1 / 255,) * 3)  # pixels stay what they are


def images(n=10, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(1, 256, (n, *shape), dtype=np.uint8)


def batches(x=None, *, preprocessing=PLAIN, batch_size=4, **options):
    x = images() if x is None else x
    return ImageBatches(x, np.arange(len(x)), batch_size=batch_size, preprocessing=preprocessing, **options)


def together(passes):
    """All inputs and targets of one pass."""
    inputs, targets = zip(*passes, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_images_are_normalised_as_torchvision_does():
    x = images()

    found, targets = together(batches(x, preprocessing=RGB))

    for channel, (mean, std) in enumerate(zip(RGB.mean, RGB.std, strict=True)):
        expected = (x[..., channel].astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(found[:, channel].numpy(), expected, atol=1e-6)
    assert found.dtype == torch.float32
    assert targets.tolist() == list(range(10))


def test_batches_are_counted():
    assert [len(y) for _, y in batches()] == [4, 4, 2]
    assert len(batches()) == 3
    assert [len(y) for _, y in batches(drop_last=True)] == [4, 4]
    assert len(batches(drop_last=True)) == 2


def test_the_same_epoch_of_the_same_seed_is_the_same_in_another_process_too():
    augmented = {"shuffle": True, "augment": Augmentation()}
    first, resumed = batches(seed=3, **augmented), batches(seed=3, **augmented)
    first.set_epoch(0)
    list(first)
    torch.rand(5)
    first.set_epoch(7)
    resumed.set_epoch(7)

    for (x, y), (x_again, y_again) in zip(first, resumed, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)


def test_other_epochs_and_seeds_have_another_order():
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            made = batches(seed=seed, shuffle=True)
            made.set_epoch(epoch)
            orders.append(tuple(together(made)[1].tolist()))

    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_iterating_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()

    list(batches(shuffle=True, augment=Augmentation()))

    assert torch.equal(torch.get_rng_state(), before)


def test_shuffled_images_keep_their_labels():
    x = images()

    found, targets = together(batches(x, shuffle=True))

    expected = x[targets.numpy()].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_crops_are_windows_of_the_padded_image(pad):
    x = torch.from_numpy(images(8))
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 2 * pad + 1, (2, 8), generator=generator)
    flips = torch.arange(8) % 2 == 0

    found = crop_and_flip(x, corners, flips, pad=pad)

    for i in range(8):
        padded = np.pad(x[i].numpy(), ((pad, pad), (pad, pad), (0, 0)))
        top, left = corners[:, i].tolist()
        window = padded[top : top + 6, left : left + 5]
        assert np.array_equal(found[i].numpy(), window[:, ::-1] if flips[i] else window)


def test_every_offset_and_both_directions_occur():
    x = np.zeros((600, 5, 5, 3), np.uint8)
    x[:, 2, 2] = 200
    x[:, 2, 3] = 100  # one pixel that tells the direction
    square = Preprocessing((5, 5), (0.0,) * 3, (1 / 255,) * 3)

    found, _ = together(batches(x, preprocessing=square, augment=Augmentation(pad=1), batch_size=64))

    bright = [tuple(place) for place in torch.nonzero((found[:, 0] > 150).long())[:, 1:].tolist()]
    assert {row for row, _ in bright} == {1, 2, 3}
    assert {column for _, column in bright} == {1, 2, 3}
    dim = torch.nonzero(((found[:, 0] > 50) & (found[:, 0] < 150)).long())[:, 2]
    middle = torch.nonzero((found[:, 0] > 150).long())[:, 2]
    to_the_right = int((dim > middle).sum())
    assert 240 < to_the_right < 360  # 600 coins: outside with probability 1e-6


def test_without_flip_no_image_is_mirrored():
    found, _ = together(batches(augment=Augmentation(pad=0, flip=False)))

    assert torch.equal(found, together(batches())[0])


def test_padding_is_black_before_normalisation():
    white = np.full((50, 6, 5, 3), 255, np.uint8)

    found, _ = together(batches(white, preprocessing=RGB, augment=Augmentation(pad=2, flip=False)))

    lowest = found.amin((0, 2, 3))
    torch.testing.assert_close(lowest, torch.tensor([-m / s for m, s in zip(RGB.mean, RGB.std, strict=True)]))


def test_grey_images_serve_a_network_for_colour():
    grey = images(3, (6, 5))

    found, _ = together(batches(grey))

    assert found.shape == (3, 3, 6, 5)
    assert torch.equal(found[:, 0], found[:, 2])


def test_images_of_another_size_are_resized():
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, axis=2).reshape(1, 16, 16)
    grey = Preprocessing((32, 8), (0.0,), (1 / 255,))

    found, _ = together(batches(ramp, preprocessing=grey, augment=Augmentation(pad=0, flip=True)))

    assert found.shape == (1, 1, 32, 8)
    assert found.mean().item() == pytest.approx(75, abs=0.5)
    assert (found[0, 0, 1:, 0] - found[0, 0, :-1, 0] >= 0).all()


def test_channels_last_changes_the_layout_only():
    last, first = (together(batches(channels_last=flag, batch_size=10))[0] for flag in (True, False))

    assert torch.equal(last, first)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()


def test_images_that_do_not_fit_are_refused_at_once():
    grey_net = Preprocessing((28, 28), (0.1,), (0.3,))
    with pytest.raises(DataError, match=r"\(10, 32, 32, 3\), that is 3 channels; the model takes \(1, 28, 28\)"):
        batches(images(10, (32, 32, 3)), preprocessing=grey_net)
    with pytest.raises(DataError, match=r"shape \(10, 7\)"):
        batches(images(10, (7,)))
    with pytest.raises(DataError, match="float32"):
        batches(images().astype(np.float32))


def test_impossible_batches_are_refused():
    with pytest.raises(ConfigError, match="batch size 0"):
        batches(batch_size=0)
    with pytest.raises(DataError, match="do not fill one batch of 11"):
        batches(batch_size=11, drop_last=True)
    with pytest.raises(DataError, match="empty"):
        batches(images(0))
    with pytest.raises(DataError, match="10 inputs and 9 targets"):
        ImageBatches(images(), np.arange(9), batch_size=2, preprocessing=PLAIN)
    with pytest.raises(ConfigError, match="-1 pixels"):
        Augmentation(pad=-1)


def test_a_batch_of_cifar_costs_little():
    x = np.zeros((1280, 32, 32, 3), np.uint8)
    cifar = Preprocessing((32, 32), RGB.mean, RGB.std)
    made = batches(x, preprocessing=cifar, batch_size=128, augment=Augmentation(), shuffle=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fastest = min(seconds_of_a_pass(made) for _ in range(10)) / len(made)
    finally:
        torch.set_num_threads(threads)

    assert fastest < 0.006  # 0.0017 on a quiet machine


def seconds_of_a_pass(made):
    start = time.process_time()
    for _ in made:
        pass
    return time.process_time() - start


def test_arrays_are_cut_into_batches_as_they_are():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)

    found, targets = together(ArrayBatches(x, np.arange(10), batch_size=3, shuffle=True, seed=1))

    assert torch.equal(found, torch.from_numpy(x)[targets])
    named = {"a": x, "b": x + 1}
    inputs, _ = next(iter(ArrayBatches(named, np.arange(10), batch_size=3)))
    assert torch.equal(inputs["b"], inputs["a"] + 1)


def test_the_kind_of_batches_follows_from_the_data():
    resnet = load_model("resnet20")
    dense = LoadedModel(nn.Linear(4, 2), (torch.zeros(2, 4),), None, "dense")
    named = LoadedModel(nn.Linear(4, 2), {"input": torch.zeros(2, 4)}, None, "named")
    y = np.zeros(5, np.int64)
    x = np.zeros((5, 4), np.float32)

    assert isinstance(make_batches(resnet, images(5, (32, 32, 3)), y, batch_size=2), ImageBatches)
    assert isinstance(make_batches(dense, x, y, batch_size=2), ArrayBatches)
    assert isinstance(make_batches(named, {"input": x}, y, batch_size=2), ArrayBatches)
    with pytest.raises(DataError, match=r"\(5, 3\) and type float32; 'dense' takes \(4,\) of float32"):
        make_batches(dense, x[:, :3], y, batch_size=2)
    with pytest.raises(DataError, match="type int64"):
        make_batches(dense, x.astype(np.int64), y, batch_size=2)
    with pytest.raises(DataError, match="uint8 images"):
        make_batches(dense, images(5), y, batch_size=2)
    with pytest.raises(DataError, match="holds other; 'named' takes input"):
        make_batches(named, {"other": x}, y, batch_size=2)
    with pytest.raises(DataError, match="augmentation"):
        make_batches(dense, x, y, batch_size=2, augment=Augmentation())


def test_preprocessing_survives_json():
    assert Preprocessing.from_json(RGB.to_json()) == RGB
    with pytest.raises(FileFormatError, match="image_size"):
        Preprocessing.from_json({"mean": [0.5]})


@pytest.mark.parametrize(
    ("size", "mean", "std", "reason"),
    [
        ((0, 5), (0.5,), (0.5,), "image size"),
        ((5, 5), (0.5,), (0.5, 0.5), "found 1 and 2"),
        ((5, 5), (), (), "found 0 and 0"),
        ((5, 5), (0.5,), (-0.5,), "above 0"),
    ],
)
def test_preprocessing_out_of_range_is_refused(size, mean, std, reason):
    with pytest.raises(ConfigError, match=reason):
        Preprocessing(size, mean, std)
