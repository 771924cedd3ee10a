"""Values reach a page as text: escaped, and without characters that a page or a picture cannot hold."""

import xml.etree.ElementTree as ET

import pytest

from ml_platform.evaluation.curve_plots import draw_curves
from ml_platform.evaluation.curves import curve
from ml_platform.reporting.render import UNSAFE

HOSTILE = ["\x00", "\x1b[2J", "\ud800", "\u202e", "\x9b", "\uffff", "<script>", "{{ 7 * 7 }}"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_picture_with_hostile_text_is_valid_xml(text: str) -> None:
    import numpy as np

    labels, scores = np.arange(100) % 2, np.linspace(0.1, 0.9, 100)
    name = f"candidate {text} end"
    [drawn] = [curve(name, "binary", labels, (scores > 0.5).astype(int), scores)]

    picture = draw_curves([drawn], "binary", f"yes {text}", "churn")

    assert picture is not None
    content = "".join(ET.fromstring(picture.decode()).itertext())  # noqa: S314 - the platform's own picture
    assert UNSAFE.sub("\N{REPLACEMENT CHARACTER}", name) in content
