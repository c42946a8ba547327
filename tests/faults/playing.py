"""One trial, in this process."""

from __future__ import annotations

import shutil
import time
import traceback
from pathlib import Path

from tests.faults import rows
from tests.faults.children import ROOT
from tests.faults.stage import Stage
from tests.faults.verdict import Verdict

KEPT = ROOT / "build" / "faults"


def play(
    row: int, seed: int, engine: str, place: Stage, planted: str = "", kept: Path = KEPT, scale: float = 1.0
) -> tuple[Verdict, float]:
    """One trial, in this process. A failing one leaves its folder in ``kept``."""
    began = time.monotonic()
    folder = place.home / f"row-{row:02d}-{engine}-{seed}{'-' + planted if planted else ''}"
    scene = place.scene(folder, engine=engine, planted=planted)
    scene.scale = scale
    if planted:
        scene.lag_limit_s = 40.0  # a defect that stops everything need not be watched for longer
    try:
        verdict = rows.load()[row].trial(seed, scene)
    except Exception:  # noqa: BLE001  # a trial that breaks is a trial that failed
        verdict = Verdict([f"trial: {traceback.format_exc()[-2000:]}"])
    if not planted:
        keep_folder(folder, verdict, kept)
    shutil.rmtree(folder, ignore_errors=True)
    return verdict, time.monotonic() - began


def keep_folder(folder: Path, verdict: Verdict, kept: Path = KEPT, *, heavy: bool = False) -> None:
    """Keeps the folder of a trial that failed; of a ``heavy`` one without its raw objects."""
    if not verdict.failures:
        return
    place = kept / folder.name
    shutil.rmtree(place, ignore_errors=True)
    ignore = shutil.ignore_patterns("job=*", "span-*") if heavy else None
    shutil.copytree(folder, place, symlinks=True, ignore_dangling_symlinks=True, ignore=ignore)
    (place / "verdict.txt").write_text("\n".join(verdict.failures) + "\n")
