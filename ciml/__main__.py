"""Runs the command line: ``python -m ciml`` does what ``ciml`` does, where the environment's scripts are not on the PATH."""

from __future__ import annotations

from ciml.cli.main import main

if __name__ == "__main__":
    main()
