"""Files made to exhaust memory, to start programs or to lie: refused in one line, before anything is taken or run."""

import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import l0prune
from l0prune.bench.report import BenchReport
from l0prune.cli.request import FinetuneRequest
from l0prune.errors import L0PruneError
from l0prune.finetuning.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from l0prune.finetuning.metrics import read_metrics
from l0prune.run_directory import RunDirectory, RunRecord
from l0prune.sources.datasets import load_data
from l0prune.sources.exported import load_exported
from l0prune.sources.weights import load_weights_, read_state_dict
from l0prune.surgery.plan import SurgeryPlan

MOST_MEMORY = 100 << 20


def refusal(read, *words):
    """The message of a refusal that took little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(L0PruneError) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert peak < MOST_MEMORY
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def npz(path, **changed):
    """An npz of four small arrays, or of raw members in their place."""
    x, y = np.zeros((4, 3, 3), np.uint8), np.arange(4) % 2
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in {"x_train": x, "y_train": y, "x_test": x, "y_test": y}.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", changed.get(name, buffer.getvalue()))
    return f"npz:{path}"


def npy(header):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000000,)}", "claims shape"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976, 16)}", "claims shape"),
        ("{'descr': '|V1000000000', 'fortran_order': False, 'shape': (1000,)}", "claims shape"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "nothing in it was run"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}", "damaged"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': ((((", "damaged"),
        ("{'descr': (1,), 'fortran_order': False, 'shape': ()}", "damaged"),
    ],
)
def test_headers_of_npz_files_that_lie(tmp_path, header, word):
    spec = npz(tmp_path / "d.npz", x_train=npy(header))

    refusal(lambda: load_data(spec), "d.npz", word)


def test_an_npz_that_unfolds_without_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for _ in range(5):
                    member.write(bytes(1 << 26))

    refusal(lambda: load_data(f"npz:{tmp_path / 'd.npz'}"), "claims 1.342 GB of content")


def test_idx_files_that_lie_or_unfold_without_end(tmp_path):
    for name in (
        "train-images-idx3-ubyte",
        "t10k-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / name).write_bytes(struct.pack(">4BIII", 0, 0, 8, 3, 2**31, 2**31, 2**31) + bytes(10))
    refusal(lambda: load_data(f"mnist:{tmp_path}"), "train-images-idx3-ubyte is damaged")

    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B", 0, 0, 8, 255) + b"\0\0\1\0" * 255)
    refusal(lambda: load_data(f"mnist:{tmp_path}"), "train-images-idx3-ubyte is damaged")


def cifar(folder, content):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(content)
    return f"cifar10:{folder}"


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "data",
    [
        Calls(np.ndarray, (10**9, 3072), np.dtype("u1"), b"\0", 0, (0, 0)),
        Calls(np.ndarray, (10**13, 3072), np.dtype("u1")),
        b"no array",
        [1, 2],
    ],
    ids=["one byte many times", "room without content", "bytes", "a list"],
)
def test_batches_of_cifar_that_lie(tmp_path, data):
    spec = cifar(tmp_path, pickle.dumps({b"data": data, b"labels": [0]}, protocol=2))

    refusal(lambda: load_data(spec), "data_batch_1")


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        pickle.dumps(Calls(os.mkdir, "trap")),
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x09\x00\x00\x00bz2_codec\x86R.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\x04" + b"]" * 100_000 + b".",
        b"",
    ],
    ids=["code", "more code", "a codec", "a long text", "many lists", "nothing"],
)
def test_batches_of_cifar_that_are_more_than_arrays(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)

    refusal(lambda: load_data(cifar(tmp_path, content)), "data_batch_1")
    assert not (tmp_path / "trap").exists()


def png(width, height):
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_images_that_would_fill_memory_start_programs_or_never_end(tmp_path):
    pytest.importorskip("PIL")
    (tmp_path / "a").mkdir()
    for i in range(5):
        (tmp_path / "a" / f"{i}.png").write_bytes(png(4, 4))

    def again():
        return load_data(f"folder:{tmp_path}", image_size=(4, 4))

    assert len(again().x_train) == 4
    image = tmp_path / "a" / "0.png"
    for width, height in ((12000, 12000), (2**31 - 1, 1), (100_000, 100_000)):
        image.write_bytes(png(width, height))
        refusal(again, "a/0.png is damaged or is not a readable image")
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(%pipe%touch trap) (w) file\n%%EOF\n")
    refusal(again, "a/0.png is damaged")
    image.unlink()
    image.symlink_to("/dev/zero")
    refusal(again, "a/0.png is a pipe, device or socket")
    image.unlink()
    os.mkfifo(image)
    refusal(again, "a/0.png is a pipe, device or socket")


def test_names_that_no_file_can_have_are_refused_like_missing_ones(tmp_path):
    for name in ("n" * 5000, "a\0b"):
        for spec in (f"npz:{tmp_path}/{name}", f"mnist:{tmp_path}/{name}", f"folder:{tmp_path}/{name}"):
            refusal(lambda spec=spec: load_data(spec))
        refusal(lambda name=name: read_state_dict(tmp_path / f"{name}.pt"))
        refusal(lambda name=name: load_exported(tmp_path / f"{name}.pt2"))
        refusal(lambda name=name: RunDirectory(tmp_path / name).read())
        refusal(lambda name=name: l0prune.load(tmp_path / name))
        refusal(lambda name=name: l0prune.benchmark({"a": tmp_path / f"{name}.onnx"}))


@pytest.mark.parametrize("name", ["[" * 5000, "a\nb", "\x1b[31mred"])
def test_names_of_tensors_and_options_do_not_make_a_message_long_or_broken(tmp_path, name):
    weights = tmp_path / "w.safetensors"
    save_file({name: torch.zeros(2)}, weights)
    model, run = {"spec": "lenet5"}, {"argv": ("finetune",), "seed": 0, "data": {"spec": "digits"}}
    records = [
        RunRecord(config={name: 1}, model=model, **run),
        RunRecord(config={}, model={**model, name: 1}, **run),
        RunRecord(config={"epochs": name}, model=model, **run),
    ]

    for read in (
        lambda: load_weights_(nn.Linear(2, 2), weights),
        *(partial(FinetuneRequest.from_record, record) for record in records),
        lambda: SurgeryPlan.from_json({"format": "l0prune.surgery", "version": 1, name: 1}),
    ):
        with pytest.raises(L0PruneError) as caught:
            read()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300 + len(str(weights))


def test_weights_that_claim_more_than_they_have(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "w.pt")
    refusal(lambda: read_state_dict(tmp_path / "w.pt"), "w.pt", "claims 4 TB")

    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    refusal(lambda: read_state_dict(tmp_path / "w.safetensors"), "w.safetensors is damaged")

    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refusal(lambda: read_state_dict(tmp_path / "w.safetensors"), "w.safetensors is damaged")

    (tmp_path / "w.tar").write_bytes(bytes(10240))
    refusal(lambda: read_state_dict(tmp_path / "w.tar"), "w.tar")


def test_weights_that_unfold_without_end(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "small.pt")
    with (
        zipfile.ZipFile(tmp_path / "small.pt") as small,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for name in small.namelist():
            if name.endswith("data/0"):
                with bomb.open(name, "w", force_zip64=True) as member:
                    for _ in range(20):
                        member.write(bytes(1 << 26))
            else:
                bomb.writestr(name, small.read(name))

    refusal(lambda: read_state_dict(tmp_path / "w.pt"), "w.pt claims")


def test_trainer_state_that_claims_more_than_it_has(tmp_path):
    weights = {"w": torch.zeros(2)}
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(weights, weights, {"x": [torch.zeros(1).expand(10**12)]}))

    refusal(lambda: load_checkpoint(tmp_path / "checkpoint"), "trainer.pt", "claims 4 TB")


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload["tensor_meta"].update(sizes=[{"as_int": 2**60}]),
        lambda payload: payload["tensor_meta"].update(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}]),
        lambda payload: payload["tensor_meta"].update(sizes=[{"as_int": -4}]),
        lambda payload: payload["tensor_meta"].update(sizes=[{"as_expr": {"expr_str": "s0"}}]),
        lambda payload: payload.update(path_name="weight_77"),
        lambda payload: payload.update(path_name="../../x"),
        lambda payload: payload.update(tensor_meta=None),
        lambda payload: payload.pop("use_pickle"),
    ],
)
def test_programs_whose_weights_claim_more_than_they_have(tmp_path, change):
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),)), tmp_path / "honest.pt2")
    with zipfile.ZipFile(tmp_path / "honest.pt2") as honest, zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        for name in honest.namelist():
            content = honest.read(name)
            if name.endswith("model_weights_config.json"):
                config = json.loads(content)
                change(next(iter(config["config"].values())))
                content = json.dumps(config).encode()
            archive.writestr(name, content)

    refusal(lambda: load_exported(tmp_path / "m.pt2"), "m.pt2")


def test_a_program_that_holds_its_breath(tmp_path):
    (tmp_path / "m.pt2").write_bytes(gzip.compress(bytes(100)))
    refusal(lambda: load_exported(tmp_path / "m.pt2"), "m.pt2 is damaged or is not an exported program")


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        nested(100_000),
        "[]",
        "null",
        '{"format": "l0prune.run", "version": 1}',
        "\ufeff{}",
        '{"a": NaN}',
        "9" * 10_000,
    ],
)
def test_json_files_that_are_none(tmp_path, text):
    for name in ("run.json", "bench.json", "surgery.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "metrics.jsonl").write_text(text + "\n")

    refusal(RunDirectory(tmp_path).read, "run.json")
    refusal(lambda: BenchReport.read(tmp_path / "bench.json"), "bench.json")
    if text:
        refusal(lambda: read_metrics(tmp_path / "metrics.jsonl"), "metrics.jsonl: line 1")


def test_json_files_in_another_encoding(tmp_path):
    for name in ("run.json", "bench.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes("{}".encode("utf-16"))

    refusal(RunDirectory(tmp_path).read, "run.json is damaged")
    refusal(lambda: BenchReport.read(tmp_path / "bench.json"), "bench.json is damaged")
    refusal(lambda: read_metrics(tmp_path / "metrics.jsonl"), "metrics.jsonl is damaged")


@pytest.mark.parametrize("size", [-1, 2**40, 2**70, 1.5, True, "6", None])
def test_plans_of_tensors_that_cannot_be(size):
    data = {
        "format": "l0prune.surgery",
        "version": 1,
        "form": "graph",
        "fingerprint": "",
        "attributes": [],
        "calls": [],
    }
    data["tensors"] = {"w": {"dense_shape": [size, 2], "kept": {"0": [[0, 1]]}}}

    refusal(lambda: SurgeryPlan.from_json(data, source="surgery.json"), "surgery.json")


def test_a_compact_folder_with_a_damaged_plan_names_it(tmp_path):
    import hashlib

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    gated = l0prune.inject(model, l0prune.trace(model, torch.ones(2, 4)))
    gated.freeze((torch.arange(gated.n_gates) % 2).float())
    folder = l0prune.save(l0prune.shrink(gated), tmp_path / "compact")
    plan = json.loads((folder / "surgery.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())

    for change in (
        {"fingerprint": 1},
        {"tensors": {"0.weight": {"dense_shape": [6, 4], "kept": {"0": [[0, 2**62]]}}}},
        {"calls": 3},
    ):
        (folder / "surgery.json").write_text(json.dumps(plan | change))
        manifest["files"]["surgery.json"] = hashlib.sha256((folder / "surgery.json").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        refusal(lambda: l0prune.load(folder), "surgery.json")
    with (folder / "surgery.json").open("wb") as sparse:
        sparse.truncate(1 << 42)
    refusal(lambda: l0prune.load(folder), "surgery.json", "memory")
    for value in (None, 1, [], {"surgery.json": 3}):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": value}))
        refusal(lambda: l0prune.load(folder), "manifest.json")
