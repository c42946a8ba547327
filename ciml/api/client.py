"""A model on a model server, and its predictions for logs of this machine."""

from __future__ import annotations

from ciml.api.predictions import Predicts


class Client(Predicts):
    """A model on a model server: ``ciml serve``, or any TensorFlow Serving.

    The model describes itself, so a client needs no data root. A log is parsed and prepared on this machine, and the
    server gets its windows alone. Models of earlier versions of ciml do not describe themselves. A model of causes
    gives no verdict here. Used in a ``with`` statement, it closes itself.

    Args:
      url: ``http://HOST:PORT``, ``https://…``, each optionally with ``/v1/models/NAME`` and ``/versions/N`` or
        ``/labels/LABEL``; or ``grpc://HOST:PORT`` or ``grpc://HOST:PORT/NAME``. Redirects are not followed.
      model: name of the model; not needed if the address names it, or if a ``ciml serve`` serves a single model.
      version: the version; by default that of ``label``.
      label: the label; by default ``stable``, or the latest version where there is no such label.
      timeout_s: limit of one request, seconds.

    Attributes:
      name: name of the model.
      version: number of the version that described itself last.
      classes: names of the classes, in order.
      features: names of the features, in order.

    Raises:
      CimlError: the address is malformed, there is no such model, or it does not describe itself, or it needs facts
        that no client has.
      EngineError: the server is unavailable.

    Example:
      >>> with ciml.Client("http://127.0.0.1:8501", "status") as client:
      ...     prediction = client.predict("logs/unit-001.csv")
      >>> prediction.class_name, client.classes
      ('failed', ('passed', 'failed'))
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        from ciml.extras import require

        require("grpc", "serve")
        from ciml.serving.predict.remote import RemoteModel
        from ciml.serving.remote import parse_url

        super().__init__(RemoteModel(parse_url(url, model, version, label), timeout_s))
        self.url = url

    def __repr__(self) -> str:
        return f"Client({self.url!r}: {self.name!r}, version {self.version}: {', '.join(self.classes)})"
