"""Declaration of the options of commands: each is a field of a frozen data class.

`option`, `repeated`, `flag` and `argument` return the fields. ``--help`` shows the text of ``Attributes`` in the
docstring of the class. `ciml.cli.command` makes click options of them. This module does not import click, so
services declare their options with it too. The classes below have the options that several commands share.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ciml.errors import CimlError
from ciml.settings import pairs

if TYPE_CHECKING:
    from dataclasses import Field
    from typing import ClassVar, dataclass_transform

    from ciml.data_root import DataRoot
    from ciml.kafka import KafkaOptions
    from ciml.trust import PolicySource
else:

    def dataclass_transform(**_: bool) -> Any:
        return lambda cls: cls


#: Fields are given by name, so that a required one may follow others. Python 3.9, on which only the recorder runs, does
#: not support that.
_KEYWORD_ONLY: Mapping[str, bool] = {"kw_only": True} if sys.version_info >= (3, 10) else {}
#: Key in the metadata of a field. Its value has the click arguments of the option that are not empty.
DECLARED = "option"


def option(
    default: Any = None,
    kind: Any = "",
    *,
    flags: str = "",
    metavar: str = "",
    envvar: str = "",
    shown: str = "",
    alone: str = "",
    ask: str = "",
    required: bool = False,
    hidden: bool = False,
) -> Any:
    """Return the field of an option.

    Args:
      default: value without the option.
      kind: how a text becomes a value: a key of `ciml.cli.options.KINDS`, a Python type or a tuple of them, a click
        type, or a click callback.
      flags: the flags, separated by spaces; "" for ``--field-name``.
      metavar: name of the value in ``--help``.
      envvar: environment variable of the default.
      shown: text that ``--help`` shows instead of the default.
      alone: value of the option if it is given without one.
      ask: the prompt for a missing value on a terminal: its meaning, with an example; "" does not prompt.
      required: whether there is no default.
      hidden: whether ``--help`` leaves it out.
    """
    return _declare(
        default,
        kind=kind,
        flags=flags,
        metavar=metavar,
        envvar=envvar,
        show_default=shown,
        flag_value=alone,
        ask=ask,
        required=required,
        hidden=hidden,
    )


def repeated(kind: Any = "", *, flags: str = "", metavar: str = "", ask: str = "", required: bool = False) -> Any:
    """Return the field of an option that may be repeated, whose value is a tuple; see `option`.

    Its flag is the field's name without a final "s".
    """
    return _declare((), kind=kind, flags=flags, metavar=metavar, ask=ask, required=required, multiple=True)


def flag(flags: str = "", *, default: bool | None = False, envvar: str = "", hidden: bool = False) -> Any:
    """Return the field of an option without a value; see `option`. ``flags`` may be ``--yes/--no``."""
    return _declare(default, flags=flags, is_flag=True, envvar=envvar, hidden=hidden)


def argument(
    metavar: str = "", kind: Any = "", *, required: bool = True, many: bool = False, default: Any = None
) -> Any:
    """Return the field of an argument of the command; see `option`.

    Args:
      metavar, kind, default: see `option`.
      required: whether the command needs it, if there is no default.
      many: whether its value is a tuple of all further arguments.
    """
    return _declare(
        () if many else default,
        argument=True,
        metavar=metavar,
        kind=kind,
        nargs=-1 if many else 1,
        required=required and default is None,
    )


def _declare(default: Any, **settings: Any) -> Any:
    """Return a field with click arguments; a required one has no default."""
    metadata = {DECLARED: {name: value for name, value in settings.items() if value not in ("", False)}}
    return field(metadata=metadata) if settings.get("required") else field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Options:
    """Base of data classes of options: each subclass is a frozen data class.

    A command imports many classes of options. Generating these methods for each of them would take a third of the
    import time, so all inherit them.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, eq=False, repr=False, **_KEYWORD_ONLY)(cls)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and type(other) is type(self) and other._values() == self._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def _values(self) -> dict[str, Any]:
        """Return the values by name: an object that msgspec decoded has its default values in the class alone."""
        return {option_field.name: getattr(self, option_field.name) for option_field in fields(self)}


class BrokerOptions(Options):
    """Options of the connection to Kafka; subclasses of commands that need a broker require ``kafka``.

    Attributes:
      kafka_options: librdkafka property, such as security.protocol=SSL; may be repeated.
      kafka_config: File of librdkafka properties, one NAME=VALUE per line, for TLS, SASL and secrets. -X overrides it.
    """

    kafka: str | None = option(kind="optional broker")
    kafka_options: tuple[str, ...] = repeated(flags="-X", metavar="PROPERTY=VALUE")
    kafka_config: str | None = option(kind="absolute file", envvar="CIML_KAFKA_CONFIG")

    def connection(self) -> KafkaOptions:
        """Return the connection.

        Raises:
          CimlError: there is no broker, an option is not a pair, or a property is reserved.
        """
        from ciml.kafka import KafkaOptions  # few commands need a broker

        if self.kafka is None:
            raise CimlError("no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
        return KafkaOptions.of(self.kafka, pairs("-X", self.kafka_options), self.kafka_config)


class TrustOptions(Options):
    """The trust policy of a command.

    Attributes:
      trust_policy: TOML file of a trust policy, for a trial. [default: the policy of the data root, see ciml trust;
        without one $CIML_TRUST_POLICY, otherwise proved work of Zuul, and backfills]
    """

    trust_policy: str | None = option(kind="file")

    def trust_of(self, root: DataRoot, *further: DataRoot) -> PolicySource:
        """Return what names the trust policy of a data root; see `ciml.stored_trust.policy_of`."""
        from ciml.stored_trust import policy_of

        return policy_of(root, self.trust_policy, *further)


class LearnOptions(TrustOptions):
    """The runs that a training may learn from.

    Attributes:
      exclude: File of runs excluded from training: one run id per line, optionally followed by a space and a reason.
    """

    exclude: str | None = option(kind="file")


class PolicyOptions(TrustOptions):
    """The policies of a command that fetches logs.

    Attributes:
      fetch_policy: TOML file of allowed hosts and roots, and limits of logs; options add to it.
    """

    fetch_policy: str | None = option(kind="file")


class IngestPolicyOptions(PolicyOptions):
    """The policies, sources and allowed places of a command that fetches logs of events.

    Attributes:
      sources: Name of an event source in run ids and policies, '*' for all others; may be repeated.
      hosts: Allowed host of logs, by https unless http:// is given; may be repeated.
      roots: Allowed root of log files or objects; may be repeated.
    """

    sources: tuple[str, ...] = repeated(metavar="EVENT-SOURCE=NAME")
    hosts: tuple[str, ...] = repeated(flags="--allow-host", metavar="[http://]HOST[:PORT]")
    roots: tuple[str, ...] = repeated(flags="--allow-root", metavar="FOLDER|s3://PREFIX")
