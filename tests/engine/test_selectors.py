"""Which token selectors there are, and which positions they can have at all."""

import pytest

from sonde.engine.capture import Capture
from sonde.engine.selectors import SELECTORS, Region, check_tokens, region_of, span_of
from sonde.errors import InputError
from sonde.store import ArraySpec, Schema

FORMS = ("index:-2", "span:traffic light", "span:Grüße 👩", "image:0,-1", "image:1,2:3x4", "image:-3,-4:3x4")


def test_every_selector_can_be_the_name_of_an_array() -> None:
    tokens = (*SELECTORS, *FORMS)
    check_tokens(tokens)
    arrays = tuple(ArraySpec("resid_post", name, (0,), 4) for name in tokens)
    Schema(arrays, 1, 1, {}, {}).check()
    assert [spec.tokens for spec in arrays if spec.ragged] == ["all", "all:image", "all:text"]


def test_the_parts_of_a_name_are_read() -> None:
    assert span_of("span:traffic light") == "traffic light"
    assert region_of("image:0,-1") == Region(0, -1)
    assert region_of("image:1,2:3x4") == Region(1, 2, (3, 4))
    assert span_of("image:0,0") is region_of("span:image:0,0") is region_of("image_mean") is None


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("span:", "the name of a span"),
        ("span: ", "the name of a span"),
        ("span:a/b", "without '/'"),
        ("span:a\nb", "printable"),
        (f"span:{'é' * 61}", "1 to 120 bytes"),
        ("image:1", "unknown tokens 'image:1'.*image:r,c"),
        ("image:1,2,3", "unknown tokens"),
        ("image:1,2/3x4", "unknown tokens .*image:r,c:RxC"),
        ("image:2,0:2x2", "no cell 2,0 among 2 x 2"),
        ("image:0,-3:2x2", "no cell 0,-3 among 2 x 2"),
        ("image:0,0:0x2", "no cell 0,0 among 0 x 2"),
        ("all:video", "unknown tokens"),
        ("index:1.5", "unknown tokens"),
    ],
)
def test_a_name_that_says_nothing_is_refused(tokens: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_tokens((tokens,))


def test_a_site_keeps_the_selectors_that_its_positions_can_have() -> None:
    tokens = (*SELECTORS, "span:a", "image:0,0", "image:0,0:2x2")
    capture = Capture.plan(("resid_post", "connector", "vision/resid_post"), tokens, "all", 3, 2)
    assert capture.tokens_of("resid_post") == tokens
    assert set(tokens) - set(capture.tokens_of("connector")) == {"text_mean", "all:text", "span:a"}
    assert capture.tokens_of("vision/resid_post") == ("mean", "image_mean", "max")
    with pytest.raises(InputError, match="site 'vision/resid_post' has none of the tokens span:a, image:0,0"):
        Capture.plan(("vision/resid_post",), ("span:a", "image:0,0"), "all", 3, 2)
