"""Runs the command line: ``python -m ciml`` is ``ciml`` where an environment's scripts are not on the PATH."""

from __future__ import annotations

from ciml.cli.main import main

if __name__ == "__main__":
    main()
