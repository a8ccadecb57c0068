"""The picture of a training: its losses, and the map of the held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cbir_faiss.report.charts import COLOURS, STYLE
from cbir_faiss.training.checkpoint import Epoch

CURVES = "curves.png"


def draw_curves(history: Sequence[Epoch], measure: str, file: Path) -> None:
    """Losses and ``measure`` by epoch; the best epoch is marked."""
    validated = [epoch for epoch in history if epoch.score is not None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([e.epoch for e in history], [e.loss for e in history], color=COLOURS[0], label="training")
        held_out = [(e.epoch, e.held_out_loss) for e in validated if e.held_out_loss is not None]
        left.plot([e for e, _ in held_out], [loss for _, loss in held_out], color=COLOURS[1], label="held out")
        left.set_xlabel("epoch")
        left.set_ylabel("loss")
        left.legend()
        if validated:
            best = max(validated, key=lambda e: e.score or 0.0)
            right.plot([e.epoch for e in validated], [e.score for e in validated], color=COLOURS[2])
            right.plot([best.epoch], [best.score], "o", color=COLOURS[2], label=f"best: {best.score:.4f}")
            right.legend(loc="lower right")
        right.set_xlabel("epoch")
        right.set_ylabel(measure)
        figure.savefig(file, dpi=110)
