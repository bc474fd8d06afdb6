"""What is fetched before a run: the weights that its recipe encodes with, each once."""

import json

import open_clip
import pytest
import torch

from dbp.config import compose
from dbp.verbs.command_line import overrides
from dbp.verbs.prefetch import run

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
GLYPHS = ["pool=glyphs", "budget.keep_fraction=0.5", "select=uniform"]


def test_weights_of_the_recipe_are_loaded_once_and_told(tmp_path, capsys):
    torch.save(open_clip.model.CLIP(**CONFIG).state_dict(), tmp_path / "w.pt")
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    uses = [f"encoder.{use}" for use in ("dedup", "cluster", "score")]
    said = [word for use in uses for word in (
        f"{use}=local_clip", f"{use}.checkpoint={tmp_path}/w.pt", f"{use}.config={tmp_path}/c.json",
    )]  # fmt: skip
    assert run(compose("prefetch", overrides([*GLYPHS, *said]))) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [f"OpenClip {tmp_path}/w.pt: ready", "1 of 1 ready"]


def test_published_weights_are_asked_for_by_model_and_tag_without_a_pool(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "dbp.verbs.prefetch.load_openclip", lambda *given, **named: asked.append((*given, *named.items()))
    )
    none = [f"encoder.{use}=precomputed" for use in ("dedup", "cluster", "score")]
    said = [*none, "model.name=ViT-B-32", "pretrained=openai"]
    assert run(compose("prefetch", overrides(said))) == 0
    assert asked == [("ViT-B-32", ("pretrained", "openai"))]
    assert capsys.readouterr().out.splitlines() == ["ViT-B-32 openai: ready", "1 of 1 ready"]


def test_the_tokenizer_of_the_trained_model_is_fetched_where_the_hub_has_it(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("dbp.verbs.prefetch.load_openclip", lambda *given, **named: asked.append((*given, named)))
    none = [f"encoder.{use}=precomputed" for use in ("dedup", "cluster", "score")]
    assert run(compose("prefetch", overrides([*none, "model.name=ViT-B-16-SigLIP"]))) == 0
    assert asked == [("ViT-B-16-SigLIP", {"config": None, "random_weights": True})]
    assert run(compose("prefetch", overrides([*none, "model.name=ViT-B-32"]))) == 0
    assert len(asked) == 1


@pytest.mark.nightly  # asks a hub that may not be there, several times
def test_weights_that_cannot_be_had_are_named_and_the_others_are_tried(tmp_path, capsys):
    said = ["encoder.dedup=local_clip", f"encoder.dedup.checkpoint={tmp_path}/gone.pt",
            "encoder.dedup.model=RN50", "encoder.cluster=precomputed", 
            f"encoder.cluster.images={tmp_path}/v.npy"]  # fmt: skip
    more = ["model.name=ViT-B-32", "pretrained=no_such_tag"]
    assert run(compose("prefetch", overrides([*GLYPHS, *said, *more]))) == 1
    out = capsys.readouterr().out
    assert "gone.pt: failed: " in out
    assert "ViT-B-32 no_such_tag: failed: " in out
    assert "Precomputed" not in out  # vectors that are made or read need no weights
    assert out.splitlines()[-1].startswith("0 of ")
