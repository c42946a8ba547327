"""GitHub: the adapter of its webhooks, the client of its checks, its credentials, the text of ``ciml connect``."""
