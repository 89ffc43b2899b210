#!/usr/bin/env bash
# matplotlib 3.11.2: a figure whose constrained layout was frozen by set_layout_engine("none"), which is what its documentation
# says to do to keep positions, draws every artist twice in each savefig; set_layout_engine(None) keeps the positions too and
# draws once.
#
# After "none" the figure has a placeholder engine where a colour bar or constrained layout was, and savefig takes any engine
# that is not None as a reason to draw once beforehand. None leaves the engine of the rcParams, which is none by default.
# Where: matplotlib/figure.py, Figure.set_layout_engine, and matplotlib/backend_bases.py, print_figure.
#
# Seen on 2026-11-28, Python 3.11:
#   'none': PlaceHolderLayoutEngine, axes drawn 2 times by savefig, positions kept: True
#   None: NoneType, axes drawn 1 times by savefig, positions kept: True
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet matplotlib==3.11.2
cat >"$folder/try.py" <<'PYTHON'
import io
import sys

from matplotlib.axes import Axes
from matplotlib.figure import Figure

draw = Axes.draw
drawn = 0


def counted(axes, *args, **options):
    global drawn
    drawn += 1
    return draw(axes, *args, **options)


Axes.draw = counted
found = []
for engine in ("none", None):
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(ylabel="loss")
    axes.plot([1, 2, 3])
    figure.draw_without_rendering()
    placed = axes.get_position().bounds
    figure.set_layout_engine(engine)
    drawn = 0
    figure.savefig(io.BytesIO(), format="svg")
    kept = axes.get_position().bounds == placed
    name = type(figure.get_layout_engine()).__name__
    print(f"{engine!r}: {name}, axes drawn {drawn} times by savefig, positions kept: {kept}")
    found.append((name, drawn, kept))
sys.exit(found != [("PlaceHolderLayoutEngine", 2, True), ("NoneType", 1, True)])
PYTHON
"$folder/env/bin/python" "$folder/try.py"
