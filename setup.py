"""The package that users install and that Beam workers are staged with (``--setup_file``)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "ciml" / "__init__.py").read_text()).group(1)

setup(
    name="ciml",
    version=version,
    description="Machine learning for continuous integration: from the telemetry of CI jobs to served models",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["ciml*", "transforms*", "training*", "serving*", "pipelines*", "cli*"]),
    package_data={"cli": ["**/*.html", "**/*.toml"], "ciml": ["**/*.toml"], "transforms": ["**/*.toml"]},
    install_requires=(here / "requirements.in").read_text().split("\n# Tests")[0].split(),
    entry_points={"console_scripts": ["ciml = cli.main:main"]},
)
