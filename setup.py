"""What Beam workers are staged with (``--setup_file``). All that it says stands in pyproject.toml."""

from setuptools import setup

setup()
