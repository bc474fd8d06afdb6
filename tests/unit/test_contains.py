"""The one-file filter: what is on a list is in, what is not is out, in other people's loaders too."""

import ast
import functools
import importlib
import importlib.util
import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dbp.data.keep_list import KeepList
from dbp.formats import contains
from dbp.formats.contains import HASHES, UIDS, Keep
from dbp.formats.exchange import write_uid_file

UID = "139e4a9b22a614771f06c700a8ebe150"
# pickle.dumps of a pygtrie 2.5.0 StringTrie with the three keys, value 1, protocol 4
TRIE = bytes.fromhex(
    "800495a4000000000000008c0770796774726965948c0a537472696e67547269659493942981947d94288c0a5f736570"
    "617261746f72948c012f948c055f726f6f749468008c055f4e6f64659493942981945d94284b028c0530303030309"
    "48c09303030303030303031944b014affffffff4b018c09303030303030303137944b014afeffffff4b028c0530303"
    "03132948c09303030313230303031944b0165628c075f736f72746564948975622e"
)
TRIE_KEYS = ["00000/000000001", "00000/000000017", "00012/000120001"]


def random_uids(num, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(16).hex() for _ in range(num)]


def pairs_of(uids):
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], UIDS)


def raw(path, uids):
    path.write_bytes(np.sort(pairs_of(uids)).tobytes())
    return path


# uids


@pytest.mark.parametrize("kind", ["npy", "raw", "text"])
def test_all_kinds_of_uid_lists_say_the_same_as_a_set(tmp_path, kind):
    kept, others = random_uids(3000), random_uids(3000, seed=1)
    path = tmp_path / "list"
    if kind == "npy":
        write_uid_file(path, kept)
    elif kind == "raw":
        raw(path, kept)
    else:
        path.write_text("\n".join(kept))
    keep = Keep.open(path)
    asked = [*kept[::2], *others, *kept[1::2]]
    assert keep.contains_many(asked).tolist() == [uid in set(kept) for uid in asked]
    assert [keep.contains(uid) for uid in asked[::50]] == [uid in set(kept) for uid in asked[::50]]
    assert len(keep) == 3000


def test_the_high_half_comes_first(tmp_path):
    keep = Keep.open(raw(tmp_path / "uids", [UID]))
    assert keep.pairs.tolist() == [(0x139E4A9B22A61477, 0x1F06C700A8EBE150)]
    assert keep.contains(UID)
    assert keep.contains(UID.upper())
    assert not keep.contains(UID[16:] + UID[:16])


def test_uids_with_equal_high_or_low_halves_are_told_apart(tmp_path):
    kept = {f"{high:016x}{low:016x}" for high in (0, 1, 2**64 - 1) for low in (0, 5, 7, 2**64 - 1)}
    near = {f"{high:016x}{low:016x}" for high in (0, 1, 2, 2**64 - 1) for low in (0, 1, 5, 6, 7, 8)}
    keep = Keep.open(raw(tmp_path / "uids", sorted(kept)))
    asked = sorted(kept | near)
    assert keep.contains_many(asked).tolist() == [uid in kept for uid in asked]
    assert [keep.count(uid) for uid in asked] == [int(uid in kept) for uid in asked]


def test_repeated_uids_are_counted_when_asked_and_refused_otherwise(tmp_path):
    path = raw(tmp_path / "uids", [UID, "0" * 32, UID, UID])
    with pytest.raises(ValueError, match=r"repeats 2 of its 4 keys.*allow_repeats=True"):
        Keep.open(path)
    keep = Keep.open(path, allow_repeats=True)
    assert [keep.count(uid) for uid in (UID, "0" * 32, "1" * 32)] == [3, 1, 0]
    samples = [{"__key__": "1" * 32}, {"__key__": UID, "txt": b"a"}, {"__key__": "0" * 32}]
    assert [s["__key__"][0:2] for s in keep.repeat(samples)] == ["13", "13", "13", "00"]


@pytest.mark.parametrize("at", [0, 1, 2**20 - 1, 2**20, 2**20 + 5])
def test_a_list_that_is_not_sorted_is_refused(tmp_path, at):
    pairs = np.zeros(2**20 + 7, UIDS)
    pairs["f0"] = np.arange(len(pairs))
    pairs[[at, at + 1]] = pairs[[at + 1, at]]
    np.save(tmp_path / "uids.npy", pairs)
    with pytest.raises(ValueError, match=rf"not sorted at entry {at + 1:,}, and a binary search"):
        Keep.open(tmp_path / "uids.npy")


def test_equal_high_halves_with_falling_low_halves_are_not_sorted(tmp_path):
    pairs_of([f"{1:016x}{9:016x}", f"{1:016x}{8:016x}"]).tofile(tmp_path / "uids")
    with pytest.raises(ValueError, match="not sorted at entry 1"):
        Keep.open(tmp_path / "uids")


def test_a_key_that_is_no_uid_is_an_error_for_a_uid_file(tmp_path):
    keep = Keep.open(raw(tmp_path / "uids", [UID]))
    for key in ("000120001", UID + "0", "g" * 32, " " * 32):
        with pytest.raises(ValueError, match=r"is not 32 hexadecimal digits.*filter by 'json:uid'"):
            keep.contains(key)


def test_uid_files_are_mapped_and_not_read_into_memory(tmp_path):
    pairs = np.zeros(2_000_000, UIDS)
    pairs["f0"] = np.arange(len(pairs))
    np.save(tmp_path / "uids.npy", pairs)
    del pairs
    tracemalloc.start()
    keep = Keep.open(tmp_path / "uids.npy")
    now = tracemalloc.get_traced_memory()[0]
    assert keep.contains(f"{1_999_999:016x}{0:016x}")
    tracemalloc.stop()
    assert now < 100_000


# keys


def test_a_list_of_keys_says_the_same_as_a_set(tmp_path):
    kept = [f"{i // 10:05d}/{i:09d}" for i in range(0, 5000, 3)] + ["schön/日本", "a b", "x" * 500]
    (tmp_path / "keys.txt").write_text("\ufeff" + "\r\n".join(kept) + "\r\n\r\n", encoding="utf-8")
    keep = Keep.open(tmp_path / "keys.txt")
    others = [f"{i // 10:05d}/{i:09d}" for i in range(5000)] + ["schön", "a", "x" * 499, "", UID]
    asked = kept + others
    assert keep.contains_many(asked).tolist() == [key in set(kept) for key in asked]
    assert [keep.contains(key) for key in asked[::40]] == [key in set(kept) for key in asked[::40]]
    assert len(keep) == len(kept)


def test_a_repeated_key_is_refused_or_counted(tmp_path):
    (tmp_path / "keys").write_text("b\na\nb\n")
    with pytest.raises(ValueError, match="repeats 1 of its 3 keys"):
        Keep.open(tmp_path / "keys")
    keep = Keep.open(tmp_path / "keys", allow_repeats=True)
    assert [keep.count(key) for key in "abc"] == [1, 2, 0]


def test_keys_take_16_bytes_each(tmp_path, monkeypatch):
    monkeypatch.setattr(contains, "BLOCK", 1 << 12)
    with open(tmp_path / "keys", "w") as handle:
        handle.writelines(f"{i:05d}/{i:09d}\n" for i in range(200_000))
    tracemalloc.start()
    keep = Keep.open(tmp_path / "keys")
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keep.contains("00007/000000007")
    assert now < 16 * 200_000 + 200_000
    assert peak < 16 * 200_000 + 2_000_000  # and a block of keys


@pytest.mark.parametrize("lines", [["a", "b/c", "d"], [UID, "0" * 32, "f" * 32]])
def test_packed_keys_are_saved_as_a_file_that_opens_at_once(tmp_path, lines):
    (tmp_path / "keys").write_text("\n".join(lines))
    keep = Keep.open(tmp_path / "keys")
    keep.save(tmp_path / "keys.npy")
    again = Keep.open(tmp_path / "keys.npy")
    assert again.is_file
    assert not keep.is_file
    assert np.load(tmp_path / "keys.npy").dtype == (UIDS if lines[0] == UID else HASHES)
    asked = [*lines, "1" * 32]
    assert again.contains_many(asked).tolist() == [True, True, True, False]


# rows


def test_rows_say_the_same_as_the_mask(tmp_path):
    mask = np.random.default_rng(0).random(1003) < 0.3
    KeepList("pool", mask).save(tmp_path)
    keep = Keep.open(tmp_path / "keep.npy")
    rows = np.random.default_rng(1).integers(0, 1003, 5000)
    assert (keep.contains_rows(rows) == mask[rows]).all()
    assert [keep.contains_row(row) for row in range(1003)] == mask.tolist()
    assert keep.num_rows == 1003
    shutil.copy(tmp_path / "keep.npy", tmp_path / "alone.npy")
    assert (Keep.open(tmp_path / "alone.npy").contains_rows(rows) == mask[rows]).all()


def test_rows_that_are_not_of_the_pool_and_keys_are_refused(tmp_path):
    KeepList("pool", np.ones(1003, bool)).save(tmp_path)
    keep = Keep.open(tmp_path / "keep.npy")
    for row in (-1, 1003, 10**9):
        with pytest.raises(IndexError, match=r"not among the 1,003 of"):
            keep.contains_row(row)
        with pytest.raises(IndexError, match=r"are not all among the 1,003 of"):
            keep.contains_rows(np.array([5, row]))
    with pytest.raises(ValueError, match="knows rows, and '000120001' is a key"):
        keep.contains("000120001")
    assert keep.sample_filter("json:row")({"json": b'{"row": 7}'})


def test_a_bitmap_that_does_not_fit_its_description_is_refused(tmp_path):
    KeepList("pool", np.ones(1003, bool)).save(tmp_path)
    np.save(tmp_path / "keep.npy", np.zeros(125, np.uint8))
    with pytest.raises(ValueError, match=r"has 125 bytes, and keep.json says 1,003 rows"):
        Keep.open(tmp_path / "keep.npy")


# the trie


class _Node:
    """pygtrie's node, by its documented state: a list of steps down with the value there, and steps up."""

    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        raise AssertionError("code of the trie's own classes ran")


class StringTrie:
    def __init__(self, state, separator="/"):
        self._root, self._separator, self._sorted = _Node(state), separator, False


@pytest.fixture
def pickled_trie(tmp_path, monkeypatch):
    module = types.ModuleType("pygtrie")
    for cls in (_Node, StringTrie):
        monkeypatch.setattr(cls, "__module__", "pygtrie")
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "pygtrie", module)

    def write(state, separator="/", protocol=4):
        (tmp_path / "trie").write_bytes(pickle.dumps(StringTrie(state, separator), protocol))
        return tmp_path / "trie"

    return write


def test_the_trie_of_pygtrie_is_read_without_pygtrie(tmp_path, monkeypatch):
    (tmp_path / "x_trie.txt").write_bytes(TRIE)
    monkeypatch.setitem(sys.modules, "pygtrie", None)  # who imports it fails
    keep = Keep.open(tmp_path / "x_trie.txt", allow_pickle_of_trie=True)
    assert len(keep) == 3
    assert keep.contains_many(TRIE_KEYS).all()
    assert not keep.contains_many(["00000", "00012", "00012/00012000", "000000001"]).any()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_steps_up_and_down_a_trie_give_its_keys(pickled_trie, protocol):
    state = [0, "at the root", 2, "a", "b", 1, 1, "c", 1, -3, 1, "a", 1, -1, 1, "d", None]
    path = pickled_trie(state, "|", protocol)
    keep = Keep.open(path, allow_pickle_of_trie=True)
    assert len(keep) == 5
    assert keep.contains_many(["", "a|b", "a|b|c", "a", "d"]).all()
    assert not keep.contains_many(["b", "c", "a|c", "a/b"]).any()


def test_a_pickle_is_refused_unless_it_is_called_a_trie(tmp_path):
    (tmp_path / "trie").write_bytes(TRIE)
    with pytest.raises(ValueError, match=r"is a pickle, and reading one can run any code"):
        Keep.open(tmp_path / "trie")
    for protocol in range(6):
        (tmp_path / "list").write_bytes(pickle.dumps([UID, "0" * 32], protocol))
        with pytest.raises(ValueError, match="is a pickle"):
            Keep.open(tmp_path / "list")
    np.save(tmp_path / "objects.npy", np.array([UID, None], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects.npy cannot be mapped"):
        Keep.open(tmp_path / "objects.npy")


class Bomb:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "bomb",
    [
        Bomb(exec, ("raise SystemExit('code ran')",)),
        Bomb(Path.touch, (Path("ran"),)),
        Bomb(getattr, (str, "format")),
        [1, Bomb(subprocess.run, (["touch", "ran"],))],
    ],
)
def test_nothing_but_a_trie_is_unpickled(tmp_path, monkeypatch, bomb, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trie").write_bytes(pickle.dumps(bomb, protocol))
    if protocol == 0 and not (tmp_path / "trie").read_bytes().endswith(b"."):
        pytest.skip("no pickle")
    with pytest.raises(ValueError, match=r"is not the pickle of a pygtrie.StringTrie: .*no part of a trie"):
        Keep.open(tmp_path / "trie", allow_pickle_of_trie=True)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_plain_data_and_a_broken_trie_are_no_trie(tmp_path, pickled_trie):
    (tmp_path / "data").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"is not the pickle of a pygtrie.StringTrie"):
        Keep.open(tmp_path / "data", allow_pickle_of_trie=True)
    for state in ([2, "a"], ["a", 1], None, [1, b"a", 1], [1, "a"]):
        with pytest.raises(ValueError, match=r"is not the pickle of a pygtrie.StringTrie"):
            Keep.open(pickled_trie(state), allow_pickle_of_trie=True)


# files of no kind


def test_files_of_no_kind_are_refused_with_the_reason(tmp_path):
    cases = {
        "empty": (b"", "of shape|in shape"),
        "blank": (b"\n\n", "in shape"),
        "cut": (pairs_of(random_uids(5)).tobytes()[:-3], "77 bytes are no multiple of the 16"),
        "archive.npz": (b"PK\x03\x04\x00\x00\x00", "no multiple of the 16"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Keep.open(tmp_path / name)
    arrays = {
        "int": np.arange(5),
        "table": np.zeros((2, 3), np.uint8),
        "big-endian": np.zeros(3, [("f0", ">u8"), ("f1", ">u8")]),
        "names": np.zeros(3, [("hi", "<u8"), ("lo", "<u8")]),
        "none": np.zeros(0, UIDS),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=rf"{name}.npy holds .* A keep list is one row, not empty"):
            Keep.open(tmp_path / f"{name}.npy")
    write_uid_file(tmp_path / "short.npy", random_uids(100))
    with open(tmp_path / "short.npy", "r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(ValueError, match=r"short.npy cannot be mapped"):
        Keep.open(tmp_path / "short.npy")


# one file, on its own


def test_the_file_needs_only_python_and_numpy(tmp_path):
    tree = ast.parse(Path(contains.__file__).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | {"numpy"}
    shutil.copy(contains.__file__, tmp_path / "contains.py")
    raw(tmp_path / "uids", [UID])
    run = [sys.executable, "-S", "-I", "-c"]
    path = [str(tmp_path), str(Path(np.__file__).parents[1])]
    code = (
        f"import sys; sys.path += {path}; import contains; print(contains.Keep.open('uids').contains('{UID}'))"
        "; assert 'dbp' not in sys.modules"
    )
    done = subprocess.run([*run, code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_command_line_says_yes_or_no(tmp_path, capsys):
    path = str(raw(tmp_path / "uids", [UID, "0" * 32]))
    assert contains.main([path, UID]) == 0
    assert capsys.readouterr().out == f"{UID} yes\n"
    assert contains.main([path, UID, "1" * 32]) == 1
    assert capsys.readouterr().out == f"{UID} yes\n{'1' * 32} no\n"
    KeepList("pool", np.array([True, False, True])).save(tmp_path)
    assert contains.main([str(tmp_path / "keep.npy"), "0", "1"]) == 1
    assert capsys.readouterr().out == "0 yes\n1 no\n"
    twice = str(raw(tmp_path / "twice", [UID, UID]))
    assert contains.main([twice, UID, "--allow-repeats"]) == 0
    assert capsys.readouterr().out == f"{UID} yes 2 times\n"
    for wrong in ([path, "key"], [twice, UID], [str(tmp_path / "none"), "a"], [str(tmp_path / "keep.npy"), "3"]):
        assert contains.main(wrong) == 2
        assert capsys.readouterr().err


# loaders


def write_tars(folder, num_tars, num_samples):
    """Tars of pictures whose captions are their numbers, keys 0000..; returns the paths."""
    from PIL import Image

    folder.mkdir()
    for number in range(num_tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(number * num_samples, (number + 1) * num_samples):
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(picture, "PNG")
                about = json.dumps({"uid": f"{i:032x}"}).encode()
                members = {"png": picture.getvalue(), "txt": str(i).encode(), "json": about}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{i:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return [str(path) for path in sorted(folder.iterdir())]


def test_a_filter_finds_the_key_in_the_sample_or_its_json(tmp_path):
    by_uid = Keep.open(raw(tmp_path / "uids", [UID]))
    (tmp_path / "keys").write_text("0007\n")
    by_key = Keep.open(tmp_path / "keys").sample_filter()
    assert by_key({"__key__": "0007"})
    assert not by_key({"__key__": "0008"})
    for about in ({"uid": UID}, json.dumps({"uid": UID}), json.dumps({"uid": UID}).encode()):
        assert by_uid.sample_filter("json:uid")({"__key__": "0007", "json": about})
    assert not by_uid.sample_filter("json:uid", also=lambda s: "txt" in s)({"json": {"uid": UID}})
    assert by_uid.sample_filter("uid.txt")({"uid.txt": UID.encode()})
    for name, sample in {"json:uid": {"__key__": "a", "json": b'{"id": 3}'}, "key": {"__key__": "a"}}.items():
        with pytest.raises(ValueError, match=rf"sample 'a' has no {name}, only"):
            by_uid.sample_filter(name)(sample)


def test_a_filter_goes_to_a_loaders_workers_as_a_path(tmp_path):
    kept = random_uids(2000)
    write_uid_file(tmp_path / "uids.npy", kept)
    keep = Keep.open(tmp_path / "uids.npy").sample_filter()
    assert len(pickle.dumps(keep)) < 1000
    again = pickle.loads(pickle.dumps(keep))
    assert [again({"__key__": uid}) for uid in (kept[3], "0" * 32)] == [True, False]
    assert again.keep.is_file


def test_webdataset_selects_what_is_kept(tmp_path):
    import torch
    import webdataset

    urls = write_tars(tmp_path / "tars", 4, 10)
    kept = [1, 2, 13, 17, 22, 38]
    keep = Keep.open(raw(tmp_path / "uids", [f"{i:032x}" for i in kept]))
    data = webdataset.WebDataset(urls, shardshuffle=False).select(keep.sample_filter("json:uid"))
    assert [int(sample["__key__"]) for sample in data] == kept
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    assert sorted(int(sample["__key__"]) for sample in loader) == kept
    (tmp_path / "twice").write_text("0002\n0038\n0038\n")
    twice = Keep.open(tmp_path / "twice", allow_repeats=True)
    repeated = webdataset.WebDataset(urls, shardshuffle=False).compose(twice.repeat)
    assert [int(sample["__key__"]) for sample in repeated] == [2, 38, 38]


@pytest.fixture
def open_clip_train(monkeypatch):
    """open_clip's own training package, with a stand-in for pandas, which only its CSV reader uses."""
    import open_clip
    import torchvision  # noqa: F401  (looks for pandas itself, so before the stand-in)

    if importlib.util.find_spec("pandas") is None:
        monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    data = importlib.import_module("open_clip_train.data")
    train = importlib.import_module("open_clip_train.train")
    return SimpleNamespace(data=data, train_one_epoch=train.train_one_epoch, CLIP=open_clip.CLIP)


@pytest.mark.parametrize("workers", [0, 2])
def test_open_clips_own_training_consumes_the_kept_samples(tmp_path, monkeypatch, open_clip_train, workers):
    import torch
    from open_clip.loss import ClipLoss
    from torchvision.transforms.functional import to_tensor

    write_tars(tmp_path / "tars", 4, 30)
    # Eight of each tar, so that every worker has whole batches and an epoch is each sample once.
    rng = np.random.default_rng(0)
    kept = {30 * tar + int(i) for tar in range(4) for i in rng.choice(30, 8, replace=False)}
    keep = Keep.open(raw(tmp_path / "uids", [f"{i:032x}" for i in kept]))

    # As docs/loaders.md says:
    data = open_clip_train.data
    usual = data.filter_no_caption_or_no_image
    monkeypatch.setattr(data, "filter_no_caption_or_no_image", keep.sample_filter("json:uid", also=usual))
    without_end = functools.partial(data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(data, "tar_file_expander", without_end)

    args = SimpleNamespace(
        train_data=str(tmp_path / "tars/{00000..00003}.tar"),
        train_num_samples=len(keep),
        train_data_upsampling_factors=None,
        seed=0,
        batch_size=4,
        workers=workers,
        world_size=1,
        rank=0,
        local_rank=0,
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        grad_clip_norm=None,
        log_every_n_steps=100,
        log_local=False,
        wandb=False,
    )
    model = open_clip_train.CLIP(
        embed_dim=8,
        vision_cfg={"layers": 1, "width": 64, "patch_size": 8, "image_size": 8},
        text_cfg={"layers": 1, "width": 16, "heads": 2, "context_length": 4, "vocab_size": 256},
        output_dict=True,
    )

    def tokenizer(text):  # a caption is the sample's number
        return torch.tensor([[0, int(text) // 100 + 1, int(text) % 100 + 1, 255]])

    consumed = []
    model.register_forward_pre_hook(lambda _, inputs: consumed.append(inputs))
    before = model.visual.conv1.weight.clone()
    info = data.get_wds_dataset(args, to_tensor, True, tokenizer=tokenizer)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    open_clip_train.train_one_epoch(model, {"train": info}, ClipLoss(), 0, optimiser, None, None, None, args)
    texts = torch.cat([texts for _, texts in consumed])
    numbers = ((texts[:, 1] - 1) * 100 + texts[:, 2] - 1).tolist()
    reds = (torch.cat([images for images, _ in consumed])[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(numbers) == sorted(kept)
    assert reds == numbers
    assert not torch.equal(model.visual.conv1.weight, before)
