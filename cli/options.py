"""Groups of options that several commands share, with one meaning everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ciml.options import Options, flag, option

if TYPE_CHECKING:
    from ciml.data_root import DataRoot

T = TypeVar("T")


class Data(Options):
    """The data root of a command that creates none."""

    data_path: str = option(kind="data", required=True)

    @property
    def root(self) -> DataRoot:
        """The opened data root."""
        from ciml.data_root import DataRoot

        return DataRoot.open(self.data_path)


class NewData(Data):
    """The data root of a command that creates it."""

    data_path: str = option(kind="new data", required=True)


def _sets(variable: str) -> dict[str, Any]:
    """Return the kind of an option that sets an environment variable, before other options are read."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value and not ctx.resilient_parsing:
            os.environ[variable] = value

    return {"callback": callback, "is_eager": True}


class S3Environment(Options):
    """The talk's options of S3, which set the environment's variables.

    Attributes:
      s3_profile: AWS profile of the S3 credentials. [default: $AWS_PROFILE]
      s3_url: S3 endpoint. [default: $AWS_ENDPOINT_URL_S3]
    """

    s3_profile: None = option(kind=_sets("AWS_PROFILE"), metavar="NAME")
    s3_url: None = option(kind=_sets("AWS_ENDPOINT_URL_S3"), metavar="URL")


class TargetData(Data):
    """The data root of data sets besides that of the runs.

    Attributes:
      target_data_path: Data root of data sets: a folder or an s3:// prefix. [default: --data-path]
    """

    target_data_path: str | None = option(kind="place", metavar="DATA")

    @property
    def target(self) -> DataRoot:
        """The opened data root of data sets."""
        from ciml.data_root import DataRoot

        return DataRoot.open(self.target_data_path or self.data_path)


class Json(Options):
    """The form of a command's output.

    Attributes:
      json: JSON output.
    """

    json: bool = flag()

    def show(self, subject: T, text: Callable[[T], None], to_json: Callable[[T], Any] | None = None) -> None:
        """Print a subject by the function ``text``, or as JSON."""
        if self.json:
            click.echo(json.dumps(to_json(subject) if to_json else subject, indent=2))
        else:
            text(subject)


class JsonLines(Json):
    """The form of the output of a command that lists objects.

    Attributes:
      json: JSON output, one object a line.
    """

    def show_all(
        self, subjects: Iterable[T], text: Callable[[list[T]], None], to_json: Callable[[T], Any] | None = None
    ) -> None:
        """Print all subjects by the function ``text``, or each as a line of JSON."""
        if not self.json:
            text(list(subjects))
            return
        for subject in subjects:
            click.echo(json.dumps(to_json(subject) if to_json else subject))
