"""The findings about a data root."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ciml.errors import CimlError, EngineError
from ciml.services.stored.kinds import KINDS, Kind

#: Called with (activity, number done, total or None).
Progress = Callable[[str, int, int | None], None]
_MANY = 100


@dataclass(slots=True)
class Findings:
    """The objects of a data root, and what is wrong with them.

    Attributes:
      objects: objects by kind, as listed.
      formats: undamaged objects by kind and format (docs/compatibility.md), of kinds with several formats.
      read: the kinds that were read completely. Where a manifest is damaged, the objects that it names are not read.
      broken: faults by kind.
      rewritten: objects by kind that `ciml.services.stored.examine.rewrite` makes again.
      faults: the first hundred faults, a line each.
      notes: oddities that are not faults, a line each.
    """

    objects: Counter[Kind] = field(default_factory=Counter)
    formats: defaultdict[Kind, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    read: set[Kind] = field(default_factory=set)
    broken: Counter[Kind] = field(default_factory=Counter)
    rewritten: Counter[Kind] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The number of all faults."""
        return self.broken.total()

    def present(self) -> list[Kind]:
        """Return the kinds with objects or faults, in the order of `KINDS`."""
        return [kind for kind in KINDS if self.objects[kind] or self.broken[kind]]

    def find(self, kind: Kind, text: str) -> None:
        """Add a fault, a line that names the object."""
        self.broken[kind] += 1
        if len(self.faults) < _MANY:
            self.faults.append(" ".join(text.split()))

    @contextmanager
    def guard(self, kind: Kind, where: str) -> Iterator[None]:
        """Turn an error of reading into a fault, so that one object costs only itself.

        Args:
          kind: the kind of object that is read.
          where: begins the fault's line.

        Raises:
          EngineError: the store does not answer.
        """
        try:
            yield
        except EngineError:
            raise
        except CimlError as error:
            self.find(kind, f"{where}: {error}")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # JSON of another form than that of its kind.
            self.find(kind, f"{where} cannot be read: {type(error).__name__}: {error}")

    def verified(self, kind: Kind) -> int | None:
        """Return the number of verified objects of a kind; None for one that was not read."""
        if kind not in self.read:
            return None
        found = self.formats.get(kind)
        return max(0, self.objects[kind] - self.broken[kind]) if found is None else found.total()

    def formats_of(self, kind: Kind) -> dict[str, int]:
        """Return the number of verified objects of a kind by format."""
        found = self.formats.get(kind)
        verified = self.verified(kind)
        return dict(sorted(found.items())) if found else {"1": verified} if verified else {}
