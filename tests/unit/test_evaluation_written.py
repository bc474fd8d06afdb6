"""What is counted of captions that a captioner wrote of glyphs."""

import pyarrow as pa
import pytest

from dbp.captioning.vocabulary import Vocabulary
from dbp.pools.glyph_fonts import CAPTIONS
from evaluation.checks.captioner import name_in, repairs, same_name, script_in, script_quality

ALPHA, BETA, A, ARROW = 0x3B1, 0x3B2, ord("A"), 0x2192
NAMES = {
    ALPHA: "greek small letter alpha", BETA: "greek small letter beta",
    A: "latin capital letter a", ARROW: "rightwards arrow",
}  # fmt: skip


@pytest.mark.parametrize("phrasing", CAPTIONS)
@pytest.mark.parametrize("face", ["dejavu sans mono", "stix general bold"])
def test_a_name_is_found_in_every_phrasing_as_it_was_and_as_a_captioner_writes_it(phrasing, face):
    for name in (*NAMES.values(), "combining double-struck arrow in ring"):
        caption = phrasing.format(name=name, face=face)
        vocabulary = Vocabulary.of([caption], 40, None)
        written = vocabulary.text(vocabulary([caption]).tolist()[0][1:])
        assert name_in(caption) == name
        assert same_name(name_in(written), name)


def test_names_are_equal_but_for_blanks_hyphens_and_case():
    assert same_name("double - struck n", "DOUBLE-STRUCK N")
    assert not same_name("alpha", "alpha with tonos")
    assert not same_name("", "")


def test_a_script_is_the_class_whose_words_a_caption_begins_with():
    assert script_in("the greek small letter alpha, set in dejavu sans") == "greek letter"
    assert script_in("rightwards arrow in stix general") == "arrow"
    assert script_in("latin small ligature fi (dejavu sans)") is None
    assert script_in("") is None


def test_script_quality_by_hand():
    written = ["greek small letter beta", "latin x", None, "rightwards arrow", "greek y", "anything"]
    found = script_quality(written, [ALPHA, BETA, A, ARROW, ALPHA, ord("+")])
    # greek 2 of 3, latin 0 of 1, arrow 1 of 1; a plus sign is of no script.
    assert found == {
        "pictures": 5, "right": 3 / 5, "chance": 3 / 5,
        "mean over scripts": pytest.approx((2 / 3 + 0 + 1) / 3),
        "chance of the mean": pytest.approx(1 / 3),
    }  # fmt: skip


def test_repairs_by_hand():
    truth = pa.table(
        {"character": [ALPHA, ALPHA, BETA, A, A, ARROW], "caption_swapped": [True, True, True, True, False, False]}
    )
    originals = [NAMES[A], NAMES[A], NAMES[ALPHA], NAMES[ARROW], NAMES[A], NAMES[ARROW]]
    written = [NAMES[ALPHA], NAMES[A], NAMES[ALPHA], None, "a latin thing", NAMES[ARROW]]
    found = repairs(written, originals, truth)
    assert (found["swapped"], found["sound"]) == (3, 2)  # a row without a caption is left out
    assert found["name repaired"] == pytest.approx(1 / 3)
    assert found["swapped caption repeated"] == pytest.approx(2 / 3)
    assert found["script wrong before"] == 2  # alpha for beta is the same script
    assert found["script repaired"] == pytest.approx(1 / 2)
    assert found["sound captions named"] == pytest.approx(1 / 2)
