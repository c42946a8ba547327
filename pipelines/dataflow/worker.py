"""The start of a worker process on Dataflow: Beam imports this module before it runs any code of the job.

It compares the versions of ciml, since functions are sent by name, and gives the process its environment from Secret
Manager: the credentials of S3, and of log hosts. An error here ends the process: Dataflow logs it and starts another.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, MutableMapping

from ciml.errors import CimlError
from ciml.secret_manager import read_secret
from ciml.version import __version__

_LINE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")


def prepare(environment: MutableMapping[str, str]) -> None:
    """Prepare this process for the job that its environment describes.

    Args:
      environment: of the process, with the options of the job as Beam's container gives them; it gets the
        secret's variables.

    Raises:
      CimlError: the image has another version of ciml than the job, or the secret cannot be read or is invalid.
      EngineError: Secret Manager does not answer.
    """
    options = _options(environment)
    version = options.get("ciml_version", __version__)
    if version != __version__:
        raise CimlError(
            f"the job was made by ciml {version}, and its image has {__version__}: use an image of {version}"
        )
    if secret := options.get("ciml_environment_secret"):
        environment.update(parse_environment(read_secret(secret), secret))


def parse_environment(text: str, where: str) -> dict[str, str]:
    """Parse environment variables: a line ``NAME=VALUE`` each; empty lines and comments (#) are ignored.

    Raises:
      CimlError: another line, named by its number alone.
    """
    variables = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise CimlError(f"{where}, line {number}: want NAME=VALUE, such as AWS_ACCESS_KEY_ID=…")
        variables[match[1]] = match[2]
    return variables


def _options(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the job, as text."""
    text = environment.get("PIPELINE_OPTIONS", "{}")
    if path := environment.get("PIPELINE_OPTIONS_FILE"):
        with open(path, encoding="utf-8") as file:
            text = file.read()
    options = json.loads(text)
    options = options.get("options", options)
    return {key.removeprefix("beam:option:").removesuffix(":v1"): str(value) for key, value in options.items()}


if {"PIPELINE_OPTIONS", "PIPELINE_OPTIONS_FILE"} & os.environ.keys():  # else it is no worker
    prepare(os.environ)
