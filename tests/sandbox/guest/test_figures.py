"""Code can draw with matplotlib, without a display, into files and bytes."""

from __future__ import annotations

import pytest

from sandbox.limits import MIB
from tests.sandbox.repl import Repls

DRAW = """
import io
import matplotlib
import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 2, 3], [3, 1, 2], label='\u00e9 $x^2$')
axes.legend()
figure.savefig('plot.png')
drawn = io.BytesIO()
figure.savefig(drawn, format='svg')
plt.style.use('ggplot')
matplotlib.get_backend(), open('plot.png', 'rb').read(4), b'<svg' in drawn.getvalue()"""


@pytest.mark.parametrize("image", ["core", "data"])
def test_a_figure_is_drawn_into_files_and_bytes_and_nothing_is_said(start: Repls, image: str) -> None:
    repl = start(image, memory_bytes=512 * MIB, turn_seconds=120.0)
    turn = repl.run(DRAW)
    assert (turn.error, turn.stderr) == (None, "")
    assert turn.stdout == repr(("Agg", b"\x89PNG", True)) + "\n"


def test_where_the_fonts_have_no_room_the_import_says_so_in_one_line(start: Repls) -> None:
    error = start(files=10, memory_bytes=512 * MIB).run("import matplotlib").error
    assert error is not None
    assert error.type == "ImportError"
    assert error.message == "matplotlib cannot unpack its fonts into /tmp/.matplotlib: No space left on device"
