"""TL;DR's captioner: what the codebook does, what the decoder may see, what is written."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioning import BROKEN, GREEDY, NETWORK, House, encoder, picture, training, words

from dbp.captioning.captioner import Captioner, LocalCaptioner, Network, opened
from dbp.captioning.codes import CodeVectors, code_vectors, perplexity
from dbp.captioning.model import Captioning, Codebook, take_likeliest
from dbp.captioning.refine import EMPTY, Refine, drawn, uniform
from dbp.captioning.vocabulary import BEGIN, END, FIRST, PAD, Vocabulary
from dbp.config import build
from dbp.data.codes import Codes
from dbp.data.keep_list import KeepList
from dbp.encoders.timm import Timm
from dbp.engine.stage import Stage
from dbp.engine.work import Work
from dbp.errors import ConfigError, StoreError, WorldError
from training.account.metrics import read_metrics


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def captioner(house: House) -> Captioner:
    return house.store.get(house.captioner())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def book(**changed: Any) -> Codebook:
    made = Codebook(replace(NETWORK, num_codes=4, code_width=2, **changed))
    made.vectors.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]))
    made.usage.fill_(1.0)
    made.sums.copy_(made.vectors)
    made.has_begun.fill_(True)
    return made


# the codebook


def test_a_token_becomes_the_nearest_code_by_distance() -> None:
    made = Codebook(replace(NETWORK, num_codes=11, code_width=5))
    made.vectors.copy_(torch.randn(11, 5, generator=seeded()))
    tokens = torch.randn(3, 7, 5, generator=seeded(1))
    expected = torch.cdist(tokens.flatten(0, 1), made.vectors).argmin(1).view(3, 7)
    assert torch.equal(made.nearest(tokens), expected)


def test_the_gradient_passes_the_codebook_as_if_it_were_not_there() -> None:
    tokens = torch.tensor([[[0.2, 0.1], [0.9, 0.8]]], requires_grad=True)
    coded = book()(tokens)
    assert torch.allclose(coded.vectors, torch.tensor([[[0.0, 0], [1, 1]]]))
    slope = torch.tensor([[[3.0, -1], [2, 5]]])
    (coded.vectors * slope).sum().backward()
    assert torch.equal(tokens.grad, slope)


def test_commitment_is_the_mean_squared_distance_and_pulls_tokens_to_their_codes() -> None:
    tokens = torch.tensor([[[0.2, 0.1], [0.9, 0.8]]], requires_grad=True)
    loss = book()(tokens).commitment
    assert loss.item() == pytest.approx((0.04 + 0.01 + 0.01 + 0.04) / 4)
    loss.backward()
    expected = 2 * torch.tensor([[[0.2, 0.1], [-0.1, -0.2]]]) / 4
    assert torch.allclose(tokens.grad, expected)


def test_codes_move_to_the_moving_average_of_their_tokens() -> None:
    made = book(decay=0.75, revive_below=0.0)
    tokens = torch.tensor([[[0.2, 0.0], [0.4, 0.2], [1.0, 0.2]]])
    revived = made.update(tokens, torch.tensor([[0, 0, 1]]), seeded())
    # usage: .75 + .25 n; sums: .75 v + .25 sum of tokens. The rest shrinks alike, so its mean stays.
    assert torch.allclose(made.usage, torch.tensor([1.25, 1.0, 0.75, 0.75]))
    expected = torch.tensor([[0.12, 0.04], [1.0, 0.05], [0, 1], [1, 1]])
    assert torch.allclose(made.vectors, expected, atol=1e-4)
    assert int(revived) == 0


def test_a_dead_code_is_revived_as_a_token_of_the_batch_and_others_stay() -> None:
    made = book(decay=0.9, revive_below=0.5)
    made.usage.copy_(torch.tensor([10.0, 10, 10, 0.01]))
    made.sums.copy_(made.vectors * made.usage[:, None])
    tokens = torch.tensor([[[7.0, 7], [8, 8]]])
    assert int(made.update(tokens, torch.tensor([[0, 0]]), seeded())) == 1
    assert made.vectors[3].tolist() in tokens[0].tolist()
    assert torch.allclose(made.vectors[1], torch.tensor([1.0, 0]))
    # It has time: it is not dead again in the next step.
    assert int(made.update(tokens, torch.tensor([[0, 0]]), seeded())) == 0


def test_codes_begin_as_tokens_of_the_first_batch_once() -> None:
    made = Codebook(replace(NETWORK, num_codes=3, code_width=2))
    tokens = torch.arange(12.0).view(1, 6, 2)
    made.begin(tokens, seeded())
    first = made.vectors.clone()
    assert all(vector in tokens[0].tolist() for vector in first.tolist())
    assert len({tuple(vector) for vector in first.tolist()}) == 3
    made.begin(tokens + 100, seeded())
    assert torch.equal(made.vectors, first)


# the decoder


@pytest.fixture(scope="module")
def network() -> Captioning:
    torch.manual_seed(0)
    made = Captioning(NETWORK, token_width=12, num_tokens=5, vocabulary_size=20).eval()
    made.codebook.vectors.copy_(torch.randn(16, 16))
    return made


def test_a_word_is_predicted_from_those_before_it_alone(network: Captioning) -> None:
    memory = network.memory(torch.randn(2, 5, 16, generator=seeded()))
    captions = torch.tensor([[1, 5, 6, 7, 2], [1, 9, 9, 3, 2]])
    changed = captions.clone()
    changed[:, 3:] = 11
    before, after = network.logits(memory, captions), network.logits(memory, changed)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-3)


def test_the_caption_depends_on_the_codes_and_on_their_places(network: Captioning) -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5]])
    logits = [
        network.logits(network.memory(network.codebook.vectors[c]), torch.tensor([[BEGIN]]))
        for c in (codes, codes.flip(1), codes + 1)
    ]
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-4)


def test_greedy_writing_takes_the_likeliest_word_after_what_is_written(network: Captioning) -> None:
    codes = torch.randint(0, 16, (6, 5), generator=seeded())
    written = network.write(codes, take_likeliest)
    memory = network.memory(network.codebook.vectors[codes])
    for line, own in zip(written.tolist(), memory, strict=True):
        said = [BEGIN]
        for word in line:
            if said[-1] == END or (PAD in said):
                assert word == PAD
                continue
            with torch.no_grad():
                logits = network.logits(own[None], torch.tensor([said]))[0, -1]
            logits[[PAD, BEGIN]] = -torch.inf
            assert word == int(logits.argmax())
            said.append(word)


def test_padding_costs_nothing(network: Captioning) -> None:
    tokens = torch.randn(2, 5, 12, generator=seeded())
    short = torch.tensor([[1, 5, 2], [1, 6, 2]])
    padded = torch.tensor([[1, 5, 2, 0, 0], [1, 6, 2, 0, 0]])
    assert torch.allclose(network(tokens, short)[0], network(tokens, padded)[0])


# words


def test_the_vocabulary_holds_what_captions_use_most_frequent_first() -> None:
    made = Vocabulary.of(["a cat", "a dog", "A  CAT"], 6, None)
    assert [made.text([n]) for n in range(FIRST, made.size)] == ["a", "cat", "dog"]
    assert Vocabulary.of(["a cat", "a dog", "a cat"], 6, 2).tokens == made.tokens[:2]


def test_a_caption_is_begun_ended_padded_and_comes_back() -> None:
    made = Vocabulary.of(["a cat, and a dog"], 8, None)
    [line] = made(["A dog,\tand a cat"]).tolist()
    assert (line[0], line[7]) == (BEGIN, END)
    assert made.text(line[1:]) == "a dog , and a cat"
    assert made([""]).tolist() == [[BEGIN, END, *[PAD] * 6]]


def test_a_caption_too_long_is_cut_without_an_end_and_unknown_words_are_left_out() -> None:
    made = Vocabulary.of(["a b c"], 3, None)
    assert made(["a b c"]).tolist()[0][0] == BEGIN
    assert END not in made(["a b c"]).tolist()[0]
    assert made.text(made(["a xylophone b"]).tolist()[0][1:]) == "a b"


def test_control_characters_and_halves_of_characters_are_written_as_blanks() -> None:
    made = Vocabulary.of(["a\x07b", "東"], 12, None)
    text = made.text(range(FIRST, made.size))
    assert text.isprintable()
    assert "\ufffd" not in made.text(range(FIRST, made.size - 1))


# draws


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    likely = np.array([0.5, 0.3, 0.2])
    numbers = uniform(np.arange(20_000, dtype=np.uint64), seed=3, step=1)
    found = drawn(np.tile(likely, (20_000, 1)), numbers, 1.0, 1.0)
    shares = np.bincount(found, minlength=3) / 20_000
    assert np.abs(shares - likely).max() < 5 * np.sqrt(0.25 / 20_000)


def test_temperature_sharpens_and_top_p_leaves_the_tail_out() -> None:
    likely = np.tile([0.5, 0.3, 0.2], (1000, 1))
    numbers = (np.arange(1000) + 0.5) / 1000
    assert np.bincount(drawn(likely, numbers, 1.0, 0.8), minlength=3).tolist() == [625, 375, 0]
    assert np.bincount(drawn(likely, numbers, 1.0, 0.01), minlength=3).tolist() == [1000, 0, 0]
    sharp = np.bincount(drawn(likely, numbers, 0.5, 1.0), minlength=3)
    assert np.abs(sharp - 1000 * np.array([25, 9, 4]) / 38).max() <= 1
    assert (drawn(likely, np.full(1000, 1 - 2**-53), 1.0, 1.0) == 2).all()


def test_a_draw_belongs_to_seed_uid_and_word() -> None:
    uids = np.arange(100, dtype=np.uint64)
    assert np.array_equal(uniform(uids, 0, 1)[::-1], uniform(uids[::-1].copy(), 0, 1))
    for other in (uniform(uids, 1, 1), uniform(uids, 0, 2)):
        assert not np.isclose(other, uniform(uids, 0, 1)).any()


# vectors


def test_code_vectors_worked_by_hand() -> None:
    codes = np.array([[0, 0, 2], [1, 2, 0]], np.uint16)
    codebook = np.array([[1.0, 0], [0, 3], [4, 3]], np.float32)
    assert code_vectors(codes, codebook, "histogram").tolist() == [[2, 0, 1], [1, 1, 1]]
    assert code_vectors(codes, codebook, "mean") == pytest.approx(np.array([[2, 1], [5 / 3, 2]], np.float32))
    assert code_vectors(codes, codebook, "published").tolist() == [[0, 0, 2], [1, 2, 0]]


def test_perplexity_counts_codes_weighed_by_use() -> None:
    assert perplexity(np.full(7, 5)) == pytest.approx(7)
    assert perplexity(np.array([9, 0, 0])) == pytest.approx(1)
    assert perplexity(np.zeros(3, int)) == pytest.approx(1)
    assert perplexity(np.array([3, 1])) == pytest.approx(4 / 3**0.75)


# the whole


def test_the_captioner_names_colour_and_shape_of_pictures_it_has_not_seen(captioner: Captioner) -> None:
    use, rng = opened(captioner, "cpu"), np.random.default_rng(99)
    wanted = [words(row) for row in range(80)]
    made = [use.tower.preprocess(picture(*w, rng)) for w in wanted]
    written = use.write(use.codes(made).astype(np.int64), take_likeliest)
    right = sum(text == f"a {c} {s} ." for text, (c, s) in zip(written, wanted, strict=True))
    assert right >= 35, "chance is 10 of 80"


def test_the_log_counts_codes_and_the_codebook_is_used(captioner: Captioner, house: House) -> None:
    rows = read_metrics(captioner.folder / "metrics.jsonl")
    assert [row["samples_seen"] for row in rows] == [640, 1280, 1920, 2560, 3200]
    assert rows[-1]["codes_used"] > NETWORK.num_codes / 2
    assert 1 < rows[-1]["perplexity"] <= rows[-1]["codes_used"]
    assert rows[-1]["caption_loss"] < rows[0]["caption_loss"] / 3
    counts = house.store.entry(house.captioner()).manifest["counts"]
    assert counts["codes_used"] == rows[-1]["codes_used"]


def test_the_same_seed_gives_the_same_weights_codes_and_captions(house: House, tmp_path: Path) -> None:
    both = (house, House(tmp_path))
    a, b = (torch.load(h.store.get(h.captioner(samples_seen=640)).folder / "captioner.pt") for h in both)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for node in ("codes", "captions"):
        first, second = (h.store.get(getattr(h, node)(h.captioner(samples_seen=640))).folder for h in both)
        for file in sorted(p for p in first.rglob("*") if p.name != "manifest.json"):
            if file.is_file():
                assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_what_cannot_be_decoded_is_counted_and_keeps_its_original(house: House) -> None:
    node = house.captions(house.captioner())
    captions = house.store.get(node)
    counts = house.store.entry(node).manifest["counts"]
    assert counts["undecodable image"] == 1
    assert (counts["rows"], counts["original alone"]) == (95, 1 + counts[EMPTY])
    texts = captions.of(np.arange(96))
    assert texts[BROKEN] is None
    assert texts[0] == "a red disc ."
    assert captions.num_refined == counts["refined"]


def test_a_caption_that_comes_out_empty_is_none_and_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    write = "dbp.captioning.captioner.OpenCaptioner.write"
    monkeypatch.setattr(write, lambda self, codes, choose: ["", "x"] + ["y"] * (len(codes) - 2))
    node = house.captions(house.captioner(), replace(GREEDY, temperature=0.7))
    captions = house.store.get(node)
    counts = house.store.entry(node).manifest["counts"]
    assert (counts[EMPTY], counts["refined"], counts["original alone"]) == (3, 92, 4)  # 3 parts
    assert captions.of(np.array([0, 1])) == [None, "x"]


class Half(Stage):
    """A keep list of every other row."""

    name, needs, makes = "half", ("rows",), KeepList

    def run(self, work: Work, rows: KeepList) -> dict[str, Any]:
        rows.within("half", np.arange(rows.num_pool_rows) % 2 == 0, "odd", "even").save(work.folder)
        return {}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_caption_depends_on_neither_parts_batches_nor_company(house: House, temperature: float) -> None:
    refine = replace(GREEDY, temperature=temperature)
    captioner = house.captioner()
    all_rows = house.store.get(house.captions(captioner, refine)).of(np.arange(0, 96, 2))
    half = Half().bind(rows=house.rows)
    node = house.captions(captioner, replace(refine, batch_size=7, top_p=1.0), half)
    assert house.store.get(node).of(np.arange(0, 96, 2)) == all_rows
    assert house.store.get(node).of(np.arange(1, 96, 2)) == [None] * 48
    if temperature:
        other = house.store.get(house.captions(captioner, replace(refine, seed=1)))
        assert other.of(np.arange(0, 96, 2)) != all_rows


def test_codes_do_not_depend_on_parts_and_make_embeddings(house: House) -> None:
    captioner = house.captioner()
    codes: Codes = house.store.get(house.codes(captioner))
    assert len(codes.parts) == 3
    whole = [np.concatenate(arrays) for arrays in zip(*map(codes.part, range(3)), strict=True)]
    assert house.store.key(house.codes(captioner, rows_per_part=10**6, batch_size=3)) == (
        house.store.key(house.codes(captioner))
    )
    assert whole[0].tolist() == [row for row in range(96) if row != BROKEN]
    assert np.load(codes.folder / "codebook.npy").shape == (16, 16)
    for kind, width in (("histogram", 16), ("mean", 16), ("published", whole[1].shape[1])):
        node = CodeVectors(kind).bind(codes=house.codes(captioner))
        made = house.store.get(node)
        assert made.width == width
        assert made.rows.tolist() == whole[0].tolist()
        expected = code_vectors(whole[1], codes.codebook, kind).astype(np.float64)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.abs(made.unit(whole[0]) - expected).max() < 1e-3
        assert made.missing.texts == ("undecodable image",)


def test_a_run_that_was_cut_short_goes_on_to_the_same_weights(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = house.store.get(house.captioner(samples_seen=640))
    house = House(tmp_path)
    write = "training.captioning.Record.on_train_batch_end"
    whole = __import__("training.captioning").captioning.Record.on_train_batch_end

    def dies(self: Any, trainer: Any, *others: Any) -> None:
        whole(self, trainer, *others)
        if trainer.global_step == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(write, dies)
    node = house.captioner(samples_seen=640, checkpoint_every_samples=320)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        house.store.get(node)
    assert house.store.entry(node) is None
    assert not list((tmp_path / "runs").glob("captioner/*"))
    monkeypatch.undo()
    made = house.store.get(node)
    a, b = (torch.load(c.folder / "captioner.pt") for c in (captioner, made))
    assert all(torch.equal(a[name], b[name]) for name in a)
    samples = [row["samples_seen"] for row in read_metrics(made.folder / "metrics.jsonl")]
    assert samples == sorted(set(samples))


def test_a_captioner_that_was_moved_works_and_a_changed_one_is_refused(
    captioner: Captioner, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(captioner.folder, moved)
    assert str(captioner.folder.parents[2]) not in (moved / "captioner.json").read_text()
    node = LocalCaptioner(str(moved))
    assert node.identity() == LocalCaptioner(str(captioner.folder)).identity()
    assert Captioner.load(moved).open("cpu").codebook() == pytest.approx(captioner.open("cpu").codebook())
    (moved / "encoder.pt").unlink()
    (moved / "encoder.pt").write_bytes(b"other")
    with pytest.raises(WorldError, match="not the file that this captioner was trained with"):
        Captioner.load(moved).open("cpu")
    (moved / "captioner.pt").unlink()
    with pytest.raises(StoreError, match=r"holds no captioner: .*until=captioner"):
        Captioner.load(moved)
    with pytest.raises(ConfigError, match=r"captioner\.folder=.*there is no such file"):
        LocalCaptioner(str(moved)).identity()


def test_a_local_captioner_is_an_artifact_of_its_own(house: House, captioner: Captioner) -> None:
    node = LocalCaptioner(str(captioner.folder)).bind()
    made = house.store.get(node)
    assert made.folder != captioner.folder
    assert made.open("cpu").codebook().tolist() == captioner.open("cpu").codebook().tolist()


def test_speed_and_place_stay_out_of_the_key_and_the_rest_does_not(house: House) -> None:
    key = house.store.key(house.captioner())
    assert key == house.store.key(house.captioner(cache=False, log_every_samples=32))
    changes: list[dict[str, Any]] = [
        {"layer": 1}, {"seed": 1}, {"held_out": 0.1}, {"samples_seen": 320},
        {"vocabulary_size": 5}, {"network": replace(NETWORK, num_codes=8)},
    ]  # fmt: skip
    keys = {house.store.key(house.captioner(**change)) for change in changes}
    assert len(keys | {key}) == len(changes) + 1


def test_held_out_pictures_are_measured_and_not_trained_on(tmp_path: Path) -> None:
    house = House(tmp_path)
    node = house.captioner(held_out=0.3, samples_seen=320)
    house.store.get(node)
    counts = house.store.entry(node).manifest["counts"]
    assert counts["rows"] + counts["held out"] == 96
    assert 10 < counts["held out"] < 50
    assert 0 < counts["held-out perplexity"] <= counts["held-out codes_used"] <= 16
    assert counts["held-out caption_loss"] > 0


# bad input


def test_more_codes_than_pictures_are_refused(house: House) -> None:
    node = house.captioner(network=replace(NETWORK, num_codes=97))
    with pytest.raises(ConfigError, match=r"num_codes=97 codes from 96 pictures.*Lower captioner"):
        house.store.get(node)


def test_an_image_network_without_such_a_layer_is_refused(house: House) -> None:
    with pytest.raises(ConfigError, match=r"captioner\.layer=9: ModifiedResNet has no such layer"):
        house.store.get(house.captioner(layer=9))


def test_vectors_of_a_file_are_no_image_network(house: House) -> None:
    from dbp.encoders.precomputed import Precomputed

    file = house.folder / "vectors.npy"
    np.save(file, np.ones((96, 4), np.float32))
    node = house.captioner(encoder=Precomputed("test", images=str(file)))
    with pytest.raises(ConfigError, match=r"captioner\.encoder: Precomputed has no network"):
        house.store.get(node)


def test_a_pool_whose_captions_have_no_words_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.captioner.captions_of", lambda subset: iter(["", " \t"]))
    with pytest.raises(ConfigError, match="none of 96 rows has a word in its caption"):
        house.store.get(house.captioner(seed=77))


def test_a_loss_that_is_no_number_stops_the_run_with_a_way_out(house: House) -> None:
    wild = replace(training(house.folder).optimiser, lr=1e30, grad_clip=None, warmup_samples=0)
    with pytest.raises(WorldError, match=r"not finite after .* Lower captioner\.optimiser\.lr=1e"):
        house.store.get(house.captioner(optimiser=wild))


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (Network, {"num_codes": 1}, r"c\.num_codes=1: it must be from 2 to 65,536"),
        (Network, {"length": 2}, r"c\.length=2: it must be at least 3: begin, a word, end"),
        (Network, {"decay": 1.0}, r"c\.decay=1\.0: it must be from 0 to below 1"),
        (Network, {"decoder_heads": 3}, r"c\.decoder_width=32: it must be a multiple of decoder_h"),
        (Refine, {"temperature": -1}, r"c\.temperature=-1\.0: it must be 0 or more"),
        (Refine, {"top_p": 0}, r"c\.top_p=0\.0: it must be above 0 and at most 1"),
        (LocalCaptioner, {}, r"c\.folder=null: give the folder of a trained captioner"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(kind: Any, changed: dict[str, Any], message: str) -> None:
    from dataclasses import asdict

    given = {Network: asdict(NETWORK), Refine: asdict(GREEDY), LocalCaptioner: {}}[kind]
    with pytest.raises(ConfigError, match=message):
        build({**given, **changed}, kind, "c")


def test_a_vit_of_timm_gives_its_patches_as_tokens() -> None:
    tower = Timm("vit_tiny_patch16_224", 32, "token", random_weights=True, batch_size=2, device="cpu").load()
    assert tower.tokens is not None
    assert tower.tokens(torch.zeros(2, 3, 32, 32), -1).shape == (2, 4, 192)
    assert tower.sees is not None
    assert tower.sees["size"] == 32


def test_the_log_says_how_many_keep_their_original(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dbp"):
        house.store.get(house.captions(house.captioner(), replace(GREEDY, temperature=0.4)))
    assert "of 96 kept rows keep their original caption alone" in caplog.text


def test_about_names_no_path(captioner: Captioner) -> None:
    said = json.loads((captioner.folder / "captioner.json").read_text())
    assert said["encoder"]["checkpoint"] is None
    assert encoder(captioner.folder.parents[2]).checkpoint not in json.dumps(said)
