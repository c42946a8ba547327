"""The commands of ``ciml``, one a module, each a click command named ``command``."""
