"""What a person reads after a mistake: the exact text, the exit status, and never a stack trace."""

from pathlib import Path

import numpy as np
import pytest

from dbp.__main__ import main

PRESETS = Path(__file__).parents[2] / "configs"
SELECT = sorted(file.stem for file in (PRESETS / "select").glob("*.yaml"))


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command in an empty folder; its status and what it said, checked to be no trace."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        status = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert not list(tmp_path.rglob("manifest.json")), "nothing was built"
        if status:
            assert out == ""
            assert err.endswith("\n")
            assert err.count("\n") == 1, "one paragraph"
        return status, err.rstrip("\n")

    return run


POOL = "pool.shards=nowhere/{0..3}.tar"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["select=dbpp", "budget.num_kept=5"],
            "ConfigError: select=dbpp: there is no such select. Did you mean 'dbp'?",
        ),
        (
            ["select=xyzxyz", "budget.num_kept=5"],
            f"ConfigError: select=xyzxyz: there is no such select. It can be: {', '.join(SELECT)}.",
        ),
        (
            ["select.temprature=0.1", "budget.num_kept=5"],
            "ConfigError: select.temprature is not a setting here. Did you mean 'select.temperature'?",
        ),
        (
            ["+select.temprature=0.1", "budget.num_kept=5"],
            "ConfigError: select.temprature=0.1 is not a setting of Density. Did you mean 'temperature'?",
        ),
        (["budgte.num_kept=5"], "ConfigError: budgte.num_kept is not a setting here. Did you mean 'budget'?"),
        (
            ["select=uniform", "select.temperature=0.1", "budget.num_kept=5"],
            "ConfigError: select.temperature is not a setting here. It can be: seed.",
        ),
        (["budget.keep_fraction=1.7"], "BudgetError: budget.keep_fraction=1.7: it must be above 0 and at most 1"),
        (["budget.keep_fraction=half"], "ConfigError: budget.keep_fraction='half': it must be a finite number"),
        (
            ["budget.num_kept=5", "select.temperature=inf"],
            "ConfigError: select.temperature=inf: it must be a finite number",
        ),
        (["budget.num_kept=0.3"], "ConfigError: budget.num_kept=0.3: it must be a whole number"),
        (
            ["budget.keep_fraction=0.3", "budget.num_kept=10"],
            "BudgetError: give exactly one of budget.prune_ratio (fraction removed), "
            "budget.keep_fraction and budget.num_kept; given: budget.keep_fraction=0.3 and "
            "budget.num_kept=10. On the command line, null unsets one.",
        ),
        (
            [],
            "BudgetError: give exactly one of budget.prune_ratio (fraction removed), "
            "budget.keep_fraction and budget.num_kept; given: none of them. On the command line, "
            "null unsets one.",
        ),
        (
            ["budget.num_kept=5", "until=selekt"],
            "ConfigError: until='selekt': it must be one of index, embed, dedup, score, filter, "
            "centroids, cluster, borders, select, matches, captioner, codes, captions, scores.NAME or columns.NAME",
        ),
        (
            ["budget.num_kept=5", "dedup.epsilon=3"],
            "ConfigError: dedup.epsilon=3.0: it must be in [0, 2]: 1 - cosine",
        ),
        (["budget.num_kept=5", "cluster.on=dedupe"], "ConfigError: cluster.on='dedupe': Did you mean 'dedup'?"),
        (
            ["--foo"],
            "ConfigError: --foo is no option here. Settings are given as key=value; options are "
            "--config-dir FOLDER, --cfg and --help.",
        ),
        (["--config-dir"], "ConfigError: --config-dir needs a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_setting_stops_before_any_work_and_says_what_was_meant(
    arguments: list[str], message: str, said
) -> None:
    assert said("curate", POOL, *arguments) == (1, message)


def test_a_pool_without_shards_says_how_to_name_them_and_how_to_do_without(said) -> None:
    assert said("curate", "budget.num_kept=5") == (
        1,
        "ConfigError: pool.shards is not set. Name the tars: "
        "pool.shards='folder/{00000..00099}.tar'. To see the tool work without data of your own: "
        "pool=glyphs.",
    )


def test_missing_shards_are_counted_and_the_first_is_named(said) -> None:
    status, message = said("curate", POOL, "budget.num_kept=5", "until=index")
    assert status == 1
    assert message == (
        "PoolError: 4 of 4 shards are missing; the first is nowhere/0.tar. Correct pool.shards "
        "(brace ranges include both ends), or fetch the missing shards."
    )


@pytest.mark.parametrize(
    ("verb", "meant"), [("curat", "Did you mean 'curate'?"), ("trian", "Did you mean 'train'?")]
)
def test_an_unknown_verb_is_wrong_usage(verb: str, meant: str, said) -> None:
    assert said(verb) == (2, f"dbp: there is no verb {verb!r}. {meant}")


def test_no_verb_at_all_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: dbp VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "ConfigError: dbp show takes one KEY; given: []"),
        (["show", "a", "b"], "ConfigError: dbp show takes one KEY; given: ['a', 'b']"),
        (
            ["why", "uid"],
            "ConfigError: dbp why needs keep=KEY, the key of a keep list; `dbp ls stage=select` lists them",
        ),
        (["why", "kep=abc", "uid"], "ConfigError: kep is not a setting here. Did you mean 'keep'?"),
        (["gc", "delete=yes"], "ConfigError: delete='yes': it must be true or false"),
        (
            ["export", "keep=abc", "format=datacmp", "out=x.npy"],
            "ConfigError: format=datacmp: Did you mean 'datacomp'?",
        ),
        (["export", "keep=abc"], "ConfigError: dbp export needs format=…; see dbp export --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_verbs_that_look_into_the_store_say_what_they_take(arguments: list[str], message: str, said) -> None:
    assert said(*arguments) == (1, message)


def test_a_key_that_is_not_there_says_where_it_was_looked_for(said, tmp_path: Path) -> None:
    assert said("show", "feed") == (
        1,
        f"StoreError: key 'feed' names 0 artifacts in {tmp_path / 'store'}. `dbp ls` lists what is "
        "there; paths.store says which store to look in.",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gc", "delet=true"], "ConfigError: delet is not a setting of dbp gc. Did you mean 'delete'?"),
        (["ls", "stag=train"], "ConfigError: stag is not a setting of dbp ls. Did you mean 'stage'?"),
        (
            ["curate", "pool.shards=a/0.tar", "pool.shards=a/1.tar", "budget.num_kept=5"],
            "ConfigError: pool.shards=a/0.tar pool.shards=a/1.tar: pool.shards is given twice. A shell makes "
            "several words of braces; put the value in quotes: pool.shards='…{00000..00099}.tar'",
        ),
        (
            ["curate", "--config-dir", "nowhere", "experiment=mine"],
            "ConfigError: --config-dir nowhere: there is no such folder.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_would_be_passed_over_in_silence_is_refused(arguments: list[str], message: str, said) -> None:
    assert said(*arguments) == (1, message)


def test_a_config_that_is_no_yaml_is_named_with_its_line(said, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("a: [")
    status, message = said("curate", "--config-dir", ".", "experiment=mine")
    assert status == 1
    assert message.startswith("ConfigError: a config cannot be read as YAML: ")
    assert "mine.yaml" in message


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    from dbp.encoders.openclip import load_openclip
    from dbp.errors import ConfigError

    (tmp_path / "k.txt").write_text("hi")
    np.save(tmp_path / "v.npy", np.zeros(4))
    for name in ("k.txt", "v.npy"):
        with pytest.raises(ConfigError, match=rf"{name} cannot be read as weights.*\.pt"):
            load_openclip("RN50", checkpoint=tmp_path / name)


def test_an_override_that_hydra_cannot_read_is_no_trace(said) -> None:
    status, message = said("curate", "budget.num_kept=5", "one two")
    assert status == 1
    assert message.startswith("ConfigError: ")
    assert "one two" in message


def test_an_interpolation_of_nothing_is_named(said) -> None:
    status, message = said("curate", POOL, "budget.num_kept=5", "seed=${nowhere}")
    assert status == 1
    assert message.startswith("ConfigError: ")
    assert "nowhere" in message


def test_a_reader_that_closes_the_pipe_early_is_no_error():
    import subprocess
    import sys

    found = subprocess.run(
        f"{sys.executable} -m dbp --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
