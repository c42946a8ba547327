"""Python packages that the services under test find beside ciml: an adapter, and a defect of the program.

Neither is part of ciml. The adapter belongs to another package, as docs/adapters.md describes it. The defect cannot be
had otherwise: the program has none of this kind that is known.
"""

from __future__ import annotations

from pathlib import Path

#: An adapter of a CI system that fails on each delivery; `REPAIRED` reads them.
BROKEN = """
from ciml.integrations import Adapter, Ignored

def read(delivery):
    build = delivery.json()["builds"][0]
    return Ignored(str(build), "build", "a build is no run")

ADAPTER = Adapter("brokenci", (), read)
"""
REPAIRED = BROKEN.replace('["builds"][0]', '["id"]')

#: Makes one announcement raise in predict, as a defect of ciml would.
DEFECT = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "ciml.serving.predict.predictor":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            inner = module.read_announcement

            def read_announcement(message):
                found = inner(message)
                if "defect" in found.build_name:
                    raise ZeroDivisionError("planted")
                return found

            module.read_announcement = read_announcement

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def install(folder: Path) -> None:
    """Write the packages into a folder of PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "brokenci.py").write_text(BROKEN)
    (folder / "sitecustomize.py").write_text(DEFECT)
    info = folder / "ciml_brokenci-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ciml-brokenci\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ciml.adapters]\nbrokenci = brokenci:ADAPTER\n")


def repair(folder: Path) -> None:
    """Replace the adapter by one that works."""
    (folder / "brokenci.py").write_text(REPAIRED)
