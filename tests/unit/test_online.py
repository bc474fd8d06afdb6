"""Choosing while training: both methods against independent ones, whole runs, what they cost, what is refused."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_training_runs import NUM_ROWS, TRAIN, Killed, Killer, World, shard  # noqa: F401

from dbp.data.column import Column
from dbp.data.embeddings import Embeddings
from dbp.data.matches import MatchedRows, Matches
from dbp.data.pool import Pool
from dbp.encoders.embed import Embed
from dbp.encoders.openclip import OpenClip
from dbp.encoders.timm import Timm
from dbp.engine.stage import Node, Stage, key_of, parameters
from dbp.engine.work import Work
from dbp.errors import ConfigError
from dbp.selection.concepts import Concepts
from training.account.cost import forward_flops, hardware_flops
from training.account.horizon import Budget, Horizon
from training.account.metrics import read_metrics
from training.account.price import Rates, affordable
from training.config import Model
from training.feed.augmentation import Shift
from training.feed.captions import CaptionMix
from training.feed.data import make_loader
from training.feed.mixture import MixedOrder, mixed_horizon
from training.feed.order import Batches, Order, Slice
from training.feed.streaming import Streaming
from training.feed.weights import BySource
from training.online.at_random import AtRandom
from training.online.cabs import Cabs
from training.online.diversity import diverse, targets_of
from training.online.feed import ChosenPairs
from training.online.jest import Jest, Scored, gumbel
from training.online.reference import MakeReference
from training.stage import Train
from training.step.choosing import Choosing
from training.step.fit import fresh_model
from training.step.smaller import refresh, shrunk, smaller

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
VIT_TRAIN = replace(TRAIN, model=Model(config=VIT))
HALF: dict[str, Any] = {"super_batch": None, "filter_ratio": 0.5}
CABS = Cabs(**HALF, form="diversity", concepts="column", most_per_concept=2, column="tag")


# CABS


def naive(held: list[list[int]], words: np.ndarray, count: int, most: int, parts: int = 1) -> list[int]:
    """The diversity form as its module describes it, every gain worked out anew for every pick."""
    names = sorted({c for own in held for c in own})
    frequency = {c: sum(c in own for own in held) for c in names}
    share, rest = divmod(count, max(len(names), 1))
    target = {c: min(max(share + (at < rest), 1), most) for at, c in enumerate(names)}
    if (total := sum(target.values())) > count:
        target = {c: min(max(t * count // total, 1), most) for c, t in target.items()}
    found: list[int] = []
    size = len(held) // parts
    for start in range(0, len(held), size):
        chosen, mine = dict.fromkeys(names, 0), list[int]()
        left = list(range(start, start + size))

        def gain(row: int, chosen: dict[int, int] = chosen) -> float:
            own = held[row]
            if not own or any(chosen[c] >= most for c in own):
                return -math.inf
            terms = [
                (target[c] - chosen[c]) / target[c] + 1 / frequency[c] if chosen[c] < target[c] else -0.5
                for c in own
            ]
            return sum(terms) / len(terms)

        while len(mine) < count // parts:
            best = max(left, key=lambda row: (gain(row), -row))
            if gain(best) == -math.inf:
                break
            left.remove(best)
            mine.append(best)
            for c in held[best]:
                chosen[c] += 1

        def is_out(row: int, chosen: dict[int, int] = chosen) -> bool:
            return parts > 1 and any(chosen[c] >= most for c in held[row])

        left.sort(key=lambda row: (is_out(row), words[row], row))
        found += mine + left[: count // parts - len(mine)]
    return sorted(found)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_lazy_choice_is_the_one_that_works_every_gain_out_anew(parts: int) -> None:
    rng = np.random.default_rng(parts)
    for _ in range(60):
        size, num, most = 4 * int(rng.integers(2, 12)), int(rng.integers(1, 12)), int(rng.integers(1, 6))
        held = [sorted(set(rng.integers(0, num, rng.integers(0, 5)).tolist())) for _ in range(size)]
        words = rng.integers(0, 2**64, size, dtype=np.uint64)
        ends = np.cumsum([0, *map(len, held)], dtype=np.int64)
        concepts = np.array([c for own in held for c in own], np.int64)
        made = diverse(ends, concepts, words, size // 2, most, parts)
        assert made.tolist() == naive(held, words, size // 2, most, parts)


def test_a_batch_of_two_takes_the_rare_concept_and_one_of_the_common_one() -> None:
    ends, concepts = np.arange(6), np.array([0, 0, 0, 0, 1])
    assert diverse(ends, concepts, np.arange(5, dtype=np.uint64), 2, 10).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("num", "count", "most", "targets"),
    [
        (3, 8, 10, [3, 3, 2]),  # the remainder goes to the first
        (2, 64, 10, [10, 10]),  # at their cap
        (6, 4, 10, [1] * 6),  # one each, although that is more than the batch
        (5, 13, 2, [2] * 5),
    ],
)
def test_targets_are_equal_shares_of_the_batch(num: int, count: int, most: int, targets: list[int]) -> None:
    assert targets_of(num, count, most).tolist() == targets


def test_concepts_of_rows_come_from_every_source_in_the_order_of_the_rows() -> None:
    rows = np.array([3, 0, 2, 3])
    wanted = [[0, 2], [1], [], [0, 2]]

    def lists(held: Concepts) -> list[list[int]]:
        ends, numbers = held.of(rows)
        return [numbers[a:b].tolist() for a, b in pairwise(ends)]

    whole = Matches.of_rows([[1], [0], [], [0, 2]], ["a", "b", "c"])
    first = MatchedRows(0, np.array([0, 1, 2]), np.array([1, 0], np.uint32))
    second = MatchedRows(2, np.array([0, 0, 2]), np.array([0, 2], np.uint32))
    for matches in (whole, replace(whole, parts=[first, second])):
        held = Concepts(None, None, matches)
        assert lists(held) == wanted
        assert held.has_any(4).tolist() == [True, True, False, True]
    texts = Column(codes=np.array([1, 0, -1, 2], np.int32), texts=("x;y", " z ;; x;x", ";"))
    held = Concepts(None, texts, None, separator=";")
    assert lists(held) == [[], [0, 2], [], []]
    assert held.has_any(4).tolist() == [True, True, False, False]
    assert lists(Concepts(None, texts, None)) == [[2], [1], [], [2]]


# JEST


def total(similar: np.ndarray, own: list[int], loss: str, bias: float) -> float:
    """The contrastive loss of a set of pairs, summed over them; `similar` holds scaled cosines."""
    z = similar[np.ix_(own, own)]
    if not own:
        return 0.0
    if loss == "sigmoid":
        signs = 1 - 2 * np.eye(len(own))
        return float(np.log1p(np.exp(signs * (z + bias))).sum())
    log_sum = [np.log(np.exp(z).sum(axis)) for axis in (0, 1)]
    return float((log_sum[0] + log_sum[1]).sum() / 2 - np.trace(z))


def by_hand(learner: np.ndarray, reference: np.ndarray, how: Jest, count: int, seed: int, step: int) -> list[int]:
    """The choice from the definition: the difference of whole losses with and without each candidate."""
    size, chosen = len(learner), list[int]()
    every = list(range(size))
    chunks = how.chunks if how.joint else 1
    for chunk in range(chunks):
        scores = []
        for i in every:
            sides = []
            for z in (learner, reference):
                if how.joint or how.loss == "sigmoid":
                    rest = chosen
                    sides.append(total(z, [*rest, i], how.loss, how.bias) - total(z, rest, how.loss, how.bias))
                else:
                    sides.append((np.log(np.exp(z[i]).sum()) + np.log(np.exp(z[:, i]).sum())) / 2 - z[i, i])
            scores.append(sides[0] - sides[1])
        keys = np.array(scores) + how.temperature * gumbel(seed, step, chunk, size)
        keys[chosen] = -np.inf
        chosen += np.argsort(-keys)[: count // chunks].tolist()
    return sorted(chosen)


def jest(**change: Any) -> Jest:
    encoder = OpenClip("ViT-B-32", random_weights=True)
    values = {"joint": True, "loss": "sigmoid", "chunks": 4, "temperature": 1.0, "bias": -1.0, "reference": encoder}
    return Jest(**(HALF | values | change))


def two_models(size: int, seed: int = 0) -> tuple[list[Scored], list[np.ndarray]]:
    rng = torch.Generator().manual_seed(seed)
    made, similar = [], []
    for scale in (7.0, 12.0):
        sides = [torch.nn.functional.normalize(torch.randn(size, 6, generator=rng).double()) for _ in range(2)]
        made.append(Scored(*sides, scale))
        similar.append((scale * sides[0] @ sides[1].T).numpy())
    return made, similar


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_choice_is_that_of_whole_losses_worked_out_by_hand(loss: Any, joint: bool, temperature: float) -> None:
    how = jest(loss=loss, joint=joint, temperature=temperature)
    for step in range(4):
        (learner, reference), similar = two_models(24, step)
        made = how.choose(learner, reference, torch.ones(24, dtype=torch.bool), 12, 3, step)
        first_is_free = joint and loss == "softmax" and temperature == 0  # all scores of the first part are zero
        if not first_is_free:
            assert made.tolist() == by_hand(*similar, how, 12, 3, step)
        assert len(set(made.tolist())) == 12


def test_blocks_of_candidates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    how = jest(loss="softmax")
    (learner, reference), _ = two_models(24)
    scored = torch.ones(24, dtype=torch.bool)
    whole = how.choose(learner, reference, scored, 12, 0, 0)
    monkeypatch.setattr("training.online.jest.BLOCK", 5)
    assert torch.equal(how.choose(learner, reference, scored, 12, 0, 0), whole)


def test_candidates_without_vectors_of_the_reference_come_last() -> None:
    (learner, reference), _ = two_models(24)
    scored = torch.arange(24) < 11
    made = jest(chunks=1).choose(learner, reference, scored, 12, 0, 0)
    assert made[:11].tolist() == list(range(11))
    assert len(made) == 12


def test_what_the_learner_finds_hard_and_the_reference_easy_is_taken() -> None:
    eye = torch.eye(8)
    wrong = eye.roll(1, 0)
    hard = torch.arange(8) % 2 == 0  # whose captions the learner mistakes for others
    learner = Scored(eye, torch.where(hard[:, None], wrong, eye), 10.0)
    made = jest(temperature=0.0, joint=False).choose(learner, Scored(eye, eye, 10.0), hard | True, 4, 0, 0)
    assert made.tolist() == [0, 2, 4, 6]


# whole runs


@dataclass(frozen=True)
class Tags(Stage):
    """One of five tags for each row; none for every seventh."""

    name: ClassVar[str] = "column"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Column

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        rows = np.arange(pool.num_rows)
        codes = np.where(rows % 7 == 0, -1, rows * rows % 5).astype(np.int32)
        Column(codes=codes, texts=("a", "b", "c", "d", "e")).save(work.folder)
        return {"rows": pool.num_rows}


class Chooser(World):
    """A world whose runs choose while they train."""

    def encoder(self) -> OpenClip:
        config = self.store.root.parent / "vit.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(VIT))
        return OpenClip(None, random_weights=True, config=str(config), device="cpu")

    def jest(self, **change: Any) -> Jest:
        return jest(reference=self.encoder(), chunks=2, **change)

    def node(self, stage: Train, rows: tuple[int, ...] = ()) -> Node:
        keep, beside = self.keep(rows), dict[str, Node]()
        if isinstance(stage.online, Cabs):
            beside = {"columns": Tags().bind(pool=self.pool)}
        if isinstance(stage.online, Jest):
            encoder = stage.online.reference
            sides = {side: Embed(encoder, side).bind(pool=self.pool, rows=keep) for side in ("image", "text")}
            beside = {"reference": MakeReference(encoder, None).bind(**sides)}
        return stage.bind(pool=self.pool, keep=keep, **beside)

    def train(self, stage: Train, rows: tuple[int, ...] = ()) -> Any:
        return self.store.get(self.node(stage, rows))

    def counts(self, stage: Train, rows: tuple[int, ...] = ()) -> Mapping[str, Any]:
        return self.manifest(self.train(stage, rows))["counts"]


@pytest.fixture
def here(tmp_path: Path, shard: Path) -> Chooser:  # noqa: F811
    return Chooser(tmp_path, shard)


def test_cabs_gives_the_same_batches_for_any_ranks_and_workers(here: Chooser) -> None:
    pairs = here.pairs(Shift(2))
    column = here.store.get(Tags().bind(pool=here.pool))
    order, horizon = Order(pairs.subset.keys, 0), Horizon(len(pairs), 8, 6, candidates=16)

    def fed(ranks: int, num_workers: int) -> list[list[int]]:
        choose, _ = CABS.chooser(pairs.subset, 0, 8, {"columns": column})
        loaders = [
            make_loader(
                ChosenPairs(pairs, choose, rank, ranks), Batches(order, horizon, 0, rank, ranks, True), num_workers
            )
            for rank in range(ranks)
        ]
        return [torch.cat([one["rows"] for one in step]).tolist() for step in zip(*loaders, strict=True)]

    alone = fed(1, 0)
    for ranks, workers in ((2, 0), (4, 0), (1, 1), (1, 3), (2, 3)):
        assert fed(ranks, workers) == alone


@pytest.mark.parametrize("method", ["random", "cabs", "jest"])
def test_a_resumed_run_that_chooses_equals_an_undisturbed_one_bit_for_bit(
    here: Chooser, tmp_path: Path, method: str
) -> None:
    index: Any = here.pool.stage
    one, two = here, Chooser(tmp_path / "two", Path(index.shards[0]))

    def stage(world: Chooser) -> Train:
        own = {"random": AtRandom(**HALF), "cabs": CABS, "jest": world.jest(refresh_steps=4)}[method]
        return replace(VIT_TRAIN, online=own, log_every_samples=32)

    expected = one.train(stage(one))
    with pytest.raises(Killed):
        two.train(replace(stage(two), checkpoint_every_samples=24, loggers=(Killer(64),)))
    resumed = two.train(replace(stage(two), checkpoint_every_samples=24, num_workers=2))
    assert resumed.key == expected.key
    assert resumed.digest == expected.digest
    counts = [world.manifest(made)["counts"] for world, made in ((one, expected), (two, resumed))]
    for name in ("consumed", "candidates", "samples_decoded", "samples_scored", "scoring_flops", "unique_samples"):
        assert counts[0][name] == counts[1][name], name
    assert read_metrics(resumed.folder / "metrics.jsonl")[-1]["samples_scored"] == counts[0]["samples_scored"]


def test_the_frequency_form_takes_the_rows_with_most_concepts(here: Chooser) -> None:
    held = [list(range(row % 4)) for row in range(NUM_ROWS)]
    matches = Matches.of_rows(held, ["a", "b", "c"])
    subset = here.pairs().subset
    for ranks, places in ((None, [1, 3]), (2, [1, 3]), (1, [1, 3])):
        how = replace(CABS, form="frequency", concepts="clusters", released_ranks=ranks)
        choose, about = how.chooser(subset, 0, 2, {"matches": matches})
        assert choose(Slice(0, np.zeros(4, np.int64), np.array([0, 3, 1, 2]))).tolist() == places
    assert about == {"without_concepts": 10}


def test_what_is_not_chosen_is_decoded_only_where_the_learner_scores_it(
    here: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, fit = [0], Shift.fit

    def counted(*given: Any) -> Any:
        decoded[0] += 1
        return fit(*given)

    monkeypatch.setattr(Shift, "fit", counted)
    rows = tuple(row for row in range(NUM_ROWS) if row != 7)  # the broken one
    for method, read in ((None, 80), (AtRandom(**HALF), 80), (CABS, 80), (here.jest(), 160)):
        decoded[0] = 0
        counts = here.counts(replace(VIT_TRAIN, online=method), rows)
        assert decoded[0] == read
        if method is not None:
            assert counts["samples_decoded"] == read
            assert counts["candidates"] == 160
            assert counts["samples_seen"] == 80
            assert counts["passes"] == round(160 / 39, 4)
            assert counts["samples_scored"] == (160 if read == 160 else 0)


def test_scoring_costs_a_forward_pass_for_each_candidate_and_is_in_the_hardware_flops(here: Chooser) -> None:
    counts = here.counts(replace(VIT_TRAIN, online=here.jest()))
    model = fresh_model(Model(config=VIT), 3).model
    forward, both = forward_flops(model, 32)(16), hardware_flops(model, 32)(16)
    assert forward is not None
    assert both is not None
    assert 2.5 * forward < both < 3 * forward
    assert counts["scoring_flops"] == 160 * forward
    assert counts["hardware_flops"] == 160 * forward + 80 * both
    assert counts["train_flops"] == 80 * both
    assert counts["choice_seconds"] > 0


def test_smaller_images_and_an_earlier_learner_score_for_less(here: Chooser) -> None:
    config = VIT | {"vision_cfg": VIT["vision_cfg"] | {"patch_size": 8}}  # type: ignore[operator]
    stage = replace(TRAIN, model=Model(config=config))
    counts = [here.counts(replace(stage, online=here.jest(score_size=size))) for size in (None, 16)]
    assert 0.2 * counts[0]["scoring_flops"] < counts[1]["scoring_flops"] < 0.8 * counts[0]["scoring_flops"]
    assert counts[0]["train_flops"] == counts[1]["train_flops"]
    with pytest.raises(ConfigError, match=r"online\.score_size=20 .* multiple of 8 below 32"):
        here.train(replace(stage, online=here.jest(score_size=20)))
    with pytest.raises(ConfigError, match=r"online\.score_size=16 .*no ViT"):
        here.train(replace(TRAIN, online=here.jest(score_size=16)))


def test_an_earlier_learner_scores_until_its_steps_are_over_and_through_a_resume() -> None:
    module: Any = SimpleNamespace(model=fresh_model(Model(config=VIT), 3).model, global_step=0)
    scale, start = module.model.logit_scale, float(module.model.logit_scale)
    choosing = Choosing(jest(refresh_steps=2), 1.0, 8, 0, 8)

    def scored_at(step: int, who: Choosing = choosing) -> float:
        module.global_step = step
        return float(who._scorer(module).logit_scale)

    found = []
    for step in range(3):
        with torch.no_grad():
            scale.fill_(start + step)
        found.append(scored_at(step) - start)
    assert found == pytest.approx([0, 0, 2])
    with torch.no_grad():
        scale.fill_(start + 3)
    resumed = Choosing(jest(refresh_steps=2), 1.0, 8, 0, 8)
    resumed.load(choosing.state(), module)
    assert scored_at(3, resumed) - start == pytest.approx(2)
    assert scored_at(4, resumed) - start == pytest.approx(3)


def test_a_smaller_copy_has_the_same_weights_but_for_its_positions() -> None:
    model = fresh_model(Model(config=VIT | {"vision_cfg": VIT["vision_cfg"] | {"patch_size": 8}}), 3).model  # type: ignore[operator]
    made, name = smaller(model, 16), "visual.positional_embedding"
    with torch.no_grad():
        model.visual.positional_embedding[1:] = 3.0
        model.logit_scale.add_(1)
    refresh(made, model)
    for key, values in model.state_dict().items():
        assert key == name or torch.equal(values, made.state_dict()[key])
    assert torch.allclose(made.state_dict()[name][1:], torch.tensor(3.0))  # a constant stays one
    assert torch.equal(made.state_dict()[name][0], model.state_dict()[name][0])
    grey = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    assert torch.equal(shrunk(torch.full((2, 3, 32, 32), 128, dtype=torch.uint8), 16), grey)
    assert made.encode_image(torch.zeros(2, 3, 16, 16)).shape == (2, 16)


def test_a_budget_of_flops_pays_for_scoring_and_for_the_reference_in_steps(here: Chooser) -> None:
    stage = replace(VIT_TRAIN, online=here.jest(), budget="flops", samples_seen=160)
    counts = here.counts(stage)
    model = fresh_model(Model(config=VIT), 3).model
    forward, both = forward_flops(model, 32)(16) or 0, hardware_flops(model, 32)(16) or 0
    spent = counts["train_flops"] + counts["scoring_flops"] + NUM_ROWS * forward  # the reference is as large
    left = 160 * both - spent
    assert 0 <= left + forward * 2 < 8 * both + 16 * forward + 2 * forward  # row 7 has no vector
    assert counts["samples_seen"] < 160


def test_runs_that_share_the_reference_share_its_cost() -> None:
    rates, budget = Rates(90, 30, lambda length: 30), Budget(batch_size=10, samples_seen=200, budget="flops")
    # A step costs 10 x 90 + 50 x 30 = 2,400 of 18,000; the reference 3,000.
    assert affordable(budget, 50, rates, 3000, 1).samples_seen == 60
    assert affordable(budget, 50, rates, 3000, 3).samples_seen == 70
    with pytest.raises(ConfigError, match=r"train\.samples_seen=20, pay for no step.*online\.runs=1.*Raise"):
        affordable(Budget(batch_size=10, samples_seen=20), 50, rates, 3000, 1)
    with pytest.raises(ConfigError, match=r"train\.budget=flops: the FLOPs of vectors that are read are not known"):
        affordable(budget, 50, rates, None, 1)


def test_methods_that_score_nothing_have_one_key_for_both_budgets() -> None:
    def key(**change: Any) -> str:
        return key_of(replace(VIT_TRAIN, **change), {})

    assert key() == key(budget="flops")
    assert key(online=CABS) == key(online=CABS, budget="flops") != key()
    assert key(online=jest()) != key(online=jest(), budget="flops")
    assert "online" not in parameters(VIT_TRAIN)


def test_only_kept_rows_get_vectors_of_the_reference(here: Chooser) -> None:
    stage, rows = replace(VIT_TRAIN, online=here.jest()), tuple(range(10, 30))
    reference = here.store.get(here.node(stage, rows).inputs["reference"])
    assert reference.image.rows.tolist() == list(rows)
    assert reference.scale == pytest.approx(1 / 0.07, rel=1e-5)
    images, texts, has_both = reference.of(np.array([29, 3, 10, 29]))
    assert has_both.tolist() == [True, False, True, True]
    assert np.allclose((images**2).sum(1), [1, 0, 1, 1], atol=1e-5)
    assert np.array_equal(texts[0], texts[3])


def test_mixtures_are_chosen_from_copy_by_copy(here: Chooser) -> None:
    stage = replace(VIT_TRAIN, mixture=BySource({}, 2.0))
    for method in (CABS, here.jest()):
        counts = here.counts(replace(stage, online=method))
        assert counts["passes"] == 2.0  # 160 candidates of epochs of 80
        assert counts["candidates"] == 160


@pytest.mark.parametrize("method", ["cabs", "jest"])
def test_streamed_shards_and_refined_captions_are_chosen_from_as_any_others(
    here: Chooser, tmp_path: Path, method: str
) -> None:
    refined = tmp_path / "refined.parquet"
    index = here.store.get(here.pool)
    texts = [f"a rather longer caption of row number {row}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"uid": index.uids(np.arange(NUM_ROWS)), "caption": texts}), refined)
    mix = CaptionMix("alternate", 0.5, None, "caption", file=str(refined))
    own = CABS if method == "cabs" else here.jest()
    stage = replace(VIT_TRAIN, online=own, captions=mix, held_out=0.1)
    plain = here.train(stage)
    # One shard is one window, so the order stays; trimming changes last bits alone.
    streamed = here.train(replace(stage, streaming=Streaming(1, 0.1, str(tmp_path / "cache")), trim_captions=True))
    counts = [here.manifest(made)["counts"] for made in (plain, streamed)]
    assert counts[0]["consumed"] == counts[1]["consumed"]
    assert counts[0]["held_out"] > 0
    assert counts[0]["candidates"] == counts[1]["candidates"] == 160


def test_a_budget_in_epochs_counts_candidates(here: Chooser) -> None:
    counts = here.counts(replace(VIT_TRAIN, online=AtRandom(**HALF), samples_seen=None, epochs=2.0))
    assert (counts["steps"], counts["candidates"], counts["passes"]) == (5, 80, 2.0)


# what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"super_batch": 4, "filter_ratio": None}, r"online\.super_batch=4 .*train\.batch_size=8.*16, 40"),
        ({"super_batch": 20, "filter_ratio": None}, r"online\.super_batch=20 .*train\.batch_size=8"),
        ({"super_batch": 8, "filter_ratio": None}, r"online\.super_batch=8 "),
        ({"super_batch": 16}, r"super_batch=16 and online\.filter_ratio=0\.5: exactly one"),
        ({"filter_ratio": None}, r"super_batch=None and online\.filter_ratio=None: exactly one"),
        ({"filter_ratio": 0.7}, r"filter_ratio=0\.7: it must be .*0\.8"),
        ({"filter_ratio": 1.0}, r"filter_ratio=1\.0"),
    ],
)
def test_a_super_batch_that_does_not_fit_the_batch_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(VIT_TRAIN, online=AtRandom(**(HALF | change)))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (lambda: jest(chunks=3), r"online\.chunks=3 does not divide train\.batch_size=8"),
        (lambda: replace(CABS, released_ranks=3), r"online\.released_ranks=3 does not divide train\.batch_size=8"),
        (lambda: replace(CABS, column=""), r"column=''.*a name of columns"),
        (lambda: replace(CABS, concepts="entries"), r"metadata=None"),
        (lambda: jest(reference=Timm("x", 224, "token")), "captions' side"),
    ],
)
def test_settings_of_a_method_that_do_not_fit_are_refused_before_any_work(method: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(VIT_TRAIN, online=method())


def test_a_super_batch_beyond_what_is_kept_is_refused(here: Chooser) -> None:
    with pytest.raises(ConfigError, match=r"16 candidates.*online\.super_batch.*12 kept samples.*twice"):
        here.train(replace(VIT_TRAIN, online=AtRandom(**HALF)), tuple(range(12)))


def test_weights_that_leave_less_than_a_super_batch_are_refused() -> None:
    order = MixedOrder(np.arange(40, dtype=np.uint64), 0, np.full(40, 0.3, np.float32))
    assert mixed_horizon(order, Budget(batch_size=8, samples_seen=80)).steps == 10
    with pytest.raises(ConfigError, match=r"sum to 12\.00 .*16 candidates.*less than one super-batch"):
        mixed_horizon(order, Budget(batch_size=8, samples_seen=80), 16)


def test_tags_that_no_kept_sample_has_are_refused(here: Chooser) -> None:
    with pytest.raises(ConfigError, match=r"online\.concepts=column: none of 6 kept samples.*online\.column"):
        here.train(
            replace(VIT_TRAIN, online=CABS, batch_size=2, samples_seen=20), (0, 7 * 2, 21, 28, 35, 7 * 0 + 7)
        )


def test_a_budget_of_flops_in_epochs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget=flops with train\.epochs=2"):
        replace(VIT_TRAIN, budget="flops", samples_seen=None, epochs=2.0)


def test_a_reference_whose_sides_differ_in_width_is_refused(here: Chooser, tmp_path: Path) -> None:
    images, texts = (Embeddings([], width) for width in (4, 6))
    work = Work(tmp_path, tmp_path, "key")
    with pytest.raises(ConfigError, match=r"online\.reference: .*images have 4 numbers and those of captions 6"):
        MakeReference(here.encoder(), None).run(work, images, texts)
