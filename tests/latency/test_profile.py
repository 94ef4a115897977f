"""The file of a profile: written, read, checked."""

import json
from dataclasses import replace

import pytest
import torch
from profile_example import branching_net, hand_made_profile

import l0prune
from l0prune.errors import ConfigError, FileFormatError
from l0prune.latency.profile import Profile
from l0prune.profiling.measure import ProfileOptions, _cache_of, remember


@pytest.fixture(scope="module")
def profile():
    model, x = branching_net()
    return hand_made_profile(l0prune.trace(model, x))


def test_a_profile_is_read_as_it_was_written(profile, tmp_path):
    path = profile.save(tmp_path / "profile.json")

    assert Profile.load(path) == profile
    assert Profile.load(path).digest == profile.digest


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "l0prune.alignment"},
        {"version": 2},
        {"more": 1},
        {"tables": []},
        {"dense_ms": 0.0},
        {"block": 0},
        {"layers": [{"name": "a", "table": 9, "sides": [], "needs": []}]},
    ],
)
def test_a_damaged_profile_says_to_make_it_again(profile, tmp_path, damage):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json() | damage))

    with pytest.raises(FileFormatError, match="l0prune profile MODEL --out PROFILE"):
        Profile.load(path)


def test_a_missing_profile_says_to_make_it(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file\. Make it with `l0prune profile"):
        Profile.load(tmp_path / "nothing.json")


def test_a_profile_of_another_machine_or_version_says_so(profile):
    assert profile.elsewhere() == ""
    assert "measured with processor another, here is" in replace(profile, processor="another").elsewhere()
    older = replace(profile, environment=replace(profile.environment, onnxruntime="1.0"))
    assert "measured with onnxruntime 1.0, here is" in older.elsewhere()


def test_a_profile_is_of_one_length_of_sequences(profile):
    of_texts = replace(profile, inputs={"input_ids": (1, 32), "attention_mask": (1, 32)})

    of_texts.require_lengths(())
    of_texts.require_lengths((32,))
    profile.require_lengths((32, 128))  # of images, which have none
    for asked in ((32, 128), (128,)):
        with pytest.raises(
            ConfigError, match=r"measured at a length of 32, .* a profile is of one length, so give --length 32"
        ):
            of_texts.require_lengths(asked)


def test_a_profile_is_of_one_size_of_images(profile):
    of_images = replace(profile, inputs={"x": (1, 3, 32, 48)})

    of_images.require_image_sizes(())
    of_images.require_image_sizes([(32, 48)])
    replace(profile, inputs={"input_ids": (1, 32)}).require_image_sizes([(64, 64)])  # of texts, which have none
    with pytest.raises(ConfigError, match=r"measured with images of 32x48, and 48x48 is asked for: .*--image-size N"):
        of_images.require_image_sizes([(48, 48)])


def test_a_network_that_was_traced_with_other_images_is_another_one_to_a_profile(profile):
    model, x = branching_net()

    for batch in (1, 4):
        profile.require_network(l0prune.trace(model, x[:1].expand(batch, -1, -1, -1)))
    with pytest.raises(ConfigError, match="measured with images of 6x6, and 8x8 is asked for"):
        profile.require_network(l0prune.trace(model, torch.randn(2, 3, 8, 8)))


def test_what_was_measured_is_remembered_for_images_of_its_size(monkeypatch, tmp_path):
    monkeypatch.setattr("l0prune.profiling.measure.cache_directory", lambda: tmp_path)
    model, x = branching_net()

    places = [
        _cache_of(l0prune.trace(model, images), ProfileOptions()) for images in (x, x[:1], torch.randn(2, 3, 8, 8))
    ]

    assert places[0] == places[1] != places[2]


def test_a_profile_of_other_threads_or_batches_is_refused(profile):
    profile.require_terms(threads=1, batch_size=1)
    with pytest.raises(ConfigError, match="measured with threads=1, and threads=2 is asked for"):
        profile.require_terms(threads=2, batch_size=1)
    with pytest.raises(ConfigError, match="measured with batch_size=1, and batch_size=8 is asked for"):
        profile.require_terms(threads=1, batch_size=8)


def test_noise_is_the_width_of_the_interval(profile):
    assert profile.noise == pytest.approx(0.01)
    assert replace(profile, dense_interval_ms=(0.95, 1.05)).noise == pytest.approx(0.1)


@pytest.mark.parametrize(("noise", "is_kept"), [(0.01, True), (0.2, False)])
def test_what_was_measured_on_a_noisy_machine_is_not_remembered(profile, tmp_path, noise, is_kept):
    remember(replace(profile, dense_interval_ms=(1 - noise / 2, 1 + noise / 2)), tmp_path / "cache" / "profile.json")

    assert (tmp_path / "cache" / "profile.json").exists() is is_kept
