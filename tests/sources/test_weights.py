import collections
import os
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from l0prune.errors import CheckpointError, L0PruneWarning
from l0prune.sources.weights import load_weights_, read_state_dict, save_weights


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def message(model, path) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights_(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "model was changed"
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def same(model, other) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_survive_saving_and_loading(tmp_path):
    source, target = net(), net()

    load_weights_(target, save_weights(source, tmp_path / "w.safetensors"))

    assert same(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_formats_are_read(tmp_path, suffix, zipped):
    source, target = net(), net()
    torch.save(source.state_dict(), tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)

    load_weights_(target, tmp_path / f"w{suffix}")

    assert same(source, target)


@pytest.mark.parametrize(
    "keys", [["state_dict"], ["model"], ["state_dict_ema"], ["checkpoint", "x"], ["model", "state_dict"]]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_understood(tmp_path, keys, prefix):
    source, target = net(), net()
    wrapped = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    for key in reversed(keys):
        wrapped = {key: wrapped, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(wrapped, tmp_path / "w.pt")

    if keys == ["checkpoint", "x"]:
        assert "checkpoint, epoch, optimizer" in message(target, tmp_path / "w.pt")
    else:
        load_weights_(target, tmp_path / "w.pt")
        assert same(source, target)


def test_averaged_weights_are_preferred(tmp_path):
    source, averaged, target = net(), net(), net()
    torch.save({"state_dict": source.state_dict(), "state_dict_ema": averaged.state_dict()}, tmp_path / "w.pt")

    load_weights_(target, tmp_path / "w.pt")

    assert same(target, averaged)


def test_a_model_whose_own_names_start_with_module_keeps_them(tmp_path):
    source, target = nn.ModuleDict({"module": net()}), nn.ModuleDict({"module": net()})

    load_weights_(target, save_weights(source, tmp_path / "w.safetensors"))

    assert same(source, target)


def test_shared_weights_are_stored_once_and_found_again(tmp_path):
    source, target = Tied(), Tied()

    path = save_weights(source, tmp_path / "w.safetensors")
    load_weights_(target, path)

    assert list(read_state_dict(path)) == ["embed.weight"]
    assert torch.equal(target.head.weight, source.embed.weight)
    assert target.head.weight is target.embed.weight


def test_missing_batch_counters_are_no_error(tmp_path):
    source, target = net(), net()
    save_file({k: v for k, v in source.state_dict().items() if "num_batches" not in k}, tmp_path / "w.safetensors")

    load_weights_(target, tmp_path / "w.safetensors")

    assert same(source, target)


def test_half_precision_weights_fill_a_float_model(tmp_path):
    source, target = net(), net()

    load_weights_(target, save_weights(source.half(), tmp_path / "w.safetensors"))

    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.float())


def test_missing_and_left_over_names_are_counted_and_shown(tmp_path):
    state = net().state_dict()
    state["extra.weight"] = state.pop("0.weight")
    save_file(state, tmp_path / "w.safetensors")

    text = message(net(), tmp_path / "w.safetensors")

    assert "1 of 9 missing: '0.weight' (4, 3, 3, 3)" in text
    assert "1 of 9 left over: 'extra.weight' (4, 3, 3, 3)" in text


def test_another_width_shows_both_shapes(tmp_path):
    save_weights(net(width=6), tmp_path / "w.safetensors")

    text = message(net(), tmp_path / "w.safetensors")

    assert "7 of another shape" in text
    assert "'0.weight' is (6, 3, 3, 3), expected (4, 3, 3, 3)" in text


def test_another_architecture_is_one_short_line(tmp_path):
    save_weights(nn.Sequential(*(nn.Linear(3, 3) for _ in range(50))), tmp_path / "w.safetensors")

    text = message(net(), tmp_path / "w.safetensors")

    assert "another architecture" in text
    assert len(text) < 700


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named_and_counted(tmp_path, bad):
    source = net()
    source[0].weight.data[1, 2, :2, 0] = bad
    save_weights(source, tmp_path / "w.safetensors")

    assert "'0.weight' has 2 of 108 values that are NaN or infinite" in message(net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, write):
    trap = tmp_path / "trap"
    write({**net().state_dict(), "bomb": Bomb(trap)}, tmp_path / "w.pt")

    text = message(net(), tmp_path / "w.pt")

    assert not trap.exists()
    assert "refused" in text
    assert "mkdir" in text
    assert "state_dict" in text


def test_a_pickled_model_is_refused_with_the_names_it_needs(tmp_path):
    torch.save(Tied(), tmp_path / "w.pth")

    assert "Tied" in message(Tied(), tmp_path / "w.pth")


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "w.pt"))

    assert "TorchScript" in message(nn.Linear(2, 2), tmp_path / "w.pt")


def test_files_that_cannot_be_weights_say_why(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "kind.txt").write_text("x")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(collections.OrderedDict(epoch=1), tmp_path / "number.pt")

    for name, reason in {
        "none.safetensors": "no such",
        "folder.pt": "is a folder",
        "empty.pt": "is empty",
        "kind.txt": "'.txt'",
        "list.pt": "holds a list",
        "number.pt": "with keys epoch",
    }.items():
        assert reason in message(net(), tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path, name, keep):
    path = tmp_path / name
    torch.save(net().state_dict(), path) if path.suffix == ".pt" else save_weights(net(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])

    assert "damaged" in message(net(), path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"\0" * 100, b"GIF89a" * 20, b"\x80\x02garbage", b"PK\x03\x04" + b"0" * 90])
def test_garbage_is_damaged(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    assert "damaged" in message(net(), tmp_path / name)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_weights(net(), tmp_path / "w.safetensors")
    before = path.read_bytes()

    def fill_the_disk(handle):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fill_the_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_weights(net(), path)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_can_be_read_by_whom_other_files_can(tmp_path):
    (tmp_path / "other").touch()

    path = save_weights(net(), tmp_path / "w.safetensors")

    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(CheckpointError, match="safetensors only"):
        save_weights(net(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_weights(net(), tmp_path / "none" / "w.safetensors")


HOLDS = torch.tensor([[1.0, -2.5], [0.5, 3.0]], dtype=torch.float64)
REFUSED_CASTS = {
    "bytes": (
        (HOLDS * 2).to(torch.int8),
        torch.float32,
        "'weight' is stored as int8, the model has float32: a quantised",
    ),
    "unsigned bytes": (
        HOLDS.abs().to(torch.uint8),
        torch.float16,
        "stored as uint8, the model has float16: a quantised",
    ),
    "whole numbers": (
        HOLDS.to(torch.int64),
        torch.float64,
        "a quantised checkpoint, whose numbers mean nothing without",
    ),
    "truth values": (HOLDS > 0, torch.float32, "stored as bool, the model has float32"),
    "complex numbers": (
        (HOLDS + 1j).to(torch.complex64),
        torch.float64,
        "stored as complex64, the model has float64, which would drop the imaginary",
    ),
    "complex numbers on the axis": (HOLDS.to(torch.complex64), torch.float32, "drop the imaginary part"),
    "beyond float32": (HOLDS * 1e200, torch.float32, "stored as float64, the model has float32, which is too narrow"),
    "beyond float16": (HOLDS.float() * 1e5, torch.float16, "too narrow for its largest value, 3e+05"),
    "fractions": (HOLDS, torch.int64, "stored as float64, the model has int64, which cannot hold its values"),
    "beyond int8": (HOLDS.to(torch.int64) * 1000, torch.int8, "cannot hold its values"),
}
EXACT_CASTS = {
    "half": (HOLDS.half(), torch.float32),
    "bfloat16": (HOLDS.bfloat16(), torch.float64),
    "eight bits": (HOLDS.to(torch.float8_e4m3fn), torch.float32),
    "double that is single": (HOLDS, torch.float32),
    "a whole number": (HOLDS.round(), torch.int64),
    "real to complex": (HOLDS, torch.complex128),
}
ROUNDED_CASTS = {
    "double": (HOLDS + 1e-12, torch.float32),
    "single": (HOLDS.float() + 1e-4, torch.float16),
    "too small": (HOLDS.float() * 1e-12, torch.float16),
    "half to bfloat16": (HOLDS.half() + 0.001, torch.bfloat16),
}


class Holder(nn.Module):
    """One tensor."""

    def __init__(self, kind):
        super().__init__()
        self.register_buffer("weight", torch.zeros(2, 2, dtype=kind))


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("case", REFUSED_CASTS)
def test_numbers_that_would_become_others_are_refused(tmp_path, case, ending):
    value, kind, words = REFUSED_CASTS[case]
    path = tmp_path / f"w.{ending}"
    (save_file if ending == "safetensors" else torch.save)({"weight": value}, path)

    assert words in message(Holder(kind), path)


@pytest.mark.parametrize("case", EXACT_CASTS)
def test_numbers_that_stay_the_same_are_taken_without_a_word(tmp_path, case):
    value, kind = EXACT_CASTS[case]
    save_file({"weight": value}, tmp_path / "w.safetensors")
    holder = Holder(kind)

    with warnings.catch_warnings():
        warnings.simplefilter("error", L0PruneWarning)
        load_weights_(holder, tmp_path / "w.safetensors")

    assert holder.weight.to(torch.complex128).equal(value.to(torch.complex128))


@pytest.mark.parametrize("case", ROUNDED_CASTS)
def test_numbers_that_are_rounded_are_taken_and_it_is_said(tmp_path, case):
    value, kind = ROUNDED_CASTS[case]
    save_file({"weight": value}, tmp_path / "w.safetensors")
    holder = Holder(kind)

    with pytest.warns(L0PruneWarning, match=r"1 of 1 tensors are rounded from \w+ to the model's \w+: weight"):
        load_weights_(holder, tmp_path / "w.safetensors")

    assert holder.weight.equal(value.to(kind))


def test_eight_bits_that_are_no_number_are_refused(tmp_path):
    save_file({"weight": torch.full((2, 2), torch.nan).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")

    assert "4 of 4 values that are NaN" in message(Holder(torch.float32), tmp_path / "w.safetensors")
