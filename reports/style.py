"""Colours and matplotlib style of all plots."""

from __future__ import annotations

from typing import Any

#: Colour-blind safe, in the order of classes (Okabe and Ito).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")


#: matplotlib settings of every plot.
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # keeps text searchable and in the page's font
    "svg.hashsalt": "ciml",
}
