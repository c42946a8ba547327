"""The commands of ``ciml``, in packages by the groups of ``ciml --help``; each is a click command named ``command``."""
